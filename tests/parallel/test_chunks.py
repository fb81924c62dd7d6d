"""Packing of starts into run directories."""

import time
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
from chunks import MOST_MEMBERS, SECONDS_OF_A_LOCK, Chunk, check_data, default_size, pack, train, unfinished
from hypothesis import given, settings
from hypothesis import strategies as st
from override_generators import Job
from short_runs import CONFIGS

from hyperopt_id.build.names import run_seeds, starting_values
from hyperopt_id.config import dump, load, to_dict
from hyperopt_id.telemetry import is_finished
from hyperopt_id.telemetry.directory import claim

CONFIG = load([CONFIGS / "digits.yaml", CONFIGS / "Ours_LR.yaml"], ["population.sample=true"])
GROUP = Path("/group")


def cut(seeds: tuple[int, ...], size: int, group: Path = GROUP, label: str = "Ours_LR") -> list[Chunk]:
    return pack(CONFIG, label, Job("", (), seeds), group, size)


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(1, 12))
def test_every_start_is_in_exactly_one_chunk(seeds: set[int], size: int):
    chunks = cut(tuple(sorted(seeds)), size)
    members = [run_seeds(chunk.config) for chunk in chunks]
    assert [*chain(*members)] == sorted(seeds)
    assert max(map(len, members)) <= size
    assert [chunk.directory.name for chunk in chunks] == [f"Ours_LR_{m[0]:03d}-{m[-1]:03d}" for m in members]


def test_a_member_starts_the_same_wherever_it_is_cut():
    (whole,) = cut(tuple(range(5, 12)), 7)
    parts = cut(tuple(range(5, 12)), 3)
    for name, values in starting_values(whole.config).items():
        assert [*chain(*(starting_values(part.config)[name] for part in parts))] == values


def test_given_values_stay_with_their_seeds():
    job = Job("", (), (0, 1, 2, 8), {"lr": (0.1, 0.2, 0.3, 0.4)})
    chunks = pack(CONFIG, "Ours_LR", job, GROUP, 2)
    assert [starting_values(chunk.config)["lr"] for chunk in chunks] == [[0.1, 0.2], [0.3], [0.4]]


