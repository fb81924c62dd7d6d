"""What a run keeps of an optimizer between hyper-updates, and what a checkpoint holds of it: see `plain`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.arguments import first_line
from hyperopt_id.optim.capture import capture
from hyperopt_id.optim.packed import pack, unpack
from hyperopt_id.optim.plain_check import Checked, try_step
from hyperopt_id.optim.plain_make import Make, as_weights
from hyperopt_id.optim.restore import restore
from hyperopt_id.rules import State
from hyperopt_id.tasks.task import Task
from hyperopt_id.trees import Params


class Trainer(NamedTuple):
    """What is the same for all members; `numbers` are the entries of groups that are reported."""

    task: Task
    make: Make
    checked: Checked
    numbers: list[str]
    clip_norm: float | None


def numbers_of(make: Make, params: Params) -> list[str]:
    groups = _groups(make(as_weights(params), 0))
    return [key for key, value in groups[0].items() if _number(value) is not None] if groups else []


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    """Those of `param_groups`, which an optimizer that wraps another may lack."""
    return list(getattr(optimizer, "param_groups", []))


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 and not value.is_complex() else None
    return value if isinstance(value, bool | int | float) else None


def stored(trainer: Trainer, optimizer: Any, params: Params, taken: int) -> State:
    """The optimizer, of which its tensors become part without being copied."""
    device = next(iter(params.values())).device
    values = {key: [_number(group.get(key)) for group in _groups(optimizer)] for key in trainer.numbers}
    groups = {
        key: torch.tensor([math.nan if x is None else x for x in row], dtype=torch.float64, device=device)
        for key, row in values.items()
    }
    own = trees.Apart((pack(capture(optimizer, params)),))
    return {"step": torch.tensor(taken, device=device), "groups": groups, "optimizer": own}


def restored(trainer: Trainer, params: Params, state: State) -> Any:
    """An optimizer of these parameters in the state that was stored."""
    optimizer = trainer.make(params, int(state["step"]))
    (own,) = state["optimizer"]
    restore(optimizer, params, unpack(own))
    return optimizer


def adopt(trainer: Trainer, device: torch.device, runs: dict[str, Any]) -> dict[str, Any]:
    """Runs as a checkpoint holds them, whose optimizers have been restored and have taken a step, on copies of their
    weights. Earlier versions stored numbers of `param_groups`, and what `state` has of parameters.

    Raises ValueError if an optimizer cannot be restored.
    """
    try:
        z = runs["z"]
        state = z["state"]
        members = [_adopted(trainer, device, z, i) for i in range(len(state["step"]))]
    except Exception as error:  # whatever a damaged state leads to
        why = first_line(error)
        raise ValueError(
            f"it: the optimizer of a run cannot be restored ({type(error).__name__}: {why}), so it is of another run"
        ) from error
    state = {"step": state["step"], "groups": state["groups"], "optimizer": {"apart": members}}
    return {**runs, "z": {**z, "state": state}}


def _adopted(trainer: Trainer, device: torch.device, z: dict[str, Any], member: int) -> dict[str, Any]:
    def own(tree: Any) -> Any:
        return trees.map(lambda leaf: leaf[member].to(device), tree)

    state, weights = z["state"], as_weights(own(z["params"]))
    if "optimizer" in state:
        stored_tree = trees.map(lambda leaf: leaf.to(device), state["optimizer"]["apart"][member])
    else:
        stored_tree = _of_earlier(trainer, weights, own(state))
    known = {"step": own(state["step"]), "optimizer": trees.Apart((stored_tree,))}
    try_step(restored(trainer, weights, known), trainer.checked.calling, weights)
    return stored_tree


def _of_earlier(trainer: Trainer, weights: Params, state: State) -> dict[str, Any]:
    taken = int(state["step"])
    optimizer = trainer.make(weights, taken)
    for key, values in state["groups"].items():
        for group, value in zip(optimizer.param_groups, values.tolist(), strict=True):
            group[key] = _as_before(group[key], value)
    for name, entries in state["parameters"].items() if taken else ():
        examples = trainer.checked.entries[name]
        optimizer.state[weights[name]] = {key: _as_before(examples[key], value) for key, value in entries.items()}
    return pack(capture(optimizer, weights))


def _as_before(like: Any, value: Any) -> Any:
    """The value as what it was: a tensor in its place, or a number of its type, where it has not become a fraction."""
    if isinstance(like, Tensor):
        return value.to(like.device, copy=True)
    number = float(value)
    return type(like)(number) if number.is_integer() else number
