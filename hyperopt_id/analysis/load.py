"""Run directories as arrays (the files are described in `docs/run_directory.md`).

What is `null` in the files, a number that is not finite or one of a run that has diverged, is NaN in arrays.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Result(NamedTuple):
    """A finished run directory: `final` and `best_validation` are metrics of the last report and of the one with the
    lowest validation loss, {name: [R]}; `diverged` is [R] booleans; `seconds` by part of the work."""

    name: str
    final: dict[str, np.ndarray]
    best_validation: dict[str, np.ndarray]
    diverged: np.ndarray
    seconds: dict[str, float]

    def metric(self, name: str) -> np.ndarray:
        """The final values of a metric, [R]; a ValueError names those that there are."""
        if name not in self.final:
            raise ValueError(f"{self.name} has no {name}; it has {', '.join(self.final)}")
        return self.final[name]


def load_result(directory: str | Path) -> Result:
    """The summary of a finished run; a ValueError for a directory without one."""
    path = Path(directory) / "summary.json"
    if not path.is_file():
        raise ValueError(f"{directory} holds no finished run: there is no summary.json")
    summary: dict[str, Any] = json.loads(path.read_text())
    final, best = ({k: _numbers(v) for k, v in summary[key].items()} for key in ("final", "best_validation"))
    return Result(Path(directory).name, final, best, np.array(summary["diverged"]), summary["seconds"])


def load_reports(directory: str | Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, of a run that may still be going on.

    A last line without an end is a report that is being written, and left out. A ValueError says which line is damaged.
    """
    path = Path(directory) / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{directory} is not a run directory: it has no metrics.jsonl")
    reports = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            reports.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is damaged ({error.msg}); remove it to read the others") from error
    return reports


def _numbers(values: Any) -> np.ndarray:
    """A number or a list of them, null for NaN: float64 [R]."""
    return np.atleast_1d(np.array(values, dtype=np.float64))
