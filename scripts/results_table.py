"""Final losses of finished runs as a Markdown table.

    python scripts/results_table.py runs/fashion_mnist/*          loss/test, or another one with --metric

A row a run directory: mean, median and largest value over the members that did not diverge, the number that did, and
the seconds the whole population took.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

COLUMNS = ("run", "starts", "mean", "median", "worst", "diverged", "seconds", "of it compiling")


def row(directory: Path, metric: str) -> list[str]:
    """The cells of one finished run; a ValueError for a directory without a summary or the metric."""
    path = directory / "summary.json"
    if not path.is_file():
        raise ValueError(f"{directory} holds no finished run: there is no summary.json")
    summary: dict[str, Any] = json.loads(path.read_text())
    if metric not in summary["final"]:
        raise ValueError(f"{directory} has no {metric}; it has {', '.join(summary['final'])}")
    values = [value for value in summary["final"][metric] if value is not None]
    statistic = (statistics.fmean, statistics.median, max)
    shown = [f"{function(values):.3g}" if values else "–" for function in statistic]
    spent = [f"{summary['seconds'][part]:.0f}" for part in ("total", "compile")]
    return [directory.name, str(len(summary["diverged"])), *shown, str(sum(summary["diverged"])), *spent]


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
