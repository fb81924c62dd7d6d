"""The transfer check: how it finds the best rate, what it makes of run directories, and that it repeats nothing."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from short_runs import CONFIGS

from hyperopt_id.telemetry.trace import read_trace

pytest.importorskip("matplotlib", reason="figures need it")
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import transfer_check as check
from transfer_results import optimum

WIDTHS, SEEDS = (4, 8), 2
TINY = ["inner.steps=20", "task.batch_size=50", "threads=1"]


# The best rate


def test_a_parabola_by_hand():
    """Losses 3, 1, 2 at x = 0, 1, 2: the vertex of 1.5 x² - 3.5 x + 3 is at 7/6."""
    assert optimum({1.0: 3.0, 2.0: 1.0, 4.0: 2.0, 8.0: 9.0}) == pytest.approx(2.0 ** (7 / 6), rel=1e-12)


@pytest.mark.parametrize("center", [-0.49, 0.0, 0.3])
def test_of_a_parabola_the_best_rate_is_exact(center):
    losses = {0.01 * 2.0**k: 0.4 + 0.02 * (k - center) ** 2 for k in range(-3, 4)}
    assert optimum(losses) == pytest.approx(0.01 * 2.0**center, rel=1e-10)


@pytest.mark.parametrize(
    "losses",
    [{1.0: 3.0, 2.0: 1.0, 4.0: np.nan}, {2.0: 1.0, 4.0: 2.0}, {1.0: 2.0, 2.0: 1.0}, {1.0: np.nan, 2.0: 1.0, 4.0: 2.0}],
    ids=["divergence above", "nothing below", "nothing above", "divergence below"],
)
def test_without_two_neighbors_the_best_rate_is_the_lowest_itself(losses):
    assert optimum(losses) == 2.0


@pytest.mark.parametrize("best", [-6, -1, 0, 4])
@pytest.mark.parametrize("divergence", [2, 99], ids=["diverging above", "finite"])
def test_the_search_ends_with_two_rates_on_either_side_of_the_lowest_and_asks_once(best, divergence):
    asked = []

    def loss_at(rate: float) -> np.ndarray:
        asked.append(rate)
        k = np.log2(rate)
        return np.full(2, np.nan if k > min(best, 0) + divergence else abs(k - best))

    found = check.search(loss_at, begin=1.0)
    assert sorted(asked) == list(found)  # each once
    means = {rate: losses.mean() for rate, losses in found.items()}
    lowest = min(means, key=lambda rate: np.nan_to_num(means[rate], nan=np.inf))
    assert [rate / lowest for rate in found if 0.25 <= rate / lowest <= 4.0] == [0.25, 0.5, 1.0, 2.0, 4.0]
    if divergence == 99:
        assert lowest == 2.0**best


def test_a_search_without_a_lowest_rate_ends():
    found = check.search(lambda rate: np.array([-rate]), begin=1.0)
    assert max(found) == check.FAR


# Run directories


def arguments(out: Path, *options: str) -> list[str]:
    widths, data = [str(width) for width in WIDTHS], str(CONFIGS / "digits.yaml")
    sizes = ["--widths", *widths, "--seeds", str(SEEDS), "--layers", "1", "--out", str(out)]
    return ["-c", data, *sizes, *options, "-s", *TINY]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transfer") / "out"
    assert check.main(arguments(folder, "--parametrizations", "mup")) == 0
    return folder


def rows(out: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Transfer by parametrization, and what was found by parametrization and width."""
    tables = []
    for text in (out / "transfer_check.md").read_text().split("\n\n"):
        head, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.strip().splitlines()]
        tables.append([dict(zip(head, line)) for line in lines])
    return tables[0], tables[1]


def final_losses(directory: Path) -> list[float]:
    return json.loads((directory / "summary.json").read_text())["final"]["loss/validation"]


def of_width(out: Path, width: int) -> dict[float, float]:
    """Mean loss by rate, as the run directories have it."""
    folders = (out / "runs" / f"mup_{width}").glob("lr_*")
    configs = {folder: json.loads((folder / "config.json").read_text()) for folder in folders}
    return {config["space"]["lr"]["init"]: sum(final_losses(f)) / SEEDS for f, config in configs.items()}


