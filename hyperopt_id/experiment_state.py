"""What the state in a checkpoint has to be, to be that of a run: compared with what the run starts from.

The structure of a run never changes: at every time its state has the names, shapes and types of its start. So a state
that has others belongs to another run, or has been damaged, and is refused before anything is done with it. Only what
is `trees.Apart` may have any structure; whether that is one of this run, `Parts.adopt` finds out.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hyperopt_id import population, trees
from hyperopt_id.experiment_plan import Parts, Plan
from hyperopt_id.files import check_form, shorten

OVERHEAD = 16 * 2**20, 1024  # bytes that a checkpoint may have beside its tensors, in all and for each of them


def _number(value: Any) -> bool:
    """a finite number of 0 or more"""
    return type(value) in (int, float) and 0 <= value < math.inf


def _tensors(value: Any) -> bool:
    """tensors by name"""
    return type(value) is dict and all(type(k) is str and isinstance(v, Tensor) for k, v in value.items())


def _skips(value: Any) -> bool:
    """lists of hyper-updates by member"""
    return type(value) is dict and all(
        type(member) is int and type(updates) is list and all(type(update) is int for update in updates)
        for member, updates in value.items()
    )


FORM = {
    "run": dict,
    "update": int,
    "best": _tensors,
    "final": _tensors,
    "seconds": dict,
    "skips?": _skips,
    "compile?": bool,
}


def state_check(parts: Parts, plan: Plan) -> tuple[Callable[[Any], dict[str, Any]], int]:
    """(a function that raises ValueError if a checkpoint's tree is not one of this run, or else returns it with its
    entries in the order of the run's own; the largest size in bytes that a file of such a tree can have)."""
    start = population.to_plain(parts.start())
    leaves = trees.leaves(start)
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves) + parts.growth
    whole, each = OVERHEAD
    return lambda tree: _checked(tree, start, parts, plan), 2 * size + whole + each * len(leaves)


def _checked(tree: Any, start: dict[str, Any], parts: Parts, plan: Plan) -> dict[str, Any]:
    check_form(tree, FORM, "it")
    update, runs = tree["update"], len(parts.seeds)
    if not 0 <= update <= plan.updates:
        raise ValueError(f"it is of hyper-update {update}, and this run has {plan.updates}")
    for name, value in tree["seconds"].items():
        check_form(value, _number, f"it: seconds: {shorten(str(name))}")
    for part in ("best", "final"):
        for name, value in tree[part].items():
            if value.shape != (runs,) or value.layout != torch.strided or value.is_complex():
                has = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
                raise ValueError(f"it: {part}: {shorten(name)} is {has}, needed are {runs} numbers")
    if tree["best"] and not {"update", "loss/validation"} <= tree["best"].keys():
        raise ValueError("it: best lacks update or loss/validation")
    run = conformed(parts.adopt(tree["run"]), start, "run")
    _check_finite("params", run["z"]["params"], start["z"]["params"])
    _check_raw(run["raw"])
    _check_range("diverged_at", run["diverged_at"], -1, update * plan.steps_per_update)
    _check_range("skipped", run["skipped"], 0, update)
    return {**tree, "run": run}


def conformed(found: Any, like: Any, where: str) -> Any:
    """`found`, where it has the structure of `like`; names are in its order. Raises ValueError if it has not."""
    if isinstance(like, Mapping):
        if not isinstance(found, Mapping):
            raise ValueError(f"it: {where} is {type(found).__name__}, needed is a dictionary")
        if list(like) == ["apart"]:
            return _of_members(found, len(like["apart"]), where)
        missing = [str(name) for name in like if name not in found]
        unknown = [str(name) for name in found if name not in like]
        if missing or unknown:
            said = (
                f"{what} {shorten(', '.join(names))}" for what, names in (("lacks", missing), ("has", unknown)) if names
            )
            raise ValueError(f"it: {where} {' and '.join(said)}, so it is of another run or model")
        return {name: conformed(found[name], value, f"{where}/{name}") for name, value in like.items()}
    if not isinstance(like, Tensor):
        assert isinstance(like, tuple | list)
        if type(found) is not type(like) or len(found) != len(like):
            raise ValueError(f"it: {where} is {type(found).__name__}, needed are {len(like)} entries")
        return type(like)(conformed(found[i], like[i], f"{where}/{i}") for i in range(len(like)))
    if not isinstance(found, Tensor):
        raise ValueError(f"it: {where} is {type(found).__name__}, needed is a tensor")
    if (found.dtype, found.shape, found.layout) != (like.dtype, like.shape, torch.strided):
        has, needs = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (found, like))
        raise ValueError(f"it: {where} is {has}, needed is {needs}, so it is of another run or model")
    return found


def _of_members(found: Mapping[str, Any], runs: int, where: str) -> Any:
    members = found.get("apart")
    if list(found) != ["apart"] or type(members) is not list or len(members) != runs:
        raise ValueError(f"it: {where} has not one entry for each of {runs} runs")
    return found


def _check_finite(what: str, found: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
    """A run that diverges keeps its last finite weights."""
    for name, value in found.items():
        if not bool(value.isfinite().all()) and bool(start[name].isfinite().all()):
            raise ValueError(f"it: {what}: {name} is not finite")


def _check_raw(raw: Mapping[str, Tensor]) -> None:
    for name, value in raw.items():
        if bool((value.isnan() | (value == math.inf)).any()):  # -inf is a natural value of 0
            raise ValueError(f"it: raw: {name} is not finite")


def _check_range(what: str, value: Tensor, least: int, most: int) -> None:
    if bool(((value < least) | (value > most)).any()):
        raise ValueError(f"it: {what} has a number that is not from {least} to {most}")
