"""A task: everything about a training problem as pure functions of (params, buffers, batch).

    loss(params, buffers, batch) = (L, (buffers', metrics))

No function here has a memory: randomness is a function of `batch.seed`, row order a function of
(split, run seed, position). R runs, T steps, B rows of a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.arguments import entrance, first_line
from hyperopt_id.tasks import losses
from hyperopt_id.tasks.data import Dataset
from hyperopt_id.tasks.fitting import fitted
from hyperopt_id.tasks.functional import FunctionalModule, ModuleFactory, Tensors
from hyperopt_id.tasks.losses import Criterion, LossFunction
from hyperopt_id.tasks.outputs import concatenated, detached, tensors
from hyperopt_id.tasks.sampling import Permutations, batch_seeds, sample_size, split_code, systematic_rows

EVALUATION_ROWS = 10_000
Metrics = dict[str, Tensor]


class Batch(NamedTuple):
    """index: rows in the whole data set, int64 [B], or None for every row of `split`;
    seed: 0-d int64, the only randomness a loss may use; split: its name (static).

    `Task.batches` puts the axes [T, R] in front of index and seed.
    """

    index: Tensor | None  # type: ignore[assignment] - the field has the name of a method of tuple
    seed: Tensor
    split: str


@dataclass(frozen=True)
class Task:
    """The parts of a training problem.

    init(seed) -> (params, buffers)
        leaves the global generators untouched.
    loss(params, buffers, batch) -> (scalar, (new buffers, metrics))
        training mode; arguments are never written to; runs under vmap over (params, buffers, index, seed) and
        torch.compile, and is twice differentiable.
    evaluate(params, buffers, split) -> metrics of the whole split
        evaluation mode; the loss, and what the task has of accuracy, unnormalized_loss, perplexity.
    batches(split, seeds, start, steps) -> Batch with leading axes [T, R]
        batches number start..start+steps-1 of R streams, a function of their position. A run asks for each once and
        in order, if ahead of time; a resumed one begins where it stopped.
    thin(batch, fraction) -> Batch
        a random sub-batch of ceil(fraction · B) rows, an unbiased estimate of the batch.
    sizes, roles
        rows per split; parameter name -> input | hidden | output | bias | norm | embedding.
    digest() -> text
        what tells the data from others, such as `Dataset.digest`; "" where it is not known.
    limits
        "vmap", "compile" -> why the loss is not to be vectorized over runs or compiled; "" where that has been tried.
    """

    init: Callable[[int], tuple[Tensors, Tensors]]
    loss: Callable[[Tensors, Tensors, Batch], tuple[Tensor, tuple[Tensors, Metrics]]]
    evaluate: Callable[[Tensors, Tensors, str], Metrics]
    batches: Callable[[str, Sequence[int], int, int], Batch]
    thin: Callable[[Batch, float], Batch]
    sizes: dict[str, int] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    digest: Callable[[], str] = lambda: ""
    limits: dict[str, str] = field(default_factory=dict)


@entrance
def supervised(
    dataset: Dataset,
    module_factory: ModuleFactory,
    criterion: str | LossFunction,
    batch_size: int | None,
    *,
    name: str | None = None,
) -> Task:
    """The task of fitting a module to (inputs, targets): `criterion` is "cross_entropy" (targets int64 [N],
    outputs [B, classes]), "mse" (mean over all entries), or any function (outputs, targets) -> one number, such as
    `F.l1_loss` or `nn.CrossEntropyLoss(label_smoothing=0.1)`, which reports have as loss and under its `name`;
    `batch_size` None means the whole split.

    Build it after `dataset.to(device, dtype)`: weights and batches follow the data set.
    """
    given = losses.as_criterion(criterion, dataset, name)
    sampler = RowSampler.create(dataset, batch_size)
    module = FunctionalModule(module_factory, dataset.targets.device, dataset.dtype)
    measured = fitted(module, dataset, given, batch_size)

    def loss(params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensor, tuple[Tensors, Metrics]]:
        inputs, targets = sampler.rows(batch)
        outputs, buffers = module.train(params, buffers, batch.seed, inputs)
        return measured.function(outputs, targets), (buffers, {})

    @torch.enable_grad()  # a forward may differentiate by its inputs; of what is detached, no graph is kept
    def evaluate(params: Tensors, buffers: Tensors, split: str) -> Metrics:
        blocks = _evaluation_blocks(dataset, split)
        compute = partial(_evaluated, split, partial(module.evaluate, trees.detach(params), trees.detach(buffers)))
        if measured.by_rows:
            totals = _mean_over_blocks(dataset, blocks, measured, compute)
        else:
            totals = losses.measure(measured, *_whole_split(dataset, blocks, compute))
        if measured.function is losses.mean_squared_error:
            totals["unnormalized_loss"] = totals["loss"] * dataset.target_scale**2
        return totals

    parts = (module.init, loss, evaluate, sampler.batches, sampler.thin, sampler.sizes, module.roles)
    return Task(*parts, digest=lambda: dataset.digest, limits=module.limits)


def _evaluated(split: str, evaluate: Callable[[Tensor], Any], inputs: Tensor) -> Any:
    try:
        return evaluate(inputs)
    except (RuntimeError, IndexError, TypeError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        why = first_line(error)
        raise ValueError(
            f"the model does not take {len(inputs)} rows of the {split} split at once in evaluation mode: {why}"
        ) from error


Blocks = list[tuple[int, int]]


def _evaluation_blocks(dataset: Dataset, split: str) -> Blocks:
    """(first row, last row + 1) of pieces of a split that fit into memory."""
    first, last = dataset.bounds(split)
    if first == last:
        raise ValueError(f"the {split} split is empty: leave it out of the reports")
    return [(start, min(start + EVALUATION_ROWS, last)) for start in range(first, last, EVALUATION_ROWS)]


def _mean_over_blocks(
    dataset: Dataset, blocks: Blocks, criterion: Criterion, compute: Callable[[Tensor], Any]
) -> Metrics:
    rows, totals = blocks[-1][1] - blocks[0][0], Metrics()
    for start, stop in blocks:
        outputs = compute(dataset.inputs[start:stop])
        values = losses.measure(criterion, outputs, dataset.targets[start:stop])
        totals = {name: totals.get(name, 0.0) + (stop - start) / rows * value for name, value in values.items()}
    return totals


def _whole_split(dataset: Dataset, blocks: Blocks, compute: Callable[[Tensor], Any]) -> tuple[Any, Tensor]:
    """Outputs and targets of all rows. What has no row for each input is not divided into blocks."""
    targets = dataset.targets[blocks[0][0] : blocks[-1][1]]
    parts = []
    for start, stop in blocks:
        parts.append(detached(compute(dataset.inputs[start:stop])))
        leaves = trees.leaves(parts[-1])
        if len(blocks) == 1:
            return parts[0], targets
        by_rows = all(leaf.ndim and len(leaf) == stop - start for leaf in leaves)
        if not by_rows or len(leaves) != len(tensors(parts[-1])):  # or something that is no tree holds them
            return compute(dataset.inputs[blocks[0][0] : blocks[-1][1]]), targets
    return concatenated(parts), targets


@dataclass(frozen=True)
class RowSampler:
    """Batches of rows of a data set. `tables`: inputs and targets with rows flattened, as `embedding` wants
    them."""

    dataset: Dataset
    batch_size: int | None
    sizes: dict[str, int]
    streams: dict[str, Permutations]
    whole: dict[str, tuple[Tensor, Tensor]]
    tables: tuple[Tensor, Tensor]

    @staticmethod
    def create(dataset: Dataset, batch_size: int | None) -> "RowSampler":
        if batch_size is not None:
            whole = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
            if not whole or batch_size < 1:
                needed = "batch_size must be a whole number, at least 1, or None for the whole split"
                raise ValueError(f"{needed}, got {batch_size!r}")
        bounds = {split: dataset.bounds(split) for split in (*dataset.splits, "train+validation")}
        return RowSampler(
            dataset,
            batch_size,
            sizes={split: last - first for split, (first, last) in bounds.items()},
            streams={split: Permutations(split, last - first, first) for split, (first, last) in bounds.items()},
            whole={
                split: (dataset.inputs[first:last], dataset.targets[first:last])
                for split, (first, last) in bounds.items()
            },
            tables=(
                dataset.inputs.reshape(len(dataset.inputs), -1),
                dataset.targets.reshape(len(dataset.targets), -1),
            ),
        )

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Inputs [B, ...] and targets [B, ...]. A whole split is a view. `F.embedding` gathers whole rows
        several times faster than `inputs[index]`, under vmap too."""
        if batch.index is None:
            return self.whole[batch.split]
        inputs, targets = (F.embedding(batch.index, table) for table in self.tables)
        return _unflattened(inputs, self.dataset.inputs), _unflattened(targets, self.dataset.targets)

    def batches(self, split: str, seeds: Sequence[int], start: int, steps: int) -> Batch:
        """See `Task.batches`: index [T, R, B] or None, seed [T, R]."""
        device = self.dataset.targets.device
        seed = batch_seeds(split, seeds, start, steps, device)
        first, last = self.dataset.bounds(split)
        rows = last - first
        if not rows:
            raise ValueError(f"the {split} split is empty: there is nothing to draw batches from")
        if self.batch_size is None:
            return Batch(None, seed, split)
        if self.batch_size > rows:
            raise ValueError(
                f"batch_size {self.batch_size} is more than the {rows} rows of the {split} split; take fewer, "
                "or None for the whole split"
            )
        index = self.streams[split].batches(seeds, start, steps, self.batch_size)
        return Batch(torch.from_numpy(index).to(device, non_blocking=True), seed, split)

    def thin(self, batch: Batch, fraction: float) -> Batch:
        """A minibatch is in random order, so its first rows are a random sample; a whole split is sampled
        systematically."""
        split_code(batch.split)
        if batch.index is not None:
            return batch._replace(index=batch.index[..., : sample_size(batch.index.shape[-1], fraction)])
        if sample_size(self.sizes[batch.split], fraction) == self.sizes[batch.split]:
            return batch
        first, last = self.dataset.bounds(batch.split)
        return batch._replace(index=systematic_rows(batch.seed, first, last - first, fraction))


def _unflattened(rows: Tensor, whole: Tensor) -> Tensor:
    """Rows [B, entries] in the shape that those of `whole` have; two dimensions save a microsecond of a step's 200."""
    if whole.ndim == 2:
        return rows
    return rows.squeeze(1) if whole.ndim == 1 else rows.unflatten(1, whole.shape[1:])
