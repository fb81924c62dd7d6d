"""The diabetes progression data of Efron et al. (2004), as bundled with scikit-learn: small, for tests."""

from pathlib import Path

import numpy as np

from hyperopt_id.tasks.data import Dataset, regression, split_by_position

SPLITS = (282, 80, 80)


def diabetes(root: Path | None = None, validation_fraction: float | None = None, download: bool = True) -> Dataset:
    """442 rows, 10 features, inputs and targets standardized; 282 / 80 / 80 by position. Needs scikit-learn
    (a ValueError says so when it is missing); `root` and `download` are not used."""
    try:
        from sklearn.datasets import load_diabetes  # not a core dependency
    except ImportError as error:
        raise ValueError(
            "the diabetes data come with scikit-learn, which is not installed: pip install scikit-learn "
            "(or use task.name: digits, which needs nothing)"
        ) from error
    inputs, targets = load_diabetes(return_X_y=True, scaled=False)
    table = np.column_stack([inputs, targets])
    return regression(table, split_by_position(SPLITS, len(table), "diabetes", validation_fraction))
