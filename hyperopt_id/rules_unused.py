"""Steps whose loss does not use all parameters, as where forward takes one branch of several.

`torch.optim` leaves a parameter whose `grad` is None as it is, with its part of the state, and counts steps for each
parameter. So do rules here: what a step does not use is skipped, and where that is known beforehand, each parameter has
a count of its own. Elsewhere all share one, which costs less.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from hyperopt_id.rules import Derivative, Hyperparameters, State, UpdateRule
from hyperopt_id.trees import Params


def rule_of_step(
    rule: UpdateRule, unused: Collection[str], state: State, optional: Collection[str] | None
) -> UpdateRule:
    """The rule for a step whose loss does not use these parameters.

    Raises ValueError if one of them was not known to be `optional`, and the rule counts the steps of all together.
    """
    if not unused:
        return rule
    unknown = [name for name in unused if optional is not None and name not in optional]
    if unknown and not all(isinstance(part, dict) for part in state.values()):
        raise ValueError(
            f"{unknown[0]} has no gradient in this step, as where forward does not take a branch, but had one on the "
            "rows that were tried at the start; the rule counts its steps for all parameters at once, torch.optim for "
            f"each: add 0.0 * {unknown[0]}.sum() to the outputs, which gives it a gradient of zero, or take rules.sgd()"
        )
    return skipping(rule, tuple(unused))


def skipping(rule: UpdateRule, unused: Collection[str]) -> UpdateRule:
    """The rule in a step whose loss does not use the parameters `unused`: they stay as they are, and so does their part
    of the state, as in `torch.optim` where `grad` is None."""

    def kept(old: Params, new: Params) -> Params:
        return {**new, **{k: old[k] for k in unused}}

    def update(params: Params, gradients: Params, state: State, hyper: Hyperparameters) -> tuple[Params, State]:
        moved, after = rule.update(params, gradients, state, hyper)
        return kept(params, moved), {n: kept(state[n], v) if isinstance(v, dict) else v for n, v in after.items()}

    return rule._replace(update=update, derivative=rule.derivative and _skipping(rule.derivative, unused))


def _skipping(derivative: Derivative, unused: Collection[str]) -> Derivative:
    def filled(values: Params, number: float) -> Params:
        return {**values, **{k: torch.full_like(values[k], number) for k in unused}}

    def diagonals(*point: Any) -> tuple[Params, Params]:
        along, across = derivative.diagonals(*point)
        return filled(along, 1.0), filled(across, 0.0)

    def hyper(*point: Any) -> Hyperparameters:
        return {name: filled(values, 0.0) for name, values in derivative.hyper(*point).items()}

    return Derivative(diagonals, hyper)


def counting_apart(rule: UpdateRule) -> UpdateRule:
    """The rule with a count of steps for each parameter, as `torch.optim` has it, for losses that do not use all of
    them in every step; the rule itself where it has no such counts, or cannot have them."""
    if not rule.counts_apart:
        return rule

    def init(params: Params) -> State:
        state = rule.init(params)
        return {n: v if isinstance(v, dict) else {k: v.clone() for k in params} for n, v in state.items()}

    return rule._replace(init=init)
