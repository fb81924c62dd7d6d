"""SIGTERM, SIGHUP and Ctrl-C end a run after its hyper-update, with a checkpoint; a second one ends it at once."""

import os
import signal
import threading
from pathlib import Path

import pytest
from short_runs import ENGINES, POPULATIONS, arguments, assert_same_run, train

from hyperopt_id import checkpoint, cli, experiment, interruption
from hyperopt_id.interruption import Interrupted, answered, deferred

SPARSE = ["report={every: 2, checkpoint_every: 100, keep: 20}"]


@pytest.fixture(autouse=True)
def heard():
    """The handlers of a process that has just begun, whatever other tests have left; and nothing is left behind."""
    own = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signals_at(monkeypatch: pytest.MonkeyPatch, update: int, *numbers: int) -> None:
    """Send signals to this process in the middle of hyper-update `update`."""
    before, left = experiment.hyper_update, list(numbers)

    def interrupted(parts, plan, number, *others):
        if number == update and left:
            os.kill(os.getpid(), left.pop(0))
        return before(parts, plan, number, *others)

    monkeypatch.setattr(experiment, "hyper_update", interrupted)


@pytest.mark.parametrize(
    "number,members",
    [(signal.SIGTERM, "single"), (signal.SIGTERM, "loop"), (signal.SIGHUP, "vmap"), (signal.SIGINT, "single")],
)
def test_a_signal_ends_a_run_after_the_hyper_update_with_a_checkpoint(number, members, tmp_path, monkeypatch, capsys):
    overrides = [*ENGINES["neumann"], *POPULATIONS[members], *SPARSE]
    whole = train(tmp_path / "whole", *overrides)
    with monkeypatch.context() as patched:
        signals_at(patched, 2, number)
        capsys.readouterr()
        assert cli.train(arguments(tmp_path / "cut", *overrides)) == 128 + number
    assert checkpoint.load(tmp_path / "cut" / "checkpoints")[1] == 3
    said = f"stopped by {number.name} after hyper-update 3; continue with --resume {tmp_path / 'cut'}\n"
    assert capsys.readouterr().err == said
    assert (tmp_path / "cut" / "log.txt").read_text().endswith(said)
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    assert cli.train(["--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(whole, tmp_path / "cut")


def test_a_signal_in_the_last_hyper_update_lets_the_run_finish(tmp_path, monkeypatch):
    signals_at(monkeypatch, 5, signal.SIGTERM)
    assert cli.train(arguments(tmp_path / "run")) == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_replay_answers_signals_too(tmp_path, monkeypatch, capsys):
    run = train(tmp_path / "run", *ENGINES["neumann"], "report.checkpoint_every=100")
    with monkeypatch.context() as patched:
        signals_at(patched, 1, signal.SIGTERM)
        assert cli.replay([str(run)]) == 143
    assert "stopped by SIGTERM after hyper-update 2" in capsys.readouterr().err
    assert cli.replay([str(run), "--resume"]) == 0


def test_outside_of_the_loop_a_signal_is_answered_at_once():
    with pytest.raises(Interrupted, match=r"^SIGTERM$"), answered():
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("later", [True, False])
def test_a_second_signal_ends_the_process_unless_it_is_part_of_the_first(later):
    child = os.fork()
    if child == 0:
        interruption.SECONDS_OF_ONE = 0.0 if later else 100.0
        with answered(), deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (-signal.SIGHUP if later else 0)


def test_a_forked_child_is_ended_as_before():
    with answered(), deferred() as arrived:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert not arrived()


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with answered():
        signal.raise_signal(signal.SIGHUP)


def test_the_library_installs_no_handlers(tmp_path):
    seen = []
    with deferred() as arrived:
        seen.append((signal.getsignal(signal.SIGTERM), arrived()))
    thread = threading.Thread(target=lambda: seen.append((cli.train(arguments(tmp_path / "run")), 0)))
    thread.start()
    thread.join()
    assert seen == [(signal.SIG_DFL, 0), (0, 0)]
    assert Path(tmp_path / "run" / "summary.json").exists()
