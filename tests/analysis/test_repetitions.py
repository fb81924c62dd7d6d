"""Which searches are pooled: those with the same settings, and each repetition once."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from logs import config, write_search

from hyperopt_id.analysis import repetitions
from hyperopt_id.analysis.collect import collect

Found = Sequence[tuple[int, float | None, float | None]]
ONE: Found = [(0, 1.0, 2.0), (0, 0.5, 1.5)]


def write(folder: Path, found: Found = ONE, method: str = "BayesOpt", about: Any = None, **settings: Any) -> Path:
    return write_search(folder, method, found, about or config("Random_TrainingSetOnly"), **settings)


def pooled(folder: Path) -> tuple[dict[str, list[float]], list[str]]:
    """The test losses of each method's repetitions, and what is said about them."""
    study = collect([folder])
    searches = repetitions.searches(study, "uci_energy")
    losses = {name: search.final("loss/test").tolist() for name, search in searches.items()}
    assert [len(search.evaluations) for search in searches.values()] == [len(of) for of in losses.values()]
    return losses, [*study.remarks, *repetitions.remarks(study)]


def test_searches_with_other_seeds_are_repetitions_of_one_wherever_they_lie(tmp_path: Path):
    for seed in range(3):
        about = config("Random_TrainingSetOnly", seed=seed, log__name=f"number {seed}")
        write(tmp_path / f"{seed % 2}" / f"{seed}", [(0, 1.0, 2.0 + seed)], "PBT", about, compiled=seed == 0)
    write(tmp_path / "two", [(0, 1.0, 7.0), (1, 1.0, 8.0)], "PBT", config("Random_TrainingSetOnly", seed=9))
    losses, said = pooled(tmp_path)
    assert {name: sorted(of) for name, of in losses.items()} == {"PBT": [2.0, 3.0, 4.0, 7.0, 8.0]}
    assert said == []


def test_a_search_that_is_there_twice_counts_once(tmp_path: Path):
    """As a command that is repeated with its default directory leaves it."""
    for time in ("2026-01-01_12-00-00", "2026-01-01_13-00-00"):
        write(tmp_path / "group" / time, [(0, 1.0, 2.0), (1, 1.0, 3.0)])
    losses, said = pooled(tmp_path)
    assert losses == {"BayesOpt": [2.0, 3.0]}
    assert said == ["UCI Energy, BayesOpt: 2 repetitions repeat others (same settings, seed and starts), counted once"]


def test_a_repetition_that_came_further_within_its_seconds_is_the_same(tmp_path: Path):
    for name, count in (("slow", 2), ("fast", 3)):
        write(tmp_path / name, [(0, 1.0 / (n + 1), 5.0 - n) for n in range(count)], seconds=60.0)
    losses, said = pooled(tmp_path)
    assert len(losses["BayesOpt"]) == 1
    assert len(said) == 1


def test_starts_of_other_seeds_are_other_repetitions(tmp_path: Path):
    """The hyperparameters are the same, weights and data order are not."""
    for seed in (0, 1):
        search = write(tmp_path / str(seed), [(0, 1.0, 2.0 + seed)], about=config("Random_TrainingSetOnly", seed=seed))
        log = (search / "search.jsonl").read_text().replace("0.01", "0.1")
        (search / "search.jsonl").write_text(log)
    assert sorted(pooled(tmp_path)[0]["BayesOpt"]) == [2.0, 3.0]


@pytest.mark.parametrize("described", [True, False])
def test_what_a_scheduler_made_of_a_run_says_nothing_about_the_search(tmp_path: Path, described: bool):
    """The first run has been ended early, or has taken over another one's seed; `described`: the search has a config of
    its own."""
    for name, seed, ended, taken in (("a", 0, 2, 5), ("b", 1, 3, 12), ("a again", 0, 4, 0)):
        about = config("Random_TrainingSetOnly", seed=seed)
        search = write(tmp_path / name, [(0, 1.0, 2.0 + seed), (0, 2.0, 9.0)], "PBT", about)
        log = (search / "search.jsonl").read_text().replace('"member": 1', '"member": 0')
        (search / "search.jsonl").write_text(log)
        of_run = config("Random_TrainingSetOnly", seed=taken, inner__updates=ended)
        (search / "runs/all/config.json").write_text(json.dumps(of_run))
        if described:
            (search / "config.json").write_text(json.dumps(about))
    losses, said = pooled(tmp_path)
    assert losses == {"PBT": [2.0, 3.0]}
    assert said == ["UCI Energy, PBT: 1 repetition repeats another (same settings, seed and starts), counted once"]


@pytest.mark.parametrize(
    ("about", "settings", "told"),
    [
        ({}, {"evaluations": 60}, "evaluations = 60; left out: evaluations = 30"),
        ({}, {"evaluations": 30, "seconds": 5.0}, "seconds = 5.0; left out: seconds = none"),
        ({"report": {"every": 2}}, {"evaluations": 30}, "report.every = 2; left out: report.every = none"),
        ({"inner__updates": 9}, {"evaluations": 30}, "inner.updates = 9; left out: inner.updates = 4"),
        (
            {"space__lr__sample": [1e-3, 1.0]},
            {"evaluations": 30},
            "space.lr.sample = [0.001, 1.0]; left out: space.lr.sample = [1e-06, 0.1]",
        ),
    ],
)
def test_searches_with_other_settings_are_not_pooled(tmp_path: Path, about, settings, told: str):
    """Shown is the one with the most repetitions, then with the most evaluations; the other is said to be left out."""
    write(tmp_path / "g" / "first", ONE, evaluations=30)
    write(tmp_path / "g" / "second", [*ONE, (0, 0.2, 9.0)], about=config("Random_TrainingSetOnly", **about), **settings)
    losses, said = pooled(tmp_path)
    assert losses == {"BayesOpt": [9.0]}
    assert said == [f"UCI Energy, BayesOpt: searches with 2 settings; shown is {told}"]


def test_more_repetitions_are_worth_more_than_evaluations(tmp_path: Path):
    write(tmp_path / "long", [(0, 1.0 / n, 2.0) for n in range(1, 9)], evaluations=8)
    write(tmp_path / "wide", [(0, 1.0, 5.0), (1, 1.0, 6.0)], evaluations=1)
    assert pooled(tmp_path)[0] == {"BayesOpt": [5.0, 6.0]}
