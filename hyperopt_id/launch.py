"""A config into a run directory: new, continued, or already there.

The directory belongs to the config whose `config.yaml` it holds. What has been finished is not done again, and what was
interrupted goes on to the same numbers.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hyperopt_id import checkpoint, experiment, runtime
from hyperopt_id.build.identity import FILE as IDENTITY
from hyperopt_id.build.identity import check_identity, identity, read_identity
from hyperopt_id.build.names import from_config, pick_device, starting_values
from hyperopt_id.config import differences, dump, load, to_dict
from hyperopt_id.config_schema import Config
from hyperopt_id.experiment import Parts, Plan
from hyperopt_id.telemetry import Telemetry, first_device, is_finished, read_json
from hyperopt_id.telemetry.directory import write_json

logger = logging.getLogger("hyperopt_id")

Build = Callable[..., tuple[Parts, Plan]]  # (config, compiled=...) -> parts, as `from_config`


def new_directory(config: Config) -> Path:
    """DIR/GROUP/NAME, where what is not given follows from the config and the time."""
    group = config.log.group or f"{config.task.name}_{config.algorithm}"
    parent, stamp = Path(config.log.dir or "runs") / group, time.strftime("%Y-%m-%d_%H-%M-%S")
    if config.log.name is not None:
        return parent / config.log.name
    names = itertools.chain([stamp], (f"{stamp}_{number}" for number in itertools.count(2)))
    return next(parent / name for name in names if not (parent / name).exists())


def newest(config: Config) -> Path:
    """The run of this config begun last in its group, an unfinished one if there is any; a ValueError without one."""
    group = new_directory(config).parent
    runs = sorted((path.parent for path in group.glob("*/config.yaml")), key=lambda path: path.stat().st_mtime)
    runs = [path for path in runs if not changes(path, config)]
    unfinished = [path for path in runs if not is_finished(path)] or runs
    if not unfinished:
        raise ValueError(f"--resume auto found no run of this config in {group}; leave --resume out to start one")
    return unfinished[-1]


def changes(directory: Path, config: Config) -> list[str]:
    """What keeps `config` from continuing the run in `directory`. To name the device that `auto` took is no change."""
    try:
        before = load([directory / "config.yaml"])
    except ValueError as error:  # damaged, or of another version: not the run that is meant
        return [f"its config.yaml cannot be used ({error})"]
    if config.device != "auto":
        before = replace(before, device=first_device(directory) or before.device)
    known = read_identity(directory)
    return differences(before, config, () if known is None else known["digests"])


def resume(config: Config, directory: Path, *, build: Build = from_config) -> dict[str, Any]:
    """Continue the run in `directory`, or return the summary of a finished one; a ValueError says what `config` or this
    machine would change about its numbers."""
    if changed := changes(directory, config):
        raise ValueError(
            f"the run in {directory} was made with another config: {'; '.join(changed)}; start a new run instead"
        )
    if is_finished(directory):
        return read_json(directory / "summary.json")
    here, first = pick_device(config.device).type, first_device(directory)
    if first not in (None, here):  # `auto` would mean another device now
        raise ValueError(
            f"the run in {directory} began on {first}, but device {config.device} is {here} here; "
            f"add --set device={first} where there is one, or start a new run"
        )
    return run(config, directory, continued=True, build=build)


def complete(config: Config, directory: Path, *, build: Build = from_config) -> dict[str, Any]:
    """The summary of the run of `config` in `directory`, whatever part of it is still to be done there."""
    begin = resume if (directory / "config.yaml").is_file() else run
    return begin(config, directory, build=build)


def run(config: Config, directory: Path, *, continued: bool = False, build: Build = from_config) -> dict[str, Any]:
    """Train as `config` says, with logs and checkpoints in `directory`; returns the summary. `build` turns the config,
    and whether an earlier start compiled, into the parts of the run."""
    saved, began = None, time.perf_counter()
    unusable: list[str] = []  # said when there is a log
    runtime.keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)  # first of all: the directory says how many there are
    if continued and any((directory / "checkpoints").glob("step_*.pt")):
        saved, _ = checkpoint.load(directory / "checkpoints", unusable.append)
    device = pick_device(config.device)
    telemetry = Telemetry(
        directory,
        to_dict(config),
        config_text=dump(config),
        device=str(device),
        runs=config.population.runs,
        total=config.inner.total_updates,
        progress=config.log.progress,
        resume_at=saved["update"] if saved is not None else (0 if continued else None),
        initial=starting_values(config),
    )
    with telemetry:
        for message in unusable:
            logger.warning(message)
        try:
            parts, plan = build(config, compiled=None if saved is None else saved["compile"])
            own = identity(config, parts)
            if continued:
                check_identity(read_identity(directory), own, f"the run in {directory}")
        except ValueError:  # a mistake of the user, which the caller shows; there is no run to continue
            if not continued:
                telemetry.discard()
            telemetry.close()
            raise
        write_json(directory / IDENTITY, own)
        remember = {"compile": parts.compiled}
        summary = experiment.run(parts, plan, telemetry, resume=saved, remember=remember, identity=own, began=began)
        summary["config_hash"] = own["config"]
        telemetry.close(summary)
    return summary
