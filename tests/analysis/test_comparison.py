"""Methods under one budget: evaluations at every report, cut at the budget, and failures counted, all by hand."""

from pathlib import Path

import numpy as np
import pytest
from logs import NAN, config, write_run

from hyperopt_id.analysis.comparison import merged, table, thinned, with_reports, within
from hyperopt_id.analysis.load_search import Search, best_so_far

VALIDATION = [[0.9, 0.8], [0.5, 0.9], [0.7, NAN], [0.6, NAN]]  # four reports of two members
TEST = [[9.0, 8.0], [5.0, 0.1], [7.0, NAN], [0.2, NAN]]


def line(run: str, member: int, gradients: float, seconds: float, **losses: float | None) -> dict:
    spent = {"gradients": gradients, "seconds": seconds}
    return {"repetition": 0, "run": run, "member": member, "step": 40, **spent, **losses}


def search(*repetitions: list[dict]) -> Search:
    return Search("uci_energy", "Random", "Random_Validation", tuple(map(tuple, repetitions)), ())


@pytest.fixture
def population(tmp_path: Path) -> tuple[Path, Search]:
    """Two runs, one after the other: 100 gradients and 2 seconds for the first, 100 and 6 for the second."""
    curves = {"loss/validation": VALIDATION, "loss/test": TEST}
    write_run(tmp_path / "runs/round_000", config("Random_Validation", population__runs=2), curves)
    ends = [
        line("runs/round_000", 0, 100.0, 2.0, **{"loss/validation": 0.6, "loss/test": 0.2}),
        line("runs/round_000", 1, 200.0, 8.0, **{"loss/validation": None, "loss/test": None}),
    ]
    return tmp_path, search(ends)


def test_every_report_is_an_evaluation_at_its_share_of_what_the_run_spent(population):
    found = with_reports(*population)
    (lines,) = found.evaluations
    assert [line["gradients"] for line in lines] == [25.0, 50.0, 75.0, 100.0, 125.0, 150.0, 175.0, 200.0]
    assert [line["seconds"] for line in lines] == [0.5, 1.0, 1.5, 2.0, 3.5, 5.0, 6.5, 8.0]
    assert [line["loss/validation"] for line in lines] == [0.9, 0.5, 0.7, 0.6, 0.8, 0.9, None, None]
    assert [line["step"] for line in lines] == [10, 20, 30, 40] * 2
    (curve,) = best_so_far(found, "loss/test", "gradients")
    assert (curve.costs.tolist(), curve.values.tolist()) == ([25.0, 50.0], [9.0, 5.0])


def test_the_model_that_is_kept_is_the_best_by_validation_whatever_the_test_data_say(population):
    (kept,) = with_reports(*population).incumbents
    assert (kept["loss/validation"], kept["loss/test"], kept["member"]) == (0.5, 5.0, 0)
    assert (kept["gradients"], kept["seconds"]) == (200.0, 8.0)  # what was spent, also after it was found


def test_what_was_logged_report_by_report_stays_as_it_is(tmp_path):
    lines = [line("runs/trial", 0, 10.0 * n, 1.0 * n, **{"loss/validation": 1.0 / n}) for n in (1, 2, 3)]
    found = with_reports(tmp_path, search(lines))  # no run directory is read
    assert [kept["gradients"] for kept in found.evaluations[0]] == [10.0, 20.0, 30.0]


@pytest.mark.parametrize("gradients,seconds,last", [(100.0, None, 100.0), (99.0, None, 75.0), (None, 5.5, 150.0)])
def test_nothing_counts_that_was_found_after_the_budget(gradients, seconds, last, population):
    found = within(with_reports(*population), gradients, seconds)
    assert found.evaluations[0][-1]["gradients"] == last
    assert found.incumbents[0]["gradients"] == last


def test_repetitions_of_several_searches_are_those_of_one(population):
    one = with_reports(*population)
    both = merged([one, one])
    assert [lines[0]["repetition"] for lines in both.evaluations] == [0, 1]
    assert len(both.incumbents) == 2


def test_a_search_that_has_evaluated_nothing_is_a_repetition_that_failed(population):
    nothing = search()._replace(evaluations=())
    both = merged([with_reports(*population), nothing])
    assert [len(lines) for lines in both.evaluations] == [8, 0]
    assert table({"ASHA": both, "PBT": method(1.0)}, "x").rows[-1]["failed"] == 1


@pytest.mark.parametrize("every,seen", [(1, [5, 10, 15, 20]), (3, [6, 12, 15]), (6, [6, 12, 18]), (10, [10, 20])])
def test_runs_are_looked_at_once_in_every_part_however_often_they_report(every, seen):
    lines = [
        {**line("runs/trial", member, 1.0, 1.0, **{"loss/validation": 1.0}), "step": step}
        for member in range(2)
        for step in range(every, 21, every)
    ]
    for member in range(2):
        kept = [line["step"] for line in thinned(search(lines), 20, 4).evaluations[0] if line["member"] == member]
        assert kept == seen


def method(*found: float) -> Search:
    """A search with one model for each repetition, NaN for none."""
    lines = [[line("r", p, 100.0, 4.0, **{"loss/validation": v, "loss/test": v})] for p, v in enumerate(found)]
    for repetition in lines:
        for key in ("loss/validation", "loss/test"):
            repetition[0][key] = None if np.isnan(repetition[0][key]) else repetition[0][key]
    return merged([search(*lines)])


def test_a_repetition_without_a_model_is_counted_and_worse_than_any_other():
    rows = table(
        {"Random": method(1.0, 2.0, NAN), "Ours_LR": method(3.0, NAN, NAN), "PBT": method(5.0, 5.0, 5.0)}, "x"
    ).rows
    by_name = {row["method"]: row for row in rows}
    assert [row["method"] for row in rows] == ["Random", "PBT", "Ours WD+LR"]
    assert [row["failed"] for row in rows] == [1, 0, 2]
    assert (by_name["Random"]["median"], by_name["Random"]["mean"]) == (2.0, 1.5)
    assert (by_name["Ours WD+LR"]["median"], by_name["Ours WD+LR"]["mean"]) == (None, 3.0)
    assert by_name["Random"]["median, 95 %"].endswith("∞")
    assert by_name["PBT"]["median, 95 %"] == "5 to 5"
    assert by_name["Random"]["diverged %"] == pytest.approx(100 / 3)
    assert (by_name["PBT"]["gradients"], by_name["PBT"]["seconds"], by_name["PBT"]["runs"]) == (100.0, 4.0, 1.0)


def test_a_repetition_whose_budget_ends_before_its_first_report_has_failed(population):
    found = within(with_reports(*population), 1.0, None)
    assert table({"Random": found, "PBT": method(1.0)}, "x").rows[-1]["failed"] == 1
