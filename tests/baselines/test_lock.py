"""One process at a time in a directory, whatever becomes of it."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from short_runs import CONFIGS, TINY, into
from short_runs import config as files
from short_searches import config, lines

from baselines import arguments, asha, bayesopt, pbt, random_search, tuning_free
from baselines.arguments import LOCK
from baselines.lock import held
from hyperopt_id.telemetry import OccupiedError

SEARCHES = {
    "random": (random_search, partial(random_search.search, trials=2)),
    "bayesopt": (bayesopt, partial(bayesopt.search, evaluations=2, random=1)),
    "asha": (asha, partial(asha.search, trials=2)),
    "pbt": (pbt, partial(pbt.search, population=2, interval=6)),
    "tuning free": (tuning_free, partial(tuning_free.search, optimizer="schedulefree_sgd", trials=2)),
}
HOLD = "import sys, time\nfrom pathlib import Path\nfrom baselines.lock import held\n"
HOLD += "with held(Path(sys.argv[1]), ''):\n    print(flush=True)\n    time.sleep(600)\n"


def holder(lock: Path) -> subprocess.Popen[bytes]:
    """A process that holds the lock now."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], cwd=CONFIGS.parent, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    return process


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_search_that_goes_on_elsewhere_is_left_alone(kind, tmp_path):
    """Whether it has begun already or not, the second process is told who is there and changes nothing."""
    _, search = SEARCHES[kind]
    algorithm = "Random" if kind == "tuning free" else "Random_Validation"
    given = config("task.train_on=train", algorithm=algorithm)
    with held(tmp_path / "search" / LOCK, ""):
        (tmp_path / "search" / "config.yaml").write_text("not yet")
        before = contents(tmp_path)
        with pytest.raises(
            OccupiedError, match=f"process {os.getpid()} on .* is at work in .*; wait for it, or choose"
        ):
            search(given, tmp_path / "search")
        assert contents(tmp_path) == before


def test_the_lock_of_a_killed_search_is_free_at_once(tmp_path, capsys):
    directory = tmp_path / "search"
    given = [*files("digits"), *into(directory), "--trials", "2", "-s", *TINY]
    with holder(directory / LOCK) as process:
        assert arguments.main(random_search.run, given) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: process {process.pid} on ")
        assert said.count("\n") == 1
        process.send_signal(signal.SIGKILL)
    assert (directory / LOCK).exists()
    assert arguments.main(random_search.run, given) == 0
    assert len(lines(directory)) == 2
    assert not (directory / LOCK).exists()


def test_processes_that_a_holder_starts_do_not_keep_the_lock(tmp_path):
    with held(tmp_path / "lock", ""):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    with child, held(tmp_path / "lock", ""):
        child.communicate(b"\n")


@pytest.mark.parametrize("started", range(3))
def test_a_search_that_was_killed_while_it_started_can_be_started_again(tmp_path, started):
    """The files of a start are there in their order, and perhaps a part of the next one."""
    directory = tmp_path / "search"
    directory.mkdir()
    for name in arguments.STARTED[:started]:
        (directory / name).write_text("{}")
    (directory / f".{arguments.STARTED[started]}.tmp").write_text("half")
    (directory / LOCK).touch()
    assert arguments.main(random_search.run, [*files("digits"), *into(directory), "--trials", "2", "-s", *TINY]) == 0
    assert len(lines(directory)) == 2


def test_folders_made_for_a_lock_go_with_it(tmp_path):
    with held(tmp_path / "group" / "search" / LOCK, ""):
        pass
    assert not any(tmp_path.iterdir())
    with held(tmp_path / "group" / "search" / LOCK, ""):
        (tmp_path / "group" / "own.txt").touch()
    assert [path.name for path in (tmp_path / "group").iterdir()] == ["own.txt"]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), held(tmp_path / LOCK, ""):
        pass
    assert "cannot be locked (Function not implemented)" in caplog.text


def test_a_lock_in_the_way_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match=r"file cannot be written \(.*\); choose another"),
        held(tmp_path / "file" / LOCK, ""),
    ):
        pass
