"""Handwritten digits, 8 × 8 pixels: works offline, the table is part of the package.

The 1797 rows are the test part of *Optical Recognition of Handwritten Digits* (E. Alpaydin, C. Kaynak, UCI
Machine Learning Repository, 1998, CC BY 4.0), in the order in which scikit-learn distributes them.
"""

import gzip
import importlib.resources
from pathlib import Path

import numpy as np
import torch

from hyperopt_id.tasks.data import Dataset, split_by_position
from hyperopt_id.tasks.digests import digest

SPLITS = (1097, 350, 350)


def digits(root: Path | None = None, validation_fraction: float | None = None, download: bool = True) -> Dataset:
    """Inputs [1797, 64] = pixel / 16, targets the digit; train / validation / test 1097 / 350 / 350 by
    position. `root` and `download` are not needed: they are there because every loader has them."""
    packed = importlib.resources.files("hyperopt_id.tasks").joinpath("digits.csv.gz").read_bytes()
    table = np.loadtxt(gzip.decompress(packed).decode().splitlines(), delimiter=",", dtype=np.int64)
    return Dataset(
        inputs=torch.from_numpy(table[:, :-1]).to(torch.float64) / 16.0,
        targets=torch.from_numpy(table[:, -1].copy()),
        splits=split_by_position(SPLITS, len(table), "digits", validation_fraction),
        source=digest(table),
    )
