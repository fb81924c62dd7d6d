"""What all figures have in common: one style, panels, legends outside of the data, and how they are saved."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hyperopt_id.analysis import style
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
    """As PDF and PNG, of the same bytes for the same data."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("pdf", "png")]
    for file, unstable in zip(files, ("CreationDate", "Software")):
        figure.savefig(file, bbox_inches="tight", metadata={unstable: None})
        figure.set_layout_engine("none")  # it is laid out now
    return files


def curve(axes: Any, x: np.ndarray, y: np.ndarray, look: Look, place: int = 0, **settings: Any) -> None:
    """A line in an algorithm's look, its markers shifted by `place` so that those of several curves do not meet."""
    every = max(1, len(x) // MARKERS)
    settings = {"label": look.label, "markevery": (place * every // MARKERS % every, every), **settings}
    axes.plot(x, y, color=look.color, ls=look.line, marker=look.marker, markeredgecolor="white", mew=0.5, **settings)


def legend(figure: Any, looks: Mapping[str, Look], **settings: Any) -> None:
    """To the right of all panels, in the order of tables."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=k.color, ls=k.line, marker=k.marker, label=k.label, markeredgecolor="white", mew=0.5)
        for k in dict.fromkeys(looks.values())
    ]
    figure.legend(handles=handles, loc="outside right upper", **settings)


def title(figure: Any, text: str) -> None:
    figure.suptitle(text, fontsize=STYLE["axes.titlesize"], x=0.01, ha="left")


def log_axis(axis: Any, values: Iterable[np.ndarray]) -> None:
    """A logarithmic axis with few ticks, plain numbers where that is short; nothing where values are not all
    positive."""
    flat = np.concatenate([np.ravel(part) for part in values] or [np.empty(0)])
    flat = flat[np.isfinite(flat)]
    if not len(flat) or flat.min() <= 0.0:
        return
    axis._set_axes_scale("log")
    _log_ticks(axis, float(np.log10(flat.max() / flat.min())))


def limits(values: np.ndarray, scale: str) -> tuple[float, float]:
    """Of an axis: a little more than the values."""
    low, high = float(values.min()), float(values.max())
    if scale == "log":
        margin = max(high / low, ALIKE) ** 0.03
        return low / margin, high * margin
    margin = 0.03 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def color_bar_numbers(bar: Any) -> None:
    """The same for a color bar."""
    low, high = bar.norm.vmin, bar.norm.vmax
    if type(bar.norm).__name__ == "LogNorm":
        _log_ticks(bar.ax.yaxis, float(np.log10(high / low)))


def _log_ticks(axis: Any, decades: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, LogLocator, NullFormatter

    few = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    within = few if decades < 1.0 else (1.0, 2.0, 5.0) if decades < 2.0 else (1.0, 3.0) if decades < 3.0 else (1.0,)
    axis.set_major_locator(LogLocator(subs=within, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)) if decades < 4.0 else LogFormatterMathtext())
    axis.set_minor_formatter(NullFormatter())


def plain(value: float) -> str:
    """0.001, 0.03, 2, 5000, and powers of ten beyond."""
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:g}"
    exponent = int(np.floor(np.log10(abs(value)) + 1e-9))
    factor = value / 10.0**exponent
    head = "" if abs(factor - 1.0) < 1e-6 else rf"{factor:g}\times"
    return f"${head}10^{{{exponent}}}$"
