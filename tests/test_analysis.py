"""What is read from run directories, and statistics against hand-computed values."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hyperopt_id.analysis.load import load_reports, load_result
from hyperopt_id.analysis.statistics import Estimate, estimate

ROOT = Path(__file__).parents[1]
NAN = math.nan


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    final = {"loss/test": [0.5, None, 0.25], "accuracy/test": [0.9, None, 0.7]}
    seconds = {"total": 12.4, "compile": 3.0}
    summary = {"final": final, "best_validation": {}, "diverged": [False, True, False], "seconds": seconds}
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "summary.json").write_text(json.dumps(summary))
    return tmp_path / "tuned"


@pytest.mark.parametrize(
    ("values", "statistic", "expected"),
    [
        ([1.0, 2.0, 6.0], np.mean, 3.0),
        ([1.0, 2.0, 6.0], np.median, 2.0),
        ([1.0, NAN, 6.0, NAN], np.mean, 3.5),
        ([4.0, NAN, 1.0, 2.0], np.median, 2.0),
    ],
)
def test_statistics_leave_failed_runs_out(values, statistic, expected):
    assert estimate(np.array(values), statistic).value == expected


def test_the_deviation_of_a_mean_is_that_of_the_values_over_the_root_of_their_number():
    values = np.random.default_rng(3).normal(size=400)
    found = estimate(values, np.mean, resamples=4000)
    assert found.deviation == pytest.approx(values.std() / 20.0, rel=0.05)
    assert found == estimate(values, np.mean, resamples=4000)
    assert found != estimate(values, np.mean, resamples=4000, seed=1)


def test_the_deviation_of_two_values_is_that_of_all_resamples():
    """Means of (0, 0), (0, 2), (2, 0), (2, 2) are 0, 1, 1, 2."""
    assert estimate(np.array([0.0, 2.0]), np.mean, resamples=100_000).deviation == pytest.approx(0.5**0.5, rel=0.01)
    assert estimate(np.array([3.0]), np.median) == Estimate(3.0, 0.0)


def test_no_value_has_no_statistic():
    found = estimate(np.array([NAN, NAN]), np.mean)
    assert np.isnan(found).all()
    assert str(found) == "–"


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (Estimate(0.30512, 0.0231), "0.305 ± 0.023"),
        (Estimate(28.81, 2.44), "28.8 ± 2.4"),
        (Estimate(1234.5, 6.7), "1234 ± 7"),
        (Estimate(0.0, 0.0), "0.00 ± 0.00"),
    ],
)
def test_an_estimate_is_shown_with_three_digits(found, shown):
    assert str(found) == shown


def test_a_summary_becomes_arrays_in_which_null_is_nan(finished: Path):
    result = load_result(finished)
    assert result.name == "tuned"
    np.testing.assert_array_equal(result.metric("loss/test"), [0.5, NAN, 0.25])
    assert result.diverged.tolist() == [False, True, False]
    with pytest.raises(ValueError, match="tuned has no loss/train; it has loss/test, accuracy/test"):
        result.metric("loss/train")


def test_a_run_that_is_not_finished_has_no_result(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no finished run: there is no summary\.json"):
        load_result(tmp_path)


def test_a_report_that_is_being_written_is_left_out(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"step": 3')
    assert load_reports(tmp_path) == [{"step": 10}, {"step": 20}]


def test_a_damaged_line_is_named(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": \n{"step": 30}\n')
    with pytest.raises(ValueError, match=r"line 2 of .+metrics\.jsonl is damaged \(.+\); remove it"):
        load_reports(tmp_path)
    with pytest.raises(ValueError, match=r"is not a run directory: it has no metrics\.jsonl"):
        load_reports(tmp_path / "elsewhere")


def test_the_table_of_results(finished: Path):
    command = [sys.executable, ROOT / "scripts" / "results_table.py", finished]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    cells = [cell.strip() for cell in table[2].split("|")[1:-1]]
    mean = estimate(np.array([0.5, 0.25]), np.mean)
    assert mean.value == 0.375
    assert cells == ["tuned", "3", str(mean), str(mean), "0.25", "0.5", "1", "12", "3"]
    failed = subprocess.run([*command, "--metric", "loss"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].endswith("tuned has no loss; it has loss/test, accuracy/test")
