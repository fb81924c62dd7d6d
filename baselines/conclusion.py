"""The end of a search by Ray Tune: its summary, and run directories that tell of what was logged.

A trial becomes a whole run that ends where it was logged last. The best model of the search may be an earlier one of
its trial, or of weights that the trial has given up for others: then `DIR/best/` is the run that ends with it, so that
to replay its trace is to obtain the model.
"""

import json
import logging
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
from hyperopt_id.config import load
from hyperopt_id.files import read_json_file
from hyperopt_id.telemetry.directory import remove_temporary, write_json
from hyperopt_id.telemetry.search import incumbents

logger = logging.getLogger("hyperopt_id")


def conclude(directory: Path, method: str, open_workshop: Callable[[], Workshop]) -> dict[str, Any]:
    """The summary of the search in `directory`. What is interrupted is done again."""
    logged, workshop = lines(directory), None
    for run in (directory / "runs").glob("trial_*"):
        remove_temporary(run)
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
    """Whether a run directory tells of the model that its trial has logged last, in config, reports and summary, none
    of which is damaged."""
    try:
        load([run / "config.yaml"])
        final = read_json_file(run / "summary.json", {"final": {"loss/validation": list}})["final"]
        reports = load_reports(run)
    except ValueError:
        return False
    return final["loss/validation"] == [line["loss/validation"]] and any(_is_report(one, line) for one in reports)


def _is_report(report: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    return all(report.get(key) == line[key] for key in ("step", "loss/validation"))


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
    try:
        tree = training.load(file)
    except ValueError as error:
        logger.warning("%s: the best model can only be replayed if its trial ends with it", error)
        return best
    training.unpack(tree, directory / "best")
    shutil.copy(run / "environment.json", directory / "best")
    return {**best, "run": "best"}


def tidy(directory: Path) -> None:
    """Remove what only a search needs that is going on."""
    for name in ("ray", "saved", "incumbent"):
        shutil.rmtree(directory / name, ignore_errors=True)
