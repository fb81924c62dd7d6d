"""A training as Ray Tune sees it: an actor that works on one trial after another.

The data set and the parts of a run are built once for each actor. Trial number m begins as member m of the search's
population. Its config may hold

    explore    {"id", "changes"}: changes to make to the state that it takes up, unless they have been made to it before

and its reports hold the training step as "step", the validation loss as "score", which is `WORST` where it is not
finite (a scheduler compares scores, and NaN compares with nothing), and the gradients that it has spent since the last
report.
One iteration of Tune is one report. A checkpoint holds a name, which tells a trial that the state is another's.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray import tune

from baselines import training
from baselines.restoring import STATE, newest
from baselines.training import Training, Tree, Workshop
from hyperopt_id import runtime
from hyperopt_id.build.names import starting_values
from hyperopt_id.config_schema import Config
from hyperopt_id.telemetry import synchronize

WORST = 1e30


class Trial(tune.Trainable):
    """`setup` is given the config of the search, its directory, whether trainings are compiled, the folder that
    relative paths begin at, and what says whether a training is over before its last step."""

    workshop: Workshop
    current: Training | None

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        config: dict[str, Any],
        search: Config,
        directory: str,
        compiled: bool,
        folder: str,
        is_over: Callable[[Training], bool],
    ) -> None:
        os.chdir(folder)
        torch.set_num_threads(search.threads or 1)
        runtime.keep_freed_memory()
        self.workshop, self.current = training.open_workshop(search, compiled), None
        self.directory, self.is_over = Path(directory), is_over
        self.runs = self.directory / "runs"
        self.cloned: dict[str, Any] | None = None
        self.explored: str | None = None  # the last changes that were made to the hyperparameters
        self.best = math.inf  # validation loss since it began, or took up a state

    def step(self) -> dict[str, Any]:
        if self.current is None:
            taken_up = self._begin(str(self.trial_name))
            if taken_up is not None:
                return self._result(taken_up, taken_up.progress.update)
        assert self.current is not None
        before = self.current.progress.update
        training.advance(self.current)
        return self._result(self.current, before)

    def _begin(self, name: str) -> Training | None:
        """Begin the trial, at a checkpoint of its own where Ray knows of none; then, the training that goes on there,
        whose last report Ray has to be given again."""
        saved = newest(self.directory, name)
        if saved is None:
            self.current = training.begin(self.workshop, self.runs / name, member(name))
            return None
        self._take_up(saved, None)
        return self.current

    def _result(self, current: Training, before: int) -> dict[str, Any]:
        """What Ray is told of a training that was at hyper-update `before` when it was told last."""
        report = current.reports.last
        cloned, self.cloned = self.cloned, None
        last = report["update"] >= self.workshop.plan.updates
        about = {
            "report": report,
            "hyper": {name: values[0] for name, values in starting_values(current.config).items()},
            "diverged": training.is_diverged(current),
            "cloned": cloned,
            "explored": self.explored,
            "summary": training.summary(current),
        }
        loss = report["loss/validation"]
        if loss is not None and loss < self.best:  # it may be packed, perhaps on another machine, which sees the disk
            self.best = loss
            synchronize(current.reports.directory)
        return {
            "step": report["step"],
            "score": score(loss),
            "gradients": (report["update"] - before) * self.workshop.gradients,
            "about": json.dumps(about),  # text, which Tune carries along without looking into it
            "done": last or self.is_over(current),
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        assert self.current is not None, "a trial is saved after it has reported"
        tree = training.to_tree(self.current)
        tree |= {"trial": self.trial_name, "explored": self.explored}
        training.save(tree, Path(checkpoint_dir) / STATE)

    def load_checkpoint(self, checkpoint: Any) -> None:
        tree = training.load(Path(checkpoint) / STATE)
        explore = self.config.get("explore")
        self._leave()
        self._take_up(tree, explore if explore is not None and explore["id"] != tree["explored"] else None)

    def _take_up(self, tree: Tree, explore: dict[str, Any] | None) -> None:
        """Go on from a checkpoint, this trial's or another one's, after the changes in `explore`."""
        changes = None if explore is None else explore["changes"]
        if tree["trial"] != self.trial_name:
            step = tree["update"] * self.workshop.plan.steps_per_update
            self.cloned = {"trial": tree["trial"], "step": step, "changes": changes}
        self.explored = tree["explored"] if explore is None else explore["id"]
        self.current = training.take_up(self.workshop, self.runs / str(self.trial_name), tree, changes)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._leave()
        return True

    def cleanup(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self.current is not None:
            synchronize(self.current.reports.directory)
            self.current.reports.close()
        self.current, self.cloned, self.explored, self.best = None, None, None, math.inf


def named(number: int) -> str:
    """The name of a trial, and of its run directory."""
    return f"trial_{number:04d}"


def member(name: str) -> int:
    """The inverse."""
    return int(name.removeprefix("trial_"))


def score(loss: float | None) -> float:
    """A validation loss, as it is in a report, as a number that compares with every other."""
    return WORST if loss is None else min(loss, WORST)
