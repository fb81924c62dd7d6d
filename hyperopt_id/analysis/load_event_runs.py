"""Runs that left TensorBoard events and a `config.json`, but no `metrics.jsonl`: above all those of the published code
of arXiv 2110.10461.

Its config holds `config_dicts`, with log10 of learning rate and weight decay and logit of momentum. It logs at every
training step, and once more at the end; a run that it continued counts its steps from 0 again in another file, beside
`config_checkpoint.json`.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hyperopt_id.analysis.load import dataset_of
from hyperopt_id.analysis.load_cache import cached
from hyperopt_id.analysis.load_events import Series, event_files, read_events
from hyperopt_id.analysis.runs import Runs, Timing, settings_of
from hyperopt_id.telemetry import read_json

DATASETS = {"FashionMNIST": "fashion_mnist", "CIFAR10": "cifar10", "PennTreebank": "penn_treebank"}
ENGINES = {"Neumann": "neumann", "Exact": "unroll", "Baydin": "one_step"}  # by the beginning of the wrapper's class
GROUPS = {"unnormalised_loss": "unnormalized_loss", "hyperparameter": "hyper"}
NATURAL: dict[str, Callable[[float], float]] = {
    "lr": lambda raw: 10.0**raw,
    "weight_decay": lambda raw: 10.0**raw,
    "momentum": lambda raw: 1.0 / (1.0 + float(np.exp(-raw))),
}


def load_event_run(directory: Path, cache: Path | None = None) -> Runs | None:
    """The single run of a directory, None if it did not come to its end. What is read from the events is kept below
    `cache`, where there is one. A ValueError where the config is not of a run, or the events are damaged."""
    config = read_json(directory / "config.json")
    if not isinstance(config, dict) or not ("task" in config or "dataset" in config.get("config_dicts", {})):
        raise ValueError(f"{directory} holds TensorBoard events, but its config.json does not name a data set")
    published = "config_dicts" in config
    again = read_json(directory / "config_checkpoint.json") if published else None
    arrays = cached(cache, event_files(directory), lambda files: _arrays(_series(files, restarts=again is not None)))
    steps, seconds = arrays.pop("steps"), arrays.pop("seconds")
    try:
        length = _length(config) + (_length(again) if again is not None else 0)
        if not len(steps) or steps[-1] < length - 1:
            return None
        about = _of_published(config) if published else _of_this_package(config)
    except KeyError as error:
        raise ValueError(f"{directory} holds TensorBoard events, but its config.json has no {error}") from None
    last = [curve[-1] for name, curve in arrays.items() if name.startswith("loss/") and np.isfinite(curve).any()]
    cost = {"total": float(seconds[-1])}
    return Runs(
        seeds=np.array([-1]),
        steps=steps,
        curves={name: curve[None] for name, curve in arrays.items()},
        times=seconds[None],
        diverged=np.array([not last or not np.isfinite(last).all()]),
        cost=cost,
        timings=(Timing(1, int(steps[-1]), cost),),
        **about,
    )


def _of_published(config: Mapping[str, Any]) -> dict[str, Any]:
    """Data set, algorithm, settings and starts."""
    return {
        "dataset": _dataset(config["config_dicts"]["dataset"]["class"], config),
        "algorithm": _algorithm(config),
        "settings": _settings(config),
        "starts": _starts(config),
    }


def _of_this_package(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dataset": dataset_of(config),
        "algorithm": config["algorithm"],
        "settings": {**settings_of(config), "source": "TensorBoard events"},
        "starts": {name: np.atleast_1d(value) for name, value in config.get("start", {}).items()},
    }


def _series(files: list[Path], restarts: bool) -> dict[str, Series]:
    """All points by tag; where a file restarts the count, its steps go on from the last one before."""
    if not restarts:
        return read_events(files)
    joined: dict[str, list[Series]] = {}
    offset = 0
    for file in files:
        series = read_events([file])
        for tag, (steps, times, values) in series.items():
            joined.setdefault(tag, []).append(Series(steps + offset, times, values))
        offset += max((int(steps.max()) for steps, _, _ in series.values()), default=0)
    return {tag: Series(*(np.concatenate(columns) for columns in zip(*parts))) for tag, parts in joined.items()}


def _arrays(series: Mapping[str, Series]) -> dict[str, np.ndarray]:
    """{"steps": [N], "seconds": [N], metric: [N]}; of what was logged twice for a step, the later counts."""
    series = {tag: found for tag, found in series.items() if "/" in tag}
    steps = np.unique(np.concatenate([found.steps for found in series.values()] or [np.empty(0, np.int64)]))
    times = np.full(len(steps), np.nan)
    arrays: dict[str, np.ndarray] = {}
    for tag, found in series.items():
        places = np.searchsorted(steps, found.steps)
        curve = np.full(len(steps), np.nan, dtype=np.float32)
        curve[places] = np.where(np.isfinite(found.values), found.values, np.nan)
        times[places] = found.times
        arrays[_metric(tag)] = curve
    return {"steps": steps, "seconds": _elapsed(times), **arrays}


def _elapsed(times: np.ndarray) -> np.ndarray:
    """Seconds since the beginning, without the pause before a run was continued: no step takes as long as 100 usual
    ones and more than a minute."""
    gaps = np.diff(times, prepend=times[:1])
    usual = np.median(gaps[1:]) if len(gaps) > 1 else 0.0
    return np.cumsum(np.where((gaps < 0.0) | (gaps > max(60.0, 100.0 * usual)), usual, gaps))


def _metric(tag: str) -> str:
    """`Loss/Training` -> `loss/train`, the name in `metrics.jsonl`."""
    head, *rest = tag.lower().split("/")
    return "/".join([GROUPS.get(head, head), *("train" if part == "training" else part for part in rest)])


def _length(config: Mapping[str, Any]) -> int:
    """Training steps of the whole run."""
    if "config_dicts" not in config:
        settings = settings_of(config)
        return settings["inner.updates"] * settings["inner.steps_per_update"]
    steps = config["network_weight_steps"] * config["hyperparameter_steps"]
    return min(steps, config.get("total_step_limit") or steps)


def _dataset(name: str, config: Mapping[str, Any]) -> str:
    known = DATASETS.get(name, name.lower())
    return f"{known}_bn" if config["config_dicts"].get("model", {}).get("batch_norm") else known


def _algorithm(config: Mapping[str, Any]) -> str:
    """The published long-horizon variants have one name."""
    name = config.get("algorithm", "unknown")
    if name != "LongDiffThroughOpt":
        return name
    if not config.get("reset_model_after_hyperparameter_update"):
        return f"{name}_Medium"
    return f"{name}_Full" if config["network_weight_steps"] >= 4000 else f"{name}_Standalone"


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    wrapper = config["config_dicts"].get("hyperparameter_wrapper", {})
    engine = re.match("|".join(ENGINES), wrapper.get("class", ""))
    fraction, window = config.get("validation_proportion"), config.get("reset_loop_before_hyperparameter_step", -1)
    model = {f"task.model.{key}": value for key, value in config["config_dicts"].get("model", {}).items()}
    model.pop("task.model.random_seed", None)
    return {
        **model,
        "source": "published code",
        "task.validation_fraction": fraction,
        "task.train_on": "train" if fraction else "train+validation",
        "task.batch_size": config.get("batch_size"),
        "inner.steps_per_update": config["network_weight_steps"],
        "inner.updates": config["hyperparameter_steps"],
        "inner.reset": bool(config.get("reset_model_after_hyperparameter_update")),
        "hypergradient.engine": ENGINES[engine[0]] if engine else "none",
        "hypergradient.terms": wrapper.get("hyperparameter_rollback_distance"),
        "hypergradient.window": window if window > 0 else None,
    }


def _starts(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    raw = config["config_dicts"].get("network_weight", {})
    return {name: np.array([natural(raw[name])]) for name, natural in NATURAL.items() if name in raw}
