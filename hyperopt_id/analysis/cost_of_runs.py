"""What runs took: seconds of training, also as multiples of training in which nothing is tuned.

Runs that train side by side share the machine, and compilation does not speed up all methods alike: what a method costs
is measured by runs that trained alone and were not compiled, wherever there are any.
"""

from collections.abc import Mapping

from hyperopt_id.analysis.runs import Runs, Timing
from hyperopt_id.analysis.selection import VANILLA, alone

OVERHEAD = ("compile", "evaluation", "logging")  # what plain training would need as well, or only once


def training_seconds(runs: Runs) -> float:
    """Seconds of training per run and 1000 steps, without compiling, evaluating and logging; of runs that trained
    alone, if there are any."""
    timings = alone(runs) or runs.timings
    return 1000.0 * sum(map(_training, timings)) / sum(timing.runs * timing.steps for timing in timings)


def multiples(kinds: Mapping[str, Runs]) -> dict[str, float]:
    """{algorithm: its training time as a multiple of training without tuning}; empty where nothing trained so."""
    seconds = {name: training_seconds(runs) for name, runs in kinds.items()}
    vanilla = next((seconds[name] for name in VANILLA if name in seconds), None)
    return {name: taken / vanilla for name, taken in seconds.items()} if vanilla else {}


def _training(timing: Timing) -> float:
    return timing.seconds["total"] - sum(timing.seconds.get(part, 0.0) for part in OVERHEAD)
