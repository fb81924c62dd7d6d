r"""Whether an optimizer can be part of a run: how its steps are called, and whether it comes back to the last bit.

Two optimizers, made by the same function for the same weights, minimize

.. math:: L_t(w) = \sum_i \sqrt{1 + (w_i - c_{ti})^2}, \qquad c_{ti} \sim N(0, 1) \text{ anew for every step } t,

whose gradients are different in every step, and neither 0 nor large. One lives on; of the other a tree is captured
after every step, and the next step is taken by an optimizer that is newly made and restored from it. Weights have to be
equal in every bit after each of `STEPS` steps (so that state which appears late is seen), and so have the trees.
"""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.arguments import first_line
from hyperopt_id.optim.capture import capture
from hyperopt_id.optim.packed import pack, unpack
from hyperopt_id.optim.plain_make import Make, as_weights, made
from hyperopt_id.optim.restore import restore
from hyperopt_id.trees import Params

STEPS = 20
NUMBERS = 20_000_000  # parameters times steps that are tried, for large models with fewer steps
FEWEST = 4


class Calling(NamedTuple):
    """Whether gradients are there before `step` is called, and whether `step` is given a closure that finds them."""

    before: bool
    closure: bool


class Checked(NamedTuple):
    """`entries` are examples of what the optimizer keeps of each parameter in `state`, `size` is that of all that it
    keeps, in bytes."""

    calling: Calling
    entries: dict[str, dict[str, Any]]
    size: int


CALLINGS = (Calling(True, False), Calling(True, True), Calling(False, True))


def take_step(optimizer: Any, calling: Calling, evaluate: Callable[[], Tensor]) -> Tensor:
    """One step of the optimizer; `evaluate` finds the loss and leaves its gradients in the parameters. Returns the loss
    before the step."""
    losses = []

    def closure() -> Tensor:
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = evaluate()
        losses.append(loss.detach())
        return loss

    if calling.before:
        closure()
    if calling.closure:
        optimizer.step(closure)
    else:
        before = torch.get_rng_state()
        optimizer.step()
        if not torch.equal(before, torch.get_rng_state()):
            raise ValueError(_draws(type(optimizer).__name__))
    if not losses:
        raise ValueError(f"{type(optimizer).__name__} has taken a step without asking for the loss")
    return losses[0]


def _draws(name: str) -> str:
    return f"{name} draws from the global random generators, so its steps could not be repeated; take another optimizer"


def switch(optimizer: Any, mode: str) -> None:
    """To the weights for mode "train" or "eval", where the optimizer has two kinds."""
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


def check(make: Make, params: Params) -> Checked:
    """How steps of the optimizer are called, and what it keeps. `params` are of the run; they are not changed.

    Raises ValueError, one line with the optimizer's name, if it is not made or not of the weights it is given, if its
    steps fail, if they draw from the global random generators, or if it cannot be restored.
    """
    with torch.enable_grad(), _untouched() as drawn, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the optimizer, about what a trial is like
        name = made(make, as_weights(params))
        calling = fault = checked = None
        try:
            calling = _calling(make, params)
            checked = _compare(make, params, calling)
        except Exception as error:  # whatever its steps raise, among them those of one that was restored
            fault = error
        if drawn():
            raise ValueError(_draws(name)) from fault
        if calling is None:
            raise ValueError(f"{name} takes no step, with and without a closure: {first_line(fault)}") from fault
        if checked is None:
            raise ValueError(
                f"{name} cannot be stored with a run, for {_reason(fault)}; take another optimizer, and let what "
                "its hooks remember follow from the number of steps taken, which is given when it is made"
            ) from fault
        return checked


