"""Penn Treebank: streams, carried state, perplexity; small texts in the true format."""

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad

from hyperopt_id.tasks import penn_treebank as ptb
from hyperopt_id.tasks.models import lstm, transformer
from hyperopt_id.tasks.penn_treebank import penn_treebank
from hyperopt_id.tasks.task import Batch, Task

TEXTS = {
    "train": " the cat sat on the mat \n" * 15,
    "valid": " the dog sat \n" * 10,
    "test": " the cat sat \n" * 12,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "penn_treebank").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "penn_treebank" / f"ptb.{name}.txt").write_text(text)
    return tmp_path


def make(root: Path, fraction: float = 0.3) -> Task:
    """145 words of training and validation text: 4 streams of 36 rows, 25 of them training; batches of 5."""
    factory = lambda vocabulary: lstm(vocabulary, 4, 5, 2)  # noqa: E731
    return penn_treebank(root, factory, 4, 5, fraction, dtype=torch.float64)


def words(root: Path, *names: str) -> list[str]:
    text = "".join((root / "penn_treebank" / f"ptb.{name}.txt").read_text() for name in names)
    return text.replace("\n", "<eos>").split()


def one(task: Task, step: int, split: str = "train") -> Batch:
    batches = task.batches(split, [0], step, 1)
    assert batches.index is not None
    return Batch(batches.index[0, 0], batches.seed[0, 0], split)


def test_streams_hold_the_text_in_order(root: Path):
    text = words(root, "train", "valid")
    vocabulary = sorted(set(text))
    assert vocabulary == ["<eos>", "cat", "dog", "mat", "on", "sat", "the"]
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(size))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            seen.append(tokens)
            return F.one_hot(tokens, 7) * self.scale

    task = penn_treebank(root, Spy, 4, 5, 0.3)
    params, buffers = task.init(0)
    assert buffers == {}
    task.loss(params, buffers, one(task, 1))
    rows = len(text) // 4
    expected = [[vocabulary.index(text[stream * rows + 5 + t]) for t in range(5)] for stream in range(4)]
    assert seen[-1].tolist() == expected
    assert task.sizes == {"train": rows - 11, "validation": 11, "test": 12, "train+validation": rows}


def test_batches_cover_an_epoch_and_start_again(root: Path):
    task = make(root)
    batches = task.batches("train", [3, 4], 0, 12)
    assert batches.index is not None
    assert batches.index.shape == (12, 2, 5, 4)
    rows = batches.index[:, 0, :, 0] // 4
    assert rows[:5, 0].tolist() == [0, 5, 10, 15, 19]  # the last one reaches back: 25 rows have 24 targets
    assert torch.equal(rows[5:10], rows[:5])
    assert sorted(set(rows[:5].flatten().tolist())) == list(range(24))
    later = task.batches("train", [3, 4], 7, 3)
    assert later.index is not None
    assert torch.equal(later.index, batches.index[7:10])
    assert torch.equal(later.seed, batches.seed[7:10])


def test_state_is_carried_and_cleared_at_the_beginning_of_an_epoch(root: Path):
    task = make(root)
    params, start = task.init(0)
    assert set(start) == {"state.h", "state.c"}
    _, (first, _) = task.loss(params, start, one(task, 0))
    carried, (second, _) = task.loss(params, first, one(task, 1))
    fresh, _ = task.loss(params, start, one(task, 1))
    assert carried != fresh
    assert all(not torch.equal(first[key], second[key]) for key in first)
    expected, _ = task.loss(params, start, one(task, 5))  # a new epoch: the old state does not matter
    again, _ = task.loss(params, second, one(task, 5))
    assert torch.equal(again, expected)


def test_other_splits_start_from_zero_and_leave_the_state_alone(root: Path):
    task = make(root)
    params, start = task.init(0)
    _, (state, _) = task.loss(params, start, one(task, 0))
    value, (after, _) = task.loss(params, state, one(task, 1, "validation"))
    expected, _ = task.loss(params, start, one(task, 1, "validation"))
    assert torch.equal(value, expected)
    assert all(torch.equal(after[key], state[key]) for key in state)


