"""What a search by Ray Tune has done and spent, written down as it happens.

A line of `search.jsonl` is one report of one trial: "hyper" are the natural values that its weights began with,
"hyper/<name>" those that they have been trained to. "cloned" is there in the first report after weights were copied:
{"trial", "step", "changes"}, from whom, at which step, and what was done to the hyperparameters. A report that repeats
what an interrupted search had logged before is dropped.

The directory of a trial goes on, and may tell of other weights later. So a model is packed, with all that made it,
before it is logged as the best so far: the best model of a log can always be trained again, whatever became of its
trial. Where a shared file system does not show what the trial has written, that is said, and the search goes on.

Ray copies the ledger and the budget with everything else that it needs to continue a search. So the ledger opens files
in `setup`, which comes after that, and the budget holds nothing but its limits: what is spent, the log says.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from baselines import training
from hyperopt_id.files import open_regular
from hyperopt_id.telemetry.directory import write_json
from hyperopt_id.telemetry.progress import Progress, logger
from hyperopt_id.telemetry.search import EVALUATION, SearchLog, evaluations

TAIL_BYTES = 2**20  # of a log: more than one line
OF_A_TRIAL = {"diverged": bool, "explored": (str, type(None))}  # form of what is in a line beside an evaluation


class TrialError(Exception):
    """A trial failed of a search that nothing else would end."""


class Budget(tune.Stopper):
    """Ends a search in `directory` that has spent its "gradients" or its "seconds"; None: as much as it takes."""

    def __init__(self, directory: Path, limits: Mapping[str, float | None]) -> None:
        for name, limit in limits.items():
            if limit is not None and not limit > 0:
                raise ValueError(f"given a budget of {limit} {name}; allowed: a number above 0")
        self.directory, self.limits = directory, {n: limit for n, limit in limits.items() if limit is not None}

    @property
    def has_limit(self) -> bool:
        return bool(self.limits)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if not self.limits:
            return False
        last = _last_line(self.directory / "search.jsonl")
        return last is not None and any(last[name] >= limit for name, limit in self.limits.items())


class Ledger(tune.Callback):
    """Logs a search of so many `trials` in `directory` and finishes their run directories. `steps` are those of a whole
    trial; one that has ended counts as whole in what is shown. `trials` None: nobody knows. `mode` as in
    `log.progress`."""

    def __init__(self, directory: Path, trials: int | None, steps: int, budget: Budget, mode: str) -> None:
        self.directory, self.trials, self.steps, self.budget, self.mode = directory, trials, steps, budget, mode
        self.failure: str | None = None

    def setup(self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any) -> None:
        self.log = SearchLog(self.directory, EVALUATION | OF_A_TRIAL)
        self.known = {_key(line) for line in self.log.records}
        self.best = min((_loss(line) for line in self.log.records), default=math.inf)
        last = self.log.records[-1] if self.log.records else {"gradients": 0.0, "seconds": 0.0}
        self.gradients, self.origin = last["gradients"], time.monotonic() - last["seconds"]
        ended = [path.parent.name for path in (self.directory / "runs").glob("*/summary.json")]
        self.reached = dict.fromkeys(ended, self.steps)  # training step, by trial
        total = None if self.trials is None else self.trials * self.steps
        self.progress = Progress(self.mode, total, sum(self.reached.values()), self.directory / "log.txt", unit="step")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        about = json.loads(result["about"])
        line = {
            "repetition": 0,
            "evaluation": len(self.log.records),
            "hyper": about["hyper"],
            "gradients": self.gradients + result["gradients"],
            "seconds": time.monotonic() - self.origin,
            **{name: value for name, value in about["report"].items() if name not in ("time", "update")},
            "run": f"runs/{trial}",
            "member": 0,
            "diverged": about["diverged"],
            "explored": about["explored"],
        }
        if about["cloned"] is not None:
            line["cloned"] = about["cloned"]
        if _key(line) not in self.known:
            self.known.add(_key(line))
            self._log(line, about["summary"])
            self.gradients = line["gradients"]
        self._show(trial, line["step"])

    def _log(self, line: dict[str, Any], summary: dict[str, Any]) -> None:
        better, own = _loss(line) < self.best, packed(self.directory, line)
        if better:
            own.parent.mkdir(exist_ok=True)
            self._pack(line, summary, own)
        self.log.append(line)
        if better:
            self.best = _loss(line)
            for other in set(own.parent.iterdir()) - {own}:
                other.unlink()

    def _pack(self, line: dict[str, Any], summary: dict[str, Any], file: Path) -> None:
        try:
            tree = training.pack(self.directory / line["run"], line["step"], summary)
        except (OSError, ValueError) as error:
            text = "the best model so far, of step %d of %s, can only be replayed if its trial ends with it: %s"
            logger.warning(text, line["step"], line["run"], error)
        else:
            training.save(tree, file)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._finish(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.trials is None:  # where none can be trained, new ones would begin for ever
            self.failure = f"{trial} failed ({(trial.get_error() or 'for an unknown reason').splitlines()[-1]})"

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.failure is not None:  # raised here, it leaves Ray as it is, and what Ray has noted ready to go on
            raise TrialError(self.failure)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        if self.budget.stop_all():  # the trials that it ended are as finished as they will be
            for trial in trials:
                self._finish(trial)
        self.progress.close()

    def _finish(self, trial: Any) -> None:
        if "about" in trial.last_result:
            run = self.directory / "runs" / str(trial)
            write_json(run / "summary.json", json.loads(trial.last_result["about"])["summary"])
        self._show(trial, self.steps)

    def _show(self, trial: Any, step: int) -> None:
        if self.reached.get(str(trial)) != step:
            self.reached[str(trial)] = step
            self.progress.show(sum(self.reached.values()), {"loss/validation": self.best})


def lines(directory: Path) -> list[dict[str, Any]]:
    """What has been logged so far. Raises ValueError if the log is damaged, or has lost a line."""
    path = directory / "search.jsonl"
    if not path.exists():
        return []
    with open_regular(path) as file:
        found = [line for line, _ in evaluations(file, EVALUATION | OF_A_TRIAL)]
    for number, line in enumerate(found):
        if line["evaluation"] != number:
            text = f"{path}: line {number + 1} is evaluation {line['evaluation']}, where {number} was to come"
            raise ValueError(f"{text}: lines are lost; start a new search instead")
    return found


def packed(directory: Path, line: Mapping[str, Any]) -> Path:
    """Where the model of a line is, if it is the best in the log."""
    return directory / "incumbent" / f"evaluation_{line['evaluation']:06d}.pt"


def _last_line(log: Path) -> dict[str, Any] | None:
    """The last whole line of a log, None where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            whole = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
    except FileNotFoundError:
        return None
    return json.loads(whole[-1]) if whole else None


def _loss(line: dict[str, Any]) -> float:
    return math.inf if line["loss/validation"] is None else line["loss/validation"]


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    """Tells evaluations apart: weights that were copied and changed are others than those that were there before."""
    return line["run"], line["explored"], line["step"]
