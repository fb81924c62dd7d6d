"""Where hyperparameters go while they are learned."""

from typing import Any

import numpy as np

from hyperopt_id.analysis import plotting, style
from hyperopt_id.analysis.names import in_figure
from hyperopt_id.analysis.runs import Runs
from hyperopt_id.analysis.selection import Kinds

SAMPLES = (0.1, 0.5, 0.9)  # of the starts that algorithms share, in order of their learning rates
TRAJECTORIES = 20
GRID = 120
REACH = 2.0  # widths of the Gaussian beyond which a run says nothing
FEWEST = 10  # finite runs that make a landscape


def shared_starts(kinds: Kinds) -> list[tuple[Any, ...]]:
    """The identities that most algorithms have in common, in order of the starting learning rate."""
    counts: dict[tuple[Any, ...], int] = {}
    rates: dict[tuple[Any, ...], float] = {}
    for runs in kinds.values():
        for identity, rate in zip(runs.identities, runs.starts.get("lr", np.full(len(runs), np.nan))):
            counts[identity] = counts.get(identity, 0) + 1
            rates[identity] = float(rate)
    known = [identity for identity in counts if np.isfinite(rates[identity])]
    most = max((counts[identity] for identity in known), default=0)
    return sorted((identity for identity in known if counts[identity] == most), key=lambda i: (rates[i], i))


def draw_learning_rates(dataset: str, kinds: Kinds) -> Any:
    """Learning rates against training steps from three starts that the algorithms share, small, middle and large. Many
    learning rates are shown by their median, with the middle 80 % as a band."""
    starts = shared_starts(kinds)
    chosen = list(dict.fromkeys(starts[round(share * (len(starts) - 1))] for share in SAMPLES))
    figure, axes = plotting.new_figure(len(chosen), sharey=True)
    looks = style.distinct(kinds)
    drawn: dict[str, style.Look] = {}
    everything = []
    for panel, identity in zip(axes, chosen):
        for place, (name, look) in enumerate(looks.items()):
            runs = kinds[name]
            if identity not in runs.identities:
                continue
            member = runs.identities.index(identity)
            steps, rates, low, high = _learning_rate(runs, member)
            plotting.curve(panel, steps, rates, look, place)
            if low is not None:
                panel.fill_between(steps, low, high, color=look.color, alpha=0.18, lw=0)
            drawn[name] = look
            everything.append(rates)
        rate = next(r.starts["lr"][r.identities.index(identity)] for r in kinds.values() if identity in r.identities)
        panel.set(xlabel="training step", title=f"start: {plotting.plain(float(f'{rate:.2g}'))}")
    plotting.log_axis(axes[0].yaxis, everything)
    axes[0].set_ylabel(in_figure(f"learning rate, {style.dataset(dataset)}"))
    plotting.legend(figure, {name: look for name, look in looks.items() if name in drawn})
    return figure


def _learning_rate(runs: Runs, member: int) -> tuple[np.ndarray, ...]:
    """Steps and values of one run, from its start on, and the bounds of the middle 80 % where there are many (else
    None). A run that nobody logged it of keeps its learning rate."""
    start = runs.starts["lr"][member]
    steps = np.concatenate([[0], runs.steps])
    curves = []
    for name in ("hyper/lr", "hyper/lr/p10", "hyper/lr/p90"):
        logged = runs.has(name)
        known = runs.curve(name)[member] if logged else np.full(len(runs.steps), start)
        curves.append(np.concatenate([[start], known]) if logged or name == "hyper/lr" else None)
    return steps, *curves


