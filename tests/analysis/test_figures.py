"""Figures: what is drawn, from a study that has a little of everything."""

import re
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from logs import NAN, config, write_run, write_search

from hyperopt_id.analysis import figures_hyper, figures_losses, paper, plotting, style
from hyperopt_id.analysis.collect import collect
from hyperopt_id.analysis.figures import FIGURES
from hyperopt_id.analysis.runs import SAME
from hyperopt_id.analysis.tables import FORMATS
from hyperopt_id.config import load

CONFIGS = Path(__file__).parents[2] / "configs"
GENERATOR = np.random.default_rng(0)


def curves(runs: int, **more: float) -> dict[str, list[list[float]]]:
    """Three reports; the last run fails in the second."""
    names = {"loss/test": 1.0, "loss/validation": 1.0, "hyper/lr": 0.01, "hyper/weight_decay": 0.001, **more}
    values = {name: scale * np.exp(GENERATOR.normal(size=(3, runs))) for name, scale in names.items()}
    for rows in values.values():
        rows[1:, -1] = NAN
    return {name: rows.tolist() for name, rows in values.items()}


def write_everything(folder: Path, curves: Callable[..., dict[str, list[list[float]]]] = curves) -> None:
    start = {"lr": [10.0 ** -(1 + i / 2) for i in range(6)], "weight_decay": [10.0 ** -(2 + i / 3) for i in range(6)]}
    digits = {"dataset": "digits"}
    for name in ("Random", "Random_Validation", "Ours_LR", "DiffThroughOpt"):
        rates = {"accuracy/test": 0.1} if name != "DiffThroughOpt" else {}
        write_run(folder / name, config(name, **digits), curves(6, **rates), start=start)
    normed = config("Ours_LR", **digits, task__model={"batch_norm": True})
    write_run(folder / "bn", normed, {"loss/test": [[1.0, 2.0]]})
    write_run(folder / "half", config("Ours_LR", **digits, task__validation_fraction=0.5), curves(6))
    write_run(folder / "long", config("LongDiffThroughOpt_Full", **digits), curves(6))
    for engine in ("neumann", "unroll"):
        for steps, terms in ((1, 1), (2, 1), (2, 2)):
            about = config(engine, **digits, hypergradient={"engine": engine, "terms": terms, "window": terms})
            about["inner"]["steps_per_update"] = steps
            write_run(folder / f"{engine}{steps}{terms}", about, curves(6, **{"hypergradient/lr": 1.0}))
    for method in ("BayesOpt", "Ours_LR"):
        evaluations = [(n % 3, *np.exp(GENERATOR.normal(size=2)).tolist()) for n in range(9)]
        write_search(folder / f"{method}_search", method, evaluations, config("Random_Validation", **digits))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[str]]:
    folder = tmp_path_factory.mktemp("study")
    write_everything(folder / "runs")
    said: list[str] = []
    files = paper.write(collect([folder / "runs"]), folder / "out", say=said.append)
    return folder / "out", files, said


def test_everything_is_made_of_a_study_that_has_it(written: tuple[Path, list[Path], list[str]]):
    _, _, said = written
    assert [line for line in said if "left out" in line] == []
    assert [line.split(":")[0] for line in said] == [
        *(f"table {entry.name}" for entry in paper.TABLES),
        *(f"figure {entry.name}" for entry in FIGURES),
    ]


def test_tables_are_files_in_three_formats(written: tuple[Path, list[Path], list[str]]):
    out, files, _ = written
    expected = {out / "tables" / f"{entry.name}.{suffix}" for entry in paper.TABLES for suffix in FORMATS}
    assert expected == {file for file in files if file.parent.name == "tables"} == set((out / "tables").iterdir())
    assert all(file.stat().st_size for file in expected)


