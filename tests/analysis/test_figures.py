"""Figures: what is drawn, from a study that has a little of everything."""

import re
import sys
from collections.abc import Callable
from itertools import combinations
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logs import NAN, config, write_run, write_search

from hyperopt_id.analysis import figures_cost, figures_hyper, figures_losses, paper, plotting, results, style
from hyperopt_id.analysis.collect import collect
from hyperopt_id.analysis.figures import FIGURES
from hyperopt_id.analysis.load_search import Search
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
    rates, decays = ([10.0 ** -(first + i / of) for i in range(12)] for first, of in ((1, 2), (2, 3)))
    digits = {"dataset": "digits"}
    for name in ("Random", "Random_Validation", "Ours_LR", "DiffThroughOpt"):
        accuracy = {"accuracy/test": 0.1} if name != "DiffThroughOpt" else {}
        runs = 12 if name == "Random" else 6
        start = {"lr": rates[:runs], "weight_decay": decays[:runs]}
        write_run(folder / name, config(name, **digits), curves(runs, **accuracy), start=start)
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


def searched(*found: list[tuple[float, float]]) -> Search:
    """A search with evaluations (gradients, loss) of each repetition."""
    lines = [
        tuple({"gradients": c, "seconds": c / 10, "loss/validation": v, "unnormalized_loss/test": v} for c, v in of)
        for of in found
    ]
    return Search(
        "uci_energy",
        "x",
        "",
        tuple(lines),
        tuple(min(of, key=itemgetter("loss/validation")) if of else {} for of in lines),
    )


GOOD = searched([(100.0, 4.0), (200.0, 2.0)], [(100.0, 3.0), (400.0, 1.0)])


def drawn(searches: dict[str, Search]) -> tuple[Any, list[str], list[str]]:
    """The axes of the figure, the labels of the curves in the first, and those in the legend."""
    with plotting.matplotlib().rc_context(plotting.STYLE):
        figure = figures_cost.draw_best_so_far("uci_energy", searches)
        figure.draw_without_rendering()
    curves = [line.get_label() for line in figure.axes[0].lines]
    return figure.axes, curves, [text.get_text() for text in figure.legends[0].texts]


def test_a_repetition_that_evaluated_nothing_ends_no_other_curve():
    axes, curves, _ = drawn({"Random": searched([(100.0, 4.0), (300.0, 2.0)], []), "PBT": GOOD})
    assert curves == ["Random", "PBT"]
    ends = [line.get_xdata()[-1] for line in axes[1].lines]
    np.testing.assert_allclose(ends, [300.0, 400.0])
    for limits in (axes[1].get_xlim(), axes[1].get_ylim()):
        assert np.isfinite(limits).all()


@pytest.mark.parametrize("nothing", [searched([], []), searched(), searched([(50.0, NAN)])])
def test_a_method_that_found_nothing_has_no_curve(nothing: Search):
    axes, curves, names = drawn({"Random": nothing, "PBT": GOOD})
    assert (curves, names) == (["PBT"], ["Random: none", "PBT"])
    assert axes[0].get_ylabel() == "test MSE (un-normalized)"
    axes, curves, names = drawn({"Random": nothing, "PBT": nothing})
    assert (curves, names) == ([], ["Random: none", "PBT: none"])
    assert [text.get_text() for text in axes[0].texts] == ["no method has found a model"]


def test_many_methods_have_whiskers_in_place_of_bands():
    names = ["Random", "Lorraine", "Baydin", "Ours_LR", "BayesOpt", "PBT", "ASHA"]
    failed = searched([(100.0, 4.0)], [], [])
    axes, curves, _ = drawn({name: failed if name == "PBT" else GOOD for name in names})
    assert len(axes) == 3
    assert len(curves) == len(names)
    assert not [part for panel in axes for part in panel.collections]
    whiskers = [tuple(line.get_ydata()) for line in axes[2].lines[::2]]
    assert whiskers.count((1.0, 2.0)) == len(names) - 1
    assert (4.0, axes[2].get_ylim()[1]) in whiskers  # open to above
    axes, _, _ = drawn(dict.fromkeys(names[:3], GOOD))
    assert [len(panel.collections) for panel in axes] == [3, 3]


def test_error_rates_are_drawn_over_their_range(tmp_path: Path):
    accuracy = {"loss/test": [[1.0] * 3], "accuracy/test": [[0.88, 0.87, 0.86]]}
    (runs,) = collect([write_run(tmp_path / "run", config("Ours_LR"), accuracy)]).kinds
    figure = figures_losses.draw_distributions({"here": {"Ours_LR": runs}}, "error/test")
    low, high = figure.axes[0].get_xlim()
    assert 0.1 < low < 0.12
    assert 0.14 < high < 0.2


