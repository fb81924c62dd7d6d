"""The CUDA kernel takes the steps of the rule and of the recording: its source is run on a CPU, where every lane of a
warp is a fiber and a matrix product follows the layout of its fragments (`emulated_gpu.h`). It compiles for GPUs within
their registers."""

import ctypes
import hashlib
import re
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mulo_cases import (
    RECORDED,
    STEPS,
    TENSORS,
    Case,
    case,
    copied,
    error,
    in_memory_order,
    random_theta,
    recorded_theta,
    rule_step,
)

from hyperopt_id import mulo
from hyperopt_id.kernels import compiler, layout, mulo_cuda
from hyperopt_id.optim import mulo_steps

HEADER = Path(__file__).with_name("emulated_gpu.h")
HALF = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}  # the distance of neighboring numbers, relative
MOVES = (6, 7)  # among a plan's sizes, the numbers of tasks of the last phases, which take most of the time
INVERSES = 12  # among the integers of a tensor in the table


@pytest.fixture(scope="module")
def emulated():
    version = hashlib.sha256(HEADER.read_bytes()).hexdigest()[:8]
    flags = ("-x", "c++", "-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing", "-shared", "-fPIC")
    try:
        cxx = compiler.find_compiler("CXX", ("c++", "g++", "clang++"))
        return compiler.load(mulo_cuda.SOURCE, cxx, (*flags, "-include", str(HEADER), f"-DVERSION={version}"))
    except compiler.NoCompiler as missing:
        pytest.skip(f"needs a C++ compiler: {missing}")


@pytest.fixture(autouse=True)
def no_plans():
    """Memory of earlier tests may be that of this one, whose plans are other ones."""
    mulo_cuda._plans.clear()
    mulo_cuda._pointers.clear()


@pytest.fixture(params=["float16", "split_float16"])
def precision(request, monkeypatch):
    """Of the products of all tensors."""
    monkeypatch.setattr(mulo_cuda, "PRECISION", request.param)
    monkeypatch.setattr(mulo_cuda, "SMALL", 0)
    return request.param


def take_step(kernels, cases, theta, steps=2, backwards=False):
    lists = [[c.param for c in cases], [c.gradient for c in cases]]
    lists += [[c.state[name] for c in cases] for name in mulo.Accumulators._fields]
    rates = torch.tensor([c.rate for c in cases])
    ctypes.c_int.in_dll(kernels, "emulated_backwards").value = backwards
    mulo_cuda.launch(kernels, lists, theta, rates, torch.tensor(float(steps)), 0.01, 0)


def assert_same_step(kernels, cases, theta, tolerance=1e-4, steps=2):
    """Parameters and accumulators after a step of the kernel are those of the rule."""
    ours, theirs = copied(cases), copied(cases)
    take_step(kernels, ours, theta, steps)
    rule_step(theirs, theta, steps)
    for one, other, old in zip(ours, theirs, cases, strict=True):
        where = f"{tuple(old.param.shape)} {old.param.stride()} {old.param.dtype} {old.gradient.dtype}"
        assert_same_state(one, other)
        if old.param.dtype in HALF:
            half = HALF[old.param.dtype]
            torch.testing.assert_close(one.param, other.param, rtol=half, atol=half * 1e-4, msg=where)
        elif old.param.numel():
            assert error(one.param, other.param, old.param) <= tolerance, where


def assert_same_state(one, other):
    for name, value in other.state.items():
        scale = float(value.abs().amax()) if value.numel() else 0.0
        torch.testing.assert_close(one.state[name], value, rtol=1e-5, atol=1e-5 * scale, msg=name)


def assert_equal(cases, others):
    for one, other in zip(cases, others, strict=True):
        assert torch.equal(one.param, other.param)
        assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())


# Oracles


