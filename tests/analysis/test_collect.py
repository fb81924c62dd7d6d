"""What is found below a folder, and what is chosen of it for tables and figures."""

import json
from pathlib import Path

import numpy as np
import pytest
from logs import NAN, EventLog, config, published, write_run, write_search

from hyperopt_id.analysis import grids, selection
from hyperopt_id.analysis.collect import Study, collect

LOSSES = {"loss/test": [[2.0, 4.0], [1.0, 3.0]]}


def study(tmp_path: Path) -> Study:
    return collect([tmp_path])


def test_runs_searches_and_events_are_found_at_any_depth(tmp_path: Path):
    write_run(tmp_path / "a" / "b" / "first", config("Ours_LR"), LOSSES)
    write_run(tmp_path / "a" / "second", config("Ours_LR", seed=2), LOSSES)
    search = write_search(tmp_path / "c" / "search", "BayesOpt", [(0, 1.0, 2.0)], config("Random_Validation"))
    write_run(search / "runs" / "one", config("Random_Validation"), LOSSES)  # chosen, not an independent start
    events = EventLog(tmp_path / "d" / "2021 run")
    events.scalar("Loss/Test", 30, 7.0)
    events.close()
    (tmp_path / "d" / "2021 run" / "config.json").write_text(json.dumps(published()))
    for ignored in ("checkpoints", "trace", "member_00", "members_p90", "cache", ".hidden"):
        write_run(tmp_path / ignored, config("Baydin"), LOSSES)
    found = study(tmp_path)
    assert [(k.algorithm, len(k)) for k in found.kinds] == [("Ours_LR", 4), ("Ours_LR_Momentum", 1)]
    assert [search.method for search in found.searches] == ["BayesOpt"]
    assert (found.datasets, found.remarks) == (["uci_energy"], ())


def test_a_run_directory_is_a_folder_of_runs_and_counts_once(tmp_path: Path):
    run = write_run(tmp_path / "run", config("Ours_LR"), LOSSES)
    assert len(collect([run, run, tmp_path]).kinds[0]) == 2


def test_what_is_not_finished_is_left_out_and_said(tmp_path: Path):
    write_run(tmp_path / "done", config("Ours_LR"), LOSSES)
    for name in ("going", "on"):
        write_run(tmp_path / name, config("Baydin"), LOSSES, finished=False)
    write_search(tmp_path / "s", "PBT", [(0, 1.0, 2.0)], config("Random")).joinpath("summary.json").unlink()
    found = study(tmp_path)
    assert [k.algorithm for k in found.kinds] == ["Ours_LR"]
    assert found.searches == ()
    assert found.remarks == (f"not finished, left out: {tmp_path / 'going'} and 2 more",)


def test_runs_that_are_there_twice_are_said(tmp_path: Path):
    for name in "ab":
        write_run(tmp_path / name, config("Ours_LR"), LOSSES)
    assert study(tmp_path).remarks == (
        "2 runs are there more than once (same config, seed and start) and are counted once",
    )


def test_a_config_that_is_only_there_as_yaml_is_said_and_nothing_is_selected(tmp_path: Path):
    run = write_run(tmp_path / "data" / "mine", config("Ours_LR"), {**LOSSES, "loss/validation": LOSSES["loss/test"]})
    (run / "config.json").rename(run / "config.yaml")
    found = study(tmp_path)
    assert [(kind.dataset, kind.algorithm) for kind in found.kinds] == [("data", "mine")]
    assert np.isnan(found.kinds[0].validation).all()
    assert found.remarks == (
        f"no config.json beside config.yaml, named after folders and without what is selected: {run}",
    )


