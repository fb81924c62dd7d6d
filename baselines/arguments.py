"""What the command lines of all searches have in common: arguments -> config and search directory.

    python -m baselines.<name> -c FILE... [-s K=V ...] [--seed N] [-l DIR -g GROUP -n NAME] [--resume]

A config that names no algorithm means plain training on the training set alone, so that the validation set, by which
a search chooses, is unseen.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperopt_id import config as configs
from hyperopt_id.config_schema import Config
from hyperopt_id.launch import changes, new_directory
from hyperopt_id.options import WHAT, WHERE, Parser, add_options, ended, given_flags

INSTALL = "python -m pip install -c constraints.txt -e '.[baselines]'"
ENDS = "--trials N, or a budget (--budget-gradients G, --budget-seconds S)"  # what may end a search
PLAIN = Path(__file__).parents[1] / "configs" / "Random_TrainingSetOnly.yaml"
LOCK = "search.lock"
STARTED = ("search.json", "config.json", "config.yaml")  # written in this order, and by the last a search is known


def parser(description: str) -> argparse.ArgumentParser:
    """The common options; a search adds its own."""
    result = Parser(description=description)
    add_options(result, *WHAT, *WHERE, group={"help": "default: <data set>_<algorithm>_<search>"})
    resume = "continue the search in that directory; without a name, the newest one"
    result.add_argument("--resume", action="store_true", help=resume)
    return result


def add_budget(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--budget-gradients", type=float, metavar="G", help="gradient evaluations that a search may spend")
    add("--budget-seconds", type=float, metavar="S", help="seconds that a search may spend")


def searching(search: Callable[..., Any], options: argparse.Namespace, name: str, **settings: Any) -> None:
    """Search as the options say, in the directory that they mean, and print where the result is."""
    config = load(options)
    path = directory(options, config, name)
    search(config, path, **settings, gradients=options.budget_gradients, seconds=options.budget_seconds)
    print(path / "summary.json")


def load(options: argparse.Namespace) -> Config:
    """The config that the options state, checked."""
    if not options.config:
        raise ValueError("no config: name at least one file, as in -c configs/uci_energy.yaml")
    config = configs.load([PLAIN, *options.config], [*options.set, *given_flags(options)])
    check(config)
    return config


def check(config: Config) -> None:
    """Raise a ValueError where a search could not choose by the loss on validation data that training has not seen."""
    if not config.task.has_validation or "validation" not in config.report.splits:
        raise ValueError("a search chooses by validation loss: give task validation rows, and report.splits validation")
    if config.task.train_on != "train":
        raise ValueError(
            f"a search chooses by validation loss, which training must not see, but {config.algorithm} trains on "
            f"{config.task.train_on}; add -s task.train_on=train, or take {PLAIN.stem}.yaml"
        )


def directory(options: argparse.Namespace, config: Config, default_name: str) -> Path:
    """DIR/GROUP/NAME of a search called `default_name`, new or, under --resume, there; a ValueError if it is not so."""
    group = config.log.group or f"{config.task.name}_{config.algorithm}_{default_name}"
    path = new_directory(replace(config, log=replace(config.log, group=group)))
    if options.resume and config.log.name is None:
        searches = sorted(path.parent.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
        if not searches:
            raise ValueError(f"--resume: there is no search in {path.parent}; leave --resume out to start one")
        path = searches[-1].parent
    there = (path / "config.yaml").is_file()
    if options.resume and not there:
        raise ValueError(f"--resume: there is no search (no config.yaml) in {path}; leave --resume out to start one")
    if not options.resume and not is_free(path):
        what = "already holds a search; continue it with --resume" if there else "is not empty; empty it"
        raise ValueError(f"the directory {path} {what} or choose another name with -n NAME")
    return path


def check_config(directory: Path, config: Config) -> None:
    """Raise a ValueError where the search in `directory` was made with another config."""
    if changed := changes(directory, config):
        raise ValueError(
            f"the search in {directory} was made with another config: {'; '.join(changed)}; start a new one instead"
        )


def is_free(directory: Path) -> bool:
    """Whether nothing is in the directory, or what a search has left there that was killed while it started."""
    there = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    started = {name for name in STARTED[:-1] if STARTED[0] in there}
    return there <= {LOCK, *started, *(f".{name}.tmp" for name in STARTED)}


def main(run: Callable[[Sequence[str] | None], object], arguments: Sequence[str] | None = None) -> int:
    """Exit status of `run(arguments)`. Mistakes of the user end in one line and status 2."""
    return ended(lambda: run(arguments), "stopped; the same command with --resume goes on")
