"""The end of a search by Ray Tune: its summary, and run directories that tell of what was logged.

A trial becomes a whole run that ends where it was logged last. The best model of the search may be an earlier one of
its trial, or of weights that the trial has given up for others: then `DIR/best/` is the run that ends with it, so that
to replay its trace is to obtain the model.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from baselines import training
from baselines.ledger import lines, packed
from baselines.restoring import newest
from baselines.trainable import member
from baselines.training import Tree, Workshop
from hyperopt_id import checkpoint
from hyperopt_id.analysis.load import load_reports
from hyperopt_id.telemetry import read_json
from hyperopt_id.telemetry.directory import write_json
from hyperopt_id.telemetry.search import incumbents


def conclude(directory: Path, method: str, open_workshop: Callable[[], Workshop]) -> dict[str, Any]:
    """The summary of the search in `directory`. What is interrupted is done again."""
    logged, workshop = lines(directory), None
    for run in (directory / "runs").glob("trial_*"):
        own = [line for line in logged if line["run"] == f"runs/{run.name}"]
        if not own:  # its first report would have come after the budget was spent
            shutil.rmtree(run, ignore_errors=True)
            continue
        saved = newest(directory, run.name)
        if not _is_whole(run, own[-1]):
            workshop = workshop or open_workshop()
            _train_again(workshop, run, saved, own)
        training.end(run, min(own[-1]["step"], load_reports(run)[-1]["step"]))
        if saved is not None and json.loads(saved["reports"][-1]) == load_reports(run)[-1]:
            checkpoint.save(run / "checkpoints", training.without_lineage(saved), saved["update"], keep=1)
    found = {"method": method, "repetitions": [_with_run(directory, best) for best in incumbents(logged)]}
    write_json(directory / "summary.json", found)
    tidy(directory)
    return found


def _is_whole(run: Path, line: Mapping[str, Any]) -> bool:
    """Whether a run directory tells of the model that its trial has logged last, in reports and summary."""
    summary = read_json(run / "summary.json")
    ends_there = summary is not None and summary["final"]["loss/validation"] == [line["loss/validation"]]
    return ends_there and any(_is_report(report, line) for report in load_reports(run))


def _is_report(report: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    return all(report[key] == line[key] for key in ("step", "loss/validation"))


def _train_again(workshop: Workshop, run: Path, saved: Tree | None, own: Sequence[Mapping[str, Any]]) -> None:
    """Make up for what was lost of a trial with the lines `own`, when the search or its worker was killed: train from
    its newest checkpoint as far as the log tells of these weights."""
    if saved is None:
        current, explored = training.begin(workshop, run, member(run.name)), None
    else:
        current, explored = training.take_up(workshop, run, saved), saved["explored"]
    last = max((line["step"] for line in own if line["explored"] == explored), default=0)
    while current.progress.update * workshop.plan.steps_per_update < last:
        training.advance(current)
    current.reports.close()
    write_json(run / "summary.json", training.summary(current))


def _with_run(directory: Path, best: dict[str, Any]) -> dict[str, Any]:
    """The best model with the run that ends with it: its trial's, or that in `best/`, where the trial went on."""
    run, file = directory / best["run"], packed(directory, best)
    if _is_report(load_reports(run)[-1], best) or not file.is_file():
        return best
    training.unpack(training.load(file), directory / "best")
    shutil.copy(run / "environment.json", directory / "best")
    return {**best, "run": "best"}


def tidy(directory: Path) -> None:
    """Remove what only a search needs that is going on."""
    for name in ("ray", "saved", "incumbent"):
        shutil.rmtree(directory / name, ignore_errors=True)