def test_figures_are_pictures_of_something(written: tuple[Path, list[Path], list[str]]):
    from matplotlib.image import imread

    out, files, _ = written
    pictures = {file for file in files if file.parent == out / "figures"}
    assert {re.sub(r"(_digits|_digits_bn)?\.(pdf|png)", "", file.name) for file in pictures} == {
        entry.name for entry in FIGURES
    }
    assert {file.with_suffix("") for file in pictures if file.suffix == ".pdf"} == {
        file.with_suffix("") for file in pictures if file.suffix == ".png"
    }
    for file in pictures:
        if file.suffix == ".png":
            pixels = imread(file)
            assert min(pixels.shape[:2]) > 150
            colored = np.ptp(pixels[..., :3], axis=2) > 0.2
            assert colored.mean() > 1e-3, file.name
        else:
            data = file.read_bytes()
            assert data.startswith(b"%PDF")
            assert b"/Type /Page" in data


def test_what_a_study_lacks_is_said_and_the_rest_is_drawn(tmp_path: Path):
    write_run(tmp_path / "run", config("Ours_LR"), {"loss/test": [[1.0, 2.0], [0.5, 1.0]]})
    said: list[str] = []
    only = ["final_losses", "best_so_far", "sensitivity", "error_rates"]
    files = paper.write(collect([tmp_path]), tmp_path / "out", only, said.append)
    assert [file.name for file in files] == [
        *(f"final_losses.{f}" for f in FORMATS),
        *(f"final_losses_uci_energy.{f}" for f in ("pdf", "png")),
    ]
    assert said == [
        "table final_losses: 1 rows",
        "table error_rates: left out, it needs runs of classification",
        "figure final_losses: 1 drawn",
        "figure sensitivity: left out, it needs runs of one algorithm at 3 or more settings of (T, K)",
        "figure best_so_far: left out, it needs finished searches",
        "figure error_rates: left out, it needs runs of classification",
    ]


@pytest.mark.parametrize("value", [0.0, NAN, 1e30])
def test_what_is_drawn_of_runs_that_are_all_alike_or_have_all_failed(tmp_path: Path, value: float):
    def alike(runs: int, **more: float) -> dict[str, list[list[float]]]:
        names = ("loss/test", "loss/validation", *more)
        return {**{name: [[value] * runs] * 2 for name in names}, "hyper/lr": [[0.1] * runs] * 2}

    write_everything(tmp_path, alike)
    study = collect([tmp_path])
    with plotting.matplotlib().rc_context(plotting.STYLE):
        for entry in FIGURES:
            for _, figure in entry.make(study):
                figure.draw_without_rendering()
    for entry in paper.TABLES:
        table = entry.make(study)
        assert table is None or all(shape(table) for shape in FORMATS.values())


def test_the_same_runs_give_the_same_files(tmp_path: Path):
    write_run(tmp_path / "run", config("Ours_LR"), {"loss/test": [[1.0, 2.0], [0.5, 1.0]]})
    one, two = (paper.write(collect([tmp_path / "run"]), tmp_path / name, ["final_losses"], str) for name in "ab")
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_figures_without_matplotlib_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = collect([write_run(tmp_path / "run", config("Ours_LR"), {"loss/test": [1.0]})])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"figures need matplotlib.+pip install .+\[plots\]"):
        paper.write(study, tmp_path / "out")
    assert len(paper.write(study, tmp_path / "out", ["variants", "searches"], str)) == 0
    assert not (tmp_path / "out" / "figures").exists()


