"""What a run needs goes on without what it does not need: a terminal, TensorBoard, a log; a full disk is one line."""

import errno
import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from short_runs import ENGINES, arguments, assert_same_run, train

from hyperopt_id import checkpoint, cli
from hyperopt_id.telemetry import events
from hyperopt_id.terminal import Screen, lasting_streams

TRAIN = [sys.executable, str(Path(__file__).parents[1] / "train.py")]
DATA = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("environment") / "whole", *ENGINES["neumann"])


def refused(number: int):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("redirection", ["2>&-", ">&- 2>&-", "2>/dev/full >/dev/full", "2>&1 | true", "<&- >&- 2>&-"])
def test_training_does_not_depend_on_the_terminal(redirection, whole, tmp_path):
    words = [*TRAIN, *arguments(tmp_path / "run", *ENGINES["neumann"], "log.progress=bar")]
    command = f"set -o pipefail; {' '.join(map(repr, words))} {redirection}"
    done = subprocess.run(["bash", "-c", command], cwd=DATA, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert_same_run(whole, tmp_path / "run")


def test_a_lost_stream_is_given_up(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1, encoding="utf-8") as pipe:
        screen = Screen(pipe, owned=True)
        assert screen.write("nobody reads this\n") == 18
        assert screen.write("nor this\n") == 9
        screen.flush()
        assert not screen.isatty()
    assert Screen(None).write("x") == 1
    before = sys.stdout
    with lasting_streams():
        assert sys.stdout is not before
    assert sys.stdout is before


def test_tensorboard_and_the_log_are_given_up(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(events, "_EventFile", refused(errno.EMFILE))
    (tmp_path / "run" / "log.txt").mkdir(parents=True)
    assert cli.train(arguments(tmp_path / "run", *ENGINES["neumann"])) == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "log.txt cannot be written" in said[0]
    assert "TensorBoard's files cannot be written (Too many open files)" in said[1]
    assert_same_run(whole, tmp_path / "run")


def test_tensorboard_is_given_up_in_the_middle(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(events._EventFile, "write", refused(errno.ENOSPC))
    assert cli.train(arguments(tmp_path / "run", *ENGINES["neumann"])) == 0
    assert capsys.readouterr().err.count("TensorBoard") == 1
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_said(number, whole, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fcntl, "flock", refused(number))
    assert cli.train(arguments(tmp_path / "run", *ENGINES["neumann"])) == 0
    assert "cannot be locked" in caplog.text
    assert_same_run(whole, tmp_path / "run")


def test_a_full_disk_is_one_line_and_the_checkpoint_before_remains(whole, tmp_path, monkeypatch, capfd):
    saves = []
    before = checkpoint.files.replace

    def filling(path, write):
        saves.append(path.name)
        if path.name == "step_000000003.pt":
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
            try:
                before(path, write)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        before(path, write)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.files, "replace", filling)
        assert cli.train(arguments(tmp_path / "cut", *ENGINES["neumann"])) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "File too large" in said
    assert f"--resume {tmp_path / 'cut'}" in said
    assert checkpoint.load(tmp_path / "cut" / "checkpoints")[1] == 2
    assert cli.train(["--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(whole, tmp_path / "cut")


FULL = {  # what the disk has no space for -> what is replaced, from when on
    "metrics.jsonl": ("hyperopt_id.telemetry.Telemetry.report", 2),
    "trace/lr.npy": ("hyperopt_id.telemetry.trace_files._create", 0),
    "summary.json": ("hyperopt_id.telemetry.write_json", 2),
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_names_the_file(name, whole, tmp_path, capfd):
    """In a process of its own: what is left in buffers is written when files are closed."""
    target, after = FULL[name]
    command = [sys.executable, "-c", FILLED, target, str(after), *arguments(tmp_path / "run", *ENGINES["neumann"])]
    done = subprocess.run(command, cwd=DATA, capture_output=True, text=True)
    said = done.stderr.splitlines()
    assert done.returncode == 2
    assert all("Traceback" not in line for line in said)
    assert any("File too large" in line and str(tmp_path / "run" / name) in line for line in said), said


FILLED = """
import pkgutil, resource, sys
from hyperopt_id import cli
place, _, name = sys.argv[1].rpartition(".")
owner, calls = pkgutil.resolve_name(place), []
plain = getattr(owner, name)
def filling(*given, **named):
    calls.append(0)
    if len(calls) > int(sys.argv[2]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return plain(*given, **named)
setattr(owner, name, filling)
sys.exit(cli.train(sys.argv[3:]))
"""


def test_a_run_needs_no_home(whole, tmp_path):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(DATA), "OMP_NUM_THREADS": "1"}
    command = [*TRAIN, *arguments(tmp_path / "run", *ENGINES["neumann"])]
    done = subprocess.run(command, cwd=DATA, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert_same_run(whole, tmp_path / "run")
