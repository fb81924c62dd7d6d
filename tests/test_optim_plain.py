"""Plain training inside a run is the plain loop that anybody writes, whatever the optimizer keeps of the past."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from laws import assert_identical
from torch import Tensor, nn

from hyperopt_id import Plan, population, trees
from hyperopt_id.experiment import Parts, hyper_update
from hyperopt_id.optim.plain import plain_parts
from hyperopt_id.population import Run
from hyperopt_id.tasks.digits import digits
from hyperopt_id.tasks.task import Batch, Task, supervised

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda w: torch.optim.SGD(w, lr=0.1),
    "nesterov": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda w: torch.optim.Adam(w, lr=1e-2, amsgrad=True),
    "adamw": lambda w: torch.optim.AdamW(w, lr=1e-2),
    "rprop": lambda w: torch.optim.Rprop(w, lr=1e-2),
    "averaged sgd": lambda w: torch.optim.ASGD(w, lr=1e-2),
    "nadam": lambda w: torch.optim.NAdam(w, lr=1e-2),
}
DATA = digits()
PLAN = Plan(updates=3, steps_per_update=4, train_split="train+validation", objective="training")


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 10))


def rate(state: dict) -> dict[str, Tensor]:
    return {"lr": state["groups"]["lr"][0]}


def after(parts: Parts, plan: Plan = PLAN) -> list[Run]:
    """The members at the end of a run."""
    chunks = population.split(parts.start(), parts.members, parts.lift)
    for update in range(plan.updates):
        chunks = [hyper_update(parts, plan, update, *each)[0] for each in zip(chunks, parts.members)]
    return chunks


@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_plain_loop_to_the_last_bit(name, clip_norm):
    task, make = supervised(DATA, net, "cross_entropy", 20), OPTIMIZERS[name]
    parts = plain_parts(task, lambda params, taken: make(params.values()), [7], rate, clip_norm)
    (run,) = after(parts)

    model = net().to(DATA.dtype)
    model.load_state_dict({k: v for part in task.init(7) for k, v in part.items()})
    optimizer = make(model.parameters())
    index = task.batches("train+validation", [7], 0, 12).index
    assert index is not None
    for rows in index[:, 0]:
        optimizer.zero_grad()
        F.cross_entropy(model(DATA.inputs[rows]), DATA.targets[rows]).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
    assert_identical({**run.z.params, **run.z.buffers}, dict(model.state_dict()))


class Typed(torch.optim.Optimizer):
    """Demands what it left of every kind of number, and moves weights by all of them."""

    def __init__(self, params, lr=1):
        super().__init__(params, {"lr": lr, "k": 0, "flag": False, "total": 0.0, "pair": (1, 2.0), "mode": "x"})

    def step(self, closure=None):
        (group,) = self.param_groups
        assert [type(group[key]) for key in ("k", "flag", "total", "pair", "mode")] == [int, bool, float, tuple, str]
        assert group["flag"] == (group["k"] > 0)
        group |= {"k": group["k"] + 1, "flag": True, "total": group["total"] + 0.1, "lr": 1 / (group["k"] + 1)}
        for weight in group["params"]:
            state = self.state[weight]
            state["count"] = state.get("count", 0) + 1
            assert type(state["count"]) is int
            assert state["count"] == group["k"]
            weight.data.add_(group["lr"] * group["total"] * state["count"])
            group["seen"] = weight.sum().item()  # tells a user something, and nothing reads it


def test_numbers_come_back_as_what_they_were():
    task = supervised(DATA, lambda: nn.Linear(64, 10), "cross_entropy", 20)
    (run,) = after(plain_parts(task, lambda params, taken: Typed(params.values()), [0], rate))
    weights = nn.ParameterList(trees.map(torch.clone, task.init(0)[0]).values())
    optimizer = Typed(weights)
    for _ in range(12):
        optimizer.step()
    assert_identical(list(run.z.params.values()), [weight.detach() for weight in weights])
    assert run.z.state["groups"]["lr"].tolist() == [1 / 12]
    assert sorted(run.z.state["groups"]) == ["flag", "k", "lr", "total"]


def quartic() -> Task:
    """L = w^4, from w = the run's seed; the parameter "unused" is not used."""

    def loss(params, buffers, batch):
        return params["w"] ** 4, (buffers, {})

    def batches(split, seeds, start, steps):
        return Batch(None, torch.zeros(steps, len(seeds), dtype=torch.int64), split)

    return Task(
        init=lambda seed: ({"w": torch.tensor(float(seed)), "unused": torch.tensor(1.0)}, {}),
        loss=loss,
        evaluate=lambda params, buffers, split: {"loss": params["w"] ** 4},
        batches=batches,
        thin=lambda batch, fraction: batch,
    )


def test_a_member_that_diverges_in_its_first_update_stays_as_it_began_and_the_others_go_on():
    def make(params, taken):
        return torch.optim.SGD(params.values(), lr=0.05, momentum=0.5, weight_decay=0.1)

    plan = Plan(2, 10, objective="training")
    whole = trees.stack(after(plain_parts(quartic(), make, [1, 1000, 2], rate), plan))  # of one structure
    assert (whole.diverged_at >= 0).tolist() == [False, True, False]
    assert 0 <= int(whole.diverged_at[1]) < 10
    assert whole.z.state["step"].tolist() == [20, 0, 20]
    assert float(whole.z.params["w"][1]) == 1000.0
    alone = after(plain_parts(quartic(), make, [1], rate), plan)
    assert_identical(trees.take(whole, 0), alone[0])


def test_a_parameter_that_the_loss_does_not_use_stays_as_it_is_as_in_torch():
    def make(params, taken):
        return torch.optim.SGD(params.values(), lr=0.5, weight_decay=0.1)

    plan = Plan(1, 3, objective="training")
    (run,) = after(plain_parts(quartic(), make, [0], rate), plan)
    torch.testing.assert_close(run.z.params["unused"], torch.tensor(1.0))


def test_an_optimizer_that_needs_every_gradient_is_named():
    class Needs(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.norms = [
                self.state[p]["norm"] for group in self.param_groups for p in group["params"] if p.grad is None
            ]

    def make(params, taken):
        return Needs(params.values(), lr=0.1)

    with pytest.raises(
        ValueError, match=r"^Needs stops where a parameter has no gradient \(unused; KeyError: 'norm'\)"
    ):
        after(plain_parts(quartic(), make, [0], rate), Plan(1, 3, objective="training"))


COMPLEX = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.05),
    "lbfgs": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=2),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_weights_are_trained_as_in_a_plain_loop(name):
    start, target = torch.tensor([1.0 + 2.0j, -0.5j]), torch.tensor([0.5j, 1.0 - 1.0j])

    def loss(params, buffers, batch):
        return (params["w"] - target).abs().square().sum(), (buffers, {})

    task = replace(quartic(), init=lambda seed: ({"w": start.clone()}, {}), loss=loss)
    make = COMPLEX[name]
    plan = Plan(2, 3, objective="training")
    (run,) = after(plain_parts(task, lambda params, taken: make(params.values()), [0], rate), plan)
    weight = nn.Parameter(start.clone())
    optimizer = make([weight])

    def closure():
        optimizer.zero_grad()
        value = loss({"w": weight}, {}, None)[0]
        value.backward()
        return value

    for _ in range(6):
        optimizer.step(closure)
    assert torch.equal(run.z.params["w"], weight.detach())