def test_searches_are_looked_at_as_often_as_their_runs_reported(tmp_path: Path):
    """The last report is worse than the one before, which a method that looks at every report would have kept."""
    search = write_search(tmp_path / "s", "BayesOpt", [(0, 0.9, 9.0), (0, 0.8, 8.0)], config("Random_Validation"))
    reports = [
        {"step": 20, "time": 1.0, "loss/validation": [0.5, 0.7], "loss/test": [5.0, 1.0]},
        {"step": 40, "time": 2.0, "loss/validation": [0.9, 0.8], "loss/test": [9.0, 8.0]},
    ]
    (search / "runs/all/metrics.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
    (found,) = study(tmp_path).searches
    assert [line["gradients"] for line in found.evaluations[0]] == [50.0, 100.0, 150.0, 200.0]
    assert found.final("loss/test").tolist() == [5.0]
    (search / "runs/all/metrics.jsonl").unlink()
    without = study(tmp_path)
    assert without.searches[0].final("loss/test").tolist() == [8.0]
    assert without.remarks == (f"the runs of a search are not there, so that only what it logged counts: {search}",)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "there is no folder .+nowhere"), ("empty", "empty holds no runs: nothing below it")],
)
def test_a_folder_without_runs_is_named(tmp_path: Path, name: str, message: str):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    EventLog(tmp_path / "empty" / "events").close()  # without a config, nobody knows of what
    with pytest.raises(ValueError, match=message):
        collect([tmp_path / name])


# choices


def test_the_usual_setting_is_the_one_that_most_runs_share(tmp_path: Path):
    for algorithm in ("Random", "Baydin", "Ours_LR"):
        write_run(tmp_path / algorithm, config(algorithm), LOSSES)
    many = {"loss/test": [[1.0] * 5]}
    write_run(tmp_path / "wide", config("Random", space__lr__sample=[1e-6, 10.0]), many)
    write_run(tmp_path / "short", config("Ours_LR", inner__updates=2), many)
    usual = selection.usual(study(tmp_path), "uci_energy")
    assert [(name, len(runs)) for name, runs in usual.items()] == [("Random", 2), ("Baydin", 2), ("Ours_LR", 2)]
    ours = selection.differences(usual["Ours_LR"], study(tmp_path).of("uci_energy", "Ours_LR"))
    assert ours == "hyper-updates = 4"
    said = list(selection.remarks(study(tmp_path)))
    assert said[1] == "UCI Energy, Ours WD+LR: 2 settings; shown is hyper-updates = 4 (table variants has all)"


def test_of_equal_settings_that_of_the_study_is_usual(tmp_path: Path):
    engine = {"hypergradient__engine": "neumann"}
    for terms in (2, 5, 7):
        about = config("Ours_LR", **engine, hypergradient__terms=terms)
        write_run(tmp_path / str(terms), about, {"loss/test": [[1.0] * terms]})
    write_run(
        tmp_path / "fraction", config("Ours_LR", **engine, task__validation_fraction=0.5), {"loss/test": [[1.0] * 5]}
    )
    found = study(tmp_path)
    assert selection.usual(found, "uci_energy")["Ours_LR"].terms == 5
    of = selection.fractions(found, "uci_energy")
    assert [(name, len(kinds["Ours_LR"])) for name, kinds in of.items()] == [("standard", 5), ("0.5", 5)]


def test_batches_are_made_of_the_runs_that_validate(tmp_path: Path):
    losses = {"loss/test": [[3.0, 1.0, 2.0, 9.0]], "loss/validation": [[0.3, 0.2, 0.1, NAN]]}
    write_run(tmp_path / "v", config("Random_Validation"), losses)
    usual = selection.usual(study(tmp_path), "uci_energy")
    assert list(usual) == ["Random_Validation", "Random_3Batched"]
    assert usual["Random_3Batched"].weights.tolist() == [0.0, 0.25, 0.75, 0.0]
    assert list(selection.drawn(usual)) == ["Random_Validation", "Random_3Batched"]
    write_run(tmp_path / "r", config("Random"), LOSSES)
    assert list(selection.drawn(selection.usual(study(tmp_path), "uci_energy"))) == ["Random", "Random_3Batched"]


