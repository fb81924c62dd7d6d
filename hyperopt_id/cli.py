"""The command line: arguments -> config -> parts -> run."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hyperopt_id import checkpoint, experiment, runtime
from hyperopt_id.build.names import from_config, pick_device, starting_values
from hyperopt_id.config import config_hash, differences, dump, load, to_dict
from hyperopt_id.config_schema import Config
from hyperopt_id.telemetry import Telemetry, first_device, is_finished

logger = logging.getLogger("hyperopt_id")

FLAGS = {  # options that are short for a key of the config
    "runs": "population.runs",
    "sample": "population.sample",
    "seed": "seed",
    "device": "device",
    "dtype": "dtype",
    "threads": "threads",
    "data_root": "data_root",
    "log_dir": "log.dir",
    "group": "log.group",
    "name": "log.name",
    "progress": "log.progress",
}


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="hyperopt-id train",
        description="Train a network and learn its hyperparameters in the same pass, by hypergradients.",
    )
    add = result.add_argument
    add("-c", "--config", nargs="+", action="extend", default=[], metavar="FILE", help="YAML files, later ones win")
    add("-s", "--set", nargs="+", action="extend", default=[], metavar="K=V", help="override one key, dotted")
    add("--runs", type=int, metavar="R", help="R independent runs with random starting hyperparameters")
    add("--sample", action="store_true", default=None, help="random starting hyperparameters for a single run, too")
    add("--seed", type=int, metavar="N", help="everything random follows from it")
    add("--device", choices=("auto", "cpu", "cuda"))
    add("--dtype", choices=("float32", "float64", "bfloat16"), help="bfloat16: autocast")
    add("--threads", type=int, metavar="N")
    add("--data-root", metavar="DIR", help="where data sets live (default: $HYPEROPT_ID_DATA, else ./data)")
    add("-l", "--log-dir", metavar="DIR", help="logs go to DIR/GROUP/NAME (default runs/<dataset>_<algorithm>/<time>)")
    add("-g", "--group")
    add("-n", "--name")
    add("--progress", choices=("auto", "bar", "none"))
    add("--resume", metavar="DIR|auto", help="continue the run in DIR, or the newest unfinished one of the group")
    add("--print-config", action="store_true", help="show the whole config and stop")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script `hyperopt-id`: `hyperopt-id train ...`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:
        return train(given[1:])
    print("usage: hyperopt-id train -c FILE...   (hyperopt-id train --help says more)", file=sys.stderr)
    return 0 if given[:1] in (["-h"], ["--help"]) else 2


def train(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for. Mistakes of the user end in one line and exit status 2."""
    options = parser().parse_args(arguments)
    try:
        _train(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _train(options: argparse.Namespace) -> None:
    overrides = [
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for flag, key in FLAGS.items()
        if (value := getattr(options, flag)) is not None
    ]
    directory = _resumed_directory(options, [*options.set, *overrides])
    files = options.config or ([directory / "config.yaml"] if directory is not None else [])
    if not files:
        raise ValueError(
            "no config: name at least one file, as in -c configs/digits.yaml configs/Ours_LR_Momentum.yaml"
        )
    config = load(files, [*options.set, *overrides])
    if options.print_config:
        print(dump(config), end="")
        return
    if directory is not None and (changed := _changed(directory, config)):
        raise ValueError(
            f"the run in {directory} was made with another config: {'; '.join(changed)}; start a new run instead"
        )
    if directory is not None and is_finished(directory):
        print(f"the run in {directory} is finished; there is nothing to resume")
        return
    if directory is not None:
        _check_device(directory, config)
    run(config, directory or new_directory(config), resume=directory is not None)


def _changed(directory: Path, config: Config) -> list[str]:
    """What keeps `config` from continuing the run in `directory`. To name the device that `auto` took is no change."""
    try:
        before = load([directory / "config.yaml"])
    except ValueError as error:  # damaged, or of another version: not the run that is meant
        return [f"its config.yaml cannot be used ({error})"]
    if config.device != "auto":
        before = replace(before, device=first_device(directory) or before.device)
    return differences(before, config)


def _check_device(directory: Path, config: Config) -> None:
    """Raise a ValueError where `auto` means another device than the run began on: its numbers would change."""
    here, first = pick_device(config.device).type, first_device(directory)
    if first not in (None, here):
        raise ValueError(
            f"the run in {directory} began on {first}, but device {config.device} is {here} here; "
            f"add --set device={first} where there is one, or start a new run"
        )


def new_directory(config: Config) -> Path:
    """DIR/GROUP/NAME, where what is not given follows from the config and the time."""
    group = config.log.group or f"{config.task.name}_{config.algorithm}"
    parent, stamp = Path(config.log.dir or "runs") / group, time.strftime("%Y-%m-%d_%H-%M-%S")
    if config.log.name is not None:
        return parent / config.log.name
    names = itertools.chain([stamp], (f"{stamp}_{number}" for number in itertools.count(2)))
    return next(parent / name for name in names if not (parent / name).exists())


def _resumed_directory(options: argparse.Namespace, overrides: Sequence[str]) -> Path | None:
    """The run directory that `--resume` means, None without it."""
    if options.resume is None:
        return None
    if options.resume != "auto":
        directory = Path(options.resume)
    elif not options.config:
        raise ValueError(
            "--resume auto finds the run by its config files: add -c FILE..., or name the directory: --resume DIR"
        )
    else:
        config = load(options.config, overrides)
        group = new_directory(config).parent
        runs = sorted((path.parent for path in group.glob("*/config.yaml")), key=lambda path: path.stat().st_mtime)
        runs = [path for path in runs if not _changed(path, config)]
        unfinished = [path for path in runs if not is_finished(path)] or runs
        if not unfinished:
            raise ValueError(f"--resume auto found no run of this config in {group}; leave --resume out to start one")
        directory = unfinished[-1]
    if not (directory / "config.yaml").is_file():
        raise ValueError(f"--resume {directory}: there is no run (no config.yaml) in that directory")
    return directory


def run(config: Config, directory: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train as `config` says, with logs and checkpoints in `directory`; returns the summary."""
    saved, began = None, time.perf_counter()
    unusable: list[str] = []  # said when there is a log
    runtime.keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)  # first of all: the directory says how many there are
    if resume and any((directory / "checkpoints").glob("step_*.pt")):
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
        resume_at=saved["update"] if saved is not None else (0 if resume else None),
        initial=starting_values(config),
    )
    with telemetry:
        for message in unusable:
            logger.warning(message)
        try:
            parts, plan = from_config(config, compiled=None if saved is None else saved["compile"])
        except ValueError:  # a mistake of the user, which the caller shows; there is no run to continue
            if not resume:
                telemetry.discard()
            telemetry.close()
            raise
        summary = experiment.run(
            parts, plan, telemetry, resume=saved, remember={"compile": parts.compiled}, began=began
        )
        summary["config_hash"] = config_hash(replace(config, device=device.type))
        telemetry.close(summary)
    return summary
