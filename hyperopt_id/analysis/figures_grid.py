"""Heat maps over T, the steps of a hyper-update, and K, the terms or steps that its hypergradient goes back."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hyperopt_id.analysis import plotting, style
from hyperopt_id.analysis.grids import Accuracy, Cells
from hyperopt_id.analysis.names import in_figure
from hyperopt_id.analysis.runs import Runs
from hyperopt_id.analysis.statistics import quantiles

CELL = 0.34  # inches
COLORS = "viridis"
LITTLE = 0.1  # percent of error that are as good as none
NEAR = 1e-6  # a cosine distance that is as good as none
FAILED = (0.88, 0.88, 0.88, 1.0)
Grid = Mapping[tuple[int, int], float]  # by (T, K)


def draw_sensitivity(dataset: str, grids: Mapping[str, Cells], random: Runs | None) -> Any:
    """Median final values of each engine over (T, K). That of runs that learn nothing has neither T nor K: it is a line
    in the color bar, and in the title."""
    first = next(iter(next(iter(grids.values())).values()))
    panels = {_title(cells): {c: _median(runs) for c, runs in cells.items()} for cells in grids.values()}
    reference = math.nan if random is None else _median(random)
    figure, axes, rows = _panels(list(panels.values()))
    values = np.array([*(value for grid in panels.values() for value in grid.values()), reference])
    norm = _logarithmic(values)
    for panel, (title, grid) in zip(axes, panels.items()):
        _paint(panel, title, grid, rows, norm, _number)
    metric = style.metric(first.metric, first.has("accuracy/test"))
    title = f"{style.dataset(dataset)}: median final {metric}"
    if random is not None:
        shown = f"{_number(reference)}, the line in the color bar" if np.isfinite(reference) else "fail"
        title += f"; {style.look(random.algorithm).label}: {shown}"
    plotting.title(figure, title)
    bar = _color_bar(figure, axes, norm)
    if np.isfinite(reference):
        bar.ax.axhline(reference, color="white", lw=3.0, clip_on=False)
        bar.ax.axhline(reference, color=style.VERMILLION, lw=1.5, clip_on=False)
    return figure


def draw_accuracies(dataset: str, references: Mapping[str, Mapping[tuple[int, int], Accuracy]]) -> Any:
    """Medians of relative errors and cosine distances of hypergradients, a row for each kind of exact ones."""
    grids = []
    for measured in references.values():
        grids.append({cell: 100.0 * float(np.median(found.errors)) for cell, found in measured.items()})
        grids.append({cell: float(np.median(found.distances)) for cell, found in measured.items()})
    figure, axes, rows = _panels(grids, across=2)
    for place, reference in enumerate(references):
        (left, right), (errors, distances) = axes[2 * place :][:2], grids[2 * place :][:2]
        norm = _logarithmic(np.array(list(errors.values())), LITTLE)
        _paint(left, f"relative error (%), exact: {reference}", errors, rows, norm, _percent)
        _color_bar(figure, [left], norm)
        norm = _logarithmic(np.array(list(distances.values())), NEAR)
        _paint(right, f"1 − cosine, exact: {reference}", distances, rows, norm, _distance)
        _color_bar(figure, [right], norm)
    plotting.title(figure, f"{style.dataset(dataset)}: hypergradients of neumann(K), medians")
    return figure


def _number(value: float) -> str:
    """Two digits, and all those before the point of what has up to four."""
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}" if value < 1e4 else f"{value:.0e}".replace("e+0", "e")


def _percent(value: float) -> str:
    return _number(value) if value >= LITTLE else f"<{LITTLE:g}"


def _distance(value: float) -> str:
    """Two digits, in no more room than a cell has."""
    if value < NEAR:
        return f"<{NEAR:.0e}".replace("e-0", "e-")
    return f"{value:.2g}" if value >= 1e-2 else f"{value:.0e}".replace("e-0", "e-")


def _panels(grids: list[Grid], across: int = 3) -> tuple[Any, list[Any], list[int]]:
    """Axes as wide as their grids and equally high, so that all cells have one size. There is a column for every K of a
    grid and a row for every T of any, however far apart these are."""
    terms, steps = [sorted({k for _, k in grid}) for grid in grids], sorted({t for grid in grids for t, _ in grid})
    widths, height = list(map(len, terms)), len(steps)
    columns = min(across, len(grids))
    size = (CELL * sum(widths[:columns]) + 1.0) / columns + 0.75, CELL * height + 1.1
    figure, axes = plotting.new_figure(len(grids), size, across, 0.0, width_ratios=widths[:columns])
    for place, (panel, width) in enumerate(zip(axes, widths)):
        panel.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5), aspect="equal", xlabel="K")
        panel.set_xticks(range(width), list(map(str, terms[place])))
        panel.set_yticks(range(height), list(map(str, steps)))
        panel.set_ylabel("" if place % columns else "T (steps of an update)")
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
        panel.grid(False)
    return figure, axes, steps


def _logarithmic(values: np.ndarray, lowest: float = 0.0) -> Any:
    """A scale of colors from the smallest positive value, or `lowest`, to the largest."""
    from matplotlib.colors import LogNorm

    values = values[np.isfinite(values) & (values > 0.0)]
    low = max(float(values.min()), lowest) if len(values) else 1.0
    return LogNorm(low, max(float(values.max(initial=0.0)), 1.01 * low), clip=True)


def _paint(panel: Any, title: str, grid: Grid, rows: list[int], norm: Any, shown: Callable[[float], str]) -> None:
    """Colored cells that say their numbers; `rows` are the values of T from below."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    panel.set_title(in_figure(title))
    columns = sorted({k for _, k in grid})
    for (steps, terms), value in grid.items():
        k, t = columns.index(terms), rows.index(steps)
        color = colormaps[COLORS](float(norm(value))) if np.isfinite(value) else FAILED
        panel.add_patch(Rectangle((k - 0.5, t - 0.5), 1.0, 1.0, color=color, lw=0))
        ink = style.INK if np.dot(color[:3], (0.299, 0.587, 0.114)) > 0.55 else "white"
        said = shown(value) if np.isfinite(value) else "fail"
        panel.text(k, t, said, ha="center", va="center", fontsize=6.5, color=ink)


def _color_bar(figure: Any, axes: list[Any], norm: Any) -> Any:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(norm, COLORS), ax=axes, pad=0.02)
    bar.outline.set_visible(False)
    plotting.color_bar_numbers(bar)
    return bar


def _title(cells: Cells) -> str:
    return style.look(next(iter(cells.values())).algorithm).label


def _median(runs: Runs) -> float:
    """A run that failed is worse than any other."""
    return float(quantiles(runs.final(runs.metric), [0.5])[0])
