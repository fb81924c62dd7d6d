"""The command line: arguments -> config -> parts -> run."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hyperopt_id import launch, user_cache
from hyperopt_id import replay as replaying
from hyperopt_id.build.names import from_config
from hyperopt_id.config import dump, load
from hyperopt_id.config_schema import Config
from hyperopt_id.options import WHAT, WHERE, Parser, add_options, ended, given_flags
from hyperopt_id.terminal import show


def parser() -> argparse.ArgumentParser:
    result = Parser(
        prog="hyperopt-id train",
        description="Train a network and learn its hyperparameters in the same pass, by hypergradients.",
    )
    add = result.add_argument
    add("--runs", type=int, metavar="R", help="R independent runs with random starting hyperparameters")
    add("--sample", action="store_true", default=None, help="random starting hyperparameters for a single run, too")
    add_options(result, *WHAT, *WHERE, group={"help": "default: <data set>_<algorithm>"})
    add("--resume", metavar="DIR|auto", help="continue the run in DIR, or the newest unfinished one of the group")
    add("--print-config", action="store_true", help="show the whole config and stop")
    return result


def replay_parser() -> argparse.ArgumentParser:
    result = Parser(
        prog="hyperopt-id replay",
        description="Train by torch.optim with the hyperparameters that a run has found, without hypergradients.",
    )
    add = result.add_argument
    add("run", metavar="RUN", help="a finished run directory, or that of a search, whose best model is meant")
    add("--member", type=int, metavar="M", help="of a population (default: the one with the lowest validation loss)")
    add("--stretch", type=float, default=1.0, metavar="F", help="a run F times as long (default 1)")
    beside = {"help": "logs go to DIR/GROUP/NAME (default: beside RUN, as RUN_replay)"}
    add_options(result, *WHAT[1:], *WHERE, log_dir=beside, name={"help": "default: RUN_replay"})
    add("--resume", action="store_true", help="continue the replay that is there")
    return result


def cache_parser() -> argparse.ArgumentParser:
    result = Parser(
        prog="hyperopt-id cache",
        description="Compiled programs and kernels that are kept for later starts.",
    )
    what = result.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="what there is (the default)")
    what.add_argument("--clear", action="store_true", help="remove it; it is compiled anew when it is needed")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script `hyperopt-id`: `hyperopt-id train ...`, `hyperopt-id replay ...`, `hyperopt-id cache ...`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"train": train, "replay": replay, "cache": cache}
    if given and given[0] in commands:
        return commands[given[0]](given[1:])
    print(
        "usage: hyperopt-id train -c FILE... | hyperopt-id replay RUN | hyperopt-id cache   (--help after each: more)",
        file=sys.stderr,
    )
    return 0 if given[:1] in (["-h"], ["--help"]) else 2


def train(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for. Mistakes of the user end in one line and exit status 2."""
    options = parser().parse_args(arguments)
    return ended(lambda: _train(options))


def replay(arguments: Sequence[str] | None = None) -> int:
    """Replay the run that the arguments name; ends as `train` does."""
    options = replay_parser().parse_args(arguments)
    return ended(lambda: _replay(options))


def cache(arguments: Sequence[str] | None = None) -> int:
    """Show or remove what was compiled; ends as `train` does."""
    options = cache_parser().parse_args(arguments)
    return ended(lambda: _cache(options.clear))


def _cache(clear: bool) -> None:
    try:
        entries = user_cache.clear() if clear else user_cache.contents()
        folder = user_cache.folder()
    except (RuntimeError, OSError) as error:  # no home folder; a folder that may not be changed
        raise ValueError(f"the cache cannot be used ({error}): set HYPEROPT_ID_CACHE") from error
    for entry in [] if clear else entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        show(f"{entry.kind:8} {entry.size / 1e6:8.1f} MB   used {used}   {entry.path.name}")
    size = sum(entry.size for entry in entries) / 1e6
    show(f"{'removed ' if clear else ''}{len(entries)} entries, {size:.1f} MB, in {folder}")


def _replay(options: argparse.Namespace) -> None:
    overrides = [*options.set, *given_flags(options)]
    config, build = replaying.prepare(options.run, options.member, options.stretch, overrides)
    directory = launch.new_directory(config)
    if not options.resume:
        launch.run(config, directory, build=build)
    elif (directory / "config.yaml").is_file():
        _resume(config, directory, build)
    else:
        raise ValueError(
            f"--resume: there is no replay (no config.yaml) in {directory}; leave --resume out to start it"
        )


def _train(options: argparse.Namespace) -> None:
    overrides = [*options.set, *given_flags(options)]
    directory = _resumed_directory(options, overrides)
    files = options.config or ([directory / "config.yaml"] if directory is not None else [])
    if not files:
        raise ValueError(
            "no config: name at least one file, as in -c configs/digits.yaml configs/Ours_LR_Momentum.yaml"
        )
    config = load(files, overrides)
    if options.print_config:
        show(dump(config).rstrip("\n"))
    elif directory is None:
        launch.run(config, launch.new_directory(config))
    else:
        _resume(config, directory, from_config)


def _resume(config: Config, directory: Path, build: launch.Build) -> None:
    if launch.finished(directory) is not None and not launch.changes(directory, config):
        launch.check_named(config, directory)
        print(f"the run in {directory} is finished; there is nothing to resume")
    else:
        launch.resume(config, directory, build=build)


def _resumed_directory(options: argparse.Namespace, overrides: Sequence[str]) -> Path | None:
    """The run directory that `--resume` means, None without it."""
    if options.resume is None:
        return None
    if options.resume != "auto":
        directory = Path(os.path.expanduser(options.resume))
    elif not options.config:
        raise ValueError(
            "--resume auto finds the run by its config files: add -c FILE..., or name the directory: --resume DIR"
        )
    else:
        directory = launch.newest(load(options.config, overrides))
    if not (directory / "config.yaml").is_file():
        raise ValueError(f"--resume {directory}: there is no run (no config.yaml) in that directory")
    if not options.config and not (directory / "config.yaml").stat().st_size:
        raise ValueError(
            f"--resume {directory}: this run was started from Python, so nothing in it says what its task is; resume "
            "it from Python, too: hyperopt_id.run(..., resume=...) (see docs/run_directory.md)"
        )
    return directory
