r"""What Hessian-vector products are compared with: central differences of gradients, in float64 where a loss allows it.

.. math:: J u \approx \frac{g(w + \delta u) - g(w - \delta u)}{2 \delta}, \qquad g = \nabla L .

J is the Hessian, and symmetric, where g is the gradient of what is evaluated. Gradient reversal, straight-through
estimators and hooks on gradients make another field of g; differences still give J u, reverse mode needs u J.

A direction has the same norm in each parameter tensor, and errors are measured tensor by tensor, so that a wrong
derivative of a few numbers shows beside millions of others. A difference that crosses the kink of a ReLU is off by any
amount, so that no single step length proves anything: products are right if they agree with one of several, and wrong
if the differences agree with each other instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise

import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.curvature_widened import widened, widened_gradient
from hyperopt_id.derivatives import Loss, gradient
from hyperopt_id.trees import Params

Field = Callable[[Params], Params]  # w -> g(w)
DOUBLE_STEPS, SINGLE_STEPS = (1e-7, 1e-9, 1e-5), (1e-2, 1e-3, 1e-1)
LARGE = 1_000_000  # parameters of which one probe has to do
SAME_GRADIENT = 0.05  # relative difference up to which a loss in float64 is taken for the same function


def difference(one: Params, other: Params, noise: float = 0.0) -> float:
    """The largest difference of a tensor of `other`, relative to that of `one`, of which one that is nearly zero counts
    as a hundredth of the others; `noise` is a difference of the whole that means nothing."""
    whole, worst = (0.01 * float(trees.norm(one)) + noise) / math.sqrt(len(one)), 0.0
    for key, value in one.items():
        apart = float(torch.linalg.vector_norm(widened(value) - widened(other[key])))
        if not math.isfinite(apart):
            return math.inf
        if apart:
            worst = max(worst, apart / max(float(torch.linalg.vector_norm(value)) + whole, 1e-300))
    return worst


@dataclass
class Probe:
    """Products J u at one point and in one direction, by differences of one step length after the other."""

    compute: Field
    point: Params
    seed: int  # of the direction
    steps: Sequence[float]
    found: dict[float, tuple[Params, Params]] = field(default_factory=dict)

    @cached_property
    def direction(self) -> Params:
        return make_direction(self.point, self.seed)

    @cached_property
    def precision(self) -> float:
        return max(torch.finfo(value.dtype).eps for value in self.point.values())

    def gradients(self, step: float) -> tuple[Params, Params]:
        """Those a step ahead and a step behind."""
        if step not in self.found:
            self.found[step] = self._at(step), self._at(-step)
        return self.found[step]

    def _at(self, step: float) -> Params:
        return self.compute({key: w + step * self.direction[key].to(w.dtype) for key, w in self.point.items()})

    def gradient(self, step: float) -> Params:
        ahead, behind = self.gradients(step)
        return {key: (value + behind[key]) / 2.0 for key, value in ahead.items()}

    def product(self, step: float) -> tuple[Params, float]:
        """J u, and what rounding makes of it."""
        ahead, behind = self.gradients(step)
        noise = 4.0 * self.precision * float(trees.norm(ahead)) / step
        return {key: (value - behind[key]) / (2.0 * step) for key, value in ahead.items()}, noise

    def error(self, product: Params, enough: float) -> float:
        """The smallest difference to one by differences; no further step length is tried below `enough`."""
        smallest = math.inf
        for step in self.steps:
            reference, noise = self.product(step)
            smallest = min(smallest, difference(reference, product, noise))
            if smallest <= enough:
                break
        return smallest

    def best(self) -> tuple[Params, float]:
        """The product of the step length whose neighbor agrees with it best, and by how much they differ."""
        order = sorted(self.steps)
        spreads = [
            (difference(self.product(longer)[0], *self.product(shorter)), shorter)
            for shorter, longer in pairwise(order)
        ]
        spread, step = min(spreads)
        return self.product(step)[0], spread


@dataclass(frozen=True)
class Reference:
    """Probes of one loss: at the weights it starts from, in three directions of which the first is for exact products,
    and near them, where nothing is zero by initialization. `double`: in float64."""

    start: Sequence[Probe]
    near: Probe | None
    double: bool

    @property
    def probes(self) -> list[Probe]:
        return [self.start[0]] + ([] if self.near is None else [self.near])

    @property
    def all_probes(self) -> list[Probe]:
        return [*self.start, *([] if self.near is None else [self.near])]

    @property
    def name(self) -> str:
        return "central differences in float64" if self.double else "central differences"

    @property
    def spread(self) -> float:
        """How far differences of several step lengths are apart."""
        return max(probe.best()[1] for probe in self.probes)

    def forms(self) -> Tensor:
        """The numbers u J v of all pairs of directions (u, v): a symmetric matrix where J is symmetric."""
        return torch.tensor([[dot(u.direction, v.best()[0]) for v in self.start] for u in self.start]).double()


def make_reference(loss: Loss, params: Params) -> Reference | None:
    """None where the gradient at `params` is not finite, so that nothing can be compared."""
    slopes = gradient(loss, trees.variables(params)).value
    if not _finite(slopes):
        return None
    reference = _in_double(loss, params, slopes)
    return reference or _probes(lambda w: gradient(loss, trees.variables(w)).value, params, SINGLE_STEPS, double=False)


def _in_double(loss: Loss, params: Params, slopes: Params) -> Reference | None:
    """None where the loss cannot be computed in double precision, or is another function then."""
    try:
        wide = trees.map(widened, params)
        reference = _probes(partial(widened_gradient, loss), wide, DOUBLE_STEPS, double=True)
        found = reference.start[0].gradient(DOUBLE_STEPS[0])
    except Exception:  # whatever a loss of the user's own raises where it is given another type
        return None
    apart = trees.norm({key: widened(slopes[key]) - value for key, value in found.items()})
    same = bool(apart <= SAME_GRADIENT * trees.norm(found))
    return reference if same and all(found[key].dtype == value.dtype for key, value in wide.items()) else None


def _probes(compute: Field, point: Params, steps: Sequence[float], double: bool) -> Reference:
    start = [Probe(compute, point, seed, steps) for seed in range(3)]
    if sum(value.numel() for value in point.values()) > LARGE:
        return Reference(start, None, double)
    near = Probe(compute, nearby(point, make_direction(point, 4)), 3, steps)
    return Reference(start, near if _finite(near.product(steps[0])[0]) else None, double)


def _finite(values: Params) -> bool:
    return all(bool(value.isfinite().all()) for value in values.values())


def dot(left: Params, right: Params) -> float:
    return sum(float((widened(left[k]).conj() * widened(right[k])).sum().real) for k in left)


def make_direction(params: Params, seed: int) -> Params:
    """A random direction of norm 1 with the same norm in each tensor, the same one each time."""
    generator, direction = torch.Generator().manual_seed(seed), {}
    for key, value in params.items():
        single = torch.complex64 if value.is_complex() else torch.float32  # which takes half the time
        drawn = widened(torch.randn(value.shape, generator=generator, dtype=single))
        length = torch.linalg.vector_norm(drawn).clamp_min(1e-30) * math.sqrt(len(params))
        direction[key] = (drawn / length).to(value.device)
    return direction


def nearby(params: Params, direction: Params) -> Params:
    """Weights a percent away; those that are zero become a thousandth."""
    moved = {}
    for key, value in params.items():
        size = torch.linalg.vector_norm(value)
        length = torch.where(size > 0.0, size, 0.1 * math.sqrt(max(value.numel(), 1)))
        moved[key] = value + 0.01 * math.sqrt(len(params)) * length * direction[key].to(value.dtype)
    return moved
