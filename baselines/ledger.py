"""What a search by Ray Tune has done and spent, written down as it happens.

A line of `search.jsonl` is one report of one trial: "hyper" are the natural values that its weights began with,
"hyper/<name>" those that they have been trained to. "cloned" is there in the first report after weights were copied:
{"trial", "step", "changes"}, from whom, at which step, and what was done to the hyperparameters. A report that repeats
what an interrupted search had logged before is dropped.

Ray copies the ledger and the budget with everything else that it needs to continue a search, so that files are opened
in `setup`, which comes after that.
"""

import functools
import json
import math
import time
from pathlib import Path
from typing import Any

from ray import tune

from hyperopt_id.telemetry.directory import write_json
from hyperopt_id.telemetry.progress import Progress
from hyperopt_id.telemetry.search import SearchLog


@functools.cache
def budget(directory: Path, gradients: float | None, seconds: float | None) -> "Budget":
    """The budget of the search in `directory`; None: as much as it takes."""
    return Budget(directory, gradients, seconds)


class Budget(tune.Stopper):
    """Ends a search that has spent its gradients or its seconds. Ray makes copies of it at several places, all of which
    are to know what the ledger knows: a copy is the one that `budget` returns."""

    def __init__(self, directory: Path, gradients: float | None, seconds: float | None) -> None:
        self.limits = {"gradients": gradients, "seconds": seconds}
        for name, limit in self.limits.items():
            if limit is not None and not limit > 0:
                raise ValueError(f"given a budget of {limit} {name}; allowed: a number above 0")
        self.directory, self.spent = directory, dict.fromkeys(self.limits, 0.0)

    def __reduce__(self) -> tuple[Any, ...]:
        return budget, (self.directory, *self.limits.values())

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def know(self, logged: list[dict[str, Any]]) -> None:
        """What has been spent is what the last line says."""
        self.spent = {name: logged[-1][name] if logged else 0.0 for name in self.limits}

    def stop_all(self) -> bool:
        return any(limit is not None and self.spent[name] >= limit for name, limit in self.limits.items())


class Ledger(tune.Callback):
    """Logs a search of so many `trials` in `directory` and finishes their run directories. `steps` are those of a whole
    trial; one that has ended counts as whole in what is shown. `mode` as in `log.progress`."""

    def __init__(self, directory: Path, trials: int, steps: int, budget: Budget, mode: str) -> None:
        self.directory, self.trials, self.steps, self.budget, self.mode = directory, trials, steps, budget, mode

    def setup(self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any) -> None:
        self.log = SearchLog(self.directory)
        self.known = {_key(line) for line in self.log.records}
        self.best = min((_loss(line) for line in self.log.records), default=math.inf)
        self.budget.know(self.log.records)
        self.origin = time.monotonic() - self.budget.spent["seconds"]
        ended = [path.parent.name for path in (self.directory / "runs").glob("*/summary.json")]
        self.reached = dict.fromkeys(ended, self.steps)  # training step, by trial
        total, done = self.trials * self.steps, sum(self.reached.values())
        self.progress = Progress(self.mode, total, done, self.directory / "log.txt", unit="step")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        about = json.loads(result["about"])
        spent = self.budget.spent
        line = {
            "repetition": 0,
            "evaluation": len(self.log.records),
            "hyper": about["hyper"],
            "gradients": spent["gradients"] + result["gradients"],
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
            self.log.append(line)
            self.best = min(self.best, _loss(line))
            spent.update(gradients=line["gradients"], seconds=line["seconds"])
        self._show(trial, line["step"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._finish(trial)

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


def _loss(line: dict[str, Any]) -> float:
    return math.inf if line["loss/validation"] is None else line["loss/validation"]


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    """Tells evaluations apart: weights that were copied and changed are others than those that were there before."""
    return line["run"], line["explored"], line["step"]
