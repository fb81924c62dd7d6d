"""Ray Tune's schedulers, with what they need to go on after an interruption as if there had been none."""

import random
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining

from baselines.ledger import lines
from baselines.perturbation import explore
from baselines.trainable import score
from hyperopt_id.build.names import build_space
from hyperopt_id.config_schema import Config


class Asha(ASHAScheduler):
    """Ray's scheduler, and what it forgets. After an interruption it is told again what was reported before, in the
    order of the log in `directory`, also by trials that Ray has forgotten and will begin again. A trial that it has
    stopped stays so: where its worker or the search was lost, it is trained again up to the step where it was stopped.
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(**options)
        self.directory, self.remembers = directory.resolve(), False
        self.ends: dict[str, int] = {}  # training steps, of trials that were stopped

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _known(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self._remember(tune_controller)
        return self._decide(tune_controller, str(trial), result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._remember(tune_controller)
        super().on_trial_complete(tune_controller, _known(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _known(trial))

    def _remember(self, tune_controller: Any) -> None:
        if self.remembers:
            return
        self.remembers = True
        for line in lines(self.directory):
            name = Path(line["run"]).name
            self.on_trial_add(tune_controller, name)
            self._decide(tune_controller, name, {"step": line["step"], "score": score(line["loss/validation"])})

    def _decide(self, tune_controller: Any, name: str, result: dict[str, Any]) -> str:
        if name not in self.ends:
            decision = super().on_trial_result(tune_controller, _known(name), result)
            if decision != self.STOP:
                return decision
            self.ends[name] = result["step"]
        return self.STOP if result["step"] >= self.ends[name] else self.CONTINUE


def _known(trial: Any) -> Any:
    """A trial as Ray's scheduler may know it: by its name, which is the same after an interruption."""
    return SimpleNamespace(trial_id=str(trial))


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
