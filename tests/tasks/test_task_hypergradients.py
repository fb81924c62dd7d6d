"""The law of hypergradients through people's modules: they are differences of the objective after a few steps, also
where the gradient that trains is not that of the loss."""

from collections.abc import Callable

import pytest
import torch
from live_modules import FAITHFUL
from live_modules_base import Tokens
from torch import Tensor, nn

import hyperopt_id as hid
from hyperopt_id import curvature, population
from hyperopt_id.population import Record

STEPS = 5
GENERATOR = torch.Generator().manual_seed(0)
TOKENS, TARGETS = torch.randint(7, (60, 3), generator=GENERATOR), torch.randn(60, generator=GENERATOR).double()
INPUTS = torch.randn(60, 4, generator=GENERATOR).double()
SPLITS = {"train": (0, 30), "validation": (30, 45), "test": (45, 60)}
SPACE = {"lr": (0.005, hid.LOG10), "weight_decay": (1e-2, hid.LOG10), "momentum": (0.8, hid.LOGIT)}


def padding(**options: bool) -> nn.Module:
    """A padding row that is not zero, which weight decay changes and outputs depend on."""
    module = Tokens(padding_idx=1, **options)
    nn.init.normal_(module.table.weight)
    return module


class Force(nn.Module):
    """The derivative of a potential by its inputs, as `torch.func` takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.potential = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(lambda row: self.potential(row)[0]))(inputs).sum(1)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "padding row": padding,
    "padding row, scaled": lambda: padding(scale_grad_by_freq=True),
    "force": Force,
    "experts": FAITHFUL["experts"],
    "adapters": FAITHFUL["adapters"],
    "decoder": FAITHFUL["decoder"],
    "spectrum": FAITHFUL["spectrum"],
    "checkpointed": FAITHFUL["checkpoints, nested"],
}


def record(task: hid.Task, curve: curvature.Curvature | None, moved: dict[str, float]) -> Record:
    """One hyper-update of five steps, from raw values that have been moved."""
    space = hid.Space({name: hid.Hyper(*values, tune=("global",)) for name, values in SPACE.items()})
    engine = hid.hypergrad.unroll(STEPS)
    parts = hid.assemble(task, rule=hid.rules.sgd(), space=space, engine=engine, curvature=curve, seeds=[1])
    (run,) = population.split(parts.start(), parts.members, parts.lift)
    run = run._replace(raw={name: raw + moved.get(name, 0.0) for name, raw in run.raw.items()})
    target = parts.batches("validation", [1], 0, 1)[0]
    return parts.update(run, parts.batches("train", [1], 0, STEPS), target, 0)[1]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", MODULES)
def test_hypergradients_are_differences_of_the_objective(name: str):
    factory, eps = MODULES[name], 1e-5
    inputs = TOKENS if isinstance(factory(), Tokens) else INPUTS
    task = hid.supervised(hid.Dataset(inputs, TARGETS, SPLITS), factory, "mse", 6)
    for key, found in record(task, None, {}).hypergradient.items():
        ahead, behind = (record(task, curvature.none, {key: sign * eps}).objective for sign in (1, -1))
        assert ahead is not None
        assert behind is not None
        torch.testing.assert_close(found, (ahead - behind) / (2 * eps), rtol=1e-5, atol=1e-8)
