r"""Replay: plain training by `torch.optim` with the hyperparameters that a run has found.

    t = 0, 1, ..., F S - 1        S steps of the run, stretched by F
    row of the run's trace        floor(t / (F n)), n steps to a row

It starts from the same weights and sees the same batches, as functions of the run's seed, so that F = 1 repeats the
run's trajectory, for the cost of training alone. What a replay is of, `trained_by` says in its config; the rest of that
is the run's config without anything tuned. Under μP a trace has the values before the factors of module `mup`, which
here are those of the model that is trained, so that it may be wider than the run's.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hyperopt_id import launch
from hyperopt_id.build.identity import check_digests, read_identity
from hyperopt_id.build.names import build_multipliers, starting_values
from hyperopt_id.build.plain import in_whole_reports, plain_from_config
from hyperopt_id.config import load
from hyperopt_id.config_schema import Config
from hyperopt_id.experiment import Parts, Plan
from hyperopt_id.optim.traced import Rows, Schedule, follow, scaled
from hyperopt_id.telemetry import read_json
from hyperopt_id.telemetry.trace import read_trace

logger = logging.getLogger("hyperopt_id")
DECIDED = (  # by the run
    *("space", "inner", "hypergradient", "meta", "population", "parametrization", "base_width"),
    *("algorithm", "trained_by"),
)


class Source(NamedTuple):
    """The run that is replayed."""

    directory: Path
    member: int
    config: Config


def prepare(
    run: Path | str, member: int | None = None, stretch: float = 1.0, overrides: Sequence[str] = ()
) -> tuple[Config, launch.Build]:
    """What `launch.run` needs to replay member number `member` (default: the best by validation loss) of a run
    directory, or the best model of a search directory, over `stretch` times the steps.

    `overrides` change the config, as in "task.train_on=train+validation"; its run directory stands beside `run`, with
    `_replay` behind the name, unless they say otherwise. A ValueError where there is nothing to replay.
    """
    source = find(Path(run), member)
    return replayed_config(source, Path(run), stretch, overrides), partial(build, source, stretch)


def find(run: Path, member: int | None = None) -> Source:
    """The run and member that `run`, a run or search directory, means; a ValueError where it has not been finished."""
    summary = read_json(run / "summary.json")
    if summary is None or not (run / "config.yaml").is_file():
        there = (run / "config.yaml").is_file()
        what = f"is not finished, so its trace is not whole; --resume {run} first" if there else "holds no run"
        raise ValueError(f"{run} {what} (a finished one has config.yaml and summary.json)")
    if "repetitions" in summary:
        if member is not None:
            raise ValueError(f"{run} is a search, whose best model is replayed; leave --member out, or name one run")
        return _best_of_search(run, summary["repetitions"])
    config = load([run / "config.yaml"])
    if config.trained_by is not None:
        raise ValueError(f"{run} is a run of another command and has no schedule to replay; see: {config.trained_by}")
    chosen = _chosen(run, summary, member)
    if summary["diverged"][chosen]:
        step = summary["diverged_at"][chosen]
        raise ValueError(f"member {chosen} of {run} diverged at step {step}; name another one with --member")
    return Source(run, chosen, config)


def _best_of_search(run: Path, repetitions: Sequence[dict[str, Any]]) -> Source:
    found = repetitions[_lowest(run, [found["loss/validation"] for found in repetitions])]
    source = find(run / found["run"], found["member"])
    final = read_json(source.directory / "summary.json")["final"]["loss/validation"][source.member]
    if final != found["loss/validation"]:
        end = "without a finite one" if final is None else f"with {final}"
        raise ValueError(
            f"the best model of {run} has a validation loss of {found['loss/validation']:g}, but its run "
            f"{source.directory} ends {end}; search again, or name that run to replay it as it is"
        )
    return source


def _chosen(run: Path, summary: dict[str, Any], member: int | None) -> int:
    runs = len(summary["diverged"])
    if member is not None:
        if not 0 <= member < runs:
            raise ValueError(f"--member {member}: {run} has members 0 to {runs - 1}")
        return member
    if runs == 1:
        return 0
    losses = summary["final"].get("loss/validation")
    if losses is None:
        raise ValueError(f"{run} has {runs} members and no validation loss to choose by; name one with --member")
    return _lowest(run, losses)


def _lowest(run: Path, losses: Sequence[float | None]) -> int:
    known = [(loss, number) for number, loss in enumerate(losses) if loss is not None]
    if not known:
        raise ValueError(f"{run} has nothing to replay: no model in it has a final validation loss")
    return min(known)[1]


def replayed_config(source: Source, run: Path, stretch: float, overrides: Sequence[str] = ()) -> Config:
    """The config of a replay: that of its source for one member, with nothing tuned and `overrides`."""
    if not 0.0 < stretch < math.inf:
        raise ValueError(f"--stretch {stretch}: allowed is a number above 0, as 2 for a run of twice the steps")
    for override in overrides:
        if (key := override.partition("=")[0].strip()).split(".")[0] in DECIDED:
            text = f"the run that is replayed decides {key}; a replay may change task, report, seed, device, log, ..."
            raise ValueError(f"--set {key}: {text}")
    before, run = source.config, run.resolve()
    starts = {name: values[source.member] for name, values in starting_values(before).items()}
    command = f"hyperopt-id replay {shlex.quote(str(run))} --member {source.member} --stretch {stretch}"
    fixed = [
        *(f"space.{name}.init={start!r}" for name, start in starts.items()),
        *(f"space.{name}.tune=[]" for name in before.space),
        *(f"{section}=null" for section in ("hypergradient", "meta", "population")),
        f"algorithm={json.dumps(f'{before.algorithm}_replay')}",
        f"trained_by={json.dumps(command)}",
        f"seed={before.seed + source.member}",
        *(f"log.{k}={json.dumps(str(v))}" for k, v in zip(("dir", "group", "name"), _place(run), strict=True)),
    ]
    config = load([source.directory / "config.yaml"], [*fixed, *overrides])
    inner = config.inner
    if inner.reset:
        config = replace(config, inner=replace(inner, steps=None, updates=1, reset=False))
    config = in_whole_reports(config, stretch)
    return replace(config, report=replace(config.report, trace_every=0))


def _place(run: Path) -> tuple[Path, str, str]:
    return run.parent.parent, run.parent.name, f"{run.name}_replay"


def build(source: Source, stretch: float, config: Config, *, compiled: bool | None = None) -> tuple[Parts, Plan]:
    """Parts and plan of a replay (a `launch.Build`, once it knows its source); a ValueError where the trace does not
    fit."""
    del compiled
    known = read_identity(source.directory)
    schedule, inner = _schedule(source, stretch), source.config.inner
    options: dict[str, Any] = {"nesterov": inner.nesterov, "dampening": inner.dampening} if inner.rule == "sgd" else {}
    parts, plan = plain_from_config(
        config,
        lambda task: follow(inner.rule, scaled(schedule, build_multipliers(config, task)), **options),
        lambda state: schedule.natural(int(state["step"]), state["step"].device),
        trace_every=0,
        first_step=schedule.first,
    )
    if known is not None and _same_data(config, source.config):
        check_digests({"data": known["digests"].get("data")}, parts.digests(), f"the run in {source.directory}")
    return parts, plan


def _same_data(config: Config, source: Config) -> bool:
    """Whether a replay is to be on the data of its source, and has not been given others."""
    return (config.task.name, config.task.path) == (source.task.name, source.task.path)


def _schedule(source: Source, stretch: float) -> Schedule:
    directory, member, config = source
    steps_per_row, files = read_trace(directory)
    values: dict[str, Rows] = {}
    for name in config.space:
        own = {key.partition("/")[2]: rows[:, member] for key, rows in files.items() if key.startswith(f"{name}/")}
        if name not in files and not own:
            raise ValueError(f"the trace in {directory} has no {name}; it is damaged, or of another version")
        values[name] = own or files[name][:, member]
        _check_known(name, own or {name: files[name][:, member]}, directory)
    _say(source, steps_per_row)
    inner = config.inner
    first = inner.total_steps - inner.steps_per_update if inner.reset else 0
    return Schedule(values, steps_per_row, Fraction(str(stretch)), first)


def _check_known(name: str, files: Mapping[str, Any], directory: Path) -> None:
    """Raise ValueError if rows are unknown; a finished run has written all others."""
    if any(np.isnan(rows).any() for rows in files.values()):
        raise ValueError(
            f"the trace in {directory} has rows of {name} that are not known: its files were lost before a resume; "
            "train the run anew to replay it"
        )


def _say(source: Source, steps_per_row: int) -> None:
    """What a user should know who compares the replay with the run."""
    directory, _, config = source
    inner = config.inner
    if inner.reset:
        text = "%s went back to its initial weights after every hyper-update: its last %d steps are replayed"
        logger.info(text, directory, inner.steps_per_update)
    if steps_per_row > inner.steps_per_update and any(hyper.tune for hyper in config.space.values()):
        text = (
            "the trace of %s has a row for every %d steps, but values changed every %d: this is only about the same run"
        )
        logger.warning(text, directory, steps_per_row, inner.steps_per_update)
