"""The hyperparameter trace holds the values that training used, of every granularity, interrupted or not."""

import errno
import logging
import os
import resource
import shutil

import numpy as np
import pytest
import torch
from short_runs import CONFIGS, ENGINES, POPULATIONS, TINY, assert_same_run, interrupted, reports, train

from hyperopt_id import checkpoint, cli, experiment
from hyperopt_id.build.names import from_config
from hyperopt_id.config import load
from hyperopt_id.telemetry import Telemetry, trace
from hyperopt_id.telemetry.trace import open_trace, read_trace

EVERY_REPORT = ["report={every: 1, checkpoint_every: 2, trace_every: 1}"]
TENSORS = ("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias")
TUNE_ALL = [
    "space.lr.tune=[global]",
    "space.weight_decay.tune=[tensor]",
    "space.momentum.tune=[element]",
    "hypergradient={engine: neumann, terms: 2}",
]


@pytest.mark.parametrize("members", POPULATIONS)
def test_row_u_is_what_the_report_after_hyper_update_u_says(members, tmp_path):
    run = train(tmp_path / "run", *TUNE_ALL, *POPULATIONS[members], *EVERY_REPORT)
    steps, values = read_trace(run)
    assert steps == 3
    assert set(values) == {"lr", *(f"{name}/{k}" for name in ("weight_decay", "momentum") for k in TENSORS)}
    for report in reports(run)[:-1]:  # nothing is trained with the values after the last update
        row = report["update"]
        np.testing.assert_array_equal(values["lr"][row], np.float32(report["hyper/lr"]))
        for k in TENSORS:
            np.testing.assert_array_equal(values[f"weight_decay/{k}"][row], np.float32(report["hyper/weight_decay"][k]))
            element = values[f"momentum/{k}"][row]
            low = element.reshape(len(element), -1).min(1)
            np.testing.assert_array_equal(low, np.float32(report["hyper/momentum"][k]["min"]))


def test_row_0_is_where_hyperparameters_start(tmp_path):
    starts = {"lr": [0.1, 0.01], "momentum": [0.25, 0.75]}
    run = train(tmp_path / "run", *ENGINES["neumann"], "population.runs=2", f"population.start={starts}")
    _, values = read_trace(run)
    np.testing.assert_allclose(values["lr"][0], starts["lr"], rtol=1e-6)
    np.testing.assert_allclose(values["momentum/layers.0.weight"][0], starts["momentum"], rtol=1e-6)


def test_a_resumed_run_has_the_trace_of_an_uninterrupted_one(tmp_path):
    whole = train(tmp_path / "whole", *TUNE_ALL)
    cut = interrupted(whole, tmp_path / "cut", update=3)
    for path in (cut / "trace").rglob("*.npy"):
        np.load(path, mmap_mode="r+")[3:] = -1.0  # rows that are made again
    assert cli.train(["--resume", str(cut), "--progress", "none"]) == 0
    (_, left), (_, right) = read_trace(whole), read_trace(cut)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name])


def damaged(path, content):
    path.write_bytes(content)


TRACES = {  # what may have happened to the files of a trace -> is anything unknown then
    "nothing": (lambda trace: None, False),
    "gone": (shutil.rmtree, True),
    "one file gone": (lambda trace: (trace / "lr.npy").unlink(), True),
    "one file cut": (lambda trace: os.truncate(trace / "lr.npy", 100), True),
    "one file empty": (lambda trace: damaged(trace / "lr.npy", b""), True),
    "one file a pipe": (lambda trace: ((trace / "lr.npy").unlink(), os.mkfifo(trace / "lr.npy")), True),
    "one file of another form": (lambda trace: np.save(trace / "lr.npy", np.zeros((3, 1), np.float32)), True),
    "one file of objects": (lambda trace: np.save(trace / "lr.npy", np.array([{}]), allow_pickle=True), True),
    "trace.json gone": (lambda trace: (trace / "trace.json").unlink(), True),
    "trace.json empty": (lambda trace: damaged(trace / "trace.json", b""), True),
    "trace.json odd": (lambda trace: damaged(trace / "trace.json", b'{"steps_per_row": [0]}'), True),
    "trace.json of 0": (lambda trace: damaged(trace / "trace.json", b'{"steps_per_row": 0}'), True),
    "a file for the folder": (lambda trace: (shutil.rmtree(trace), damaged(trace, b"")), None),  # None: no trace then
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("traced") / "whole", *ENGINES["neumann"])


@pytest.mark.parametrize("damage", TRACES)
def test_no_trace_blocks_a_resume_and_unknown_rows_are_nan_and_not_replayed(damage, whole, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=3)
    change, unknown = TRACES[damage]
    change(cut / "trace")
    capsys.readouterr()
    assert cli.train(["--resume", str(cut)]) == 0
    assert_same_run(whole, cut)
    said = capsys.readouterr().err
    assert said.count("\n") == (unknown is not False)
    assert ("the trace of the first 3 hyper-updates is lost" in said) == (unknown is True)
    if unknown is None:
        assert "cannot be written" in said
        return
    (steps, left), (same_steps, right) = read_trace(whole), read_trace(cut)
    assert steps == same_steps
    np.testing.assert_array_equal(left["lr"][3:], right["lr"][3:])
    np.testing.assert_array_equal(right["lr"][:3], np.full((3, 1), np.nan) if unknown else left["lr"][:3])
    assert cli.replay([str(cut), "-n", "replayed"]) == (2 if unknown else 0)
    assert ("not known" in capsys.readouterr().err) == unknown


