"""Final losses of finished runs as a Markdown table.

    python scripts/results_table.py runs/fashion_mnist/*          loss/test, or another one with --metric

A row a run directory: mean, median, smallest and largest value over the members that did not diverge, with their
bootstrap deviation, the number that did diverge, and the seconds the whole population took.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout that is not installed

from hyperopt_id.analysis.load import load_result
from hyperopt_id.analysis.statistics import estimate

COLUMNS = ("run", "starts", "mean", "median", "best", "worst", "diverged", "seconds", "of it compiling")


def row(directory: Path, metric: str) -> list[str]:
    """The cells of one finished run."""
    result = load_result(directory)
    values = result.metric(metric)
    mean, median = (str(estimate(values, statistic)) for statistic in (np.mean, np.median))
    kept = values[~np.isnan(values)]
    extremes = [f"{value:.3g}" for value in (kept.min(), kept.max())] if len(kept) else ["–", "–"]
    spent = [f"{result.seconds[part]:.0f}" for part in ("total", "compile")]
    return [result.name, str(len(values)), mean, median, *extremes, str(result.diverged.sum()), *spent]


def main() -> None:
    parser = argparse.ArgumentParser(description="Final losses of finished runs as a Markdown table.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--metric", default="loss/test")
    options = parser.parse_args()
    try:
        rows = [row(directory, options.metric) for directory in options.runs]
    except ValueError as error:
        parser.error(str(error))
    for cells in (list(COLUMNS), ["---"] * len(COLUMNS), *rows):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
