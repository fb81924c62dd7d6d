"""Laws of the loop: a seed determines everything, resetting, schedules, what is written."""

import math
from dataclasses import replace

import pytest
import torch
from laws import assert_close, assert_identical, random
from short_runs import CONFIGS, ENGINES, POPULATIONS, TINY, assert_same_run, reports, state, summary, train

from hyperopt_id import (
    Dataset,
    Hyper,
    Plan,
    Space,
    assemble,
    cli,
    experiment,
    hypergrad,
    population,
    rules,
    supervised,
    trees,
)
from hyperopt_id.build.names import from_config
from hyperopt_id.config import load


@pytest.mark.parametrize("members", POPULATIONS)
def test_the_seed_determines_everything(members, tmp_path):
    options = [*ENGINES["neumann"], *POPULATIONS[members]]
    torch.manual_seed(1)
    one = train(tmp_path / "one", *options)
    torch.manual_seed(2)
    two = train(tmp_path / "two", *options)
    assert_same_run(one, two)
    other = train(tmp_path / "other", *options, "seed=7")
    weights = [state(directory)["run"]["z"]["params"]["layers.0.weight"] for directory in (one, other)]
    assert not torch.equal(*weights)


def test_members_of_a_population_have_consecutive_seeds(tmp_path):
    """Member 2 of the population of seed 5 is the single run of seed 7, to the last bit (loop lift)."""
    together = train(tmp_path / "together", *ENGINES["neumann"], *POPULATIONS["loop"], "seed=5")
    alone = train(tmp_path / "alone", *ENGINES["neumann"], *POPULATIONS["single"], "seed=7")
    left, right = (state(directory)["run"] for directory in (together, alone))
    assert_identical(trees.take(left, 2), trees.take(right, 0))


def test_reset_puts_the_weights_back_after_every_update_but_the_last(tmp_path):
    directory = train(tmp_path / "run", *ENGINES["reset"])
    parts, _ = from_config(load([directory / "config.yaml"]))
    start = population.to_plain(parts.start())
    for update in range(1, 7):
        path = directory / "checkpoints" / f"step_{update:09d}.pt"
        run = torch.load(path, weights_only=True)["tree"]["run"]
        if update < 6:
            assert_identical(run["z"], start["z"])
        else:
            assert not torch.equal(run["z"]["params"]["layers.0.weight"], start["z"]["params"]["layers.0.weight"])
        assert run["meta_state"]["step"].item() == update
        assert not torch.equal(run["raw"]["lr/global"], start["raw"]["lr/global"])


def test_the_schedule_multiplies_by_a_factor_drawn_once_for_each_run(tmp_path):
    directory = train(tmp_path / "run", *ENGINES["schedule"], *POPULATIONS["vmap"], "report.every=1")
    rates = torch.tensor([line["hyper/lr"] for line in reports(directory)], dtype=torch.float64)
    factors = rates[1:] / rates[:-1]
    assert_close(factors, factors[:1].expand_as(factors), 1e-5)
    assert ((factors >= 0.9 - 1e-5) & (factors <= 1.0 + 1e-5)).all()
    assert len(factors[0].unique()) == 3


def test_hypergradients_may_be_computed_and_not_used(tmp_path):
    directory = train(tmp_path / "run", *ENGINES["neumann"], "meta.rule=none")
    assert {line["hyper/lr"] for line in reports(directory)} == {reports(directory)[0]["hyper/lr"]}
    assert reports(directory)[0]["hyper/lr"] == pytest.approx(1e-3)
    assert all(line["hypergradient/lr"] != 0.0 for line in reports(directory))


def test_terms_mean_nothing_to_other_engines(tmp_path):
    one, two = (train(tmp_path / f"{terms}", *ENGINES["unroll"], f"hypergradient.terms={terms}") for terms in (1, 5))
    assert_identical(state(one), state(two))


