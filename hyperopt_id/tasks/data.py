"""Tables of examples: reading them, checking them, splitting them by position, standardizing them.

    standardized = (x - mean) / deviation

with the statistics of the train and validation rows; the deviation of a constant column is taken as 1.
"""

import csv
import math
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hyperopt_id.tasks.digests import digest
from hyperopt_id.tasks.sampling import split_code


@dataclass(frozen=True)
class Dataset:
    """inputs [N, ...], targets [N] (or [N, outputs]); splits: name -> (first row, last row + 1),
    contiguous, in the order train, validation, test; validation and test may be empty or left out where nothing asks
    for them; target_scale: the deviation targets were divided by, so that un-normalized mean squared error = mean
    squared error · target_scale²; source: the digest of what a loader made the values of, where it knows one. Anything
    else is a ValueError."""

    inputs: Tensor
    targets: Tensor
    splits: dict[str, tuple[int, int]]
    target_scale: float = 1.0
    source: str = ""

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
        """The floating-point type of the inputs, or the default one where inputs are integers (tokens)."""
        return self.inputs.dtype if self.inputs.is_floating_point() else torch.get_default_dtype()

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
        """The same data on a device; floating-point tensors also change type."""

        def moved(values: Tensor) -> Tensor:
            return values.to(device, dtype if values.is_floating_point() else None)

        return replace(self, inputs=moved(self.inputs), targets=moved(self.targets))


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


def standardize(values: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(standardized float64 values, deviation per column); statistics over the first `rows` rows (train and
    validation), population deviation; columns that are constant there are divided by 1."""
    values = values.astype(np.float64)
    known = values[:rows]
    constant = known.max(axis=0) == known.min(axis=0)
    deviation = np.where(constant, 1.0, known.std(axis=0))
    return (values - known.mean(axis=0)) / deviation, deviation


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
        inputs, _ = standardize(inputs, known)
    if standardize_targets:
        targets, deviation = standardize(targets, known)
        scale = float(deviation)
    return Dataset(_tensor(inputs), _tensor(targets), splits, scale, source)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))


def read_csv(path: Path) -> np.ndarray:
    """Numbers of a comma-separated file, float64 [rows, columns]. A first row without a single number is a
    header. Text, missing or non-finite values and ragged rows are a ValueError with file, row and column
    (counted from 1), and so is text in another encoding than UTF-8."""
    try:
        return _read_csv(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error}): save it as comma-separated UTF-8") from error


def _read_csv(path: Path) -> np.ndarray:
    with open(path, newline="", encoding="utf-8-sig") as stream:
        header = not any(_is_number(cell) for cell in next(csv.reader(stream), []))
    try:
        with warnings.catch_warnings(action="ignore"):  # about a file without rows, an error below
            table = np.loadtxt(path, delimiter=",", skiprows=int(header), ndmin=2, comments=None, quotechar='"')
        if table.shape[1] >= 2 and np.isfinite(table).all():
            return table
    except ValueError:
        pass  # numpy does not say which column; the slow reader below does
    return _read_csv_slowly(path, header)


def _read_csv_slowly(path: Path, header: bool) -> np.ndarray:
    with open(path, newline="", encoding="utf-8-sig") as stream:
        lines = [(number, row) for number, row in enumerate(csv.reader(stream), start=1) if any(map(str.strip, row))]
    lines = lines[int(header) :]
    if not lines:
        raise ValueError(f"{path}: no rows of numbers in this file")
    width = len(lines[0][1])
    if width < 2:
        raise ValueError(f"{path}: needs at least one input column and the target column, found {width} column")
    return np.array([_numbers(path, number, row, width) for number, row in lines])


def _numbers(path: Path, number: int, row: list[str], width: int) -> list[float]:
    if len(row) != width:
        raise ValueError(f"{path}: row {number} has {len(row)} columns, the first row has {width}")
    for column, cell in enumerate(row, start=1):
        if not _is_number(cell) or not math.isfinite(float(cell)):
            raise ValueError(
                f"{path}: row {number}, column {column}: {cell.strip()!r} is not a finite number; "
                "every cell must be one (remove or encode text, fill in missing values)"
            )
    return [float(cell) for cell in row]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_idx(content: bytes, name: str) -> np.ndarray:
    """The uint8 array of an idx file (the format of MNIST): two zero bytes, type 8, rank, big-endian sizes,
    values."""
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{name}: not an idx file of bytes (it should begin with 00 00 08)")
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank)
    if values.size != math.prod(shape):
        raise ValueError(f"{name}: holds {values.size} values, its header says {shape}")
    return values.reshape(shape)
