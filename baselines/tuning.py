"""A search by one of Ray Tune's schedulers.

    DIR/search.jsonl, summary.json, runs/trial_0000, ...    as of every search (see `baselines.directory`)
    DIR/ray/                                                what Ray needs to go on; gone when the search is finished

Trial m is member m of the config's population: seed and drawn starting values are those that every other method starts
with. A search that was interrupted goes on by Ray's own restore, from the newest checkpoint of each trial.
"""

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import TrialScheduler

from baselines import training
from baselines.arguments import ENDS
from baselines.cluster import Resources, cluster, environment
from baselines.directory import claim, discard
from baselines.ledger import Budget, Ledger
from baselines.rounds import searched
from baselines.trainable import Trial, named
from baselines.training import Training
from hyperopt_id import checkpoint
from hyperopt_id.config import from_dict, to_dict
from hyperopt_id.config_schema import Config
from hyperopt_id.telemetry import is_finished, read_json, records
from hyperopt_id.telemetry.directory import write_json
from hyperopt_id.telemetry.search import incumbents

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
    resources = resources or Resources()
    search = replace(search, config=_placed(search.config, resources.gpus_per_trial > 0))
    directory, config = search.directory, search.config
    budget = Budget(directory.resolve(), limits)
    if search.trials is None and not budget.has_limit:
        raise ValueError(f"nothing says when the search ends: give {ENDS}")
    new = claim(directory, config, {**search.settings, **limits, "trials": search.trials})
    if is_finished(directory):
        shutil.rmtree(directory / "ray", ignore_errors=True)
        return read_json(directory / "summary.json")
    try:
        compiled = _compiled(search)  # what is wrong with the config or the data is said here, once
        with cluster(resources), environment(IN_ORDER if search.trials is None else {}):
            before = random.getstate()
            random.seed(f"{config.seed}/{len(lines(directory))}")  # Ray's schedulers draw from here
            try:
                results = _tuner(search, budget, resources, compiled).fit()
            finally:
                random.setstate(before)
    except ValueError:
        if new and not lines(directory):
            discard(directory)
        raise
    return _conclude(search, budget, results)


def _placed(config: Config, on_gpu: bool) -> Config:
    """On the device that Ray gives to a trial."""
    if config.device == "cuda" and not on_gpu:
        raise ValueError("device cuda was asked for, but trials have none; add --gpus-per-trial 1, or less")
    return replace(config, device="cuda" if on_gpu else "cpu") if config.device == "auto" else config


def _compiled(search: Search) -> bool:
    """Whether trainings are compiled: decided once for all workers, and for the time after an interruption."""
    path = search.directory / "search.json"
    known = read_json(path) or {}
    here = search.config if torch.cuda.is_available() else replace(search.config, device="cpu")
    decided = training.open_workshop(here, known.get("compiled")).parts.compiled
    write_json(path, {**known, "compiled": decided})
    return decided


def _tuner(search: Search, budget: Budget, resources: Resources, compiled: bool) -> tune.Tuner:
    """A new one, or the one that Ray restores from what it left in the directory."""
    directory, config, trials = search.directory.resolve(), search.config, search.trials
    given = {"search": config, "directory": str(directory), "compiled": compiled, "folder": str(Path.cwd())}
    needed = {"cpu": 1, "gpu": resources.gpus_per_trial}
    trainable = tune.with_resources(tune.with_parameters(Trial, **given, is_over=search.is_over), needed)
    there = str(directory / "ray")
    if tune.Tuner.can_restore(there):
        return tune.Tuner.restore(there, trainable, resume_unfinished=True, resume_errored=True)
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


def lines(directory: Path) -> list[dict[str, Any]]:
    """What has been logged so far."""
    if not (directory / "search.jsonl").is_file():
        return []
    with (directory / "search.jsonl").open("rb") as file:
        return [line for line, _ in records(file)]


def _conclude(search: Search, budget: Budget, results: tune.ResultGrid) -> dict[str, Any]:
    """The summary of a search that is finished, with the newest checkpoint of each trial where runs have it."""
    directory, trials = search.directory, search.trials
    if results.errors:
        first = str(results.errors[0]).strip().splitlines()[-1]
        raise ValueError(f"{len(results.errors)} of {len(results)} trials failed ({first}); --resume tries them again")
    runs = sorted((directory / "runs").glob("trial_*"))
    finished = [run for run in runs if is_finished(run)]
    if not budget.stop_all() and (trials is None or len(finished) < trials):  # Ray answers Ctrl-C by coming back
        of = "" if trials is None else f" of {trials}"
        raise KeyboardInterrupt(f"Ray was stopped when {len(finished)}{of} trials were finished; --resume goes on")
    logged = lines(directory)
    steps = {Path(line["run"]).name: line["step"] for line in logged}  # the last of each
    for run in finished:
        _keep_checkpoint(directory / "ray" / run.name, run)
        training.end(run, steps[run.name])
    for run in set(runs) - set(finished):  # its first report would have come after the budget was spent
        shutil.rmtree(run, ignore_errors=True)
    tunes = any(hyper.tune for hyper in search.config.space.values())
    method = search.settings["method"] + (f" + {search.config.algorithm}" if tunes else "")
    found = {"method": method, "repetitions": incumbents(logged)}
    write_json(directory / "summary.json", found)
    shutil.rmtree(directory / "ray")
    return found


def _keep_checkpoint(saved: Path, run: Path) -> None:
    """Put the newest checkpoint of a trial into its run directory, if it is of the state that was reported last."""
    newest = max(saved.glob("checkpoint_*"), default=None)
    if newest is not None and newest.stat().st_mtime >= (run / "metrics.jsonl").stat().st_mtime:
        tree = training.load(newest)
        checkpoint.save(run / "checkpoints", training.without_lineage(tree), tree["update"], keep=1)
