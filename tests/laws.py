"""Tables and toys that the laws of several files share, all in float64: rules, granularities, a small regression."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperopt_id import curvature, hypergrad, population, rules, trees
from hyperopt_id.dynamics import Cotangent, Dynamics, TrainState, make_dynamics
from hyperopt_id.rules import Params, UpdateRule
from hyperopt_id.space import LOG10, LOGIT, Hyper, Space

RULES = {
    "sgd": rules.sgd(),
    "nesterov": rules.sgd(nesterov=True),
    "dampening": rules.sgd(dampening=0.3),
    "adam": rules.adam(),
    "adamw": rules.adamw(),
    "clipped sgd": rules.clipped(rules.sgd(), 0.2),
    "clipped adam": rules.clipped(rules.adam(), 0.2),
}
GRANULARITIES = {
    "global": ("global",),
    "tensor": ("tensor",),
    "element": ("element",),
    "sum of all": ("global", "tensor", "element"),
}
HYPERS = {  # values at which every derivative is well away from zero
    "lr": (0.05, LOG10),
    "weight_decay": (0.02, LOG10),
    "momentum": (0.8, LOGIT),
    "beta1": (0.9, LOGIT),
    "beta2": (0.95, LOGIT),
    "eps": (1e-2, LOG10),
}
ENGINES = {
    "neumann": hypergrad.neumann(3),
    "neumann, carried": hypergrad.neumann(3, carry_state=True),
    "one_step": hypergrad.one_step(),
    "unroll": hypergrad.unroll(3),
    "forward": hypergrad.forward(3),
}
LIFTS: tuple[population.Lift, ...] = ("loop", "vmap")
ROWS, VALIDATION_ROWS = 12, 8
BATCHES = [torch.tensor(rows) for rows in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [1, 5, 9, 2], [3, 0, 8, 6])]
TARGET = torch.arange(ROWS, ROWS + VALIDATION_ROWS)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


INPUTS, TARGETS = random(ROWS + VALIDATION_ROWS, 3, seed=1), random(ROWS + VALIDATION_ROWS, 2, seed=2)


def loss(params: Params, buffers: Params, rows: Tensor) -> tuple[Tensor, tuple[Params, dict[str, Tensor]]]:
    """A smooth, nonquadratic loss of the rows `rows` [B]; it does not use the parameter "unused"."""
    outputs = torch.tanh(INPUTS[rows] @ params["layer.weight"].T + params["layer.bias"])
    return (outputs - TARGETS[rows]).square().mean(), (buffers, {})


def initial(seed: int = 3) -> Params:
    return {
        "layer.weight": random(2, 3, seed=seed),
        "layer.bias": random(2, seed=seed + 1),
        "unused": random(2, seed=seed + 2),
    }


def space(rule: UpdateRule, tune: tuple[str, ...], only: tuple[str, ...] | None = None) -> Space:
    """Every hyperparameter of the rule (or those in `only`) tuned at the granularities `tune`."""
    return Space(
        {name: Hyper(*HYPERS[name], tune=tune if only is None or name in only else ()) for name in rule.hyperparameters}
    )


def raw_values(space: Space, params: Params, seed: int = 11) -> Params:
    """Raw values whose entries all differ."""
    raw = space.init(params)
    return {k: x + 0.1 * random(*x.shape, seed=seed + i) for i, (k, x) in enumerate(raw.items())}


def trained(rule: UpdateRule, steps: int = 3, seed: int = 3) -> TrainState:
    """A state some steps after the start, where momenta and moments are not zero."""
    params = initial(seed)
    z = TrainState(params, {}, rule.init(params))
    hyper = space(rule, ()).constrain(space(rule, ()).init(params), params)
    for k in range(steps):
        slopes = torch.func.grad(lambda w: loss(w, {}, BATCHES[k % len(BATCHES)])[0])(z.params)  # noqa: B023
        z = after(rule.update(z.params, slopes, z.state, hyper))
    return z


def after(updated: tuple[Params, Any]) -> TrainState:
    params, state = updated
    return TrainState(params, {}, state)


def dynamics(
    rule: UpdateRule, space: Space, how: population.Lift = "loop", curve: curvature.Curvature = curvature.exact
) -> Dynamics:
    lifted = lambda function: population.lift(function, how)  # noqa: E731
    return make_dynamics(lifted(loss), population.lift_rule(rule, how), lifted(space.constrain), space.tuned, curve)


def step(rule: UpdateRule, space: Space, z: TrainState, raw: Params, batch: Tensor) -> TrainState:
    """The obvious reference for Φ: a function that autograd can differentiate as a whole. What the loss does not use
    stays as it is."""
    slopes = torch.func.grad(lambda w: loss(w, {}, batch)[0])(z.params)
    new = after(rule.update(z.params, slopes, z.state, space.constrain(raw, z.params)))
    new.params["unused"] = z.params["unused"]
    for name, entries in new.state.items():
        if isinstance(entries, dict):
            entries["unused"] = z.state[name]["unused"]
    return new


def objective(params: Params, buffers: Params, raw: Params, rows: Tensor) -> Tensor:
    return loss(params, buffers, rows)[0]


def penalized(params: Params, buffers: Params, raw: Params, rows: Tensor) -> Tensor:
    """An objective with a direct term."""
    return loss(params, buffers, rows)[0] + 0.1 * sum(raw[key].sin().sum() for key in sorted(raw))  # type: ignore


def cotangent(z: TrainState, seed: int = 21) -> Cotangent:
    form = trees.like((z.params, z.state), [random(*x.shape, seed=seed + i) for i, x in enumerate(trees.leaves(z))])
    return Cotangent(*form)


def differences(function: Callable[[Params], Tensor], at: Params, direction: Params, step: float = 1e-4) -> Tensor:
    """The derivative of a scalar function along a direction, by central differences of fourth order."""

    def along(scale: float) -> Tensor:
        return function({k: x + scale * step * direction[k] for k, x in at.items()})

    return (8.0 * (along(1.0) - along(-1.0)) - (along(2.0) - along(-2.0))) / (12.0 * step)


def directions(tree: Params, seed: int = 31) -> Params:
    return {k: random(*x.shape, seed=seed + i) for i, (k, x) in enumerate(tree.items())}


def assert_close(left: Any, right: Any, tolerance: float = 1e-10) -> None:
    """Trees with the same keys and numbers equal within `tolerance`, relative and absolute."""
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def assert_identical(left: Any, right: Any) -> None:
    """Trees equal to the last bit; NaN equals NaN."""
    torch.testing.assert_close(left, right, rtol=0.0, atol=0.0, equal_nan=True)


def copied(tree: Any) -> Any:
    return trees.map(torch.clone, tree)
