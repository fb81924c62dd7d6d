"""Packing of starts into run directories."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from chunks import MOST_MEMBERS, Chunk, default_size, pack, unfinished
from hypothesis import given
from hypothesis import strategies as st
from override_generators import Job
from short_runs import CONFIGS

from hyperopt_id.build.names import run_seeds, starting_values
from hyperopt_id.config import dump, load

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


def test_other_cuts_are_refused_with_the_size_that_goes_on(tmp_path: Path):
    for chunk in cut(tuple(range(8)), 3, tmp_path):
        leave(chunk)
    with pytest.raises(ValueError, match="add --chunk 3 to continue"):
        unfinished(cut(tuple(range(8)), 4, tmp_path))
    assert unfinished(cut(tuple(range(8)), 4, tmp_path, "Ours_LR_Momentum"))  # another label is another matter


def test_two_variations_of_one_name_are_refused():
    with pytest.raises(ValueError, match="same name"):
        unfinished([*cut((0, 1), 2), *cut((0, 1), 2)])
