"""Runs that left TensorBoard events and a `config.json`, but no `metrics.jsonl`: above all those of the published code
of arXiv 2110.10461.

Its config holds `config_dicts`, with log10 of learning rate and weight decay and logit of momentum. It logs at every
training step, and once more at the end; a run that it continued has `config_checkpoint.json`, too. The ranges that
starts are drawn from are in no config, so runs of one kind are those of one group, the folder that they were put into.

A population of this package has its events in `member_00`, `member_01`, ... below the config.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hyperopt_id import files
from hyperopt_id.analysis import forms
from hyperopt_id.analysis.load import REPAIR, dataset_of, seeds_of, with_digests
from hyperopt_id.analysis.load_cache import cached
from hyperopt_id.analysis.load_event_curves import event_curves
from hyperopt_id.analysis.load_events import event_files
from hyperopt_id.analysis.names import printable
from hyperopt_id.analysis.runs import (
    GROUP,
    ON_A_BATCH,
    ON_ALL,
    SAME,
    VALIDATED,
    Runs,
    Timing,
    concatenate,
    settings_of,
)

DATASETS = {"FashionMNIST": "fashion_mnist", "CIFAR10": "cifar10", "PennTreebank": "penn_treebank"}
ENGINES = {"Neumann": "neumann", "Exact": "unroll", "Baydin": "one_step"}  # by the beginning of the wrapper's class
ROWS = {  # of training and validation together
    "UCI_Boston": 455,
    "UCI_Concrete": 927,
    "UCI_Energy": 692,
    "UCI_Kin8nm": 7373,
    "UCI_Naval": 10741,
    "UCI_Power": 8611,
    "UCI_Wine": 1439,
    "UCI_Yacht": 277,
    "FashionMNIST": 60000,
    "CIFAR10": 50000,
}
MEMBER = re.compile(r"member_(\d+)")
T_AND_K = re.compile(r"Update\d+_Rollback\d+")  # a folder of the sensitivity study; its config has the numbers, too
NATURAL: dict[str, Callable[[float], float]] = {
    "lr": lambda raw: 10.0**raw,
    "weight_decay": lambda raw: 10.0**raw,
    "momentum": lambda raw: 1.0 / (1.0 + math.exp(-raw)),
}


def load_event_run(directory: Path, cache: Path | None = None) -> Runs | None:
    """The run of a directory, or its members; None if they did not come to their end. What is read from the events is
    kept below `cache`, where there is one. A ValueError where the config is not of a run, or the events are damaged."""
    config, published = _config(directory)
    path = directory / "config_checkpoint.json"
    again = forms.read_json(path, forms.PUBLISHED, REPAIR) if published and path.exists() else None
    folders = members(directory) or [directory]
    pieces = []
    try:
        length = _length(config) + (_length(again) if again is not None else 0)
        for folder in folders:
            arrays = cached(cache, event_files(folder), lambda files: event_curves(files, again is not None))
            if not len(arrays["steps"]) or arrays["steps"][-1] < length - 1:
                return None
            about = _of_published(config, directory) if published else _of_this_package(config, directory, folder)
            pieces.append(_piece(arrays, len(folders), about))
    except KeyError as error:
        raise ValueError(f"{directory} holds TensorBoard events, but its config.json has no {error}") from None
    joined = concatenate(pieces)
    return replace(joined, timings=(Timing(len(folders), int(joined.steps[-1]), joined.cost),))


def members(directory: Path) -> list[Path]:
    """The sub-runs of a population that wrote one for each member."""
    return [path for path in sorted(directory.glob("member_*")) if MEMBER.fullmatch(path.name) and event_files(path)]


def is_of_a_search(directory: Path) -> bool:
    """Whether a search by the published code chose where a run starts: the log of its Bayesian optimization lies beside
    the runs of a repetition, and its configs say what Ray Tune started."""
    config, published = _config(directory)
    if not published:
        return False
    return bool(config.get("_ray_tune_config")) or (directory.resolve().parent / "log.json").is_file()


def _config(directory: Path) -> tuple[dict[str, Any], bool]:
    """`config.json`, and whether the published code has written it. Raises ValueError if neither has."""
    path = directory / "config.json"
    config = forms.read_json(path, dict, REPAIR)
    if not ("task" in config or isinstance(config.get("config_dicts"), dict)):
        raise ValueError(f"{directory} holds TensorBoard events, but its config.json does not name a data set")
    published = "config_dicts" in config
    for form in (forms.PUBLISHED,) if published else (forms.CONFIG, forms.OWN_EVENTS):
        files.check_form(config, form, f"{path}")
    return config, published


def _piece(arrays: dict[str, np.ndarray], runs: int, about: Mapping[str, Any]) -> Runs:
    """One of so many runs side by side; its seconds are a share of theirs."""
    curves = {name: curve[None] for name, curve in arrays.items() if name not in ("steps", "seconds")}
    last = [curve[0, -1] for name, curve in curves.items() if name.startswith("loss/") and np.isfinite(curve).any()]
    seconds = arrays["seconds"] / runs
    return Runs(
        steps=arrays["steps"],
        curves=curves,
        times=seconds[None],
        diverged=np.array([not last or not np.isfinite(last).all()]),
        cost={"total": float(seconds[-1])},
        **about,
    )


def _of_published(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Data set, algorithm, settings, seed and start."""
    return {
        "dataset": _dataset(config["config_dicts"]["dataset"]["class"], config),
        "algorithm": _algorithm(config),
        "settings": _settings(config, directory),
        "seeds": np.array([-1]),
        "starts": _starts(config),
    }


