r"""Statistics over runs, with the uncertainty that comes from their number.

An estimate of a statistic s over N runs is \(s(x_1, \dots, x_N)\); its uncertainty is the standard deviation of
\(s(x_{i_1}, \dots, x_{i_N})\) over resamples in which every \(i\) is drawn from 1..N: the bootstrap (Efron 1979), with
1000 resamples as in arXiv 2110.10461. Runs that failed, which are NaN, are left out; count them beside it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
Statistic = Callable[..., np.ndarray]  # (values, axis) -> values without that axis


class Estimate(NamedTuple):
    """A statistic of N values, and its standard deviation over resamples; NaN where there is no value."""

    value: float
    deviation: float

    def __str__(self) -> str:
        """Three digits of the value, and as many decimals of its deviation."""
        if np.isnan(self.value):
            return "–"
        decimals = 2 if self.value == 0 else max(0, 2 - int(np.floor(np.log10(abs(self.value)))))
        return f"{self.value:.{decimals}f} ± {self.deviation:.{decimals}f}"


def estimate(values: np.ndarray, statistic: Statistic, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The statistic of the values [N] that are not NaN. Repeatable: resamples follow from `seed`."""
    kept = values[~np.isnan(values)]
    if not len(kept):
        return Estimate(float("nan"), float("nan"))
    drawn = kept[np.random.default_rng(seed).integers(len(kept), size=(resamples, len(kept)))]
    return Estimate(float(statistic(kept, axis=0)), float(np.std(statistic(drawn, axis=1))))
