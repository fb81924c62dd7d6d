"""Data are known by their content: a run goes on with the same bytes wherever they lie, and with no others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from short_runs import assert_same_run, interrupted, into

from baselines import random_search
from baselines.arguments import main
from hyperopt_id import cli
from hyperopt_id.tasks.data import Dataset
from hyperopt_id.tasks.digests import digest, file_digest

CSV = """
task: {name: csv, path: table.csv, splits: [20, 10, 10], batch_size: 5, model: {sizes: [2, 3, 1]}}
inner: {rule: sgd, steps_per_update: 2, updates: 4, compile: "off"}
space: {lr: {init: 0.01, tune: [global]}, weight_decay: {init: 0.001}, momentum: {init: 0.5}}
hypergradient: {engine: one_step}
report: {every: 1, checkpoint_every: 1, keep: 20}
log: {progress: none}
threads: 1
"""


def table(folder: Path, seed: int) -> Path:
    folder.mkdir(exist_ok=True)
    np.savetxt(folder / "table.csv", np.random.default_rng(seed).normal(size=(40, 3)), delimiter=",")
    return folder


@pytest.fixture
def whole(tmp_path, monkeypatch):
    monkeypatch.chdir(table(tmp_path / "home", seed=0))
    (tmp_path / "csv.yaml").write_text(CSV)
    assert cli.train(["-c", str(tmp_path / "csv.yaml"), *into(tmp_path / "whole")]) == 0
    return tmp_path / "whole"


def identity(directory: Path) -> dict:
    return json.loads((directory / "identity.json").read_text())


def earlier(directory: Path) -> None:
    """Make a run one of an earlier version, which said nowhere whose it is."""
    (directory / "identity.json").unlink()
    for path in (directory / "checkpoints").glob("step_*.pt"):
        record = torch.load(path, weights_only=True)
        del record["identity"], record["reports"], record["digest"]
        torch.save(record, path)


def test_another_table_under_the_same_path_is_refused_and_nothing_is_lost(whole, tmp_path, monkeypatch, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=2)
    monkeypatch.chdir(table(tmp_path / "elsewhere", seed=1))
    before = (cut / "metrics.jsonl").read_text()
    assert cli.train(["--resume", str(cut)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"had SHA-256 {identity(whole)['digests']['data'][:12]}" in error
    assert (cut / "metrics.jsonl").read_text() == before


def test_the_same_bytes_under_another_path_go_on(whole, tmp_path, monkeypatch):
    cut = interrupted(whole, tmp_path / "cut", update=2)
    moved = table(tmp_path / "moved", seed=0) / "table.csv"
    moved.rename(moved.with_name("renamed.csv"))
    (tmp_path / "home" / "table.csv").unlink()
    config = ["-c", str(cut / "config.yaml"), "-s", f"task.path={moved.with_name('renamed.csv')}"]
    assert cli.train(["--resume", str(cut), *config]) == 0
    assert_same_run(whole, cut)
    assert identity(cut) == identity(whole)


def test_a_finished_run_is_not_taken_for_one_on_another_table(whole, tmp_path, monkeypatch, capsys):
    search = ["-c", str(tmp_path / "csv.yaml"), *into(tmp_path / "search"), "--trials", "2", "--resume"]
    assert main(random_search.run, search[:-1]) == 0
    capsys.readouterr()
    monkeypatch.chdir(table(tmp_path / "elsewhere", seed=1))
    for status in (cli.train(["--resume", str(whole)]), main(random_search.run, search)):
        assert status == 2
    assert capsys.readouterr().err.count("was made with other data") == 2
    (tmp_path / "elsewhere" / "table.csv").unlink()  # which nothing needs any more
    assert cli.train(["--resume", str(whole)]) == 0
    monkeypatch.chdir(tmp_path / "home")
    for status in (cli.train(["--resume", str(whole)]), main(random_search.run, search)):
        assert status == 0


def test_a_run_of_an_earlier_version_is_known_by_its_path(whole, tmp_path, monkeypatch, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=2)
    earlier(cut)
    assert cli.train(["--resume", str(cut), "-c", str(cut / "config.yaml"), "-s", "task.path=other.csv"]) == 2
    assert "task.path: table.csv -> other.csv" in capsys.readouterr().err
    assert cli.train(["--resume", str(cut)]) == 0
    assert "of an earlier version, which kept no digest" in capsys.readouterr().err


def test_a_config_that_was_edited_in_a_run_of_an_earlier_version_is_noticed(whole, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=2)
    earlier(cut)
    text = (cut / "config.yaml").read_text()
    (cut / "config.yaml").write_text(text.replace("seed: 0", "seed: 3"))
    assert cli.train(["--resume", str(cut)]) == 2
    assert "which config.json tells of: seed: 0 -> 3; undo the change" in capsys.readouterr().err.splitlines()[-1]
    (cut / "config.json").write_text("{}")  # which no run needs
    (cut / "config.yaml").write_text(text)
    assert cli.train(["--resume", str(cut)]) == 0
    assert_same_run(whole, cut)


def test_a_replay_of_a_run_of_an_earlier_version_says_that_its_data_are_not_known(whole, capsys):
    (whole / "identity.json").unlink()
    assert cli.replay([str(whole)]) == 0
    assert "of an earlier version, which kept no digest" in capsys.readouterr().err


def test_a_replay_is_on_the_data_of_the_run(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(table(tmp_path / "elsewhere", seed=1))
    assert cli.replay([str(whole)]) == 2
    assert "made with other data" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "home")
    assert cli.replay([str(whole)]) == 0


def test_a_replay_starts_from_the_weights_of_the_run_unless_it_is_given_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(table(tmp_path / "home", seed=0))
    (tmp_path / "csv.yaml").write_text(CSV)
    for name, value in (("weights.npz", 0.1), ("others.npz", 0.2)):
        shapes = {"layers.0.weight": (3, 2), "layers.0.bias": (3,), "layers.1.weight": (1, 3), "layers.1.bias": (1,)}
        arrays: dict[str, Any] = {key: np.full(shape, value, np.float32) for key, shape in shapes.items()}
        np.savez(name, **arrays)
    file = "task.model.init_from=weights.npz"
    assert cli.train(["-c", str(tmp_path / "csv.yaml"), *into(tmp_path / "run"), "-s", file]) == 0
    assert cli.replay([str(tmp_path / "run"), "-n", "same"]) == 0
    assert cli.replay([str(tmp_path / "run"), "-n", "others", "-s", "task.model.init_from=others.npz"]) == 0
    Path("others.npz").replace("weights.npz")
    capsys.readouterr()
    assert cli.replay([str(tmp_path / "run")]) == 2
    assert "the file task.model.init_from had SHA-256" in capsys.readouterr().err


def test_a_digest_is_of_type_shape_and_bytes():
    values = torch.arange(6.0)
    alike = (values.clone(), values.numpy().copy(), values.reshape(2, 3).flatten())
    assert {digest(value) for value in alike} == {digest(values)}
    others = (values.reshape(2, 3), values.double(), values.int(), -values, values.flip(0), values[:5])
    assert len({digest(values), *map(digest, others), digest("values"), digest(values, values)}) == 9
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(values.bfloat16()) == digest(values.bfloat16().clone())


def test_a_digest_does_not_depend_on_what_is_made_of_the_data(tmp_path):
    splits = {"train": (0, 4)}
    data = Dataset(torch.arange(4.0), torch.arange(4), splits, source=digest("raw"))
    assert data.to("cpu", torch.float64).digest == data.digest == digest("raw")
    assert Dataset(data.inputs, data.targets, splits).digest == digest(data.inputs, data.targets)
    (tmp_path / "file").write_bytes(b"bytes")
    assert len(file_digest(tmp_path / "file")) == 64
    with pytest.raises(ValueError, match="no regular file"):
        file_digest(tmp_path)


def test_a_replay_without_a_name_makes_one_directory(whole, tmp_path):
    assert cli.replay([str(whole), "-s", "log.name=null", "-l", str(tmp_path / "logs"), "-g", "group"]) == 0
    assert len(list((tmp_path / "logs" / "group").iterdir())) == 1


def test_reports_are_not_written_through_a_link(whole, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=2)
    other = (cut / "metrics.jsonl").rename(tmp_path / "other.jsonl")
    (cut / "metrics.jsonl").symlink_to(other)
    before = other.read_bytes()
    assert cli.train(["--resume", str(cut)]) == 2
    assert "symbolic link" in capsys.readouterr().err
    assert other.read_bytes() == before
