"""The hyperparameter trace: natural values in the order in which training used them.

    directory/trace/trace.json                {"steps_per_row": n}, and when all rows are there their "digest" and the
                                              "identity" of the run
    directory/trace/lr.npy                    [rows, R], where all parameters share the value
    directory/trace/lr/<parameter>.npy        [rows, R], one per tensor, or [rows, R, ...], one per element

Row i holds for the training steps i n to (i + 1) n - 1. The files have their whole length, allocated on the disk, from
the start, so that a row costs a write, and a continued run writes its rows again, over the old ones.

A resume does not need the trace, so nothing about it stands in the way of one. Where a file is missing, damaged, or of
another form, the rows before the resume are unknown: they are NaN, the log says so, and a replay refuses them. The
period of rows is that of the start. A trace that can no longer be written is given up.

A checkpoint holds the checksums of what had been written by then (`Trace.written`), so the rows of another run are as
good as none. Checkpoints of earlier versions do not hold them.
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
from hyperopt_id.telemetry.directory import IDENTITY, read_json, write_json
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
            seal = {"digest": _digest(values), "identity": read_json(self._folder.parent / IDENTITY)}
            write_json(self._folder / "trace.json", {"steps_per_row": steps, **seal})
        except (OSError, ValueError) as error:
            logger.warning("the trace in %s cannot be finished (%s)", self._folder, error)

    @property
    def written(self) -> dict[str, Any]:
        """What has been written, for a checkpoint: hyper-updates of a row (0: there is no trace), number of rows, and
        their CRC-32 by file."""
        files = self._files if self.every else {}
        rows = min((file.rows for file in files.values()), default=0)
        return {"every": self.every, "rows": rows, "checksums": {name: file.checksum for name, file in files.items()}}

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


class _Before(NamedTuple):
    """What is known of the rows before the hyper-update `update` that a run continues from."""

    update: int
    rows: int
    there: bool  # files with rows of this period
    given: Mapping[str, Tensor]  # rows that another place knows
    written: Mapping[str, Any] | None  # `Trace.written` of the checkpoint

    def fill(self, file: RowFile, name: str, is_new: bool) -> bool:
        """Have these rows in a file; whether they are known."""
        if name in self.given:
            file.write_all(self.given[name].numpy()[: self.rows])
            return True
        if self.written is None:
            is_own = not is_new and file.keep(self.rows)
        else:
            is_own = not is_new and file.keep(self.written["rows"], self.written["checksums"].get(name, -1))
        if not is_own:
            file.forget(self.rows)
        return is_own


def open_trace(
    directory: Path,
    values: Values,
    updates: int,
    steps_per_update: int,
    every: int | None,
    *,
    update: int = 0,
    rows_before: Mapping[str, Tensor] | None = None,
    written: Mapping[str, Any] | None = None,
) -> Trace:
    """The trace of `updates` hyper-updates of values like `values`; None takes as many rows as fit into `LARGEST`.

    `update`: the hyper-update that the run continues from, before which the rows that are there count, if they are what
    its checkpoint says that was `written` (None: it does not); `rows_before`: those rows, where another place knows
    them. Raises OSError where the disk has no space for a new run's.
    """
    folder = directory / "trace"
    try:
        there = _there(folder, steps_per_update, written) if update else None
        period = _period(values, updates, every, there)
        if period == 0:
            return Trace(folder, 0, 0, {})
        rows, before = math.ceil(updates / period), math.ceil(update / period)
        known = _Before(update, before, there is not None, rows_before or {}, written)
        files = _open_files(folder, dict(_flat(values)), rows, known)
        write_json(folder / "trace.json", {"steps_per_row": period * steps_per_update})
        return Trace(folder, period, rows, files)
    except OSError as error:
        if not update:
            raise
        give_up(folder, error)
        return Trace(folder, 0, 0, {})


def _open_files(folder: Path, values: Mapping[str, Tensor], rows: int, before: _Before) -> dict[str, RowFile]:
    files, unknown = {}, []
    for name, value in values.items():
        path, like = folder / f"{name}.npy", _numpy(value)
        shape, keep_open = (rows, *like.shape), len(values) <= MOST_OPEN
        files[name], is_new = open_rows(path, shape, like.dtype, again=before.there, keep_open=keep_open)
        if before.rows and not before.fill(files[name], name, is_new):
            unknown.append(name)
    if unknown:
        logger.warning(
            "the trace of the first %d hyper-updates is lost (%s), so this run cannot be replayed",
            before.update,
            shorten(", ".join(unknown)),
        )
    for place in {folder, *(path.parent for path in folder.rglob("*.npy"))}:
        synchronize(place)
    return files


def _there(folder: Path, steps_per_update: int, written: Mapping[str, Any] | None) -> int | None:
    """Hyper-updates of a row in the trace that is there; None where there is none that can be used."""
    try:
        steps = read_json_file(folder / "trace.json", {"steps_per_row": int})["steps_per_row"]
    except ValueError:
        return None
    period, rest = divmod(steps, steps_per_update)
    return period if period > 0 and not rest and period == (written or {}).get("every", period) else None


def _period(values: Values, updates: int, every: int | None, there: int | None) -> int:
    """Hyper-updates of a row; 0: no trace."""
    if there is not None:
        if every not in (None, there):
            logger.warning("the trace goes on with a row for every %d hyper-updates, as it was begun", there)
        return there
    if every is None:
        bytes_per_row = sum(value.numel() * value.element_size() for _, value in _flat(values))
        every = math.ceil(updates / max(1, LARGEST // bytes_per_row))
        if every > 1:
            logger.info("the trace has a row for every %d hyper-updates; report.trace_every=1 keeps all of them", every)
    return every


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
    if verify:
        _verify(Path(directory), about, values)
    return steps, values


def _verify(directory: Path, about: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> None:
    if about.get("digest", own := _digest(values)) != own:
        raise ValueError(f"the trace in {directory} is damaged: its rows are not those that the run has written")
    if None not in (its := about.get("identity"), own := read_json(directory / IDENTITY)) and its != own:
        raise ValueError(f"the trace in {directory} is that of another run; bring its own back, or train the run anew")


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
