"""What all figures have in common: one style, panels, legends outside of the data, and how they are saved."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hyperopt_id import files
from hyperopt_id.analysis import style
from hyperopt_id.analysis.names import LABEL, TITLE, in_figure, inside
from hyperopt_id.analysis.style import Look

PANEL = (3.2, 2.8)  # inches
LEGEND = 1.95
ALIKE = 10.0  # a logarithmic axis spans this factor to the power of 0.06, at least
MARKERS = 6  # along a curve
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": style.GRAY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": style.INK,
    "grid.color": style.PALE,
    "grid.linewidth": 0.6,
    "text.color": style.INK,
    "xtick.color": style.INK,
    "ytick.color": style.INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text stays text
}


def matplotlib() -> Any:
    """The package, which is optional; a ValueError says how to get it."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError(
            "figures need matplotlib, which is not installed: pip install -c constraints.txt -e '.[plots]' "
            "(tables need nothing; name those that you want with --only)"
        ) from None
    return matplotlib


def new_figure(
    panels: int, size: tuple[float, float] = PANEL, across: int = 3, beside: float = LEGEND, **settings: Any
) -> tuple[Any, list[Any]]:
    """A figure with that many axes, `across` in a row, and `beside` inches for a legend."""
    from matplotlib.figure import Figure

    columns, rows = min(panels, across), -(-panels // across)
    figure = Figure(figsize=(columns * size[0] + beside, rows * size[1]), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **settings).flat)
    for place, empty in enumerate(axes[panels:], start=panels):
        axes[place - columns].tick_params(labelbottom=True)  # the lowest of its column now
        empty.remove()
    return figure, axes[:panels]


def save(figure: Any, stem: Path) -> list[Path]:
    """As PDF and PNG, of the same bytes for the same data. A link that is there is replaced, not followed."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, unstable in (("pdf", "CreationDate"), ("png", "Software")):
        written.append(inside(stem.parent, f"{stem.name}.{suffix}"))
        settings: dict[str, Any] = {"format": suffix, "bbox_inches": "tight", "metadata": {unstable: None}}
        with warnings.catch_warnings():  # names that are foreign to the font, or longer than the figure is wide
            warnings.filterwarnings("ignore", message="Glyph .* missing|constrained_layout not applied")
            files.replace(written[-1], lambda file, settings=settings: figure.savefig(file, **settings))
        figure.set_layout_engine("none")  # it is laid out now
    return written


def curve(axes: Any, x: np.ndarray, y: np.ndarray, look: Look, place: int = 0, **settings: Any) -> None:
    """A line in an algorithm's look, its markers shifted by `place` so that those of several curves do not meet."""
    every = max(1, len(x) // MARKERS)
    settings = {
        "label": in_figure(look.label, LABEL),
        "markevery": (place * every // MARKERS % every, every),
        **settings,
    }
    axes.plot(x, y, color=look.color, ls=look.line, marker=look.marker, markeredgecolor="white", mew=0.5, **settings)


def legend(figure: Any, looks: Mapping[str, Look], **settings: Any) -> None:
    """To the right of all panels, in the order of tables."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=k.color, ls=k.line, marker=k.marker, label=in_figure(k.label, LABEL), mec="white", mew=0.5)
        for k in dict.fromkeys(looks.values())
    ]
    figure.legend(handles=handles, loc="outside right upper", **settings)


def title(figure: Any, text: str) -> None:
    figure.suptitle(in_figure(text, 2 * TITLE), fontsize=STYLE["axes.titlesize"], x=0.01, ha="left")


def log_axis(axis: Any, values: Iterable[np.ndarray]) -> None:
    """A logarithmic axis with few ticks, plain numbers where that is short; nothing where values are not all
    positive."""
    flat = np.concatenate([np.ravel(part) for part in values] or [np.empty(0)])
    flat = flat[np.isfinite(flat)]
    if not len(flat) or flat.min() <= 0.0:
        return
    axis._set_axes_scale("log")
    _log_ticks(axis, float(np.log10(flat.max()) - np.log10(flat.min())))


def limits(values: np.ndarray, scale: str) -> tuple[float, float]:
    """Of an axis: a little more than the values."""
    low, high = float(values.min()), float(values.max())
    if scale == "log":
        margin = 0.03 * max(np.log10(high) - np.log10(low), np.log10(ALIKE))
        ends = np.log10(low) - margin, np.log10(high) + margin
        return _power(ends[0]), _power(ends[1])
    margin = 0.03 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _power(exponent: float) -> float:
    """10 to it, of the numbers that a logarithmic axis can have."""
    return float(10.0 ** np.clip(exponent, -300.0, 300.0))


def color_bar_numbers(bar: Any) -> None:
    """The same for a color bar."""
    low, high = bar.norm.vmin, bar.norm.vmax
    if type(bar.norm).__name__ == "LogNorm":
        _log_ticks(bar.ax.yaxis, float(np.log10(high) - np.log10(low)))


def _log_ticks(axis: Any, decades: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, LogLocator, NullFormatter

    few = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    within = few if decades < 1.0 else (1.0, 2.0, 5.0) if decades < 2.0 else (1.0, 3.0) if decades < 3.0 else (1.0,)
    axis.set_major_locator(LogLocator(subs=within, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)) if decades < 4.0 else LogFormatterMathtext())
    axis.set_minor_formatter(NullFormatter())


def plain(value: float) -> str:
    """0.001, 0.03, 2, 5000, and powers of ten beyond."""
    if 1e-3 <= abs(value) < 1e4 or value == 0.0 or not np.isfinite(value):
        return f"{value:g}"
    exponent = int(np.floor(np.log10(abs(value)) + 1e-9))
    factor = value / 10.0**exponent
    head = "" if abs(factor - 1.0) < 1e-6 else rf"{factor:g}\times"
    return f"${head}10^{{{exponent}}}$"
