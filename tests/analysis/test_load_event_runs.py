"""Runs that left events: those of the published code, and populations of this package."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from logs import NAN, EventLog, log_steps, published
from short_runs import train

from hyperopt_id.analysis.load import load_run
from hyperopt_id.analysis.load_event_runs import load_event_run, members
from hyperopt_id.analysis.load_events import event_files, read_events


def write_published(directory: Path, updates: int = 3, **changed: object) -> Path:
    log = EventLog(directory)
    log_steps(log, range(10 * updates + 1))
    log.close()
    (directory / "config.json").write_text(json.dumps(published(updates=updates, **changed)))
    return directory


def test_a_run_of_the_published_code(tmp_path: Path):
    runs = load_event_run(write_published(tmp_path / "run"))
    assert runs is not None
    assert (runs.dataset, runs.algorithm, runs.terms, runs.steps_per_update) == (
        "uci_energy",
        "Ours_LR_Momentum",
        5,
        10,
    )
    assert runs.steps.tolist() == list(range(31))
    assert runs.final("loss/test").tolist() == [np.float32(1.0 + 1.0 / 31)]
    assert runs.metric == "unnormalized_loss/test"
    assert {name: value.item() for name, value in runs.starts.items()} == {
        "lr": 0.01,
        "weight_decay": 1e-4,
        "momentum": 0.5,
    }
    assert runs.cost["total"] == pytest.approx(30.0)
    assert not runs.diverged.any()


def test_a_baydin_run_updates_its_hyperparameters_at_every_step(tmp_path: Path):
    """Its config has T = 10 and three updates, of which the published code makes T = 1 and 30 updates."""
    about = published("Baydin", force_single_network_weight_step=True, validation_proportion=0)
    about["config_dicts"]["hyperparameter_wrapper"] = {"class": "BaydinHypergradientDescent"}
    directory = write_published(tmp_path / "run")
    (directory / "config.json").write_text(json.dumps(about))
    runs = load_event_run(directory)
    assert (runs.steps_per_update, runs.settings["inner.updates"], runs.length) == (1, 30, 30)
    assert runs.settings["hypergradient.engine"] == "one_step"


@pytest.mark.parametrize(
    ("dataset", "changed", "whole"),
    [
        ("UCI_Energy", {}, True),  # 78 rows, batches of 692
        ("UCI_Energy", {"batch_size": 78}, True),
        ("UCI_Energy", {"batch_size": 77}, False),
        ("FashionMNIST", {"batch_size": 50}, False),
        ("FashionMNIST", {"batch_size": 50, "full_batch_validation_evaluations": True}, True),
        ("PennTreebank", {"batch_size": 70}, False),
        ("PennTreebank", {"batch_size": 70, "full_batch_validation_evaluations": True}, True),
    ],
)
def test_a_validation_loss_is_of_a_batch_or_of_everything(tmp_path: Path, dataset: str, changed, whole: bool):
    log = EventLog(tmp_path)
    log.scalar("Loss/Validation", 30, 0.5)
    log.close()
    about = published(**changed)
    about["config_dicts"]["dataset"]["class"] = dataset
    (tmp_path / "config.json").write_text(json.dumps(about))
    runs = load_event_run(tmp_path)
    assert runs.validates == whole
    np.testing.assert_array_equal(runs.validation, [0.5 if whole else NAN])
    assert runs.final("loss/validation").tolist() == [0.5]


@pytest.mark.parametrize(
    ("changed", "algorithm", "terms"),
    [
        ({"algorithm": "LongDiffThroughOpt"}, "LongDiffThroughOpt_Medium", 5),
        (
            {"algorithm": "LongDiffThroughOpt", "reset_model_after_hyperparameter_update": True},
            "LongDiffThroughOpt_Standalone",
            5,
        ),
        ({"algorithm": "Random"}, "Random", 5),
    ],
)
def test_names_of_the_published_code(tmp_path: Path, changed, algorithm, terms):
    runs = load_event_run(write_published(tmp_path / "run", **changed))
    assert runs is not None
    assert (runs.algorithm, runs.terms) == (algorithm, terms)


def test_windows_and_missing_engines_of_the_published_code(tmp_path: Path):
    about = published("DiffThroughOpt")
    about["config_dicts"]["hyperparameter_wrapper"] = {"class": "ExactHypergradientOptimiser"}
    for name, window, expected in (("cut", 5, 5), ("whole", -1, 10)):
        directory = write_published(tmp_path / name)
        (directory / "config.json").write_text(json.dumps(about | {"reset_loop_before_hyperparameter_step": window}))
        assert load_event_run(directory).terms == expected
    del about["config_dicts"]["hyperparameter_wrapper"]
    (directory / "config.json").write_text(json.dumps(about | {"validation_proportion": 0}))
    runs = load_event_run(directory)
    assert runs.terms is None
    assert np.isnan(runs.validation).all()


def test_a_run_that_did_not_come_to_its_end_is_none(tmp_path: Path):
    directory = write_published(tmp_path / "run")
    (directory / "config.json").write_text(json.dumps(published(updates=4)))
    assert load_event_run(directory) is None
    (directory / "config.json").write_text(json.dumps(published(updates=4, total_step_limit=30)))
    assert load_event_run(directory) is not None


def test_a_run_that_ends_without_a_finite_loss_has_diverged(tmp_path: Path):
    log = EventLog(tmp_path)
    log_steps(log, range(30))
    for tag, number in (("Loss/Training", math.inf), ("Loss/Test", NAN), ("Loss/Validation", NAN)):
        log.scalar(tag, 30, number, 1031.0)
    log.close()
    (tmp_path / "config.json").write_text(json.dumps(published()))
    runs = load_event_run(tmp_path)
    assert runs.diverged.tolist() == [True]
    assert np.isnan(runs.final("loss/test")).all()


def test_a_continued_run_counts_on(tmp_path: Path):
    """The second file repeats the last step of the first as its step 0, an hour later."""
    write_published(tmp_path / "run", updates=3)
    log = EventLog(tmp_path / "run", "events.out.tfevents.2000.host")
    for step in range(21):
        log.scalar("Loss/Test", step, 50.0 + step, 5000.0 + step)
    log.close()
    (tmp_path / "run" / "config_checkpoint.json").write_text(json.dumps(published(updates=2)))
    runs = load_event_run(tmp_path / "run")
    assert runs.steps.tolist() == list(range(51))
    curve = runs.curve("loss/test")[0]
    np.testing.assert_array_equal(curve[30:], np.arange(50.0, 71.0))
    assert curve[29] == pytest.approx(1.0 + 1.0 / 30)
    assert runs.times[0, -1] == pytest.approx(50.0, abs=2.0)


def test_an_event_run_of_this_package_needs_no_reports(tmp_path: Path):
    log = EventLog(tmp_path)
    log_steps(log, range(10, 50, 10))
    log.close()
    config = {"task": {"name": "digits"}, "algorithm": "Ours_LR", "inner": {"steps_per_update": 10, "updates": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config | {"start": {"lr": [0.5]}}))
    runs = load_event_run(tmp_path)
    assert (runs.dataset, runs.algorithm, runs.starts["lr"].tolist()) == ("digits", "Ours_LR", [0.5])
    assert list(runs.curves) == ["loss/train", "loss/test", "unnormalized_loss/test", "hyper/lr"]


def test_events_of_a_population_say_what_its_reports_say(tmp_path: Path):
    """Learning rates for each element, momentum for each tensor; events are float32, quantiles between their ranks."""
    tune = ["space.lr.tune=[element]", "space.weight_decay.tune=[global]", "space.momentum.tune=[tensor]"]
    engine = ["hypergradient={engine: neumann, terms: 3}", "population.runs=3", "seed=5"]
    run = train(tmp_path / "run", *tune, *engine)
    expected = load_run(run)
    runs = load_event_run(run)
    assert len(runs) == 3
    assert runs.seeds.tolist() == expected.seeds.tolist() == [5, 6, 7]
    assert runs.identities == expected.identities
    assert set(runs.curves) == set(expected.curves)
    np.testing.assert_array_equal(runs.steps, expected.steps)
    for name in runs.curves:
        between = 0.2 if name.startswith("hyper/lr") else 1e-6
        np.testing.assert_allclose(runs.curve(name), expected.curve(name), rtol=between, err_msg=name)
    (timing,) = runs.timings
    assert (timing.runs, timing.steps) == (3, 18)
    spans = [np.ptp(read_events(event_files(folder))["Loss/Training"].times) for folder in members(run)]
    assert runs.cost["total"] == pytest.approx(np.mean(spans))  # side by side: a third of the time is each one's
    np.testing.assert_allclose(runs.times[:, -1], np.array(spans) / 3.0)
    assert {k: v for k, v in runs.settings.items() if k != "source"} == expected.settings


def test_a_population_of_which_a_member_is_unfinished_is_none(tmp_path: Path):
    for member, last in ((0, 40), (1, 30)):
        log = EventLog(tmp_path / f"member_{member:02d}")
        log_steps(log, range(10, last + 1, 10))
        log.close()
    config = {"task": {"name": "digits"}, "algorithm": "Ours_LR", "inner": {"steps_per_update": 10, "updates": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_event_run(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"config\.json: is no JSON"),
        ("[]", r"config\.json: needs a mapping, found a list"),
        ("{}", r"holds TensorBoard events, but its config\.json does not name a data set"),
        ('{"config_dicts": {}}', r"config\.json: config_dicts: dataset is missing"),
    ],
)
def test_events_beside_a_config_of_something_else(tmp_path: Path, text: str, message: str):
    EventLog(tmp_path).close()
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_event_run(tmp_path)


def test_a_key_that_a_config_lacks_is_named(tmp_path: Path):
    about = published()
    del about["hyperparameter_steps"]
    EventLog(tmp_path).close()
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"config\.json: hyperparameter_steps is missing"):
        load_event_run(tmp_path)


def test_a_run_from_the_cache_is_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = write_published(tmp_path / "run")
    first = load_event_run(directory, tmp_path / "cache")
    monkeypatch.setattr("hyperopt_id.analysis.load_event_curves.read_events", None)
    second = load_event_run(directory, tmp_path / "cache")
    assert list(first.curves) == list(second.curves)
    for name in first.curves:
        np.testing.assert_array_equal(first.curve(name), second.curve(name))
    np.testing.assert_array_equal(first.times, second.times)
