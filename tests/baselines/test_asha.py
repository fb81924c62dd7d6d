"""Asynchronous successive halving: which trials go on, and that each is the run that it would be alone."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from laws import assert_identical
from short_runs import CONFIGS, TINY, into, reports, state
from short_runs import config as files
from short_searches import config, killed, lines, timeless

from baselines import arguments, asha, training
from baselines.ledger import Ledger
from baselines.trainable import WORST, score
from hyperopt_id import config as configs
from hyperopt_id import launch
from hyperopt_id.analysis.cost import gradients_per_update
from hyperopt_id.build.names import starting_values
from hyperopt_id.config import to_dict

MOST, GRACE, ETA = 30, 6, 4  # steps
GOOD, BAD, LOST = [0.2, 0.3, 0.5], [1e-9] * 8, [1e36]  # learning rates
FREE = [
    "task.model.sizes=[64,16,10]",
    "task.batch_size=20",
    f"inner.updates={MOST // 3}",
    "report.every=1",
    "population.runs=12",
    f"population.start.lr={[*GOOD, *BAD, *LOST]}",
    f"population.start.momentum={[0.5] * 12}",
    "space.lr={bounds: none, sample: [1e-9, 1e-1]}",
]
TRIALS = {"trials": 12, "max_steps": MOST, "grace": GRACE, "reduction": float(ETA)}


def of(found, trial):
    return [line for line in found if line["run"] == f"runs/trial_{trial:04d}"]


def assert_halved(found, most=MOST, grace=GRACE, eta=ETA, cut=0):
    """Go through the log in its order: a trial that reaches a rung ends there exactly if its loss is above the quantile
    1/η of all losses that came there before. As many as `cut` may have ended before that."""
    rungs = [grace * eta**k for k in range(5) if grace * eta**k <= most]
    reached = {rung: [] for rung in rungs}
    ends = {line["run"]: line["step"] for line in found}
    for line in found:
        rung, loss = line["step"], score(line["loss/validation"])
        over = rung >= most or line["diverged"]
        if rung in reached:
            over = over or bool(reached[rung] and loss > np.percentile(reached[rung], 100 / eta))
            reached[rung].append(loss)
        ended = ends[line["run"]] == line["step"]
        cut -= ended and not over
        assert ended or not over, line
    assert cut >= 0


def trial_of(directory: Path, steps: int) -> Path:
    """A trial that ended after so many steps, but did not diverge."""
    last = {line["run"]: line for line in lines(directory)}
    return directory / next(name for name, line in last.items() if line["step"] == steps and not line["diverged"])


def assert_same_as_alone(run: Path, other: Path, with_state: bool = True):
    """To the last bit, but for times, a trial is the run of that member alone over the steps that it had."""
    steps = reports(run)[-1]["step"]
    whole = configs.load([run.parents[1] / "config.yaml"], [f"inner.updates={steps // 3}"])
    launch.run(training.run_config(whole, int(run.name.removeprefix("trial_"))), other)
    assert configs.load([run / "config.yaml"]) == configs.load([other / "config.yaml"])
    parts = [[{k: v for k, v in line.items() if k != "time"} for line in reports(d)] for d in (run, other)]
    assert parts[0] == parts[1]
    if with_state:
        assert_identical(state(run), state(other))
    ends = [timeless(json.loads((d / "summary.json").read_text())) for d in (run, other)]
    assert ends[0] == ends[1]
    assert trace(run) == trace(other)


def trace(run: Path) -> dict[str, object]:
    """The files of a trace, without the digest that a finished run has: a trial might go on."""
    content = {path.name: path.read_bytes() for path in (run / "trace").iterdir()}
    return {**content, "trace.json": json.loads(content["trace.json"])["steps_per_row"]}


@pytest.fixture(scope="module")
def searched(local_ray, tmp_path_factory):
    """A search in the course of which a worker is killed: that makes no difference."""
    directory, killed = tmp_path_factory.mktemp("asha") / "search", []
    original = Ledger.on_trial_result

    def on_trial_result(ledger, iteration, trials, trial, result, **info):
        original(ledger, iteration, trials, trial, result, **info)
        if not killed and len(ledger.log.records) >= 12:
            killed.append(result["pid"])
            os.kill(result["pid"], signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "on_trial_result", on_trial_result)
        summary = asha.search(config(*FREE), directory, **TRIALS)
    assert killed
    return directory, summary


def test_trials_are_halved_at_every_rung(searched):
    found = lines(searched[0])
    assert_halved(found)
    assert len({line["run"] for line in found}) == 12
    assert sum(of(found, trial)[-1]["step"] for trial in range(12)) < 12 * MOST / 2


def test_bad_learning_rates_get_fewer_steps(searched):
    found = lines(searched[0])
    steps = [of(found, trial)[-1]["step"] for trial in range(12)]
    assert max(steps[:3]) == MOST
    assert steps[3:11] == [GRACE] * 8  # a good one is there before them


def test_a_trial_that_diverges_is_the_worst_and_ends_at_once(searched):
    directory, summary = searched
    (line,) = of(lines(directory), 11)
    assert line["diverged"]
    assert line["loss/validation"] is None
    assert summary["repetitions"][0]["run"] != line["run"]
    assert json.loads((directory / line["run"] / "summary.json").read_text())["diverged"] == [True]
    assert score(None) == WORST > score(1e29)
    assert score(1e37) == WORST


def test_the_incumbent_has_the_lowest_validation_loss(searched):
    directory, summary = searched
    found = lines(directory)
    best = min((line for line in found if not line["diverged"]), key=lambda line: line["loss/validation"])
    (incumbent,) = summary["repetitions"]
    spent = {key: found[-1][key] for key in ("gradients", "seconds")}
    assert incumbent == {**best, **spent, "run": incumbent["run"]}
    last = reports(directory / incumbent["run"])[-1]
    assert (last["step"], last["loss/validation"]) == (best["step"], best["loss/validation"])
    assert summary["method"] == "ASHA"


def test_costs_add_up(searched):
    found = lines(searched[0])
    each = gradients_per_update(to_dict(config(*FREE)))  # one report is one hyper-update
    assert [line["gradients"] for line in found] == [each * (n + 1) for n in range(len(found))]
    assert [line["evaluation"] for line in found] == list(range(len(found)))
    assert all(np.diff([line["seconds"] for line in found]) >= 0)


@pytest.mark.parametrize("steps", [GRACE, MOST])
def test_a_trial_is_an_ordinary_run_of_the_population(searched, tmp_path, steps):
    assert_same_as_alone(trial_of(searched[0], steps), tmp_path / "alone")
    assert not (searched[0] / "ray").exists()


def test_a_finished_search_is_not_done_again(searched):
    directory, summary = searched
    before = (directory / "search.jsonl").read_bytes()
    assert timeless(asha.search(config(*FREE), directory, **TRIALS)) == timeless(summary)
    assert (directory / "search.jsonl").read_bytes() == before


def test_an_interrupted_command_goes_on_as_if_nothing_had_happened(local_ray, tmp_path, capsys):
    directory = tmp_path / "search"
    command = [
        *files("digits"),
        *into(directory),
        "--trials",
        "12",
        "--grace",
        str(GRACE),
        "--workers",
        "1",
        "-s",
        *TINY,
        *FREE,
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "baselines.asha", *command],
        cwd=CONFIGS.parent,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = directory / "search.jsonl"
    while child.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 5):
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    _, said = child.communicate()
    assert child.returncode == 130
    assert re.fullmatch(r"Ray was stopped when \d+ of 12 trials were finished; --resume goes on", said.splitlines()[-1])
    assert not (directory / "summary.json").exists()
    before = lines(directory)

    assert arguments.main(asha.run, [*command, "--resume"]) == 0
    assert capsys.readouterr().out.strip() == str(directory / "summary.json")
    found = lines(directory)
    assert found[: len(before)] == before
    assert_halved(found)
    assert_same_as_alone(trial_of(directory, MOST), tmp_path / "alone")


def test_a_killed_search_goes_on_as_if_nothing_had_happened(local_ray, monkeypatch, tmp_path):
    """Killed when Ray had noted its first step alone. Without a number of trials, new ones begin until the budget is
    spent: each member once, in order."""
    directory, data = tmp_path / "search", ["report.every=1", "space.lr={bounds: none, sample: [1e-9, 1e-1]}"]
    options = ["--max-steps", "9", "--reduction", "2", "--budget-gradients", "90"]
    before = killed("baselines.asha", [*files("digits"), *options, "-s", *TINY, *data], directory, 15)
    noted = json.loads(next((directory / "ray").glob("experiment_state-*.json")).read_text())["trial_data"]
    assert len(noted) < len({line["run"] for line in before})  # trials are forgotten

    search = partial(asha.search, configs.load([directory / "config.yaml"]), max_steps=9, reduction=2.0, gradients=90.0)
    moved = shutil.copytree(directory, tmp_path / "moved")
    with pytest.raises(ValueError, match=r"the search in .*moved was begun in .*search and is not finished; move it "):
        search(moved)
    monkeypatch.chdir(moved)  # the command was called elsewhere, with a relative path
    summary = search(directory)

    found = lines(directory)
    assert found[: len(before)] == before
    assert found[-2]["gradients"] < 90.0 <= found[-1]["gradients"] == summary["repetitions"][0]["gradients"]
    assert_halved(found, most=9, grace=3, eta=2, cut=2)
    assert len({(line["run"], line["step"]) for line in found}) == len(found)
    names = sorted({line["run"].removeprefix("runs/") for line in found})
    assert names == [f"trial_{member:04d}" for member in range(len(names))]
    assert names == sorted(run.name for run in (directory / "runs").iterdir())
    drawn = starting_values(config(*data, f"population.runs={len(names)}"))
    for line in found:
        member = int(line["run"].removeprefix("runs/trial_"))
        assert line["hyper"] == {name: values[member] for name, values in drawn.items()}
    for name in names:
        logged = [(line["step"], line["loss/validation"]) for line in found if line["run"] == f"runs/{name}"]
        run = directory / "runs" / name
        assert [(line["step"], line["loss/validation"]) for line in reports(run)] == logged
    assert_same_as_alone(directory / before[-1]["run"], tmp_path / "alone", with_state=False)
    assert not (directory / "ray").exists()


def test_a_trial_that_fails_is_said_and_tried_again_with_hypergradients_inside(local_ray, tmp_path):
    """A trial of an algorithm that tunes is the run that it would be alone, and costs what its hypergradients do."""
    given = "report.every=1", "hypergradient.terms=2"
    ours, directory = config(*given, algorithm="Ours_LR_Momentum"), tmp_path / "search"
    in_the_way = directory / "runs" / "trial_0001"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    search = partial(asha.search, ours, directory, trials=3, grace=6, reduction=2.0)
    with pytest.raises(ValueError, match=r"1 of 3 trials failed \(.*trial_0001 cannot be written.*\); --resume tries"):
        search()
    in_the_way.unlink()
    assert search()["method"] == "ASHA + Ours_LR_Momentum"
    found = lines(directory)
    each = gradients_per_update(to_dict(ours))
    assert each > gradients_per_update(to_dict(config(*given[:1])))
    assert [line["gradients"] for line in found] == pytest.approx([each * (n + 1) for n in range(len(found))])
    last = [of(found, trial)[-1] for trial in range(3)]
    assert all(line["hyper/lr"] != line["hyper"]["lr"] for line in last)
    assert_same_as_alone(trial_of(directory, 18), tmp_path / "alone")


def test_a_search_that_only_a_budget_ends_is_ended_by_a_failure_and_goes_on(local_ray, tmp_path):
    """Also in a thread that is not the main one."""
    directory = tmp_path / "search"
    in_the_way = directory / "runs" / "trial_0001"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    search = partial(asha.search, config("report.every=1"), directory, max_steps=9, gradients=30.0)
    failed = r"trial_0001 failed \(.*trial_0001 cannot be written.*\); --resume tries it again"
    with ThreadPoolExecutor(1) as threads, pytest.raises(ValueError, match=failed):
        threads.submit(search).result()
    assert not (directory / "summary.json").exists()
    in_the_way.unlink()
    (best,) = search()["repetitions"]
    assert best["gradients"] >= 30.0
    found = lines(directory)
    assert of(found, 1)
    assert_halved(found, most=9, grace=3, cut=2)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--trials", "0"], "given 0 trials; a search needs 1 or more"),
        (["--max-steps", "2"], "given a maximum of 2 steps; needed: 3 or more"),
        (["--grace", "19"], "given a grace of 19 steps; allowed: from 1 to the 18 steps of a whole trial"),
        (["--reduction", "1"], "given a reduction of 1.0; allowed: a number above 1"),
        (["--budget-gradients", "0"], "given a budget of 0.0 gradients; allowed: a number above 0"),
        (["--address", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1 .*; start one with .*"),
        (["--gpus-per-trial", "99"], "given 99 GPUs for each trial, but Ray sees .* in all"),
        (["--budget-gradients", "9", "--trials", "0"], "given 0 trials; a search needs 1 or more"),
        (["--resume"], "--resume: there is no search .* in .*; leave --resume out to start one"),
        (["-c", "configs/nothing.yaml"], "configs/nothing.yaml: cannot be read .*"),
        (
            ["-s", "task.train_on=train+validation"],
            "a search chooses by validation loss, .* add -s task.train_on=train.*",
        ),
    ],
)
def test_mistakes_are_said_in_one_line(local_ray, tmp_path, capsys, extra, said):
    assert arguments.main(asha.run, [*files("digits"), *into(tmp_path / "search"), "-s", *TINY, *extra]) == 2
    assert re.fullmatch(f"error: {said}\n", capsys.readouterr().err)
    assert not (tmp_path / "search").exists()


def test_an_own_ray_stays_on_the_loopback_device(local_ray):
    import ray

    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]


def test_a_directory_belongs_to_its_search(searched, tmp_path, capsys):
    directory, _ = searched
    with pytest.raises(ValueError, match=r"the search in .* was made with other settings: reduction: 4.0 -> 3.0; "):
        asha.search(config(*FREE), directory, **{**TRIALS, "reduction": 3.0})
    with pytest.raises(ValueError, match=r"the search in .* was made with another config: .*inner.updates: 10 -> 5"):
        asha.search(config(*FREE), directory, **{**TRIALS, "max_steps": 15})
    assert arguments.main(asha.run, [*files("digits"), *into(directory), "-s", *TINY]) == 2
    assert "already holds a search; continue it with --resume or choose another name" in capsys.readouterr().err
    (tmp_path / "own.txt").write_text("mine")
    assert arguments.main(asha.run, [*files("digits"), *into(tmp_path), "-s", *TINY]) == 2
    assert "is not empty" in capsys.readouterr().err