def test_unknown_names_and_folders_that_cannot_be_written(tmp_path: Path):
    study = collect([write_run(tmp_path / "run", config("Ours_LR"), {"loss/test": [1.0]})])
    with pytest.raises(ValueError, match="there is no table or figure 'final'; there are final_losses, "):
        paper.write(study, tmp_path / "out", ["final"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file cannot be written \(.+\); choose another with --out DIR"):
        paper.write(study, tmp_path / "file", ["final_losses"], str)


# what is drawn


def test_a_distribution_by_hand():
    values, reached = figures_losses.distribution(np.array([3.0, NAN, 1.0, 2.0]))
    assert (values.tolist(), reached.tolist()) == ([1.0, 2.0, 3.0], [0.25, 0.5, 0.75])  # one of four has failed
    values, reached = figures_losses.distribution(np.array([3.0, 1.0, NAN]), np.array([0.5, 0.25, 0.25]))
    assert (values.tolist(), reached.tolist()) == ([1.0, 3.0], [0.25, 0.75])
    assert [part.tolist() for part in figures_losses.distribution(np.array([NAN]))] == [[], []]


def test_a_smoothed_surface_is_a_mean_of_its_values():
    points = np.array([[-5.0, -1.0, -5.0, -1.0], [-6.0, -6.0, -2.0, -2.0]])
    x, y, surface = figures_hyper.smooth(points, np.full(4, 3.0))
    np.testing.assert_allclose(surface, 3.0)
    assert (x[0], x[-1], y[0], y[-1], surface.shape) == (-5.0, -1.0, -6.0, -2.0, (len(y), len(x)))
    _, _, slope = figures_hyper.smooth(points, np.array([0.0, 1.0, 0.0, 1.0]))
    assert slope[60, 0] < 0.5 < slope[60, -1]


def test_shared_starts_are_in_the_order_of_learning_rates(tmp_path: Path):
    starts = {"Random": ([3, 4, 5], [0.1, 0.3, 0.2]), "Ours_LR": ([4, 5, 6], [0.3, 0.2, 0.9])}
    for name, (seeds, rates) in starts.items():
        about = config(name, seed=seeds[0])
        write_run(tmp_path / name, about, {"loss/test": [[1.0] * 3]}, start={"lr": rates})
    kinds = {runs.algorithm: runs for runs in collect([tmp_path]).kinds}
    assert figures_hyper.shared_starts(kinds) == [(5, 0.2), (4, 0.3)]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.003, "0.003"), (20.0, "20"), (1e-4, "$10^{-4}$"), (2e5, r"$2\times10^{5}$")]
)
def test_numbers_on_axes(value: float, shown: str):
    assert plotting.plain(value) == shown


# looks


def test_every_algorithm_has_a_look():
    for file in CONFIGS.glob("[A-Z]*.yaml"):
        name = load([CONFIGS / "digits.yaml", file], ["inner.updates=1"]).algorithm
        assert SAME.get(name, name) in style.ALGORITHMS, name


def test_algorithms_can_be_told_apart_in_color_and_in_gray():
    for one, two in combinations(style.ALGORITHMS.values(), 2):
        assert (one.color, one.line) != (two.color, two.line)
        assert (one.line, one.marker) != (two.line, two.marker)
        assert one.label != two.label


@pytest.mark.parametrize(
    ("name", "inside", "known"),
    [
        ("Schedule-Free SGD", "", "ScheduleFree_SGD"),
        ("schedulefree_adamw", "", "ScheduleFree_AdamW"),
        ("Random (3-batched)", "Random_Validation", "Random_3Batched"),
        ("ASHA", "Ours_LR_Momentum", "ASHA_Ours_LR_Momentum"),
        ("PBT + Ours_LR_Momentum", "Ours_LR_Momentum", "PBT_Ours_LR_Momentum"),
        ("PBT", "Random_TrainingSetOnly", "PBT"),
        ("Something", "", "Something"),
    ],
)
def test_names_are_found_however_they_are_spelled(name: str, inside: str, known: str):
    assert style.canonical(name, inside) == known


def test_an_unknown_algorithm_has_one_look_and_comes_last():
    assert style.look("Mine") == style.look("Mine")
    assert style.look("Mine").label == "Mine"
    assert style.in_order(["Mine", "Baydin", "Random"]) == ["Random", "Baydin", "Mine"]
    assert style.datasets_in_order(["mine", "digits_bn", "digits"]) == ["digits", "digits_bn", "mine"]
