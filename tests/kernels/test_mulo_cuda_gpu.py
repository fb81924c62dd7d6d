"""The CUDA kernel on a GPU: the steps of the recording and of the rule, the same bits whenever and wherever it runs,
also in a captured graph. What needs no GPU is tested in `test_mulo_cuda.py`."""

import gc

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
    error,
    in_memory_order,
    random_theta,
    recorded_theta,
    rule_step,
)

from hyperopt_id import mulo
from hyperopt_id.kernels import mulo_cuda
from hyperopt_id.kernels.mulo import mulo_step
from hyperopt_id.optim import mulo_steps

pytestmark = pytest.mark.gpu
HALF = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}  # the distance of neighboring numbers, relative


@pytest.fixture(params=["float16", "split_float16"])
def precision(request, monkeypatch):
    """Of the products of all tensors."""
    monkeypatch.setattr(mulo_cuda, "PRECISION", request.param)
    monkeypatch.setattr(mulo_cuda, "SMALL", 0)
    return request.param


def placed(cases, device="cuda"):
    """The same numbers in the same order of memory, on a device."""

    def copy(value):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device).copy_(value)

    return [Case(copy(c.param), copy(c.gradient), {k: copy(x) for k, x in c.state.items()}, c.rate) for c in cases]


def arguments(cases, theta, steps=2.0):
    device = cases[0].param.device
    lists = [[c.param for c in cases], [c.gradient for c in cases]]
    lists += [[c.state[name] for c in cases] for name in mulo.Accumulators._fields]
    rates = torch.tensor([c.rate for c in cases], device=device)
    return (*lists, theta.to(device), rates, torch.tensor(float(steps), device=device), 0.01)


def take_step(cases, theta, steps=2.0):
    mulo_step(*arguments(cases, theta, steps))


def assert_same_step(cases, theta, tolerance, steps=2):
    """Parameters and accumulators after a step of the kernel are those of the rule on a CPU."""
    ours, theirs = placed(cases), placed(cases, "cpu")
    take_step(ours, theta, steps)
    rule_step(theirs, theta, steps)
    for one, other, old in zip(placed(ours, "cpu"), theirs, cases, strict=True):
        where = f"{tuple(old.param.shape)} {old.param.stride()} {old.param.dtype} {old.gradient.dtype}"
        for name, value in other.state.items():
            scale = float(value.abs().amax()) if value.numel() else 0.0
            torch.testing.assert_close(one.state[name], value, rtol=2e-5, atol=1e-5 * scale, msg=where + name)
        if old.param.dtype in HALF:
            half = HALF[old.param.dtype]
            torch.testing.assert_close(one.param, other.param, rtol=half, atol=half * 1e-3, msg=where)
        elif old.param.numel():
            assert error(one.param, other.param, old.param) <= tolerance, where


def assert_equal(cases, others):
    for one, other in zip(placed(cases, "cpu"), placed(others, "cpu"), strict=True):
        assert torch.equal(one.param, other.param)
        assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())


def mixed_cases():
    shapes = [(400, 700), (3,), (33, 33), (64, 48, 3, 3), (), (50, 340), (70_000,), (6, 5), (3, 300, 400)]
    return [case(torch.empty(shape), seed) for seed, shape in enumerate(shapes)]


# Oracles


@pytest.mark.parametrize(
    ("chosen", "small", "tolerance"),
    [("split_float16", 0, 1e-4), ("float16", mulo_cuda.SMALL, 1e-4), ("float16", 0, 1e-2)],
)
def test_updates_are_the_recorded_ones(chosen, small, tolerance, monkeypatch):
    monkeypatch.setattr(mulo_cuda, "PRECISION", chosen)
    monkeypatch.setattr(mulo_cuda, "SMALL", small)
    rates = [(RECORDED[f"lr_mult/{name}"].item(), 0.0) for name in TENSORS]
    before = [RECORDED[f"params0/{name}"] for name in TENSORS]
    states = [{k: x.cuda() for k, x in mulo_steps.accumulators(param).items()} for param in before]
    for step in range(STEPS):
        slopes = [RECORDED[f"grads/{name}"][step].cuda() for name in TENSORS]
        cases = [Case(old.cuda(), *rest) for old, *rest in zip(before, slopes, states, rates, strict=True)]
        take_step(cases, recorded_theta(), step)
        recorded = [RECORDED[f"params/{name}"][step] for name in TENSORS]
        for name, taken, new, old in zip(TENSORS, cases, recorded, before, strict=True):
            assert error(taken.param.cpu(), new, old) <= tolerance, name
        before = recorded


LARGE = [(768, 768), (1000, 333), (70, 5000), (5000, 70), (128, 96, 3, 3), (6, 130, 520), (200_000,), (33_000, 3)]


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_large_tensors_take_the_rules_step(shape, turned, precision):
    order = tuple(reversed(range(len(shape)))) if turned else tuple(range(len(shape)))
    tolerance = {"float16": 2e-3, "split_float16": 1e-4}[precision]
    assert_same_step([case(in_memory_order(shape, order), 1)], random_theta(1), tolerance)


@st.composite
def tensors(draw):
    sizes = st.lists(st.integers(0, 9) | st.sampled_from([16, 33, 48, 70, 129]), max_size=5)
    shape = draw(sizes.filter(lambda shape: torch.Size(shape).numel() <= 50_000))
    order = draw(st.permutations(range(len(shape))))
    param, gradient = (draw(st.sampled_from([torch.float32, *HALF])) for _ in range(2))
    return case(in_memory_order(shape, order, param), draw(st.integers(0, 9)), gradient)