def exchanged(folder, others, *names):
    """Files of the trace of another run."""
    for name in names or [path.relative_to(others).as_posix() for path in others.rglob("*.npy")]:
        shutil.copyfile(others / name, folder / name)


def edited(folder, name="lr.npy", row=0):
    rows = np.load(folder / name)
    rows[row] *= 1.0000002  # a bit
    np.save(folder / name, rows)


FOREIGN = {  # what is in the trace of an unfinished run -> names of the files whose rows are unknown then
    "all of another run": (exchanged, "all"),
    "one file of another run": (lambda folder, others: exchanged(folder, others, "lr.npy"), "lr"),
    "a row that was edited": (lambda folder, others: edited(folder, "weight_decay.npy", 2), "weight_decay"),
    "a period of another run": (lambda folder, others: damaged(folder / "trace.json", b'{"steps_per_row": 6}'), "all"),
}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return train(tmp_path_factory.mktemp("traced") / "other", *ENGINES["neumann"], "space.lr.init=0.05", "seed=3")


@pytest.mark.parametrize("foreign", FOREIGN)
def test_rows_that_are_not_those_of_the_run_are_unknown_at_a_resume(foreign, whole, other, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=3)
    change, which = FOREIGN[foreign]
    change(cut / "trace", other / "trace")
    capsys.readouterr()
    assert cli.train(["--resume", str(cut)]) == 0
    assert_same_run(whole, cut)
    assert capsys.readouterr().err.count("the trace of the first 3 hyper-updates is lost") == 1
    (_, left), (_, right) = read_trace(whole), read_trace(cut)
    for name, rows in left.items():
        np.testing.assert_array_equal(right[name][3:], rows[3:])
        np.testing.assert_array_equal(right[name][:3], np.nan if which in ("all", name) else rows[:3])
    assert cli.replay([str(cut), "-n", "replayed"]) == 2
    assert "not known" in capsys.readouterr().err


def test_a_run_from_python_compares_the_rows_too(tmp_path, caplog):
    parts, plan = from_config(load([CONFIGS / "digits.yaml"], [*TINY, *ENGINES["neumann"]]))
    with Telemetry(tmp_path, {}, progress="none") as telemetry:
        experiment.run(parts, plan, telemetry)
    edited(tmp_path / "trace")
    (tmp_path / "checkpoints" / "step_000000006.pt").unlink()
    tree, update = checkpoint.load(tmp_path / "checkpoints")
    with Telemetry(tmp_path, {}, progress="none", resume_at=update) as telemetry:
        experiment.run(parts, plan, telemetry, resume=tree)
    assert "hyper-updates is lost (lr), so" in caplog.text


def test_unknown_rows_stay_known_as_unknown(whole, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=2)
    (cut / "trace" / "lr.npy").unlink()
    assert cli.train(["--resume", str(cut)]) == 0
    again = interrupted(cut, tmp_path / "again", update=4)
    capsys.readouterr()
    assert cli.train(["--resume", str(again)]) == 0
    assert capsys.readouterr().err == ""
    for name, rows in read_trace(cut)[1].items():
        np.testing.assert_array_equal(read_trace(again)[1][name], rows)


def test_a_checkpoint_of_an_earlier_version_takes_the_rows_that_are_there(whole, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=3)
    record = checkpoint.load_record(cut / "checkpoints")
    checkpoint.save(cut / "checkpoints", record["tree"], 3, 1, record["identity"], record["reports"])
    edited(cut / "trace")
    capsys.readouterr()
    assert cli.train(["--resume", str(cut)]) == 0
    assert capsys.readouterr().err == ""
    assert np.isfinite(read_trace(cut)[1]["lr"]).all()


def test_a_whole_trace_of_another_finished_run_is_not_replayed(whole, other, tmp_path, capsys):
    mixed = shutil.copytree(whole, tmp_path / "mixed")
    shutil.rmtree(mixed / "trace")
    shutil.copytree(other / "trace", mixed / "trace")
    assert cli.replay([str(mixed)]) == 2
    assert "is that of another run" in capsys.readouterr().err


@pytest.mark.parametrize("every", [0, 2, 3])
def test_a_resumed_run_keeps_the_period_of_its_trace(every, whole, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=3)
    assert cli.train(["--resume", str(cut), "-s", f"report.trace_every={every}"]) == 0
    assert "goes on with a row for every 1 hyper-updates, as it was begun" in capsys.readouterr().err
    (_, left), (_, right) = read_trace(whole), read_trace(cut)
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name])


