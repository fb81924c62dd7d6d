"""What the parts about analysis share: commands in this process, and what they have to leave behind."""

import contextlib
import csv
import importlib.util
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "analysis")]

from logs import config, write_run
from outcomes import Fault, Outcome

PATIENCE = 300  # seconds after which a command hangs
TABLES = ("final_losses", "variants", "searches", "runtimes")
FIGURES = ("final_losses", "learning_rates", "loss_envelopes", "best_so_far")
HEALTHY = ("Healthy", 1.5)  # an algorithm, and the mean of its final losses


class Said(NamedTuple):
    """How a command ended: its exit status, or what it raised, and the lines of its stderr."""

    status: int | None
    lines: list[str]
    fault: Fault | None = None
    detail: str = ""


def said(command: Callable[[], int]) -> Said:
    """Run the command; what it raises, and more than `PATIENCE` seconds, are faults."""
    screen = io.StringIO()

    def late(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        with contextlib.redirect_stderr(screen), contextlib.redirect_stdout(io.StringIO()):
            status = command()
    except TimeoutError:
        return Said(None, [], "hang", f"{PATIENCE} s")
    except SystemExit as error:
        return Said(None, [], "traceback", f"SystemExit({error.code})")
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return Said(None, [], "traceback", f"{type(error).__name__} at {place}: {str(error)[:200]}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Said(status, screen.getvalue().splitlines())


def refusal(ended: Said) -> tuple[Fault | None, str]:
    """A command may do its work (status 0), or refuse it (2) in one line of bounded length."""
    if ended.fault:
        return ended.fault, ended.detail
    if ended.status == 0:
        return None, ""
    errors = [line for line in ended.lines if line.startswith("error: ")]
    others = [line for line in ended.lines if not line.startswith(("error: ", "warning: ")) and "WARNING" not in line]
    if ended.status != 2 or len(errors) != 1 or len(errors[0]) > 1500:
        return "not one line", f"status {ended.status}: {ended.lines[:3]} {others[:1]}"
    return None, ""


def paper_plots() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper_plots", ROOT / "scripts" / "paper_plots.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_healthy(folder: Path) -> Path:
    """A run that every table has to show, whatever lies beside it."""
    about = config(HEALTHY[0], dataset="healthy")
    return write_run(folder / "healthy", about, {"loss/test": [[3.0, 2.0], [2.0, 1.0]], "hyper/lr": [[0.1, 0.1]] * 2})


def files_below(folder: Path) -> set[Path]:
    return {Path(place) / name for place, _, names in os.walk(folder) for name in names}


def drawn(folder: Path, plots: ModuleType, figures: bool) -> tuple[Fault | None, str, list[dict[str, str]]]:
    """Tables (and figures) of all that is in `folder/runs` into `folder/out`: the fault, and the rows of the table of
    final losses. The healthy run has to be among them, and nothing may be written elsewhere."""
    before, out = files_below(folder.parent), folder / "out"
    only = dict.fromkeys((*TABLES, *(FIGURES if figures else ())))
    only = only if figures else dict.fromkeys(name for name in TABLES if name != "final_losses")
    ended = said(lambda: plots.main([str(folder / "runs"), "--out", str(out), "--only", *only]))
    tables = said(lambda: plots.main([str(folder / "runs"), "--out", str(out), "--only", "final_losses"]))
    for one in (ended, tables):
        fault, detail = refusal(one)
        if fault or one.status != 0:
            return fault or "lost", detail or f"{one.lines[:2]}", []
        if odd := [line for line in one.lines if not line.startswith("warning: ")]:
            return "not one line", odd[0][:200], []
    outside = [path for path in files_below(folder.parent) - before if not path.is_relative_to(out)]
    if outside:
        return "outside", str(outside[0]), []
    with (out / "tables" / "final_losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    healthy = [row for row in rows if row["algorithm"] == HEALTHY[0]]
    if [float(row["mean"]) for row in healthy] != [HEALTHY[1]]:
        return "lost", "the healthy run is not in the table", rows
    if any(r"\input" in path.read_text() for path in (out / "tables").glob("*.tex")):
        return "wrong numbers", "a command of LaTeX went through", rows
    return None, "", rows


def as_outcomes(found: Iterator[tuple[str, Fault | None, str]]) -> Iterator[Outcome]:
    return (Outcome(what, fault, detail) for what, fault, detail in found)
