"""What methods cost, and what they reach for it."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hyperopt_id.analysis import plotting, style
from hyperopt_id.analysis.cost_of_runs import Multiple
from hyperopt_id.analysis.load_search import Search, Steps, best_so_far, common_metric, incumbents, on_grid, spent
from hyperopt_id.analysis.names import LABEL, in_figure
from hyperopt_id.analysis.selection import Kinds
from hyperopt_id.analysis.statistics import band, quantiles

POINTS = 200
LABELS = {"seconds": "wall-clock seconds", "gradients": "gradient evaluations"}
SHARED = "seconds per run (a population's time, shared)"
FEW = 5  # methods whose bands can be told apart
LANE = 0.035  # of a panel's width, for the whisker of a method
Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # costs, and there the median and its bounds
Bands = Mapping[str, Band]
Curves = Mapping[str, tuple[list[Steps], float]]  # by method: of each repetition, and what the method spent


def draw_runtimes(datasets: Mapping[str, Mapping[str, Multiple]], measured: Collection[str]) -> Any:
    """Bars of training time as multiples of vanilla training, with a line from the lowest to the highest of a single
    run directory; it says of data sets that are not `measured` so."""
    most = max(len(times) for times in datasets.values())
    figure, axes = plotting.new_figure(len(datasets), (4.2, 0.26 * most + 0.9), across=2, beside=0.0)
    for panel, (dataset, times) in zip(axes, datasets.items()):
        names = list(times)
        for place, name in enumerate(names):
            look, (value, low, high, count) = style.look(name), times[name]
            panel.barh(place, value, color=look.color, height=0.62, zorder=2)
            panel.plot([low, high], [place, place], color=style.INK, lw=1.4, marker="|", ms=6, zorder=4)
            end = np.nanmax([1.0, value, high])
            panel.text(end, place, f" {value:.2f} (n = {count})", va="center", fontsize=8)
        panel.set_yticks(range(len(names)), [in_figure(style.look(name).label, LABEL) for name in names])
        panel.axvline(1.0, color=style.INK, lw=1.0, ls=style.DOTTED, zorder=3)
        remark = "\n(compiled or side by side: no measurement)" if dataset not in measured else ""
        longest = np.nanmax([[of.value, of.highest] for of in times.values()])
        panel.set(xlim=(0.0, 1.25 * longest), xlabel="training time / vanilla; line: lowest to highest run directory")
        panel.set_title(f"{in_figure(style.dataset(dataset))}{remark}")
        panel.invert_yaxis()
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", visible=False)
    return figure


def draw_best_so_far(dataset: str, searches: Mapping[str, Search]) -> Any:
    """The test metric of the model with the lowest validation loss so far: median over repetitions, and the bounds of
    95 % of its bootstrap resamples, against seconds and gradients. A method that found no model has no curve."""
    metric = common_metric(searches.values())
    panels = {
        LABELS[cost]: {
            name: (best_so_far(search, metric, cost), spent(search, cost)) for name, search in searches.items()
        }
        for cost in LABELS
    }
    label = style.metric(metric, any(search.classifies for search in searches.values()))
    return _draw(f"{style.dataset(dataset)}: best so far", panels, label)


def draw_best_of_runs(dataset: str, kinds: Kinds) -> Any:
    """The same of single runs, which keep their best report, against the seconds of their training."""
    first = next(iter(kinds.values()))
    curves = {}
    for name, runs in kinds.items():
        columns = zip(runs.curve("loss/validation"), runs.curve(first.metric), runs.times, strict=True)
        curves[name] = [incumbents(*of_run) for of_run in columns], float(runs.times[:, -1].max())
    label = style.metric(first.metric, first.has("accuracy/test"))
    return _draw(f"{style.dataset(dataset)}: best report of a run", {SHARED: curves}, label)


def _draw(title: str, panels: Mapping[str, Curves], label: str) -> Any:
    """A panel for each cost: medians of step functions, each until what its method spent. The uncertainty of many
    methods is shown at the end only, in a narrow panel of its own."""
    methods = next(iter(panels.values()))
    looks = style.distinct(methods)
    found = {name: look for name, look in looks.items() if any(len(curve.costs) for curve in methods[name][0])}
    many = len(found) > FEW
    ratios = [1.0] * len(panels) + [LANE * len(found)] * many
    size = (3.6 * sum(ratios) / len(ratios), 3.6 if many else 3.0)
    figure, axes = plotting.new_figure(len(ratios), size, sharey=True, width_ratios=ratios)
    drawn = [{name: _band(*curves[name]) for name in found} for curves in panels.values()]
    ends = {name: [part[-1] for part in parts] for name, (_, *parts) in drawn[0].items()}
    _limit(axes[0], [*map(np.array, ends.values()), *_shown(drawn, many)])
    for panel, cost, bands in zip(axes, panels, drawn):
        _curves(panel, looks, bands, many)
        panel.set_xlabel(cost)
    if many:
        _whiskers(axes[-1], found, ends)
    axes[0].set(ylabel=label, title=in_figure(title))
    if not found:
        axes[0].text(0.5, 0.5, "no method has found a model", transform=axes[0].transAxes, ha="center")
        axes[0].set_yticks([])
    plotting.legend(figure, {n: k if n in found else k._replace(label=f"{k.label}: none") for n, k in looks.items()})
    return figure


def _shown(drawn: Iterable[Bands], many: bool) -> Iterator[np.ndarray]:
    """What an axis has to reach: medians, and their bounds where these are drawn."""
    for bands in drawn:
        for _, middle, low, high in bands.values():
            yield from (middle,) if many else (middle, low, high)


def _curves(panel: Any, looks: Mapping[str, style.Look], bands: Bands, many: bool) -> None:
    top = panel.get_ylim()[1]
    for place, (name, (costs, middle, low, high)) in enumerate(bands.items()):
        plotting.curve(panel, costs, middle, looks[name], place, drawstyle="steps-post")
        if not many:
            ends = low, np.minimum(high, top)  # a bound can be infinite
            panel.fill_between(costs, *ends, color=looks[name].color, alpha=0.16, lw=0, step="post")
    if bands:
        everything = np.concatenate([costs for costs, *_ in bands.values()])
        plotting.log_axis(panel.xaxis, [everything])
        panel.set_xlim(everything.min() / 1.1, everything.max() * 1.1)
    else:
        panel.set_xticks([])


def _band(curves: Sequence[Steps], end: float) -> Band:
    """Costs until the end, and there the median and the bounds of its resamples."""
    last = max(end, 1e-12)
    first = min(float(curve.costs[0]) for curve in curves if len(curve.costs))
    costs = np.geomspace(min(max(first, 1e-9 * last), last), last, POINTS)
    middle, low, high = band(on_grid(curves, costs), _median)
    return costs, middle, low, high


def _whiskers(panel: Any, looks: Mapping[str, style.Look], ends: Mapping[str, Sequence[float]]) -> None:
    """What each method ends with: its median and the bounds of its resamples, side by side."""
    top = panel.get_ylim()[1]
    for place, (name, look) in enumerate(looks.items()):
        middle, low, high = ends[name]
        panel.plot([place, place], [low, min(high, top)], color=look.color, lw=1.6, solid_capstyle="butt")
        panel.plot(place, middle, color=look.color, marker=look.marker, markeredgecolor="white", mew=0.5, ms=6)
    panel.set(xlim=(-0.8, len(looks) - 0.2), xticks=[], title="end, 95 %")
    panel.grid(axis="x", visible=False)


def _limit(panel: Any, shown: Sequence[np.ndarray]) -> None:
    """All that is finite, on a logarithmic axis where that can be; what is infinite reaches to its end."""
    values = np.concatenate([*map(np.ravel, shown), np.empty(0)])
    values = values[np.isfinite(values)]
    if len(values):
        plotting.log_axis(panel.yaxis, [values])
        panel.set_ylim(*plotting.limits(values, panel.get_yscale()))


def _median(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """A repetition that has nothing yet is worse than any other."""
    return quantiles(values, [0.5])[0]
