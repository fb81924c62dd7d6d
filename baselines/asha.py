"""Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), by Ray Tune's own scheduler.

    python -m baselines.asha -c configs/uci_energy.yaml [configs/Ours_LR_Momentum.yaml] --trials 200 --max-steps 4000

Trials start at random. One that reaches r = grace η^k training steps (k = 0, 1, ...) goes on only if its validation
loss is among the best 1/η of all that have come so far; a trial whose loss is no longer finite ends at once. Without
`--trials`, new ones begin until a budget is spent.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines import arguments, cluster
from baselines.cluster import Resources
from hyperopt_id.config_schema import Config

TRIALS = 200  # where no budget says how many
SAVED = 20  # checkpoints of a trial that goes to the end


def search(
    config: Config,
    directory: Path,
    *,
    trials: int | None = None,
    max_steps: int | None = None,
    grace: int | None = None,
    reduction: float = 4.0,
    gradients: float | None = None,
    seconds: float | None = None,
    resources: Resources | None = None,
) -> dict[str, Any]:
    """Search as the module says, or complete the search in `directory`; its summary.

    `max_steps` (default: the config's) are those of a trial that is never stopped, `grace` (default: up to the first
    report) those before one may be. The search ends when its trials have used up so many `gradients` or `seconds`;
    `trials` None: only then.
    """
    cluster.check_ray()
    from baselines import training, tuning
    from baselines.schedulers import Asha

    config = tuning.population_config(config, 1 if trials is None else trials, max_steps, None)
    every = config.report.every or 1
    grace = grace or every * config.inner.steps_per_update
    most = config.inner.total_steps
    if not 1 <= grace <= most:
        raise ValueError(f"given a grace of {grace} steps; allowed: from 1 to the {most} steps of a whole trial")
    if not reduction > 1:
        raise ValueError(f"given a reduction of {reduction}; allowed: a number above 1")
    asha = tuning.Search(
        config,
        directory,
        {"method": "ASHA", "grace": grace, "reduction": reduction},
        trials,
        Asha(directory, time_attr="step", max_t=most, grace_period=grace, reduction_factor=reduction),
        is_over=training.is_diverged,
        save_every=max(1, config.inner.total_updates // every // SAVED),
    )
    return tuning.complete(asha, {"gradients": gradients, "seconds": seconds}, resources)


def run(given: Sequence[str] | None = None) -> None:
    parser = arguments.parser("Asynchronous successive halving over random starts (Ray Tune).")
    add = parser.add_argument
    add("--trials", type=int, metavar="N", help=f"random starts (default: {TRIALS}, or as many as a budget holds)")
    add("--max-steps", type=int, metavar="N", help="training steps of a whole trial (default: the config's)")
    add("--grace", type=int, metavar="N", help="steps before a trial may be stopped (default: up to the first report)")
    add("--reduction", type=float, default=4.0, metavar="F", help="one in F trials goes on (default %(default)s)")
    arguments.add_budget(parser)
    cluster.add_options(parser)
    options = parser.parse_args(given)
    budget = options.budget_gradients, options.budget_seconds
    arguments.searching(
        search,
        options,
        "asha",
        trials=TRIALS if options.trials is None and budget == (None, None) else options.trials,
        max_steps=options.max_steps,
        grace=options.grace,
        reduction=options.reduction,
        resources=cluster.resources(options),
    )


if __name__ == "__main__":
    sys.exit(arguments.main(run))
