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
from measuring import Row, markdown

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout that is not installed

from hyperopt_id.analysis.load import load_result
from hyperopt_id.analysis.statistics import estimate


def row(directory: Path, metric: str) -> Row:
    """The cells of one finished run."""
    result = load_result(directory)
    values = result.metric(metric)
    kept = values[~np.isnan(values)]
    best, worst = (f"{value:.3g}" for value in (kept.min(), kept.max())) if len(kept) else ("–", "–")
    return {
        "run": result.name,
        "starts": len(values),
        "mean": estimate(values, np.mean),
        "median": estimate(values, np.median),
        "best": best,
        "worst": worst,
        "diverged": result.diverged.sum(),
        "seconds": round(result.seconds["total"]),
        "of it compiling": round(result.seconds["compile"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Final losses of finished runs as a Markdown table.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--metric", default="loss/test")
    options = parser.parse_args()
    try:
        rows = [row(directory, options.metric) for directory in options.runs]
    except ValueError as error:
        parser.error(str(error))
    print(*markdown(rows), sep="\n")


if __name__ == "__main__":
    main()
