"""Draw a run: its loss curve, and how its learning rates spread while they were learned.

python train.py -c configs/fashion_mnist.yaml configs/Ours_HDLR.yaml -g demo -n tuned
python train.py -c configs/fashion_mnist.yaml configs/Random_TrainingSetOnly.yaml -g demo -n fixed
python scripts/demo_figure.py runs/demo/tuned --untuned runs/demo/fixed --out docs/figures/demo.png

Needs matplotlib: pip install -c constraints.txt -e '.[plots]'
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout that is not installed

from hyperopt_id import checkpoint, trees
from hyperopt_id.analysis.load import load_reports
from hyperopt_id.build.names import build_space
from hyperopt_id.config import load

BLUE, ORANGE, GRAY, INK = "#0072B2", "#D55E00", "#8a8a8a", "#222222"  # Okabe and Ito: colorblind-safe
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRAY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
}


def reports(directory: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; ValueError unless it is the work of a single run."""
    lines = load_reports(directory)
    if not lines or not isinstance(lines[-1]["loss/validation"], float):
        raise ValueError(f"{directory}: the figure needs a single run (not --runs) with at least one report")
    return lines


def learning_rates(directory: Path) -> dict[str, np.ndarray]:
    """The learning rate of every weight in the newest checkpoint, by parameter tensor."""
    run = trees.take(checkpoint.load(directory / "checkpoints")[0]["run"], 0)
    params = run["z"]["params"]
    rates = build_space(load([directory / "config.yaml"])).constrain(run["raw"], params)["lr"]
    return {name: rates[name].expand_as(weight).flatten().double().numpy() for name, weight in params.items()}


def draw_losses(axes: Any, lines: list[dict[str, Any]], untuned: list[dict[str, Any]] | None) -> None:
    steps = [line["step"] for line in lines]
    axes.plot(steps, [line["loss/train"] for line in lines], color=BLUE, alpha=0.35, lw=1, label="training batches")
    axes.plot(steps, [line["loss/validation"] for line in lines], color=BLUE, lw=2, label="validation")
    if untuned:
        curve = [line["loss/validation"] for line in untuned]
        label = "validation, same start,\nnothing tuned"
        axes.plot([line["step"] for line in untuned], curve, color=GRAY, lw=2, ls=(0, (4, 2)), label=label)
    axes.set(title="Loss", xlabel="training step", yscale="log")
    ticks = [tick for tick in (1e-4, 0.001, 0.01, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10) if _within(tick, axes.get_ylim())]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False)


def draw_spread(axes: Any, lines: list[dict[str, Any]], colors: dict[str, str], start: float) -> None:
    """Median and the middle 80 % of the learning rates of each tensor over time."""
    for name, color in colors.items():
        stats = [line["hyper/lr"] for line in lines]
        steps = [0, *(line["step"] for line in lines)]
        if isinstance(stats[0], dict) and isinstance(stats[0][name], dict):
            low, middle, high = ([start, *(s[name][share] for s in stats)] for share in ("p10", "median", "p90"))
            axes.fill_between(steps, low, high, color=color, alpha=0.18, lw=0)
        else:
            middle = [start, *(s[name] if isinstance(s, dict) else s for s in stats)]
        axes.plot(steps, middle, color=color, lw=2)
    axes.set(title="Learning rates while training", xlabel="training step", yscale="log")
    axes.text(0.97, 0.03, "line: median, band: middle 80 %", transform=axes.transAxes, ha="right")


def draw_histogram(axes: Any, rates: dict[str, np.ndarray], colors: dict[str, str], start: float) -> None:
    """Six bins a decade; shares of a tensor's weights, so that small tensors show beside large ones."""
    values = [rates[name] for name in colors]
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    first, last = np.floor(6 * np.log10(low) - 1e-3), np.ceil(6 * np.log10(high) - 1e-3)
    edges = 10.0 ** ((np.arange(first, last + 1) + 1e-3) / 6)  # just above round numbers: rates at a bound stay below
    for (name, color), value in zip(colors.items(), values, strict=True):
        shares = np.histogram(value, edges)[0] * 100.0 / value.size
        axes.stairs(shares, edges, orientation="horizontal", fill=True, color=color, alpha=0.18)
        label = f"{name} ({value.size:,} weights)"
        axes.stairs(shares, edges, orientation="horizontal", color=color, lw=2, label=label)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
    axes.text(axes.get_xlim()[1], start * 1.12, f"start: {start:g}", ha="right", va="bottom")
    axes.set(title="… and at the end", xlabel="% of the tensor's weights")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.02, 0.0))


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def draw(directory: Path, untuned: Path | None, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines, rates = reports(directory), learning_rates(directory)
    largest = sorted(rates, key=lambda name: -rates[name].size)[:2]
    colors: dict[str, str] = dict(zip(largest, (BLUE, ORANGE), strict=False))
    config = load([directory / "config.yaml"])
    start = config.space["lr"].init
    assert isinstance(start, float)
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(13, 4.1), layout="constrained", width_ratios=(1.1, 1.1, 1)
        )
        draw_losses(left, lines, reports(untuned) if untuned else None)
        draw_spread(middle, lines, colors, start)
        draw_histogram(right, rates, colors, start)
        for axes in (middle, right):
            axes.axhline(start, color=INK, lw=1.2, ls=(0, (1, 1.5)), zorder=1.5)
        right.set_yscale("log")
        middle.set_ylim(right.get_ylim())
        right.tick_params(labelleft=False)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
        plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a finished run that tunes the learning rate")
    parser.add_argument("--untuned", type=Path, help="directory of a run from the same start without tuning")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/demo.png"))
    arguments = parser.parse_args()
    try:
        draw(arguments.run, arguments.untuned, arguments.out)
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