@pytest.mark.parametrize(("small", "tolerance"), [(mulo_cuda.SMALL, 1e-4), (0, 1e-2)])
def test_updates_are_the_recorded_ones(emulated, small, tolerance, monkeypatch):
    """Tensors as small as these have split operands, unless the limit is lowered; one number may be a difference of
    much larger ones, so that the 11 bits of float16 are few."""
    monkeypatch.setattr(mulo_cuda, "SMALL", small)
    rates = [(RECORDED[f"lr_mult/{name}"].item(), 0.0) for name in TENSORS]
    states = [mulo_steps.accumulators(RECORDED[f"params0/{name}"]) for name in TENSORS]
    before = [RECORDED[f"params0/{name}"] for name in TENSORS]
    for step in range(STEPS):
        slopes = [RECORDED[f"grads/{name}"][step].clone() for name in TENSORS]
        cases = [Case(old.clone(), *rest) for old, *rest in zip(before, slopes, states, rates, strict=True)]
        take_step(emulated, cases, recorded_theta(), step)
        recorded = [RECORDED[f"params/{name}"][step] for name in TENSORS]
        for name, taken, new, old in zip(TENSORS, cases, recorded, before, strict=True):
            assert error(taken.param, new, old) <= tolerance, name
        before = recorded


SHAPES = [
    [(), (1,), (31,), (33,), (1025,), (4097,)],  # the ends of warps and of chunks
    [(1, 1), (1, 40), (40, 1), (3, 31), (3, 32), (3, 33), (33, 129), (65, 36)],  # of lines, tiles and slabs
    [(2, 300), (300, 2), (20, 20), (7, 260, 2), (260, 7, 2)],  # of segments
    [(12, 40, 3, 3), (16, 3, 5, 5), (3, 33, 40), (2, 3, 33, 34), (5, 4, 3, 2, 6), (7, 6, 5, 5, 2)],
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_a_step_is_the_rules_at_the_edges_of_tasks(emulated, shapes, precision):
    cases = [case(torch.empty(shape), seed) for seed, shape in enumerate(shapes)]
    turned = [in_memory_order(shape, tuple(reversed(range(len(shape))))) for shape in shapes]
    cases += [case(param, seed + 5) for seed, param in enumerate(turned)]
    assert_same_step(emulated, cases, random_theta(1), {"float16": 1e-2, "split_float16": 1e-4}[precision])


@st.composite
def tensors(draw):
    sizes = st.lists(st.integers(0, 9) | st.sampled_from([16, 33, 40]), max_size=5)
    shape = draw(sizes.filter(lambda shape: torch.Size(shape).numel() <= 1500))
    order = draw(st.permutations(range(len(shape))))
    param, gradient = (draw(st.sampled_from([torch.float32, *HALF])) for _ in range(2))
    return case(in_memory_order(shape, order, param), draw(st.integers(0, 9)), gradient)


@settings(max_examples=12)
@given(st.lists(tensors(), min_size=1, max_size=4), st.integers(0, 5), st.sampled_from([0, 1, 100, 10_000]))
def test_any_list_of_tensors_takes_the_rules_step(emulated, cases, seed, steps):
    assert_same_step(emulated, cases, random_theta(seed), steps=steps)


def test_large_tensors_have_operands_of_11_bits_beside_small_ones(emulated):
    assert_same_step(emulated, [case(torch.empty(256, 300), 1)], random_theta(3), 1e-3)
    large = [case(torch.empty(shape), seed) for seed, shape in enumerate([(70_000,), (260, 256), (64, 128, 3, 3)])]
    assert_same_step(emulated, [case(torch.empty(3, 40), 4), *large], mulo.untrained(1), 2e-3)


def without_moves(sizes, table):
    for move in MOVES:
        sizes[move] = 0
    return sizes, table


@pytest.mark.parametrize("shape", [(530, 540), (540, 530), (35_000, 3), (33_000, 2, 2), (2, 2, 33_000)], ids=str)
def test_long_sums(emulated, shape, monkeypatch):
    """Rows of 530 numbers, whose mean a block works out, slabs of more than 32 lines, and many of them."""
    taken = case(torch.empty(shape), 3)
    (expected,) = copied([taken])
    rule_step([expected], random_theta())
    monkeypatch.setattr(mulo_cuda, "_tasks", lambda *given, of=mulo_cuda._tasks: without_moves(*of(*given)))
    take_step(emulated, [taken], random_theta())
    assert_same_state(taken, expected)
    (plan,) = mulo_cuda._plans.values()
    axes = layout.factored_axes(shape)
    inverses = 1.0 / (expected.state["row"].mean(axes[0] + 1).flatten() + 1e-9)
    place = int(plan.table[len(plan.sizes) - 2 + INVERSES])  # after where the tasks of the phases end
    torch.testing.assert_close(plan.workspace[place : place + len(inverses)], inverses, rtol=1e-5, atol=0.0)


# Exactness


def mixed_cases():
    shapes = [(40, 70), (3,), (33, 33), (8, 4, 3, 3), (), (50, 34), (700,), (6, 5)]
    return [case(torch.empty(shape), seed) for seed, shape in enumerate(shapes)]


def test_no_barrier_is_missing(emulated, precision):
    ours, theirs = mixed_cases(), mixed_cases()
    take_step(emulated, ours, random_theta())
    take_step(emulated, theirs, random_theta(), backwards=True)
    assert_equal(ours, theirs)


def test_nothing_is_read_that_was_not_written(emulated, precision):
    cases = mixed_cases()
    start, first = copied(cases), copied(cases)
    take_step(emulated, first, random_theta())
    take_step(emulated, cases, random_theta())
    for plan in mulo_cuda._plans.values():
        plan.workspace.fill_(torch.nan)
    for taken, old in zip(cases, start, strict=True):
        taken.param.copy_(old.param)
        for name, value in old.state.items():
            taken.state[name].copy_(value)
    take_step(emulated, cases, random_theta())
    assert_equal(cases, first)


def test_a_step_does_not_depend_on_the_other_tensors(emulated):
    together = mixed_cases()
    apart = copied(together)
    take_step(emulated, together, random_theta())
    for one in apart:
        take_step(emulated, [one], random_theta())
    assert_equal(together, apart)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_anywhere_in_memory(emulated, dtype):
    """Parts of larger tensors start where four numbers cannot be read at once."""
    shapes = [(36, 40), (24,), (4, 4, 3)]
    aligned = [case(torch.empty(shape, dtype=dtype), seed) for seed, shape in enumerate(shapes)]

    def shifted(value):
        place = torch.empty(value.numel() + 1, dtype=value.dtype)
        return place.as_strided(value.shape, value.stride(), 1).copy_(value)

    moved = [
        c._replace(
            param=shifted(c.param), gradient=shifted(c.gradient), state={k: shifted(x) for k, x in c.state.items()}
        )
        for c in aligned
    ]
    take_step(emulated, aligned, random_theta())
    take_step(emulated, moved, random_theta())
    assert_equal(aligned, moved)


@pytest.mark.parametrize("shape", [(40, 33), (3, 4, 5), (70,), ()], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), -float("inf"), 1.01e15])
def test_gradients_that_are_no_use_count_as_zero(emulated, bad, shape):
    whole = case(torch.empty(shape))
    zeroed, spoiled = copied([whole, whole])
    for value, leaf in ((0.0, zeroed), (bad, spoiled)):
        leaf.gradient.view(-1)[::3] = value
        take_step(emulated, [leaf], random_theta())
    assert_equal([zeroed], [spoiled])


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-20, 1e10, 1e15])
def test_gradients_of_any_size_leave_finite_numbers(emulated, size, precision):
    cases = [
        Case(torch.randn(shape), size * torch.randn(shape), mulo_steps.accumulators(torch.empty(shape)), (1.0, 0.0))
        for shape in ((34, 40), (60,), (4, 5, 6))
    ]
    for steps in range(2):
        take_step(emulated, cases, random_theta(), steps)
    assert all(c.param.isfinite().all() and all(value.isfinite().all() for value in c.state.values()) for c in cases)


