"""Random search: its trials are the starts of a population, and it chooses by validation loss."""

import re
from dataclasses import replace

import numpy as np
import pytest
from short_runs import TINY, into
from short_runs import config as files
from short_searches import config, interrupted, lines, timeless

from baselines import arguments, random_search, rounds
from hyperopt_id import launch
from hyperopt_id.analysis.cost import gradients_per_update
from hyperopt_id.build.names import starting_values
from hyperopt_id.config import to_dict
from hyperopt_id.telemetry import read_json
from hyperopt_id.telemetry.directory import write_json

SIX = {"trials": 6, "repetitions": 2, "batch": 3}
SEED = "seed=36"  # the lowest validation loss and the lowest test loss are those of different trials


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Two repetitions of six trials in batches of three."""
    directory = tmp_path_factory.mktemp("random") / "search"
    return directory, random_search.search(config(SEED), directory, **SIX)


def losses(directory, split):
    """[repetitions, trials]"""
    found = lines(directory)
    return np.array([line[f"loss/{split}"] for line in found]).reshape(found[-1]["repetition"] + 1, -1)


def test_trials_are_the_starts_of_a_population(searched, tmp_path):
    directory, _ = searched
    whole = config(SEED, "population.runs=12")
    final = launch.run(whole, tmp_path / "run")["final"]
    starts = starting_values(whole)
    found = lines(directory)
    assert [(line["repetition"], line["evaluation"]) for line in found] == [(r, e) for r in range(2) for e in range(6)]
    for member, line in enumerate(found):
        assert line["hyper"] == {name: values[member] for name, values in starts.items()}
        assert {key: line[key] for key in final} == {key: values[member].item() for key, values in final.items()}
        assert (line["run"], line["member"], line["step"]) == ("runs/round_000", member, 18)


def test_the_lowest_validation_loss_is_chosen_whatever_the_test_loss(searched):
    directory, summary = searched
    validation, test = losses(directory, "validation"), losses(directory, "test")
    assert (validation.argmin(1) != test.argmin(1)).any()
    assert [best["evaluation"] for best in summary["repetitions"]] == validation.argmin(1).tolist()
    assert [best["loss/test"] for best in summary["repetitions"]] == test[[0, 1], validation.argmin(1)].tolist()
    assert summary["method"] == "Random (3-batched)"
    assert summary == read_json(directory / "summary.json")


def test_every_batch_of_three_chooses_its_best(searched):
    directory, summary = searched
    best = losses(directory, "validation").reshape(2, 2, 3).argmin(2)
    expected = [(r, b, 3 * b + int(best[r, b])) for r in range(2) for b in range(2)]
    assert [(line["repetition"], line["batch"], line["evaluation"]) for line in summary["batches"]] == expected


def test_a_failure_is_the_last_choice_and_an_incomplete_batch_is_none():
    found = [
        {"repetition": 0, "evaluation": e, "loss/validation": loss, "gradients": 1.0, "seconds": 1.0}
        for e, loss in enumerate([None, 3.0, 2.0, None, None, None, 1.0])
    ]
    assert [line["evaluation"] for line in random_search.choices(found, 3)] == [2, 3]


def test_a_search_counts_what_it_spends(searched):
    directory, summary = searched
    found = lines(directory)
    assert [line["gradients"] for line in found] == [18.0 * (e + 1) for _ in range(2) for e in range(6)]
    assert [best["gradients"] for best in summary["repetitions"]] == [108.0, 108.0]
    total = read_json(directory / "runs" / "round_000" / "summary.json")["seconds"]["total"]
    assert total < sum(best["seconds"] for best in summary["repetitions"]) < total + 1.0  # and looking for starts


def test_an_algorithm_that_tunes_can_be_started_several_times(tmp_path):
    tuning = config("hypergradient.terms=2", algorithm="Ours_LR_Momentum")
    summary = random_search.search(tuning, tmp_path / "search", trials=2)
    assert summary["method"] == "Ours_LR_Momentum"
    assert summary["repetitions"][0]["gradients"] == 2 * 6 * gradients_per_update(to_dict(tuning)) > 2 * 18
    assert summary["repetitions"][0]["loss/validation"] == losses(tmp_path / "search", "validation").min()


def test_a_budget_of_gradients_holds_whole_trials(tmp_path):
    summary = random_search.search(config(), tmp_path / "search", gradients=59.0)
    assert len(lines(tmp_path / "search")) == 3
    assert summary["repetitions"][0]["gradients"] == 54.0


def test_trials_that_end_after_the_seconds_are_logged_and_not_chosen(tmp_path):
    small = config("population.chunk=4")
    summary = random_search.search(small, tmp_path / "search", repetitions=2, seconds=1e-9)
    assert len(lines(tmp_path / "search")) == 4  # one round of two trials each
    assert [best["evaluation"] for best in summary["repetitions"]] == [0, 0]


def test_rounds_under_a_budget_of_seconds_train_consecutive_seeds(tmp_path):
    """Member r k + e - e0 of the round after e0 trials has the seed config.seed + R e0 + r k + e - e0."""
    random_search.search(
        config("population.chunk=4", "seed=7"), tmp_path / "search", trials=3, repetitions=2, seconds=1e9
    )
    seeds = {(0, 0): 7, (0, 1): 8, (1, 0): 9, (1, 1): 10, (0, 2): 11, (1, 2): 12}
    starts = starting_values(config("population.runs=6", "seed=7"))
    for line in lines(tmp_path / "search"):
        member = seeds[line["repetition"], line["evaluation"]] - 7
        assert line["hyper"] == {name: values[member] for name, values in starts.items()}


@pytest.mark.parametrize("count, half", [(0, ""), (5, ""), (5, '{"repetition": 0, "eva'), (12, "")])
def test_an_interrupted_search_is_completed(searched, tmp_path, count, half):
    directory, summary = searched
    copy = interrupted(directory, tmp_path / "copy", count, half)
    assert timeless(random_search.search(config(SEED), copy, **SIX)) == timeless(summary)
    assert timeless(lines(copy)) == timeless(lines(directory))
    assert "previous" not in read_json(copy / "runs" / "round_000" / "environment.json")  # not trained again


FORTY = rounds.Plan(1, 40, 2)  # trainings of 18 gradients, 2 together
EAGER = {"total": 4.0, "compile": 0.0, "inner": 2.0, "hypergradient": 1.5}  # and 19 further rounds


@pytest.mark.parametrize(
    "given, plan, first, expected",
    [
        ("auto", FORTY, EAGER, "on"),  # 66.5 s to come
        ("auto", FORTY, EAGER | {"inner": 1.5}, "off"),  # 57 s
        ("auto", replace(FORTY, seconds=63.0), EAGER, "off"),  # 59 s are left of the budget
        ("auto", replace(FORTY, seconds=65.0), EAGER, "on"),
        ("auto", replace(FORTY, gradients=38 * 18.0), EAGER, "on"),  # 18 rounds, 63 s
        ("auto", rounds.Plan(1, None, 2, gradients=36 * 18.0), EAGER, "off"),  # 17 rounds
        ("auto", FORTY, {"total": 9.0, "compile": 8.0, "inner": 0.2, "hypergradient": 0.1}, "on"),  # as the first one
        ("off", FORTY, EAGER | {"inner": 99.0}, "off"),
    ],
)
def test_rounds_are_compiled_where_all_of_them_are_worth_it(tmp_path, monkeypatch, given, plan, first, expected):
    monkeypatch.setattr(rounds.compilation, "obstacle", lambda device: None)
    search = rounds.Search(config(f"inner.compile={given}"), tmp_path, {}, plan)
    assert rounds.compile_round(search, 0) == given
    (tmp_path / "runs" / "round_000").mkdir(parents=True)
    write_json(tmp_path / "runs" / "round_000" / "summary.json", {"seconds": first})
    assert rounds.compile_round(search, 1) == expected


FIXED = ["space.lr.sample=none", "space.weight_decay.sample=none", "space.momentum.sample=[0.5,0.5]"]
MISTAKES = {
    "no trials": (["--trials", "0"], [], "given 0 evaluations; a search needs 1 or more"),
    "no repetitions": (["--trials", "2", "--repetitions", "0"], [], "given 0 repetitions"),
    "no end": ([], [], "nothing says when the search ends: give --trials N, or a budget"),
    "no batches": (["--trials", "3", "--batch", "0"], [], "given 3 trials in batches of 0"),
    "an incomplete batch": (["--trials", "4", "--batch", "3"], [], "given 4 trials in batches of 3"),
    "too small a budget": (["--budget-gradients", "17"], [], "17 gradients holds no evaluation, which takes 18"),
    "no budget": (["--budget-seconds", "0"], [], "given a budget of 0.0 seconds; allowed: a number above 0"),
    "nothing to search": (["--trials", "2"], FIXED, "nothing to search: give space.lr.sample a range"),
    "trained on validation data": (
        ["--trials", "2"],
        ["task.train_on=train+validation"],
        "which training must not see",
    ),
    "a run that cannot be": (["--trials", "2"], ["task.batch_size=1098"], "but the train split has 1097 rows"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, tmp_path, capsys):
    """One line on stderr, exit status 2, and nothing is left."""
    options, overrides, message = MISTAKES[name]
    given = [*files("digits"), *into(tmp_path / "run"), "-s", *TINY, *overrides, *options]
    assert arguments.main(random_search.run, given) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{message}.*\n", error)
    assert not (tmp_path / "run").exists()


def test_a_directory_belongs_to_one_search(searched, tmp_path, capsys):
    """Of one config, with one set of settings; a mistake changes nothing in it."""
    copy = interrupted(searched[0], tmp_path / "copy", 12)
    before = sorted(path.name for path in copy.rglob("*"))
    given = [
        *files("digits", "Random_Validation"),
        *into(copy),
        "--repetitions",
        "2",
        "--batch",
        "3",
        "-s",
        *TINY,
        SEED,
    ]
    cases = {
        "already holds a search; continue it with --resume": ["--trials", "6"],
        "made with another config: seed: 36 -> 1": ["--trials", "6", "--resume", "--seed", "1"],
        "made with other settings: trials: 6 -> 9": ["--trials", "9", "--resume"],
        "there is no search .*leave --resume out": ["--trials", "6", "--resume", "-n", "other"],
    }
    for message, options in cases.items():
        assert arguments.main(random_search.run, [*given, *options]) == 2
        assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert sorted(path.name for path in copy.rglob("*")) == before
    assert arguments.main(random_search.run, [*given, "--trials", "6", "--resume"]) == 0
    assert timeless(read_json(copy / "summary.json")) == timeless(searched[1])
