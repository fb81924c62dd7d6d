"""Batches are pure in (split, run seed, position); thinned ones are unbiased; misfits are refused."""

from dataclasses import replace

import pytest
import torch
from torch.func import grad, vmap

from hyperopt_id.tasks.data import Dataset, split_by_position
from hyperopt_id.tasks.hashing import hash64, hash64_grid, random_bits, random_normal
from hyperopt_id.tasks.models import mlp
from hyperopt_id.tasks.task import Batch, Task, supervised

ROWS = (30, 12, 9)
SPLITS = {"train": (0, 30), "validation": (30, 42), "test": (42, 51), "train+validation": (0, 42)}


def table(classes: int | None = None) -> Dataset:
    """51 random rows in float64; targets are classes or, with None, numbers."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(51, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(51, generator=generator, dtype=torch.float64)
    if classes:
        targets = torch.arange(51) % classes
    return Dataset(inputs, targets, split_by_position(ROWS, 51, "table"))


def make(batch_size: int | None) -> Task:
    return supervised(table(), lambda: mlp([4, 5, 1], "tanh"), "mse", batch_size)


def index_of(batch: Batch) -> torch.Tensor:
    assert batch.index is not None
    return batch.index


@pytest.mark.parametrize("batch_size", [1, 5, 7, 9])  # all but the first straddle epochs of one split or another
@pytest.mark.parametrize("split", SPLITS)
def test_chunks_do_not_change_the_order(split: str, batch_size: int):
    whole = make(batch_size).batches(split, [3, 8], 0, 20)
    task = make(batch_size)
    for start, steps in ((0, 6), (6, 1), (7, 13), (2, 5)):  # the last one goes back
        part = task.batches(split, [3, 8], start, steps)
        assert torch.equal(index_of(part), index_of(whole)[start : start + steps])
        assert torch.equal(part.seed, whole.seed[start : start + steps])


@pytest.mark.parametrize("split", SPLITS)
def test_every_epoch_is_a_permutation_of_the_split(split: str):
    first, last = SPLITS[split]
    rows = last - first
    stream = index_of(make(4).batches(split, [0], 0, rows)).flatten()
    epochs = stream.reshape(4, rows)
    assert all(torch.equal(epoch.sort().values, torch.arange(first, last)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_streams_together_equal_streams_alone():
    seeds = [5, 0, 2**40, -1]
    together = make(6).batches("train", seeds, 4, 5)
    assert index_of(together).shape == (5, 4, 6)
    assert together.seed.shape == (5, 4)
    for r, seed in enumerate(seeds):
        alone = make(6).batches("train", [seed], 4, 5)
        assert torch.equal(index_of(alone)[:, 0], index_of(together)[:, r])
        assert torch.equal(alone.seed[:, 0], together.seed[:, r])


def test_seeds_splits_and_positions_differ():
    task = make(6)
    batches = [task.batches(split, range(50), 0, 50) for split in SPLITS]
    seeds = torch.stack([batch.seed for batch in batches])
    assert seeds.unique().numel() == seeds.numel()
    assert seeds.min() >= 0
    assert not torch.equal(index_of(batches[0])[:, 0], index_of(batches[0])[:, 1])


def test_a_whole_split_needs_no_index():
    task = make(None)
    batches = task.batches("validation", [1, 2, 3], 10, 4)
    assert batches.index is None
    assert batches.seed.shape == (4, 3)
    assert task.sizes == {"train": 30, "validation": 12, "test": 9, "train+validation": 42}


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="unknown split 'holdout': use one of train, validation"):
        make(5).batches("holdout", [0], 0, 1)


@pytest.mark.parametrize("fraction, rows", [(0.25, 2), (0.5, 3), (1.0, 6), (1e-6, 1), (1 / 3, 2)])
def test_a_thinned_minibatch_is_its_first_rows(fraction: float, rows: int):
    task = make(6)
    batches = task.batches("train", [0], 0, 1)
    batch = Batch(index_of(batches)[0, 0], batches.seed[0, 0], "train")
    assert torch.equal(index_of(task.thin(batch, fraction)), index_of(batch)[:rows])


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_a_fraction_outside_its_range_is_refused(fraction: float):
    task = make(6)
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        task.thin(Batch(torch.arange(6), torch.tensor(0), "train"), fraction)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.7, 1.0])
def test_the_mean_of_thinned_gradients_is_the_gradient(fraction: float):
    """Over all offsets of the systematic sample: exactly."""
    task = make(None)
    params, buffers = task.init(0)

    def gradient(seed: torch.Tensor) -> dict:
        batch = task.thin(Batch(None, seed, "train"), fraction)
        return grad(lambda p: task.loss(p, buffers, batch)[0])(params)

    mean = {key: value.mean(0) for key, value in vmap(gradient)(torch.arange(30)).items()}
    full = grad(lambda p: task.loss(p, buffers, Batch(None, torch.tensor(0), "train"))[0])(params)
    torch.testing.assert_close(mean, full)


def test_a_thinned_whole_split_has_distinct_rows_of_that_split():
    task = make(None)
    for seed in range(12):
        index = index_of(task.thin(Batch(None, torch.tensor(seed), "validation"), 0.4))
        assert len(index.unique()) == len(index) == 5
        assert index.min() >= 30
        assert index.max() < 42


def test_a_hash_of_several_words_is_fixed_for_ever():
    """Resumed runs of later versions must see the same data."""
    assert hash64_grid([1, 2], 3, 4, 2).tolist() == [[hash64(s, 3, p) for s in (1, 2)] for p in (4, 5)]
    assert hash64(0) == 0xE220A8397B1DCDAF - 2**63  # the published first output of splitmix64, sign bit off
    assert hash64(1, 2, 3) == 5797055558538453683
    assert random_bits(torch.tensor(7), 0, 3).tolist() == [1673089467, 1083227024, 3342026971]


def test_random_bits_are_uniform_and_streams_uncorrelated():
    seeds = torch.from_numpy(hash64_grid(range(64), 0, 0, 1))[0]
    bits = torch.stack([vmap(lambda s, n=n: random_bits(s, n, 1000))(seeds) for n in (0, 1)]).double() / 2**32
    assert bits.min() >= 0
    assert bits.max() < 1
    assert bits.mean().item() == pytest.approx(0.5, abs=5e-3)
    assert bits.var().item() == pytest.approx(1 / 12, rel=2e-2)
    pairs = torch.stack(
        [bits[0].flatten(), bits[1].flatten(), bits[0].roll(1, 0).flatten(), bits[0].roll(1, 1).flatten()]
    )
    assert (torch.corrcoef(pairs) - torch.eye(4)).abs().max() < 0.02


def test_random_normal_numbers_have_the_right_moments():
    values = random_normal(torch.tensor(hash64(1)), 0, 100_000, torch.float64)
    assert values.mean().item() == pytest.approx(0.0, abs=0.02)
    assert values.std().item() == pytest.approx(1.0, abs=0.02)
    assert values.pow(4).mean().item() == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    "sizes, criterion, classes, message",
    [
        ([5, 3], "cross_entropy", 3, r"does not take the data's inputs, of shape \[4\] each"),
        ([4, 2], "cross_entropy", 3, r"outputs have shape \[2\] each, 3 classes need \[3\]"),
        ([4, 3], "cross_entropy", None, "needs integer targets"),
        ([4, 2], "mse", None, r"outputs of the model have shape \[2\] each, the targets need \[1\]"),
    ],
)
def test_models_that_do_not_fit_the_data_are_refused(sizes: list, criterion: str, classes: int | None, message: str):
    with pytest.raises(ValueError, match=message):
        supervised(table(classes), lambda: mlp(sizes), criterion, 5)


@pytest.mark.parametrize(("split", "rows"), [("train", 30), ("validation", 12)])
def test_a_batch_larger_than_its_split_is_refused(split: str, rows: int):
    message = f"batch_size {rows + 1} is more than the {rows} rows of the {split} split; take fewer, or None for"
    with pytest.raises(ValueError, match=message):
        make(rows + 1).batches(split, [0], 0, 1)
    assert index_of(make(rows).batches(split, [0], 0, 1)).unique().numel() == rows


@pytest.mark.parametrize("batch_size", [5, None])
def test_nothing_is_drawn_from_or_measured_on_an_empty_split(batch_size: int | None):
    data = replace(table(), splits=split_by_position((42, 0, 9), 51, "table"))
    task = supervised(data, lambda: mlp([4, 5, 1], "tanh"), "mse", batch_size)
    with pytest.raises(ValueError, match="the validation split is empty: there is nothing to draw batches from"):
        task.batches("validation", [0], 0, 1)
    with pytest.raises(ValueError, match="the validation split is empty: leave it out of the reports"):
        task.evaluate(*task.init(0), "validation")
    assert task.sizes["train+validation"] == task.sizes["train"] == 42


def test_wrong_criterion_and_batch_size_are_refused():
    with pytest.raises(ValueError, match="criterion 'hinge'"):
        supervised(table(), lambda: mlp([4, 3]), "hinge", 5)
    for size in (0, 2.5, True):
        with pytest.raises(ValueError, match="batch_size must be a whole number, at least 1"):
            supervised(table(), lambda: mlp([4, 3]), "mse", size)  # type: ignore[arg-type]
