"""The figures of arXiv 2110.10461, as a table: what each shows, what it needs, and how it is drawn.

Each is drawn as (end of the file's name, figure) once for every data set that has what it needs, or not at all.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hyperopt_id.analysis import (
    figures_cost,
    figures_grid,
    figures_hyper,
    figures_losses,
    grids,
    repetitions,
    selection,
    style,
)
from hyperopt_id.analysis.collect import Study
from hyperopt_id.analysis.cost_of_runs import multiples
from hyperopt_id.analysis.results import Entry
from hyperopt_id.analysis.selection import Kinds

Drawn = Iterator[tuple[str, Any]]


def _by_dataset(study: Study) -> Iterator[tuple[str, Kinds]]:
    return ((dataset, selection.drawn(kinds)) for dataset, kinds in selection.by_dataset(study))


def _distributions(study: Study) -> Drawn:
    for dataset, kinds in _by_dataset(study):
        yield dataset, figures_losses.draw_distributions({style.dataset(dataset): kinds})


def _error_rates(study: Study) -> Drawn:
    for dataset, kinds in _by_dataset(study):
        known = {name: runs for name, runs in kinds.items() if runs.has("accuracy/test")}
        if known:
            yield dataset, figures_losses.draw_distributions({style.dataset(dataset): known}, "error/test")


def _curves(draw: Callable[[str, Kinds], Any]) -> Callable[[Study], Drawn]:
    def every_dataset(study: Study) -> Drawn:
        for dataset, kinds in _by_dataset(study):
            known = {name: runs for name, runs in kinds.items() if len(runs.steps) > 1}
            if known:
                yield dataset, draw(dataset, known)

    return every_dataset


def _learning_rates(study: Study) -> Drawn:
    for dataset, kinds in _by_dataset(study):
        known = {name: runs for name, runs in kinds.items() if "lr" in runs.starts and runs.weights is None}
        if any(runs.has("hyper/lr") for runs in known.values()) and figures_hyper.shared_starts(known):
            yield dataset, figures_hyper.draw_learning_rates(dataset, known)


def _proof_of_concept(study: Study) -> Drawn:
    for dataset in style.datasets_in_order(study.datasets):
        found = selection.landscape(study, dataset)
        if found is not None and figures_hyper.has_landscape(found[0]):
            yield dataset, figures_hyper.draw_proof_of_concept(dataset, *found)


def _sensitivity(study: Study) -> Drawn:
    for dataset in style.datasets_in_order(study.datasets):
        found = grids.sensitivity(study, dataset)
        if found:
            random = selection.usual(study, dataset).get("Random")
            yield dataset, figures_grid.draw_sensitivity(dataset, found, random)


def _accuracies(study: Study) -> Drawn:
    for dataset in style.datasets_in_order(study.datasets):
        found = {r: cells for r, cells in grids.accuracies(study, dataset).items() if len(cells) >= grids.FEWEST}
        if found:
            yield dataset, figures_grid.draw_accuracies(dataset, found)


def _runtimes(study: Study) -> Drawn:
    names = style.datasets_in_order(study.datasets)
    kinds = {dataset: selection.timed(study, dataset) for dataset in names}
    found = {dataset: multiples(of) for dataset, of in kinds.items()}
    found = {dataset: times for dataset, times in found.items() if len(times) > 1}
    if found:
        clean = [dataset for dataset in found if all(map(selection.measured, kinds[dataset].values()))]
        yield "", figures_cost.draw_runtimes(found, measured=clean)


def _best_so_far(study: Study) -> Drawn:
    for dataset in style.datasets_in_order(study.datasets):
        searches = repetitions.searches(study, dataset)
        if searches:
            yield dataset, figures_cost.draw_best_so_far(dataset, searches)


def _best_of_runs(study: Study) -> Drawn:
    for dataset, kinds in selection.by_dataset(study):
        known = {n: runs for n, runs in kinds.items() if np.isfinite(runs.validation).any() and runs.weights is None}
        known = {name: runs for name, runs in known.items() if len(runs.steps) > 1}
        if known:
            yield dataset, figures_cost.draw_best_of_runs(dataset, known)


def _long_horizon(study: Study) -> Drawn:
    for dataset in style.datasets_in_order(study.datasets):
        found = selection.long_horizon(study, dataset)
        if found:
            panels = {f"{style.dataset(dataset)}, {style.look(name).label}": kinds for name, kinds in found.items()}
            yield dataset, figures_losses.draw_distributions(panels)


def _batch_norm(study: Study) -> Drawn:
    for dataset in selection.batch_norm(study):
        panels = {style.dataset(n): kinds for n, kinds in _by_dataset(study) if n in (dataset, f"{dataset}_bn")}
        yield dataset, figures_losses.draw_distributions(panels)


def _fractions(study: Study) -> Drawn:
    for dataset in style.datasets_in_order(study.datasets):
        found = selection.fractions(study, dataset)
        if found:
            title = f"{style.dataset(dataset)}, validation fraction "
            panels = {f"{title}{fraction}": kinds for fraction, kinds in found.items()}
            yield dataset, figures_losses.draw_distributions(panels)


FIGURES = (
    Entry("final_losses", "distribution of final test values", _distributions),
    Entry("loss_medians", "median test value over training", _curves(figures_losses.draw_medians)),
    Entry(
        "loss_envelopes", "median and quartiles of the test value over training", _curves(figures_losses.draw_envelopes)
    ),
    Entry("learning_rates", "learning rates over training, from starts that algorithms share", _learning_rates),
    Entry("sensitivity", "final test values over (T, K)", _sensitivity),
    Entry("hypergradient_accuracy", "errors and angles of hypergradients over (T, K)", _accuracies),
    Entry(
        "proof_of_concept",
        "learned learning rate and weight decay, over the final test values of random ones",
        _proof_of_concept,
    ),
    Entry("runtimes", "training time as multiples of vanilla training", _runtimes),
    Entry("best_so_far", "test value of the best model so far against cost", _best_so_far),
    Entry("best_of_runs", "test value of each run's best report so far against time", _best_of_runs),
    Entry("long_horizon", "final test values of long-horizon variants", _long_horizon),
    Entry("batch_norm", "final test values with and without it", _batch_norm),
    Entry("validation_fractions", "final test values for several validation fractions", _fractions),
    Entry("error_rates", "distribution of final error rates", _error_rates),
)
