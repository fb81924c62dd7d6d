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
from typing import Any

import numpy as np

from hyperopt_id import launch
from hyperopt_id.build.identity import UNKNOWN, check_digests, read_identity
from hyperopt_id.build.names import build_multipliers, build_space, starting_values
from hyperopt_id.build.plain import in_whole_reports, plain_from_config
from hyperopt_id.config import load
from hyperopt_id.config_schema import Config
from hyperopt_id.experiment import Parts, Plan
from hyperopt_id.optim.traced import Schedule, follow, scaled
from hyperopt_id.replay_source import Source, find
from hyperopt_id.telemetry.trace import read_trace

logger = logging.getLogger("hyperopt_id")
DECIDED = (  # by the run
    *("space", "inner", "hypergradient", "meta", "population", "parametrization", "base_width"),
    *("algorithm", "trained_by"),
)


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
        "log.progress=auto",  # whatever showed the run, which may have been a search's
        *(f"log.{k}={json.dumps(str(v))}" for k, v in zip(("dir", "group", "name"), _place(run), strict=True)),
    ]
    config = load([source.directory / "config.yaml"], [*fixed, *overrides])
    inner = config.inner
    if inner.reset:
        config = replace(config, inner=replace(inner, steps=None, updates=1, reset=False))
    config = in_whole_reports(config, stretch)
    return replace(config, report=replace(config.report, trace_every=0))


def _place(run: Path) -> tuple[Path, str, str]:
    return run.parent, ".", f"{run.name}_replay"


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
    if known is None:
        logger.warning(UNKNOWN, source.directory)
    else:
        check_digests(_kept(known["digests"], config, source.config), parts.digests(), f"the run in {source.directory}")
    named = config.log.name is not None  # or else this would make another directory
    logger.info("replaying %s%s", source, f"; the log goes to {launch.new_directory(config)}" if named else "")
    return parts, plan


def _kept(digests: Mapping[str, Any], config: Config, source: Config) -> dict[str, Any]:
    """Those of the data and files of its source that a replay is to have, too, and has not been given others for."""
    of_replay, of_source = (
        {"data": (task.name, task.path), "task.model.init_from": task.model.init_from}
        for task in (config.task, source.task)
    )
    return {name: digest for name, digest in digests.items() if of_replay.get(name) == of_source.get(name)}


def schedule(directory: Path | str, member: int = 0, stretch: float = 1.0, first: int = 0) -> Schedule:
    """What the trace of a run directory says of a member, from training step `first` of it on. Raises ValueError if
    there is no trace, or it is damaged."""
    steps_per_row, files = read_trace(directory, verify=True)
    lengths = {len(rows) for rows in files.values() if rows.ndim}
    values: dict[str, Any] = {}
    for key, rows in files.items():
        is_table = rows.ndim > 1 and rows.dtype.kind == "f" and lengths == {len(rows)} and 0 not in lengths
        if not is_table or rows.shape[1] <= member:
            raise ValueError(f"the trace in {directory} is damaged: {key} is no table of numbers of member {member}")
        if not np.isfinite(rows[:, member]).all():
            raise ValueError(
                f"the trace in {directory} has rows of {key} that are not known: its files were lost before a resume; "
                "train the run anew to replay it"
            )
        name, _, parameter = key.partition("/")
        own = {parameter: rows[:, member]} if parameter else rows[:, member]
        if name in values and not (parameter and isinstance(values[name], dict)):
            raise ValueError(f"the trace in {directory} has {name} twice, for all parameters and for single ones")
        values[name] = values[name] | own if name in values else own
    return Schedule(values, steps_per_row, Fraction(str(stretch)), first)


def _schedule(source: Source, stretch: float) -> Schedule:
    inner = source.config.inner
    found = schedule(
        source.directory, source.member, stretch, inner.total_steps - inner.steps_per_update if inner.reset else 0
    )
    for name in source.config.space:
        if name not in found.values:
            raise ValueError(f"the trace in {source.directory} has no {name}; it is damaged, or of another version")
        _check_bounds(source, name, found.values[name])
    _say(source, found.steps_per_row)
    return found._replace(values={name: found.values[name] for name in source.config.space})


def _check_bounds(source: Source, name: str, values: Any) -> None:
    """Raise ValueError if a value is outside of what training clips to, but for rounding."""
    hyper = build_space(source.config).hypers[name]
    low, high = hyper.bounds or (hyper.transform.lowest, hyper.transform.highest)
    for rows in values.values() if isinstance(values, dict) else [values]:
        if (rows < low - 1e-4 * abs(low)).any() or (rows > high + 1e-4 * abs(high)).any():
            raise ValueError(
                f"the trace in {source.directory} is damaged: {name} goes from {rows.min():g} to {rows.max():g}, and "
                f"its bounds are {low:g} and {high:g}"
            )


def _say(source: Source, steps_per_row: int) -> None:
    """What a user should know who compares the replay with the run."""
    directory, config = source.directory, source.config
    inner = config.inner
    if inner.reset:
        text = "%s went back to its initial weights after every hyper-update: its last %d steps are replayed"
        logger.info(text, directory, inner.steps_per_update)
    if steps_per_row > inner.steps_per_update and any(hyper.tune for hyper in config.space.values()):
        text = (
            "the trace of %s has a row for every %d steps, but values changed every %d: this is only about the same run"
        )
        logger.warning(text, directory, steps_per_row, inner.steps_per_update)
