"""Run directories as arrays (the files are described in `docs/run_directory.md`).

What is `null` in the files, a number that is not finite or one of a run that has diverged, is NaN in arrays.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hyperopt_id.telemetry import read_json, records


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
    summary = read_json(Path(directory) / "summary.json")
    if summary is None:
        raise ValueError(f"{directory} holds no finished run: there is no summary.json that can be read")
    final, best = ({k: _numbers(v) for k, v in summary[key].items()} for key in ("final", "best_validation"))
    return Result(Path(directory).name, final, best, np.array(summary["diverged"]), summary["seconds"])


def load_reports(directory: str | Path) -> list[dict[str, Any]]:
    """The reports in `metrics.jsonl`, of a run that may still be going on."""
    path = Path(directory) / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{directory} is not a run directory: it has no metrics.jsonl")
    with path.open("rb") as metrics:
        return [report for report, _ in records(metrics)]


def _numbers(values: Any) -> np.ndarray:
    """A number or a list of them, null for NaN: float64 [R]."""
    return np.atleast_1d(np.array(values, dtype=np.float64))