# What the host does


@pytest.mark.parametrize("count", [1, 150])
def test_seven_launches_at_most(emulated, count, monkeypatch):
    monkeypatch.setattr(mulo_cuda, "SMALL", 30)
    launches = ctypes.c_int.in_dll(emulated, "emulated_launches")
    cases = [case(torch.empty(shape)) for shape in [(6, 7), (3, 3, 2), (4,)] * (count // 3) or [(5, 6)]]
    take_step(emulated, cases, random_theta())  # and what uploads the tables
    before = launches.value
    take_step(emulated, cases, random_theta())
    assert launches.value - before == (7 if count > 1 else 6)


def test_tables_are_uploaded_when_they_change(emulated, monkeypatch):
    uploaded = []

    def counted(*given, upload=mulo_cuda._uploaded):
        uploaded.append(given)
        return upload(*given)

    monkeypatch.setattr(mulo_cuda, "_uploaded", counted)
    cases = [case(torch.empty(6, 7)), case(torch.empty(5))]

    def uploads():
        uploaded.clear()
        take_step(emulated, cases, random_theta())
        return len(uploaded)

    assert [uploads(), uploads()] == [2, 0]  # shapes and pointers
    cases[0] = cases[0]._replace(gradient=cases[0].gradient.clone())
    assert [uploads(), uploads()] == [1, 0]  # pointers
    cases.append(case(torch.empty(3, 3)))
    assert [uploads(), uploads()] == [2, 0]


def test_what_a_graph_captures_is_its_own(emulated, monkeypatch):
    """Under capture nothing is uploaded yet, so that no other step may use it."""
    ours, theirs = mixed_cases(), mixed_cases()
    take_step(emulated, theirs, random_theta())
    mulo_cuda._plans.clear()
    mulo_cuda._pointers.clear()
    monkeypatch.setattr(mulo_cuda, "_capturing", lambda device: True)
    take_step(emulated, ours, random_theta())
    assert not mulo_cuda._plans
    assert not mulo_cuda._pointers
    assert_equal(ours, theirs)


def test_the_workspace_is_of_rows_and_columns(emulated):
    """Floats: a slab has 32 lines at least, so 1/32 of the numbers at most, and 16 sums for 4096 numbers."""
    sizes, _ = mulo_cuda._tasks(emulated, [((4096, 4096), (4096, 1), torch.float32, torch.float32)], 0)
    assert sizes[1] <= (1 / 32 + 1 / 256 + 1 / 128 + 1e-3) * 4096**2


# Compilation


def test_it_compiles_for_gpus_without_spilling(tmp_path):
    """And is a library that loads where there is no GPU, and plans the same as the emulated one."""
    try:
        nvcc = compiler.find_compiler("NVCC", ("nvcc",))
    except compiler.NoCompiler as missing:
        pytest.skip(f"needs nvcc: {missing}")
    flags = compiler.cuda_flags(("80", "90"))
    command = [nvcc, *flags, "-Xptxas=-v", str(mulo_cuda.SOURCE), "-o", str(tmp_path / "library.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", done.stderr)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", done.stderr)]
    assert len(kernels) == len(spills) == len(registers) == 16
    assert set(spills) == {("0", "0")}
    for (name, architecture), number in zip(kernels, registers, strict=True):
        assert number <= (168 if "SplitFloat16" in name else 128), (name, architecture)
    sizes, shapes = (ctypes.c_int64 * 8)(), (ctypes.c_int64 * 9)(1, 40, 1, 50, 1, 1, 0, 0, 0)
    ctypes.CDLL(str(tmp_path / "library.so")).hyperopt_id_mulo_cuda_plan(
        ctypes.c_int64(1), shapes, ctypes.c_int64(0), None, sizes
    )
    assert list(sizes)[2:] == [2, 4, 1, 2, 4, 0]
