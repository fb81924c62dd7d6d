"""The fair comparison: every method on one data set under one budget.

    python scripts/compare.py -c configs/uci_energy.yaml --budget-gradients 120000 --out comparison

A repetition of a method may spend so many gradient evaluations (`hyperopt_id.analysis.cost`), or so many seconds with
`--budget-seconds`; both are reported. A method that tunes in a single pass, or needs no tuning, spends what is left on
further random starts or seeds. All train on the training set, choose by the loss on the validation set, and are judged
on the test set, which chooses nothing. All runs are looked at equally often. OUT holds a folder for each method, which
the same command continues, and

    comparison.{md,tex,csv}     the table
    best_so_far.{pdf,png}       test metric of the best model so far against what it cost
    report.html                 both, in one file
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout that is not installed

from baselines import arguments, bayesopt, random_search
from hyperopt_id import config as configs
from hyperopt_id.analysis import comparison, plotting, style
from hyperopt_id.analysis.figures_cost import draw_best_so_far
from hyperopt_id.analysis.load_search import Search, load_search
from hyperopt_id.analysis.page import Code, Heading, Part, Picture, Text, page
from hyperopt_id.analysis.tables import FORMATS
from hyperopt_id.config_schema import Config
from hyperopt_id.options import add_options, given_flags

CONFIGS = Path(__file__).parents[1] / "configs"
LOOKS = 20  # reports of a whole run, at which a model may be kept


class Budget(NamedTuple):
    """What a repetition may spend, None: as much as it takes; and how many repetitions there are."""

    gradients: float | None
    seconds: float | None
    repetitions: int

    def __str__(self) -> str:
        parts = {"gradient evaluations": self.gradients, "seconds": self.seconds}
        return " and ".join(f"{value:,.0f} {unit}" for unit, value in parts.items() if value is not None)


Spend = Callable[[Config, Path, Budget], list[Path]]  # trains, and returns the search directories


class Method(NamedTuple):
    """`config` names the file of the algorithm that trains; `spend` is what makes a search of it."""

    config: str
    spend: Spend


def starts(config: Config, directory: Path, budget: Budget) -> list[Path]:
    """As many random starts as the budget holds."""
    gradients, seconds, repetitions = budget
    random_search.search(config, directory, repetitions=repetitions, gradients=gradients, seconds=seconds)
    return [directory]


def bayesian(config: Config, directory: Path, budget: Budget) -> list[Path]:
    gradients, seconds, repetitions = budget
    plain = config.inner.total_steps
    evaluations = 30 if gradients is None else int(gradients // plain)
    random = min(5, max(1, evaluations // 6))
    bayesopt.search(
        config,
        directory,
        repetitions=repetitions,
        evaluations=evaluations,
        random=random,
        gradients=gradients,
        seconds=seconds,
    )
    return [directory]


def halving(config: Config, directory: Path, budget: Budget) -> list[Path]:
    """As many trials as would spend the budget if each were stopped at its first look."""
    from baselines import asha

    look = (config.report.every or 1) * config.inner.steps_per_update
    trials = 200 if budget.gradients is None else max(2, int(budget.gradients // look))
    return one_by_one(partial(asha.search, trials=trials), config, directory, budget)


def population_based(config: Config, directory: Path, budget: Budget) -> list[Path]:
    """As many members as the budget lets train to the end."""
    from baselines import pbt

    members = 30 if budget.gradients is None else max(2, int(budget.gradients // config.inner.total_steps))
    look = (config.report.every or 1) * config.inner.steps_per_update
    return one_by_one(partial(pbt.search, population=members, interval=look), config, directory, budget)


def one_by_one(search: Callable[..., Any], config: Config, directory: Path, budget: Budget) -> list[Path]:
    """A search of its own for each repetition, all on one Ray; repetition r begins at seed + 10000 r."""
    from baselines.cluster import Resources, cluster

    folders = [directory / f"repetition_{number}" for number in range(budget.repetitions)]
    with cluster(Resources()):
        for number, folder in enumerate(folders):
            seeded = replace(config, seed=config.seed + 10_000 * number)
            search(seeded, folder, gradients=budget.gradients, seconds=budget.seconds)
    return folders


def tuning_free(optimizer: str, config: Config, directory: Path, budget: Budget) -> list[Path]:
    """One training after another, which differ in their seed."""
    from baselines import tuning_free

    gradients, seconds, repetitions = budget
    tuning_free.search(
        config, directory, optimizer=optimizer, repetitions=repetitions, gradients=gradients, seconds=seconds
    )
    return [directory]


METHODS = {
    "Ours_LR": Method("Ours_LR", starts),
    "Ours_LR_Momentum": Method("Ours_LR_Momentum", starts),
    "Ours_HDLR_Momentum": Method("Ours_HDLR_Momentum", starts),
    "Ours_Carry": Method("Ours_Carry", starts),
    "DiffThroughOpt": Method("DiffThroughOpt", starts),
    "Lorraine": Method("Lorraine", starts),
    "Baydin": Method("Baydin", starts),
    "Random": Method("Random_TrainingSetOnly", starts),
    "BayesOpt": Method("Random_TrainingSetOnly", bayesian),
    "ASHA": Method("Random_TrainingSetOnly", halving),
    "PBT": Method("Random_TrainingSetOnly", population_based),
    "Prodigy": Method("Random_TrainingSetOnly", partial(tuning_free, "prodigy")),
    "ScheduleFree_SGD": Method("Random_TrainingSetOnly", partial(tuning_free, "schedulefree_sgd")),
    "ScheduleFree_AdamW": Method("Random_TrainingSetOnly", partial(tuning_free, "schedulefree_adamw")),
    "MuLO": Method("MuLO", starts),
}


def available() -> dict[str, Method]:
    """The methods whose algorithm is there."""
    return {name: method for name, method in METHODS.items() if (CONFIGS / f"{method.config}.yaml").is_file()}


def method_config(options: argparse.Namespace, method: Method) -> Config:
    """The config that a method trains with: on the training set alone, and looked at `LOOKS` times."""
    files = [*options.config, CONFIGS / f"{method.config}.yaml"]
    config = configs.load(files, ["task.train_on=train", *options.set, *given_flags(options)])
    every = max(1, config.inner.total_steps // LOOKS // config.inner.steps_per_update)
    return replace(config, report=replace(config.report, every=every))


def spend(name: str, options: argparse.Namespace, budget: Budget) -> Search:
    """What a method finds for the budget, trained as far as it is not there yet."""
    method = METHODS[name]
    folders = method.spend(method_config(options, method), options.out / name, budget)
    found = [(folder, load_search(folder)) for folder in folders]
    expanded = [comparison.with_reports(folder, search) for folder, search in found if search is not None]
    return comparison.within(comparison.merged(expanded), budget.gradients, budget.seconds)


def write(searches: dict[str, Search], options: argparse.Namespace, budget: Budget, command: str) -> None:
    """Table, figure and page."""
    table = comparison.table(searches, "comparison")
    for ending, text in FORMATS.items():
        (options.out / f"comparison.{ending}").write_text(text(table), encoding="utf-8")
    dataset = next(iter(searches.values())).dataset
    with plotting.matplotlib().rc_context(plotting.STYLE):
        figure = draw_best_so_far(dataset, searches)
        plotting.save(figure, options.out / "best_so_far")
        parts: list[Part] = [
            Text(
                f"{len(searches)} methods, {budget.repetitions} repetitions each, {budget} a repetition. All train on "
                "the training set and choose by the loss on the validation set. The test set chooses nothing."
            ),
            table,
            Heading("Best so far against its cost"),
            Picture(
                figure,
                "Test metric of the model with the lowest validation loss so far: median over repetitions, and the "
                "bounds of 95 % of its bootstrap resamples.",
            ),
            Heading("Repeat it"),
            Code(command),
        ]
        title = f"Hyperparameter optimization on {style.dataset(dataset)}"
        (options.out / "report.html").write_text(page(title, parts), encoding="utf-8")


def run(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare methods on one data set under one budget.")
    add = parser.add_argument
    add_options(parser, "config", "set", "seed", "device", "threads", "data_root", "progress")
    add("--methods", nargs="+", choices=list(available()), default=list(available()), metavar="NAME")
    add("--budget-gradients", type=float, metavar="N", help="gradient evaluations of a repetition")
    add("--budget-seconds", type=float, metavar="S", help="seconds of a repetition")
    add("--seeds", type=int, default=5, metavar="P", help="repetitions (default %(default)s)")
    add("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(given)
    if not options.config:
        raise ValueError("no data set: name its file, as in -c configs/uci_energy.yaml")
    if options.budget_gradients is None and options.budget_seconds is None:
        raise ValueError("no budget: give --budget-gradients, --budget-seconds, or both")
    if options.seeds < 1:
        raise ValueError(f"given {options.seeds} seeds; a comparison needs 1 or more, and 5 or more to mean anything")
    budget = Budget(options.budget_gradients, options.budget_seconds, options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    searches = {}
    for name in options.methods:
        print(f"{style.look(name).label} ...", file=sys.stderr)
        searches[name] = spend(name, options, budget)
    words = sys.argv[1:] if given is None else given
    write(searches, options, budget, shlex.join(["python", "scripts/compare.py", *words]))
    print(options.out / "report.html")


if __name__ == "__main__":
    sys.exit(arguments.main(run))
