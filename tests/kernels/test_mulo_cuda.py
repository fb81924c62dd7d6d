"""The CUDA kernel takes the steps of the rule and of the recording, the same bits whenever and wherever it runs: on a
GPU, and emulated on a CPU (`cuda_steps`)."""

import pytest
import torch
from cuda_steps import assert_same_step, changed, mixed_cases, placed, take_step
from hypothesis import given, settings
from hypothesis import strategies as st
from mulo_cases import (
    HALF,
    RECORDED,
    STEPS,
    TENSORS,
    Case,
    assert_equal,
    case,
    error,
    in_memory_order,
    random_theta,
    recorded_theta,
    rule_step,
)

from hyperopt_id import mulo
from hyperopt_id.kernels import mulo_cuda
from hyperopt_id.optim import mulo_steps

# Oracles


@pytest.mark.parametrize(
    ("chosen", "small", "tolerance"),
    [("split_float16", 0, 1e-4), ("float16", mulo_cuda.SMALL, 1e-4), ("float16", 0, 1.5e-2)],
)
def test_updates_are_the_recorded_ones(device, chosen, small, tolerance, monkeypatch):
    """Tensors as small as these have split operands, unless the limit is lowered; one number may be a difference of
    much larger ones, so that the 11 bits of float16 are few."""
    monkeypatch.setattr(mulo_cuda, "PRECISION", chosen)
    monkeypatch.setattr(mulo_cuda, "SMALL", small)
    rates = [(RECORDED[f"lr_mult/{name}"].item(), 0.0) for name in TENSORS]
    before = [RECORDED[f"params0/{name}"] for name in TENSORS]
    states = [{k: x.to(device) for k, x in mulo_steps.accumulators(param).items()} for param in before]
    for step in range(STEPS):
        slopes = [RECORDED[f"grads/{name}"][step] for name in TENSORS]
        cases = [
            Case(old.to(device, copy=True), slope.to(device, copy=True), *rest)
            for old, slope, *rest in zip(before, slopes, states, rates, strict=True)
        ]
        take_step(cases, recorded_theta(), step)
        recorded = [RECORDED[f"params/{name}"][step] for name in TENSORS]
        for name, taken, new, old in zip(TENSORS, cases, recorded, before, strict=True):
            assert error(taken.param.cpu(), new, old) <= tolerance, name
        before = recorded


