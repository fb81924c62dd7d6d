"""What a user hands to `assemble`, checked before anything is computed with it. Every error is a ValueError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.arguments import check_kind
from hyperopt_id.build.vectorized import few_rows
from hyperopt_id.derivatives import gradient
from hyperopt_id.hypergrad import Engine
from hyperopt_id.rules import UpdateRule
from hyperopt_id.space import Hyper, Space
from hyperopt_id.tasks.losses import check_number
from hyperopt_id.tasks.task import Batch, Task

KINDS: dict[str, tuple[type, str]] = {
    "task": (Task, "a Task, such as supervised(...) makes"),
    "rule": (UpdateRule, "an UpdateRule, such as rules.sgd()"),
    "space": (Space, "a Space, such as Space({'lr': Hyper(0.1, LOG10), ...})"),
    "engine": (Engine, "an Engine, such as hypergrad.neumann(terms=5)"),
    "meta": (UpdateRule, "an UpdateRule, such as rules.adam()"),
    "meta_space": (Space, "a Space, such as Space({'lr': Hyper(0.05), ...})"),
}
FEWEST, TRIED_STEPS = 2, 3  # rows and steps in which parameters without a gradient are looked for


def check_kinds(**given: Any) -> None:
    """Raise ValueError unless the arguments of `assemble` are of the kinds in `KINDS`."""
    for name, value in given.items():
        check_kind(name, value, *KINDS[name])


def check_names(what: str, space: Space, rule: UpdateRule) -> None:
    """Raise ValueError unless `space` holds exactly the hyperparameters of its rule."""
    missing = [name for name in rule.hyperparameters if name not in space.hypers]
    unknown = [name for name in space.hypers if name not in rule.hyperparameters]
    if missing or unknown:
        raise ValueError(
            f"{what} has to hold the hyperparameters of its rule, {', '.join(rule.hyperparameters)}: "
            f"missing {', '.join(missing) or 'nothing'}, unknown {', '.join(unknown) or 'nothing'}"
        )


def as_starts(given: Sequence[Mapping[str, Any]] | None, space: Space, runs: int) -> list[dict[str, Any]]:
    """The starting values of each run, by name: what each `Hyper` could have as its `init`."""
    if given is None:
        return [{} for _ in range(runs)]
    if isinstance(given, Mapping | str) or not isinstance(given, Sequence):
        raise ValueError(f"starts must be a list of mappings from name to value, one for each run, not {given!r}")
    if len(given) != runs:
        raise ValueError(f"starts must hold a mapping for each of the {runs} seeds, but it holds {len(given)}")
    starts = []
    for run, start in enumerate(given):
        if not isinstance(start, Mapping):
            raise ValueError(f"starts[{run}] must be a mapping from name to value, not {start!r}")
        unknown = [str(name) for name in start if name not in space.hypers]
        if unknown:
            known = ", ".join(space.hypers)
            raise ValueError(f"starts[{run}] names {', '.join(unknown)}; the space holds {known}")
        named = {name: _start(space.hypers[name], value, f"starts[{run}]: {name}") for name, value in start.items()}
        starts.append(named)
    return starts


def _start(hyper: Hyper, value: Any, what: str) -> Any:
    if isinstance(hyper.init, Tensor):
        if not isinstance(value, Tensor) or value.shape != hyper.init.shape or not value.isfinite().all():
            raise ValueError(f"{what} must be a tensor of finite numbers of shape {list(hyper.init.shape)}")
        return value
    try:
        number = float("nan") if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = float("nan")
    if not -float("inf") < number < float("inf"):
        raise ValueError(f"{what} must be a finite number, not {value!r}")
    try:
        hyper.starting_at(number)
    except ValueError as error:
        raise ValueError(f"{what}={number:g} cannot be where it starts ({error})") from None
    return number


@torch.enable_grad()
def check_task(task: Task, batch: Batch, seed: int) -> None:
    """Raise ValueError unless the loss on `batch`, that of a single run, is one real number that depends on the
    parameters."""
    params, buffers = task.init(seed)
    if not params:
        raise ValueError("the task has no parameters: its init returns (params, buffers), with one to train or more")
    loss = task.loss(trees.variables(params), buffers, batch)
    if not isinstance(loss, tuple) or len(loss) != 2:
        raise ValueError("the task's loss must return (loss, (buffers, metrics))")
    check_number(loss[0], "the task's loss")
    if not loss[0].requires_grad:
        raise ValueError("the task's loss depends on no parameter, so that nothing would be trained: is it detached?")


@torch.enable_grad()
def optional_parameters(task: Task, batch: Batch, seed: int) -> frozenset[str]:
    """Names of the parameters that the loss does not use in one of a few steps: never, or where forward takes another
    branch, which it does for few rows sooner than for many."""
    unused: set[str] = set()
    params, buffers = task.init(seed)
    variables = trees.variables(params)
    try:
        few = few_rows(task, batch, FEWEST)
        for _ in range(TRIED_STEPS):
            here = gradient(lambda w, b=buffers, batch=few: task.loss(w, b, batch), variables)
            unused.update(here.unused)
            buffers = here.auxiliary[0]
    except (ValueError, RuntimeError, IndexError, TypeError, AssertionError):  # a model that needs whole batches
        buffers = task.init(seed)[1]
        unused.update(gradient(lambda w: task.loss(w, buffers, batch), variables).unused)
    return frozenset(unused)