@given(st.integers(1, 1000), st.integers(1, 40))
def test_the_default_size_gives_all_workers_work_in_equal_parts(starts: int, workers: int):
    size = default_size(starts, workers)
    assert 1 <= size <= min(-(-starts // workers), MOST_MEMBERS)
    count = -(-starts // size)
    assert size == -(-starts // count)  # no smaller size has as few chunks


@pytest.mark.parametrize("starts, workers, size", [(200, 2, 100), (200, 1, 100), (7, 2, 4), (1, 8, 1), (300, 2, 100)])
def test_default_sizes(starts: int, workers: int, size: int):
    assert default_size(starts, workers) == size


# What is there already


def leave(chunk: Chunk, finished: bool = True) -> None:
    chunk.directory.mkdir(parents=True)
    (chunk.directory / "config.yaml").write_text(dump(chunk.config))
    if finished:
        (chunk.directory / "summary.json").write_text("{}")


def test_finished_chunks_are_left_out(tmp_path: Path):
    chunks = cut(tuple(range(6)), 2, tmp_path)
    leave(chunks[0])
    leave(chunks[1], finished=False)
    assert unfinished(chunks) == chunks[1:]


def test_more_starts_may_be_added(tmp_path: Path):
    leave(*cut((0, 1), 2, tmp_path))
    chunks = cut((0, 1, 2, 3), 2, tmp_path)
    assert unfinished(chunks) == chunks[1:]


def test_another_config_is_refused_with_what_differs(tmp_path: Path):
    (chunk,) = cut((0, 1), 2, tmp_path)
    leave(chunk)
    other = chunk._replace(config=replace(chunk.config, meta=replace(chunk.config.meta, lr=0.5)))
    with pytest.raises(ValueError, match=r"another config: meta\.lr: 0\.05 -> 0\.5; choose another group"):
        unfinished([other])


@given(st.integers(1, 20), st.integers(1, 12), st.sets(st.integers(0, 19)), st.integers(1, 20), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_what_was_begun_stays_as_it_was_cut(starts: int, size: int, begun: set[int], more: int, other: int):
    """However many workers there are now, and starts."""
    with TemporaryDirectory() as folder:
        before = cut(tuple(range(starts)), size, Path(folder))
        there = [chunk for place, chunk in enumerate(before) if place in begun]
        for chunk in there:
            leave(chunk)
        now = cut(tuple(range(starts + more)), other, Path(folder))
        assert [*chain(*(run_seeds(chunk.config) for chunk in now))] == [*range(starts + more)]
        assert all(chunk in now for chunk in there)
        assert unfinished(now) == [chunk for chunk in now if chunk not in there]
        assert all(chunk.config.population.runs <= other for chunk in unfinished(now))


def test_starts_that_were_begun_with_others_are_refused(tmp_path: Path):
    leave(*cut(tuple(range(8)), 8, tmp_path))
    for seeds in ((0, 1, 2, 3), (4, 5, 6, 7, 8)):
        with pytest.raises(ValueError, match="starts 0 to 7 of Ours_LR in one run, and only some of them"):
            unfinished(cut(seeds, 4, tmp_path))
    assert unfinished(cut((0, 1, 2, 3), 4, tmp_path, "Ours_LR_Momentum"))  # another label is another matter


def test_two_variations_of_one_name_are_refused():
    with pytest.raises(ValueError, match="same name"):
        unfinished([*cut((0, 1), 2), *cut((0, 1), 2)])


# Locks


def tiny(group: Path) -> Chunk:
    overrides = ["task.model.sizes=[64,4,10]", "inner={steps_per_update: 2, updates: 2, compile: off}", "threads=1"]
    return pack(load([CONFIGS / "digits.yaml"], overrides), "Random", Job("", (), (0, 1)), group, 2)[0]


def test_a_chunk_waits_for_the_lock_of_a_node_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Which is released while it waits."""
    config, directory = tiny(tmp_path)
    lock = claim(directory, resuming=False)
    monkeypatch.setattr("chunks.time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: lock.close()))
    train(to_dict(config), directory)
    assert lock.closed
    assert is_finished(directory)


def test_a_lock_that_stays_is_that_of_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, directory = tiny(tmp_path)
    clock, waits = count(0.0, SECONDS_OF_A_LOCK / 3), []
    monkeypatch.setattr("chunks.time", SimpleNamespace(monotonic=lambda: next(clock), sleep=waits.append))
    with claim(directory, resuming=False), pytest.raises(ValueError, match="two runs into the same directory"):
        train(to_dict(config), directory)
    assert len(waits) == 2


def test_starts_are_trained_on_the_data_of_those_that_are_there(tmp_path: Path):
    data = tmp_path / "table.csv"
    short = ["task.splits=[20,10,10]", "task.batch_size=5", "task.model.sizes=[2,3,1]", "inner.updates=1"]
    config = load([CONFIGS / "csv.yaml", CONFIGS / "Random.yaml"], [f"task.path={data}", *short])

    def chunks(first: int, label: str = "Random") -> list[Chunk]:
        return pack(config, label, Job("", (), (first,)), tmp_path / "group", 1)

    for seed, cut in ((0, 0), (0, 1), (1, 2)):
        np.savetxt(data, np.random.default_rng(seed).normal(size=(40, 3)), delimiter=",")
        if seed == 1:
            with pytest.raises(ValueError, match=r"the run in .*Random_000-000 was made with other data"):
                check_data([*chunks(cut, "another on the same task"), *chunks(cut)])
            continue
        check_data(chunks(cut))
        train(to_dict(chunks(cut)[0].config), chunks(cut)[0].directory)
