"""Any user table: comma-separated numbers, the last column is the target."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hyperopt_id.tasks.csv_files import read_csv
from hyperopt_id.tasks.data import Dataset, regression, split_by_position


def csv_table(
    path: Path | str,
    splits: Sequence[int],
    standardize_inputs: bool = True,
    standardize_targets: bool = False,
    loss: str = "mse",
    validation_fraction: float | None = None,
) -> Dataset:
    """`splits`: row counts [train, validation, test], by position, that add up to the number of rows;
    `loss`: "mse", or "cross_entropy" where the last column holds classes 0..C-1. Bad content is a
    ValueError that names file, row and column (see `read_csv`)."""
    if loss not in ("mse", "cross_entropy"):
        raise ValueError(f"task.loss must be mse or cross_entropy, got {loss!r}")
    if not os.path.exists(path):
        raise ValueError(f"task.path: there is no file {path}")  # as it was written: a Path shortens // of an address
    path = Path(path)
    table = read_csv(path)
    bounds = split_by_position(splits, len(table), str(path), validation_fraction)
    if loss == "mse":
        return regression(table, bounds, standardize_inputs, standardize_targets)
    if standardize_targets:
        raise ValueError(f"{path}: targets of a classification (loss cross_entropy) cannot be standardized")
    classes = _classes(path, table[:, -1])
    dataset = regression(table, bounds, standardize_inputs, standardize_targets=False)
    return Dataset(dataset.inputs, torch.from_numpy(classes), bounds, source=dataset.source)


def _classes(path: Path, targets: np.ndarray) -> np.ndarray:
    """Targets as int64 classes 0..C-1, each of which occurs; anything else is a ValueError."""
    with np.errstate(invalid="ignore"):  # beyond int64: not a class, as the next line finds
        classes = targets.astype(np.int64)
    if not (classes == targets).all() or classes.min() != 0 or len(np.unique(classes)) != classes.max() + 1:
        shown = ", ".join(f"{value:g}" for value in np.unique(targets)[:8])
        raise ValueError(
            f"{path}: loss cross_entropy needs classes 0, 1, ..., C-1 in the last column, "
            f"each at least once; found {shown}" + (", ..." if len(np.unique(targets)) > 8 else "")
        )
    return classes