def test_long_horizons_meet_rivals_that_trained_as_long(tmp_path: Path):
    long = {"inner__steps_per_update": 20, "inner__updates": 3, "inner__reset": True}
    write_run(tmp_path / "long", config("LongDiffThroughOpt_Standalone", **long), LOSSES)
    write_run(tmp_path / "usual", config("Ours_LR_Momentum"), {"loss/test": [[1.0] * 9]})
    write_run(tmp_path / "short", config("Ours_LR_Momentum", inner__updates=2), LOSSES)
    found = selection.long_horizon(study(tmp_path), "uci_energy")
    assert {name: [len(r) for r in kinds.values()] for name, kinds in found.items()} == {
        "LongDiffThroughOpt_Standalone": [2, 2]
    }
    assert [runs.length for runs in found["LongDiffThroughOpt_Standalone"].values()] == [20, 20]
    assert [name for name, kinds in selection.by_dataset(study(tmp_path)) for name in kinds] == ["Ours_LR_Momentum"]


def test_times_are_compared_of_runs_that_trained_alone_and_were_not_compiled(tmp_path: Path):
    for algorithm in ("Random", "Ours_LR"):
        write_run(tmp_path / algorithm, config(algorithm), {"loss/test": [[1.0] * 9]})
        write_run(tmp_path / f"{algorithm}_eager", config(algorithm, inner__compile="off"), {"loss/test": [1.0]})
    found = selection.timed(study(tmp_path), "uci_energy")
    assert {name: len(runs) for name, runs in found.items()} == {"Random": 1, "Ours_LR": 1}
    assert all(map(selection.measured, found.values()))


@pytest.mark.parametrize("changed", [{}, {"inner__compile": "off"}])
def test_times_of_populations_are_no_measurement(tmp_path: Path, changed):
    for algorithm in ("Random", "Ours_LR"):
        write_run(tmp_path / algorithm, config(algorithm, **changed), LOSSES)
    found = selection.timed(study(tmp_path), "uci_energy")
    assert list(found) == ["Random", "Ours_LR"]
    assert not any(map(selection.measured, found.values()))


def test_rivals_of_another_length_are_said(tmp_path: Path):
    long = {"inner__steps_per_update": 20, "inner__updates": 3}
    write_run(tmp_path / "long", config("LongDiffThroughOpt_Medium", **long), LOSSES)
    write_run(tmp_path / "usual", config("Ours_LR_Momentum"), LOSSES)
    assert list(selection.remarks(study(tmp_path))) == [
        "UCI Energy, Medium Diff-through-Opt: no rival trained for its 60 steps; compared are runs of 40"
    ]


def test_a_landscape_lies_below_trajectories_with_the_same_momentum(tmp_path: Path):
    moves = {**LOSSES, "hyper/weight_decay": [[0.1, 0.1], [0.2, 0.2]]}
    drawn, fixed = ({"space__momentum": {"init": 0.5, "sample": sample, "tune": []}} for sample in ([0.0, 1.0], "none"))
    write_run(tmp_path / "few", config("Random", **drawn), LOSSES)
    write_run(tmp_path / "many", config("Random", **fixed), {"loss/test": [[1.0] * 5]})
    write_run(tmp_path / "other", config("Ours_LR", **drawn), {name: [[1.0] * 9] for name in moves})
    write_run(tmp_path / "alike", config("Ours_LR", **fixed), moves)
    ground, learned = selection.landscape(study(tmp_path), "uci_energy")
    assert (len(ground), len(learned)) == (5, 2)


def test_searches_side_by_side_are_repetitions_of_one(tmp_path: Path):
    about = config("Random_TrainingSetOnly")
    for number in range(3):
        write_search(tmp_path / "pbt" / f"repetition_{number}", "PBT", [(0, 1.0, 2.0 + number)], about)
    write_search(tmp_path / "more" / "pbt", "PBT", [(0, 1.0, 9.0), (1, 1.0, 9.0)], about)
    (search,) = selection.searches(study(tmp_path), "uci_energy").values()
    assert search.final("loss/test").tolist() == [2.0, 3.0, 4.0]
    assert len(search.evaluations) == 3


# grids over (T, K)


