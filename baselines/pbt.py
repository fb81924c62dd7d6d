"""Population based training (Jaderberg et al. 2017, arXiv 1711.09846), by Ray Tune's own scheduler.

    python -m baselines.pbt -c configs/uci_energy.yaml [configs/Ours_LR_Momentum.yaml] --population 200 --interval 100

A population starts at random. After every interval, a member whose validation loss is in the worst quarter takes over
the weights of one in the best quarter, with the state of its optimizers and the hyperparameters as they are there by
now, and goes on with these multiplied by 0.8 or 1.2, or drawn anew: natural values, within their bounds. The search
ends when all members have had their steps, even if that leaves a part of a budget.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from baselines import arguments, cluster
from baselines.cluster import Resources
from hyperopt_id.config_schema import Config

QUARTER = 0.25


def search(
    config: Config,
    directory: Path,
    *,
    population: int,
    max_steps: int | None = None,
    interval: int = 100,
    gradients: float | None = None,
    seconds: float | None = None,
    resources: Resources | None = None,
) -> dict[str, Any]:
    """Search as the module says, or complete the search in `directory`; its summary.

    `max_steps` (default: the config's) are those of each member, `interval` those between two comparisons. The search
    ends when the members together have used up so many `gradients` or `seconds`.
    """
    cluster.check_ray()
    from baselines import training, tuning
    from baselines.schedulers import Population, explored

    config = checked(config, population, max_steps, interval)
    scheduler = Population(
        time_attr="step",
        perturbation_interval=interval,
        quantile_fraction=QUARTER,
        custom_explore_fn=partial(explored, config),
        log_config=False,
    )
    pbt = tuning.Search(
        config,
        directory,
        {"method": "PBT", "interval": interval},
        population,
        scheduler,
        is_over=training.never,
        save_every=1,
    )
    return tuning.complete(pbt, {"gradients": gradients, "seconds": seconds}, resources)


def checked(config: Config, population: int, max_steps: int | None, interval: int) -> Config:
    """The config of such a search; a ValueError where that is impossible."""
    from baselines import tuning

    if population < 2:
        raise ValueError(f"given a population of {population}; needed: 2 or more, one to take over from another")
    steps = config.inner.steps_per_update
    if interval < 1 or interval % steps:
        raise ValueError(
            f"given an interval of {interval} steps; allowed: multiples of inner.steps_per_update, which is {steps}"
        )
    config = tuning.population_config(config, population, max_steps, interval // steps)
    if interval > config.inner.total_steps:
        raise ValueError(f"given an interval of {interval} steps; a training has {config.inner.total_steps}")
    if config.report.trace_every is None and not any(hyper.tune for hyper in config.space.values()):
        return replace(config, report=replace(config.report, trace_every=interval // steps))  # they change only then
    return config


def run(given: Sequence[str] | None = None) -> None:
    parser = arguments.parser("Population based training (Ray Tune).")
    add = parser.add_argument
    add("--population", type=int, default=200, metavar="N", help="members (default %(default)s)")
    add("--max-steps", type=int, metavar="N", help="training steps of each member (default: the config's)")
    add("--interval", type=int, default=100, metavar="N", help="steps between two comparisons (default %(default)s)")
    arguments.add_budget(parser)
    cluster.add_options(parser)
    options = parser.parse_args(given)
    arguments.searching(
        search,
        options,
        "pbt",
        population=options.population,
        max_steps=options.max_steps,
        interval=options.interval,
        resources=cluster.resources(options),
    )


if __name__ == "__main__":
    sys.exit(arguments.main(run))
