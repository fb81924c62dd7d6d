"""What is kept of files that were read."""

from pathlib import Path

import numpy as np
import pytest

from hyperopt_id.analysis.load_cache import cached


def reading(calls: list[list[Path]]):
    def read(files: list[Path]) -> dict[str, np.ndarray]:
        calls.append(files)
        return {"loss/test": np.arange(len(files[0].read_bytes()), dtype=np.float32), "steps": np.array([1, 2])}

    return read


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "events").write_bytes(b"abc")
    return tmp_path / "events"


def test_what_was_read_is_not_read_again(tmp_path: Path, source: Path):
    calls: list[list[Path]] = []
    first, second = (cached(tmp_path / "cache", [source], reading(calls)) for _ in range(2))
    assert len(calls) == 1
    assert {name: array.tolist() for name, array in first.items()} == {n: a.tolist() for n, a in second.items()}
    assert [array.dtype for array in first.values()] == [array.dtype for array in second.values()]


def test_a_changed_file_is_read_again(tmp_path: Path, source: Path):
    calls: list[list[Path]] = []
    cached(tmp_path / "cache", [source], reading(calls))
    source.write_bytes(b"abcd")
    assert len(cached(tmp_path / "cache", [source], reading(calls))["loss/test"]) == 4
    assert len(calls) == 2


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_cache_is_made_again(tmp_path: Path, source: Path, seed: int):
    calls: list[list[Path]] = []
    expected = cached(tmp_path / "cache", [source], reading(calls))
    (entry,) = (tmp_path / "cache").iterdir()
    data, generator = bytearray(entry.read_bytes()), np.random.default_rng(seed)
    if seed < 2:
        data = data[: len(data) // (seed + 2)]
    else:
        for place in generator.integers(len(data), size=10 * seed):
            data[place] ^= int(generator.integers(1, 256))
    entry.write_bytes(data)
    found = cached(tmp_path / "cache", [source], reading(calls))
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in expected.items()}


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path, source: Path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    calls: list[list[Path]] = []
    for _ in range(2):
        assert len(cached(tmp_path / "cache", [source], reading(calls))["steps"]) == 2
    assert len(calls) == 2
