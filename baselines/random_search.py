"""Random search: of N random starts, take the one with the lowest final validation loss.

    python -m baselines.random_search -c configs/uci_energy.yaml --trials 30 [--repetitions R] [--batch 3]

Trial e of repetition r starts where member r N + e of a population of R N starts. With `--batch 3`, the trials of each
repetition are taken by threes, and the best of each three is noted: Random (3-batched) of arXiv 2110.10461.

Any algorithm can be started several times like this. It is how one that tunes in a single pass spends a larger budget:

    python -m baselines.random_search -c configs/uci_energy.yaml configs/Ours_LR_Momentum.yaml --trials 5
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines import arguments, rounds
from hyperopt_id.config_schema import Config
from hyperopt_id.telemetry.search import incumbents


def search(
    config: Config,
    directory: Path,
    *,
    trials: int | None = None,
    repetitions: int = 1,
    batch: int = 1,
    gradients: float | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Train `trials` starts for each repetition, or as many as its budget holds, and return the summary. What is in
    `directory` already is not done again.

    All are trained together; under a budget of `seconds`, in rounds of about `population.chunk` starts.
    """
    rounds.searched(config)
    if batch < 1 or (trials or 0) % batch:
        raise ValueError(f"given {trials} trials in batches of {batch}; allowed: 1 or more, and whole batches")
    if trials is None and gradients is None and seconds is None:
        raise ValueError(f"nothing says when the search ends: give {arguments.ENDS}")
    together = None if seconds is None else max(1, config.population.chunk // max(1, repetitions))
    plan = rounds.Plan(repetitions, trials, together, gradients, seconds)
    settings = {"method": "random search", "repetitions": repetitions, "trials": trials, "batch": batch}
    settings |= {"gradients": gradients, "seconds": seconds}
    tunes = any(hyper.tune for hyper in config.space.values())
    method = config.algorithm if tunes else "Random"

    def summarize(evaluations: Sequence[rounds.Evaluation]) -> dict[str, Any]:
        found = {"method": method, "repetitions": incumbents(evaluations)}
        batched = {"method": f"{method} ({batch}-batched)", "batches": choices(evaluations, batch)}
        return found if batch == 1 else found | batched

    return rounds.complete(rounds.Search(config, directory, settings, plan), summarize)


def choices(evaluations: Sequence[rounds.Evaluation], batch: int) -> list[rounds.Evaluation]:
    """The best by validation loss of every `batch` trials in turn of a repetition; those left over are no batch."""
    batches = defaultdict(list)
    for line in evaluations:
        batches[line["repetition"], line["evaluation"] // batch].append(line)
    return [{"batch": number, **incumbents(lines)[0]} for (_, number), lines in batches.items() if len(lines) == batch]


def run(given: Sequence[str] | None = None) -> None:
    parser = arguments.parser("Random search: the best of several random starts by validation loss.")
    add = parser.add_argument
    add("--trials", type=int, metavar="N", help="random starts of each repetition")
    add("--repetitions", type=int, default=1, metavar="R", help="independent searches, trained together")
    add("--batch", type=int, default=1, metavar="B", help="also choose the best of every B trials")
    arguments.add_budget(parser)
    options = parser.parse_args(given)
    arguments.searching(
        search,
        options,
        "random_search",
        trials=options.trials,
        repetitions=options.repetitions,
        batch=options.batch,
    )


if __name__ == "__main__":
    sys.exit(arguments.main(run))
