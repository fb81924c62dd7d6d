"""The CUDA kernel compiles for GPUs within their registers, and loads where there is none."""

import ctypes
import re

import pytest
import torch

from hyperopt_id.kernels import compiler, mulo_cuda


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The library, and what the assembler says of it."""
    try:
        nvcc = compiler.find_compiler("NVCC", compiler.cuda_compilers())
    except compiler.NoCompiler as missing:
        pytest.skip(f"needs nvcc: {missing}")
    path = tmp_path_factory.mktemp("cuda") / "library.so"
    flags = (*compiler.cuda_flags(["80", "90"]), "-Xptxas=-v")
    done = compiler.run(nvcc, *flags, str(mulo_cuda.SOURCE), "-o", str(path))
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(path)), done.stderr


def test_nothing_is_spilled(compiled):
    """`pytest -s` shows the registers of a thread and the bytes of shared memory of a block."""
    _, said = compiled
    kernels = re.findall(r"Compiling entry function '\w+?([a-z_]+)ENS_\w+' for '(sm_\d+)'", said)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    used = re.findall(r"Used (\d+) registers(?:.*?, (\d+) bytes smem)?", said)
    assert len(kernels) == len(spills) == len(used) == 16
    for (name, architecture), (registers, shared) in zip(kernels, used, strict=True):
        print(f"{architecture} {name}: {registers} registers, {shared or 0} bytes")
        assert int(registers) <= (168 if name == "move_split" else 128), (name, architecture)
    assert set(spills) == {("0", "0", "0")}


def test_the_library_plans(compiled):
    library, _ = compiled
    sizes, shapes = (ctypes.c_int64 * 8)(), (ctypes.c_int64 * 9)(1, 40, 1, 50, 1, 1, 0, 0, 0)
    library.hyperopt_id_mulo_cuda_plan(ctypes.c_int64(1), shapes, ctypes.c_int64(0), None, sizes)
    assert list(sizes)[2:] == [2, 4, 3, 2, 4, 0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_library_says_so(compiled):
    library, _ = compiled
    library.hyperopt_id_mulo_cuda_error.restype = ctypes.c_char_p
    failed = library.hyperopt_id_mulo_cuda_load(ctypes.c_int64(0))
    assert b"CUDA" in library.hyperopt_id_mulo_cuda_error(failed)
