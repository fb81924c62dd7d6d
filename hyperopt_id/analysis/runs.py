"""Runs of one kind as arrays, and what makes two runs of one kind.

A kind is (data set, algorithm, settings): all of a config but what only says where it is run, how often, and from which
of the possible starting values. Runs of one kind that lie in several run directories are the same as those of one
larger population: `concatenate` puts them together, run by run.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

TEST_METRICS = ("perplexity/test", "unnormalized_loss/test", "loss/test")  # a data set is judged by the first it has
OF_A_RUN = ("algorithm", "seed", "start", "population", "log", "report", "threads", "device", "data_root")
SAME = {"Ours_HDLR": "Ours_HDLR_Momentum"}  # two names of one algorithm
HIGHEST = 1e200  # that is drawn
GIVEN = "given"  # a starting value that was not drawn
UNREAD = {"task.train_on": "unknown"}  # settings of runs whose config cannot be read
DATA = "data"  # a setting: the digest of the data
GROUP = "group"  # a setting: the folder of an experiment, of runs whose config does not tell all that it varied
VALIDATED, ON_ALL, ON_A_BATCH = "validation loss", "of all rows", "of a batch"  # a setting and its values


class Timing(NamedTuple):
    """What a run directory took: seconds by part of the work, for so many runs side by side and steps of each."""

    runs: int
    steps: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Runs:
    """R finished runs of one kind with N reports each; what is not known, or of a run that failed, is NaN.

    starts: {hyperparameter: natural starting value [R]}. curves: {metric, as in `metrics.jsonl`: [R, N]}, where the
    hyperparameters of many elements are their medians, with `/p10` and `/p90` beside. times: seconds since the
    beginning [R, N], a run's share of what those took that were trained together. cost: seconds by part of the work,
    of all runs together; timings: the same of each run directory. weights: the share of each run in a sample in which
    runs are not equally likely (None: equal). seeds are -1 where nobody wrote them down.
    """

    dataset: str
    algorithm: str
    settings: Mapping[str, Any]
    seeds: np.ndarray
    steps: np.ndarray
    curves: Mapping[str, np.ndarray]
    times: np.ndarray
    diverged: np.ndarray
    starts: Mapping[str, np.ndarray] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    timings: tuple[Timing, ...] = ()
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.diverged)

    @property
    def metric(self) -> str:
        """The test metric that these runs are judged by."""
        return next((name for name in TEST_METRICS if name in self.curves), TEST_METRICS[-1])

    def curve(self, metric: str) -> np.ndarray:
        """[R, N]; `error/<split>` is 1 - accuracy, and a metric that nobody reported is NaN."""
        group, _, split = metric.partition("/")
        if group == "error":
            return 1.0 - self.curve(f"accuracy/{split}")
        return self.curves.get(metric, np.full(self.times.shape, np.nan))

    def has(self, metric: str) -> bool:
        return bool(np.isfinite(self.curve(metric)).any())

    def final(self, metric: str) -> np.ndarray:
        """The last values [R]; NaN for a run that diverged."""
        return np.where(self.diverged, np.nan, self.curve(metric)[:, -1].astype(np.float64))

    def lowest(self, metric: str) -> np.ndarray:
        """The lowest values over whole trajectories [R]; NaN for a run that diverged."""
        values = np.where(np.isnan(self.curve(metric)), np.inf, self.curve(metric)).min(axis=1).astype(np.float64)
        return np.where(self.diverged | np.isinf(values), np.nan, values)

    @property
    def validates(self) -> bool:
        """Whether runs can be chosen by their validation losses: they are there, of all the validation data, and the
        runs did not train on these."""
        unseen = self.settings.get("task.train_on", "train") == "train"
        return unseen and self.settings.get(VALIDATED, ON_ALL) == ON_ALL and self.has("loss/validation")

    @property
    def validation(self) -> np.ndarray:
        """Final validation losses [R]; NaN, too, where nothing can be chosen by them."""
        return self.final("loss/validation") if self.validates else np.full(len(self), np.nan)

    @property
    def terms(self) -> int | None:
        """K: terms of the series, or steps differentiated through; None where nothing is tuned by an engine."""
        engine = self.settings.get("hypergradient.engine")
        if engine == "neumann":
            return self.settings.get("hypergradient.terms")
        windows = engine in ("unroll", "forward")
        return (self.settings.get("hypergradient.window") or self.steps_per_update) if windows else None

    @property
    def length(self) -> int:
        """Training steps of a run, or of one of its trainings where each begins with the initial weights."""
        once = self.settings.get("inner.reset")
        return (self.steps_per_update or 0) * (1 if once else self.settings.get("inner.updates") or 0)

    @property
    def steps_per_update(self) -> int | None:
        return self.settings.get("inner.steps_per_update")

    @property
    def identities(self) -> list[tuple[Any, ...]]:
        """What a run shares with those of other algorithms: its seed, and the values it starts at, to six digits."""
        columns = [[_six_digits(value) for value in self.starts[name]] for name in sorted(self.starts)]
        return [(int(seed), *start) for seed, *start in zip(self.seeds, *columns)]


def _six_digits(value: float) -> float:
    """-inf, which equals itself and has a place in any order, for a value that is not known."""
    return -math.inf if math.isnan(value) else float(f"{value:.6g}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"inner.updates": 100, ...} of nested mappings."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What runs of one kind have in common, dotted, of a nested config: with the range that each hyperparameter's start
    is drawn from, where it is drawn, but not the value that it has."""
    flat = {key: value for key, value in flatten(config).items() if key.split(".")[0] not in OF_A_RUN}
    steps, length = flat.pop("inner.steps", None), flat.get("inner.steps_per_update")
    if flat.get("inner.updates") is None and steps and length:
        flat["inner.updates"] = steps // length
    population = config.get("population") or {}
    drawn = population.get("runs", 1) > 1 if population.get("sample") is None else population["sample"]
    for name in config.get("space", {}):
        flat.pop(f"space.{name}.init", None)
        ranges = flat.pop(f"space.{name}.sample", "none")
        stated = not drawn or ranges == "none" or name in population.get("start", {})
        flat[f"space.{name}.start"] = GIVEN if stated else ranges
    return flat


