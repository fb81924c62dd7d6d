"""The log of a search over several trainings: `search.jsonl`, one evaluated model per line.

A record holds "repetition", "evaluation" (0, 1, ... within it), "hyper" (natural starting values), "step", "gradients"
and "seconds" (spent by the repetition so far), "loss/validation", other metrics of that model, "run" (its directory,
relative to the log's) and "member". Lines are only ever appended, and are on the disk before `append` returns.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hyperopt_id.telemetry.directory import records
from hyperopt_id.telemetry.measure import dump, plain


class SearchLog:
    """The log in `directory`, opened to go on: `records` are those that are already there. A half-written last line,
    left by a process that was killed, is dropped; a ValueError names a line that is damaged otherwise."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "search.jsonl"
        with open(self._path, "a+b") as file:
            file.seek(0)
            known = list(records(file))
            file.truncate(sum(length for _, length in known))
        self.records: list[dict[str, Any]] = [record for record, _ in known]

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line; a number that is not finite is written as null."""
        with open(self._path, "ab") as file:
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
