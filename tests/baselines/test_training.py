"""A training under a scheduler: what becomes of its run directory when it is ended."""

import os
import shutil

import numpy as np
import pytest
from short_runs import reports
from short_searches import config

from baselines import training
from hyperopt_id import config as configs
from hyperopt_id.telemetry import read_json
from hyperopt_id.telemetry.directory import write_json
from hyperopt_id.telemetry.trace import read_trace

STEP = 6  # of 18: where a scheduler ends it


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory as a trial leaves it that was ended after `STEP`, and had gone one report further."""
    directory = tmp_path_factory.mktemp("training") / "run"
    current = training.begin(training.open_workshop(config("report.every=1")), directory, 0)
    while training.advance(current)["step"] < STEP + 3:
        pass
    current.reports.close()
    write_json(directory / "summary.json", training.summary(current))
    return directory


def content(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def ended(trained, tmp_path_factory):
    directory = tmp_path_factory.mktemp("training") / "ended"
    shutil.copytree(trained, directory)
    training.end(directory, STEP)
    return directory


def test_an_ended_run_is_a_whole_one_of_so_many_steps(ended):
    assert configs.load([ended / "config.yaml"]).inner.total_steps == STEP
    assert [line["step"] for line in reports(ended)] == [3, 6]
    steps, trace = read_trace(ended)
    assert {len(rows) * steps for rows in trace.values()} == {STEP}
    assert read_json(ended / "config.json")["inner"]["updates"] == STEP // 3


@pytest.mark.parametrize("step", [STEP - 1, STEP + 6])
def test_what_a_run_does_not_tell_of_is_not_packed(trained, step):
    with pytest.raises(ValueError, match=rf"run has no report of step {step}$"):
        training.pack(trained, step, {})


@pytest.mark.parametrize("writes", range(8))
def test_an_end_that_is_interrupted_is_made_up_for(trained, ended, tmp_path, monkeypatch, writes):
    """After any number of files have been written: each is whole, and ending the run again makes it the same."""
    directory, original, left = tmp_path / "run", os.replace, [writes]
    shutil.copytree(trained, directory)

    def replace(*paths):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        original(*paths)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        training.end(directory, STEP)
    assert all(np.isfinite(rows).all() for rows in read_trace(directory)[1].values())
    monkeypatch.setattr(os, "replace", original)
    training.end(directory, STEP)
    half_written = {path for path in content(directory) if path.name.endswith(".tmp")}
    assert not half_written
    assert content(directory) == content(ended)
