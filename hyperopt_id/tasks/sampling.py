"""Which rows a batch holds, as a pure function of (split, run seed, position).

    stream(seed) = permutation(seed, split, epoch 0), permutation(seed, split, epoch 1), ...     concatenated
    batch k      = stream[k·B : (k+1)·B]

so a batch may straddle two epochs, and every epoch is a permutation of the split.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hyperopt_id.tasks.hashing import hash64, hash64_grid

SPLITS = {"train": 1, "validation": 2, "test": 3, "train+validation": 4}


def split_code(split: str) -> int:
    """The number of a split; an unknown name is a ValueError."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    return SPLITS[split]


def batch_seeds(split: str, seeds: Sequence[int], start: int, steps: int, device: torch.device) -> Tensor:
    """The random seed of every batch: int64 [T, R] on `device`."""
    return torch.from_numpy(hash64_grid(seeds, split_code(split), start, steps)).to(device, non_blocking=True)


class Permutations:
    """The row streams of one split. It keeps the permutations of the current epoch only, as a cache:
    dropping or refilling it changes nothing but time.

    They stay in host memory (int32): the device needs only the rows of the next few batches.
    """

    def __init__(self, split: str, rows: int, first_row: int) -> None:
        self.code = split_code(split)
        self.rows = rows
        self.first_row = first_row
        self.cache: dict[int, dict[int, np.ndarray]] = {}

    def batches(self, seeds: Sequence[int], start: int, steps: int, batch_size: int) -> np.ndarray:
        """Row numbers of the batches start..start+steps-1 of each stream: int64 [T, R, B]."""
        begin, end = start * batch_size, (start + steps) * batch_size
        first_epoch, last_epoch = begin // self.rows, (end - 1) // self.rows
        streams = np.empty((len(seeds), end - begin), dtype=np.int64)
        for stream, seed in zip(streams, seeds, strict=True):
            filled = 0
            for epoch in range(first_epoch, last_epoch + 1):
                low = max(begin - epoch * self.rows, 0)
                high = min(end - epoch * self.rows, self.rows)
                stream[filled : filled + high - low] = self._permutation(seed, epoch)[low:high]
                filled += high - low
            # Positions grow while training, so older epochs will not be asked for again.
            self.cache[seed] = {e: p for e, p in self.cache[seed].items() if e >= first_epoch}
        streams += self.first_row
        return np.ascontiguousarray(streams.reshape(len(seeds), steps, batch_size).transpose(1, 0, 2))

    def _permutation(self, seed: int, epoch: int) -> np.ndarray:
        kept = self.cache.setdefault(seed, {})
        if epoch not in kept:
            generator = torch.Generator().manual_seed(hash64(seed, self.code, epoch))
            kept[epoch] = torch.randperm(self.rows, generator=generator, dtype=torch.int32).numpy()
        return kept[epoch]


def systematic_rows(seed: Tensor, first_row: int, rows: int, fraction: float) -> Tensor:
    """ceil(fraction · rows) distinct, evenly spaced rows whose offset comes from `seed`: int64 [n].

    Every row is drawn with the same probability, so the mean over the sample is an unbiased estimate.
    """
    count = sample_size(rows, fraction)
    steps = torch.arange(count, device=seed.device) * rows // count
    return first_row + (torch.remainder(seed, rows) + steps) % rows


def sample_size(rows: int, fraction: float) -> int:
    """ceil(fraction · rows), at least 1; a fraction outside (0, 1] is a ValueError."""
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"the fraction of a batch must be in (0, 1], got {fraction}")
    return max(1, math.ceil(fraction * rows - 1e-9))  # 0.1 · 50 is 5.000000000000001 for some factors
