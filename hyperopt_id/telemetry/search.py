"""The log of a search over several trainings: `search.jsonl`, one evaluated model per line.

A record holds "repetition", "evaluation" (0, 1, ... within it), "hyper" (natural starting values), "step", "gradients"
and "seconds" (spent by the repetition so far), "loss/validation", other metrics of that model, "run" (its directory,
relative to the log's) and "member". Lines are only ever appended, and are on the disk before `append` returns.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hyperopt_id.files import check_form, naming, open_regular, synchronize
from hyperopt_id.telemetry.directory import records
from hyperopt_id.telemetry.measure import dump, plain

LARGEST = sys.float_info.max


def _loss(value: Any) -> bool:
    """a finite number or null"""
    return value is None or (type(value) in (int, float) and abs(value) <= LARGEST)


def _amount(value: Any) -> bool:
    """a finite number of 0 or more"""
    return type(value) in (int, float) and 0 <= value <= LARGEST


def _count(value: Any) -> bool:
    """an integer of 0 or more"""
    return type(value) is int and value >= 0


def is_below(value: Any) -> bool:
    """the path of a folder below the search, as runs/round_000"""
    parts = PurePosixPath(value).parts if type(value) is str and "\0" not in value else ()
    return bool(parts) and not {"..", "/"} & {*parts}


SPENT = {"repetition": _count, "evaluation": _count, "gradients": _amount, "seconds": _amount, "loss/validation": _loss}
EVALUATION = {**SPENT, "hyper": dict, "step": _count, "run": is_below, "member": _count}  # forms of a record
SUMMARY = {"method": str, "repetitions": [EVALUATION]}  # of a search, as it is in `summary.json`


def evaluations(file: IO[bytes], form: Mapping[str, Any] = SPENT) -> list[tuple[dict[str, Any], int]]:
    """The records in an open log and the lengths of their lines, without a half-written last one.

    Raises ValueError, which names the line, if one is damaged, has not the form, or repeats an evaluation.
    """
    found, known = [], {}
    for number, (record, length) in enumerate(list(records(file)), start=1):
        check_form(record, form, f"line {number} of {file.name}")
        earlier = known.setdefault((record["repetition"], record["evaluation"]), number)
        if earlier != number:
            raise ValueError(f"line {number} of {file.name} repeats line {earlier}'s evaluation; remove it to go on")
        found.append((record, length))
    return found


class SearchLog:
    """The log in `directory`, opened to go on: `records` are those that are already there. A half-written last line,
    left by a process that was killed, is dropped; a ValueError names a line that is damaged otherwise."""

    def __init__(self, directory: Path, form: Mapping[str, Any] = SPENT) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "search.jsonl"
        if not self._path.exists():
            self._path.touch()
            synchronize(directory)
        with open_regular(self._path) as file:
            known = evaluations(file, form)
        os.truncate(self._path, sum(length for _, length in known))
        self.records: list[dict[str, Any]] = [record for record, _ in known]

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line; a number that is not finite is written as null."""
        with naming(self._path), open(self._path, "ab") as file:
            file.write(dump(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(plain(record))


def incumbents(evaluations: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The evaluation with the lowest validation loss of each repetition, with all that the repetition spent; the first
    one where every loss is missing. Metrics on test data choose nothing."""
    best: dict[int, dict[str, Any]] = {}
    spent: dict[int, dict[str, float]] = {}
    for found in evaluations:
        repetition, loss = found["repetition"], found["loss/validation"]
        spent[repetition] = {key: found[key] for key in ("gradients", "seconds")}
        before = best.get(repetition)
        if before is None or (
            loss is not None and (before["loss/validation"] is None or loss < before["loss/validation"])
        ):
            best[repetition] = dict(found)
    return [{**best[repetition], **spent[repetition]} for repetition in sorted(best)]