def test_the_table_is_what_the_runs_say(out):
    (transfer,), found = rows(out)
    for row, width in zip(found, WIDTHS, strict=True):
        powers = {rate: loss for rate, loss in of_width(out, width).items() if np.log2(rate) % 1.0 == 0.0}
        assert float(row["best rate"]) == pytest.approx(optimum(powers), rel=0.006)
        tuned = out / "runs" / f"mup_{width}" / "Ours_LR"
        final = final_losses(tuned)
        rates = read_trace(tuned)[1]["lr"][:, int(np.argmin(final))]
        assert rates[0] in np.array(check.STARTS, dtype=np.float32)
        assert float(row["rate of Ours_LR"]) == pytest.approx(np.prod(rates) ** (1 / len(rates)), rel=0.006)
        assert float(row["its loss"]) == pytest.approx(min(final), rel=0.006)
    ratio = float(found[0]["rate of Ours_LR"]) / float(found[1]["best rate"])
    assert float(transfer["Ours_LR at 4 over best at 8"]) == pytest.approx(ratio, rel=0.02)
    assert transfer["within a factor 2"] == ("yes" if 0.5 <= ratio <= 2.0 else "no")


def test_the_widest_model_is_trained_with_what_the_narrowest_has_learned(out):
    (transfer,), found = rows(out)
    losses = of_width(out, WIDTHS[-1])
    (rate,) = [rate for rate in losses if np.log2(rate) % 1.0 != 0.0]
    assert rate == pytest.approx(float(found[0]["rate of Ours_LR"]), rel=0.006)
    assert float(transfer["loss at 8 with it"]) == pytest.approx(losses[rate], rel=0.006)


def test_the_same_command_again_trains_nothing_and_writes_the_same(out):
    trained = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    before = (out / "transfer_check.md").read_text()
    assert check.main(arguments(out, "--parametrizations", "mup")) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")} == trained
    assert (out / "transfer_check.md").read_text() == before


def test_the_figure_is_there(out):
    assert {file.name for file in out.glob("*.p*")} == {"transfer_check.pdf", "transfer_check.png"}


# The runs


def setting(out: Path, parametrization: str, *options: str, width: int = WIDTHS[-1]) -> Any:
    return check.setting(check.parser().parse_args([*arguments(out), *options]), parametrization, width)


@pytest.mark.parametrize("algorithm", ["Random_TrainingSetOnly", "Ours_LR"])
def test_at_the_base_width_standard_and_mup_are_the_same_from_the_same_weights(algorithm, tmp_path):
    """μP starts the output layer at zero; with the same starting weights there is no other difference."""
    weights, base, found = tmp_path / "start.npz", min(WIDTHS), {}
    start = setting(tmp_path, "mup", width=base).task().init(0)[0]
    np.savez(weights, **{name: value.numpy() for name, value in start.items()})
    for name in ("standard", "mup"):
        where = setting(tmp_path, name, f"task.model.init_from={weights}", width=base)
        directory = check.train(where, where.config(algorithm), algorithm)
        (report,) = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
        found[name] = {**report, "time": 0.0}, read_trace(directory)[1]["lr"].tolist()
    assert found["standard"] == found["mup"]


def test_wider_they_are_not(tmp_path):
    weights = tmp_path / "start.npz"
    np.savez(weights, **{k: value.numpy() for k, value in setting(tmp_path, "mup").task().init(0)[0].items()})
    same = f"task.model.init_from={weights}"
    curves = [check.losses(setting(tmp_path, name, same), 0.01, SEEDS) for name in ("standard", "mup")]
    assert (curves[0] != curves[1]).all()


def test_rates_of_unit_scaled_weights_are_in_units_of_the_base_width(tmp_path):
    where, base = setting(tmp_path, "umup"), min(WIDTHS)
    first, _ = check.learn(where).ends
    assert where.unit == base
    assert first == pytest.approx(min((base * start for start in check.STARTS), key=lambda rate: abs(rate - first)))


MISTAKES = [
    (["-c", str(CONFIGS / "cifar10.yaml")], "task.model.sizes: missing; a transfer check is of an mlp"),
    (["--seeds", "0"], "--set: population.runs: given 0"),
    (["--widths", "0"], "task.model.sizes: given [784, 0, 0, 0, 10]; allowed: one or more widths"),
]


@pytest.mark.parametrize("options,message", MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_one_line_and_nothing_is_trained(options, message, tmp_path, capsys):
    assert check.main([*options, "-s", *TINY, "--out", str(tmp_path)]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert message in error
    assert not list(tmp_path.rglob("metrics.jsonl"))
