"""Tables of examples: reading them, checking them, splitting them by position, standardizing them.

    standardized = (x - mean) / deviation

with the statistics of the train and validation rows; the deviation of a column that is constant there, up to rounding,
is taken as 1.
"""

import logging
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hyperopt_id.tasks.digests import digest
from hyperopt_id.tasks.sampling import split_code

logger = logging.getLogger("hyperopt_id")
MOST_RANK = 8  # of an idx file; images have 3
ROUNDING = 1e-13  # of float64: what is left of sums of some hundred terms, relative to the largest
ROUNDING_FLOAT32 = 8 * 2.0**-23  # the same of float32 (docs/decisions/023-constant-columns.md)


@dataclass(frozen=True)
class Dataset:
    """inputs [N, ...], targets [N] (or [N, outputs]); splits: name -> (first row, last row + 1),
    contiguous, in the order train, validation, test; validation and test may be empty or left out where nothing asks
    for them; target_scale: the deviation targets were divided by, so that un-normalized mean squared error = mean
    squared error · target_scale²; source: the digest of what a loader made the values of, where it knows one;
    precision: the floating-point type that `to` was given, for inputs that have none. Anything else is a
    ValueError."""

    inputs: Tensor
    targets: Tensor
    splits: dict[str, tuple[int, int]]
    target_scale: float = 1.0
    source: str = ""
    precision: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name, values in (("inputs", self.inputs), ("targets", self.targets)):
            if not isinstance(values, Tensor) or not values.ndim:
                found = type(values).__name__ if not isinstance(values, Tensor) else "a single number"
                raise ValueError(f"Dataset: {name} must be a tensor with a row per example, got {found}")
        if len(self.inputs) != len(self.targets):
            counts = f"{len(self.inputs)} rows of inputs and {len(self.targets)} of targets"
            raise ValueError(f"Dataset: got {counts}: every example needs one of each")
        check_splits(self.splits, len(self.inputs))

    @cached_property
    def digest(self) -> str:
        """What tells these data from others: `source`, or else the digest of inputs and targets as they are."""
        return self.source or digest(self.inputs, self.targets)

    @property
    def dtype(self) -> torch.dtype:
        """The type of a model's weights: the floating-point type of the inputs, or of their parts where they are
        complex; where inputs are integers (tokens), the one that `to` was given, or else the default one."""
        if self.inputs.is_floating_point() or self.inputs.is_complex():
            return self.inputs.dtype.to_real()
        return self.precision or torch.get_default_dtype()

    def bounds(self, split: str) -> tuple[int, int]:
        """First row and last row + 1 of a split, or of "train+validation"."""
        split_code(split)
        if split == "train+validation":
            return self.splits["train"][0], self.splits.get("validation", self.splits["train"])[1]
        if split not in self.splits:
            raise ValueError(
                f"the data set has no {split} split, only {', '.join(self.splits)}: give it rows, or leave {split} "
                "out of what is asked for, such as the reports"
            )
        return self.splits[split]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Dataset":
        """The same data on a device; floating-point tensors also change type, complex ones to that of the same
        precision."""

        def moved(values: Tensor, name: str) -> Tensor:
            kind = dtype and (dtype.to_complex() if values.is_complex() else dtype)
            result = values.to(device, kind if values.is_floating_point() or values.is_complex() else None)
            if result.element_size() < values.element_size() and result.isinf().sum() > values.isinf().sum():
                largest = torch.finfo(result.dtype).max
                raise ValueError(
                    f"Dataset: {name} hold numbers beyond {largest:.3g}, the largest of {str(result.dtype)[6:]}: "
                    "standardize or scale them, or take dtype float64"
                )
            return result

        parts = {"inputs": moved(self.inputs, "inputs"), "targets": moved(self.targets, "targets")}
        return replace(self, **parts, precision=dtype or self.precision)


def check_splits(splits: Mapping[str, tuple[int, int]], rows: int) -> None:
    """Raise a ValueError where splits are not what `Dataset` says, for this number of rows."""
    order = ("train", "validation", "test")
    if not isinstance(splits, Mapping) or not {"train"} <= {*splits} <= {*order}:
        found = list(splits) if isinstance(splits, Mapping) else splits
        raise ValueError(f"Dataset: splits must name train, and may name validation and test, got {found}")
    last = None
    for name in (name for name in order if name in splits):
        bounds = splits[name]
        whole = isinstance(bounds, tuple | list) and all(isinstance(bound, int | np.integer) for bound in bounds)
        if not whole or len(bounds) != 2:
            raise ValueError(f"Dataset: split {name} must be (first row, last row + 1), got {bounds!r}")
        start, stop = bounds
        if not 0 <= start <= stop <= rows or (name == "train" and start == stop):
            needed = "1 or more of the" if name == "train" else "within the"
            raise ValueError(f"Dataset: split {name} must be {needed} rows 0 to {rows}, got ({start}, {stop})")
        if last is not None and start != last:
            raise ValueError(
                f"Dataset: split {name} must begin at row {last}, where the one before it ends, got ({start}, {stop}): "
                "put the rows in the order train, validation, test"
            )
        last = stop


