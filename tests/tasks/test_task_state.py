"""What a user's module carries from step to step: frozen parameters, and buffers that it assigns."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap
from user_modules import DATA, Net, regression

from hyperopt_id.tasks.functional import FunctionalModule
from hyperopt_id.tasks.task import Batch


def batch(first: int = 0) -> Batch:
    return Batch(torch.arange(first, first + 5), torch.tensor(0), "train")


class Half(Net):
    """The first of two layers is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.roles = {"linear.weight": "output", "linear.bias": "bias", "frozen.weight": "input", "frozen.bias": "bias"}

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.frozen(inputs)))


class Mean(Net):
    """Subtracts a running mean of its inputs, which it assigns and does not write to."""

    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * self.linear.weight[0] * inputs.mean(0)
            self.count = self.count + 1
        return self.linear(inputs - self.mean)


# frozen parameters


def test_frozen_parameters_are_constants_of_the_run():
    task = regression(Half)
    params, buffers = task.init(3)
    assert {*params} == {*task.roles} == {"linear.weight", "linear.bias"}
    assert {*buffers} == {"frozen.weight", "frozen.bias"}
    assert torch.equal(buffers["frozen.weight"], task.init(3)[1]["frozen.weight"])
    assert not torch.equal(buffers["frozen.weight"], task.init(4)[1]["frozen.weight"])
    start = {name: value.clone() for name, value in buffers.items()}
    for step in range(3):
        slopes, (buffers, _) = grad(task.loss, has_aux=True)(params, buffers, batch(step))
        params = {name: value - 0.1 * slopes[name] for name, value in params.items()}
    assert all(torch.equal(start[name], value) for name, value in buffers.items())
    inputs = DATA.inputs[15:]
    hidden = torch.tanh(F.linear(inputs, start["frozen.weight"], start["frozen.bias"]))
    outputs = F.linear(hidden, params["linear.weight"], params["linear.bias"])
    expected = (outputs[:, 0] - DATA.targets[15:]).square().mean()
    torch.testing.assert_close(task.evaluate(params, buffers, "test")["loss"], expected)


def test_runs_have_frozen_parameters_of_their_own():
    task = regression(Half)
    starts = [task.init(seed) for seed in (0, 1)]
    stacked = [{name: torch.stack([tree[name] for tree in pair]) for name in pair[0]} for pair in zip(*starts)]
    losses = vmap(lambda params, buffers: task.loss(params, buffers, batch())[0])(*stacked)
    torch.testing.assert_close(losses, torch.stack([task.loss(*start, batch())[0] for start in starts]))


def test_a_model_without_a_parameter_to_train_is_refused():
    for factory in (lambda: nn.Linear(4, 1).requires_grad_(False), lambda: nn.Flatten()):
        with pytest.raises(ValueError, match="the model has no parameter to train"):
            regression(factory)


# buffers that are assigned


def test_assigned_buffers_are_kept():
    task = regression(Mean)
    params, buffers = task.init(0)
    start = {name: value.clone() for name, value in buffers.items()}
    after = buffers
    module = Mean()
    module.load_state_dict({**params, **buffers})
    for step in range(3):
        _, (after, _) = grad(task.loss, has_aux=True)(params, after, batch(step))
        module(DATA.inputs[step : step + 5])
    assert after["count"] == 3
    torch.testing.assert_close(after["mean"], module.mean.detach())
    assert not any(value.requires_grad for value in after.values())
    assert all(torch.equal(start[name], value) for name, value in buffers.items())
    once, again = (task.evaluate(params, after, "test")["loss"] for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, task.evaluate(params, start, "test")["loss"])


class Tied(Net):
    """Two names of one buffer, assigned by the first."""

    first: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.zeros(()))
        self.second = nn.Module()
        self.second.register_buffer("same", self.first)

    def forward(self, inputs: Tensor) -> Tensor:
        self.first = self.first + 1.0
        return self.linear(inputs)


class Average(Net):
    """A frozen parameter that is assigned anew."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.first = nn.Parameter((self.first + 1.0).detach(), requires_grad=False)
        return self.linear(inputs)


@pytest.mark.parametrize("factory", [Tied, Average])
def test_assigned_tensors_of_other_kinds_are_kept(factory: Callable[[], nn.Module]):
    task = regression(factory)
    params, buffers = task.init(0)
    for step in range(3):
        _, (buffers, _) = task.loss(params, buffers, batch(step))
    assert buffers["first"] == 3.0


@pytest.mark.parametrize("index", [batch().index, None], ids=["rows", "whole split"])
def test_assigned_buffers_under_vmap_and_compile_equal_those_of_a_loop(index: Tensor | None):
    task = regression(Mean)
    params, buffers = task.init(0)
    runs = [{name: value + run for name, value in params.items()} for run in range(3)]

    def step(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> tuple:
        return grad(task.loss, has_aux=True)(params, buffers, Batch(index, torch.tensor(0), "train"))

    expected = [step(run, buffers) for run in runs]
    stacked = {name: torch.stack([run[name] for run in runs]) for name in params}
    states = {name: torch.stack([value] * 3) for name, value in buffers.items()}
    lifted, (after, _) = vmap(step)(stacked, states)
    for name in after:
        torch.testing.assert_close(after[name], torch.stack([result[1][0][name] for result in expected]))
    for name in lifted:
        torch.testing.assert_close(lifted[name], torch.stack([result[0][name] for result in expected]))
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(runs[1], buffers), expected[1])
    torch.testing.assert_close(torch.compile(vmap(step), backend="eager")(stacked, states), (lifted, (after, {})))


def test_buffers_have_the_type_that_a_step_gives_them():
    class Counts(Mean):
        def forward(self, inputs: Tensor) -> Tensor:
            self.count = 0.5 * self.count + 1.0
            return self.linear(inputs)

    task = regression(Counts)
    params, buffers = task.init(0)
    module = Counts()
    for step in range(3):
        _, (buffers, _) = task.loss(params, buffers, batch(step))
        module(DATA.inputs[:5])
        assert buffers["count"].dtype == module.count.dtype == torch.float32
        assert buffers["count"] == module.count


def test_evaluation_writes_to_no_buffer():
    class Writes(Mean):
        def forward(self, inputs: Tensor) -> Tensor:
            self.count.add_(1)
            return self.linear(inputs)

    task = regression(Writes)
    params, buffers = task.init(0)
    task.evaluate(params, buffers, "test")
    assert buffers["count"] == 0


def test_a_check_does_not_change_the_template():
    module = FunctionalModule(Mean, torch.device("cpu"), torch.float32)
    module.check(DATA.inputs[:2])
    assert all(template.module.count == 0 for template in (module.training, module.evaluation))