def test_carried_state_equals_one_long_pass(root: Path):
    task = make(root)
    params, buffers = task.init(0)
    losses = []
    for step in range(4):
        loss, (buffers, _) = task.loss(params, buffers, one(task, step))
        losses.append(loss)
    long = penn_treebank(root, lambda vocabulary: lstm(vocabulary, 4, 5, 2), 4, 20, 0.3, dtype=torch.float64)
    expected, (state, _) = long.loss(*long.init(0), one(long, 0))
    torch.testing.assert_close(torch.stack(losses).mean(), expected)
    torch.testing.assert_close(buffers, state)


def test_evaluation_carries_the_state_over_the_whole_split(root: Path):
    task = make(root)
    params, buffers = task.init(0)
    metrics = task.evaluate(params, buffers, "test")
    long = penn_treebank(root, lambda vocabulary: lstm(vocabulary, 4, 5, 2), 4, 11, 0.3, dtype=torch.float64)
    expected, _ = long.loss(*long.init(0), one(long, 0, "test"))  # 12 rows have 11 targets
    torch.testing.assert_close(metrics["loss"], expected)
    assert metrics["perplexity"].item() == pytest.approx(math.exp(expected.item()))


def test_thinned_batches_are_an_unbiased_choice_of_streams(root: Path):
    task = make(root)
    params, buffers = task.init(0)
    _, (buffers, _) = task.loss(params, buffers, one(task, 0))
    batch = one(task, 1)

    def gradient(batch: Batch) -> dict:
        return grad(lambda p: task.loss(p, buffers, batch)[0])(params)

    parts = [gradient(task.thin(batch._replace(seed=torch.tensor(seed)), 0.5)) for seed in range(4)]
    mean = {key: torch.stack([part[key] for part in parts]).mean(0) for key in params}
    torch.testing.assert_close(mean, gradient(batch))


def test_a_transformer_needs_no_state(root: Path):
    task = penn_treebank(root, lambda v: transformer(v, length=5, embedding=8, heads=2), 4, 5, 0.3)
    params, buffers = task.init(0)
    assert buffers == {}
    loss, _ = task.loss(params, buffers, one(task, 0))
    assert loss.isfinite()
    assert task.evaluate(params, buffers, "validation")["perplexity"] > 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "must be at least 1"),
        ({"validation_fraction": 1.0}, "between 0 and 1"),
        ({"length": 40}, r"the train text has 33 words in each of 4 streams, 41 are needed"),
        ({"batch_size": 20}, "the validation text has 1 words in each of 20 streams, 2 are needed"),
    ],
)
def test_impossible_streams_are_refused(root: Path, options: dict[str, Any], message: str):
    options = {"batch_size": 4, "length": 5} | options
    with pytest.raises(ValueError, match=message):
        penn_treebank(root, lambda vocabulary: lstm(vocabulary, 4, 5, 1), **options)


def test_a_split_without_a_whole_batch_can_be_evaluated_only(root: Path):
    task = penn_treebank(root, lambda vocabulary: lstm(vocabulary, 4, 5, 1), 4, 20, 0.3)
    assert task.evaluate(*task.init(0), "validation")["loss"].isfinite()
    with pytest.raises(ValueError, match="the validation text has 11 words in each of 4 streams, 21 are needed"):
        task.batches("validation", [0], 0, 1)


def test_missing_texts_are_named(tmp_path: Path):
    with pytest.raises(
        ValueError,
        match=r"Penn Treebank is not in .* switched off.*put ptb.train.txt, ptb.valid.txt, ptb.test.txt",
    ):
        penn_treebank(tmp_path, lambda vocabulary: lstm(vocabulary), download=False)


def test_texts_are_verified_at_every_start(root: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    """One damaged text among published ones is refused, another corpus in their place is said."""
    folder = root / "penn_treebank"
    published = {
        f"ptb.{name}.txt": f"md5:{hashlib.md5((folder / f'ptb.{name}.txt').read_bytes()).hexdigest()}" for name in TEXTS
    }
    make(root)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"Penn Treebank: no file in {folder} has the checksum of the published one")
    caplog.clear()
    monkeypatch.setattr(ptb, "CHECKSUMS", published)
    make(root)
    assert not caplog.records
    (folder / "ptb.valid.txt").write_text(TEXTS["valid"].replace("dog", "cat", 1))
    with pytest.raises(ValueError, match=r"ptb\.valid\.txt is corrupt: the MD5 checksum of its file should be"):
        make(root)


def test_texts_in_another_encoding_are_named(root: Path):
    (root / "penn_treebank" / "ptb.test.txt").write_bytes("für\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"ptb\.test\.txt: not a text file in UTF-8"):
        make(root)