def test_a_trace_begun_at_a_resume_has_unknown_rows_before_it(tmp_path):
    cut = interrupted(train(tmp_path / "whole", *TUNE_ALL, "report.trace_every=0"), tmp_path / "cut", update=3)
    assert cli.train(["--resume", str(cut), "-s", "report.trace_every=1"]) == 0
    assert np.isnan(read_trace(cut)[1]["lr"]).tolist() == [[True]] * 3 + [[False]] * 3


@pytest.mark.parametrize("edit", ["digest kept", "digest lost"])
@pytest.mark.parametrize("value", [0.0123, 1e30, -1.0])
def test_a_trace_that_was_edited_is_not_replayed(value, edit, whole, tmp_path, capsys):
    """Unless nothing can tell: a run of an earlier version has no digest, and its values may be possible."""
    edited = shutil.copytree(whole, tmp_path / "edited")
    np.load(edited / "trace" / "lr.npy", mmap_mode="r+")[2] = value
    if edit == "digest lost":
        (edited / "trace" / "trace.json").write_text('{"steps_per_row": 3}')
    unknown = edit == "digest lost" and value == 0.0123
    assert cli.replay([str(edited)]) == (0 if unknown else 2)
    said = capsys.readouterr().err
    why = "are not those that the run has written" if edit == "digest kept" else "its bounds are 1e-10 and 1"
    assert unknown or (said.startswith("error: the trace in") and why in said)


def test_a_trace_of_more_files_than_a_process_may_open(tmp_path):
    values = {"lr": {f"layer.{i}": torch.full((2,), float(i)) for i in range(200)}}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, hard))
    try:
        opened = open_trace(tmp_path, values, updates=3, steps_per_update=1, every=1)
        opened.write(2, values)
        _, read = read_trace(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(read) == 200
    assert all(read[f"lr/layer.{i}"].tolist() == [[0.0, 0.0], [0.0, 0.0], [i, i]] for i in range(200))


def test_a_full_disk_is_an_error_at_the_start_and_a_warning_later(tmp_path, monkeypatch, caplog):
    values = {"lr": torch.zeros(2)}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = open_trace(tmp_path, values, updates=3, steps_per_update=1, every=1)
    monkeypatch.setattr(os, "pwrite", full)
    opened.write(1, values)
    opened.write(2, values)
    assert caplog.text.count("No space left on device") == 1
    assert not (tmp_path / "trace" / "trace.json").exists()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        open_trace(tmp_path / "new", values, updates=3, steps_per_update=1, every=1)
    assert open_trace(tmp_path, values, updates=3, steps_per_update=1, every=1, update=2).every == 0


def test_fixed_hyperparameters_are_one_row(tmp_path):
    steps, values = read_trace(train(tmp_path / "run", *ENGINES["none"]))
    assert steps == 18
    assert {name: value.shape for name, value in values.items()} == dict.fromkeys(
        ("lr", "weight_decay", "momentum"), (1, 1)
    )


def test_trace_every_0_leaves_no_trace(tmp_path):
    run = train(tmp_path / "run", *ENGINES["neumann"], "report.trace_every=0")
    with pytest.raises(ValueError, match=r"has no hyperparameter trace .*report\.trace_every"):
        read_trace(run)


@pytest.mark.parametrize("kept,rows", [(1000, 10), (400, 5), (100, 1), (1, 1)])
def test_rows_are_dropped_evenly_where_a_whole_trace_would_be_too_large(kept, rows, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trace, "LARGEST", kept)
    values = {"lr": {"w": torch.zeros(2, 10)}}  # 80 bytes a row, 10 rows
    with caplog.at_level(logging.INFO, "hyperopt_id"):
        opened = open_trace(tmp_path, values, updates=10, steps_per_update=7, every=None)
    for update in range(11):
        opened.write(update, {"lr": {"w": torch.full((2, 10), float(update))}})
    steps, read = read_trace(tmp_path)
    assert steps == 7 * opened.every
    assert read["lr/w"][:, 0, 0].tolist() == [float(u) for u in range(0, 10, opened.every)]
    assert len(read["lr/w"]) == rows
    assert ("report.trace_every=1" in caplog.text) == (opened.every > 1)


@pytest.mark.parametrize("content", [b"of somebody else", None])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_no_file_elsewhere_is_written_through_a_link(link, content, tmp_path):
    values = {"lr": torch.tensor([0.5])}
    open_trace(tmp_path / "run", values, 4, 1, 1).close()
    file, other = tmp_path / "run" / "trace" / "lr.npy", tmp_path / "other.npy"
    before = file.read_bytes() if content is None else content
    other.write_bytes(before)
    file.unlink()
    link(other, file)
    if link is os.link and content is None:
        return  # a whole trace of this run, by whatever name
    opened = open_trace(tmp_path / "run", values, 4, 1, 1, update=2)
    opened.write(2, values)
    opened.close()
    assert other.read_bytes() == before
    assert read_trace(tmp_path / "run")[1]["lr"][2] == 0.5
