"""Randomness without state: every random number is a hash of where it is used.

    word' = word ^ (word >> a);  word' · odd constant;  ...          (splitmix64 on the host, a 32-bit mixer
    on the device)

A generator would have to be saved, split and replayed; a hash of (run seed, split, position) does not, so
resuming, chunking and stacking runs cannot change what a run sees. Mixers: splitmix64 (Steele et al. 2014)
and the two-round 32-bit mixer found by C. Wellons' hash prospector.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

WORD = 0xFFFFFFFFFFFFFFFF
HALF = 0xFFFFFFFF
POSITIVE = 0x7FFFFFFFFFFFFFFF
GOLDEN = 0x9E3779B97F4A7C15


def hash64(*words: int) -> int:
    """A non-negative 63-bit integer, a fixed function of the words (any integers)."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        state = _splitmix64(state ^ np.array([word & WORD], dtype=np.uint64))
    return int(state[0]) & POSITIVE


def hash64_grid(seeds: Sequence[int], label: int, start: int, steps: int) -> np.ndarray:
    """`hash64(seed, label, position)` for positions start..start+steps-1 of every seed: int64 [T, R]."""
    columns = np.array([seed & WORD for seed in seeds], dtype=np.uint64)
    keys = _splitmix64(_splitmix64(columns) ^ np.uint64(label))
    positions = np.arange(start, start + steps, dtype=np.uint64)
    return (_splitmix64(keys[None, :] ^ positions[:, None]) & np.uint64(POSITIVE)).astype(np.int64)


def _splitmix64(words: np.ndarray) -> np.ndarray:
    words = words + np.uint64(GOLDEN)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def random_bits(seed: Tensor, stream: int, count: int) -> Tensor:
    """32 random bits for each of `count` elements: int64 in [0, 2^32), [count].

    `seed` is a 0-d int64 tensor, `stream` tells several users of one seed apart. Elementwise operations
    only, so that it runs under vmap, torch.compile and on any device; the constants keep every product
    below 2^63, because signed overflow is undefined where the compiler generates C++.
    """
    low = _mix32((seed & HALF) ^ (stream * 0x9E3779B1 & HALF))
    high = _mix32((seed >> 32) ^ low)
    elements = torch.arange(count, device=seed.device)
    return _mix32((_mix32(elements ^ low) + high) & HALF)


def _mix32(words: Tensor) -> Tensor:
    words = words ^ (words >> 16)
    words = (words * 0x21F0AAAD) & HALF
    words = words ^ (words >> 15)
    words = (words * 0x735A2D97) & HALF
    return words ^ (words >> 15)


def random_normal(seed: Tensor, stream: int, count: int, dtype: torch.dtype) -> Tensor:
    """`count` standard normal numbers by the Box-Muller transform of hashed bits, [count]."""
    uniform = (random_bits(seed, stream, 2 * count).to(dtype) + 0.5) / 2.0**32
    # In float32 the largest hashes round up to exactly 1, which is fine: log(1) = 0. Zero cannot occur.
    return torch.sqrt(-2.0 * torch.log(uniform[:count])) * torch.cos(2.0 * torch.pi * uniform[count:])