def _problem(params: Params, step: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(step)
    real = [torch.view_as_real(p) if p.is_complex() else p for p in params.values()]
    targets = [torch.randn(p.shape, generator=generator).to(p.detach()) for p in real]

    def evaluate() -> Tensor:
        weights = (torch.view_as_real(p) if p.is_complex() else p for p in params.values())
        parts = [((w - c).square() + 1.0).sqrt().sum() for w, c in zip(weights, targets)]
        loss = torch.stack(parts).sum()
        loss.backward()
        return loss

    return evaluate


def try_step(optimizer: Any, calling: Calling, params: Params) -> None:
    """Take one step of the trial, by an optimizer of these parameters."""
    with torch.enable_grad(), _untouched(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _train_and_evaluate(optimizer, calling, params, 0)


def _train_and_evaluate(optimizer: Any, calling: Calling, params: Params, step: int) -> None:
    """A hyper-update of one step."""
    switch(optimizer, "train")
    take_step(optimizer, calling, _problem(params, step))
    switch(optimizer, "eval")


def _calling(make: Make, params: Params) -> Calling:
    """The first way to call that works for two steps. A closure that `step` demands finds the first gradients, too."""
    errors = []
    for calling in CALLINGS:
        weights = as_weights(params)
        optimizer = make(weights, 0)
        if calling.before and _demands_a_closure(optimizer):
            continue
        try:
            for step in range(2):
                _train_and_evaluate(optimizer, calling, weights, step)
            return calling
        except Exception as error:  # whatever it stumbles over
            errors.append(error)
    raise ValueError(first_line(errors[0])) from errors[0]


def _demands_a_closure(optimizer: Any) -> bool:
    try:
        first = next(iter(inspect.signature(optimizer.step).parameters.values()), None)
    except ValueError:
        return False
    return first is not None and first.default is first.empty and first.kind is not first.VAR_POSITIONAL


def _compare(make: Make, params: Params, calling: Calling) -> Checked:
    """What is known after both optimizers have taken their steps. Raises ValueError if they differ."""
    weights = as_weights(params)
    living = make(weights, 0)
    tree, now = trees.map(torch.clone, capture(living, weights)), params
    numbers = max(1, sum(p.numel() for p in params.values()))
    for step in range(min(STEPS, max(FEWEST, NUMBERS // numbers))):
        _train_and_evaluate(living, calling, weights, step)
        again = as_weights(now)
        restored = make(again, step)
        restore(restored, again, unpack(pack(tree)))
        _train_and_evaluate(restored, calling, again, step)
        tree, now = trees.map(torch.clone, capture(restored, again)), trees.detach(again)
        if place := difference(now, trees.detach(weights), "weights"):
            raise ValueError(f"restored, it takes another step number {step + 1} ({place} differ)")
        if place := difference(tree, capture(living, weights), ""):
            raise ValueError(f"after step {step + 1}, what it keeps of the past is not restored ({place})")
    state = getattr(living, "state", {})
    entries = {name: dict(state[weight]) for name, weight in weights.items() if weight in state}
    return Checked(calling, entries, sum(leaf.nbytes for leaf in trees.leaves(tree)))


def difference(left: Any, right: Any, where: str) -> str | None:
    """Where two trees differ, to the last bit, or None; NaN equals NaN."""
    if type(left) is not type(right):
        return where
    if isinstance(left, Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape and left.device == right.device
        return None if same and torch.equal(left.isnan(), right.isnan()) and _equal(left, right) else where
    if isinstance(left, dict):
        if list(left) != list(right):
            return where
        return next((d for k in left if (d := difference(left[k], right[k], f"{where}/{k}"))), None)
    if isinstance(left, list | tuple):
        if len(left) != len(right):
            return where
        return next((d for i, (a, b) in enumerate(zip(left, right)) if (d := difference(a, b, f"{where}/{i}"))), None)
    return None if left == right or (left != left and right != right) else where


def _equal(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left, right) or torch.equal(left.nan_to_num(), right.nan_to_num())


@contextmanager
def _untouched() -> Iterator[Callable[[], bool]]:
    """The global random generators are brought back at the end; the function says whether they have been drawn from."""
    before = _random_state()

    def drawn() -> bool:
        return before != _random_state()

    state, numbers, own = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield drawn
    finally:
        torch.set_rng_state(state)
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(own)


def _random_state() -> tuple[bytes, Any, Any]:
    numbers: Any = np.random.get_state()  # noqa: NPY002 - what an optimizer may draw from
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), (numbers[1].tobytes(), *numbers[2:])


def _reason(error: BaseException | None) -> str:
    """What an error says; those of Python, such as a KeyError, are no sentences."""
    line = first_line(error)
    return line if isinstance(error, ValueError) else f"restored, its step raises {type(error).__name__}: {line}"
