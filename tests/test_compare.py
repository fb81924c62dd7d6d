"""The comparison of methods, end to end on a tiny budget: nobody spends more than it, and nothing is trained twice."""

import csv
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
from short_runs import CONFIGS

SCRIPT = Path(__file__).parents[1] / "scripts" / "compare.py"
BUDGET, STEPS = 130, 40  # 3 plain trainings, 2 that tune
METHODS = ["Ours_LR", "Random", "BayesOpt", "Prodigy"]
SHORT = ["inner={steps: 40, compile: off}", "task.model.sizes=[64,4,10]", "task.batch_size=5", "threads=1"]


def imported() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare = imported()


def arguments(out: Path, *options: str, methods: list[str] = METHODS) -> list[str]:
    data = ["-c", str(CONFIGS / "digits.yaml"), "-s", *SHORT, "--progress", "none"]
    return [*data, "--seeds", "2", "--methods", *methods, "--out", str(out), *options]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "out"
    assert compare.main(arguments(folder, "--budget-gradients", str(BUDGET))) == 0
    return folder


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "comparison.csv").open() as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_every_method_spends_the_budget_as_far_as_whole_trainings_fit_and_no_more(out):
    spent = {name: (float(row["gradients"]), float(row["runs"])) for name, row in rows(out).items()}
    plain = (3.0 * STEPS, 3.0)  # gradients, trainings
    tuning = 4 * (10 + 1 + 4 * 2)  # gradients of a training with 4 hyper-updates of 10 steps
    assert spent == {"Random": plain, "BayesOpt": plain, "Prodigy": plain, "Ours WD+LR": (tuning, 1.0)}


def test_all_looks_are_counted_and_the_best_of_them_by_validation_is_kept(out):
    for method in METHODS:
        best = [(math.inf, math.nan)] * 2
        for repetition in range(2):
            search = out / method / f"repetition_{repetition}"
            for line in map(json.loads, (search / "search.jsonl").read_text().splitlines()):
                for report in map(json.loads, (search / line["run"] / "metrics.jsonl").read_text().splitlines()):
                    found = [report[f"loss/{split}"] for split in ("validation", "test")]
                    pair = tuple(x[line["member"]] if isinstance(x, list) else x for x in found)
                    best[repetition] = min(best[repetition], pair)
        row = rows(out)[compare.style.look(method).label]
        assert float(row["mean"]) == pytest.approx(sum(test for _, test in best) / 2, rel=1e-12)


def test_repetition_r_has_the_same_starts_with_every_method(out):
    for repetition in range(2):
        starts = []
        for method in ("Ours_LR", "Random", "BayesOpt"):
            lines = (out / method / f"repetition_{repetition}" / "search.jsonl").read_text().splitlines()
            starts.append(json.loads(lines[0])["hyper"])
        assert starts[0] == starts[1] == starts[2]


def test_searches_by_ray_have_the_same_budget(tmp_path):
    given = arguments(tmp_path, "--budget-gradients", "200", "--seeds", "1", methods=["ASHA", "PBT"])
    assert compare.main(given) == 0
    for row in rows(tmp_path).values():
        assert 0 < float(row["gradients"]) <= 200
        assert (row["repetitions"], row["failed"]) == ("1", "0")
        assert float(row["runs"]) >= 2


def test_a_budget_of_seconds_is_spent_by_every_method_and_what_comes_later_does_not_count(tmp_path):
    given = arguments(tmp_path, "--budget-seconds", "1", methods=["Random", "BayesOpt"])
    assert compare.main(given) == 0
    for row in rows(tmp_path).values():
        assert 0 < float(row["seconds"]) <= 1.0
    for search in tmp_path.glob("*/repetition_*"):
        last = json.loads((search / "search.jsonl").read_text().splitlines()[-1])
        assert last["seconds"] > 0.5  # it went on until the time was nearly up


def test_training_is_on_the_training_set_alone(out):
    configs = [json.loads(path.read_text()) for path in out.rglob("config.json")]
    assert len(configs) >= len(METHODS)
    assert {config["task"]["train_on"] for config in configs} == {"train"}


def test_the_report_holds_the_table_and_the_figure_and_needs_no_other_file(out):
    page = (out / "report.html").read_text()
    assert all(label in page for label in rows(out))
    assert page.count("<svg") == 1
    assert not [word for word in ("http-equiv", "<script", 'src="', "url(http") if word in page]
    assert (out / "best_so_far.pdf").stat().st_size > 5000 < (out / "best_so_far.png").stat().st_size


def test_the_same_command_again_trains_nothing_and_writes_the_same(out):
    trained = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    before = (out / "comparison.md").read_text()
    assert compare.main(arguments(out, "--budget-gradients", str(BUDGET))) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")} == trained
    assert (out / "comparison.md").read_text() == before


PLAIN = ["--methods", "Random", "--budget-gradients", "200"]
MISTAKES = [
    (
        ["--budget-gradients", "70"],
        "a budget of 70 gradients holds no training by Ours_LR, which takes 76; give more, or",
    ),
    ([], "no budget: give --budget-gradients, --budget-seconds, or both"),
    (["--budget-gradients", "200", "--seeds", "0"], "given 0 seeds; a comparison needs 1 or more"),
    (["--budget-gradients", "200", "--methods", "Rndom"], "there is no method Rndom; there are Ours_LR, "),
    ([*PLAIN, "-s", "task.train_on=train+validation"], "a search chooses by validation loss, which"),
    ([*PLAIN, "-s", "report.splits=[test]"], "a search chooses by validation loss: give"),
    ([*PLAIN, "-s", "task.validation_fraction=0"], "a search chooses by validation loss: give"),
]


@pytest.mark.parametrize("options,message", MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_one_line_before_anything_is_trained(options, message, tmp_path, capsys):
    assert compare.main(arguments(tmp_path / "out", *options)) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith(f"error: {message}")
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize("package, method", [("matplotlib", "Random"), ("skopt", "BayesOpt"), ("ray", "PBT")])
def test_a_missing_package_is_one_line_before_anything_is_trained(package, method, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    monkeypatch.setitem(sys.modules, package, None)
    options = ["--budget-gradients", str(BUDGET)]
    assert compare.main(arguments(tmp_path / "out", *options, methods=["Random", method])) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ")
    assert package in error
    assert "pip install" in error
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_one_line(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert compare.main(arguments(tmp_path / "out", "--budget-gradients", "200")) == 2
    assert "out cannot be written (File exists); choose another" in capsys.readouterr().err
