"""What methods cost, and what they reach for it."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hyperopt_id.analysis import plotting, style
from hyperopt_id.analysis.load_search import Search, Steps, best_so_far, incumbents, on_grid
from hyperopt_id.analysis.selection import Kinds
from hyperopt_id.analysis.statistics import band, quantiles

POINTS = 200
LABELS = {"seconds": "wall-clock seconds", "gradients": "gradient evaluations"}


def draw_runtimes(datasets: Mapping[str, Mapping[str, float]]) -> Any:
    """Bars of training time as multiples of vanilla training."""
    most = max(len(times) for times in datasets.values())
    figure, axes = plotting.new_figure(len(datasets), (4.2, 0.26 * most + 0.9), across=2, beside=0.0)
    for panel, (dataset, times) in zip(axes, datasets.items()):
        names = list(times)
        for place, name in enumerate(names):
            look = style.look(name)
            panel.barh(place, times[name], color=look.color, height=0.62, zorder=2)
            panel.text(max(1.0, times[name]), place, f" {times[name]:.2f}", va="center", fontsize=8)
        panel.set_yticks(range(len(names)), [style.look(name).label for name in names])
        panel.axvline(1.0, color=style.INK, lw=1.0, ls=style.DOTTED, zorder=3)
        panel.set(
            xlim=(0.0, 1.12 * max(times.values())), title=style.dataset(dataset), xlabel="training time / vanilla"
        )
        panel.invert_yaxis()
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", visible=False)
    return figure


def draw_best_so_far(dataset: str, searches: Mapping[str, Search]) -> Any:
    """The test metric of the model with the lowest validation loss so far: median over repetitions, and the bounds of
    95 % of its bootstrap resamples, against seconds and gradients."""
    metric = next(iter(searches.values())).metric
    panels = {
        cost: {name: best_so_far(search, metric, cost) for name, search in searches.items()}
        for cost in ("seconds", "gradients")
    }
    ends = {c: {n: float(search.final(c).max()) for n, search in searches.items()} for c in panels}
    label = style.metric(metric, any(search.classifies for search in searches.values()))
    return _draw(f"{style.dataset(dataset)}: best so far", panels, ends, label)


def draw_best_of_runs(dataset: str, kinds: Kinds) -> Any:
    """The same of single runs, which keep their best report, against the seconds of their training."""
    first = next(iter(kinds.values()))
    curves = {
        name: [
            incumbents(*columns)
            for columns in zip(runs.curve("loss/validation"), runs.curve(first.metric), runs.times, strict=True)
        ]
        for name, runs in kinds.items()
    }
    ends = {name: float(runs.times[:, -1].max()) for name, runs in kinds.items()}
    label = style.metric(first.metric, first.has("accuracy/test"))
    return _draw(f"{style.dataset(dataset)}: best report of a run", {"seconds": curves}, {"seconds": ends}, label)


def _draw(
    title: str,
    panels: Mapping[str, Mapping[str, list[Steps]]],
    ends: Mapping[str, Mapping[str, float]],
    label: str,
) -> Any:
    """A panel for each cost: medians of step functions, each until what its method spent."""
    figure, axes = plotting.new_figure(len(panels), (3.6, 3.0), sharey=True)
    looks = style.distinct(list(next(iter(panels.values()))))
    shown = []
    for panel, (cost, methods) in zip(axes, panels.items()):
        grids = {name: _grid(curves, ends[cost][name]) for name, curves in methods.items()}
        for place, (name, look) in enumerate(looks.items()):
            middle, low, high = band(on_grid(methods[name], grids[name]), _median)
            plotting.curve(panel, grids[name], middle, look, place, drawstyle="steps-post")
            panel.fill_between(grids[name], low, high, color=look.color, alpha=0.16, lw=0, step="post")
            shown += [middle, low, high]
        plotting.log_axis(panel.xaxis, grids.values())
        spent = np.concatenate(list(grids.values()))
        panel.set(xlim=(spent.min() / 1.1, spent.max() * 1.1), xlabel=LABELS[cost])
    plotting.log_axis(axes[0].yaxis, shown)
    axes[0].set(ylabel=label, title=title)
    plotting.legend(figure, looks)
    return figure


def _median(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """A repetition that has nothing yet is worse than any other."""
    return quantiles(values, [0.5])[0]


def _grid(curves: Iterable[Steps], end: float) -> np.ndarray:
    """From the first incumbent to what was spent at the end."""
    last = max(end, 1e-12)
    first = min((float(curve.costs[0]) for curve in curves if len(curve.costs)), default=last)
    return np.geomspace(min(max(first, 1e-9 * last), last), last, POINTS)
