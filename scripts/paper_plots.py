"""Tables and figures of the study, from the logs of its runs.

    python scripts/paper_plots.py runs --out paper                       everything that the runs below runs/ allow
    python scripts/paper_plots.py runs --out paper --only final_losses runtimes
    python scripts/paper_plots.py runs/uci_energy/*                      the table of final losses on the terminal
    python scripts/paper_plots.py --list                                 what there is

RUNS are folders that are searched for run directories, search directories, and TensorBoard events beside a config.json,
as the published code of arXiv 2110.10461 leaves them. Figures need matplotlib: pip install -c constraints.txt -e
'.[plots]'
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout that is not installed

from hyperopt_id.analysis import paper, repetitions, selection, tables
from hyperopt_id.analysis.collect import Study, collect
from hyperopt_id.analysis.results import TABLES
from hyperopt_id.options import ended
from hyperopt_id.terminal import show


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("runs", nargs="*", type=Path, metavar="RUNS", help="folders that hold runs, at any depth")
    result.add_argument(
        "--out", type=Path, metavar="DIR", help="writes DIR/tables/ and DIR/figures/ (cache: DIR/cache)"
    )
    result.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these tables and figures")
    result.add_argument("--list", action="store_true", help="show the names of tables and figures, and stop")
    return result


def read(folders: Sequence[Path], cache: Path | None = None) -> Study:
    """All that the folders hold; what a reader should know about it goes to the terminal."""
    if not folders:
        raise ValueError("no runs: name the folders that hold them, as in scripts/paper_plots.py runs --out paper")
    study = collect(folders, cache, show=sys.stderr.isatty())
    for remark in (*study.remarks, *selection.remarks(study), *repetitions.remarks(study)):
        print(f"warning: {remark}", file=sys.stderr)
    return study


def tell(options: argparse.Namespace) -> None:
    """Markdown on the terminal: the table of final losses, or those that are asked for."""
    paper.check_names(options.only)
    figures = [name for name in options.only if name not in [entry.name for entry in TABLES]]
    if figures:
        raise ValueError(f"{figures[0]} is a figure, which needs a folder: name one with --out DIR")
    study = read(options.runs)
    for entry in TABLES:
        if entry.name in (options.only or ["final_losses"]):
            table = entry.make(study)
            show(f"table {entry.name}: left out, it needs {entry.needs}" if table is None else tables.markdown(table))


def write(options: argparse.Namespace) -> None:
    paper.check_names(options.only)
    files = paper.write(read(options.runs, options.out / "cache"), options.out, options.only)
    print(f"{len(files)} files in {options.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.list:
        return ended(lambda: show("\n".join(paper.listing())))
    return ended(lambda: (tell if options.out is None else write)(options))


if __name__ == "__main__":
    sys.exit(main())
