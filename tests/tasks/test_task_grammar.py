"""Modules drawn from a small grammar (layers × wrappers × sharing) train as the live module does: in a loop, several
runs at once, and by the graph that is compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_steps import assert_alike, batch_at, data_for, live_module, live_step
from test_task_live import check_loop, check_vectorized_runs
from test_task_programs import step_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from hyperopt_id import trees
from hyperopt_id.build.vectorized import obstacle
from hyperopt_id.compilation_graph import read, trace
from hyperopt_id.tasks.task import supervised

pytestmark = pytest.mark.usefixtures("double")
Make = Callable[[], nn.Module]
WIDTH = 4


def linear() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH)


def frozen() -> nn.Module:
    return linear().requires_grad_(False)


def hooked() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.weight.register_hook(lambda gradient: 0.5 * gradient)
    return layer


class Permuted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.order = torch.randperm(WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, self.order]


class Centered(nn.Module):
    """Subtracts a moving average, kept as a buffer that is assigned."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean(0)
        return inputs - self.mean


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.inner(inputs)


class Twice(Residual):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(torch.tanh(self.inner(inputs)))


class Recomputed(Residual):
    def forward(self, inputs: Tensor) -> Tensor:
        return checkpoint(self.inner, inputs, use_reentrant=False)


class Unregistered(nn.Module):
    """Reads its layer's parameters from a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.tensors = [self.layer.weight, self.layer.bias]

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.tensors[0] + self.tensors[1]


def wrapped(wrapper: Callable[[nn.Module], nn.Module], inner: Make) -> Make:
    return lambda: wrapper(inner())


def chain(parts: list[Make]) -> Make:
    return lambda: nn.Sequential(*(make() for make in parts))


LEAVES: list[Make] = [
    linear,
    frozen,
    hooked,
    Permuted,
    Centered,
    Unregistered,
    nn.Tanh,
    lambda: nn.LayerNorm(WIDTH),
    lambda: nn.Dropout(0.3),
    lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
]
WRAPPERS: list[Callable[[nn.Module], nn.Module]] = [Residual, Twice]
blocks = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(chain), st.builds(wrapped, st.sampled_from(WRAPPERS), inner)
    ),
    max_leaves=5,
)
# Under recomputation, a dropout layer is called once (`test_task_refusals`), and buffers are not assigned.
pure = st.lists(
    st.sampled_from([linear, hooked, Unregistered, Permuted, lambda: nn.Dropout(0.3)]), min_size=1, max_size=3
)
parts = st.one_of(blocks, pure.map(chain).map(lambda inner: wrapped(Recomputed, inner)))


def check_graph(factory: Make, seed: int) -> None:
    """The graph of a training step that was traced at the other seed."""
    step, starts = step_of(factory)
    graph = trace(step, [*starts[1 - seed], batch_at(0)])
    compute, _ = read(graph.text)
    given = [*starts[seed], batch_at(1)]
    slopes, loss, buffers = trees.like(step(*given), compute(*trees.leaves(given), *graph.constants))
    module = live_module(factory, seed)
    expected, live_slopes = live_step(module, data_for(factory), batch_at(1))
    assert_alike({"loss": expected, **live_slopes}, {"loss": loss, **slopes})
    assert_alike(buffers, dict(module.state_dict()))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(parts, min_size=1, max_size=3), st.integers(0, 1))
def test_a_module_of_the_grammar_trains_as_itself(drawn: list[Make], seed: int):
    def factory() -> nn.Module:
        return nn.Sequential(*(make() for make in drawn), nn.Linear(WIDTH, 1))

    data = data_for(factory)
    task = supervised(data, factory, "mse", 6)
    check_loop(task, factory, data, seed)
    if obstacle(task, batch_at(0), 0) is None:
        check_vectorized_runs(task, factory, data)
    if "compile" not in task.limits:
        check_graph(factory, seed)