def write_grid(folder: Path, engine: str, vectors, **changed) -> None:
    """Runs of two seeds with hypergradients [2, 2] for each (T, K)."""
    for (steps, terms), values in vectors.items():
        about = config("Ours_LR" if engine == "neumann" else "DiffThroughOpt", hypergradient__engine=engine, **changed)
        about["hypergradient"] |= {"terms": terms, "window": terms}
        about["inner"] |= {"steps_per_update": steps, "updates": 1}
        curves = {"hypergradient/lr": [[v[0] for v in values]], "hypergradient/weight_decay": [[v[1] for v in values]]}
        write_run(folder / f"{engine}_{steps}_{terms}", about, {"loss/test": [[1.0, 2.0 * terms]], **curves})


def test_errors_and_cosines_of_hypergradients_by_hand(tmp_path: Path):
    write_grid(
        tmp_path,
        "neumann",
        {(1, 1): [(3.0, 4.0), (1.0, 0.0)], (2, 1): [(0.0, 5.0), (2.0, 0.0)], (2, 2): [(1.0, 1.0)] * 2},
    )
    write_grid(tmp_path, "unroll", {(1, 1): [(3.0, 4.0), (0.0, 2.0)], (2, 2): [(3.0, 4.0), (4.0, 0.0)]})
    found = grids.accuracies(study(tmp_path), "uci_energy")
    assert {name: list(cells) for name, cells in found.items()} == {
        "K steps": [(1, 1), (2, 2)],
        "T steps": [(1, 1), (2, 1), (2, 2)],
    }
    same = found["K steps"][1, 1]
    np.testing.assert_allclose(same.errors, [0.0, 5.0**0.5 / 2.0])
    np.testing.assert_allclose(same.distances, [0.0, 1.0])
    np.testing.assert_allclose(same.parts["lr"], [0.0, NAN])
    whole = found["T steps"][2, 1]
    np.testing.assert_allclose(whole.errors, [10.0**0.5 / 5.0, 0.5])
    np.testing.assert_allclose(whole.distances, [0.2, 0.0], atol=1e-15)
    np.testing.assert_allclose(whole.parts["lr"], [1.0, 0.5])


def test_hypergradients_of_other_starts_or_later_updates_are_not_compared(tmp_path: Path):
    vectors = {(1, 1): [(3.0, 4.0), (1.0, 0.0)]}
    write_grid(tmp_path / "a", "neumann", vectors)
    write_grid(tmp_path / "a", "unroll", vectors, seed=2)
    assert grids.accuracies(study(tmp_path / "a"), "uci_energy") == {}
    for engine in ("neumann", "unroll"):
        about = config("Ours_LR", hypergradient__engine=engine)
        curves = {"loss/test": [[1.0, 2.0]] * 2, "hypergradient/lr": [[1.0, 2.0]] * 2}
        write_run(tmp_path / "b" / engine, about | {"algorithm": engine}, curves, every=2)  # hyperparameters have moved
        held = {**about, "algorithm": engine, "meta": {"rule": "none"}}
        write_run(tmp_path / "c" / engine, held, curves, every=2)
    assert grids.accuracies(study(tmp_path / "b"), "uci_energy") == {}
    found = grids.accuracies(study(tmp_path / "c"), "uci_energy")  # a window of None is that of all T = 10 steps
    assert {name: [(cell, len(a.errors)) for cell, a in of.items()] for name, of in found.items()} == {
        "T steps": [((10, 5), 4)]
    }


def test_the_grid_is_the_largest_set_that_differs_in_t_and_k_alone(tmp_path: Path):
    vectors = {(steps, terms): [(1.0, 1.0)] * 2 for steps in (1, 2) for terms in (1, 2)}
    write_grid(tmp_path / "grid", "neumann", vectors)
    write_grid(tmp_path / "held", "neumann", {**vectors, (3, 3): [(1.0, 1.0)] * 2}, meta__rule="none")
    write_grid(tmp_path / "other", "neumann", {(10, 5): [(1.0, 1.0)] * 2}, task__validation_fraction=0.5)
    found = grids.sensitivity(study(tmp_path), "uci_energy")
    assert {engine: sorted(cells) for engine, cells in found.items()} == {"neumann": sorted(vectors)}
