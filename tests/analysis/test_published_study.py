"""A study by the published code: what is found of it, and what is chosen for tables and figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from logs import EventLog, published

from hyperopt_id.analysis import grids, selection
from hyperopt_id.analysis.collect import collect


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
    found = collect([tmp_path])
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
    found = collect([tmp_path])
    usual = selection.usual(found, "uci_energy")
    assert {name: set(runs.final("loss/test")) for name, runs in usual.items()} == {
        "Random": {1.0},
        "Baydin": {2.0},
        "Ours_LR": {1.0},
    }
    shown = "2 settings; shown is group = ICLR uci_energy (table variants has all)"
    assert list(selection.remarks(found)) == [f"UCI Energy, {name}: {shown}" for name in ("Random", "Ours WD+LR")]
    assert [len(runs) for runs in found.of("uci_energy", "Random")] == [12, 10]


def test_groups_of_one_name_in_several_places_are_told_apart(tmp_path: Path):
    """By as much of their paths as differs, from whichever folders they are read."""
    folders = [tmp_path / experiment for experiment in ("with_momentum", "without_momentum")]
    for folder, runs in zip(folders, (1, 2)):
        for number in range(runs):
            write_published(folder / "uci_energy" / "Random" / f"{number}", "Random", number, float(runs))
    shown = "group = without_momentum/uci_energy/Random"
    for found in (collect([tmp_path]), collect(folders)):
        assert sorted(kind.final("loss/test").tolist() for kind in found.kinds) == [[1.0], [2.0, 2.0]]
        assert list(selection.remarks(found)) == [
            f"UCI Energy, Random: 2 settings; shown is {shown} (table variants has all)"
        ]


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
    usual = selection.usual(collect([tmp_path]), "uci_energy")
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
    ground, trajectories = selection.landscape(collect([tmp_path]), "uci_energy")
    assert (len(ground), len(trajectories)) == (4, 1)


def test_the_published_sensitivity_study_is_one_grid(tmp_path: Path):
    """Its cells lie in folders of their own; one more run at (10, 5) lies elsewhere."""
    for steps, terms in ((10, 1), (10, 2), (10, 5)):
        folder = tmp_path / "Sensitivity" / f"Update{steps}_Rollback{terms}"
        engine = {"class": "NeumannHypergradientOptimiser", "hyperparameter_rollback_distance": terms}
        dicts = {**published()["config_dicts"], "hyperparameter_wrapper": engine}
        write_published(folder / "run", "Ours_LR_Momentum", 0, float(terms), config_dicts=dicts)
    write_published(tmp_path / "uci_energy" / "run", "Ours_LR_Momentum", 0, 9.0)
    (cells,) = grids.sensitivity(collect([tmp_path]), "uci_energy").values()
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
    usual = selection.usual(collect([tmp_path]), "uci_energy")
    assert list(usual) == ["Random_Validation", "Random_3Batched", "Ours_LR"]
    assert usual["Random_Validation"].validation.tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(usual["Ours_LR"].validation).all()
    assert collect([tmp_path]).remarks == (
        "their Loss/Validation is of a batch (no full_batch_validation_evaluations), so nothing is selected of them: "
        f"{tmp_path / 'group' / 'Ours_LR 0'} and 2 more",
    )
    for file in (tmp_path / "group").glob("Random_Validation */config.json"):
        file.write_text(json.dumps(published("Random_Validation", batch_size=50)))
    assert list(selection.usual(collect([tmp_path]), "uci_energy")) == ["Random_Validation", "Ours_LR"]
