"""Coordinate checks: flat under μP and u-μP, growing under the standard parametrization."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="figures need it")
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import coordinate_check as check

WIDTHS = {"mlp": (64, 256, 1024), "cnn": (64, 128, 256), "transformer": (64, 128, 256)}


def test_everything_that_configs_allow_is_measured():
    pairs = {(case.optimizer, case.parametrization) for case in check.cases("mlp")}
    assert pairs == {*((o, how) for o in ("adam", "sgd") for how in ("standard", "mup")), ("adam", "umup")}
    assert {case.parametrization for case in check.cases("cnn")} == {"standard", "mup"}


@pytest.mark.parametrize(
    "case", [case for name in WIDTHS for case in check.cases(name)], ids=lambda case: "-".join(case)
)
def test_activations_grow_with_the_width_under_the_standard_parametrization_alone(case):
    *hidden, output = check.measure(case, WIDTHS[case.model], seeds=2).slopes().values()
    if case.parametrization == "standard":
        assert max(*hidden, output) > 0.7, (hidden, output)
    else:
        assert max(map(abs, hidden)) < 0.2, hidden
        assert abs(output) < 0.3, output


def test_the_figure_of_a_coordinate_check(tmp_path, capsys):
    short = ["--widths", "64", "96", "--seeds", "1", "--steps", "20"]  # more than an epoch
    assert check.main(["--models", "mlp", *short, "--out", str(tmp_path)]) == 0
    assert {file.suffix for file in tmp_path.iterdir()} == {".pdf", ".png"}
    printed = capsys.readouterr().out
    assert printed.startswith("mlp, standard, Adam: slopes after 20 steps: layer 1 ")
    assert "nan" not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--widths", "64"], "--widths: given [64]; a slope needs two or more"),
        (["--widths", "0", "64"], "--widths: given [0, 64]; a slope needs"),
        (["--seeds", "0"], "--steps, --seeds: given 5 and 0; allowed: 1 or more"),
        (["--models", "transformer", "--widths", "65", "66"], "embedding 65 must be a multiple of heads 4"),
    ],
)
def test_a_mistake_is_one_line(options, message, tmp_path, capsys):
    assert check.main([*options, "--out", str(tmp_path)]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert message in error
    assert not list(tmp_path.iterdir())
