"""Population based training (Jaderberg et al. 2017, arXiv 1711.09846), by Ray Tune's own scheduler.

    python -m baselines.pbt -c configs/uci_energy.yaml [configs/Ours_LR_Momentum.yaml] --population 200 --interval 100

A population starts at random. After every interval, a member whose validation loss is in the worst quarter takes over
the weights of one in the best quarter, with the state of its optimizers and the hyperparameters as they are there by
now, and goes on with these multiplied by 0.8 or 1.2, or drawn anew: natural values, within their bounds.
"""

import random
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ray.tune.schedulers import PopulationBasedTraining

from baselines import arguments, cluster, tuning
from baselines.cluster import Resources
from baselines.ledger import budget
from baselines.perturbation import explore
from baselines.tuning import Search
from hyperopt_id.build.names import build_space
from hyperopt_id.config_schema import Config

QUARTER = 0.25


class Population(PopulationBasedTraining):
    """Ray's scheduler, which does not remember the members' scores before an interruption: the results that their
    newest checkpoints were made at tell it."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        if trial.checkpoint is None:
            return
        state = self._trial_state[trial]
        result = trial.run_metadata.checkpoint_manager.latest_checkpoint_result.metrics
        self._save_trial_state(state, result["step"], result, trial)
        state.last_perturbation_time = result["step"]
        state.last_checkpoint = trial.checkpoint


def explored(config: Config, trial: dict[str, Any]) -> dict[str, Any]:
    """The config of a trial that takes over from the one with config `trial` (see `baselines.trainable`)."""
    chance = random.Random(random.getrandbits(64))
    return {**trial, "explore": {"id": uuid.uuid4().hex, "changes": explore(build_space(config), chance)}}


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
        config = replace(config, report=replace(config.report, trace_every=interval // steps))  # they change only then
    scheduler = Population(
        time_attr="step",
        perturbation_interval=interval,
        quantile_fraction=QUARTER,
        custom_explore_fn=partial(explored, config),
        log_config=False,
    )
    return tuning.complete(
        Search(
            config,
            directory,
            {"method": "PBT", "interval": interval, "gradients": gradients, "seconds": seconds},
            scheduler,
            give_up=False,
            save_every=1,
            budget=budget(directory.resolve(), gradients, seconds),
            resources=resources or Resources(),
        )
    )


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
