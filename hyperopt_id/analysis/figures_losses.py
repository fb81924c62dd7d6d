"""How final values are distributed, and how losses go down."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hyperopt_id.analysis import plotting, style
from hyperopt_id.analysis.names import LABEL, in_figure
from hyperopt_id.analysis.selection import Kinds
from hyperopt_id.analysis.statistics import quantiles
from hyperopt_id.analysis.style import Look

SMALL = (2.1, 1.75)
CUT = 30.0  # an axis ends at this many times the worst final value that is not an outlier


def distribution(values: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Where the cumulative distribution steps, and what it reaches there. Runs that failed (NaN) count below: the last
    value is the share of runs that did not."""
    shares = weights if weights is not None else np.full(len(values), 1.0 / len(values))
    there = np.isfinite(values)
    order = np.argsort(values[there])
    return values[there][order], shares[there][order].cumsum() / shares.sum()


def draw_distributions(panels: Mapping[str, Kinds], metric: str | None = None) -> Any:
    """A panel for each title: the share of runs that end at or below a value."""
    figure, axes = plotting.new_figure(len(panels), sharex=True, sharey=True)
    finals = [
        {name: distribution(runs.final(metric or runs.metric), runs.weights) for name, runs in kinds.items()}
        for kinds in panels.values()
    ]
    values = [values for of_panel in finals for values, _ in of_panel.values()]
    plotting.log_axis(axes[0].xaxis, values)
    low, high = _limits(values, axes[0].get_xscale())
    looks = style.distinct(name for kinds in panels.values() for name in kinds)
    for panel, (title, kinds), of_panel in zip(axes, panels.items(), finals):
        for place, (name, look) in enumerate(_of(looks, kinds).items()):
            ends, reached = of_panel[name]
            x, y = np.concatenate([[low], ends, [high]]), np.concatenate([[0.0], reached, [reached.max(initial=0.0)]])
            plotting.curve(panel, x, y, look, place, drawstyle="steps-post")
        panel.set(xlabel=f"final {_metric(kinds, metric)}", title=in_figure(title))
    axes[0].set(xlim=(low, high), ylim=(0.0, 1.02), ylabel="share of runs")
    plotting.legend(figure, looks)
    return figure


def draw_medians(dataset: str, kinds: Kinds) -> Any:
    """Medians over runs against training steps; a run that failed is worse than any other."""
    figure, (panel,) = plotting.new_figure(1, (3.8, 3.1))
    looks = style.distinct(list(kinds))
    medians = {name: quantiles(runs.curve(runs.metric), [0.5], runs.weights)[0] for name, runs in kinds.items()}
    for place, (name, look) in enumerate(looks.items()):
        plotting.curve(panel, kinds[name].steps, medians[name], look, place)
    plotting.log_axis(panel.yaxis, list(medians.values()))
    panel.set(xlabel="training step", ylabel=f"median {_metric(kinds, None)}", title=in_figure(style.dataset(dataset)))
    plotting.legend(figure, looks)
    return figure


def draw_envelopes(dataset: str, kinds: Kinds) -> Any:
    """A panel for each algorithm, with the medians of the others behind: its median and quartiles over runs."""
    figure, axes = plotting.new_figure(len(kinds), SMALL, across=4, beside=0.0, sharex=True, sharey=True)
    found = {name: quantiles(runs.curve(runs.metric), [0.25, 0.5, 0.75], runs.weights) for name, runs in kinds.items()}
    for panel, (name, look) in zip(axes, style.distinct(list(kinds)).items()):
        for other, (_, middle, _) in found.items():
            panel.plot(kinds[other].steps, middle, color=style.FAINT, lw=0.8, zorder=1.5)
        low, middle, high = found[name]
        steps = kinds[name].steps
        panel.fill_between(steps, low, high, color=look.color, alpha=0.25, lw=0)
        panel.plot(steps, middle, color=look.color, ls=look.line)
        panel.set_title(in_figure(look.label, LABEL), fontsize=8.5)
    plotting.log_axis(axes[0].yaxis, [curve for curves in found.values() for curve in curves])
    plotting.title(figure, f"{style.dataset(dataset)}, {_metric(kinds, None)}: median and quartiles over runs")
    figure.supxlabel("training step", fontsize=9)
    return figure


def _of(looks: Mapping[str, Look], kinds: Kinds) -> dict[str, Look]:
    """The looks of what is in a panel, those that it has in the whole figure."""
    return {name: look for name, look in looks.items() if name in kinds}


def _metric(kinds: Kinds, metric: str | None) -> str:
    first = next(iter(kinds.values()))
    return style.metric(metric or first.metric, first.has("accuracy/test"))


def _limits(values: list[np.ndarray], scale: str) -> tuple[float, float]:
    """A little more than the data; few outliers do not squeeze all others."""
    flat = np.concatenate([*values, np.empty(0)])
    if not len(flat):
        return 0.0, 1.0
    low, high = float(flat.min()), float(flat.max())
    high = max(low, min(high, CUT * float(np.quantile(flat, 0.97)))) if low > 0.0 else high
    return plotting.limits(np.array([low, high]), scale)
