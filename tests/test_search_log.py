"""The log of a search: what was appended is there again after any death, and test data choose nothing."""

import json
import math
from typing import Any

import pytest

from hyperopt_id.telemetry.search import SearchLog, incumbents


def evaluation(repetition: int, number: int, validation: float | None, test: float = 1.0) -> dict[str, Any]:
    spent = {"gradients": 100.0 * (number + 1), "seconds": 0.5 * (number + 1)}
    losses = {"loss/validation": validation, "loss/test": test}
    return {"repetition": repetition, "evaluation": number, **spent, **losses}


LINES = [evaluation(0, n, loss) for n, loss in enumerate((0.3, math.nan, 1 / 3))]
READ = [{**line, "loss/validation": None} if math.isnan(line["loss/validation"]) else line for line in LINES]


def test_records_are_read_back_with_all_their_digits_and_null_for_what_is_not_finite(tmp_path):
    log = SearchLog(tmp_path / "search")
    for line in LINES:
        log.append(line)
    assert log.records == READ
    assert [json.loads(line) for line in (tmp_path / "search/search.jsonl").read_text().splitlines()] == READ
    assert SearchLog(tmp_path / "search").records == READ


def test_a_line_is_on_the_disk_when_append_returns(tmp_path):
    log = SearchLog(tmp_path)
    log.append(LINES[0])
    assert json.loads((tmp_path / "search.jsonl").read_text()) == READ[0]


def test_a_half_written_line_is_dropped_and_the_next_one_follows_the_whole_ones(tmp_path):
    log = SearchLog(tmp_path)
    for line in LINES[:2]:
        log.append(line)
    path = tmp_path / "search.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    log = SearchLog(tmp_path)
    assert log.records == READ[:1]
    log.append(LINES[2])
    assert SearchLog(tmp_path).records == [READ[0], READ[2]]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "search.jsonl").write_text('{"repetition": 0}\nnonsense\n{"repetition": 1}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*search\.jsonl is damaged"):
        SearchLog(tmp_path)


def test_the_incumbent_has_the_lowest_validation_loss_whatever_its_test_loss():
    found = [
        evaluation(0, 0, 0.5, test=0.1),
        evaluation(1, 0, None, test=0.0),
        evaluation(0, 1, 0.2, test=0.9),
        evaluation(1, 1, 0.7, test=0.8),
        evaluation(0, 2, None, test=0.0),
    ]
    first, second = incumbents(found)
    assert (first["evaluation"], first["loss/test"]) == (1, 0.9)
    assert (second["evaluation"], second["loss/test"]) == (1, 0.8)
    assert first["gradients"] == 300.0  # all that the repetition spent, also after its best


def test_a_repetition_of_failures_has_its_first_as_the_incumbent():
    (only,) = incumbents([evaluation(0, 0, None), evaluation(0, 1, None)])
    assert only["evaluation"] == 0
