"""The CUDA kernel where there is a GPU, and everywhere else its source, compiled for a CPU: every lane of a warp is a
fiber then, and a matrix product follows the layout of its fragments (`emulated_gpu.h`)."""

import ctypes
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from mulo_cases import HALF, Case, arguments, case, error, rule_step
from torch import Tensor

from hyperopt_id.kernels import compiler, mulo_cuda
from hyperopt_id.kernels.mulo import mulo_step

HEADER = Path(__file__).with_name("emulated_gpu.h")
FLAGS = (
    *("-x", "c++", "-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing", "-shared", "-fPIC"),
    *("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),  # reads of four at once that are not aligned, too
)


@functools.cache
def emulated() -> ctypes.CDLL:
    """The kernels on a CPU; what they do not compile to is an error, and skipped is only what no compiler is for."""
    version = hashlib.sha256(HEADER.read_bytes()).hexdigest()[:8]
    try:
        cxx = compiler.find_compiler("CXX", ("c++", "g++", "clang++"))
    except compiler.NoCompiler as missing:
        pytest.skip(f"needs a C++ compiler: {missing}")
    kernels = compiler.load(mulo_cuda.SOURCE, cxx, (*FLAGS, "-include", str(HEADER), f"-DVERSION={version}"))
    kernels.hyperopt_id_mulo_cuda_error.restype = ctypes.c_char_p
    return kernels


def variable(name: str) -> ctypes.c_int:
    """Of the emulation, which starts with that word."""
    return ctypes.c_int.in_dll(emulated(), f"emulated_{name}")


def take_step(cases: Sequence[Case], theta: Tensor, steps: float = 2.0) -> None:
    """A step of the kernel, in place, on the GPU or the CPU, where the tensors are."""
    *lists, theta, rates, steps_before, multiplier = arguments(cases, theta, steps)
    if theta.is_cuda:
        mulo_step(*lists, theta, rates, steps_before, multiplier)
    else:
        mulo_cuda.launch(emulated(), lists, theta, rates, steps_before, multiplier, 0)


def changed(cases: Sequence[Case], change: Callable[[Tensor], Tensor]) -> list[Case]:
    """The cases with every tensor changed."""
    return [Case(change(p), change(g), {k: change(x) for k, x in s.items()}, rate) for p, g, s, rate in cases]


def placed(cases: Sequence[Case], device: str) -> list[Case]:
    """The same numbers in the same order of memory, on a device."""
    return changed(cases, lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x))


def mixed_cases(device: str = "cpu") -> list[Case]:
    shapes = [(40, 70), (3,), (33, 33), (8, 4, 3, 3), (), (50, 34), (700,), (6, 5)]
    shapes += [(400, 700), (70_000,), (3, 300, 400), (64, 48, 3, 3)] if device == "cuda" else []
    return placed([case(torch.empty(shape), seed) for seed, shape in enumerate(shapes)], device)


def assert_same_step(
    cases: Sequence[Case], theta: Tensor, device: str, tolerance: float = 1e-4, steps: int = 2
) -> None:
    """Parameters and accumulators after a step of the kernel on a device are those of the rule on the CPU."""
    ours, theirs = placed(cases, device), placed(cases, "cpu")
    take_step(ours, theta, steps)
    rule_step(theirs, theta, steps)
    for one, other, old in zip(placed(ours, "cpu"), theirs, cases, strict=True):
        where = f"{tuple(old.param.shape)} {old.param.stride()} {old.param.dtype} {old.gradient.dtype}"
        assert_same_state(one, other)
        if old.param.dtype in HALF:
            half = HALF[old.param.dtype]
            torch.testing.assert_close(one.param, other.param, rtol=half, atol=half * 1e-3, msg=where)
        elif old.param.numel():
            assert error(one.param, other.param, old.param) <= tolerance, where


def assert_same_state(one: Case, other: Case) -> None:
    for name, value in other.state.items():
        scale = float(value.abs().amax()) if value.numel() else 0.0
        torch.testing.assert_close(one.state[name], value, rtol=2e-5, atol=1e-5 * scale, msg=name)
