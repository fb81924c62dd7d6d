"""The short forms of kills, power losses and damage of runs, and that the harness sees what it is there for."""

import os
import random

import chaos_checkpoints
import chaos_kills
import chaos_power
import chaos_run_files
import pytest
from disk import Disk
from interrupting import Wholes
from resuming import Runs

from hyperopt_id import files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def wholes(folder):
    return Wholes(folder)


@pytest.mark.parametrize("number", [20, 41])
def test_a_killed_run_goes_on_to_the_same_numbers(number, folder, wholes):
    outcome = chaos_kills.trial(number, 1, folder, wholes)
    assert outcome.fault is None, outcome


@pytest.mark.parametrize("number", [1, 4])
def test_a_run_goes_on_to_the_same_numbers_after_a_power_loss(number, folder, wholes):
    outcome = chaos_power.trial(number, 1, folder, wholes)
    assert outcome.fault is None, outcome


@pytest.fixture(scope="module")
def runs(folder):
    return Runs(folder)


@pytest.mark.parametrize("number", range(8))
def test_a_run_does_not_go_on_from_a_checkpoint_that_is_not_its_own(number, folder, runs):
    outcome = chaos_checkpoints.trial(10 * number, 3, folder, runs)
    assert outcome.fault is None, outcome


@pytest.mark.parametrize("number", range(len(chaos_run_files.CHANGES)))
def test_a_run_goes_on_whatever_its_other_files_are(number, folder, runs):
    outcome = chaos_run_files.trial(number, 3, folder, runs)
    assert outcome.fault is None, outcome


@pytest.mark.parametrize("seed", range(3))
def test_a_power_loss_takes_what_was_not_synchronized(seed, tmp_path):
    """And leaves what was, under the name that was."""

    process = os.fork()
    if process == 0:
        disk = Disk(tmp_path)
        disk.install()
        files.replace(tmp_path / "kept", lambda file: file.write(b"kept"))
        (tmp_path / "lost").write_bytes(b"lost")
        disk.lose(random.Random(seed))
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    assert (tmp_path / "kept").read_bytes() == b"kept"
    found = (tmp_path / "lost").read_bytes() if (tmp_path / "lost").exists() else None
    assert found in (None, b"", b"l", b"lo", b"los", b"lost", bytes(4))
    assert seed or found != b"lost"
