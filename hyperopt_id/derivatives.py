"""First derivatives of R independent computations at once.

Losses are scalars, or [R] with a leading axis of independent runs. The sum over runs is differentiated: run r's loss
depends on run r's parameters alone, so entry r of the result is the gradient of run r. Whoever calls sees to it that
gradients are enabled, once for many calls (`population.make_update` does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.trees import Params

_twice: ContextVar[bool] = ContextVar("twice", default=False)
_objective: ContextVar[bool] = ContextVar("objective", default=False)


class Gradient(NamedTuple):
    """A gradient, the loss there (detached), the loss's auxiliary output (detached), and the names of the parameters
    that the loss did not use, whose `grad` would be None after `loss.backward()`."""

    value: Params
    loss: Tensor
    auxiliary: Any
    unused: tuple[str, ...] = ()


Loss = Callable[[Params], tuple[Tensor, Any]]  # params -> (scalar or [R], auxiliary output)
Product = Callable[[Params], Params]  # u -> uH
Curvature = Callable[[Loss, Loss, Params], tuple[Gradient, Product]]  # made in module `curvature`


def gradient(loss: Loss, variables: Params, *, create_graph: bool = False) -> Gradient:
    """The gradient at `variables`, which are leaves of the autograd graph; zero for a parameter that the loss does not
    use. `create_graph` records it, so that it can be differentiated again."""
    value, auxiliary = _evaluate_for_two(loss, variables) if create_graph else loss(variables)
    slopes = torch.autograd.grad(
        value,
        list(variables.values()),
        torch.ones_like(value) if value.ndim else None,
        create_graph=create_graph,
        allow_unused=True,
    )
    unused = tuple(name for name, slope in zip(variables, slopes, strict=True) if slope is None)
    slopes = dict(zip(variables, filled(slopes, variables.values()), strict=True))
    return Gradient(slopes, value.detach(), trees.detach(auxiliary), unused)


def differentiates_twice() -> bool:
    """Whether a loss is being evaluated here whose gradient will be differentiated. A layer may then trade time of the
    first derivative for time of the second; its value must stay the same."""
    return _twice.get()


def applies_hooks() -> bool:
    """Whether a loss is being evaluated here for a training step. A parameter's hooks change what is trained with, not
    what the derivative of an objective is."""
    return not _objective.get()


def first_time(hook: Callable[..., Any]) -> Callable[[Tensor], Tensor | None]:
    """The hook on the gradient of a call, which is taken once; products differentiate that gradient, and cotangents
    of theirs that reach the parameter are no gradients."""
    pending = [True]
    return lambda gradient: hook(gradient) if pending and pending.pop() else None


def evaluate_objective(objective: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The objective, whose derivative is to be the mathematical one."""
    return _evaluate_within(_objective, objective, *arguments)


def _evaluate_for_two(loss: Loss, variables: Params) -> tuple[Tensor, Any]:
    return _evaluate_within(_twice, loss, variables)


def _evaluate_within(purpose: ContextVar[bool], function: Callable[..., Any], *arguments: Any) -> Any:
    if torch.compiler.is_compiling():
        return function(*arguments)
    token = purpose.set(True)
    try:
        return function(*arguments)
    finally:
        purpose.reset(token)


def pull(outputs: Sequence[Tensor], forms: Sequence[Tensor], inputs: trees.Tree) -> trees.Tree:
    """The vector-Jacobian product forms·∂outputs/∂inputs over a recorded graph, which is kept for the next one."""
    pairs = [(output, form) for output, form in zip(outputs, forms, strict=True) if output.requires_grad]
    targets = trees.leaves(inputs)
    if not targets or not pairs:
        return trees.zeros(inputs)
    slopes = torch.autograd.grad(
        [output for output, _ in pairs],
        targets,
        [form for _, form in pairs],
        retain_graph=True,
        allow_unused=True,
    )
    return trees.like(inputs, filled(slopes, targets))


def filled(slopes: Iterable[Tensor | None], variables: Iterable[Tensor]) -> list[Tensor]:
    """Zeros where `torch.autograd.grad` found no dependence. (Its own `materialize_grads` takes longer.)"""
    return [torch.zeros_like(x) if slope is None else slope for slope, x in zip(slopes, variables, strict=True)]