SHAPES = [
    [(), (1,), (31,), (33,), (1025,), (4097,)],  # the ends of warps and of chunks
    [(1, 1), (1, 40), (40, 1), (3, 31), (3, 32), (3, 33), (33, 129), (65, 36)],  # of lines, tiles and slabs
    [(2, 300), (300, 2), (20, 20), (7, 260, 2), (260, 7, 2)],  # of segments
    [(12, 40, 3, 3), (16, 3, 5, 5), (3, 33, 40), (2, 3, 33, 34), (5, 4, 3, 2, 6), (7, 6, 5, 5, 2)],
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_a_step_is_the_rules_at_the_edges_of_tasks(device, shapes, precision):
    cases = [case(torch.empty(shape), seed) for seed, shape in enumerate(shapes)]
    turned = [in_memory_order(shape, tuple(reversed(range(len(shape))))) for shape in shapes]
    cases += [case(param, seed + 5) for seed, param in enumerate(turned)]
    assert_same_step(cases, random_theta(1), device, {"float16": 1e-2, "split_float16": 1e-4}[precision])


@st.composite
def tensors(draw):
    sizes = st.lists(st.integers(0, 9) | st.sampled_from([16, 33, 40]), max_size=5)
    shape = draw(sizes.filter(lambda shape: torch.Size(shape).numel() <= 1500))
    order = draw(st.permutations(range(len(shape))))
    param, gradient = (draw(st.sampled_from([torch.float32, *HALF])) for _ in range(2))
    return case(in_memory_order(shape, order, param), draw(st.integers(0, 9)), gradient)


@settings(max_examples=12)
@given(st.lists(tensors(), min_size=1, max_size=4), st.integers(0, 5), st.sampled_from([0, 1, 100, 10_000]))
def test_any_list_of_tensors_takes_the_rules_step(device, cases, seed, steps):
    assert_same_step(cases, random_theta(seed), device, steps=steps)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_read_and_rounded_as_torch_does(device, dtype):
    """With outputs of zero the network leaves (1 - lr · decay) · param, of all finite numbers that there are."""
    parts = mulo.unpack(random_theta())
    theta = mulo.pack(parts._replace(w2=torch.zeros_like(parts.w2), b2=torch.zeros_like(parts.b2)))
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    every = every[every.isfinite()]
    taken = case(torch.empty_like(every))._replace(param=every.clone(), gradient=every, rate=(1.0, 0.3))
    (taken,) = placed([taken], device)
    take_step([taken], theta)
    expected = ((1.0 - torch.tensor(0.3)) * every.float()).to(dtype)
    torch.testing.assert_close(taken.param.cpu(), expected, rtol=0.0, atol=0.0, equal_nan=True)


# Exactness


def test_a_step_has_the_same_bits_again(device, precision):
    ours, theirs = mixed_cases(device), mixed_cases(device)
    take_step(ours, random_theta())
    take_step(theirs, random_theta())
    assert_equal(ours, theirs)


def test_nothing_is_read_that_was_not_written(device, precision):
    ours, theirs = mixed_cases(device), mixed_cases(device)
    take_step(ours, random_theta())
    take_step(theirs, random_theta())
    for plan in mulo_cuda._plans.values():
        plan.workspace.fill_(torch.nan)
    for cases in (ours, theirs):
        take_step(cases, random_theta(), 3)
    assert_equal(ours, theirs)
    assert all(c.param.isfinite().all() for c in ours)


def test_a_step_does_not_depend_on_the_other_tensors(device):
    together, apart = mixed_cases(device), mixed_cases(device)
    take_step(together, random_theta())
    for one in apart:
        take_step([one], random_theta())
    assert_equal(together, apart)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_anywhere_in_memory(device, dtype):
    """Parts of larger tensors start where four numbers cannot be read at once."""
    shapes = [(36, 40), (24,), (4, 4, 3)]
    aligned = placed([case(torch.empty(shape, dtype=dtype), seed) for seed, shape in enumerate(shapes)], device)

    def shifted(value):
        place = torch.empty(value.numel() + 1, dtype=value.dtype, device=device)
        return place.as_strided(value.shape, value.stride(), 1).copy_(value)

    moved = changed(aligned, shifted)
    take_step(aligned, random_theta())
    take_step(moved, random_theta())
    assert_equal(aligned, moved)


@pytest.mark.parametrize("shape", [(40, 33), (3, 4, 5), (70,), ()], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), -float("inf"), 1.01e15])
def test_gradients_that_are_no_use_count_as_zero(device, bad, shape):
    (whole,) = placed([case(torch.empty(shape))], device)
    zeroed, spoiled = placed([whole, whole], device)
    for value, leaf in ((0.0, zeroed), (bad, spoiled)):
        leaf.gradient.view(-1)[::3] = value
        take_step([leaf], random_theta())
    assert_equal([zeroed], [spoiled])


@pytest.mark.parametrize("where", ["param", "rate", "w0", "b0", "w1", "b1", "w2", "b2"])
def test_nan_spreads_as_it_does_by_the_rule(device, where, precision):
    """A network that is broken must not go on with the units that are left."""
    theta = random_theta()
    given = [case(torch.empty(shape)) for shape in ((40, 50), (300,), (20, 8, 6))]
    if where == "rate":
        given = [c._replace(rate=(torch.nan, 0.1)) for c in given]
    for part in [c.param for c in given] if where == "param" else [getattr(mulo.unpack(theta), where, theta[:0])]:
        part.view(-1)[:1] = torch.nan
    ours, theirs = placed(given, device), placed(given, "cpu")
    take_step(ours, theta)
    rule_step(theirs, theta)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.param.isnan().cpu(), other.param.isnan())


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-20, 1e10, 1e15])
def test_gradients_of_any_size_leave_finite_numbers(device, size, precision):
    cases = [
        Case(torch.randn(shape), size * torch.randn(shape), mulo_steps.accumulators(torch.empty(shape)), (1.0, 0.0))
        for shape in ((34, 40), (60,), (4, 5, 6))
    ]
    cases = placed(cases, device)
    for steps in range(2):
        take_step(cases, random_theta(), steps)
    assert all(c.param.isfinite().all() and all(value.isfinite().all() for value in c.state.values()) for c in cases)
