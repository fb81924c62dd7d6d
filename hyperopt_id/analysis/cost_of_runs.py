"""What runs took: seconds of training, also as multiples of training in which nothing is tuned.

Runs that train side by side share the machine, and compilation does not speed up all methods alike: what a method costs
is measured by runs that trained alone and were not compiled, wherever there are any.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from hyperopt_id.analysis.runs import Runs, Timing
from hyperopt_id.analysis.selection import VANILLA, alone

OVERHEAD = ("compile", "evaluation", "logging")  # what plain training would need as well, or only once


def training_seconds(runs: Runs) -> float:
    """Seconds of training per run and 1000 steps, without compiling, evaluating and logging; of runs that trained
    alone, if there are any."""
    timings = alone(runs) or runs.timings
    return 1000.0 * sum(map(_training, timings)) / sum(timing.runs * timing.steps for timing in timings)


class Multiple(NamedTuple):
    """Training time as a multiple of another: of all run directories together, the lowest and the highest of one of
    them, and how many there are. Of one alone nobody knows how it spreads: lowest and highest are NaN."""

    value: float
    lowest: float
    highest: float
    directories: int


def multiples(kinds: Mapping[str, Runs]) -> dict[str, Multiple]:
    """{algorithm: its training time as a multiple of training without tuning}; empty where nothing trained so."""
    seconds = {name: training_seconds(runs) for name, runs in kinds.items()}
    vanilla = next((seconds[name] for name in VANILLA if name in seconds), None)
    return {name: _multiple(runs, seconds[name], vanilla) for name, runs in kinds.items()} if vanilla else {}


def _multiple(runs: Runs, seconds: float, vanilla: float) -> Multiple:
    each = [1000.0 * _training(t) / (t.runs * t.steps) / vanilla for t in alone(runs) or runs.timings]
    ends = (min(each), max(each)) if len(each) > 1 else (math.nan, math.nan)
    return Multiple(seconds / vanilla, *ends, len(each))


def _training(timing: Timing) -> float:
    return timing.seconds["total"] - sum(timing.seconds.get(part, 0.0) for part in OVERHEAD)
