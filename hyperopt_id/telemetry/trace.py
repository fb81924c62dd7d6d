"""The hyperparameter trace: natural values in the order in which training used them.

    directory/trace/trace.json                {"steps_per_row": n}
    directory/trace/lr.npy                    [rows, R], where all parameters share the value
    directory/trace/lr/<parameter>.npy        [rows, R], one per tensor, or [rows, R, ...], one per element

Row i holds for the training steps i n to (i + 1) n - 1. The files have their whole length from the start and are
written through memory maps, so that a row costs a copy, and a continued run writes its rows again, over the old ones.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from hyperopt_id.telemetry.directory import read_json, write_json

LARGEST = 256 * 2**20  # bytes of a trace that `every=None` keeps whole
logger = logging.getLogger("hyperopt_id")
Values = Mapping[str, Any]  # {name: tensor [R], or {parameter: tensor [R, ...]}}


class Trace(NamedTuple):
    """An open trace; a row for every `every` hyper-updates, none if 0."""

    every: int
    rows: int
    files: dict[str, np.memmap]

    def due(self, update: int) -> bool:
        """Whether the values after `update` hyper-updates begin a row."""
        return self.every > 0 and update % self.every == 0 and update // self.every < self.rows

    def write(self, update: int, values: Values) -> None:
        """Write the values that hold after `update` hyper-updates; nothing where no row begins there."""
        if self.due(update):
            for name, value in _flat(values):
                self.files[name][update // self.every] = value.detach().cpu().numpy()


def open_trace(directory: Path, values: Values, updates: int, steps_per_update: int, every: int | None) -> Trace:
    """The trace of `updates` hyper-updates of values like `values`; None takes as many rows as fit into `LARGEST`."""
    if every == 0:
        return Trace(0, 0, {})
    flat = dict(_flat(values))
    if every is None:
        bytes_per_row = sum(value.numel() * value.element_size() for value in flat.values())
        every = math.ceil(updates / max(1, LARGEST // bytes_per_row))
        if every > 1:
            logger.info("the trace has a row for every %d hyper-updates; report.trace_every=1 keeps all of them", every)
    folder, rows = directory / "trace", math.ceil(updates / every)
    about = {"steps_per_row": every * steps_per_update}
    again = read_json(folder / "trace.json") == about
    files = {name: _file(folder / f"{name}.npy", value, rows, again) for name, value in flat.items()}
    write_json(folder / "trace.json", about)
    return Trace(every, rows, files)


def read_trace(directory: str | Path) -> tuple[int, dict[str, np.ndarray]]:
    """(steps per row, {"lr": [rows, R], or "lr/<parameter>": [rows, R, ...]}) of a run directory, mapped, not read; a
    ValueError where it has no trace."""
    folder = Path(directory) / "trace"
    about = read_json(folder / "trace.json")
    if about is None:
        raise ValueError(f"{directory} has no hyperparameter trace (trace/trace.json); was report.trace_every 0?")
    files = sorted(folder.rglob("*.npy"))
    return about["steps_per_row"], {
        path.relative_to(folder).as_posix().removesuffix(".npy"): np.load(path, mmap_mode="r") for path in files
    }


def _file(path: Path, like: Tensor, rows: int, again: bool) -> np.memmap:
    shape, dtype = (rows, *like.shape), like.detach().cpu().numpy().dtype
    if again and path.is_file():
        known = np.lib.format.open_memmap(path, mode="r+")
        if (known.shape, known.dtype) == (shape, dtype):
            return known
    path.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _flat(values: Values) -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{parameter}", leaf) for parameter, leaf in value.items())
        else:
            yield name, value
