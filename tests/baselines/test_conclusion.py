"""What is left of a search by Ray Tune, whatever became of its trials. Ray would only call what is called here."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from laws import assert_identical
from short_runs import reports, state
from short_searches import config, lines, timeless

from baselines import trainable, training
from baselines.conclusion import conclude
from baselines.ledger import TAIL_BYTES, Budget, Ledger, TrialError, packed
from baselines.trainable import STATE, Trial
from hyperopt_id import config as configs
from hyperopt_id import launch, replay
from hyperopt_id.telemetry import read_json
from hyperopt_id.telemetry.search import SearchLog
from hyperopt_id.telemetry.trace import read_trace

GOOD, BAD = 0.3, 1e-9  # learning rates: every report of the first trial is better than all before
STARTS = ["population.runs=2", f"population.start.lr=[{GOOD}, {BAD}]", "population.start.momentum=[0.5, 0.5]"]
LEARNING = ["task.model.sizes=[64,16,10]", "task.batch_size=100", "space.lr.bounds=none"]
CONFIG = config("report.every=1", "report.trace_every=1", *STARTS, *LEARNING)
EACH = 3  # steps from report to report, of 18


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logs that are opened are closed with the test, as they are at the end of a search."""
    opened: list[Ledger] = []
    setup = Ledger.setup
    monkeypatch.setattr(Ledger, "setup", lambda ledger: (opened.append(ledger), setup(ledger))[1])
    yield
    for ledger in opened:
        ledger.progress.close()


