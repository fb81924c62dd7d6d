"""The CPU kernel takes the steps of the rule and of the recording, whatever the shape, order of memory, type, number of
threads, and instruction set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_identical
from mulo_cases import (
    HALF,
    RECORDED,
    STEPS,
    TENSORS,
    Case,
    assert_equal,
    case,
    copied,
    error,
    in_memory_order,
    kernel_step,
    random_theta,
    recorded_theta,
    rule_step,
)

from hyperopt_id import mulo
from hyperopt_id.kernels import compiler
from hyperopt_id.kernels import mulo as kernels
from hyperopt_id.optim import mulo_steps

try:
    kernels.prepare("cpu")
except compiler.NoCompiler as error:
    pytest.skip(str(error), allow_module_level=True)

LANES = (16, 8, 4)  # where the processor lacks the widest, a narrower one is tested twice


@pytest.fixture(params=LANES)
def lanes(request, monkeypatch):
    monkeypatch.setattr(kernels, "LANES", request.param)


def assert_same_step(cases, theta, tolerance=1e-5, steps=2):
    """Parameters and accumulators after a step of the kernel are those of the rule."""
    before = copied(cases)
    ours, theirs = copied(cases), copied(cases)
    kernel_step(ours, theta, steps)
    rule_step(theirs, theta, steps)
    for one, other, old in zip(ours, theirs, before, strict=True):
        where = f"{tuple(old.param.shape)} {old.param.stride()} {old.param.dtype} {old.gradient.dtype}"
        for name, value in other.state.items():
            scale = float(value.abs().amax()) if value.numel() else 0.0
            torch.testing.assert_close(one.state[name], value, rtol=tolerance, atol=tolerance * scale, msg=where + name)
        if old.param.dtype in HALF:
            half = HALF[old.param.dtype]
            torch.testing.assert_close(one.param, other.param, rtol=half, atol=half * 1e-4, msg=where)
        elif old.param.numel():
            assert error(one.param, other.param, old.param) <= tolerance, where


# Oracles


@pytest.mark.parametrize("name", TENSORS)
def test_updates_are_the_recorded_ones(name, lanes):
    theta, rate = recorded_theta(), (RECORDED[f"lr_mult/{name}"].item(), 0.0)
    state, before = mulo_steps.accumulators(RECORDED[f"params0/{name}"]), RECORDED[f"params0/{name}"]
    for step in range(STEPS):
        taken = Case(before.clone(), RECORDED[f"grads/{name}"][step], state, rate)
        kernel_step([taken], theta, step)
        recorded = RECORDED[f"params/{name}"][step]
        assert error(taken.param, recorded, before) <= 1e-4
        before = recorded


VECTORS = [(), (1,), (15,), (16,), (17,), (47,), (48,), (49,), (8191,), (8192,), (8193,), (20000,)]
MATRICES = [(1, 1), (1, 9), (9, 1), (2, 2), (3, 31), (3, 32), (3, 33), (2, 47), (2, 49), (7, 96), (21, 384), (22, 384)]
MATRICES += [(21, 385), (5, 1000), (170, 48), (171, 48), (2, 9000), (9000, 2), (1, 9000), (9000, 1), (300, 31)]
TENSORS_OF_MORE_AXES = [
    (24, 40, 3, 3),  # lines of several numbers for one statistic
    (9, 9, 8, 8),  # the most that there may be
    (7, 7, 6, 6, 2),  # more
    (6, 6, 5, 5, 5),
    (7, 7, 5, 5, 6),
    (16, 3, 7, 7),
    (12, 1, 3, 3),
    (1, 1, 1, 1),
    (3, 50, 40),
    (50, 3, 40),
    (2, 3, 40, 33),
    (5, 4, 3, 2, 6),
]


@pytest.mark.parametrize("shape", VECTORS + MATRICES + TENSORS_OF_MORE_AXES, ids=str)
def test_a_step_is_the_rules_at_the_edges_of_blocks_and_pieces(shape, lanes):
    orders = {
        tuple(range(len(shape))),
        tuple(reversed(range(len(shape)))),
        (*range(0, len(shape), 2), *range(1, len(shape), 2)),
    }
    cases = [case(in_memory_order(shape, order), seed) for seed, order in enumerate(sorted(orders))]
    assert_same_step(cases, random_theta(len(shape)))


@pytest.mark.parametrize("shape", [(768, 768), (500_000,), (2, 150_000), (150_000, 2), (128, 128, 3, 3)], ids=str)
def test_large_tensors_take_the_rules_step(shape):
    assert_same_step([case(torch.empty(shape), 1)], random_theta(1))


@pytest.mark.parametrize("decades", [4.0, 8.0, 16.0])
@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (20, 30, 3, 3), (7, 9, 5), (600,)], ids=str)
def test_rows_and_columns_may_differ_by_many_orders_of_magnitude(shape, decades, lanes):
    assert_same_step([case(torch.empty(shape), seed, decades=decades) for seed in range(3)], random_theta(2))


@pytest.mark.parametrize(("factor", "tolerance"), [(300.0, 1e-5), (3000.0, 1e-5), (30_000.0, 1e-4)])
def test_magnitudes_may_be_of_any_size(factor, tolerance, lanes):
    """The exponential, where its argument is not small; rounding of the argument is an error of the result."""
    parts = mulo.unpack(random_theta())
    theta = mulo.pack(
        parts._replace(w2=parts.w2 * torch.tensor([1.0, factor]), b2=parts.b2 * torch.tensor([1.0, factor]))
    )
    assert_same_step([case(torch.empty(40, 50)), case(torch.empty(300))], theta, tolerance)


@st.composite
def tensors(draw):
    sizes = st.lists(st.integers(0, 9) | st.sampled_from([16, 33, 48, 70]), max_size=5)
    shape = draw(sizes.filter(lambda shape: torch.Size(shape).numel() <= 20_000))
    order = draw(st.permutations(range(len(shape))))
    param, gradient = (draw(st.sampled_from([torch.float32, *HALF])) for _ in range(2))
    return case(in_memory_order(shape, order, param), draw(st.integers(0, 9)), gradient)


@settings(max_examples=60)
@given(
    st.lists(tensors(), max_size=4),
    st.integers(0, 5),
    st.sampled_from([0, 1, 7, 100, 10_000]),
    st.integers(1, 4),
    st.sampled_from(LANES),
)
def test_any_list_of_tensors_takes_the_rules_step(cases, seed, steps, threads, lanes):
    kernels.LANES = lanes
    torch.set_num_threads(threads)
    try:
        assert_same_step(cases, random_theta(seed), steps=steps)
    finally:
        kernels.LANES = 0
        torch.set_num_threads(1)


# Exactness


def test_the_number_of_threads_does_not_change_a_bit(lanes):
    shapes = [(130, 400), (50_000,), (64, 32, 3, 3), (), (3000, 7), (5, 9000)]
    cases = [case(torch.empty(shape), seed) for seed, shape in enumerate(shapes)]
    results = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(copied(cases))
            kernel_step(results[-1], random_theta())
    finally:
        torch.set_num_threads(1)
    for other in results[1:]:
        assert_equal(results[0], other)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_read_and_rounded_as_torch_does(dtype, lanes):
    """With outputs of zero the network leaves (1 - lr · decay) · param, of all finite numbers that there are."""
    parts = mulo.unpack(random_theta())
    theta = mulo.pack(parts._replace(w2=torch.zeros_like(parts.w2), b2=torch.zeros_like(parts.b2)))
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    finite = torch.where(every.isfinite(), every, 0.0)
    taken = case(torch.empty(2**16, dtype=dtype))._replace(param=finite.clone(), gradient=every, rate=(1.0, 0.3))
    kernel_step([taken], theta)
    assert_identical(taken.param, ((1.0 - torch.tensor(0.3)) * finite.float()).to(dtype))


@pytest.mark.parametrize("shape", [(40, 50), (3, 4, 5), (300,), ()], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38, 1.01e15])
def test_gradients_that_are_no_use_count_as_zero(bad, shape):
    whole = case(torch.empty(shape))
    zeroed, spoiled = copied([whole, whole])
    for value, leaf in ((0.0, zeroed), (bad, spoiled)):
        leaf.gradient.view(-1)[::3] = value
    for step in (kernel_step, rule_step):
        here = copied([zeroed, spoiled])
        step(here, random_theta())
        assert_equal(here[:1], here[1:])


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-20, 1e10, 1e15])
def test_gradients_of_any_size_leave_finite_numbers(size):
    for shape in ((40, 50), (300,), (4, 5, 6)):
        cases = [
            Case(torch.randn(shape), size * torch.randn(shape), mulo_steps.accumulators(torch.empty(shape)), (1.0, 0.0))
        ]
        for step in (kernel_step, rule_step):
            after = copied(cases)
            for n in range(3):
                step(after, random_theta(), n)
            assert after[0].param.isfinite().all()
            assert all(value.isfinite().all() for value in after[0].state.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["param", "rate", "w0", "b0", "w1", "b1", "w2", "b2"])
def test_what_is_not_finite_spreads_as_it_does_by_the_rule(where, bad, lanes):
    """A network that is broken must not go on with the units that are left."""
    theta = random_theta()
    given = [case(torch.empty(shape)) for shape in ((40, 50), (300,), (20, 8, 6))]
    given += [case(torch.empty(300, dtype=dtype)) for dtype in HALF]
    if where == "rate":
        given = [c._replace(rate=(bad, 0.1)) for c in given]
    for part in [c.param for c in given] if where == "param" else [getattr(mulo.unpack(theta), where, theta[:0])]:
        part.view(-1)[:1] = bad
    ours, theirs = copied(given), copied(given)
    kernel_step(ours, theta)
    rule_step(theirs, theta)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.param.isfinite(), other.param.isfinite())
        assert bad == float("inf") or torch.equal(one.param.isnan(), other.param.isnan())


def test_nothing_to_do_is_done():
    kernel_step([], random_theta())
    cases = [case(torch.empty(shape)) for shape in ((0,), (5, 0), (0, 5), (3, 0, 2))]
    kernel_step(cases, random_theta())
    whole = case(torch.empty(4, 5))
    (alone,) = copied([whole])
    kernel_step([alone], random_theta())
    kernel_step([*cases, whole], random_theta())
    assert torch.equal(whole.param, alone.param)


# Memory

MEMORY = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from mulo_cases import case, kernel_step, random_theta
torch.set_num_threads(2)
theta = random_theta()
kernel_step([case(torch.empty(300, 300))], theta)
large = [case(torch.empty(shape), steps=0) for shape in ((4000, 4000), (2_000_000,))]
def resident(entry):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(entry))
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
kernel_step(large, theta)
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_step_needs_memory_for_rows_and_columns_alone():
    """Of tensors of 64 and 8 MB: 6 statistics of 4000 rows and columns, 16 slabs of 4000 columns, and 176 bytes for
    every 16384 numbers, together 0.6 MB."""
    command = [sys.executable, "-c", MEMORY, str(Path(__file__).parents[1])]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384"}  # without a heap, which would hide what is needed
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert 2**18 < int(done.stdout) < 2**22
