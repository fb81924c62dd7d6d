"""Eight regression sets of the UCI Machine Learning Repository, split by position as in the published study.

Source of splits: experiments of Clarke et al. 2022 (arXiv 2110.10461). The rows must be in the study's
order, so a copy from the repository itself will not do for comparing numbers; it will for training.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hyperopt_id import files, files_tensors
from hyperopt_id.tasks.csv_files import read_csv
from hyperopt_id.tasks.data import Dataset, regression, split_by_position


class Source(NamedTuple):
    """Folder name, number of features, (train, validation, test) rows, public home."""

    folder: str
    features: int
    splits: tuple[int, int, int]
    home: str


MOST_BYTES = 64 * files.MEBIBYTE  # of data.pt; the largest set has 2
UCI = "https://archive.ics.uci.edu/dataset"
SOURCES = {
    "energy": Source("UCI_Energy", 8, (614, 78, 76), f"{UCI}/242/energy+efficiency"),
    "kin8nm": Source("UCI_Kin8nm", 8, (5898, 1475, 819), "https://www.openml.org/d/189"),
    "power": Source("UCI_Power", 4, (6889, 1722, 957), f"{UCI}/294/combined+cycle+power+plant"),
    "boston": Source("UCI_Boston", 13, (364, 91, 51), "https://lib.stat.cmu.edu/datasets/boston"),
    "concrete": Source("UCI_Concrete", 8, (742, 185, 103), f"{UCI}/165/concrete+compressive+strength"),
    "naval": Source(
        "UCI_Naval",
        16,
        (8593, 2148, 1193),
        f"{UCI}/316/condition+based+maintenance+of+naval+propulsion+plants",
    ),
    "wine": Source("UCI_Wine", 11, (1151, 288, 160), f"{UCI}/186/wine+quality"),
    "yacht": Source("UCI_Yacht", 6, (222, 55, 31), f"{UCI}/243/yacht+hydrodynamics"),
}


def uci(root: Path, name: str, validation_fraction: float | None = None, download: bool = True) -> Dataset:
    """Set `name` (energy, kin8nm, power, boston, concrete, naval, wine, yacht) from
    `<root>/UCI_<Name>/data.csv` (no header, last column the target) or from `data.pt` and `targets.pt`
    there. Inputs and targets are standardized. Nothing is downloaded: the repository's files are in another
    row order. A missing or wrong file is a ValueError."""
    if name not in SOURCES:
        raise ValueError(f"unknown UCI data set {name!r}: use one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    path = locate(Path(root), source)
    table = read_csv(path) if path.suffix == ".csv" else _tensors(path)
    if table.shape[1] != source.features + 1:
        raise ValueError(
            f"{path}: has {table.shape[1]} columns, {source.folder} needs {source.features} features and the target"
        )
    splits = split_by_position(source.splits, len(table), str(path), validation_fraction)
    return regression(table, splits)


def locate(root: Path, source: Source) -> Path:
    """`data.csv` or, beside its `targets.pt`, `data.pt`; a ValueError where neither is there."""
    for folder in _folders(root, source.folder):
        if os.path.isfile(folder / "data.csv"):
            return folder / "data.csv"
        if os.path.isfile(folder / "data.pt") and os.path.isfile(folder / "targets.pt"):
            return folder / "data.pt"
    raise ValueError(
        f"{source.folder} is not there: needs {root / source.folder / 'data.csv'} (no header, "
        f"{source.features} feature columns, then the target, {sum(source.splits)} rows in the study's "
        f"order) or data.pt and targets.pt in that folder; public source: {source.home}; "
        "--data-root or the environment variable HYPEROPT_ID_DATA names the folder of data sets"
    )


def _folders(root: Path, folder: str) -> Iterator[Path]:
    """Folders called UCI_Energy, Energy, uci_energy, ..., in a fixed order."""
    wanted = {folder.lower(), folder.lower().removeprefix("uci_")}
    try:
        names = sorted(os.listdir(root))
    except OSError:  # none, or not readable
        return
    yield from (root / name for name in names if name.lower() in wanted)


def _tensors(path: Path) -> np.ndarray:
    """The published code's pair of tensor files (`path` and targets.pt beside it) as one table."""
    inputs, targets = (_numbers(file) for file in (path, path.with_name("targets.pt")))
    if inputs.ndim != 2 or targets.ndim not in (1, 2) or targets.numel() != len(inputs):
        shapes = f"{list(inputs.shape)} and {list(targets.shape)}"
        raise ValueError(f"{path} and targets.pt are not tensors with one row per example: they have shapes {shapes}")
    table = torch.cat([inputs.double(), targets.double().reshape(len(inputs), 1)], dim=1).numpy()
    rows, columns = np.nonzero(~np.isfinite(table))
    if len(rows):
        raise ValueError(f"{path}: row {rows[0] + 1}, column {columns[0] + 1} is not a finite number")
    return table


def _numbers(path: Path) -> Tensor:
    value = files_tensors.load(path, MOST_BYTES)
    if not isinstance(value, Tensor) or value.dtype == torch.bool or value.is_complex():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{path}: not tensors with one row per example: it holds {kind}, real numbers are needed")
    return value
