"""What is chosen of a study for tables and figures."""

from pathlib import Path

import pytest
from logs import NAN, config, write_run

from hyperopt_id.analysis import selection
from hyperopt_id.analysis.collect import collect

LOSSES = {"loss/test": [[2.0, 4.0], [1.0, 3.0]]}


def test_the_usual_setting_is_the_one_that_most_runs_share(tmp_path: Path):
    for algorithm in ("Random", "Baydin", "Ours_LR"):
        write_run(tmp_path / algorithm, config(algorithm), LOSSES)
    many = {"loss/test": [[1.0] * 5]}
    write_run(tmp_path / "wide", config("Random", space__lr__sample=[1e-6, 10.0]), many)
    write_run(tmp_path / "short", config("Ours_LR", inner__updates=2), many)
    usual = selection.usual(collect([tmp_path]), "uci_energy")
    assert [(name, len(runs)) for name, runs in usual.items()] == [("Random", 2), ("Baydin", 2), ("Ours_LR", 2)]
    ours = selection.differences(usual["Ours_LR"], collect([tmp_path]).of("uci_energy", "Ours_LR"))
    assert ours == "hyper-updates = 4"
    said = list(selection.remarks(collect([tmp_path])))
    assert said[1] == "UCI Energy, Ours WD+LR: 2 settings; shown is hyper-updates = 4 (table variants has all)"


def test_of_equal_settings_that_of_the_study_is_usual(tmp_path: Path):
    engine = {"hypergradient__engine": "neumann"}
    for terms in (2, 5, 7):
        about = config("Ours_LR", **engine, hypergradient__terms=terms)
        write_run(tmp_path / str(terms), about, {"loss/test": [[1.0] * terms]})
    write_run(
        tmp_path / "fraction", config("Ours_LR", **engine, task__validation_fraction=0.5), {"loss/test": [[1.0] * 5]}
    )
    found = collect([tmp_path])
    assert selection.usual(found, "uci_energy")["Ours_LR"].terms == 5
    of = selection.fractions(found, "uci_energy")
    assert [(name, len(kinds["Ours_LR"])) for name, kinds in of.items()] == [("standard", 5), ("0.5", 5)]


def test_batches_are_made_of_the_runs_that_validate(tmp_path: Path):
    losses = {"loss/test": [[3.0, 1.0, 2.0, 9.0]], "loss/validation": [[0.3, 0.2, 0.1, NAN]]}
    write_run(tmp_path / "v", config("Random_Validation"), losses)
    usual = selection.usual(collect([tmp_path]), "uci_energy")
    assert list(usual) == ["Random_Validation", "Random_3Batched"]
    assert usual["Random_3Batched"].weights.tolist() == [0.0, 0.25, 0.75, 0.0]
    assert list(selection.drawn(usual)) == ["Random_Validation", "Random_3Batched"]
    write_run(tmp_path / "r", config("Random"), LOSSES)
    assert list(selection.drawn(selection.usual(collect([tmp_path]), "uci_energy"))) == ["Random", "Random_3Batched"]


def test_long_horizons_meet_rivals_that_trained_as_long(tmp_path: Path):
    long = {"inner__steps_per_update": 20, "inner__updates": 3, "inner__reset": True}
    write_run(tmp_path / "long", config("LongDiffThroughOpt_Standalone", **long), LOSSES)
    write_run(tmp_path / "usual", config("Ours_LR_Momentum"), {"loss/test": [[1.0] * 9]})
    write_run(tmp_path / "short", config("Ours_LR_Momentum", inner__updates=2), LOSSES)
    found = selection.long_horizon(collect([tmp_path]), "uci_energy")
    assert {name: [len(r) for r in kinds.values()] for name, kinds in found.items()} == {
        "LongDiffThroughOpt_Standalone": [2, 2]
    }
    assert [runs.length for runs in found["LongDiffThroughOpt_Standalone"].values()] == [20, 20]
    assert [name for name, kinds in selection.by_dataset(collect([tmp_path])) for name in kinds] == ["Ours_LR_Momentum"]


def test_times_are_compared_of_runs_that_trained_alone_and_were_not_compiled(tmp_path: Path):
    for algorithm in ("Random", "Ours_LR"):
        write_run(tmp_path / algorithm, config(algorithm), {"loss/test": [[1.0] * 9]})
        write_run(tmp_path / f"{algorithm}_eager", config(algorithm, inner__compile="off"), {"loss/test": [1.0]})
    found = selection.timed(collect([tmp_path]), "uci_energy")
    assert {name: len(runs) for name, runs in found.items()} == {"Random": 1, "Ours_LR": 1}
    assert all(map(selection.measured, found.values()))


@pytest.mark.parametrize("changed", [{}, {"inner__compile": "off"}])
def test_times_of_populations_are_no_measurement(tmp_path: Path, changed):
    for algorithm in ("Random", "Ours_LR"):
        write_run(tmp_path / algorithm, config(algorithm, **changed), LOSSES)
    found = selection.timed(collect([tmp_path]), "uci_energy")
    assert list(found) == ["Random", "Ours_LR"]
    assert not any(map(selection.measured, found.values()))


def test_rivals_of_another_length_are_said(tmp_path: Path):
    long = {"inner__steps_per_update": 20, "inner__updates": 3}
    write_run(tmp_path / "long", config("LongDiffThroughOpt_Medium", **long), LOSSES)
    write_run(tmp_path / "usual", config("Ours_LR_Momentum"), LOSSES)
    assert list(selection.remarks(collect([tmp_path]))) == [
        "UCI Energy, Medium Diff-through-Opt: no rival trained for its 60 steps; compared are runs of 40"
    ]


def test_a_landscape_lies_below_trajectories_with_the_same_momentum(tmp_path: Path):
    moves = {**LOSSES, "hyper/weight_decay": [[0.1, 0.1], [0.2, 0.2]]}
    drawn, fixed = ({"space__momentum": {"init": 0.5, "sample": sample, "tune": []}} for sample in ([0.0, 1.0], "none"))
    write_run(tmp_path / "few", config("Random", **drawn), LOSSES)
    write_run(tmp_path / "many", config("Random", **fixed), {"loss/test": [[1.0] * 5]})
    write_run(tmp_path / "other", config("Ours_LR", **drawn), {name: [[1.0] * 9] for name in moves})
    write_run(tmp_path / "alike", config("Ours_LR", **fixed), moves)
    ground, learned = selection.landscape(collect([tmp_path]), "uci_energy")
    assert (len(ground), len(learned)) == (5, 2)
