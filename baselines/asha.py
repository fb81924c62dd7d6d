"""Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), by Ray Tune's own scheduler.

    python -m baselines.asha -c configs/uci_energy.yaml [configs/Ours_LR_Momentum.yaml] --trials 200 --max-steps 4000

Trials start at random. One that reaches r = grace η^k training steps (k = 0, 1, ...) goes on only if its validation
loss is among the best 1/η of all that have come so far; a trial whose loss is no longer finite ends at once.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from baselines import arguments, cluster, tuning
from baselines.cluster import Resources
from baselines.ledger import budget
from baselines.trainable import score
from baselines.tuning import Search
from hyperopt_id.config_schema import Config

SAVED = 20  # checkpoints of a trial that goes to the end


class Asha(ASHAScheduler):
    """Ray's scheduler, and what it forgets. After an interruption it is told again what was reported before, in the
    order of the log in `directory`; and a trial that it has stopped stays so where its worker was lost before it ended.
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(**options)
        self.directory, self.remembers = directory, False
        self.trials: dict[str, Any] = {}
        self.stopped: set[str] = set()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        self.trials[str(trial)] = trial

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self._remember(tune_controller)
        return self._decide(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._remember(tune_controller)
        super().on_trial_complete(tune_controller, trial, result)

    def _remember(self, tune_controller: Any) -> None:
        if self.remembers:
            return
        self.remembers = True
        for line in tuning.lines(self.directory):
            result = {"step": line["step"], "score": score(line["loss/validation"])}
            self._decide(tune_controller, self.trials[Path(line["run"]).name], result)

    def _decide(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if str(trial) not in self.stopped:
            decision = super().on_trial_result(tune_controller, trial, result)
            if decision != self.STOP:
                return decision
            self.stopped.add(str(trial))
        return self.STOP


def search(
    config: Config,
    directory: Path,
    *,
    trials: int,
    max_steps: int | None = None,
    grace: int | None = None,
    reduction: float = 4.0,
    gradients: float | None = None,
    seconds: float | None = None,
    resources: Resources | None = None,
) -> dict[str, Any]:
    """Search as the module says, or complete the search in `directory`; its summary.

    `max_steps` (default: the config's) are those of a trial that is never stopped, `grace` (default: up to the first
    report) those before one may be. The search ends when its trials have used up so many `gradients` or `seconds`.
    """
    config = tuning.population_config(config, trials, max_steps, None)
    every = config.report.every or 1
    grace = grace or every * config.inner.steps_per_update
    most = config.inner.total_steps
    if not 1 <= grace <= most:
        raise ValueError(f"given a grace of {grace} steps; allowed: from 1 to the {most} steps of a whole trial")
    if not reduction > 1:
        raise ValueError(f"given a reduction of {reduction}; allowed: a number above 1")
    options = {"grace": grace, "reduction": reduction}
    scheduler = Asha(directory, time_attr="step", max_t=most, grace_period=grace, reduction_factor=reduction)
    updates = config.inner.total_updates
    return tuning.complete(
        Search(
            config,
            directory,
            {"method": "ASHA", **options, "gradients": gradients, "seconds": seconds},
            scheduler,
            give_up=True,
            save_every=max(1, updates // every // SAVED),
            budget=budget(directory.resolve(), gradients, seconds),
            resources=resources or Resources(),
        )
    )


def run(given: Sequence[str] | None = None) -> None:
    parser = arguments.parser("Asynchronous successive halving over random starts (Ray Tune).")
    add = parser.add_argument
    add("--trials", type=int, default=200, metavar="N", help="random starts (default %(default)s)")
    add("--max-steps", type=int, metavar="N", help="training steps of a whole trial (default: the config's)")
    add("--grace", type=int, metavar="N", help="steps before a trial may be stopped (default: up to the first report)")
    add("--reduction", type=float, default=4.0, metavar="F", help="one in F trials goes on (default %(default)s)")
    arguments.add_budget(parser)
    cluster.add_options(parser)
    options = parser.parse_args(given)
    arguments.searching(
        search,
        options,
        "asha",
        trials=options.trials,
        max_steps=options.max_steps,
        grace=options.grace,
        reduction=options.reduction,
        resources=cluster.resources(options),
    )


if __name__ == "__main__":
    sys.exit(arguments.main(run))
