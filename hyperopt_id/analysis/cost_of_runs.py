"""What runs took: seconds of training, also as multiples of training in which nothing is tuned."""

from collections.abc import Mapping

from hyperopt_id.analysis.runs import Runs
from hyperopt_id.analysis.selection import VANILLA

OVERHEAD = ("compile", "evaluation", "logging")  # what plain training would need as well, or only once


def training_seconds(runs: Runs) -> float:
    """Seconds of training per run and 1000 steps, without compiling, evaluating and logging."""
    total = runs.cost["total"] - sum(runs.cost.get(part, 0.0) for part in OVERHEAD)
    return 1000.0 * total / (len(runs) * runs.steps[-1])


def multiples(kinds: Mapping[str, Runs]) -> dict[str, float]:
    """{algorithm: its training time as a multiple of training without tuning}; empty where nothing trained so."""
    seconds = {name: training_seconds(runs) for name, runs in kinds.items()}
    vanilla = next((seconds[name] for name in VANILLA if name in seconds), None)
    return {name: taken / vanilla for name, taken in seconds.items()} if vanilla else {}
