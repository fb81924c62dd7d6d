"""Run directories as arrays (the files are described in `docs/run_directory.md`).

What is `null` in the files, a number that is not finite or one of a run that has diverged, is NaN in arrays.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hyperopt_id.analysis.runs import SAME, UNREAD, Runs, Timing, settings_of
from hyperopt_id.telemetry import read_json, records

SHARES = ("p10", "p90")  # of a hyperparameter with many elements, beside its median


def load_reports(directory: str | Path) -> list[dict[str, Any]]:
    """The reports in `metrics.jsonl`, of a run that may still be going on."""
    path = Path(directory) / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{directory} is not a run directory: it has no metrics.jsonl")
    with path.open("rb") as metrics:
        return [report for report, _ in records(metrics)]


def load_run(directory: str | Path) -> Runs:
    """All runs of a finished run directory. Without a config (a run from Python), the directory's name stands for the
    algorithm and its parent's for the data set; `lacks_config` says where there was one that cannot be read here."""
    directory = Path(directory)
    summary, reports = _summary(directory), load_reports(directory)
    if not reports:
        raise ValueError(f"{directory} holds no reports: its metrics.jsonl is empty")
    config = _config(directory / "config.json")
    algorithm = str(config.get("algorithm", directory.resolve().name))
    diverged = np.array(summary["diverged"], dtype=bool)
    times = np.array([report["time"] for report in reports]) / len(diverged)
    return Runs(
        dataset=dataset_of(config) or directory.resolve().parent.name,
        algorithm=SAME.get(algorithm, algorithm),
        settings=UNREAD if lacks_config(directory) else settings_of(config),
        seeds=config.get("seed", 0) + np.arange(len(diverged)),
        steps=np.array([report["step"] for report in reports]),
        curves=_curves(reports, len(diverged)),
        times=np.broadcast_to(times, (len(diverged), len(times))),
        diverged=diverged,
        starts={name: _numbers(values) for name, values in config.get("start", {}).items()},
        cost=summary["seconds"],
        timings=(Timing(len(diverged), reports[-1]["step"], summary["seconds"]),),
    )


def dataset_of(config: Mapping[str, Any]) -> str | None:
    """The data set's name: a user's table by its file, and one more for networks with batch normalization."""
    task = config.get("task")
    if task is None:
        return None
    name = Path(task["path"]).stem if task.get("path") else task["name"]
    return f"{name}_bn" if task.get("model", {}).get("batch_norm") else name


def lacks_config(directory: Path) -> bool:
    """Whether a run that had a config has it as YAML alone, which is not read here."""
    return (directory / "config.yaml").is_file() and not (directory / "config.json").is_file()


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if config is None and path.is_file():
        raise ValueError(f"{path} is damaged: it is no JSON; write it again from the config.yaml beside it")
    return config or {}


def _summary(directory: Path) -> dict[str, Any]:
    summary = read_json(directory / "summary.json")
    if summary is None:
        raise ValueError(f"{directory} holds no finished run: there is no summary.json that can be read")
    return summary


def _curves(reports: Sequence[Mapping[str, Any]], runs: int) -> dict[str, np.ndarray]:
    """{metric: [R, N]}; hypergradients per tensor or element are left out."""
    columns: dict[str, list[Any]] = {}
    for position, report in enumerate(reports):
        for name, value in report.items():
            if "/" not in name:
                continue
            for key, number in _center(name, value) if isinstance(value, dict) else ((name, value),):
                columns.setdefault(key, [None] * len(reports))[position] = number
    missing = [None] * runs
    return {
        name: np.array([missing if value is None else value for value in values], dtype=np.float64)
        .reshape(len(reports), runs)
        .T
        for name, values in columns.items()
    }


def _center(name: str, parameters: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Of a hyperparameter per tensor or element, what most parameters have: {parameter: value or statistics [R]}."""
    if not name.startswith("hyper/"):
        return []
    values = list(parameters.values())
    if not isinstance(values[0], Mapping):
        return [(name, middle(values))]
    shares = [(f"{name}/{share}", middle([value[share] for value in values])) for share in SHARES]
    return [(name, middle([value["median"] for value in values])), *shares]


def middle(values: Sequence[Any]) -> np.ndarray:
    """The median of P values at each place, [P, ...] -> [...]; NaN ranks last."""
    ordered = np.sort(np.array(values, dtype=np.float64), axis=0)  # NaN last
    low, high = (len(values) - 1) // 2, len(values) // 2
    return (ordered[low] + ordered[high]) / 2.0


def _numbers(values: Any) -> np.ndarray:
    """A number or a list of them, null for NaN: float64 [R]."""
    return np.atleast_1d(np.array(values, dtype=np.float64))
