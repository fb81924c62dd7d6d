"""A search by one of Ray Tune's schedulers.

    DIR/search.jsonl, summary.json, runs/trial_0000, ...    as of every search (see `baselines.directory`)
    DIR/best/                  the run of the best model, where its trial went on after it (see `baselines.conclusion`)
    DIR/incumbent/             the best model so far
    DIR/ray/, saved/           what Ray needs to go on (see `baselines.restoring`); all three go when it is finished

Trial m is member m of the config's population: seed and drawn starting values are those that every other method starts
with. A search that was interrupted goes on by Ray's own restore, from the newest checkpoint of each trial. Where it was
killed, Ray's knowledge is older than the log, which therefore decides what has been done and spent.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import TrialScheduler

from baselines import restoring, training
from baselines.arguments import ENDS
from baselines.cluster import Resources, cluster, environment, shared
from baselines.conclusion import conclude, tidy
from baselines.directory import claimed, discard, identify, settings_of, summary_of
from baselines.ledger import Budget, Ledger, TrialError, lines
from baselines.rounds import searched
from baselines.trainable import Trial, named
from baselines.training import Training, Workshop
from hyperopt_id.config import from_dict, to_dict
from hyperopt_id.config_schema import Config
from hyperopt_id.telemetry import is_finished
from hyperopt_id.telemetry.directory import write_json

RETRIES = 2  # of a trial whose worker dies
IN_ORDER = {"TUNE_MAX_PENDING_TRIALS_PG": "1"}  # Ray would make 200 trials ahead, and forget their order
KEPT = 4  # checkpoints of a trial: with fewer, one that is to be copied may be gone


@dataclass(frozen=True)
class Search:
    """`settings`, plain data, tell searches with one config apart; "method" is among them. `trials` None: new ones
    until the budget is spent. `is_over` says whether a training ends before its last step, `save_every` how many
    reports lie between two checkpoints of one that goes on."""

    config: Config
    directory: Path
    settings: Mapping[str, Any]
    trials: int | None
    scheduler: TrialScheduler
    is_over: Callable[[Training], bool]
    save_every: int


def population_config(config: Config, trials: int, max_steps: int | None, report_every: int | None) -> Config:
    """The config of a search: a population with a member for each trial; a ValueError where that is impossible."""
    if trials < 1:
        raise ValueError(f"given {trials} trials; a search needs 1 or more")
    searched(config)
    inner, members = config.inner, config.population
    if max_steps is not None:
        if max_steps < inner.steps_per_update:
            raise ValueError(f"given a maximum of {max_steps} steps; needed: {inner.steps_per_update} or more")
        inner = replace(inner, updates=max_steps // inner.steps_per_update)
    members = replace(members, runs=trials, sample=True if members.sample is None else members.sample)
    report = replace(config.report, every=report_every or config.report.every or max(1, inner.total_updates // 100))
    return from_dict(to_dict(replace(config, inner=inner, population=members, report=report)))


def complete(search: Search, limits: Mapping[str, float | None], resources: Resources | None = None) -> dict[str, Any]:
    """The summary of a search, after doing what is still to be done. `limits` are the "gradients" and "seconds" that
    it may spend. A `KeyboardInterrupt` where Ctrl-C stopped it; a ValueError for a mistake of the user, and for trials
    that failed."""
    resources = shared(resources or Resources(), search.config.device, torch.cuda.device_count())
    search = replace(search, config=_placed(search.config, bool(resources.gpus_per_trial)))
    directory, config = search.directory, search.config
    budget = Budget(directory.resolve(), limits)
    if search.trials is None and not budget.has_limit:
        raise ValueError(f"nothing says when the search ends: give {ENDS}")
    with claimed(directory, config, {**search.settings, **limits, "trials": search.trials}) as new:
        if is_finished(directory):
            tidy(directory)
            return summary_of(directory)
        lines(directory)  # says what is wrong with the log, before anything else reads it
        return _complete(search, budget, resources, new)


def _complete(search: Search, budget: Budget, resources: Resources, new: bool) -> dict[str, Any]:
    """The same in a directory that is held and not finished."""
    directory = search.directory
    try:
        compiled = _workshop(search).parts.compiled  # what is wrong with the config or the data is said here, once
        results = None if _is_over(search, budget) else _results(search, budget, resources, compiled)
    except ValueError:
        if new and not lines(directory):
            discard(directory)
        raise
    except TrialError as error:
        raise ValueError(f"{error}; --resume tries it again") from error
    if results is not None:
        _check_over(search, budget, results)
    tunes = any(hyper.tune for hyper in search.config.space.values())
    method = search.settings["method"] + (f" + {search.config.algorithm}" if tunes else "")
    return conclude(directory, method, partial(_workshop, search))


def _placed(config: Config, on_gpu: bool) -> Config:
    """On the device that Ray gives to a trial."""
    if config.device == "cuda" and not on_gpu:
        raise ValueError("device cuda was asked for, but trials have none; add --gpus-per-trial 1, or less")
    return replace(config, device="cuda" if on_gpu else "cpu") if config.device == "auto" else config


def _workshop(search: Search) -> Workshop:
    """For trainings in this process. Whether they are compiled is decided once, for all workers, and for the time after
    an interruption."""
    known = settings_of(search.directory)
    here = search.config if torch.cuda.is_available() else replace(search.config, device="cpu")
    workshop = training.open_workshop(here, known.get("compiled"))
    identify(search.directory, search.config, workshop.parts)
    write_json(search.directory / "search.json", {**known, "compiled": workshop.parts.compiled})
    return workshop


def _results(search: Search, budget: Budget, resources: Resources, compiled: bool) -> tune.ResultGrid:
    """What Ray says of all trials when it has trained them as far as they go."""
    with cluster(resources), environment(IN_ORDER if search.trials is None else {}):
        before = random.getstate()
        random.seed(f"{search.config.seed}/{len(lines(search.directory))}")  # Ray's schedulers draw from here
        try:
            return _tuner(search, budget, resources, compiled).fit()
        finally:
            random.setstate(before)


def _check_over(search: Search, budget: Budget, results: tune.ResultGrid) -> None:
    """Raise a ValueError for trials that failed, and a KeyboardInterrupt where Ray was stopped before the end."""
    if results.errors:
        restoring.set_aside(search.directory)  # what they failed of may be what Ray would restore
        first = str(results.errors[0]).strip().splitlines()[-1]
        raise ValueError(f"{len(results.errors)} of {len(results)} trials failed ({first}); --resume tries them again")
    if not _is_over(search, budget):  # Ray answers Ctrl-C by coming back
        of = "" if search.trials is None else f" of {search.trials}"
        text = f"Ray was stopped when {_finished(search.directory)}{of} trials were finished; --resume goes on"
        raise KeyboardInterrupt(text)


def _is_over(search: Search, budget: Budget) -> bool:
    return budget.stop_all() or (search.trials is not None and _finished(search.directory) >= search.trials)


def _finished(directory: Path) -> int:
    """How many trials are."""
    return sum(map(is_finished, (directory / "runs").glob("trial_*")))


def _tuner(search: Search, budget: Budget, resources: Resources, compiled: bool) -> tune.Tuner:
    """A new one, or the one that Ray restores from what it left in the directory."""
    directory, config, trials = search.directory.resolve(), search.config, search.trials
    given = {"search": config, "directory": str(directory), "compiled": compiled, "folder": str(Path.cwd())}
    needed = {"cpu": 1, "gpu": resources.gpus_per_trial or 0.0}
    trainable = tune.with_resources(tune.with_parameters(Trial, **given, is_over=search.is_over), needed)
    if restoring.prepare(directory):
        return tune.Tuner.restore(str(directory / "ray"), trainable, resume_unfinished=True, resume_errored=True)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=-1 if trials is None else trials,
            metric="score",
            mode="min",
            scheduler=search.scheduler,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(directory),
            stop=budget,
            callbacks=[Ledger(directory, trials, config.inner.total_steps, budget, config.log.progress)],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=KEPT, checkpoint_frequency=search.save_every, checkpoint_at_end=True
            ),
            verbose=0,
        ),
    )


def _name(trial: Any) -> str:
    return named(int(trial.trial_id.rpartition("_")[2]))  # Ray counts them there