def group(pieces: Iterable[Runs]) -> list[Runs]:
    """One `Runs` for each kind, in order of first appearance."""
    kinds: dict[tuple[str, str, str], list[Runs]] = {}
    for piece in pieces:
        kind = (piece.dataset, piece.algorithm, json.dumps(piece.settings, sort_keys=True, default=str))
        kinds.setdefault(kind, []).append(piece)
    return [concatenate(of_kind) for of_kind in kinds.values()]


def concatenate(pieces: Sequence[Runs]) -> Runs:
    """All runs of one kind; a run that is there twice (same seed, same start) counts once."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    steps = np.unique(np.concatenate([piece.steps for piece in pieces]))
    names = dict.fromkeys(name for piece in pieces for name in piece.curves)
    starts = dict.fromkeys(name for piece in pieces for name in piece.starts)
    whole = replace(
        first,
        seeds=np.concatenate([piece.seeds for piece in pieces]),
        steps=steps,
        curves={name: np.concatenate([_at(piece, piece.curve(name), steps) for piece in pieces]) for name in names},
        times=np.concatenate([_at(piece, piece.times, steps) for piece in pieces]),
        diverged=np.concatenate([piece.diverged for piece in pieces]),
        starts={
            name: np.concatenate([piece.starts.get(name, np.full(len(piece), np.nan)) for piece in pieces])
            for name in starts
        },
        cost={key: sum(piece.cost.get(key, 0.0) for piece in pieces) for key in first.cost},
        timings=tuple(timing for piece in pieces for timing in piece.timings),
    )
    seen: dict[tuple[Any, ...], int] = {}
    for position, identity in enumerate(whole.identities):
        seen.setdefault(identity if identity[0] >= 0 else (identity, position), position)
    return whole if len(seen) == len(whole) else take(whole, np.array(list(seen.values())))


def take(runs: Runs, members: np.ndarray) -> Runs:
    """Some of the runs, by position."""
    return replace(
        runs,
        seeds=runs.seeds[members],
        curves={name: curve[members] for name, curve in runs.curves.items()},
        times=runs.times[members],
        diverged=runs.diverged[members],
        starts={name: values[members] for name, values in runs.starts.items()},
        cost={key: seconds * len(members) / len(runs) for key, seconds in runs.cost.items()},
        weights=None if runs.weights is None else runs.weights[members],
    )


def drawable(runs: Runs) -> Runs:
    """With values that an axis, and what it has to leave free beyond them, can have."""
    curves = {name: np.clip(curve.astype(np.float64), -HIGHEST, HIGHEST) for name, curve in runs.curves.items()}
    curves = {name: np.where(curve > 0.0, np.maximum(curve, 1.0 / HIGHEST), curve) for name, curve in curves.items()}
    return replace(runs, curves=curves)


def _at(piece: Runs, curve: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The curve at other steps, on straight lines between its own; NaN before its first."""
    if len(piece.steps) == len(steps):
        return curve
    return np.stack([np.interp(steps, piece.steps, row, left=np.nan) for row in curve])
