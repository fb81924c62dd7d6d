"""Eight regression sets of the UCI Machine Learning Repository, split by position as in the published study.

Source of splits: experiments of Clarke et al. 2022 (arXiv 2110.10461). The rows must be in the study's
order, so a copy from the repository itself will not do for comparing numbers; it will for training.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hyperopt_id.tasks.csv_files import read_csv
from hyperopt_id.tasks.data import Dataset, regression, split_by_position


class Source(NamedTuple):
    """Folder name, number of features, (train, validation, test) rows, public home."""

    folder: str
    features: int
    splits: tuple[int, int, int]
    home: str


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
        if (folder / "data.csv").is_file():
            return folder / "data.csv"
        if (folder / "data.pt").is_file() and (folder / "targets.pt").is_file():
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
    if root.is_dir():
        yield from sorted((path for path in root.iterdir() if path.name.lower() in wanted), key=lambda path: path.name)


def _tensors(path: Path) -> np.ndarray:
    """The published code's pair of tensor files (`path` and targets.pt beside it) as one table."""
    try:
        files = (path, path.with_name("targets.pt"))
        inputs, targets = (torch.load(file, weights_only=True, map_location="cpu") for file in files)
        table = torch.cat([inputs.double(), targets.double().reshape(len(inputs), -1)], dim=1).numpy()
    except Exception as error:
        raise ValueError(f"{path} and targets.pt are not tensors with one row per example ({error})") from error
    rows, columns = np.nonzero(~np.isfinite(table))
    if len(rows):
        raise ValueError(f"{path}: row {rows[0] + 1}, column {columns[0] + 1} is not a finite number")
    return table
