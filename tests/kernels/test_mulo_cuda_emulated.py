"""What only the emulated CUDA kernel shows: no barrier is missing, nothing outside of the tensors is touched, and what
the host does for a step."""

import ctypes
import mmap

import pytest
import torch
from cuda_steps import assert_same_state, assert_same_step, changed, emulated, mixed_cases, take_step, variable
from mulo_cases import arguments, assert_equal, case, copied, random_theta, rule_step

from hyperopt_id import mulo
from hyperopt_id.kernels import compiler, mulo_cuda


def test_large_tensors_may_have_operands_of_11_bits_beside_small_ones(monkeypatch):
    monkeypatch.setattr(mulo_cuda, "PRECISION", "float16")
    large = [case(torch.empty(shape), seed) for seed, shape in enumerate([(66_000,), (32, 230, 3, 3)])]
    assert_same_step([case(torch.empty(3, 40), 4), *large], mulo.untrained(1), "cpu", 2e-3)


@pytest.fixture(params=["first to last", "last to first", "random"])
def order(request):
    """Of lanes, as the emulation has them take turns."""
    variable("order").value = request.param_index
    yield
    variable("order").value = 0


def without_moves(sizes, table):
    """The last phases take most of the time."""
    sizes[6] = sizes[7] = 0
    return sizes, table


def slots(rows_are_lines):
    """The features whose scales are in the workspace, in order; the last four have none."""
    lines, places = (13, 16) if rows_are_lines else (16, 13)
    shared = [first + k + root for k in range(3) for first in (lines, places) for root in (0, 6)]
    return [2, 6, 10, 25, 3, 7, 11, 26, 4, 8, 12, 27, 1, 9, 0, 5, *shared]


def test_long_sums(order, monkeypatch):
    """Rows of 530 numbers, whose mean a block works out, slabs of more than 32 lines, and many of them; more rows than
    a block adds up the squares of. Blocks have several tasks of every kind."""
    shapes = [(530, 540), (540, 530), (35_000, 3), (33_000, 2, 2), (2, 2, 33_000), (9000,)]
    cases = [case(torch.empty(shape), seed) for seed, shape in enumerate(shapes)]
    expected = copied(cases)
    rule_step(expected, random_theta())
    monkeypatch.setattr(mulo_cuda, "_tasks", lambda *given, of=mulo_cuda._tasks: without_moves(*of(*given)))
    take_step(cases, random_theta())
    (plan,) = mulo_cuda._plans.values()
    ends = (len(plan.sizes) - 2) * len(cases)  # of the tasks of the phases
    for taken, other, row in zip(cases, expected, plan.table[ends:].reshape(len(cases), -1).tolist(), strict=True):
        assert_same_state(taken, other)
        _, scales = mulo.features(taken.param, taken.gradient, mulo.Accumulators(**other.state))
        known = scales[slots(rows_are_lines=bool(row[5]))]
        if taken.param.ndim < 2:
            known[16:].view(-1, 4)[:, :2] = 0.0  # a vector has no lines
        torch.testing.assert_close(plan.workspace[row[-1] :][: len(known)], known, rtol=1e-4, atol=0.0)


# Lanes and memory


def test_no_barrier_is_missing(order, monkeypatch):
    """Warps have several tasks, of tensors that differ."""
    monkeypatch.setattr(mulo_cuda, "PRECISION", "float16")
    monkeypatch.setattr(mulo_cuda, "SMALL", 200)
    cases = [case(torch.empty(shape), seed) for seed, shape in enumerate([(3, 40), (33, 7), (5,)] * 12)]
    assert_same_step(cases, random_theta(), "cpu", 2e-2)


