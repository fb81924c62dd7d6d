"""The tables of a study, as a table: what each shows, what it needs, and how it is made.

`best on test` is the published study's "best": the lowest test value anywhere on the trajectories of the runs that did
not diverge. `selected` is the final test value of the run with the lowest final validation loss, which is what one
would get: no test data choose it, and there is none for runs that trained on the validation data.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from hyperopt_id.analysis import grids, repetitions, selection, style
from hyperopt_id.analysis.collect import Study
from hyperopt_id.analysis.cost_of_runs import multiples, training_seconds
from hyperopt_id.analysis.load_search import COSTS, Search, common_metric
from hyperopt_id.analysis.names import printable
from hyperopt_id.analysis.runs import Runs
from hyperopt_id.analysis.selection import BATCH
from hyperopt_id.analysis.statistics import estimate, estimate_selected, lowest, mean, median
from hyperopt_id.analysis.tables import Row, Table

NOTE = (
    "Mean and median of final values over the runs that did not diverge. Best on test: the lowest test value of any "
    "trajectory. Selected: the final test value of the run with the lowest final validation loss. All ± bootstrap "
    "standard deviation (1000 resamples). Bold: the lowest mean and median of those of which no run has diverged."
)
SEARCHED = (
    "Mean and median over repetitions of the test value of the model with the lowest validation loss at any report. "
    "Best on test: the lowest of any model. All ± bootstrap standard deviation (1000 resamples). Gradients and "
    "seconds: what a repetition spent, in the mean; methods that spent differently are not compared by this table."
)
TIMED = (
    "Seconds of training only: without compiling, evaluating and logging. What a method costs is measured by runs that "
    "trained alone and were not compiled (inner.compile=off); the times of others are shared, and no measurement. "
    "Lowest and highest: of a single run directory, of so many."
)
MEASURED = {True: "alone, not compiled", False: "no: side by side or compiled"}
NEEDS = {  # of tables and figures
    "final_losses": "finished runs",
    "loss_medians": "runs with several reports",
    "loss_envelopes": "runs with several reports",
    "learning_rates": "runs that learn the learning rate, with the values they start at",
    "sensitivity": f"runs of one algorithm at {grids.FEWEST} or more settings of (T, K)",
    "hypergradient_accuracy": grids.NEEDS,
    "proof_of_concept": (
        "runs of Ours_LR, Ours_LR_Momentum or DiffThroughOpt, and 10 or more finite ones of Random, that start at "
        "different learning rates and weight decays, and all else alike"
    ),
    "runtimes": "runs of Random and of another",
    "best_so_far": "finished searches",
    "best_of_runs": "runs with several reports of a validation loss that they did not train on",
    "long_horizon": "runs of LongDiffThroughOpt_*",
    "batch_norm": "one data set with and without it",
    "validation_fractions": "runs of one algorithm with several task.validation_fraction",
    "variants": "runs of one algorithm with several settings",
    "searches": "finished searches",
    "error_rates": "runs of classification",
}


class Entry(NamedTuple):
    """A table or figure: `make` makes it of a study, or nothing where the study lacks what it `needs`."""

    name: str
    shows: str
    make: Callable[[Study], Any]

    @property
    def needs(self) -> str:
        return NEEDS[self.name]


def row(runs: Runs, metric: str | None = None) -> Row:
    """The cells of one kind of runs."""
    metric = metric or runs.metric
    values, weights = runs.final(metric), runs.weights
    share = weights if weights is not None else np.full(len(runs), 1.0 / len(runs))
    return {
        "data set": style.dataset(runs.dataset),
        "algorithm": style.look(runs.algorithm).label,
        "metric": style.metric(metric, runs.has("accuracy/test")),
        "starts": len(runs) if weights is None else len(runs) // BATCH,
        "mean": estimate(values, mean, weights=weights, batch=BATCH),
        "median": estimate(values, median, weights=weights, batch=BATCH),
        "best on test": estimate(runs.lowest(metric), lowest, weights=weights, batch=BATCH),
        "selected": estimate_selected(runs.validation, values) if weights is None else None,
        "diverged %": round(float(100.0 * share[np.isnan(values)].sum()), 9),
        "seconds": runs.cost.get("total") if weights is None else None,
    }


def search_row(search: Search, metric: str) -> Row:
    """The cells of one search."""
    values = search.final(metric)
    known = [[e[metric] for e in found if e.get(metric) is not None] for found in search.evaluations]
    return {
        "data set": style.dataset(search.dataset),
        "algorithm": style.look(style.canonical(search.method, search.algorithm)).label,
        "metric": style.metric(metric, search.classifies),
        "repetitions": len(values),
        "mean": estimate(values, mean),
        "median": estimate(values, median),
        "best on test": estimate(np.array([min(found, default=np.nan) for found in known]), lowest),
        "failed %": float(100.0 * np.isnan(values).mean()),
        **{cost: estimate(search.final(cost), mean).value for cost in COSTS},
    }


def final_losses(study: Study) -> Table | None:
    return _table("final_losses", (row(runs) for _, kinds in selection.by_dataset(study) for runs in kinds.values()))


def error_rates(study: Study) -> Table | None:
    known = [runs for _, kinds in selection.by_dataset(study) for runs in kinds.values() if runs.has("accuracy/test")]
    return _table("error_rates", (row(runs, "error/test") for runs in known))


def long_horizon(study: Study) -> Table | None:
    rows = []
    for dataset in style.datasets_in_order(study.datasets):
        for name, kinds in selection.long_horizon(study, dataset).items():
            block = f"{style.dataset(dataset)}, {style.look(name).label}"
            rows += [{**row(runs), "data set": block, "steps": runs.length} for runs in kinds.values()]
    return _table("long_horizon", rows)


def batch_norm(study: Study) -> Table | None:
    names = [name for dataset in selection.batch_norm(study) for name in (dataset, f"{dataset}_bn")]
    found = [kinds for dataset, kinds in selection.by_dataset(study) if dataset in names]
    return _table("batch_norm", (row(runs) for kinds in found for runs in kinds.values()))


def validation_fractions(study: Study) -> Table | None:
    rows = []
    for dataset in style.datasets_in_order(study.datasets):
        for fraction, kinds in selection.fractions(study, dataset).items():
            rows += [_qualified(runs, f"validation fraction {fraction}") for runs in kinds.values()]
    return _table("validation_fractions", rows)


def variants(study: Study) -> Table | None:
    rows = []
    for dataset in style.datasets_in_order(study.datasets):
        for algorithm in style.in_order({runs.algorithm for runs in study.of(dataset)}):
            kinds = study.of(dataset, algorithm)
            rows += [_qualified(k, selection.differences(k, kinds)) for k in kinds if len(kinds) > 1]
    return _table("variants", rows)


def hypergradient_accuracy(study: Study) -> Table | None:
    rows = []
    for dataset in style.datasets_in_order(study.datasets):
        for reference, cells in grids.accuracies(study, dataset).items():
            for (steps, terms), found in cells.items():
                known = {"data set": style.dataset(dataset), "exact through": reference, "T": steps, "K": terms}
                known |= {"hypergradients": len(found.errors), "relative error": estimate(found.errors, median)}
                known |= {"mean error": estimate(found.errors, mean), "1 − cosine": estimate(found.distances, median)}
                rows.append(
                    known | {f"error, {printable(name)}": estimate(part, median) for name, part in found.parts.items()}
                )
    note = "Hypergradients of neumann(K) against those by unrolling: medians over hypergradients, of one state each."
    return Table("hypergradient_accuracy", note, rows, "data set") if rows else None


def runtimes(study: Study) -> Table | None:
    rows = []
    for dataset in style.datasets_in_order(study.datasets):
        kinds = selection.timed(study, dataset)
        rows += [
            {
                "data set": style.dataset(dataset),
                "algorithm": style.look(name).label,
                "runs": len(kinds[name]),
                "steps": int(kinds[name].steps[-1]),
                "seconds per run and 1000 steps": training_seconds(kinds[name]),
                "of vanilla training": multiple.value,
                "lowest": multiple.lowest,
                "highest": multiple.highest,
                "directories": multiple.directories,
                "seconds compiling": kinds[name].cost.get("compile"),
                "measured": MEASURED[selection.measured(kinds[name])],
            }
            for name, multiple in multiples(kinds).items()
        ]
    return Table("runtimes", TIMED, rows, "data set") if rows else None


def searches(study: Study) -> Table | None:
    found = [repetitions.searches(study, name) for name in style.datasets_in_order(study.datasets)]
    rows = [search_row(search, common_metric(of.values())) for of in found for search in of.values()]
    return Table("searches", SEARCHED, rows, "data set") if rows else None


TABLES = (
    Entry("final_losses", "final test values of every data set and algorithm", final_losses),
    Entry("error_rates", "final error rates", error_rates),
    Entry("long_horizon", "final test values of long-horizon variants", long_horizon),
    Entry("batch_norm", "final test values with and without it", batch_norm),
    Entry("validation_fractions", "final test values for several validation fractions", validation_fractions),
    Entry("variants", "algorithms run with several settings", variants),
    Entry("hypergradient_accuracy", "errors of hypergradients over (T, K)", hypergradient_accuracy),
    Entry("runtimes", "training time, also as multiples of vanilla training", runtimes),
    Entry("searches", "what searches found", searches),
)


def _qualified(runs: Runs, by: str) -> Row:
    cells = row(runs)
    return {**cells, "algorithm": f"{cells['algorithm']}, {by}"}


def _table(name: str, rows: Iterable[Row]) -> Table | None:
    rows = list(rows)
    return Table(name, NOTE, rows, "data set", ("mean", "median"), "diverged %") if rows else None
