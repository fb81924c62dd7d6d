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
    assert check.main(["--models", "mlp", "--widths", "64", "96", "--seeds", "1", "--out", str(tmp_path)]) == 0
    assert {file.suffix for file in tmp_path.iterdir()} == {".pdf", ".png"}
    assert capsys.readouterr().out.startswith("mlp, standard, Adam: slopes after 5 steps: layer 1 ")
