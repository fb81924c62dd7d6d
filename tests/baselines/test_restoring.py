"""A search goes on from whatever a kill, or a loss of power, has left of Ray's notes and of its checkpoints."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from short_runs import TINY, reports
from short_runs import config as files
from short_searches import killed, lines, timeless

from baselines import asha, pbt, restoring
from hyperopt_id import config as configs
from hyperopt_id.telemetry import is_finished, read_json

DATA = ["report.every=1", "space.lr={bounds: none, sample: [1e-9, 1e-1]}"]
ASHA = ["--trials", "6", "--max-steps", "9", "--grace", "9"]  # none ends early: whatever their order, all train alike
SETTINGS = {"trials": 6, "max_steps": 9, "grace": 9}


def cut(directory: Path, pattern: str) -> None:
    """Leave half of the newest file."""
    file = max(directory.glob(pattern))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def gone(directory: Path, pattern: str) -> None:
    for file in directory.glob(pattern):
        file.unlink()


def fewer(directory: Path, pattern: str) -> None:
    """As if Ray had noted its trials before the last one began."""
    file = max(directory.glob(pattern))
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, "trial_data": known["trial_data"][:-1]}))


LOSSES: dict[str, Callable[[Path], None]] = {
    "no state of the trials": partial(gone, pattern="ray/experiment_state-*"),
    "half a state of the trials": partial(cut, pattern="ray/experiment_state-*"),
    "an older state of the trials": partial(fewer, pattern="ray/experiment_state-*"),
    "no state of the generator": partial(gone, pattern="ray/basic-variant-state-*"),
    "half a state of the generator": partial(cut, pattern="ray/basic-variant-state-*"),
    "half a tuner": partial(cut, pattern="ray/tuner.pkl"),
    "nothing": lambda directory: shutil.rmtree(directory / "ray"),
}


@pytest.fixture(scope="module")
def begun(local_ray, tmp_path_factory):
    directory = tmp_path_factory.mktemp("asha") / "search"
    killed("baselines.asha", [*files("digits"), *ASHA, "-s", *TINY, *DATA], directory, 9)
    return directory


def models(found: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """What was logged of each, without what depends on the order of trials."""
    ordered = ("evaluation", "gradients", "seconds")
    return {(line["run"], line["step"]): {k: v for k, v in line.items() if k not in ordered} for line in found}


def copied(begun: Path, directory: Path) -> Path:
    """The same search as if it had been begun there."""
    shutil.copytree(begun, directory)
    (directory / "ray" / restoring.PLACE).write_text(json.dumps(str(directory / "ray")))
    return directory


@pytest.mark.parametrize("loss", LOSSES)
def test_notes_that_are_not_whole_are_not_restored_and_checkpoints_are_kept(begun, tmp_path, loss, caplog):
    directory = copied(begun, tmp_path / "search")
    assert restoring.prepare(directory)
    LOSSES[loss](directory)
    before = {path.name: restoring.newest(directory, path.name) for path in (directory / "runs").iterdir()}
    assert not restoring.prepare(directory)
    assert ("its trials go on from checkpoints" in caplog.text) == (loss != "nothing")
    assert [path.name for path in (directory / "ray").iterdir()] == [restoring.PLACE]
    for name, tree in before.items():
        kept = restoring.newest(directory, name)
        assert (kept and kept["reports"]) == (tree and tree["reports"])
    assert not restoring.prepare(directory)


def test_a_search_without_notes_comes_to_what_it_would_have_come_to(begun, tmp_path):
    """What was finished stays as it is; a checkpoint that is damaged costs what it held."""
    directory = copied(begun, tmp_path / "search")
    before, given = lines(directory), configs.load([directory / "config.yaml"])
    finished = {path: path.read_bytes() for path in (directory / "runs").glob("*/summary.json")}
    assert finished
    gone(directory, "ray/experiment_state-*")
    unfinished = next(run.name for run in (directory / "runs").iterdir() if not is_finished(run))
    for file in (directory / "ray" / unfinished).glob("checkpoint_*/*.pt"):
        file.write_bytes(file.read_bytes()[:-100])
    summary = asha.search(given, directory, **SETTINGS)
    assert timeless({p: json.loads(text) for p, text in finished.items()}) == timeless(
        {path: read_json(path) for path in finished}
    )
    alone = asha.search(given, tmp_path / "alone", **SETTINGS)
    found, whole = lines(directory), lines(tmp_path / "alone")
    assert found[: len(before)] == before
    assert models(found) == models(whole)
    assert len(found) == len(whole) == 6 * 3
    assert models(summary["repetitions"]) == models(alone["repetitions"])
    for run in (directory / "runs").iterdir():
        losses = [
            [line["loss/test"] for line in reports(place / "runs" / run.name)]
            for place in (directory, tmp_path / "alone")
        ]
        assert losses[0] == losses[1]
    assert not (directory / "ray").exists()
    assert not (directory / "saved").exists()


def test_a_population_without_notes_goes_on_from_its_checkpoints(local_ray, tmp_path):
    directory = tmp_path / "search"
    options = ["--population", "4", "--max-steps", "36", "--interval", "6", *files("digits")]
    before = killed("baselines.pbt", [*options, "-s", *TINY, "inner.updates=16"], directory, 12)
    gone(directory, "ray/experiment_state-*")
    reached = {name: restoring.newest(directory, name) for name in (f"trial_{m:04d}" for m in range(4))}
    pbt.search(configs.load([directory / "config.yaml"]), directory, population=4, max_steps=36, interval=6)
    found = lines(directory)
    assert found[: len(before)] == before
    assert len({(line["run"], line["explored"], line["step"]) for line in found}) == len(found)
    logged = {(line["step"], line["loss/validation"]) for line in found}
    for name, tree in reached.items():
        run = directory / "runs" / name
        told = [(line["step"], line["loss/validation"]) for line in reports(run)]
        assert [step for step, _ in told] == list(range(6, 37, 6))
        assert logged.issuperset(told)
        new = [line for line in found[len(before) :] if line["run"] == f"runs/{name}" and "cloned" not in line]
        if tree is not None and new:  # its own weights went on where they had been saved
            assert all(line["step"] > tree["update"] * 3 for line in new if line["explored"] == tree["explored"])
