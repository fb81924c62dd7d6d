"""What a transfer check finds: the best learning rate and that of Ours_LR by parametrization and width, in tables and
a figure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hyperopt_id.analysis import plotting, style
from hyperopt_id.analysis.style import Look
from hyperopt_id.analysis.tables import Table

PARAMETRIZATIONS = {"standard": "standard", "mup": "μP", "umup": "u-μP"}
FACTOR = 2.0  # within which rates count as the same
LOOKS = (  # by width, from the narrowest on
    (style.SKY, style.SOLID, "o"),
    (style.BLUE, style.DASHED, "s"),
    (style.INDIGO, style.MIXED, "^"),
    (style.VERMILLION, style.SOLID, "D"),
)
Losses = Mapping[float, np.ndarray]  # rate -> loss of each seed, NaN where it has diverged


class Learned(NamedTuple):
    """What the best run of Ours_LR has found: its rate as one number, its rates at the first and last step, and its
    loss; and the number that comes from each start."""

    rate: float
    ends: tuple[float, float]
    loss: float
    by_start: tuple[float, ...]


class Found(NamedTuple):
    """Of one parametrization and width."""

    losses: Losses
    learned: Learned

    @property
    def best(self) -> float:
        return optimum({rate: float(loss.mean()) for rate, loss in self.losses.items()})

    @property
    def of_seeds(self) -> tuple[float, float]:
        """The least and the greatest of the best rates of single seeds."""
        best = [optimum(dict(zip(self.losses, member))) for member in zip(*self.losses.values())]
        return min(best), max(best)

    @property
    def lowest(self) -> float:
        return float(np.nanmin([loss.mean() for loss in self.losses.values()]))


def optimum(losses: Mapping[float, float]) -> float:
    """Of losses by rate, a factor of 2 between rates: the vertex of the parabola in the logarithm of the rate through
    the lowest and its neighbors; without two of them, the lowest itself."""
    rate = min(losses, key=lambda rate: np.nan_to_num(losses[rate], nan=np.inf))
    left, low, right = losses.get(rate / 2.0, np.nan), losses[rate], losses.get(rate * 2.0, np.nan)
    bend = left - 2.0 * low + right
    return rate * 2.0 ** ((left - right) / (2.0 * bend)) if bend > 0.0 else rate


def widths_table(found: Mapping[str, Mapping[int, Found]]) -> Table:
    rows = [
        {
            "parametrization": PARAMETRIZATIONS[name],
            "width": width,
            "best rate": here.best,
            "of single seeds": "{:.2g} to {:.2g}".format(*here.of_seeds),
            "lowest loss": here.lowest,
            "rate of Ours_LR": here.learned.rate,
            "first to last step": "{:.2g} to {:.2g}".format(*here.learned.ends),
            "its loss": here.learned.loss,
            "from each start": ", ".join(f"{rate:.2g}" for rate in here.learned.by_start),
        }
        for name, by_width in found.items()
        for width, here in by_width.items()
    ]
    return Table("widths", "", rows)


def transfer_table(found: Mapping[str, Mapping[int, Found]], transferred: Mapping[str, float]) -> Table:
    """`transferred` is the loss of the widest model with the rate learned on the narrowest."""
    rows = []
    for name, by_width in found.items():
        narrow, wide = min(by_width), max(by_width)
        here, there = by_width[narrow], by_width[wide]
        ratio = here.learned.rate / there.best
        rows.append(
            {
                "parametrization": PARAMETRIZATIONS[name],
                f"best at {narrow} over best at {wide}": here.best / there.best,
                f"Ours_LR at {narrow} over Ours_LR at {wide}": here.learned.rate / there.learned.rate,
                f"Ours_LR at {narrow} over best at {narrow}": here.learned.rate / here.best,
                f"Ours_LR at {narrow} over best at {wide}": ratio,
                f"within a factor {FACTOR:g}": "yes" if 1.0 / FACTOR <= ratio <= FACTOR else "no",
                f"loss at {wide} with it": transferred[name],
                f"lowest loss at {wide}": there.lowest,
            }
        )
    return Table("transfer", "", rows)


def draw(found: Mapping[str, Mapping[int, Found]], title: str) -> Any:
    """A panel for each parametrization; stars: best rates, line and band: Ours_LR on the narrowest, times or over 2."""
    figure, axes = plotting.new_figure(len(found), sharey=True)
    widths = sorted({width for by_width in found.values() for width in by_width})
    looks = {str(n): Look(f"width {n}", *rest) for n, rest in zip(widths, itertools.cycle(LOOKS))}
    for panel, (name, by_width) in zip(axes, found.items()):
        for width, here in by_width.items():
            look = looks[str(width)]
            mean = np.array([loss.mean() for loss in here.losses.values()])
            plotting.curve(panel, np.array(list(here.losses)), mean, look)
            panel.plot(here.best, here.lowest, "*", color=look.color, ms=11, mec="white", zorder=3)
        rate = by_width[min(by_width)].learned.rate
        panel.axvline(rate, color=style.INK, ls=style.DOTTED)
        panel.axvspan(rate / FACTOR, rate * FACTOR, color=style.PALE, zorder=0)
        panel.set(title=PARAMETRIZATIONS[name], xlabel="learning rate")
        plotting.log_axis(panel.xaxis, [line.get_xdata() for line in panel.lines])
    axes[0].set_ylabel("validation loss")
    note = f"star: best rate\ndotted: Ours_LR at {widths[0]},\nband: a factor of {FACTOR:g}"
    plotting.legend(figure, looks, title=note, alignment="left")
    plotting.title(figure, title)
    return figure