@settings(max_examples=60)
@given(st.lists(tensors(), min_size=1, max_size=4), st.integers(0, 5), st.sampled_from([0, 1, 100, 10_000]))
def test_any_list_of_tensors_takes_the_rules_step(cases, seed, steps):
    assert_same_step(cases, random_theta(seed), 1e-4, steps)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_read_and_rounded_as_torch_does(dtype):
    """With outputs of zero the network leaves (1 - lr · decay) · param, of all numbers that there are."""
    parts = mulo.unpack(random_theta())
    theta = mulo.pack(parts._replace(w2=torch.zeros_like(parts.w2), b2=torch.zeros_like(parts.b2)))
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    taken = case(torch.empty(2**16, dtype=dtype))._replace(param=every.clone(), gradient=every, rate=(1.0, 0.3))
    (taken,) = placed([taken])
    take_step([taken], theta)
    expected = ((1.0 - torch.tensor(0.3)) * every.float()).to(dtype)
    torch.testing.assert_close(taken.param.cpu(), expected, rtol=0.0, atol=0.0, equal_nan=True)


# Exactness


def test_a_step_has_the_same_bits_again(precision):
    cases = mixed_cases()
    ours, theirs = placed(cases), placed(cases)
    take_step(ours, random_theta())
    take_step(theirs, random_theta())
    assert_equal(ours, theirs)


def test_nothing_is_read_that_was_not_written(precision):
    ours, theirs = placed(mixed_cases()), placed(mixed_cases())
    take_step(ours, random_theta())
    take_step(theirs, random_theta())
    for plan in mulo_cuda._plans.values():
        plan.workspace.fill_(torch.nan)
    for cases in (ours, theirs):
        take_step(cases, random_theta(), 3)
    assert_equal(ours, theirs)
    assert all(c.param.isfinite().all() for c in ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_anywhere_in_memory(dtype):
    """Parts of larger tensors start where four numbers cannot be read at once."""
    shapes = [(360, 400), (240,), (40, 24, 3)]
    aligned = placed([case(torch.empty(shape, dtype=dtype), seed) for seed, shape in enumerate(shapes)])

    def shifted(value):
        place = torch.empty(value.numel() + 1, dtype=value.dtype, device=value.device)
        return place.as_strided(value.shape, value.stride(), 1).copy_(value)

    moved = [Case(shifted(p), shifted(g), {k: shifted(x) for k, x in s.items()}, rate) for p, g, s, rate in aligned]
    take_step(aligned, random_theta())
    take_step(moved, random_theta())
    assert_equal(aligned, moved)


def test_a_step_on_another_stream():
    ours, theirs = placed(mixed_cases()), placed(mixed_cases())
    take_step(theirs, random_theta())
    given = arguments(ours, random_theta())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        mulo_step(*given)
    torch.cuda.current_stream().wait_stream(stream)
    assert_equal(ours, theirs)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_step_on_another_device():
    ours, theirs = placed(mixed_cases(), "cuda:1"), placed(mixed_cases(), "cuda:0")
    take_step(ours, random_theta())
    take_step(theirs, random_theta())
    assert torch.cuda.current_device() == 0
    assert_equal(ours, theirs)


# Graphs


def warmed_up(step):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)


def test_replayed_steps_are_eager_ones():
    ours, theirs = placed(mixed_cases()), placed(mixed_cases())
    captured, eager = arguments(ours, random_theta(), 0.0), arguments(theirs, random_theta(), 0.0)

    def step(given):
        mulo_step(*given)
        given[8].add_(1.0)

    warmed_up(lambda: step(captured))
    step(eager)
    uploads = len(mulo_cuda._plans), len(mulo_cuda._pointers)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured)
    assert uploads == (len(mulo_cuda._plans), len(mulo_cuda._pointers))
    for n in range(3):
        for one, other in zip(ours, theirs, strict=True):
            other.gradient.mul_(0.5 + n)
            one.gradient.copy_(other.gradient)
        graph.replay()
        step(eager)
    assert_equal(ours, theirs)


def test_gradients_may_be_born_in_the_graph():
    """Their memory is the graph's own, so that it captures the upload of the pointers to them, too."""
    ours, theirs = placed(mixed_cases()), placed(mixed_cases())
    inputs = [c.gradient.clone() for c in ours]
    captured, eager = arguments(ours, random_theta()), arguments(theirs, random_theta())
    warmed_up(lambda: mulo_step(*captured))
    mulo_step(*eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mulo_step(captured[0], [2.0 * x for x in inputs], *captured[2:])
    gc.collect()
    rubbish = [torch.full((1 << n,), -1, device="cuda") for n in range(20)]  # where what was freed would have been
    for n in range(3):
        for x, other in zip(inputs, theirs, strict=True):
            x.mul_(0.5 + n)
            other.gradient.copy_(2.0 * x)
        graph.replay()
        mulo_step(*eager)
    assert_equal(ours, theirs)
    del rubbish


# What the host does


def many(count):
    shapes = [(300, 400), (70, 40, 3), (500,), (), (2000, 20)]
    return arguments(placed([case(torch.empty(shapes[n % len(shapes)]), n) for n in range(count)]), random_theta())


@pytest.mark.filterwarnings("ignore")  # the profiler's own
@pytest.mark.parametrize("count", [1, 150])
def test_eight_launches_at_most(count):
    given = many(count)
    mulo_step(*given)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        mulo_step(*given)
        torch.cuda.synchronize()
    events = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    launches = [name for name in events if not name.startswith(("Mem", "cuda", "Activity", "Context"))]
    assert 0 < len(launches) <= 8, launches


@pytest.mark.filterwarnings("ignore")  # the mode is said to be a prototype
def test_a_step_does_not_wait_for_the_device():
    given = many(20)
    torch.cuda.set_sync_debug_mode("error")
    try:
        mulo_step(*given)
        mulo_step(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
