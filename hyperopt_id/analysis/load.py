"""Run directories as arrays (the files are described in `docs/run_directory.md`).

What is `null` in the files, a number that is not finite or one of a run that has diverged, is NaN in arrays.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hyperopt_id import files
from hyperopt_id.analysis import forms
from hyperopt_id.analysis.names import printable
from hyperopt_id.analysis.runs import DATA, SAME, UNREAD, Runs, Timing, settings_of

SHARES = ("p10", "p90")  # of a hyperparameter with many elements, beside its median
REPAIR = "repair or remove it"


def load_reports(directory: str | Path) -> list[dict[str, Any]]:
    """The reports in `metrics.jsonl`, of a run that may still be going on. Raises ValueError if there are none that can
    be read."""
    path = Path(directory) / "metrics.jsonl"
    if not path.exists():
        raise ValueError(f"{directory} is not a run directory: it has no metrics.jsonl")
    return list(forms.read_lines(path, forms.REPORT))


def load_run(directory: str | Path) -> Runs:
    """All runs of a finished run directory. Without a config (a run from Python), the directory's name stands for the
    algorithm and its parent's for the data set; `lacks_config` says where there was one that cannot be read here.

    Raises ValueError if the run is not finished, or a file of it is damaged or contradicts another; it names the file.
    """
    directory = Path(directory)
    if not (directory / "summary.json").exists():
        raise ValueError(f"{directory} holds no finished run: there is no summary.json")
    summary = forms.read_json(directory / "summary.json", forms.SUMMARY, f"{REPAIR}, and resume the run")
    reports, config = _reports_in_order(directory), load_config(directory)
    algorithm = printable(config.get("algorithm", directory.resolve().name))
    diverged = np.array(summary["diverged"], dtype=bool)
    runs, where = len(diverged), f"{directory / 'metrics.jsonl'}"
    times = np.array([report["time"] for report in reports], dtype=np.float64) / runs
    return Runs(
        dataset=dataset_of(config) or printable(directory.resolve().parent.name),
        algorithm=SAME.get(algorithm, algorithm),
        settings=with_digests(UNREAD if lacks_config(directory) else settings_of(config), directory),
        seeds=seeds_of(config.get("seed", 0), runs),
        steps=np.array([report["step"] for report in reports], dtype=np.int64),
        curves=_curves(reports, runs, where),
        times=np.broadcast_to(times, (runs, len(times))),
        diverged=diverged,
        starts={
            name: forms.members(values, runs, f"{directory / 'config.json'}: start: {name}")
            for name, values in config.get("start", {}).items()
        },
        cost=summary["seconds"],
        timings=(Timing(runs, reports[-1]["step"], summary["seconds"]),),
    )


def load_config(directory: Path) -> dict[str, Any]:
    """`config.json`, empty where there is none. Raises ValueError if it is damaged."""
    path = directory / "config.json"
    if not path.exists():
        return {}
    return forms.read_json(path, forms.CONFIG, "write it again from the config.yaml beside it")


def with_digests(settings: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The settings of a run directory with the digests of its data and other files in place of their paths, and
    `DATA`, as far as `identity.json` knows them. Raises ValueError if that is damaged."""
    path = directory / "identity.json"
    if not path.exists():
        return dict(settings)
    known = forms.read_json(path, forms.IDENTITY, f"{REPAIR}, which leaves the data known by their path alone")[
        "digests"
    ]
    without_paths = {key: value for key, value in settings.items() if key != "task.path" or "data" not in known}
    return {**without_paths, **{DATA if key == "data" else key: digest for key, digest in known.items()}}


def seeds_of(first: int, runs: int) -> np.ndarray:
    """The seeds of R runs [R], also beyond 64 bits."""
    fits = -(2**63) <= first < 2**63 - runs
    return np.array([first + member for member in range(runs)], dtype=np.int64 if fits else object)


def dataset_of(config: Mapping[str, Any]) -> str | None:
    """The data set's name: a user's table by its file, and one more for networks with batch normalization."""
    task = config.get("task")
    if task is None:
        return None
    name = printable(Path(task["path"]).stem if task.get("path") else task["name"])
    return f"{name}_bn" if (task.get("model") or {}).get("batch_norm") else name


def lacks_config(directory: Path) -> bool:
    """Whether a run that had a config has it as YAML alone, which is not read here."""
    return (directory / "config.yaml").is_file() and not (directory / "config.json").is_file()


def _reports_in_order(directory: Path) -> list[dict[str, Any]]:
    reports, path = load_reports(directory), directory / "metrics.jsonl"
    if not reports:
        raise ValueError(f"{directory} holds no reports: its metrics.jsonl is empty")
    before = 0
    for line, report in enumerate(reports, start=1):
        if "time" not in report:
            raise ValueError(f"line {line} of {path}: time is missing; {REPAIR}")
        if report["step"] <= before:
            raise ValueError(f"line {line} of {path}: step {report['step']} after step {before}; {REPAIR}")
        before = report["step"]
    return reports


def _curves(reports: Sequence[Mapping[str, Any]], runs: int, where: str) -> dict[str, np.ndarray]:
    """{metric: [R, N]}; hypergradients per tensor or element are left out."""
    curves: dict[str, np.ndarray] = {}
    for position, report in enumerate(reports):
        for name, value in report.items():
            if "/" in name:
                for key, numbers_R in _of_metric(name, value, runs, f"line {position + 1} of {where}: {name}"):
                    curves.setdefault(key, np.full((runs, len(reports)), np.nan))[:, position] = numbers_R
    return curves


def _of_metric(name: str, value: Any, runs: int, where: str) -> list[tuple[str, np.ndarray]]:
    """The numbers of R runs. Of a hyperparameter per tensor or element, {parameter: value or statistics}, what most
    parameters have."""
    if not isinstance(value, Mapping):
        return [(name, forms.members(value, runs, where))]
    if not name.startswith("hyper/"):
        return []
    found: dict[str, list[np.ndarray]] = {}
    for parameter, leaf in value.items():
        of_parameter = f"{where}: {parameter}"
        if not isinstance(leaf, Mapping):
            found.setdefault(name, []).append(forms.members(leaf, runs, of_parameter))
            continue
        files.check_form(leaf, forms.STATISTICS, of_parameter)
        for key, share in ((name, "median"), *((f"{name}/{share}", share) for share in SHARES)):
            found.setdefault(key, []).append(forms.members(leaf[share], runs, f"{of_parameter}: {share}"))
    return [(key, middle(values)) for key, values in found.items()]


def middle(values: Sequence[Any]) -> np.ndarray:
    """The median of P values at each place, [P, ...] -> [...]; NaN ranks last."""
    ordered = np.sort(np.array(values, dtype=np.float64), axis=0)  # NaN last
    low, high = (len(values) - 1) // 2, len(values) // 2
    return (ordered[low] + ordered[high]) / 2.0