@pytest.mark.parametrize(
    ("splits", "missing", "there", "kept"),
    [
        ({"validation": (8, 12)}, "test", "train, validation, train[+]validation", r"\('validation',\)"),
        ({"validation": (8, 8), "test": (8, 12)}, "validation", "train, test, train[+]validation", r"\('test',\)"),
        ({}, "validation, test", "train, train[+]validation", r"\(\)"),
    ],
)
def test_reports_of_a_split_without_rows_are_refused_before_training(splits, missing, there, kept):
    data = Dataset(random(12, 4, seed=1), random(12, seed=2), {"train": (0, 8), **splits})
    task = supervised(data, lambda: torch.nn.Linear(4, 1), "mse", None)
    space = Space({name: Hyper(0.1) for name in rules.sgd().hyperparameters})
    parts = assemble(task, rule=rules.sgd(), space=space, engine=hypergrad.no_gradient())
    message = (
        f"asks for {missing}, but the data have rows only in {there}; take Plan.report_splits={kept}.*give {missing}"
    )
    with pytest.raises(ValueError, match=message):
        experiment.run(replace(parts, update=lambda *_: pytest.fail("trained")), Plan(updates=1))


# What is written

LOSSES = {"loss/train", "loss/validation", "accuracy/validation", "loss/test", "accuracy/test"}


@pytest.mark.parametrize("members", POPULATIONS)
def test_reports(members, tmp_path):
    options = [*ENGINES["neumann"], "space.lr.tune=[element]", *POPULATIONS[members]]
    directory = train(tmp_path / "run", *options)
    lines = reports(directory)
    assert [(line["step"], line["update"]) for line in lines] == [(6, 2), (12, 4), (18, 6)]
    weights = {"layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"}
    numbers = LOSSES | {"objective", "hyper/weight_decay", "hypergradient/weight_decay"}
    per_tensor = {"hyper/momentum", "hypergradient/momentum/tensor"}
    per_element = {"hyper/lr", "hypergradient/lr/element"}
    for line in lines:
        assert set(line) == {"step", "update", "time"} | numbers | per_tensor | per_element
        assert [type(line[name]) for name in ("step", "update", "time")] == [int, int, float]
        for name in per_tensor | per_element:
            assert set(line[name]) == weights
        values = [line[name] for name in numbers] + [x for name in per_tensor for x in line[name].values()]
        for elements in (x for name in per_element for x in line[name].values()):
            assert list(elements) == ["min", "p10", "median", "p90", "max"]
            values += elements.values()
        for value in values:
            assert isinstance(value, float) if members == "single" else len(value) == 3
    assert lines[-1]["time"] > lines[0]["time"] >= 0.0


@pytest.mark.parametrize("members", POPULATIONS)
def test_reported_numbers_are_those_of_the_checkpoint(members, tmp_path):
    """Natural values after the update; losses of the whole splits at the new weights."""
    directory = train(tmp_path / "run", *ENGINES["neumann"], *POPULATIONS[members])
    parts, _ = from_config(load([directory / "config.yaml"]))
    run = population.from_plain(state(directory)["run"])
    chunks = population.split(run, parts.members, parts.lift)
    for name, split in (("loss/test", "test"), ("loss/validation", "validation")):
        values = [parts.evaluate(chunk.z.params, chunk.z.buffers, split)["loss"] for chunk in chunks]
        expected = population.join(values, len(parts.seeds), parts.lift).tolist()
        found = reports(directory)[-1][name]
        assert ([found] if members == "single" else found) == expected
    rates = (10.0 ** run.raw["lr/global"]).tolist()
    found = reports(directory)[-1]["hyper/lr"]
    assert ([found] if members == "single" else found) == rates


@pytest.mark.parametrize("members", POPULATIONS)
def test_summary(members, tmp_path):
    noisy = ["space.lr={init: 0.5, sample: [0.5, 0.6]}", "report.every=1", "inner.updates=12"]
    directory = train(tmp_path / "run", *ENGINES["neumann"], *POPULATIONS[members], *noisy)
    end, runs = summary(directory), 1 if members == "single" else 3
    assert {"final", "best_validation", "diverged", "hyper", "seconds", "config_hash"} <= set(end)
    assert set(end["final"]) >= LOSSES
    assert end["diverged"] == [False] * runs
    assert set(end["hyper"]) == {"lr", "weight_decay", "momentum"}
    assert set(end["seconds"]) == {"total", "compile", "inner", "hypergradient", "evaluation", "logging"}
    parts_of_total = sum(seconds for name, seconds in end["seconds"].items() if name != "total")
    assert 0.0 < parts_of_total <= end["seconds"]["total"]
    assert len(end["config_hash"]) == 16
    last = reports(directory)[-1]
    columns = {name: [line[name] if runs > 1 else [line[name]] for line in reports(directory)] for name in LOSSES}
    for name in LOSSES:
        assert end["final"][name] == columns[name][-1]
        assert end["hyper"]["lr"] == (last["hyper/lr"] if runs > 1 else [last["hyper/lr"]])
    for member in range(runs):
        validation = [row[member] for row in columns["loss/validation"]]
        best = validation.index(min(validation))
        assert end["best_validation"]["update"][member] == reports(directory)[best]["update"]
        assert best < len(validation) - 1 or member > 0
        for name in LOSSES:
            assert end["best_validation"][name][member] == columns[name][best][member]


