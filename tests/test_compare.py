"""The comparison of methods, end to end on a tiny budget: nobody spends more than it, and nothing is trained twice."""

import csv
import importlib.util
import json
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


def arguments(out: Path, *options: str) -> list[str]:
    data = ["-c", str(CONFIGS / "digits.yaml"), "-s", *SHORT, "--progress", "none"]
    return [*data, "--seeds", "2", "--methods", *METHODS, "--out", str(out), *options]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "out"
    compare.run(arguments(folder, "--budget-gradients", str(BUDGET)))
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
        best: dict[int, tuple[float, float]] = {}
        for line in map(json.loads, (out / method / "search.jsonl").read_text().splitlines()):
            reports = map(json.loads, (out / method / line["run"] / "metrics.jsonl").read_text().splitlines())
            for report in reports:
                pair = tuple(report[f"loss/{split}"][line["member"]] for split in ("validation", "test"))
                best[line["repetition"]] = min(best.get(line["repetition"], pair), pair)
        row = rows(out)[compare.style.look(method).label]
        assert float(row["mean"]) == pytest.approx(sum(test for _, test in best.values()) / 2, rel=1e-12)


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
    compare.run(arguments(out, "--budget-gradients", str(BUDGET)))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")} == trained
    assert (out / "comparison.md").read_text() == before


MISTAKES = [
    (["--budget-gradients", "10"], "a budget of 10 gradients holds no evaluation, which takes 76"),
    ([], "no budget: give --budget-gradients, --budget-seconds, or both"),
    (["--budget-gradients", "200", "--seeds", "0"], "given 0 seeds; a comparison needs 1 or more"),
]


@pytest.mark.parametrize("options,message", MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_one_line(options, message, tmp_path, capsys):
    given = arguments(tmp_path / "out", *options)
    assert compare.arguments.main(compare.run, given) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {message}")
