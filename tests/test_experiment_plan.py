"""How long a run is: what is no number of updates is refused. Where it is made: whatever mode torch is in."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hyperopt_id as hid
from hyperopt_id.optim.plain import plain_parts

ROWS = torch.linspace(-1.0, 1.0, 40, dtype=torch.float64).reshape(20, 2)
DATA = hid.Dataset(ROWS, ROWS.sum(1), {"train": (0, 10), "validation": (10, 15), "test": (15, 20)})
SPACE = hid.Space(
    {
        "lr": hid.Hyper(1e-2, hid.LOG10, tune=("global",)),
        "weight_decay": hid.Hyper(1e-6, hid.LOG10),
        "momentum": hid.Hyper(0.5, hid.LOGIT),
    }
)


@pytest.mark.parametrize(
    "name", ["updates", "steps_per_update", "report_every", "checkpoint_every", "keep", "trace_every"]
)
@pytest.mark.parametrize("value", [2.5, "20", -1, True, [1]])
def test_a_plan_is_of_whole_numbers(name, value):
    least = 0 if name in ("checkpoint_every", "trace_every") else 1
    message = re.escape(f"Plan: {name} is {value!r}, and must be a whole number, {least} or more")
    with pytest.raises(ValueError, match=f"^{message}$"):
        hid.Plan(**{"updates": 3, name: value})


def test_whole_numbers_of_numpy_and_torch_are_whole_numbers():
    numbers: dict[str, Any] = {"updates": np.int64(3), "report_every": torch.tensor(2)}
    assert list(hid.Plan(**numbers).reports(3)) == [2, 3]


def trained() -> list[float]:
    """Final validation losses of a tuned and of a plain run."""
    task = hid.supervised(DATA, lambda: nn.Linear(2, 1), "mse", 5)
    tuned = hid.assemble(task, rule=hid.rules.sgd(), space=SPACE, engine=hid.hypergrad.neumann(terms=3))
    plain = plain_parts(task, lambda params, taken: torch.optim.SGD(params.values(), lr=0.01), [0], lambda state: {})
    return [hid.run(parts, hid.Plan(updates=3))["final"]["loss/validation"].item() for parts in (tuned, plain)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_runs_are_the_same_where_gradients_are_off(mode):
    expected = trained()
    with mode():
        assert trained() == expected
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() is (mode is torch.inference_mode)