def test_a_run_directory_holds_what_it_should(tmp_path):
    directory = train(tmp_path / "run", "report.keep=3")
    names = {path.name for path in directory.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "summary.json", "checkpoints", "log.txt"} <= names
    assert any(name.startswith("events.out") for name in names)
    kept = sorted(path.name for path in (directory / "checkpoints").glob("*.pt"))
    assert kept == [f"step_{update:09d}.pt" for update in (4, 5, 6)]
    assert (directory / "checkpoints" / "latest").read_text().strip() == kept[-1]
    again = train(tmp_path / "again", "report.keep=3")
    assert (again / "config.yaml").read_text().replace("again", "run") == (directory / "config.yaml").read_text()


def test_diverged_members_are_null_in_reports_and_flagged_in_the_summary(tmp_path):
    """Learning rates from 1e-3 to 1e3 on a linear regression: some blow up, and the run goes on to its end."""
    csv = tmp_path / "table.csv"
    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    csv.write_text("".join(",".join(f"{x:.6f}" for x in row) + "\n" for row in rows.tolist()))
    directory = tmp_path / "run"
    place = ["-c", str(CONFIGS / "csv.yaml"), "-l", str(tmp_path), "-g", ".", "-n", "run"]
    options = [*TINY[2:], *ENGINES["neumann"], "inner.updates=60", "task.batch_size=all"]
    options += [f"task={{path: {csv}, splits: [20, 5, 5], model: {{sizes: [3, 1]}}}}", "population.runs=12"]
    options += ["space.lr={bounds: [1e-10, 1e4], sample: [1e-3, 1e3]}", "space.momentum.sample=[0, 0.5]"]
    assert cli.train([*place, "-s", *options]) == 0
    end = summary(directory)
    lost = end["diverged"]
    assert 0 < sum(lost) < 12
    for name in ("loss/train", "loss/test", "unnormalized_loss/test"):
        assert [value is None for value in end["final"][name]] == lost
    assert [at >= 0 for at in end["diverged_at"]] == lost
    initial = reports(directory)[0]["hyper/lr"]
    assert all(rate is None or rate < 1e3 for rate in initial)
    assert not any(math.isnan(x) for line in reports(directory) for x in line["loss/test"] if x is not None)


def test_a_run_that_blows_up_in_its_last_step_has_diverged_there(tmp_path):
    """A rate of 1e30 in one step: the weights are finite, and no loss of theirs is. One member stays as it was."""
    starts = "population={runs: 2, start: {lr: [1e30, 1e-3], momentum: [0.0, 0.0], weight_decay: [1e-6, 1e-6]}}"
    options = [starts, "space.lr.bounds=none", "inner={updates: 1, steps_per_update: 1}", "report.splits=[validation]"]
    directory = train(tmp_path / "run", *ENGINES["none"], *options)
    end, (report,) = summary(directory), reports(directory)
    assert all(weight.isfinite().all() for weight in state(directory)["run"]["z"]["params"].values())
    assert (end["diverged"], end["diverged_at"]) == ([True, False], [1, -1])
    assert [value is None for value in end["final"]["loss/validation"]] == [True, False]
    for name in ("loss/train", "loss/validation", "accuracy/validation", "hyper/lr"):
        assert [value is None for value in report[name]] == [True, False], name
    assert state(directory)["run"]["diverged_at"].tolist() == [1, -1]