def split_by_position(
    counts: Sequence[int], rows: int, name: str, validation_fraction: float | None = None
) -> dict[str, tuple[int, int]]:
    """Bounds of (train, validation, test) row counts, in file order. `validation_fraction` moves the border
    between train and validation: that part of the two together, its last rows, is validation. Only the validation
    split may be empty, and only where its count, or the fraction, is 0."""
    if len(counts) != 3:
        raise ValueError(f"{name}: splits must be three row counts [train, validation, test], got {list(counts)}")
    train, validation, test = (int(count) for count in counts)
    if validation_fraction is not None:
        if not 0.0 <= validation_fraction < 1.0:
            raise ValueError(f"{name}: validation_fraction must be 0 or more, below 1, got {validation_fraction}")
        both = train + validation
        validation = round(validation_fraction * both)
        train = both - validation
    if min(train, test) < 1 or validation < (1 if validation_fraction else 0):
        raise ValueError(
            f"{name}: a split is empty: train {train}, validation {validation}, test {test} rows; each needs at least 1"
        )
    if train + validation + test != rows:
        raise ValueError(
            f"{name}: splits {train} + {validation} + {test} = {train + validation + test} rows, "
            f"but the data have {rows}: the three counts must add up to the number of rows"
        )
    return {
        "train": (0, train),
        "validation": (train, train + validation),
        "test": (train + validation, rows),
    }


def standardize(values: np.ndarray, rows: int, names: str = "column") -> tuple[np.ndarray, np.ndarray]:
    """(standardized float64 values, deviation per column); statistics over the first `rows` rows (train and
    validation), population deviation; columns that are `constant` there are divided by 1, and where their values differ
    by rounding, the log says so and the values become 0.

    Powers of two are taken out of a column first, so that no square overflows or underflows and no bit changes.
    """
    values = values.astype(np.float64)
    _, exponent = np.frexp(np.abs(values[:rows]).max(axis=0))
    with np.errstate(over="ignore"):  # of other rows beside which a column is constant
        scaled = np.ldexp(values, -exponent)
    known, without = scaled[:rows], constant(values, rows)
    mean, deviation = known.mean(axis=0), np.where(without, 1.0, known.std(axis=0))
    rounding = without & (known.max(axis=0) != known.min(axis=0))
    for column in np.flatnonzero(rounding):
        name = f"{names} {column + 1}" if values.ndim > 1 else names
        logger.warning("data: %s is constant up to rounding: it is centered, and not divided by its deviation", name)
    with np.errstate(over="ignore"):  # of columns that are not constant
        centered = values - np.ldexp(mean, exponent)
    noise = np.abs(centered[:rows]).max(axis=0)
    centered = np.where(rounding & (np.abs(centered) <= noise), 0.0, centered)
    result = np.where(without, centered, (scaled - mean) / deviation)
    return result, np.where(without, 1.0, np.ldexp(deviation, exponent))


def constant(values: np.ndarray, rows: int) -> np.ndarray:
    """Whether the first `rows` values of each column differ by no more than rounding.

    That is some hundred units in the last place of float64, relative to the largest value of all rows; or eight of
    float32, where every value is a number of float32 as it is or as it is printed. Whole numbers are exact: those that
    differ, do. So 1.6e9 seconds and 0.01 more are two values, and 0.99999994 and 1 are one.
    """
    known = values[:rows].reshape(rows, -1)
    low, high = known.min(axis=0), known.max(axis=0)
    with np.errstate(over="ignore"):
        span, largest = high - low, np.maximum(-low, high)
        result = span <= ROUNDING * np.abs(values).reshape(len(values), -1).max(axis=0)
        for column in np.flatnonzero(~result & (span <= ROUNDING_FLOAT32 * largest)):
            result[column] = _is_float32(known[:, column])
        whole = ((known == np.round(known)) & (np.abs(known) < 2.0**53)).all(axis=0)
    return np.where(whole, low == high, result).reshape(values.shape[1:])


def _is_float32(column: np.ndarray) -> bool:
    single = column.astype(np.float32)
    return all(one == value or float(str(one)) == value for one, value in zip(single, column, strict=True))


def regression(
    table: np.ndarray,
    splits: dict[str, tuple[int, int]],
    standardize_inputs: bool = True,
    standardize_targets: bool = True,
) -> Dataset:
    """A data set whose last column is the target; float64."""
    known, source = splits["validation"][1], digest(table)
    inputs, targets, scale = table[:, :-1], table[:, -1], 1.0
    if standardize_inputs:
        inputs, _ = standardize(inputs, known, "input column")
    if standardize_targets:
        targets, deviation = standardize(targets, known, "the target")
        scale = float(deviation)
    return Dataset(_tensor(inputs), _tensor(targets), splits, scale, source)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))


def read_idx(content: bytes, name: str) -> np.ndarray:
    """The uint8 array of an idx file (the format of MNIST): two zero bytes, type 8, rank, big-endian sizes,
    values."""
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{name}: not an idx file of bytes (it should begin with 00 00 08)")
    rank = content[3]
    if not 1 <= rank <= MOST_RANK or len(content) < 4 + 4 * rank:
        raise ValueError(f"{name}: not an idx file: its header is cut, or of rank {rank}")
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank)
    if values.size != math.prod(shape):
        raise ValueError(f"{name}: holds {values.size} values, its header says {shape}")
    return values.reshape(shape)
