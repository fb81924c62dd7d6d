"""Ray Tune's schedulers, with what they need to go on after an interruption as if there had been none."""

import random
import uuid
from pathlib import Path
from typing import Any

from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining

from baselines import tuning
from baselines.perturbation import explore
from baselines.trainable import score
from hyperopt_id.build.names import build_space
from hyperopt_id.config_schema import Config


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
