"""From tensors to the numbers of a report.

A reported quantity is a ``Series`` (one number for each of R runs, or one shared by all) or ``Elements`` (R
runs × N elements of a parameter tensor, of which only order statistics are kept). Both are float64 on the
CPU.

Order statistics rank NaN last, so a diverged member or element never moves the others' quantiles to NaN;
the q-th quantile of x_1 <= ... <= x_N interpolates linearly at position q (N - 1).
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHARES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
BUCKETS = 30

Series = NDArray[Any]  # shape [R], or [] when all runs share the number


class Elements(NamedTuple):
    """Order statistics: quantiles [R, Q] at ``SHARES``; edges [R, E], the elements of ranks [E], 0 to N-1."""

    quantiles: NDArray[np.float64]
    edges: NDArray[np.float64]
    ranks: NDArray[np.int64]
    sums: NDArray[np.float64]  # [R]
    squares: NDArray[np.float64]  # [R]


Measured = Series | Elements | dict[str, Series | Elements]


def measure(value: Any, runs: int) -> Measured:
    """Bring one reported value to the CPU: a number, a tensor [R], or {parameter: tensor [R, ...]}."""
    if isinstance(value, Mapping):
        return {name: _measure_tensor(leaf, runs) for name, leaf in value.items()}
    return _measure_tensor(value, runs)


def _measure_tensor(value: Any, runs: int) -> Series | Elements:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach()
    value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if value.dim() > 1:
        assert value.shape[0] == runs, f"leading axis {value.shape[0]}, but there are {runs} runs"
        return elements(value.flatten(1))
    assert value.dim() == 0 or value.shape[0] == runs, f"{value.shape[0]} values, but there are {runs} runs"
    value = value.double() if value.is_floating_point() else value
    return value.cpu().numpy()


def elements(x_RN: Tensor) -> Elements:
    # numpy sorts floats about thirty times as fast as torch does on a CPU
    x_RN = torch.from_numpy(np.sort(x_RN.numpy(), axis=1)) if x_RN.device.type == "cpu" else x_RN.sort(1).values
    ranks = np.unique(np.linspace(0, x_RN.shape[1] - 1, BUCKETS + 1).round().astype(np.int64))
    return Elements(
        quantiles=_interpolate(x_RN, np.array(list(SHARES.values()))),
        edges=_columns(x_RN, ranks),
        ranks=ranks,
        sums=x_RN.sum(1, dtype=torch.float64).cpu().numpy(),
        squares=torch.linalg.vector_norm(x_RN, dim=1, dtype=torch.float64).square().cpu().numpy(),
    )


def quantiles(values_R: Series) -> NDArray[np.float64]:
    """Quantiles at ``SHARES`` over the members of a population, NaN ranking last."""
    ordered = torch.from_numpy(np.sort(np.atleast_1d(values_R).astype(np.float64)))
    return _interpolate(ordered[None], np.array(list(SHARES.values())))[0]


def _columns(x_RN: Tensor, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    return x_RN[:, torch.from_numpy(ranks).to(x_RN.device)].double().cpu().numpy()


def _interpolate(ordered_RN: Tensor, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    position = shares * (ordered_RN.shape[1] - 1)
    below, weight = np.floor(position).astype(np.int64), position % 1.0
    low, high = _columns(ordered_RN, below), _columns(ordered_RN, np.ceil(position).astype(np.int64))
    with np.errstate(invalid="ignore"):  # inf - inf: the result is NaN, and reported as missing
        return np.where((weight == 0.0) | (low == high), low, low + weight * (high - low))


def as_json(measured: Measured, single: bool) -> Any:
    """A number if there is a ``single`` run, else a list over runs; of elements, their statistics."""
    if isinstance(measured, dict):
        return {name: as_json(leaf, single) for name, leaf in measured.items()}
    if isinstance(measured, Elements):
        return {name: as_json(measured.quantiles[:, q], single) for q, name in enumerate(SHARES)}
    return plain(measured.reshape(()) if single else measured)


def plain(value: Any) -> Any:
    """Nested data in JSON's own types, every digit kept; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(name): plain(leaf) for name, leaf in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(leaf) for leaf in value]
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return plain((value.double() if value.is_floating_point() else value).numpy())
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dump(value: Any, indent: int | None = None) -> str:
    """JSON text; ``repr`` of a float64 has the digits that restore it exactly."""
    return json.dumps(plain(value), allow_nan=False, indent=indent)


def typical(value: Any) -> float:
    """One number for people out of a JSON value: the median over members, parameters and elements."""
    if isinstance(value, dict):
        return typical(value["median"] if "median" in value else list(value.values()))
    if isinstance(value, list):
        return float(quantiles(np.array([typical(leaf) for leaf in value]))[2]) if value else math.nan
    return math.nan if value is None else float(value)