def guarded(value, at_end):
    """The same numbers in memory that starts or ends where there is none: whoever goes on gets a signal."""
    if not value.numel():
        return value
    page, size = mmap.PAGESIZE, value.numel() * value.element_size()
    inner = -(-size // page) * page
    memory = mmap.mmap(-1, inner + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for place in (start, start + page + inner):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(place), ctypes.c_size_t(page), 0) == 0
    offset = page + (inner - size if at_end else 0)
    flat = torch.frombuffer(memory, dtype=value.dtype, count=value.numel(), offset=offset)
    return flat.as_strided(value.shape, value.stride()).copy_(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("at_end", [False, True])
def test_nothing_is_touched_outside_of_the_tensors(at_end, dtype, precision, default_dtype):
    shapes = [(3, 31), (35, 36), (33, 7), (4, 4, 3, 3), (3, 34, 35), (1,), (130,), (), (0,), (66, 40)]
    free = [case(torch.empty(shape, dtype=dtype), seed) for seed, shape in enumerate(shapes)]
    cases = changed(free, lambda value: guarded(value, at_end))
    expected = copied(free)
    take_step(expected, random_theta())
    *lists, theta, rates, steps, multiplier = arguments(cases, random_theta())
    theta = guarded(theta, at_end)
    default_dtype(torch.bfloat16)  # half the size that a workspace needs

    def guarded_upload(*given, upload=mulo_cuda._uploaded):
        return guarded(upload(*given), at_end)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mulo_cuda, "_uploaded", guarded_upload)
        patch.setattr(torch, "empty", lambda *given, of=torch.empty, **kind: guarded(of(*given, **kind), at_end))
        mulo_cuda.launch(emulated(), lists, theta, rates, steps, multiplier, 0)
    assert_equal(cases, expected)


# What the host does


@pytest.mark.parametrize("count", [1, 150])
def test_seven_launches_at_most(count, monkeypatch):
    monkeypatch.setattr(mulo_cuda, "PRECISION", "float16")
    monkeypatch.setattr(mulo_cuda, "SMALL", 30)
    cases = [case(torch.empty(shape)) for shape in [(6, 7), (3, 3, 2), (4,)] * (count // 3) or [(5, 6)]]
    take_step(cases, random_theta())  # and what uploads the tables
    before = variable("launches").value
    take_step(cases, random_theta())
    assert variable("launches").value - before == (7 if count > 1 else 6)


def test_tables_are_uploaded_when_they_change(monkeypatch):
    uploaded = []

    def counted(*given, upload=mulo_cuda._uploaded):
        uploaded.append(given)
        return upload(*given)

    monkeypatch.setattr(mulo_cuda, "_uploaded", counted)
    cases = [case(torch.empty(6, 7)), case(torch.empty(5))]

    def uploads():
        uploaded.clear()
        take_step(cases, random_theta())
        return len(uploaded)

    assert [uploads(), uploads()] == [2, 0]  # shapes and pointers
    cases[0] = cases[0]._replace(gradient=cases[0].gradient.clone())
    assert [uploads(), uploads()] == [1, 0]  # pointers
    cases[1] = cases[1]._replace(rate=(0.25, 0.0))
    assert [uploads(), uploads()] == [1, 0]  # rates
    cases.append(case(torch.empty(3, 3)))
    assert [uploads(), uploads()] == [2, 0]


def test_what_a_graph_captures_is_its_own(monkeypatch):
    """Under capture nothing is uploaded yet, so that no other step may use it."""
    ours, theirs = mixed_cases(), mixed_cases()
    take_step(theirs, random_theta())
    mulo_cuda._plans.clear()
    mulo_cuda._pointers.clear()
    monkeypatch.setattr(mulo_cuda, "_capturing", lambda device: True)
    take_step(ours, random_theta())
    assert not mulo_cuda._plans
    assert not mulo_cuda._pointers
    assert_equal(ours, theirs)


def test_what_graphs_read_stays_and_is_kept_once(monkeypatch):
    """Whatever the number of graphs; what is made under capture is in the graph's memory and goes with it."""
    monkeypatch.setattr(mulo_cuda, "_captured", {})
    monkeypatch.setattr(mulo_cuda, "KEPT", 1)
    cases = mixed_cases()
    take_step(cases, random_theta())
    tables = [*mulo_cuda._plans.values(), *mulo_cuda._pointers.values()]
    with monkeypatch.context() as capture:
        capture.setattr(mulo_cuda, "_capturing", lambda device: True)
        for _ in range(3):
            take_step(cases, random_theta())
            take_step(mixed_cases(), random_theta())
    take_step(mixed_cases(), random_theta())
    assert [*map(id, mulo_cuda._captured.values())] == [*map(id, tables)]


def test_what_a_gpu_refuses_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(compiler, "cuda_library", lambda source, capability: emulated())
    variable("failure").value = 35
    try:
        with pytest.raises(compiler.NoCompiler, match="cannot be loaded: CUDA error 35, the emulated error"):
            mulo_cuda._loaded(0)
        with pytest.raises(RuntimeError, match="cannot be launched: CUDA error 35, the emulated error"):
            take_step(mixed_cases(), random_theta())
    finally:
        variable("failure").value = 0
    assert mulo_cuda._loaded(0) is emulated()
    mulo_cuda._loaded.cache_clear()


def test_the_workspace_is_of_rows_and_columns():
    """Floats: a slab has 32 lines at least, so 1/32 of the numbers at most, and 16 sums for 4096 numbers."""
    sizes, _ = mulo_cuda._tasks(emulated(), [((4096, 4096), (4096, 1), torch.float32, torch.float32)], 0)
    assert sizes[1] <= (1 / 32 + 1 / 256 + 1 / 128 + 1e-3) * 4096**2