def _of_this_package(config: Mapping[str, Any], directory: Path, folder: Path) -> dict[str, Any]:
    named = MEMBER.fullmatch(folder.name)
    member = int(named[1]) if named else 0
    starts = {name: np.array(values, dtype=np.float64).ravel() for name, values in config.get("start", {}).items()}
    return {
        "dataset": dataset_of(config),
        "algorithm": SAME.get(config["algorithm"], printable(config["algorithm"])),
        "settings": with_digests({**settings_of(config), "source": "TensorBoard events"}, directory),
        "seeds": seeds_of(config.get("seed", 0) + member, 1),
        "starts": {name: values[member : member + 1] for name, values in starts.items()},
    }


def _length(config: Mapping[str, Any]) -> int:
    """Training steps of the whole run."""
    if "config_dicts" not in config:
        settings = settings_of(config)
        return (settings["inner.updates"] or 0) * settings["inner.steps_per_update"]
    steps = config["network_weight_steps"] * config["hyperparameter_steps"]
    return min(steps, config.get("total_step_limit") or steps)


def _dataset(name: str, config: Mapping[str, Any]) -> str:
    known = DATASETS.get(name, printable(name).lower())
    return f"{known}_bn" if config["config_dicts"].get("model", {}).get("batch_norm") else known


def _algorithm(config: Mapping[str, Any]) -> str:
    """The published long-horizon variants have one name."""
    name = printable(config.get("algorithm", "unknown"))
    if name != "LongDiffThroughOpt":
        return name
    if not config.get("reset_model_after_hyperparameter_update"):
        return f"{name}_Medium"
    return f"{name}_Full" if config["network_weight_steps"] >= 4000 else f"{name}_Standalone"


def _settings(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    wrapper = config["config_dicts"].get("hyperparameter_wrapper", {})
    engine = re.match("|".join(ENGINES), wrapper.get("class", ""))
    fraction, window = config.get("validation_proportion"), config.get("reset_loop_before_hyperparameter_step", -1)
    model = {f"task.model.{key}": value for key, value in config["config_dicts"].get("model", {}).items()}
    model.pop("task.model.random_seed", None)
    steps, updates = config["network_weight_steps"], config["hyperparameter_steps"]
    if config.get("force_single_network_weight_step"):
        steps, updates = 1, steps * updates
    return {
        **model,
        "source": "published code",
        GROUP: _group(directory),
        VALIDATED: _validated(config),
        "task.validation_fraction": fraction,
        "task.train_on": "train" if fraction else "train+validation",
        "task.batch_size": config.get("batch_size"),
        "inner.steps_per_update": steps,
        "inner.updates": updates,
        "inner.reset": bool(config.get("reset_model_after_hyperparameter_update")),
        "hypergradient.engine": ENGINES[engine[0]] if engine else "none",
        "hypergradient.terms": wrapper.get("hyperparameter_rollback_distance"),
        "hypergradient.window": window if window > 0 else None,
    }


def _group(directory: Path) -> str:
    """Its whole path, since folders of several experiments can have one name."""
    folder = directory.resolve().parent
    return str(folder.parent if T_AND_K.fullmatch(folder.name) else folder)


def _validated(config: Mapping[str, Any]) -> str:
    """What each `Loss/Validation` is of: the next batch, unless that holds everything or the config asks for it."""
    fraction = config.get("validation_proportion")
    rows = fraction * ROWS.get(config["config_dicts"]["dataset"]["class"], np.inf) if fraction else 0.0
    whole = config.get("full_batch_validation_evaluations") or rows <= (config.get("batch_size") or 0) + 0.5
    return ON_ALL if whole else ON_A_BATCH


def _starts(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    raw = config["config_dicts"].get("network_weight", {})
    return {name: np.array([natural(raw[name])]) for name, natural in NATURAL.items() if name in raw}
