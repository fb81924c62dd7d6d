"""A config is completed in a directory whatever is there: nothing, part of the run, all of it, or another run."""

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from short_runs import CONFIGS, ENGINES, POPULATIONS, arguments, assert_same_run, interrupted, summary, train

from hyperopt_id import cli, launch
from hyperopt_id.config import load


def config_of(directory):
    return load([directory / "config.yaml"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("launch") / "whole", *ENGINES["neumann"], *POPULATIONS["vmap"])


def test_a_new_directory_is_filled(whole, tmp_path):
    assert launch.complete(config_of(whole), tmp_path / "new")["final"].keys() == summary(whole)["final"].keys()
    assert_same_run(whole, tmp_path / "new")


@pytest.mark.parametrize("update", [0, 3])
def test_an_interrupted_run_is_continued(update, whole, tmp_path):
    cut = interrupted(whole, tmp_path / "cut", update)
    launch.complete(config_of(whole), cut)
    assert_same_run(whole, cut)


def test_a_run_that_stopped_before_its_first_checkpoint_begins_anew(whole, tmp_path):
    cut = interrupted(whole, tmp_path / "cut", 0)
    shutil.rmtree(cut / "checkpoints")
    launch.complete(config_of(whole), cut)
    assert_same_run(whole, cut)


def test_a_finished_run_is_returned_untouched(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert launch.complete(config_of(whole), whole) == summary(whole)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_another_run_is_refused(whole):
    other = dataclasses.replace(config_of(whole), seed=5)
    with pytest.raises(ValueError, match=r"made with another config: seed: 0 -> 5; start a new run"):
        launch.complete(other, whole)


def test_given_starts_equal_the_same_starts_drawn(tmp_path):
    """A population may be cut anywhere, and its starts may be stated instead of drawn."""
    drawn = train(tmp_path / "drawn", *ENGINES["neumann"], "population={runs: 3, lift: loop}")
    starts = launch.starting_values(config_of(drawn))
    part = {name: values[1:] for name, values in starts.items()}
    given = ["population={runs: 2, lift: loop, sample: false}", f"population.start={part}", "seed=1"]
    assert cli.train(arguments(tmp_path / "given", *ENGINES["neumann"], *given)) == 0
    for name, values in summary(drawn)["final"].items():
        assert summary(tmp_path / "given")["final"][name] == values[1:]


def test_starts_in_the_same_second_have_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.time, "strftime", lambda _: "now")
    config = load([CONFIGS / "digits.yaml"], [f"log.dir={tmp_path}"])
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: launch.new_directory(config), range(8)))
    assert len(set(made)) == 8
    assert all(directory.is_dir() for directory in made)


@pytest.mark.parametrize("option", ["-n", "-g"])
@pytest.mark.parametrize("name", ["", " ", "..", "../run", "/run", "a\nb", "a/../../b", ".run", "trace", "member_1"])
def test_a_name_is_a_name(option, name, tmp_path, capsys):
    command = ["-c", str(CONFIGS / "digits.yaml"), "-l", str(tmp_path / "runs"), option, name]
    assert cli.train(command) == 2
    assert capsys.readouterr().err.startswith(f"error: log.{'name' if option == '-n' else 'group'}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [("-g", "group/run"), ("-g", "group/run/deeper")])
def test_a_run_in_a_run_directory_is_refused(place, tmp_path, capsys):
    (tmp_path / "group" / "run").mkdir(parents=True)
    (tmp_path / "group" / "run" / "metrics.jsonl").touch()
    assert cli.train(["-c", str(CONFIGS / "digits.yaml"), "-l", str(tmp_path), *place]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'group' / 'run'} is a run directory")
