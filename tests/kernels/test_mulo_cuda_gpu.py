"""What only a GPU shows of the CUDA kernel: large tensors, streams, devices, captured graphs, launches, and that the
host does not wait. The laws of `test_mulo_cuda.py` hold there, too."""

import gc

import pytest
import torch
from cuda_steps import assert_same_step, mixed_cases, placed, take_step
from mulo_cases import arguments, assert_equal, case, in_memory_order, random_theta
from torch import nn

from hyperopt_id import mulo
from hyperopt_id.kernels.mulo import mulo_step
from hyperopt_id.optim import MuLO

pytestmark = pytest.mark.gpu
THETA = mulo.untrained()

LARGE = [(768, 768), (1000, 333), (70, 5000), (5000, 70), (128, 96, 3, 3), (6, 130, 520), (200_000,), (33_000, 3)]


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_large_tensors_take_the_rules_step(shape, turned, precision):
    order = tuple(reversed(range(len(shape)))) if turned else tuple(range(len(shape)))
    tolerance = {"float16": 2e-3, "split_float16": 1e-4}[precision]
    assert_same_step([case(in_memory_order(shape, order), 1)], random_theta(1), "cuda", tolerance)


def test_a_step_on_another_stream():
    ours, theirs = mixed_cases("cuda"), mixed_cases("cuda")
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
    ours, theirs = placed(mixed_cases("cuda"), "cuda:1"), mixed_cases("cuda")
    take_step(ours, random_theta())
    take_step(theirs, random_theta())
    assert torch.cuda.current_device() == 0
    assert_equal(placed(ours, "cpu"), placed(theirs, "cpu"))


# Graphs


def warmed_up(step):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)


def test_replayed_steps_are_eager_ones():
    ours, theirs = mixed_cases("cuda"), mixed_cases("cuda")
    captured, eager = arguments(ours, random_theta(), 0.0), arguments(theirs, random_theta(), 0.0)

    def step(given):
        mulo_step(*given)
        given[8].add_(1.0)

    warmed_up(lambda: step(captured))
    step(eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured)
    for n in range(3):
        for one, other in zip(ours, theirs, strict=True):
            other.gradient.mul_(0.5 + n)
            one.gradient.copy_(other.gradient)
        graph.replay()
        step(eager)
    assert_equal(ours, theirs)


def test_gradients_may_be_born_in_the_graph():
    """Their memory is the graph's own, so that it captures the upload of the pointers to them, too."""
    ours, theirs = mixed_cases("cuda"), mixed_cases("cuda")
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


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 300), nn.Tanh(), nn.Linear(300, 5)).cuda()


def training(model, optimizer, inputs):
    """One step of a training, with gradients at new places."""
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def test_a_captured_training_is_the_eager_one():
    ours, theirs = network(), network()
    inputs = torch.randn(64, 40, device="cuda")
    captured, eager = (MuLO(model.parameters(), THETA, impl="cuda") for model in (ours, theirs))
    for _ in range(3):
        warmed_up(lambda: training(ours, captured, inputs))
        training(theirs, eager, inputs)
    captured.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training(ours, captured, inputs)
    for _ in range(3):
        inputs.normal_()
        graph.replay()
        training(theirs, eager, inputs)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-3, atol=1e-5)


# What the host does


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_is_that_of_the_rule(dtype):
    ours, theirs = network().to(dtype), network().to(dtype)
    inputs = torch.randn(64, 40, device="cuda", dtype=dtype)
    for model, impl in ((ours, "cuda"), (theirs, "torch")):
        optimizer = MuLO(model.parameters(), THETA, impl=impl, lr=0.5)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for _ in range(5):
            training(model, optimizer, inputs)
            schedule.step()
    tolerances = {"rtol": 1e-3, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), **tolerances)


def many(count):
    shapes = [(300, 400), (70, 40, 3), (500,), (), (2000, 20)]
    return arguments(
        placed([case(torch.empty(shapes[n % len(shapes)]), n) for n in range(count)], "cuda"), random_theta()
    )


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
    """Nor when gradients have new places and the learning rate is another one."""
    model = network()
    optimizer = MuLO(model.parameters(), THETA, impl="cuda")
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    inputs = torch.randn(64, 40, device="cuda")
    training(model, optimizer, inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            training(model, optimizer, inputs)
            schedule.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
