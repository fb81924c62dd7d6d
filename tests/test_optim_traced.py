"""An optimizer that follows a trace takes the steps of our own rules with the values in its rows."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from laws import HYPERS, RULES, assert_close, initial, random

from hyperopt_id import rules, trees
from hyperopt_id.optim.traced import Schedule, follow

NAMES = {name: rule for name, rule in RULES.items() if not name.startswith("clipped")}
OPTIONS = {"nesterov": {"nesterov": True}, "dampening": {"dampening": 0.3}}
ROWS, STEPS_PER_ROW = 3, 2
KINDS = {"shared": lambda w: None, "tensor": lambda w: (), "element": lambda w: tuple(w.shape)}


def schedule(rule: rules.UpdateRule, kinds: dict[str, str]) -> Schedule:
    """Random rows; hyperparameters that `kinds` does not name are shared."""
    values: dict[str, Any] = {}
    for seed, name in enumerate(rule.hyperparameters):

        def rows(*shape: int, seed: int = seed, name: str = name) -> np.ndarray:
            return (HYPERS[name][0] * (1.0 + 0.03 * random(ROWS, *shape, seed=seed).tanh())).numpy()

        shape = KINDS[kinds.get(name, "shared")]
        params = initial().items()
        values[name] = rows() if name not in kinds else {k: rows(*shape(w), seed=len(k)) for k, w in params}
    return Schedule(values, STEPS_PER_ROW)


@pytest.mark.parametrize(
    "kinds",
    [
        {},
        {"lr": "tensor"},
        {"lr": "element"},
        {"weight_decay": "element"},
        {"lr": "element", "weight_decay": "element"},
        {"lr": "tensor", "weight_decay": "element"},
        {"lr": "element", "weight_decay": "tensor", "momentum": "tensor", "beta1": "tensor", "beta2": "tensor"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_the_rule(name, kinds):
    rule = NAMES[name]
    plan = schedule(rule, {hyper: kind for hyper, kind in kinds.items() if hyper in rule.hyperparameters})
    expected, state = initial(), rule.init(initial())
    params = trees.variables(initial())
    optimizer = follow(name if name in ("adam", "adamw") else "sgd", plan, **OPTIONS.get(name, {}))(params, 0)
    for step in range(ROWS * STEPS_PER_ROW + 2):  # the last row goes on
        slopes = {k: random(*w.shape, seed=100 + step) for k, w in expected.items()}
        natural = plan.natural(step, torch.device("cpu"))
        hyper: Any = {h: v if isinstance(v, dict) else dict.fromkeys(expected, v) for h, v in natural.items()}
        expected, state = rule.update(expected, slopes, state, hyper)
        for k, w in params.items():
            w.grad = slopes[k].clone()
        optimizer.step()
        assert_close(trees.detach(params), expected)


@pytest.mark.parametrize("stretch", [1.0, 2.0, 0.5, 0.7, 1.5, 1 / 3, 3.1])
@pytest.mark.parametrize("first", [0, 4])
def test_row_i_holds_for_its_share_of_the_stretched_steps(stretch, first):
    exact = Fraction(str(stretch))
    plan = Schedule({"lr": np.arange(10.0)}, 2, exact, first)
    for step in range(80):
        assert plan.row(step) == min(9, (first + step / exact) // 2)
        assert float(plan.natural(step, torch.device("cpu"))["lr"]) == plan.row(step)


def test_momentum_0_keeps_the_buffer_for_the_row_after():
    weights = {"w": torch.zeros(1, dtype=torch.float64, requires_grad=True)}
    values = {"lr": np.ones(2), "weight_decay": np.zeros(2), "momentum": np.array([0.0, 0.5])}
    optimizer = follow("sgd", Schedule(values, 1))(weights, 0)
    for gradient in (1.0, 10.0):
        weights["w"].grad = torch.full((1,), gradient, dtype=torch.float64)
        optimizer.step()
    assert weights["w"].item() == -(1.0 + (10.0 + 0.5 * 1.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"momentum": {"w": np.ones((2, 3))}},
            "has momentum for every element, but torch.optim takes one for a tensor",
        ),
        ({"lr": {"w": np.ones((2, 4))}}, r"has lr of w \[4\], but the model has \[3\]"),
        ({"lr": {"w": np.ones(2), "v": np.ones(2)}}, "has lr of v .*, but the model has no such parameter"),
        ({"lr": {}}, "has no lr of w"),
    ],
)
def test_a_trace_of_another_model_is_refused(values, message):
    fixed = {"lr": np.ones(2), "weight_decay": np.zeros(2), "momentum": np.zeros(2)}
    with pytest.raises(ValueError, match=message):
        follow("sgd", Schedule({**fixed, **values}, 1))({"w": torch.zeros(3)}, 0)
