"""A search goes on with the data that it began with, wherever they lie, and with no others."""

import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from short_searches import interrupted, lines, timeless

from baselines import asha, bayesopt
from hyperopt_id import config as configs
from hyperopt_id.telemetry import read_json

CSV = """
task: {name: csv, path: table.csv, splits: [20, 10, 10], batch_size: 5, model: {sizes: [2, 3, 1]}}
inner: {rule: sgd, steps_per_update: 2, updates: 4, compile: "off"}
space: {lr: {init: 0.01, sample: [1.0e-3, 1.0e-1]}, weight_decay: {init: 0.001}, momentum: {init: 0.5}}
report: {every: 2, checkpoint_every: 1}
log: {progress: none}
threads: 1
"""
OTHER = r"the search in .* was made with other data: the data had SHA-256 \w+\.\.\., here it is .*"


def table(folder: Path, seed: int) -> Path:
    folder.mkdir(exist_ok=True)
    np.savetxt(folder / "table.csv", np.random.default_rng(seed).normal(size=(40, 3)), delimiter=",")
    return folder


@pytest.fixture
def given(tmp_path, monkeypatch):
    """The config of a search on a table in the present folder."""
    monkeypatch.chdir(table(tmp_path / "home", seed=0))
    (tmp_path / "csv.yaml").write_text(CSV)
    return configs.load([tmp_path / "csv.yaml"])


def test_rounds_are_trained_on_the_same_data(given, tmp_path, monkeypatch):
    search = partial(bayesopt.search, evaluations=3, random=2)
    whole = search(given, tmp_path / "whole")
    cut = interrupted(tmp_path / "whole", tmp_path / "cut", 1)
    monkeypatch.chdir(table(tmp_path / "elsewhere", seed=1))
    with pytest.raises(ValueError, match=OTHER):
        search(given, cut)
    assert timeless(lines(cut)) == timeless(lines(tmp_path / "whole")[:2])  # the second had been trained
    moved = shutil.move(tmp_path / "home" / "table.csv", tmp_path / "moved.csv")
    renamed = configs.load([tmp_path / "csv.yaml"], [f"task.path={moved}"])
    assert timeless(search(renamed, cut)) == timeless(whole)


def test_trials_are_trained_on_the_same_data_and_say_which(local_ray, given, tmp_path, monkeypatch):
    search = partial(asha.search, given, tmp_path / "search", trials=2)
    search()
    own = read_json(tmp_path / "search" / "identity.json")["digests"]
    for run in (tmp_path / "search" / "runs").iterdir():
        identity, summary = read_json(run / "identity.json"), read_json(run / "summary.json")
        assert identity["digests"] == own
        assert identity["config"] == summary["config_hash"]
    (tmp_path / "search" / "summary.json").unlink()
    before = lines(tmp_path / "search")
    table(tmp_path / "home", seed=1)
    with pytest.raises(ValueError, match=OTHER) as error:
        search()
    assert re.fullmatch(OTHER, str(error.value))
    assert lines(tmp_path / "search") == before
