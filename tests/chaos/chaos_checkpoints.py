"""Damaged, foreign and edited checkpoints of a run that is resumed.

A trial changes the newest checkpoint of an interrupted run, sometimes all of them. Right is a resume with the numbers
of a run that nothing interrupted, from a checkpoint before if this one will not do; where none is left, one line says
so, and nothing is changed. Edits that the structure shows are tried with a right digest, too, as of a file that a
program has written by intention.
"""

import copy
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import damage
import torch
from outcomes import Outcome
from resuming import Runs, judge
from tiny_runs import SETTINGS
from torch import Tensor

from hyperopt_id import checkpoint

COUNT = 240
OTHERS = (  # options that make another run, and those that make one that looks the same
    *("seed=7", "space.lr.init=0.2", "inner.steps_per_update=3", "inner.updates=6", "space.weight_decay.init=0.01"),
    *("population.runs=2", "task.dimension=3", "dtype=float64", "hypergradient.terms=1", "meta.lr=0.01"),
)


def trials(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    runs = Runs(folder)
    for number in range(count):
        yield trial(number, seed, folder, runs)


def trial(number: int, seed: int, folder: Path, runs: Runs) -> Outcome:
    chance = random.Random(f"checkpoints {seed} {number}")
    setting = list(SETTINGS)[number % len(SETTINGS)]
    cut = runs.interrupted(setting, folder / f"cut_{number}", chance.choice((3, 4, 5)))
    paths = sorted((cut / "checkpoints").glob("step_*.pt"), reverse=True)
    hit = paths if chance.random() < 0.15 else paths[:1]
    kind = chance.choice(list(KINDS))
    foreign = partial(_foreign, runs, setting)
    what = [setting, kind, *(f"{path.name}: {KINDS[kind](path, chance, foreign)}" for path in hit)]
    must_go = len(hit) < len(paths) and "a folder with a file" not in what[-1]
    outcome = judge(", ".join(what), runs.whole(setting), cut, may_be_refused=not must_go)
    if outcome.fault is None:
        shutil.rmtree(cut)
    return outcome


Foreign = Callable[[random.Random], tuple[str, Path]]
Record = dict[str, Any]


def _foreign(runs: Runs, setting: str, chance: random.Random) -> tuple[str, Path]:
    """The directory of another run."""
    if chance.random() < 0.4:
        other = chance.choice([name for name in SETTINGS if name != setting])
        return other, runs.whole(other)
    for option in chance.sample(OTHERS, len(OTHERS)):
        try:
            return option, runs.whole(setting, option)
        except AssertionError:  # this setting cannot have it
            continue
    raise AssertionError("seed=7 is possible everywhere")


def _damaged(path: Path, chance: random.Random, foreign: Foreign) -> str:
    return chance.choice((*damage.COMMON, damage.records, damage.special))(path, chance)


def _exchanged(path: Path, chance: random.Random, foreign: Foreign) -> str:
    """Another checkpoint under this one's name."""
    what, directory = foreign(chance)
    if chance.random() < 0.2:
        what, directory = "of the run itself", path.parents[1]
    given = chance.choice(sorted((directory / "checkpoints").glob("step_*.pt")))
    same = directory / "checkpoints" / path.name
    given = same if same.exists() and same != path and chance.random() < 0.7 else given
    path.write_bytes(given.read_bytes())
    return f"{given.name} {what}"


def _grafted(path: Path, chance: random.Random, foreign: Foreign) -> str:
    """A part of another run's checkpoint in this one, with the digest of either, or a right one."""
    what, directory = foreign(chance)
    given = torch.load(chance.choice(sorted((directory / "checkpoints").glob("step_*.pt"))), weights_only=True)
    record = torch.load(path, weights_only=True)
    part = chance.choice(("identity", "tree", "step", "digest", "format", "run"))
    if part == "run":
        record["tree"]["run"] = given["tree"]["run"]
    else:
        record[part] = given[part]
    torch.save(record, path)
    return f"{part} of {what}"


def _edited(path: Path, chance: random.Random, foreign: Foreign) -> str:
    """Numbers that are possible, but are not those that were saved."""
    record = torch.load(path, weights_only=True)
    tensors = [(place, leaf) for place, leaf in _leaves(record["tree"]) if isinstance(leaf, Tensor) and leaf.numel()]
    place, leaf = chance.choice(tensors)
    how = chance.choice(("last bit", "scaled", "shifted", "zero", "reversed"))
    changed = leaf.clone()
    if how == "last bit":
        changed.view(-1).view(torch.uint8)[0] ^= 1
    elif how == "reversed":
        changed = changed.flip(-1) if changed.ndim else changed + 1
    else:
        changed = {"scaled": changed * 2, "shifted": changed + 1, "zero": changed * 0}[how].to(leaf.dtype)
    _put(record["tree"], place, changed)
    torch.save(record, path)
    return f"{'/'.join(map(str, place))} {how}"


def _restructured(path: Path, chance: random.Random, foreign: Foreign) -> str:
    """Names, types, shapes and numbers that a checkpoint of this run cannot have, with a right digest."""
    record = torch.load(path, weights_only=True)
    places = [place for place, _ in _nodes({"tree": record["tree"]}) if place]
    place = chance.choice(places)
    value = _get(record, place)
    how = chance.choice(list(CHANGES))
    try:
        changed = CHANGES[how](value)
    except (TypeError, RuntimeError, AttributeError, ValueError):  # there is no such change of this value
        how, changed = "another thing", {"another": [1]}
    if changed is REMOVED:
        parent = _get(record, place[:-1])
        if isinstance(parent, tuple):
            parent = list(parent)
        del parent[place[-1]]
        _put(record, place[:-1], parent)
    else:
        _put(record, place, changed)
    is_seen = how not in VALUES and place[1:2] not in (("best",), ("final",))  # whose names nothing else tells
    if is_seen and chance.random() < 0.7:
        with suppress(RuntimeError):  # of a tensor that has no bytes
            record["digest"] = checkpoint._digest(record)
    torch.save(record, path)
    return f"{'/'.join(map(str, place))} {how}"


REMOVED = object()
VALUES = ("not finite", "infinite", "negative", "large")
CHANGES: dict[str, Callable[[Any], Any]] = {
    "removed": lambda value: REMOVED,
    "double": lambda value: value.double() if value.dtype != torch.float64 else value.float(),
    "complex": lambda value: value.to(torch.complex64),
    "integers": lambda value: value.long() if value.is_floating_point() else value.float(),
    "another axis": lambda value: value.unsqueeze(0),
    "longer": lambda value: torch.cat([value, value]),
    "empty": lambda value: value[:0],
    "expanded": lambda value: value[:1].expand(3, *value.shape[1:]),
    "sparse": lambda value: value.to_sparse(),
    "a parameter": lambda value: torch.nn.Parameter(value),
    "not finite": lambda value: torch.full_like(value, float("nan")) if value.is_floating_point() else value[:0],
    "infinite": lambda value: torch.full_like(value, float("inf")) if value.is_floating_point() else value[:0],
    "a number": lambda value: 1.0 if not isinstance(value, int | float) else "1",
    "text": lambda value: "text\n" * 1000,
    "none": lambda value: None if value is not None else 1,
    "a list of it": lambda value: [value],
    "in a dictionary": lambda value: {"more": value},
    "negative": lambda value: -1 - abs(value) if isinstance(value, int | float) else value.unsqueeze(-1),
    "large": lambda value: 10**30 if isinstance(value, int) else value.unsqueeze(-1),
    "more": lambda value: {**value, "more": 1} if isinstance(value, dict) else [value, value],
    "renamed": lambda value: {f"{name}x": entry for name, entry in value.items()},
    "numbered": lambda value: dict(enumerate(value.values())),
    "nothing in it": lambda value: type(value)(),
}


def _nodes(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield place, tree
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for name, value in entries:
        yield from _nodes(value, (*place, name))


def _leaves(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
    return [(place, value) for place, value in _nodes(tree) if not isinstance(value, dict | list | tuple)]


def _get(tree: Any, place: tuple[Any, ...]) -> Any:
    for name in place:
        tree = tree[name]
    return tree


def _put(tree: Any, place: tuple[Any, ...], value: Any) -> None:
    parent = _get(tree, place[:-1])
    if isinstance(parent, tuple):
        changed = list(parent)
        changed[place[-1]] = value
        _put(tree, place[:-1], tuple(changed))
    else:
        parent[place[-1]] = value


def _whole_record(path: Path, chance: random.Random, foreign: Foreign) -> str:
    record = torch.load(path, weights_only=True)
    nested: Any = 1
    for _ in range(200):
        nested = [nested]
    values: list[Any] = [
        *([], {}, None, 1, "text", torch.zeros(3), [record], {"tree": record}, record["tree"], nested),
        *({**record, "format": value} for value in (0, 2, -1, "1", True, None, 10**400)),
        *({**record, "step": value} for value in (record["step"] - 1, -1, "4", 4.0, None)),
        *({**record, "identity": value} for value in (None, 7, [], {}, {"digests": {}}, {"digests": 3}, "x\ny")),
        *({**record, "tree": value} for value in (None, {}, [], 1, {"run": {}}, copy.copy(record))),
        *({**record, "digest": value} for value in ("", "0" * 64, 7, None, [1], {})),
        {"model_state_dict": {"weight": torch.zeros(3)}, "epoch": 4},
        {name: value for name, value in record.items() if name != "tree"},
        damage.Harmful(),
        {**record, "more": damage.Harmful()},
    ]
    number = chance.randrange(len(values))
    torch.save(values[number], path, _use_new_zipfile_serialization=chance.random() < 0.9)
    return f"another record, {number}"


KINDS: dict[str, Callable[[Path, random.Random, Foreign], str]] = {
    "damaged": _damaged,
    "exchanged": _exchanged,
    "grafted": _grafted,
    "edited": _edited,
    "restructured": _restructured,
    "a record": _whole_record,
}
