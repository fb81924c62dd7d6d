"""What is found below a folder, and what is chosen of it for tables and figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logs import NAN, EventLog, config, published, write_run, write_search
from short_runs import train

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


# event runs: a study by the published code, and populations of this package


def write_published(directory: Path, algorithm: str, number: int, test: float, **changed: Any) -> None:
    """A finished run of 30 steps, with a validation loss as high as its test loss."""
    log = EventLog(directory)
    for tag in ("Loss/Test", "Loss/Validation"):
        log.scalar(tag, 30, test)
    log.close()
    about = published(algorithm, **changed)
    about["config_dicts"]["network_weight"]["lr"] = -0.01 * number
    (directory / "config.json").write_text(json.dumps(about))


def test_what_a_published_search_has_started_is_no_start(tmp_path: Path):
    """Bayesian optimization trains `Random_Validation`, below the folder of its log; Ray Tune trains anything."""
    for number in range(4):
        write_published(tmp_path / "ICLR uci_energy" / f"{number}", "Random_Validation", number, 4.0 + number)
        repetition = tmp_path / "ICLR BayesOpt_uci_energy" / "Repeat_1"
        write_published(repetition / f"{number}", "Random_Validation", number, 0.1)
        write_published(tmp_path / "PBT_Raw" / f"{number}", "Random_Validation", number, 0.2, _ray_tune_config=True)
    (repetition / "log.json").write_text('{"target": -1.0}')
    found = study(tmp_path)
    assert [sorted(kind.final("loss/test").tolist()) for kind in found.kinds] == [[4.0, 5.0, 6.0, 7.0]]
    assert found.remarks == (
        "runs that searches by the published code have started, no independent starts, left out: "
        f"{repetition / '0'} and 7 more",
    )


def test_published_runs_of_several_experiments_are_several_kinds(tmp_path: Path):
    """Of the same settings: ten starts from the usual ranges, twelve from others. The experiment with the most runs is
    shown."""
    for number in range(10):
        for algorithm in ("Random", "Ours_LR"):
            write_published(tmp_path / "ICLR uci_energy" / f"{algorithm} {number}", algorithm, number, 1.0)
    for number in range(12):
        write_published(tmp_path / "ICLR ProofOfConcept" / f"{number}", "Random", number, 9.0)
    write_published(tmp_path / "ICLR ProofOfConcept" / "ours", "Ours_LR", 0, 9.0)
    write_published(tmp_path / "Baydin" / "one", "Baydin", 0, 2.0)
    found = study(tmp_path)
    usual = selection.usual(found, "uci_energy")
    assert {name: set(runs.final("loss/test")) for name, runs in usual.items()} == {
        "Random": {1.0},
        "Baydin": {2.0},
        "Ours_LR": {1.0},
    }
    shown = "2 settings; shown is group = ICLR uci_energy (table variants has all)"
    assert list(selection.remarks(found)) == [f"UCI Energy, {name}: {shown}" for name in ("Random", "Ours WD+LR")]
    assert [len(runs) for runs in found.of("uci_energy", "Random")] == [12, 10]


def test_published_algorithms_share_a_setting_whatever_folders_they_lie_in(tmp_path: Path):
    """A folder for each, with two runs; of one there are three more in another setting, which no other has. It does not
    matter either which of them evaluate all the validation data."""
    for number in range(2):
        for algorithm, whole in (("Lorraine", True), ("Ours_LR", False)):
            about = {"batch_size": 50, "full_batch_validation_evaluations": whole}
            write_published(tmp_path / algorithm / f"{number}", algorithm, number, 1.0, **about)
    for number in range(3):
        about = {"batch_size": 40, "full_batch_validation_evaluations": True}
        write_published(tmp_path / "Lorraine, small batches" / f"{number}", "Lorraine", number, 9.0, **about)
    usual = selection.usual(study(tmp_path), "uci_energy")
    assert {name: runs.final("loss/test").tolist() for name, runs in usual.items()} == {
        "Lorraine": [1.0, 1.0],
        "Ours_LR": [1.0, 1.0],
    }


def test_trajectories_lie_over_the_landscape_of_their_own_experiment(tmp_path: Path):
    for group, random, learned in (("main", 2, 3), ("concept", 4, 1)):
        for number in range(random):
            write_published(tmp_path / group / f"r{number}", "Random", number, 9.0)
        for number in range(learned):
            directory = tmp_path / group / f"o{number}"
            write_published(directory, "Ours_LR", number, 1.0)
            log = EventLog(directory, "events.out.tfevents.2000.host")
            log.scalar("Hyperparameter/Weight_Decay", 30, 0.1)
            log.close()
    ground, trajectories = selection.landscape(study(tmp_path), "uci_energy")
    assert (len(ground), len(trajectories)) == (4, 1)


def test_the_published_sensitivity_study_is_one_grid(tmp_path: Path):
    """Its cells lie in folders of their own; one more run at (10, 5) lies elsewhere."""
    for steps, terms in ((10, 1), (10, 2), (10, 5)):
        folder = tmp_path / "Sensitivity" / f"Update{steps}_Rollback{terms}"
        engine = {"class": "NeumannHypergradientOptimiser", "hyperparameter_rollback_distance": terms}
        dicts = {**published()["config_dicts"], "hyperparameter_wrapper": engine}
        write_published(folder / "run", "Ours_LR_Momentum", 0, float(terms), config_dicts=dicts)
    write_published(tmp_path / "uci_energy" / "run", "Ours_LR_Momentum", 0, 9.0)
    (cells,) = grids.sensitivity(study(tmp_path), "uci_energy").values()
    assert {cell: runs.final("loss/test").item() for cell, runs in cells.items()} == {
        (10, 1): 1.0,
        (10, 2): 2.0,
        (10, 5): 5.0,
    }


def test_nothing_is_selected_by_the_loss_of_one_batch(tmp_path: Path):
    """Batches of 50 of 78 rows, but for the runs that evaluate all of them."""
    for number in range(3):
        for algorithm, whole in (("Random_Validation", True), ("Ours_LR", False)):
            directory = tmp_path / "group" / f"{algorithm} {number}"
            about = {"batch_size": 50, "full_batch_validation_evaluations": whole}
            write_published(directory, algorithm, number, 1.0 + number, **about)
    usual = selection.usual(study(tmp_path), "uci_energy")
    assert list(usual) == ["Random_Validation", "Random_3Batched", "Ours_LR"]
    assert usual["Random_Validation"].validation.tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(usual["Ours_LR"].validation).all()
    assert study(tmp_path).remarks == (
        "their Loss/Validation is of a batch (no full_batch_validation_evaluations), so nothing is selected of them: "
        f"{tmp_path / 'group' / 'Ours_LR 0'} and 2 more",
    )
    for file in (tmp_path / "group").glob("Random_Validation */config.json"):
        file.write_text(json.dumps(published("Random_Validation", batch_size=50)))
    assert list(selection.usual(study(tmp_path), "uci_energy")) == ["Random_Validation", "Ours_LR"]


@pytest.mark.parametrize("count", [3, 33])
def test_populations_without_reports_are_read_by_their_members_or_said(tmp_path: Path, count: int):
    run = train(tmp_path / "run", f"population.runs={count}", "inner.updates=2", "report.splits=[validation,test]")
    expected = collect([tmp_path]).kinds[0].final("loss/test")
    (run / "metrics.jsonl").unlink()
    found = study(tmp_path)
    if count == 3:
        (runs,) = found.kinds
        np.testing.assert_array_equal(runs.final("loss/test"), expected.astype(np.float32))
        assert found.remarks == ()
    else:
        assert found.kinds == ()
        assert found.remarks == (
            f"no metrics.jsonl, and TensorBoard has quantiles over the members alone, left out: {run}",
        )


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