def landscape_points(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """(log10 of the learning rate and weight decay of each run [2, R], which of them ended with a value [R])."""
    with np.errstate(divide="ignore", invalid="ignore"):
        points = np.log10(np.stack([runs.starts["lr"], runs.starts["weight_decay"]]))
    return points, np.isfinite(points).all(axis=0) & (runs.final(runs.metric) > 0.0)


def has_landscape(runs: Runs) -> bool:
    """Whether there are enough finite runs, apart from each other, to draw anything between them."""
    points, fine = landscape_points(runs)
    return fine.sum() >= FEWEST and bool((np.ptp(points[:, fine], axis=1) > 0.0).all())


def draw_proof_of_concept(dataset: str, landscape: Runs, learned: Runs) -> Any:
    """Trajectories of (learning rate, weight decay), over the final values of runs that kept theirs.

    Each of these runs is a dot, or a cross if it failed. Between the dots lies their smoothed surface; it is left out
    where no dot is near, and where most of the runs that are near have failed.
    """
    figure, (panel,) = plotting.new_figure(1, (4.4, 3.9), beside=0.9)
    points, fine = landscape_points(landscape)
    lost = np.isfinite(points).all(axis=0) & ~fine
    finals = landscape.final(landscape.metric)[fine]
    x, y, surface = smooth(points[:, fine], np.log10(finals))
    surface = np.where(_near(points[:, fine], points[:, lost], x, y), 10.0**surface, np.nan)
    _paint(figure, panel, landscape, (10.0**x, 10.0**y, surface))
    panel.scatter(*10.0 ** points[:, fine], s=5, c=style.INK, alpha=0.6, lw=0, zorder=2)
    panel.scatter(*10.0 ** points[:, lost], s=12, c=style.VERMILLION, marker="x", lw=0.7, zorder=2)
    counts = f"dots: {fine.sum()} runs, nothing learned; crosses: {lost.sum()} that failed"
    panel.set_title(f"{in_figure(f'{style.dataset(dataset)}: {style.look(learned.algorithm).label}')}\n{counts}")
    chosen = np.unique(np.linspace(0, len(learned) - 1, min(TRAJECTORIES, len(learned))).round().astype(int))
    paths = {
        name: [np.concatenate([[learned.starts[name][m]], learned.curve(f"hyper/{name}")[m]]) for m in chosen]
        for name in ("lr", "weight_decay")
    }
    for path in zip(*paths.values()):
        _trajectory(panel, *path)
    ends = 10.0 ** points[:, fine | lost]
    panel.set(xlim=_around([ends[0], *paths["lr"]]), ylim=_around([ends[1], *paths["weight_decay"]]))
    return figure


def _paint(figure: Any, panel: Any, landscape: Runs, grid: tuple[np.ndarray, ...]) -> None:
    """Colors for the surface, which is NaN where there is none, and what they mean."""
    from matplotlib.colors import LogNorm

    low, high = np.nanmin(grid[2]), np.nanmax(grid[2])
    norm = LogNorm(low, max(high, 1.01 * low))
    shown = panel.pcolormesh(*grid, shading="nearest", norm=norm, rasterized=True, alpha=0.85)
    bar = figure.colorbar(shown, ax=panel, pad=0.02)
    plotting.color_bar_numbers(bar)
    bar.set_label(f"final {style.metric(landscape.metric, landscape.has('accuracy/test'))}, nothing learned")
    bar.outline.set_visible(False)
    panel.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="weight decay")
    panel.grid(False)


def _near(fine: np.ndarray, lost: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[G, G]: where one of the finite runs [2, N] is at most `REACH` widths of the smoothing away, and those that
    failed [2, M] do not outweigh them."""
    widths = _widths(fine)[:, None]
    squares_x = [((x[:, None] - points[0]) / widths[0]) ** 2 for points in (fine, lost)]
    near = np.empty((len(y), len(x)), dtype=bool)
    for row, place in enumerate(y):
        squares = [of_x + ((place - points[1]) / widths[1]) ** 2 for of_x, points in zip(squares_x, (fine, lost))]
        weights = [np.exp(-0.5 * square).sum(axis=1) for square in squares]
        near[row] = (squares[0].min(axis=1) <= REACH**2) & (weights[0] >= weights[1])
    return near


def _around(values: list[np.ndarray]) -> tuple[float, float]:
    """Limits of a logarithmic axis, a little beyond all values that it can show."""
    flat = np.concatenate(values)
    return plotting.limits(flat[np.isfinite(flat) & (flat > 0.0)], "log")


def _trajectory(panel: Any, x: np.ndarray, y: np.ndarray) -> None:
    """A white line with a dark edge: a ring where it starts, an arrow half-way, a dot where it ends."""
    there = np.isfinite(x) & np.isfinite(y) & (x > 0.0) & (y > 0.0)
    x, y = x[there], y[there]
    if not len(x):
        return
    panel.plot(x, y, color=style.INK, lw=1.8, solid_capstyle="round")
    panel.plot(x, y, color="white", lw=0.8, solid_capstyle="round")
    panel.plot(x[:1], y[:1], "o", ms=4.5, mfc="none", mec=style.INK, mew=1.2, clip_on=False)
    panel.plot(x[-1:], y[-1:], "o", ms=4.5, color=style.VERMILLION, mec="white", mew=0.6, zorder=3, clip_on=False)
    lengths = np.concatenate([[0.0], np.hypot(np.diff(np.log(x)), np.diff(np.log(y))).cumsum()])
    half = int(np.searchsorted(lengths, lengths[-1] / 2.0))
    if 0 < half < len(x) and lengths[-1] > 0.0:
        arrow = {"arrowstyle": "-|>", "color": style.INK, "lw": 0.8, "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0}
        panel.annotate("", (x[half], y[half]), (x[half - 1], y[half - 1]), arrowprops=arrow)


def smooth(points: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of the values at points [2, N], weighted by a Gaussian, on a grid over their range: x [G], y [G] and [G,
    G]. The Gaussian is as wide as Scott's rule says."""
    widths = _widths(points)
    x, y = (np.linspace(axis.min(), axis.max(), GRID) for axis in points)
    kernels = [
        np.exp(-0.5 * ((grid[:, None] - axis) / width) ** 2) for grid, axis, width in zip((x, y), points, widths)
    ]
    total = kernels[1] @ kernels[0].T
    return x, y, (kernels[1] * values) @ kernels[0].T / np.maximum(total, 1e-300)


def _widths(points: np.ndarray) -> np.ndarray:
    return points.std(axis=1) * points.shape[1] ** (-1.0 / 6.0) + 1e-12
