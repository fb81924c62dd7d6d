"""A config into a run directory: new, continued, or already there.

The directory belongs to the config whose `config.yaml` it holds. What has been finished is not done again, and what was
interrupted goes on to the same numbers.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hyperopt_id import checkpoint, experiment, files, runtime
from hyperopt_id.build.identity import (
    UNKNOWN,
    Identity,
    check_digests,
    check_identity,
    file_digests,
    identity,
    read_identity,
)
from hyperopt_id.build.names import from_config, pick_device, starting_values
from hyperopt_id.build.tasks import build_task
from hyperopt_id.config import differences, dump, from_dict, load, to_dict
from hyperopt_id.config_schema import Config
from hyperopt_id.experiment import Parts, Plan
from hyperopt_id.experiment_state import state_check
from hyperopt_id.telemetry import Telemetry, first_device
from hyperopt_id.telemetry.directory import IDENTITY, INSIDE, make_way, may_hold_runs, write_json

logger = logging.getLogger("hyperopt_id")
SUMMARY = {"final": dict, "best_validation": dict, "diverged": [bool], "diverged_at": [int]}

Build = Callable[..., tuple[Parts, Plan]]  # (config, compiled=...) -> parts, as `from_config`


def group_directory(config: Config) -> Path:
    """DIR/GROUP, where what is not given follows from the config. Raises ValueError for a group that is no folder below
    DIR, or in which no runs would be found."""
    group = config.log.group
    if group is None:
        group = f"{config.task.name}_{config.algorithm}".replace("/", "_")
    if not group or Path(group).is_absolute() or not all(map(_is_name, Path(group).parts)):
        raise ValueError(f"log.group (-g): given {group!r}; allowed: a name, as in -g study; {_RESERVED}")
    base = Path(config.log.dir or "runs")
    for place in (base / group, *(base / above for above in Path(group).parents)):
        if (place / "metrics.jsonl").exists():
            raise ValueError(f"{place} is a run directory, in which no other run is found; choose another with -l DIR")
    return base / group


def _is_name(name: str) -> bool:
    return bool(name.strip()) and "/" not in name and name.isprintable() and may_hold_runs(name)


_RESERVED = f"tables and figures find no runs in {', '.join(INSIDE)}, member_..., and folders with a dot in front"


def new_directory(config: Config) -> Path:
    """DIR/GROUP/NAME, where what is not given follows from the config and the time; a name of our own is made, so that
    no other start takes it. Raises ValueError for a name that is not one."""
    parent, name = group_directory(config), config.log.name
    if name is not None:
        if not _is_name(name):
            allowed = f"allowed: a name without slashes, as in -n first; {_RESERVED}"
            raise ValueError(f"log.name (-n): given {name!r}; {allowed}")
        return parent / name
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for name in itertools.chain([stamp], (f"{stamp}_{number}" for number in itertools.count(2))):
            with suppress(FileExistsError):
                (parent / name).mkdir()
                return parent / name
    except OSError as error:
        raise ValueError(f"{parent} cannot be written ({error.strerror}); choose another with -l DIR") from error
    raise AssertionError("there is always another name")


def newest(config: Config) -> Path:
    """The run of this config begun last in its group, an unfinished one if there is any; a ValueError without one."""
    group = group_directory(config)
    runs = sorted((path.parent for path in group.glob("*/config.yaml")), key=lambda path: path.stat().st_mtime)
    runs = [path for path in runs if not changes(path, config)]
    unfinished = [path for path in runs if finished(path) is None] or runs
    if not unfinished:
        raise ValueError(f"--resume auto found no run of this config in {group}; leave --resume out to start one")
    return unfinished[-1]


def finished(directory: Path) -> dict[str, Any] | None:
    """The summary of the run in `directory`; None while it is not finished, or where its summary is damaged or of
    another run, and is to be written anew."""
    try:
        summary = files.read_json_file(directory / "summary.json", SUMMARY)
        known = read_identity(directory)
    except ValueError:
        return None
    is_own = known is None or summary.get("config_hash", known["config"]) == known["config"]
    return summary if is_own else None


def changes(directory: Path, config: Config) -> list[str]:
    """What keeps `config` from continuing the run in `directory`. To name the device that `auto` took is no change."""
    try:
        before = load([directory / "config.yaml"])
    except ValueError as error:  # damaged, or of another version: not the run that is meant
        return [f"its config.yaml cannot be used ({error})"]
    if config.device != "auto":
        before = replace(before, device=first_device(directory) or before.device)
    known = _known_identity(directory, logging.DEBUG)
    return differences(before, config, () if known is None else known["digests"])


def resume(config: Config, directory: Path, *, build: Build = from_config) -> dict[str, Any]:
    """Continue the run in `directory`, or return the summary of a finished one; a ValueError says what `config` or this
    machine would change about its numbers."""
    if changed := changes(directory, config):
        raise ValueError(
            f"the run in {directory} was made with another config: {'; '.join(changed)}; start a new run instead"
        )
    if (summary := finished(directory)) is not None:
        return summary
    here, first = pick_device(config.device).type, first_device(directory)
    if first not in (None, here):  # `auto` would mean another device now
        raise ValueError(
            f"the run in {directory} began on {first}, but device {config.device} is {here} here; "
            f"add --set device={first} where there is one, or start a new run"
        )
    return run(config, directory, continued=True, build=build)


def check_named(config: Config, directory: Path, what: str = "run") -> None:
    """Raise ValueError if a file that `config` names, where it is there, is another than that of the run (or
    another `what`) in `directory`. For what is finished: nothing is fetched, and a file that is gone is not missed."""
    known, own = _known_identity(directory, logging.DEBUG), {}
    if known is None:
        return
    with suppress(ValueError):
        own |= file_digests(config)
    with suppress(ValueError):
        if config.task.path is not None and (digest := build_task(config, torch.device("cpu")).digest()) is not None:
            own["data"] = digest
    check_digests(known["digests"], own, f"the {what} in {directory}")


def complete(config: Config, directory: Path, *, build: Build = from_config) -> dict[str, Any]:
    """The summary of the run of `config` in `directory`, whatever part of it is still to be done there."""
    begin = resume if (directory / "config.yaml").is_file() else run
    return begin(config, directory, build=build)


def run(config: Config, directory: Path, *, continued: bool = False, build: Build = from_config) -> dict[str, Any]:
    """Train as `config` says, with logs and checkpoints in `directory`; returns the summary. `build` turns the config,
    and whether an earlier start compiled, into the parts of the run."""
    began = time.perf_counter()
    runtime.keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)  # first of all: the directory says how many there are
    device = _device(config, directory)
    telemetry = Telemetry(
        directory,
        to_dict(config),
        config_text=dump(config),
        device=device,
        runs=config.population.runs,
        total=config.inner.total_updates,
        progress=config.log.progress,
        continued=continued,
        initial=starting_values(config),
    )
    with telemetry:
        try:
            parts, plan = build(config, compiled=_compiled(directory) if continued else None)
            own, saved = identity(config, parts), None
            if continued:
                if (directory / "summary.json").exists():
                    logger.warning("%s is damaged or of another run, and is written anew", directory / "summary.json")
                known = _known_identity(directory)
                check_identity(known, own, f"the run in {directory}")
                if known is None:
                    _check_config(config, directory)
                make_way(directory)
                record = _newest_checkpoint(directory, parts, plan, own, is_known=known is not None)
                if record:
                    saved = record["tree"]
                    _check_compile(directory, saved)
                    telemetry.begin(saved["update"], plan.reports(saved["update"]), record.get("reports"))
                    checkpoint.tidy(directory / "checkpoints", saved["update"], plan.keep)
                else:
                    logger.info("there is no checkpoint in %s: the run starts from its beginning", directory)
                    telemetry.begin(0, ())
        except ValueError:  # a mistake of the user, which the caller shows; there is no run to continue
            if not continued:
                telemetry.discard()
            telemetry.close()
            raise
        remember = {"compile": parts.compiled}
        write_json(directory / IDENTITY, {**own, **remember})
        summary = experiment.run(parts, plan, telemetry, resume=saved, remember=remember, identity=own, began=began)
        summary["config_hash"] = own["config"]
        telemetry.close(summary)
    parts.afterwards()
    return summary


def _device(config: Config, directory: Path) -> str:
    """The device. Where it is not there, neither is a directory that was made for the run."""
    try:
        return str(pick_device(config.device))
    except ValueError:
        with suppress(OSError):
            directory.rmdir()
        raise


def _known_identity(directory: Path, level: int = logging.WARNING) -> Identity | None:
    """What identity.json of a run says; None where it cannot be read, since checkpoints say it, too."""
    try:
        return read_identity(directory)
    except ValueError as error:
        logger.log(level, "%s; it is written anew", error)
        return None


def _check_config(config: Config, directory: Path) -> None:
    """Raise ValueError if config.json, which is written at the start alone, is of another run than `config`: for runs
    of earlier versions, which have nothing else that says whose they are."""
    try:
        told = files.read_json_file(directory / "config.json", dict)
        before = from_dict({key: value for key, value in told.items() if key != "start"})
    except ValueError:
        return
    if changed := differences(replace(before, device=config.device), config):
        raise ValueError(
            f"{directory / 'config.yaml'} is not that of the run, which config.json tells of: {'; '.join(changed)}; "
            "undo the change, or start a new run"
        )


def _compiled(directory: Path) -> bool | None:
    """Whether the start of the run in `directory` compiled; None where nothing says so."""
    with suppress(ValueError):
        if "compile" in (known := read_identity(directory) or {}):
            return bool(known["compile"])
    with suppress(ValueError):  # a run of an earlier version
        saved, _ = checkpoint.load(directory / "checkpoints", lambda message: None)
        return bool(saved["compile"]) if isinstance(saved, dict) and "compile" in saved else None
    return None


def _check_compile(directory: Path, saved: dict[str, Any]) -> None:
    """Raise ValueError if identity.json says otherwise than the checkpoint whether the run is compiled, which changes
    roundings."""
    told = None
    with suppress(ValueError):
        told = (read_identity(directory) or {}).get("compile")
    was = saved.get("compile")
    if None not in (told, was) and told != was:
        raise ValueError(f"{directory / IDENTITY}: compile is {told}, and {was} in the checkpoint; remove that file")


def _newest_checkpoint(
    directory: Path, parts: Parts, plan: Plan, own: Identity, is_known: bool
) -> dict[str, Any] | None:
    """The newest checkpoint of this run, None if it has none yet; those passed over are said, and so is one
    that does not say whose it is, where nothing else (`is_known`) does."""
    folder = directory / "checkpoints"
    if not any(folder.glob("step_*.pt")):
        return None
    check_state, limit = state_check(parts, plan)

    def check(record: dict[str, Any]) -> None:
        check_identity(record.get("identity"), own, "it")
        check_state(record["tree"])
        if record["tree"]["update"] != record["step"]:
            raise ValueError(f"it is of hyper-update {record['tree']['update']}, and its name says {record['step']}")
        if record.get("identity") is None and not is_known:
            logger.warning(UNKNOWN, directory)

    return checkpoint.load_record(folder, logger.warning, check, limit)