# looks


def test_every_algorithm_has_a_look():
    for file in CONFIGS.glob("[A-Z]*.yaml"):
        name = load([CONFIGS / "digits.yaml", file], ["inner.updates=1"]).algorithm
        assert SAME.get(name, name) in style.ALGORITHMS, name


def linear(color: str) -> np.ndarray:
    """Linear red, green and blue of "#rrggbb"."""
    parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def perceived(color: np.ndarray) -> np.ndarray:
    """OKLab (Ottosson 2020)."""
    cones = np.array([[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]]) @ np.clip(
        color, 0.0, 1.0
    )
    opponents = [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]
    return np.array(opponents) @ np.cbrt(cones)


EYES = {  # linear light as those see it who lack one kind of cones (Machado 2009), and how far colors have to be apart
    "all cones": (np.eye(3), 0.12),
    "protanopia": (np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]), 0.05),
    "deuteranopia": (np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]), 0.05),
}
LOOKS = {**style.ALGORITHMS, **{f"other {n}": style.Look(f"{n}", *other) for n, other in enumerate(style.OTHERS)}}


def test_algorithms_can_be_told_apart_in_color_and_in_gray():
    for one, two in combinations(LOOKS.values(), 2):
        assert (one.color, one.line) != (two.color, two.line)
        assert (one.line, one.marker) != (two.line, two.marker)
        assert one.label != two.label


def test_algorithms_can_be_told_apart_as_points():
    for one, two in combinations(style.ALGORITHMS.values(), 2):  # h and H, d and D are alike
        assert (one.color, one.marker.lower()) != (two.color, two.marker.lower())


@pytest.mark.parametrize("eye", EYES)
def test_colors_of_lines_of_one_style_are_far_apart(eye: str):
    sees, least = EYES[eye]
    for (one, a), (two, b) in combinations(LOOKS.items(), 2):
        if a.line == b.line:
            distance = np.linalg.norm(perceived(sees @ linear(a.color)) - perceived(sees @ linear(b.color)))
            assert distance > least, (one, two)


COMPARED = (  # side by side in the comparison of methods
    *("Ours_LR", "Ours_LR_Momentum", "Ours_HDLR_Momentum", "Ours_Carry", "DiffThroughOpt", "Lorraine", "Baydin"),
    *("Random", "BayesOpt", "ASHA", "PBT", "Prodigy", "ScheduleFree_SGD", "ScheduleFree_AdamW", "MuLO"),
)
STUDIED = (*COMPARED[:8], "Random_Validation", "Random_SteppedLR", "Random_3Batched")


@pytest.mark.parametrize("names", [COMPARED, STUDIED])
def test_methods_of_one_figure_have_markers_of_their_own(names: tuple[str, ...]):
    looks = style.distinct(names)
    assert len({look.marker for look in looks.values()}) == len(names)


def test_unknown_algorithms_of_one_figure_have_looks_of_their_own():
    names = [chr(ord("a") + n) * (1 + n % 2) for n in range(len(style.OTHERS))]
    looks = style.distinct([*names, "Random", *names])
    assert list(looks) == ["Random", *sorted(names)]
    assert len({(look.color, look.line, look.marker) for look in looks.values()}) == len(looks)
    assert [look.label for look in looks.values()][1:] == sorted(names)
    assert len(style.distinct(map(str, range(20)))) == 20  # more than there are looks


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


# figures that must not mislead


def landscape_of(tmp_path: Path, finals: list[float], **changed: Any) -> Any:
    """(learning rate, weight decay) on a diagonal line and one point beside it, and trajectories."""
    count = len(finals)
    start = {"lr": (10.0 ** np.linspace(-4, -1, count)).tolist(), "weight_decay": [1e-3, *[1e-5] * (count - 1)]}
    write_run(tmp_path / "random", config("Random", **changed), {"loss/test": [finals]}, start=start)
    moves = {"loss/test": [[1.0, 1.0]], "hyper/lr": [[0.01, 0.0]], "hyper/weight_decay": [[1e-4, 1e-4]]}
    write_run(tmp_path / "learned", config("Ours_LR"), moves)
    return {entry.name: list(entry.make(collect([tmp_path]))) for entry in FIGURES}["proof_of_concept"]


