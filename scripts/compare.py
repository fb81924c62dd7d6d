"""The fair comparison: every method on one data set under one budget.

    python scripts/compare.py -c configs/uci_energy.yaml --budget-gradients 120000 --out comparison

A repetition of a method may spend so many gradient evaluations (`hyperopt_id.analysis.cost`), or so many seconds with
`--budget-seconds`; both are reported. A method that tunes in a single pass, or needs no tuning, spends what is left on
further random starts or seeds; repetition r of all methods draws the same ones. All train on the training set, choose
by the loss on the validation set, and are judged on the test set, which chooses nothing. All runs are looked at equally
often. OUT holds a folder for each method, which the same command continues, and

    comparison.{md,tex,csv}     the table
    best_so_far.{pdf,png}       test metric of the best model so far against what it cost
    report.html                 both, in one file
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout that is not installed

import torch

from baselines import arguments, asha, bayesopt, cluster, pbt, random_search, tuning_free
from baselines.cluster import Resources
from baselines.lock import held
from hyperopt_id import config as configs
from hyperopt_id.analysis import comparison, plotting, style
from hyperopt_id.analysis.cost import gradients_per_update
from hyperopt_id.analysis.figures_cost import draw_best_so_far
from hyperopt_id.analysis.load_search import Search, load_search
from hyperopt_id.analysis.page import Code, Heading, Part, Picture, Text, page
from hyperopt_id.analysis.tables import FORMATS
from hyperopt_id.config_schema import Config
from hyperopt_id.optim import mulo_weights
from hyperopt_id.options import Parser, add_options, ended, given_flags

CONFIGS = Path(__file__).parents[1] / "configs"
LOOKS = 20  # at a run, evenly spaced: models that may be kept
APART = 10_000  # seeds between repetitions
FEW = 5  # repetitions below this say little
MEMBERS = 30  # of PBT, where only seconds are limited
PACKAGES = {  # that methods need beyond the library's own
    "BayesOpt": "skopt",
    "ASHA": "ray",
    "PBT": "ray",
    "Prodigy": "prodigyopt",
    "ScheduleFree_SGD": "schedulefree",
    "ScheduleFree_AdamW": "schedulefree",
}


class Method(NamedTuple):
    """`config` names the file of the algorithm that trains; `search(config, directory, gradients=..., seconds=...)`
    makes a search of it."""

    config: str
    search: Callable[..., Any]


def population_based(
    resources: Resources, config: Config, directory: Path, gradients: float | None, seconds: float | None
) -> None:
    """As many members as the budget lets train to the end, compared at every look."""
    members = MEMBERS if gradients is None else max(2, int(gradients // config.inner.total_steps))
    look = (config.report.every or 1) * config.inner.steps_per_update
    pbt.search(
        config,
        directory,
        population=members,
        interval=look,
        gradients=gradients,
        seconds=seconds,
        resources=resources,
    )


def methods(options: argparse.Namespace) -> dict[str, Method]:
    """All methods whose algorithm is there, by name."""
    tuning = ("Ours_LR", "Ours_LR_Momentum", "Ours_HDLR_Momentum", "Ours_Carry", "DiffThroughOpt", "Lorraine", "Baydin")
    plain = {
        "Random": random_search.search,
        "BayesOpt": partial(bayesopt.search, evaluations=None),
        "ASHA": partial(asha.search, resources=cluster.resources(options)),
        "PBT": partial(population_based, cluster.resources(options)),
        "Prodigy": partial(tuning_free.search, optimizer="prodigy"),
        "ScheduleFree_SGD": partial(tuning_free.search, optimizer="schedulefree_sgd"),
        "ScheduleFree_AdamW": partial(tuning_free.search, optimizer="schedulefree_adamw"),
    }
    learned = ("MuLO",) if mulo_weights.SHIPPED.is_file() else ()  # untrained, it is no optimizer
    known = {name: Method(name, random_search.search) for name in (*tuning, *learned)}
    known |= {name: Method(arguments.PLAIN.stem, search) for name, search in plain.items()}
    return {name: method for name, method in known.items() if (CONFIGS / f"{method.config}.yaml").is_file()}


def check_packages(names: Sequence[str]) -> None:
    """Raise a ValueError where a package is missing, before anything is trained."""
    plotting.matplotlib()
    for name in names:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise ValueError(
                f"{name} needs the package {PACKAGES[name]}: {arguments.INSTALL}; or name other methods with --methods"
            )


def method_config(options: argparse.Namespace, method: Method) -> Config:
    """The config that a method trains with, looked at `LOOKS` times or a little more; a ValueError where its validation
    data could not choose, or the budget holds no training."""
    files = [*options.config, CONFIGS / f"{method.config}.yaml"]
    config = configs.load(files, ["task.train_on=train", *options.set, *given_flags(options)])
    arguments.check(config)
    cost, budget = gradients_per_update(configs.to_dict(config)) * config.inner.total_updates, options.budget_gradients
    if budget is not None and cost > budget:
        raise ValueError(
            f"a budget of {budget:g} gradients holds no training by {method.config}, which takes {cost:g}; give more, "
            "or shorten the training with -s inner.steps=N"
        )
    every = max(1, config.inner.total_steps // LOOKS // config.inner.steps_per_update)
    return replace(config, report=replace(config.report, every=every))


def spend(method: Method, config: Config, directory: Path, options: argparse.Namespace) -> Search:
    """What a method finds for the budget in every repetition, trained as far as it is not there yet."""
    budget = {"gradients": options.budget_gradients, "seconds": options.budget_seconds}
    found = []
    for number in range(options.seeds):
        folder = directory / f"repetition_{number}"
        method.search(replace(config, seed=config.seed + APART * number), folder, **budget)
        search = load_search(folder)
        assert search is not None
        found.append(comparison.with_reports(folder, search))
    seen = comparison.thinned(comparison.merged(found), config.inner.total_steps, LOOKS)
    return comparison.within(seen, **budget)


def write(searches: dict[str, Search], out: Path, protocol: str, command: str) -> None:
    """Table, figure and page."""
    table = comparison.table(searches, "comparison")
    for ending, text in FORMATS.items():
        (out / f"comparison.{ending}").write_text(text(table), encoding="utf-8")
    dataset = next(iter(searches.values())).dataset
    with plotting.matplotlib().rc_context(plotting.STYLE):
        figure = draw_best_so_far(dataset, searches)
        plotting.save(figure, out / "best_so_far")
        caption = (
            "Test metric of the model with the lowest validation loss so far, median over repetitions, and the bounds "
            "of 95 % of its bootstrap resamples; with many methods, these are shown at the end."
        )
        parts: list[Part] = [
            Text(protocol),
            table,
            Heading("Best so far against its cost"),
            Picture(figure, caption),
            Heading("Repeat it"),
            Code(command),
        ]
        title = f"Hyperparameter optimization on {style.dataset(dataset)}"
        (out / "report.html").write_text(page(title, parts), encoding="utf-8")


def protocol(options: argparse.Namespace, config: Config) -> str:
    """What was compared, in words."""
    limits = {"gradient evaluations": options.budget_gradients, "seconds": options.budget_seconds}
    budget = " and ".join(f"{value:,.0f} {unit}" for unit, value in limits.items() if value is not None)
    few = f" {options.seeds} repetitions are too few to tell methods apart." if options.seeds < FEW else ""
    threads = options.threads or torch.get_num_threads()
    device = torch.cuda.get_device_name() if options.device != "cpu" and torch.cuda.is_available() else "CPU"
    return (
        f"{len(options.methods)} methods, {options.seeds} repetitions each, {budget} a repetition.{few} A whole "
        f"training has {config.inner.total_steps:,} steps; a method that needs less than the budget trains again, from "
        "further random starts or seeds, which are the same for all methods. All train on the training set and choose "
        f"by the loss on the validation set, among the models at {LOOKS} points of each training. The test set chooses "
        "nothing. A training step is one gradient evaluation, a Hessian-vector product two. Seconds of runs that are "
        "trained together are shared evenly among them. "
        f"{device}, {threads} threads, torch {torch.__version__}, {platform.machine()}."
    )


def parser() -> argparse.ArgumentParser:
    result = Parser(description="Compare methods on one data set under one budget.")
    add_options(result, "config", "set", "seed", "device", "threads", "data_root", "progress")
    add = result.add_argument
    add("--methods", nargs="+", metavar="NAME", help="default: all of them")
    add("--seeds", type=int, default=FEW, metavar="P", help="repetitions (default %(default)s)")
    arguments.add_budget(result)
    add("--out", type=Path, required=True, metavar="DIR")
    cluster.add_options(result)
    return result


def run(given: Sequence[str] | None = None) -> None:
    options = parser().parse_args(given)
    known = methods(options)
    options.methods = options.methods or list(known)
    if unknown := [name for name in options.methods if name not in known]:
        raise ValueError(f"there is no method {unknown[0]}; there are {', '.join(known)}")
    if not options.config:
        raise ValueError("no data set: name its file, as in -c configs/uci_energy.yaml")
    if options.budget_gradients is None and options.budget_seconds is None:
        raise ValueError("no budget: give --budget-gradients, --budget-seconds, or both")
    if options.seeds < 1:
        raise ValueError(
            f"given {options.seeds} seeds; a comparison needs 1 or more, and {FEW} or more to mean anything"
        )
    check_packages(options.methods)
    trained = {name: method_config(options, known[name]) for name in options.methods}
    words = shlex.join(["python", "scripts/compare.py", *(sys.argv[1:] if given is None else given)])
    with held(options.out / "compare.lock", "wait for it, or choose another --out"):
        searches = {}
        for name, config in trained.items():
            print(f"{style.look(name).label} ...", file=sys.stderr)
            searches[name] = spend(known[name], config, options.out / name, options)
        write(searches, options.out, protocol(options, next(iter(trained.values()))), words)
    print(options.out / "report.html")


def main(given: Sequence[str] | None = None) -> int:
    return ended(lambda: run(given), "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
