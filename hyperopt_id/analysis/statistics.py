r"""Statistics over runs, with the uncertainty that comes from their number.

An estimate of a statistic s over N runs is \(s(x_1, \dots, x_N)\); its uncertainty comes from the values of
\(s(x_{i_1}, \dots, x_{i_N})\) over resamples in which every \(i\) is drawn from 1..N: the bootstrap (Efron 1979), with
1000 resamples as in arXiv 2110.10461. Runs that failed, which are NaN, are left out; count them beside it.

**Batches.** Of every B runs, the one with the lowest final validation loss is kept ("Random (3-batched)", B = 3). Over
all sets of B different runs out of N, the run with r runs of lower loss is kept in \(\binom{N-1-r}{B-1}\) of
\(\binom{N}{B}\) of them: those are its share. A statistic of the batches is one of the runs weighted by their shares,
and a resample draws \(\lfloor N/B \rfloor\) batches, each of B different runs.
"""

from collections.abc import Callable
from math import comb
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
SMALLEST, LARGEST = 1e-4, 1e7  # that are written without an exponent
Statistic = Callable[..., np.ndarray]  # (values, axis) -> values without that axis; also `weights` where shares differ


class Estimate(NamedTuple):
    """A statistic of N values, its standard deviation over resamples, and the bounds between which 95 % of them lie;
    NaN where there is no value. One value alone says nothing about its uncertainty: only the statistic is known."""

    value: float
    deviation: float
    low: float
    high: float

    def __str__(self) -> str:
        """Three digits of the value, and as many decimals of its deviation where that is known."""
        if np.isnan(self.value):
            return "–"
        size = abs(self.value)
        plain = size == 0.0 or SMALLEST <= size < LARGEST
        decimals = max(0, 2 - int(np.floor(np.log10(size)))) if plain and size else 2
        shapes = (f".{decimals}f", f".{decimals}f") if plain else (".2e", ".1e")
        value, deviation = (_shown(x, shape) for x, shape in zip((self.value, self.deviation), shapes))
        return value if np.isnan(self.deviation) else f"{value} ± {deviation}"


UNKNOWN = Estimate(*[float("nan")] * 4)


def estimate(
    values: np.ndarray,
    statistic: Statistic,
    resamples: int = RESAMPLES,
    seed: int = 0,
    *,
    weights: np.ndarray | None = None,
    batch: int = 3,
) -> Estimate:
    """The statistic of the values [N] that are not NaN. With the `weights` of `shares_of_batches`, resamples are of
    batches. Repeatable: resamples follow from `seed`."""
    there = ~np.isnan(values)
    if weights is not None:
        there &= weights > 0.0
    kept, generator = values[there], np.random.default_rng(seed)
    if not len(kept):
        return UNKNOWN
    if len(kept) == 1:
        return UNKNOWN._replace(value=float(kept[0]))
    if weights is None:
        drawn = kept[generator.integers(len(kept), size=(resamples, len(kept)))]
        return _estimate(statistic, kept, drawn)
    shares = weights[there] / weights[there].sum()
    batches = max(1, round(len(values) // batch * weights[there].sum()))
    drawn = kept[generator.choice(len(kept), size=(resamples, batches), p=shares)]
    return _estimate(statistic, kept, drawn, weights=shares)


def estimate_selected(validation: np.ndarray, test: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The test value [N] of the run whose validation loss [N] is lowest, among the runs that have both."""
    there = ~np.isnan(validation) & ~np.isnan(test)
    losses, values = validation[there], test[there]
    if not len(values):
        return UNKNOWN
    if len(values) == 1:
        return UNKNOWN._replace(value=float(values[0]))
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    chosen = np.take_along_axis(drawn, losses[drawn].argmin(axis=1)[:, None], axis=1)[:, 0]
    return _spread(float(values[losses.argmin()]), values[chosen])


def mean(values: np.ndarray, axis: int = 0, weights: np.ndarray | None = None) -> np.ndarray:
    return np.average(values, axis=axis, weights=weights)


def median(values: np.ndarray, axis: int = 0, weights: np.ndarray | None = None) -> np.ndarray:
    return np.median(values, axis=axis) if weights is None else quantiles(values, [0.5], weights)[0]


def lowest(values: np.ndarray, axis: int = 0, weights: np.ndarray | None = None) -> np.ndarray:
    return np.min(values, axis=axis)


def shares_of_batches(validation: np.ndarray, batch: int) -> np.ndarray:
    """[N]: how likely a run is the one that is kept of a random batch. Runs without a validation loss rank last."""
    count = len(validation)
    order = np.argsort(validation, kind="stable")  # NaN last
    shares = np.empty(count)
    shares[order] = [comb(count - 1 - rank, batch - 1) / comb(count, batch) for rank in range(count)]
    return shares


def quantiles(values: np.ndarray, shares: list[float], weights: np.ndarray | None = None) -> np.ndarray:
    """[Q, ...] over the first axis of the values [N, ...]. NaN ranks last: a run that failed is worse than any other,
    and a quantile that falls on it is NaN. Equal shares: on straight lines between neighbors. Weighted: the smallest
    value with at least that share of the weight at or below it, or halfway to the next where it is met exactly."""
    order = np.argsort(values, axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    if weights is None:
        positions = np.array(shares) * (len(values) - 1)
        low, high = np.floor(positions).astype(int), np.ceil(positions).astype(int)
        between = (positions - low).reshape(-1, *[1] * (values.ndim - 1))
        return np.where(between == 0.0, ordered[low], ordered[low] + between * (ordered[high] - ordered[low]))
    reached = np.cumsum(weights[order], axis=0) / weights.sum()
    found = []
    for share in shares:
        low = (reached < share - 1e-12).sum(axis=0, keepdims=True)
        high = np.minimum((reached <= share + 1e-12).sum(axis=0, keepdims=True), len(values) - 1)
        pair = [np.take_along_axis(ordered, place, axis=0)[0] for place in (low, np.maximum(low, high))]
        found.append((pair[0] + pair[1]) / 2.0)
    return np.array(found)


def band(values: np.ndarray, statistic: Statistic, resamples: int = RESAMPLES, seed: int = 0) -> tuple[np.ndarray, ...]:
    """The statistic over the first axis of the values [P, G], and the bounds [G] of 95 % of its resamples over P. A
    resample without a value (NaN) is worse than all others: a bound that falls on one is infinite."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    resampled = np.stack([statistic(values[rows], axis=0) for rows in drawn])
    ranked = np.where(np.isnan(resampled), np.inf, resampled)
    low, high = np.quantile(ranked, _bounds(), axis=0, method="inverted_cdf")  # which does not go between two values
    return statistic(values, axis=0), low, high


@np.errstate(over="ignore", invalid="ignore")  # of losses beyond 1e150
def _estimate(statistic: Statistic, kept: np.ndarray, drawn: np.ndarray, **settings: np.ndarray) -> Estimate:
    return _spread(float(statistic(kept, axis=0, **settings)), statistic(drawn, axis=1))


@np.errstate(over="ignore", invalid="ignore")
def _spread(value: float, resampled: np.ndarray) -> Estimate:
    low, high = np.quantile(resampled, _bounds())
    return Estimate(value, float(np.std(resampled)), float(low), float(high))


def _shown(value: float, shape: str) -> str:
    return format(value, shape) if np.isfinite(value) else "∞" if value > 0.0 else "−∞" if value < 0.0 else "?"


def _bounds() -> list[float]:
    return [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0]