def test_a_landscape_is_drawn_near_finite_runs_only(tmp_path: Path):
    finals = [*np.linspace(2.0, 0.5, 12).tolist(), NAN, NAN, NAN]  # beyond some learning rate, all have failed
    ((_, figure),) = landscape_of(tmp_path, finals)
    (panel, _) = figure.axes
    assert panel.get_title().splitlines()[1] == "dots: 12 runs, nothing learned; crosses: 3 that failed"
    mesh, dots, crosses = panel.collections
    assert (len(dots.get_offsets()), len(crosses.get_offsets())) == (12, 3)
    drawn = ~np.ma.getmaskarray(np.ma.masked_invalid(mesh.get_array()))
    rates = mesh.get_coordinates()[0, :-1, 0]
    assert 0.2 < drawn.mean() < 0.95  # not between the line and the point beside it
    assert rates[drawn.any(axis=0)].max() <= 10.0 ** np.linspace(-4, -1, 15)[11]


@pytest.mark.parametrize(
    ("finals", "changed"),
    [
        ([1.0] * 9, {}),
        ([*[1.0] * 9, *[NAN] * 30], {}),
        ([1.0] * 12, {"space__momentum": {"init": 0.5, "sample": [0.0, 1.0], "tune": []}}),
        ([1.0] * 12, {"task__batch_size": 7}),
    ],
)
def test_a_landscape_needs_its_experiment(tmp_path: Path, finals: list[float], changed: dict[str, Any]):
    assert landscape_of(tmp_path, finals, **changed) == []


def test_a_reference_that_has_no_steps_and_terms_has_no_cell(tmp_path: Path):
    for steps, terms, loss in ((1, 1, 1.0), (50, 1, 2.0), (50, 2000, 3.0)):
        about = config("Ours_LR", hypergradient={"engine": "neumann", "terms": terms, "window": None})
        about["inner"]["steps_per_update"] = steps
        write_run(tmp_path / f"{steps}_{terms}", about, {"loss/test": [loss]})
    write_run(tmp_path / "random", config("Random"), {"loss/test": [0.5]})
    ((_, figure),) = next(entry for entry in FIGURES if entry.name == "sensitivity").make(collect([tmp_path]))
    panel, bar = figure.axes  # one grid, and its colors
    assert {text.get_text(): text.get_position() for text in panel.texts} == {"1": (0, 0), "2": (0, 1), "3": (1, 1)}
    assert [[label.get_text() for label in axis] for axis in (panel.get_xticklabels(), panel.get_yticklabels())] == [
        ["1", "2000"],
        ["1", "50"],
    ]
    assert figure.get_suptitle() == "UCI Energy: median final test loss; Random: 0.5, the line in the color bar"
    assert {tuple(line.get_ydata()) for line in bar.lines} == {(0.5, 0.5)}
    assert max(figure.get_size_inches()) < 10.0


def test_cells_say_their_numbers_without_powers_where_there_is_room(tmp_path: Path):
    said = {3.14159: "3.1", 98.4: "98", 101.6: "102", 9876.0: "9876", 54321.0: "5e4"}
    for steps, loss in enumerate(said, start=1):
        about = config("Ours_LR", hypergradient={"engine": "neumann", "terms": 1, "window": None})
        about["inner"]["steps_per_update"] = steps
        write_run(tmp_path / f"{steps}", about, {"loss/test": [loss]})
    ((_, figure),) = next(entry for entry in FIGURES if entry.name == "sensitivity").make(collect([tmp_path]))
    assert [text.get_text() for text in figure.axes[0].texts] == list(said.values())


def test_bars_of_times_have_their_spread(tmp_path: Path):
    for number, (vanilla, learned) in enumerate([(10.0, 18.0), (12.0, 22.0)]):
        for name, seconds in (("Random", vanilla), ("Ours_LR", learned)):
            about = config(name, inner__compile="off", seed=number)
            write_run(tmp_path / f"{name}{number}", about, {"loss/test": [1.0] * 4}, seconds={"total": seconds})
    study = collect([tmp_path])
    ((_, figure),) = next(entry for entry in FIGURES if entry.name == "runtimes").make(study)
    (panel,) = figure.axes
    assert [text.get_text().strip() for text in panel.texts] == ["1.00 (n = 2)", "2.00 (n = 2)"]
    np.testing.assert_allclose(panel.lines[1].get_xdata(), [16.0 / 9.0, 20.0 / 9.0])  # training alone, over 9 s
    rows = results.runtimes(study).rows
    assert [(row["directories"], row["lowest"], row["highest"]) for row in rows] == [
        (2, pytest.approx(8.0 / 9.0), pytest.approx(10.0 / 9.0)),
        (2, pytest.approx(16.0 / 9.0), pytest.approx(20.0 / 9.0)),
    ]
