"""Run directories, searches and event runs, written as the programs write them, with chosen numbers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.summary.writer.record_writer import RecordWriter

NAN = float("nan")
TAGS = ("Loss/Training", "Loss/Test", "Unnormalised_Loss/Test", "Hyperparameter/Lr")
SPACE: dict[str, Any] = {
    "lr": {"init": 1e-3, "transform": "log10", "bounds": [1e-10, 1.0], "sample": [1e-6, 0.1], "tune": []},
    "weight_decay": {"init": 1e-6, "transform": "log10", "bounds": "none", "sample": [1e-7, 0.01], "tune": []},
}


def config(algorithm: str, dataset: str = "uci_energy", **changed: Any) -> dict[str, Any]:
    """A config as `config.json` holds it; `changed` are dotted keys with `__` for the dots."""
    tree: dict[str, Any] = {
        "task": {"name": dataset, "model": {"name": "mlp", "batch_norm": False}, "validation_fraction": None},
        "algorithm": algorithm,
        "inner": {"steps_per_update": 10, "steps": None, "updates": 4, "reset": False, "compile": "auto"},
        "space": json.loads(json.dumps(SPACE)),
        "hypergradient": {"engine": "none", "terms": 5, "window": None},
        "meta": {"rule": "adam"},
        "population": {"runs": 1, "sample": True, "start": {}},
        "seed": 0,
        "log": {"name": "somewhere"},
    }
    tree["task"]["train_on"] = "train+validation" if algorithm == "Random" else "train"
    for key, value in changed.items():
        *path, last = key.split("__")
        place = tree
        for name in path:
            place = place[name]
        place[last] = value
    return json.loads(json.dumps(tree))


def write_run(
    directory: Path,
    about: Mapping[str, Any],
    curves: Mapping[str, Sequence[Any]],
    *,
    start: Mapping[str, Sequence[float]] | None = None,
    seconds: Mapping[str, float] | None = None,
    finished: bool = True,
    every: int = 1,
) -> Path:
    """A run directory: `curves` hold for each metric what each report says, a number or a list of R (NaN: null)."""
    directory.mkdir(parents=True)
    first = next(iter(curves.values()))
    runs = len(first[0]) if isinstance(first[0], list) else 1
    length = about.get("inner", {}).get("steps_per_update", 10)
    lines = [
        {"step": length * every * (i + 1), "update": every * (i + 1), "time": i + 1.0}
        | {name: values[i] for name, values in curves.items()}
        for i in range(len(first))
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(_null(line)) + "\n" for line in lines))
    population = {**about.get("population", {}), "runs": runs}
    written = {
        **about,
        "population": population,
        "start": start or {"lr": [0.01] * runs, "weight_decay": [0.001] * runs},
    }
    (directory / "config.json").write_text(json.dumps(written))
    last = lines[-1]
    final = last["loss/test"] if isinstance(last["loss/test"], list) else [last["loss/test"]]
    summary = {
        "final": {"loss/test": final},
        "best_validation": {},
        "diverged": [value != value for value in final],
        "seconds": {"total": 10.0, "compile": 1.0, "evaluation": 0.5, "logging": 0.5, **(seconds or {})},
    }
    if finished:
        (directory / "summary.json").write_text(json.dumps(_null(summary)))
    return directory


def write_search(
    directory: Path,
    method: str,
    evaluations: Sequence[tuple[int, float | None, float | None]],
    about: Mapping[str, Any],
    /,
    **settings: Any,
) -> Path:
    """A search of (repetition, validation loss, test loss) in the order of evaluation, each at the only report of its
    run. One costs 2 s, 100 gradients. What it starts at follows from the config's seed, and from nothing else."""
    (directory / "runs" / "all").mkdir(parents=True)
    given = {"method": method, "repetitions": len({e[0] for e in evaluations}), **settings}
    (directory / "search.json").write_text(json.dumps(given))
    (directory / "runs" / "all" / "config.json").write_text(json.dumps(about))
    report = {"step": 40, "time": 1.0, "loss/validation": [e[1] for e in evaluations]}
    report["loss/test"] = [e[2] for e in evaluations]
    (directory / "runs" / "all" / "metrics.jsonl").write_text(json.dumps(report) + "\n")
    lines, counts, best = [], {}, {}
    for repetition, validation, test in evaluations:
        counts[repetition] = counts.get(repetition, 0) + 1
        number = counts[repetition]
        line = {"repetition": repetition, "evaluation": number - 1, "step": 40, "run": "runs/all", "member": len(lines)}
        line["hyper"] = {"lr": 10.0 ** -(about["seed"] + number + 0.01 * repetition)}
        line |= {"gradients": 100.0 * number, "seconds": 2.0 * number, "loss/validation": validation, "loss/test": test}
        lines.append(line)
        known = best.get(repetition)
        if known is None or (validation is not None and (known["loss/validation"] or 1e9) > validation):
            best[repetition] = line
    (directory / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spent = {r: {"gradients": 100.0 * n, "seconds": 2.0 * n} for r, n in counts.items()}
    summary = {"method": method, "repetitions": [{**best[r], **spent[r]} for r in sorted(best)]}
    (directory / "summary.json").write_text(json.dumps(summary))
    return directory


class EventLog:
    """An event file, written with TensorBoard's own writer, a record for each value."""

    def __init__(self, directory: Path, name: str = "events.out.tfevents.1000.host.1.0") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / name
        self._file = self.path.open("wb")
        self._records = RecordWriter(self._file)
        self.event(Event(wall_time=1000.0, file_version="brain.Event:2"))

    def event(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def value(self, step: int, time: float, value: Summary.Value) -> None:
        self.event(Event(wall_time=time, step=step, summary=Summary(value=[value])))

    def scalar(self, tag: str, step: int, number: float, time: float = 1000.0) -> None:
        self.value(step, time, Summary.Value(tag=tag, simple_value=number))

    def restart(self, step: int) -> None:
        self.event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    @property
    def offset(self) -> int:
        """Bytes so far."""
        self._records.flush()
        return self._file.tell()

    def close(self) -> Path:
        self._records.flush()
        self._file.close()
        return self.path


def log_steps(log: EventLog, steps: range, tags: tuple[str, ...] = TAGS, offset: float = 0.0) -> None:
    for step in steps:
        for place, tag in enumerate(tags):
            log.scalar(tag, step, offset + place + 1.0 / (step + 1), 1000.0 + step + 0.001 * place)


def published(algorithm: str = "Ours_LR_Momentum", updates: int = 3, **changed: Any) -> dict[str, Any]:
    """What the published code writes as `config.json`."""
    return {
        "algorithm": algorithm,
        "config_dicts": {
            "dataset": {"class": "UCI_Energy", "normalise_outputs": True},
            "model": {"class": "MultiLayerPerceptron", "layer_sizes": [8, 50, 1]},
            "network_weight": {"class": "SGD", "lr": -2.0, "weight_decay": -4.0, "momentum": 0.0},
            "hyperparameter_wrapper": {
                "class": "NeumannHypergradientOptimiser",
                "hyperparameter_rollback_distance": 5,
            },
        },
        "network_weight_steps": 10,
        "hyperparameter_steps": updates,
        "batch_size": 692,
        "total_step_limit": None,
        "validation_proportion": 0.11272,
        "reset_loop_before_hyperparameter_step": -1,
        **changed,
    }


def _null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _null(leaf) for name, leaf in value.items()}
    if isinstance(value, list):
        return [_null(leaf) for leaf in value]
    return None if isinstance(value, float) and value != value else value
