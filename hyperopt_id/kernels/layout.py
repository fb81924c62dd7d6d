"""How the kernels see a tensor: its axes in the order of memory, merged into [A, X, B, Y, C].

X and Y are the two axes that the factored accumulators of the learned optimizer average over. Whatever the rank and the
order of memory (channels_last, transposed), a dense tensor has this form, and tensors of one form share their code.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Geometry(NamedTuple):
    """Lengths of the merged axes; whether Y, not X, is the largest axis, over which the rows are means."""

    a: int
    x: int
    b: int
    y: int
    c: int
    rows_are_lines: int


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """(second largest, largest) axis, of equal ones the later; None for fewer than two axes."""
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return (order[-2], order[-1]) if len(order) > 1 else None


def order_of_memory(shape: Sequence[int], stride: Sequence[int]) -> list[int] | None:
    """The axes from the one with the longest stride to the one with the shortest; None for a tensor with holes or
    overlaps. Axes of length 1 come where their strides say, which is of no consequence."""
    order = sorted(range(len(shape)), key=lambda axis: (-stride[axis], axis))
    expected = 1
    for axis in reversed(order):
        if shape[axis] > 1 and stride[axis] != expected:
            return None
        expected *= shape[axis]
    return order


@functools.lru_cache(maxsize=4096)
def geometry(shape: tuple[int, ...], stride: tuple[int, ...]) -> Geometry | None:
    """The merged form of a dense tensor; None for a tensor with holes. A tensor without elements is a vector."""
    order, axes, size = order_of_memory(shape, stride), factored_axes(shape), math.prod(shape)
    if size == 0 or (order is not None and axes is None):
        return Geometry(1, 1, 1, size, 1, 0)
    if order is None or axes is None:
        return None
    first, last = sorted(order.index(axis) for axis in axes)
    lengths = [shape[axis] for axis in order]
    parts = lengths[:first], lengths[first + 1 : last], lengths[last + 1 :]
    before, between, behind = map(math.prod, parts)
    return Geometry(before, lengths[first], between, lengths[last], behind, int(order[last] == axes[1]))


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape have their elements in one order of memory, with the same holes."""
    strides = one.stride(), other.stride()
    return strides[0] == strides[1] or all(a == b for n, a, b in zip(one.shape, *strides) if n > 1)


def zeros(param: Tensor, leading: Sequence[int], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros [*leading, *shape], the axes of `shape` in the order of the parameter's memory."""
    order = order_of_memory(param.shape, param.stride()) or list(range(param.ndim))
    stored = param.new_zeros((*leading, *(shape[axis] for axis in order)), dtype=dtype)
    places = [len(leading) + order.index(axis) for axis in range(len(order))]
    return stored.permute(*range(len(leading)), *places)