class Searching:
    """A search in `directory`, whose trials do what they are told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = Ledger(directory, 2, 18, Budget(directory, {}), "none")
        self.ledger.setup()

    def trial(self, number: int) -> MagicMock:
        """As Ray sees it; `trial.actor` is ours."""
        actor = object.__new__(Trial)
        actor.config, actor._trial_info = {}, MagicMock(trial_name=f"trial_{number:04d}")
        actor.setup({}, CONFIG, str(self.directory), False, ".", training.never)
        trial = MagicMock(actor=actor)
        trial.__str__.return_value = f"trial_{number:04d}"
        return trial

    def report(self, trial: MagicMock, times: int = 1) -> None:
        for _ in range(times):
            trial.last_result = trial.actor.step()
            self.ledger.on_trial_result(0, [], trial, trial.last_result)

    def save(self, trial: MagicMock, number: int = 0) -> Path:
        folder = self.directory / "ray" / str(trial) / f"checkpoint_{number:06d}"
        folder.mkdir(parents=True)
        trial.actor.save_checkpoint(str(folder))
        return folder

    def take_over(self, trial: MagicMock, folder: Path, explored: str, **lr: tuple[str, float]) -> None:
        trial.actor.config = {"explore": {"id": explored, "changes": lr}}
        trial.actor.load_checkpoint(folder)

    def end(self, *trials: MagicMock) -> None:
        for trial in trials:
            trial.actor.cleanup()
            self.ledger.on_trial_complete(0, [], trial)

    def conclude(self) -> dict:
        (found,) = conclude(self.directory, "Some", partial(training.open_workshop, CONFIG, False))["repetitions"]
        return found


@pytest.fixture
def search(tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "config.yaml").write_text(configs.dump(CONFIG))
    return Searching(tmp_path / "search")


def assert_replayed(search: Searching, line: dict) -> None:
    """Replaying the search is to train the model of that line."""
    (best,) = read_json(search.directory / "summary.json")["repetitions"]
    spent = {key: lines(search.directory)[-1][key] for key in ("gradients", "seconds")}
    assert best == {**line, **spent, "run": best["run"]}
    replayed, build = replay.prepare(search.directory)
    again = search.directory.parent / "replay"
    launch.run(replayed, again, build=build)
    last = reports(again)[-1]
    assert last["step"] == line["step"]
    for loss in ("loss/validation", "loss/test"):
        assert last[loss] == pytest.approx(line[loss], rel=1e-5)


def test_the_best_model_is_replayed_though_its_trial_has_taken_over_other_weights(search):
    good, bad = search.trial(0), search.trial(1)
    search.report(good, 2)
    search.report(bad, 2)
    best = lines(search.directory)[1]
    search.take_over(good, search.save(bad), "e", lr=("times", 0.8))
    search.report(good, 4)
    search.report(bad, 4)
    search.end(good, bad)
    assert search.conclude()["run"] == "best"
    assert read_json(search.directory / "runs" / "trial_0000" / "config.json")["start"]["lr"] == [BAD]  # the donor's
    assert_replayed(search, best)
    assert not (search.directory / "incumbent").exists()


def test_the_best_model_is_replayed_though_the_search_was_killed_and_took_another_course(search):
    good, bad = search.trial(0), search.trial(1)
    search.report(bad, 1)
    before = search.save(bad)
    search.report(good, 2)
    search.take_over(bad, search.save(good), "e", lr=("times", 1.2))
    search.report(bad, 1)
    *_, best = lines(search.directory)
    assert best["loss/validation"] == min(line["loss/validation"] for line in lines(search.directory))
    for trial in (good, bad):  # killed, and
        trial.actor.cleanup()
    again, bad = Searching(search.directory), search.trial(1)
    bad.actor.load_checkpoint(before)
    again.report(bad, 2)
    spent = lines(search.directory)[-1]["gradients"]
    assert spent == pytest.approx(EACH * len(lines(search.directory)))  # also what was given up
    bad.actor.cleanup()
    assert again.conclude()["run"] == "best"
    assert_replayed(again, best)


def test_the_best_model_is_replayed_no_further_than_to_where_it_was_the_best(search):
    """Its run is the one of so many steps."""
    good = search.trial(0)
    search.report(good, 3)
    best = lines(search.directory)[-1]
    search.take_over(good, search.save(good), "e", lr=("set", 1e3))  # a trial that gets worse
    search.report(good, 3)
    search.end(good)
    run = search.directory / search.conclude()["run"]
    assert run == search.directory / "best"
    assert_same(run, alone(search, best["step"]))
    assert_replayed(search, best)


def test_the_best_model_at_the_end_of_its_trial_is_that_trial_s(search):
    good = search.trial(0)
    search.report(good, 6)
    search.end(good)
    assert search.conclude()["run"] == "runs/trial_0000"
    assert not (search.directory / "best").exists()
    assert_replayed(search, lines(search.directory)[-1])


def alone(search: Searching, steps: int) -> Path:
    """The run of member 0 over so many steps, beside the search."""
    whole = configs.load([search.directory / "config.yaml"], [f"inner.updates={steps // EACH}"])
    directory = search.directory.parent / "alone"
    launch.run(training.run_config(whole, 0), directory)
    return directory


def assert_same(run: Path, other: Path) -> None:
    """To the last bit, but for times: config, reports, summary, trace."""
    assert configs.load([run / "config.yaml"]) == configs.load([other / "config.yaml"])
    parts = [[{k: v for k, v in line.items() if k != "time"} for line in reports(d)] for d in (run, other)]
    assert parts[0] == parts[1]
    ends = [timeless(read_json(d / "summary.json")) for d in (run, other)]
    assert ends[0] == ends[1]
    (steps, trace), (other_steps, other_trace) = read_trace(run), read_trace(other)
    assert steps == other_steps
    assert {name: rows.tolist() for name, rows in trace.items()} == {
        n: rows.tolist() for n, rows in other_trace.items()
    }


@pytest.mark.parametrize("left", ["nothing", "all", "an old state", "a half-written state", "a directory begun again"])
def test_what_a_kill_has_lost_of_a_trial_is_trained_again(search, left):
    """Up to where it was logged: the run is the one that it would have been."""
    trial, run = search.trial(0), search.directory / "runs" / "trial_0000"
    search.report(trial, 2)
    saved = search.save(trial)
    search.report(trial, 2)
    newest = search.save(trial, 1)
    trial.actor.cleanup()
    if left == "nothing":
        shutil.rmtree(search.directory / "ray")
        (run / "metrics.jsonl").write_text("")
    elif left == "an old state":
        shutil.rmtree(newest)
    elif left == "a half-written state":
        (newest / STATE).write_bytes((saved / STATE).read_bytes()[:1000])
    elif left == "a directory begun again":
        again = search.trial(0)
        again.actor.load_checkpoint(saved)
        again.actor.cleanup()
    search.conclude()
    other = alone(search, 4 * EACH)
    assert_same(run, other)
    if left in ("all", "a directory begun again"):
        assert_identical(state(run), state(other))


@pytest.mark.parametrize("written", [0, 1])
def test_at_any_instant_the_best_model_of_the_log_is_packed(search, monkeypatch, written):
    """Also where the search is killed after the next one was packed, before or after it is logged."""
    good, original = search.trial(0), SearchLog.append

    def append(log, record):
        if written:
            original(log, record)
        raise KeyboardInterrupt

    search.report(good, 2)
    monkeypatch.setattr(SearchLog, "append", append)
    with pytest.raises(KeyboardInterrupt):
        search.report(good)
    best = lines(search.directory)[-1]
    assert len(lines(search.directory)) == 2 + written
    packed_report = json.loads(training.load(packed(search.directory, best))["reports"][-1])
    assert {name: best[name] for name in packed_report if name in best} == {
        n: v for n, v in packed_report.items() if n in best
    }
    monkeypatch.setattr(SearchLog, "append", original)
    good.actor.cleanup()
    again, good = Searching(search.directory), search.trial(0)
    again.report(good, 6)
    (one,) = (search.directory / "incumbent").iterdir()
    assert one == packed(search.directory, min(lines(search.directory), key=lambda line: line["loss/validation"]))
    good.actor.cleanup()


def test_the_best_model_is_packed_from_what_is_on_the_disk(search, monkeypatch):
    """As a machine sees it that did not write it."""
    disk, pack = search.directory.parent / "disk", training.pack

    def synchronize(directory):
        shutil.copytree(directory, disk / directory.name, dirs_exist_ok=True)

    monkeypatch.setattr(trainable, "synchronize", synchronize)
    monkeypatch.setattr(training, "pack", lambda run, *about: pack(disk / run.name, *about))
    good = search.trial(0)
    search.report(good, 3)
    best = lines(search.directory)[-1]
    search.take_over(good, search.save(good), "e", lr=("set", 1e3))
    search.report(good, 3)
    search.end(good)
    assert search.conclude()["run"] == "best"
    assert_same(search.directory / "best", alone(search, best["step"]))


def test_a_best_model_that_cannot_be_packed_is_said_and_logged(search, monkeypatch, caplog):
    monkeypatch.setattr(training, "load_reports", lambda directory: reports(directory)[:-1])
    good = search.trial(0)
    search.report(good)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "the best model so far, of step 3 of runs/trial_0000, can only be replayed if its trial ends with it: "
        f"{search.directory / 'runs' / 'trial_0000'} has no report of step 3"
    ]
    assert len(lines(search.directory)) == 1
    monkeypatch.undo()
    search.report(good)
    assert packed(search.directory, lines(search.directory)[-1]).is_file()
    good.actor.cleanup()


def test_a_failure_ends_a_search_that_nothing_else_may_end(tmp_path):
    trial = MagicMock()
    trial.__str__.return_value, trial.get_error.return_value = "trial_0000", "Traceback:\nValueError: it is full\n"
    endless, ending = (Ledger(tmp_path, trials, 18, Budget(tmp_path, {}), "none") for trials in (None, 2))
    for ledger in (endless, ending):
        ledger.on_step_end(0, [])
        ledger.on_trial_error(0, [], trial)
    ending.on_step_end(0, [])
    with pytest.raises(TrialError, match=r"^trial_0000 failed \(ValueError: it is full\)$"):
        endless.on_step_end(0, [])


def test_a_budget_is_known_from_lines_of_any_length(tmp_path):
    log, long = SearchLog(tmp_path), dict.fromkeys((f"hyper/lr/{number}" for number in range(20_000)), 0.1)
    log.append({"gradients": 1.0, "seconds": 1.0})
    log.append({"gradients": 9.0, "seconds": 1.0, **long})
    assert 2**18 < (tmp_path / "search.jsonl").stat().st_size < TAIL_BYTES
    assert Budget(tmp_path, {"gradients": 9.0}).stop_all()
    assert not Budget(tmp_path, {"gradients": 9.5}).stop_all()
