"""The hyperparameter trace: natural values in the order in which training used them.

    directory/trace/trace.json                {"steps_per_row": n}, and the "digest" of all rows when they are there
    directory/trace/lr.npy                    [rows, R], where all parameters share the value
    directory/trace/lr/<parameter>.npy        [rows, R], one per tensor, or [rows, R, ...], one per element

Row i holds for the training steps i n to (i + 1) n - 1. The files have their whole length, allocated on the disk, from
the start, so that a row costs a write, and a continued run writes its rows again, over the old ones.

A resume does not need the trace, so nothing about it stands in the way of one. Where a file is missing, damaged, or of
another form, the rows before the resume are unknown: they are NaN, the log says so, and a replay refuses them. The
period of rows is that of the start. A trace that can no longer be written is given up.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from hyperopt_id.files import read_json_file, shorten, synchronize
from hyperopt_id.tasks.digests import digest
from hyperopt_id.telemetry.directory import write_json
from hyperopt_id.telemetry.trace_files import RowFile, open_rows, read_rows

LARGEST = 256 * 2**20  # bytes of a trace that `every=None` keeps whole
MOST_OPEN = 64  # files that stay open, or mapped into memory, at a time
logger = logging.getLogger("hyperopt_id")
Values = Mapping[str, Any]  # {name: tensor [R], or {parameter: tensor [R, ...]}}


class Trace:
    """An open trace; a row for every `every` hyper-updates, none if 0."""

    def __init__(self, folder: Path, every: int, rows: int, files: Mapping[str, RowFile]) -> None:
        self.every, self.rows, self._folder, self._files = every, rows, folder, files

    def due(self, update: int) -> bool:
        """Whether the values after `update` hyper-updates begin a row."""
        return self.every > 0 and update % self.every == 0 and update // self.every < self.rows

    def write(self, update: int, values: Values) -> None:
        """Write the values that hold after `update` hyper-updates; nothing where no row begins there."""
        if not self.due(update):
            return
        try:
            for name, value in _flat(values):
                self._files[name].write(update // self.every, _numpy(value))
        except OSError as error:
            self.close()
            give_up(self._folder, error)

    def finish(self) -> None:
        """Have it known what all rows are, so that a change of them is noticed."""
        if not self.every:
            return
        try:
            steps, values = read_trace(self._folder.parent)
            write_json(self._folder / "trace.json", {"steps_per_row": steps, "digest": _digest(values)})
        except (OSError, ValueError) as error:
            logger.warning("the trace in %s cannot be finished (%s)", self._folder, error)

    def close(self) -> None:
        """Close the files; rows can no longer be written."""
        for file in self._files.values():
            file.close()
        self.every = 0


def give_up(folder: Path, error: OSError) -> None:
    """Say that there is no trace, here and to those who would read it."""
    logger.warning("the trace in %s cannot be written (%s): the run goes on without one", folder, error.strerror)
    with suppress(OSError):
        (folder / "trace.json").unlink(missing_ok=True)


class _About(NamedTuple):
    every: int  # hyper-updates of a row
    known: bool  # that the files there have this period


def open_trace(
    directory: Path,
    values: Values,
    updates: int,
    steps_per_update: int,
    every: int | None,
    *,
    update: int = 0,
    rows_before: Mapping[str, Tensor] | None = None,
) -> Trace:
    """The trace of `updates` hyper-updates of values like `values`; None takes as many rows as fit into `LARGEST`.

    `update`: the hyper-update that the run continues from, before which the rows that are there count; `rows_before`:
    those rows, where another place knows them. Raises OSError where the disk has no space for a new run's.
    """
    folder = directory / "trace"
    try:
        return _opened(folder, values, updates, steps_per_update, every, update, rows_before or {})
    except OSError as error:
        if not update:
            raise
        give_up(folder, error)
        return Trace(folder, 0, 0, {})


def _opened(
    folder: Path,
    values: Values,
    updates: int,
    steps_per_update: int,
    every: int | None,
    update: int,
    rows_before: Mapping[str, Tensor],
) -> Trace:
    there = _there(folder, steps_per_update) if update else None
    if there is None and every == 0:
        return Trace(folder, 0, 0, {})
    flat = dict(_flat(values))
    about = _period(flat, updates, every, there)
    rows, known = math.ceil(updates / about.every), math.ceil(update / about.every)
    keep = len(flat) <= MOST_OPEN
    files, unknown = {}, []
    for name, value in flat.items():
        path, like = folder / f"{name}.npy", _numpy(value)
        files[name], is_new = open_rows(path, (rows, *like.shape), like.dtype, again=about.known, keep_open=keep)
        given = rows_before.get(name)
        if given is not None:
            files[name].write_all(given.numpy()[:known])
        elif is_new and known:
            files[name].forget(known)
            unknown.append(name)
    if unknown:
        logger.warning(
            "the trace of the first %d hyper-updates is lost (%s), so this run cannot be replayed",
            update,
            shorten(", ".join(unknown)),
        )
    for place in {folder, *(path.parent for path in folder.rglob("*.npy"))}:
        synchronize(place)
    write_json(folder / "trace.json", {"steps_per_row": about.every * steps_per_update})
    return Trace(folder, about.every, rows, files)


def _there(folder: Path, steps_per_update: int) -> int | None:
    """Hyper-updates of a row in the trace that is there; None where there is none that can be used."""
    try:
        steps = read_json_file(folder / "trace.json", {"steps_per_row": int})["steps_per_row"]
    except ValueError:
        return None
    return steps // steps_per_update if steps > 0 and steps % steps_per_update == 0 else None


def _period(flat: Mapping[str, Tensor], updates: int, every: int | None, there: int | None) -> _About:
    if there is not None:
        if every not in (None, there):
            logger.warning("the trace goes on with a row for every %d hyper-updates, as it was begun", there)
        return _About(there, known=True)
    if every is None:
        bytes_per_row = sum(value.numel() * value.element_size() for value in flat.values())
        every = math.ceil(updates / max(1, LARGEST // bytes_per_row))
        if every > 1:
            logger.info("the trace has a row for every %d hyper-updates; report.trace_every=1 keeps all of them", every)
    return _About(every, known=False)


def read_trace(directory: str | Path, verify: bool = False) -> tuple[int, dict[str, np.ndarray]]:
    """(steps per row, {"lr": [rows, R], or "lr/<parameter>": [rows, R, ...]}) of a run directory, mapped, not read,
    where the files are few. Raises ValueError if it has no trace, or one that is damaged, or, to `verify`, if its rows
    are not those that the run has written."""
    folder = Path(directory) / "trace"
    if not (folder / "trace.json").exists():
        raise ValueError(f"{directory} has no hyperparameter trace (trace/trace.json); was report.trace_every 0?")
    about = read_json_file(folder / "trace.json", {"steps_per_row": int, "digest?": str})
    if (steps := about["steps_per_row"]) < 1:
        raise ValueError(f"{folder / 'trace.json'}: steps_per_row: needs 1 or more, found {steps}")
    files = sorted(folder.rglob("*.npy"))
    mapped = len(files) <= MOST_OPEN
    names = [path.relative_to(folder).as_posix().removesuffix(".npy") for path in files]
    values = {name: read_rows(path, mapped) for name, path in zip(names, files, strict=True)}
    if verify and about.get("digest", own := _digest(values)) != own:
        raise ValueError(f"the trace in {directory} is damaged: its rows are not those that the run has written")
    return steps, values


def _digest(values: Mapping[str, np.ndarray]) -> str:
    return digest(*(part for name in sorted(values) for part in (name, values[name])))


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _flat(values: Values) -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{parameter}", leaf) for parameter, leaf in value.items())
        else:
            yield name, value
