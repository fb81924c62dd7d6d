"""How far Hessian-vector products are from a reference, and which side they are of.

Products u J and J u of one pair of directions are the same number u J v where J is symmetric.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import NamedTuple

import torch

from hyperopt_id.arguments import first_line
from hyperopt_id.curvature_reference import Reference, difference, dot
from hyperopt_id.curvature_widened import Widened
from hyperopt_id.derivatives import Curvature, Loss
from hyperopt_id.trees import Params

TOLERANCE = {torch.float64: 1e-5, torch.complex128: 1e-5, torch.float32: 1e-3, torch.complex64: 1e-3}
LOW_PRECISION = 0.1  # tolerance of exact products under autocast and in 16 bits
LEAST_ASYMMETRY, ASYMMETRY = 1e-5, 1e-2  # that means something, in float64 and otherwise


class Measured(NamedTuple):
    """How far products are off, the seconds that one takes, and what is wrong with them."""

    error: float
    seconds: float
    fault: str


class Asymmetry(NamedTuple):
    """Relative size of u J v - v J u, and of the error that products taken for u J have in u J v; `noise` is the size
    that differences of a symmetric J may show."""

    size: float
    error: float
    noise: float

    @property
    def is_real(self) -> bool:
        return self.size > self.noise


def measure(
    curvature: Curvature,
    loss: Loss,
    params: Params,
    reference: Reference,
    *,
    by_differences: bool = False,
    in_double: bool = False,
) -> Measured:
    """Products held against a reference. Products by differences agree with a reference of their own step length
    whatever they are, so that only the best one counts for them, in every direction: a few may cross no jump."""
    error, seconds = 0.0, 0.0
    for probe in reference.all_probes if by_differences else reference.probes:
        point, direction = probe.point, probe.direction
        if not in_double:
            point, direction = _like(point, params), _like(direction, params)
        with Widened() if in_double else nullcontext():
            product, seconds, fault = take(curvature, loss, point, direction)
        if fault:
            return Measured(math.inf, seconds, fault)
        if by_differences:
            best, spread = probe.best()
            error = max(error, spread, difference(best, product))
        else:
            error = max(error, probe.error(product, enough=tolerance(params, under_autocast=False) / 10.0))
    return Measured(error, seconds, f"the recorded second derivative is off by {percent(error)} from {reference.name}")


def take(curvature: Curvature, loss: Loss, point: Params, direction: Params) -> tuple[Params, float, str]:
    """A product, the seconds that it takes, and why it is not to be used, if so."""
    try:
        _, compute = curvature(loss, loss, point)
        began = time.perf_counter()
        product = compute(direction)
    except Exception as problem:  # whatever a Function of the user's own raises
        reason = first_line(problem)
        return {}, 0.0, f"the loss has no second derivative ({reason})"
    finite = all(bool(value.isfinite().all()) for value in product.values())
    seconds = time.perf_counter() - began
    return product, seconds, "" if finite else "the second derivative of the loss is not finite there"


def _like(values: Params, params: Params) -> Params:
    return {key: values[key].to(value.dtype) for key, value in params.items()}


def is_rounding(exact: Curvature, found: Measured, loss: Loss, params: Params, reference: Reference) -> bool:
    """Whether exact products are right in float64, and off for rounding alone: a unit that is all but at its kink is on
    one side in one precision and on the other in the other."""
    if not reference.double or not found.error <= LOW_PRECISION:
        return False
    return measure(exact, loss, params, reference, in_double=True).error <= TOLERANCE[torch.float64]


def asymmetry_of(curvature: Curvature, loss: Loss, params: Params, reference: Reference) -> Asymmetry:
    forms = reference.forms()
    size = float((forms - forms.T).norm() / forms.norm().clamp_min(1e-300))
    spread = max(probe.best()[1] for probe in reference.start)
    noise = min(max(10.0 * spread, LEAST_ASYMMETRY), ASYMMETRY) if reference.double else ASYMMETRY
    try:
        _, compute = curvature(loss, loss, params)
        directions = [probe.direction for probe in reference.start]
        products = [compute(_like(u, params)) for u in directions]
    except Exception:
        return Asymmetry(size, math.inf, noise)
    found = torch.tensor([[dot(product, v) for v in directions] for product in products], dtype=torch.float64)
    return Asymmetry(size, float((found - forms).norm() / forms.norm().clamp_min(1e-300)), noise)


def depends_on_side(asymmetry: Asymmetry, params: Params) -> bool:
    """Whether products are u J, and differ from J u for that reason alone."""
    return asymmetry.error <= min(tolerance(params, under_autocast=False), asymmetry.size / 10.0)


def tolerance(params: Params, under_autocast: bool) -> float:
    if under_autocast:
        return LOW_PRECISION
    return max(TOLERANCE.get(value.dtype, LOW_PRECISION) for value in params.values())


def percent(share: float) -> str:
    number = 100.0 * share
    return f"{number:.0f} %" if 100.0 <= number < 1e5 else f"{number:.2g} %"
