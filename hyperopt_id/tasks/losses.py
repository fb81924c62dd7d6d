r"""What a module's outputs are measured by: a function of (outputs, targets) with one number as its value.

.. math:: L = c(\mathrm{outputs}, \mathrm{targets})

"cross_entropy" and "mse" are means over rows, so a whole split is the weighted mean of its blocks. Of any other
function nothing of the kind is known (class weights divide by the sum of the weights of the rows at hand), so it is
evaluated once, on the outputs of the whole split.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperopt_id import trees
from hyperopt_id.arguments import first_line
from hyperopt_id.tasks.data import Dataset
from hyperopt_id.tasks.outputs import converted

LossFunction = Callable[[Any, Tensor], Tensor]
IGNORED = -100  # the class of rows that torch's cross-entropy leaves out


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of -log softmax(outputs)[target]: outputs [B, classes, ...], targets int64 [B, ...], or probabilities of
    the shape of the outputs."""
    return F.cross_entropy(outputs, targets)


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over all entries. Outputs have the shape of the targets; a column [B, 1] and a row [B] may meet, and
    nothing is broadcast."""
    if outputs.shape != targets.shape:
        if not _is_column(outputs, targets):
            shapes = f"outputs have shape {list(outputs.shape)}, targets {list(targets.shape)}"
            raise ValueError(f"mse: {shapes}: let the model return outputs of the targets' shape")
        outputs = outputs.reshape(targets.shape)
    return F.mse_loss(outputs, targets)


def _is_column(outputs: Tensor, targets: Tensor) -> bool:
    """Whether one is [B] and the other [B, 1]."""
    row, column = sorted((tuple(outputs.shape), tuple(targets.shape)), key=len)
    return len(row) == 1 and column == (*row, 1)


MEANS: dict[str, LossFunction] = {"cross_entropy": cross_entropy, "mse": mean_squared_error}


@dataclass(frozen=True)
class Criterion:
    """`function(outputs, targets)` by its `name` in reports; `by_rows`: a mean over rows, see above."""

    name: str
    function: LossFunction
    by_rows: bool


def as_criterion(given: str | LossFunction, dataset: Dataset, name: str | None = None) -> Criterion:
    """The criterion of that name, or the callable given, as "custom" where it has no name of its own.

    An `nn.Module` is copied to the data's device and type. Raises ValueError if it has parameters, which nothing would
    train, or if it is neither.
    """
    if isinstance(given, str):
        if given not in MEANS:
            allowed = f"use one of {', '.join(MEANS)}, or a function (outputs, targets) -> loss"
            raise ValueError(f"unknown criterion {given!r}: {allowed}")
        return Criterion(name or given, MEANS[given], by_rows=True)
    if isinstance(given, type) or not callable(given):
        made = f"the class {given.__name__}: give {given.__name__}()" if isinstance(given, type) else repr(given)
        raise ValueError(
            f"a criterion is one of {', '.join(MEANS)} or a function (outputs, targets) -> loss, not {made}"
        )
    name = name or _name_of(given)
    if isinstance(given, nn.Module):
        if any(parameter.requires_grad for parameter in given.parameters()):
            unknown = ", ".join(key for key, parameter in given.named_parameters() if parameter.requires_grad)
            raise ValueError(
                f"criterion {name} has parameters of its own ({unknown}), which would not be trained: "
                "make them part of the model, or set requires_grad = False"
            )
        given = copy.deepcopy(given).to(dataset.targets.device, dataset.dtype)
    return Criterion(name, given, by_rows=False)


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return name if name.isidentifier() else "custom"


def measure(criterion: Criterion, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
    """The loss, and the accuracy where the outputs are scores of classes and the targets are classes."""
    values = {"loss": trees.wide(criterion.function(outputs, targets).detach())}
    if criterion.name not in (*MEANS, "custom", "loss"):
        values[criterion.name] = values["loss"]
    scores = isinstance(outputs, Tensor) and outputs.ndim > 1 and outputs.is_floating_point() and outputs.shape[1] > 1
    classes = targets.dtype == torch.int64 and (targets.ndim == 1 or criterion.function is cross_entropy)
    if scores and classes and outputs.ndim == targets.ndim + 1:
        hits = (outputs.argmax(1) == targets).to(trees.wide(outputs).dtype)
        values["accuracy"] = hits.sum() / (targets != IGNORED).sum()
    return values


@torch.enable_grad()
def fitted(criterion: Criterion, outputs: Any, targets: Tensor, dataset: Dataset) -> Criterion:
    """The criterion for outputs and targets of these shapes (a few rows of `dataset`), where a column meets a row: a
    function that would broadcast [B, 1] and [B] to [B, B] is given outputs of the targets' shape.

    Raises ValueError unless it takes them, always gives the same for them, and gives one real number that depends on
    the outputs.
    """
    if criterion.by_rows:
        _check_outputs(criterion, outputs, targets, dataset)
        if criterion.function is cross_entropy and int(dataset.targets.min()) == IGNORED:
            criterion = replace(criterion, by_rows=False)  # its mean is that of the other rows
    elif isinstance(outputs, Tensor) and outputs.shape != targets.shape and _is_column(outputs, targets):
        criterion = _without_broadcasting(criterion, outputs, targets)
    with torch.random.fork_rng(devices=[]):
        loss, again = (_value(criterion, outputs, targets) for _ in range(2))
    check_number(loss, f"criterion {criterion.name}")
    if not torch.equal(loss.nan_to_num(), again.nan_to_num()):
        raise ValueError(
            f"criterion {criterion.name} gives {loss.item():g} and then {again.item():g} for the same outputs: "
            "it may neither remember anything nor draw random numbers"
        )
    if not loss.requires_grad:
        raise ValueError(
            f"criterion {criterion.name} gives a loss without a gradient, so that nothing would be trained: it may not "
            "detach the outputs, nor compute with anything but torch"
        )
    return criterion


def _without_broadcasting(criterion: Criterion, outputs: Tensor, targets: Tensor) -> Criterion:
    """A criterion that makes something else of a column than of a row broadcasts it; one that needs a column, or takes
    both for the same, stays as it is."""
    function = criterion.function
    aligned = replace(criterion, function=lambda outputs, targets: function(outputs.reshape(targets.shape), targets))
    values = []
    for one in (criterion, aligned):
        try:
            values.append(_value(one, outputs, targets))
        except ValueError:
            values.append(None)
    given, reshaped = values
    if not isinstance(reshaped, Tensor):
        return criterion if isinstance(given, Tensor) else aligned  # whose error is not about the shapes
    alike = isinstance(given, Tensor) and given.shape == reshaped.shape and torch.allclose(given, reshaped)
    return criterion if alike else aligned


def check_number(loss: Any, what: str) -> None:
    """Raise ValueError unless a loss is one real number, a 0-d floating-point tensor."""
    if not isinstance(loss, Tensor):
        raise ValueError(f"{what} gives {type(loss).__name__}: a loss is a tensor of one number")
    if loss.ndim:
        raise ValueError(f"{what} gives values of shape {list(loss.shape)}: a loss is one number, take their .mean()")
    if not loss.is_floating_point():
        raise ValueError(f"{what} gives {loss.dtype}: a loss is one real floating-point number")


def _value(criterion: Criterion, outputs: Any, targets: Tensor) -> Tensor:
    inputs = converted(_variable, outputs)
    with warnings.catch_warnings():
        # PyTorch's own losses broadcast outputs [B, 1] and targets [B] to [B, B], with this warning.
        warnings.filterwarnings("error", message="Using a target size")
        try:
            return criterion.function(inputs, targets.clone())
        except Exception as error:  # whatever a function of the user's own raises
            given = f"outputs {describe(outputs)} and targets {describe(targets)}"
            why = first_line(error)
            raise ValueError(f"criterion {criterion.name} does not take {given}: {why}") from error


def _variable(output: Tensor) -> Tensor:
    """Something with a gradient that a criterion may write to, as to outputs of a model."""
    real = output.is_floating_point() or output.is_complex()
    return output.detach().requires_grad_(real).clone()


def describe(value: Any) -> str:
    """`[3, 1] float32`, or the type of what is no tensor."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def _check_outputs(criterion: Criterion, outputs: Any, targets: Tensor, dataset: Dataset) -> None:
    """What "cross_entropy" and "mse" need, in their words."""
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the model returns {type(outputs).__name__}: its forward must return one tensor of outputs")
    given = list(outputs.shape[1:])
    if criterion.function is mean_squared_error:
        if not targets.is_floating_point():
            raise ValueError(f"mse needs targets that are real numbers, these are {targets.dtype}: use targets.float()")
        if outputs.shape != targets.shape and not _is_column(outputs, targets):
            needed = list(targets.shape[1:]) or [1]
            raise ValueError(f"mse: outputs of the model have shape {given} each, the targets need {needed}")
        return
    each = list(targets.shape[1:])
    if targets.is_floating_point():
        if given != each or len(given) < 1:
            raise ValueError(
                f"cross_entropy needs integer targets, or probabilities of the outputs' shape, {given} each; these are "
                f"real numbers, {each} each: use mse"
            )
        return
    if targets.dtype != torch.int64:
        raise ValueError(f"cross_entropy needs integer targets, int64, these are {targets.dtype}: use targets.long()")
    negative = dataset.targets[(dataset.targets < 0) & (dataset.targets != IGNORED)]
    if len(negative):
        raise ValueError(
            f"cross_entropy needs classes counted from 0, and targets hold {int(negative[0])} (only {IGNORED} has a "
            "meaning: rows that are left out)"
        )
    classes = int(dataset.targets.max()) + 1
    if len(given) != 1 + len(each) or given[1:] != each or given[0] < classes:
        turned = given[:-1] == each and given[-1] >= classes
        cure = ": let forward return outputs.movedim(-1, 1)" if turned and each else ""
        needed = f"{classes} classes need {[classes, *each]}"
        raise ValueError(f"cross_entropy: outputs have shape {given} each, {needed}{cure}")
