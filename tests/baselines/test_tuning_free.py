"""Prodigy and Schedule-Free inside a run are the packages in the loop that their authors write."""

import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import assert_close, assert_identical
from short_runs import CONFIGS, TINY, assert_same_run, interrupted, reports, state, summary

pytest.importorskip("prodigyopt", reason="needs the extra baselines")
pytest.importorskip("schedulefree", reason="needs the extra baselines")
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree, SGDScheduleFree

from baselines import arguments, tuning_free
from hyperopt_id import cli, population, trees
from hyperopt_id.build.names import build_task
from hyperopt_id.config import load
from hyperopt_id.tasks.task import Task
from hyperopt_id.telemetry.search import SearchLog
from hyperopt_id.telemetry.trace import read_trace

OPTIMIZERS = {
    "prodigy": lambda w: Prodigy(w, lr=1.0),
    "schedulefree_sgd": lambda w: SGDScheduleFree(w, lr=1.0, warmup_steps=40 // 20),
    "schedulefree_adamw": lambda w: AdamWScheduleFree(w, lr=0.0025, warmup_steps=40 // 20),
}
LONGER = "inner={steps_per_update: 5, updates: 8}"  # 40 steps, of which 2 warm up


def train(directory: Path, optimizer: str, *overrides: str, options: dict[str, Any] | None = None) -> Path:
    config = load([CONFIGS / "digits.yaml", CONFIGS / "Random.yaml"], [*TINY, LONGER, *overrides])
    tuning_free.train(config, directory, optimizer=optimizer, options=options)
    return directory


def by_hand(name: str, task: Task, seed: int) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """(d, weights to evaluate) after every 10 of 40 steps, as the packages' authors show their use."""
    weights, found = trees.variables(task.init(seed)[0]), []
    optimizer = OPTIMIZERS[name](weights.values())
    anneal = (lambda t: (1.0 + math.cos(math.pi * t / 40)) / 2.0) if name == "prodigy" else (lambda t: 1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, anneal)
    for step, batch in enumerate(population.Feed(task.batches, "loop")("train+validation", [seed], 0, 40), 1):
        if name != "prodigy":
            optimizer.train()
        optimizer.zero_grad()
        task.loss(weights, {}, batch)[0].backward()
        optimizer.step()
        scheduler.step()
        if step % 10 == 0:
            if name != "prodigy":
                optimizer.eval()
            found.append((optimizer.param_groups[0].get("d", 1.0), trees.detach(trees.map(torch.clone, weights))))
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_package_in_a_plain_loop_to_the_last_bit(name, tmp_path):
    run = train(tmp_path / "run", name, "seed=5")
    task = build_task(load([run / "config.yaml"]), torch.device("cpu"))
    stages = by_hand(name, task, 5)
    assert [report["step"] for report in reports(run)] == [10, 20, 30, 40]
    for report, (_, weights) in zip(reports(run), stages, strict=True):
        assert report["loss/validation"] == float(task.evaluate(weights, {}, "validation")["loss"])
    assert_identical({k: value[0] for k, value in state(run)["run"]["z"]["params"].items()}, stages[-1][1])

    _, trace = read_trace(run)
    if name == "prodigy":
        rates = [d * (1.0 + math.cos(math.pi * t / 40)) / 2.0 for t, (d, _) in zip((10, 20, 30), stages, strict=False)]
        assert trace["lr"][:, 0].tolist() == pytest.approx([1e-6, *rates])
    else:
        lr = {"schedulefree_sgd": 1.0, "schedulefree_adamw": 0.0025}[name]
        assert trace["lr"][:, 0].tolist() == [lr / 2, lr, lr, lr]


def test_schedule_free_is_evaluated_at_the_average(tmp_path):
    """arXiv 2405.15682, equations 1 to 3: y = (1 - β) z + β x; z moves along the gradient at y; x averages z."""
    run = train(tmp_path / "run", "schedulefree_sgd", "dtype=float64", options={"lr": 0.1, "warmup_steps": 0})
    task = build_task(load([run / "config.yaml"]), torch.device("cpu"))
    x = z = task.init(0)[0]
    for step, batch in enumerate(population.Feed(task.batches, "loop")("train+validation", [0], 0, 40)):
        y = {k: 0.1 * z[k] + 0.9 * x[k] for k in x}
        slopes = torch.func.grad(lambda w, batch=batch: task.loss(w, {}, batch)[0])(y)
        z = {k: z[k] - 0.1 * slopes[k] for k in z}
        x = {k: (1.0 - 1.0 / (step + 1)) * x[k] + z[k] / (step + 1) for k in x}
    assert_close({k: value[0] for k, value in state(run)["run"]["z"]["params"].items()}, x)
    assert summary(run)["final"]["loss/test"][0] == pytest.approx(float(task.evaluate(x, {}, "test")["loss"]))


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_interrupted_run_continues_to_the_last_bit(name, runs, tmp_path):
    whole = train(tmp_path / "whole", name, f"population.runs={runs}")
    cut = interrupted(whole, tmp_path / "cut", update=2)
    train(cut, name, f"population.runs={runs}")
    assert_same_run(whole, cut)


def test_member_m_has_the_next_seed(tmp_path):
    both = state(train(tmp_path / "both", "prodigy", "population.runs=2"))
    alone = state(train(tmp_path / "alone", "prodigy", "seed=1"))
    for part in ("params", "state"):
        of_both, of_one = ([*_leaves(tree["run"]["z"][part])] for tree in (both, alone))
        assert_identical([leaf[1] for leaf in of_both], [leaf[0] for leaf in of_one])


def _leaves(tree: Any) -> list[torch.Tensor]:
    return [leaf for value in tree.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]


def test_a_search_trains_as_many_seeds_as_the_budget_holds(tmp_path):
    config = load([CONFIGS / "digits.yaml", CONFIGS / "Random_TrainingSetOnly.yaml"], [*TINY, LONGER])
    budget = {"repetitions": 2, "gradients": 130.0}  # 40 steps, and so gradients, each
    found = tuning_free.search(config, tmp_path / "search", optimizer="prodigy", **budget)
    log = SearchLog(tmp_path / "search").records
    assert sorted((line["repetition"], line["evaluation"]) for line in log) == [
        (r, e) for r in (0, 1) for e in range(3)
    ]
    assert {line["gradients"] for line in log} == {40.0, 80.0, 120.0}
    assert found["method"] == "Prodigy"
    best = [min(line["loss/validation"] for line in log if line["repetition"] == r) for r in (0, 1)]
    assert [incumbent["loss/validation"] for incumbent in found["repetitions"]] == best
    alone = summary(train(tmp_path / "alone", "prodigy", "task.train_on=train", "seed=4"))
    assert alone["final"]["loss/test"] == [log[4]["loss/test"]]  # evaluation 1 of repetition 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_learns_digits(name, tmp_path):
    config = load([CONFIGS / "digits.yaml", CONFIGS / "Random.yaml"], ["inner.steps=500", "log.progress=none"])
    result = tuning_free.train(config, tmp_path / "run", optimizer=name)
    assert float(result["final"]["accuracy/test"]) > 0.85


def command(tmp_path: Path, optimizer: str, *given: str) -> int:
    place = ["-l", str(tmp_path), "-g", ".", "-n", "run"]
    common = ["-c", str(CONFIGS / "digits.yaml"), "--optimizer", optimizer, *place]
    return arguments.main(tuning_free.run, [*common, *given, "-s", *TINY])


def test_the_command_says_in_the_config_what_trained(tmp_path):
    assert command(tmp_path, "prodigy", "--option", "weight_decay=0.01", "d_coef=2", "--runs", "2") == 0
    config = load([tmp_path / "run" / "config.yaml"])
    told = "python -m baselines.tuning_free --optimizer prodigy --option d_coef=2 --option weight_decay=0.01"
    assert (config.algorithm, config.trained_by, config.task.train_on) == ("Prodigy", told, "train+validation")
    assert {name: hyper.init for name, hyper in config.space.items()} == {
        "lr": 1.0,
        "weight_decay": 0.01,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
    }
    assert summary(tmp_path / "run")["hyper"]["weight_decay"] == [0.01, 0.01]


def test_the_command_resumes(tmp_path):
    assert command(tmp_path, "schedulefree_sgd") == 0
    whole = shutil.copytree(tmp_path / "run", tmp_path / "whole")
    shutil.rmtree(tmp_path / "run")
    cut = interrupted(whole, tmp_path / "run", update=1)
    assert command(tmp_path, "schedulefree_sgd", "--resume") == 0
    assert_same_run(whole, cut)


def test_train_does_not_continue_it_by_another_optimizer(tmp_path, capsys):
    assert command(tmp_path, "prodigy") == 0
    cut = interrupted(tmp_path / "run", tmp_path / "cut", update=1)
    capsys.readouterr()
    assert cli.train(["--resume", str(cut)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.endswith("repeat or resume it with: python -m baselines.tuning_free --optimizer prodigy")
    assert command(tmp_path, "schedulefree_sgd", "--resume") == 2
    assert "algorithm" not in (error := capsys.readouterr().err)
    assert "trained_by: python -m baselines.tuning_free --optimizer prodigy -> " in error


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--option", "momentum=0.5"], "--option momentum: Prodigy has no such option; it has lr, betas"),
        (["--option", "fsdp_in_use=true"], "--option fsdp_in_use: Prodigy has no such option"),
        (["--option", "weight_decay"], "--option weight_decay: needed is K=V"),
        (["--option", "lr=fast"], '--option lr="fast": allowed is true, false, or a number of 0 or more'),
        (["--option", "lr=NaN"], "--option lr=NaN: allowed is"),
        (["--option", "betas=0.9"], "--option betas=0.9: allowed is two numbers"),
        (["--option", "betas=[0.9,2]"], "Invalid beta parameter"),
        (["-s", "space.lr.init=0.5"], "--set space.lr.init=0.5: the optimizer has settings of its own"),
        (["-c", str(CONFIGS / "Random_SteppedLR.yaml")], "prodigy tunes nothing, but Random_SteppedLR does"),
        (["--resume"], "--resume: there is no run"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(given, message, tmp_path, capsys):
    assert command(tmp_path, "prodigy", *given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_no_config_and_no_package(tmp_path, capsys, monkeypatch):
    assert arguments.main(tuning_free.run, ["--optimizer", "prodigy"]) == 2
    assert "no config: name at least one file" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no optimizer 'adam' here; there are prodigy, schedulefree_sgd"):
        train(tmp_path / "run", "adam")
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    assert command(tmp_path, "prodigy") == 2
    assert "Prodigy needs the package prodigyopt: python -m pip install" in capsys.readouterr().err
