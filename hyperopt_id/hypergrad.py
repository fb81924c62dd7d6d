r"""Hypergradient engines: one adjoint recursion, linearized in different places.

.. math:: \frac{d\ell}{d\,\mathrm{raw}} = \text{direct} + \sum_{k} v_k\,\partial_{\mathrm{raw}}\Phi\big|_k, \qquad
          v_0 = \frac{d\ell}{dz}, \quad v_{k+1} = v_k\,\partial_z \Phi\big|_k.

An engine takes the last `window` training steps of a hyper-update itself, so that a step it linearizes is not
computed twice, and returns the new state with the hypergradient. It sees Φ only: no module, data set or rule.

============  ==============================================  =============================
engine        Φ is linearized at                              source
============  ==============================================  =============================
`neumann`     the last step, K times                          arXiv 2110.10461, eq. 5
`unroll`      each of the last `window` steps                 Domke 2012; arXiv 1502.03492
`one_step`    the last step, once                             arXiv 1703.04782
`forward`     each of the last `window` steps, forward mode   arXiv 1703.01785
============  ==============================================  =============================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.arguments import check_whole
from hyperopt_id.dynamics import Batch, Cotangent, Dynamics, Metrics, TrainState, objective_cotangent
from hyperopt_id.trees import Params

MOST_TANGENTS = 1000
Objective = Callable[[Params, Params, Params, Batch], Tensor]  # (params, buffers, raw, batch) -> ℓ


class Outcome(NamedTuple):
    """What an engine returns: the state after its steps, their metrics, ℓ there, and dℓ/draw (tuned entries)."""

    z: TrainState
    metrics: Sequence[Metrics]
    objective: Tensor | None
    hypergradient: Params


class Engine(NamedTuple):
    """`call(dynamics, objective, z, raw, batches, target)` takes `window` steps, one for each of `batches`, and
    differentiates the objective on the batch `target`. `traceable` engines are one small graph, fit to compile as
    a whole; the others are loops over pieces that are compiled one by one. `products` says whether Hessian-vector
    products are needed, `pushes` whether these are H u, of tangents, and not u H."""

    window: int
    call: Callable[[Dynamics, Objective, TrainState, Params, Sequence[Batch], Batch], Outcome]
    traceable: bool
    products: bool
    pushes: bool = False


def neumann(terms: int, *, carry_state: bool = False) -> Engine:
    r"""Implicit differentiation by a truncated Neumann series at the last step (arXiv 2110.10461).

    .. math:: p = \sum_{j<K} v_0\,(\partial_w \Phi)^j, \qquad d\ell/d\,\mathrm{raw} = p\,\partial_{\mathrm{raw}}\Phi.

    `terms` = K costs one objective gradient and K - 1 Hessian-vector products. The optimizer's state is a constant
    unless `carry_state`, which runs the recursion through (parameters, optimizer state) together.
    """
    check_whole("neumann: terms", terms, 1)

    def call(
        dynamics: Dynamics, objective: Objective, z: TrainState, raw: Params, batches: Sequence[Batch], target: Batch
    ) -> Outcome:
        here = dynamics.linearize(z, raw, batches[-1], constant_state=not carry_state)
        value, v, direct = _cotangent(dynamics, objective, here.z_next, raw, target)
        if carry_state:
            v = Cotangent(v.params, _zeros(here.z_next.state, z))
        total = v
        for _ in range(terms - 1):
            v = here.pull_state(v)
            total = trees.add(total, v)
        return Outcome(here.z_next, [here.metrics], value, _joined(direct, here.pull_raw(total)))

    return Engine(1, call, traceable=True, products=terms > 1)


def no_gradient() -> Engine:
    """Takes no steps and finds zero: for training with fixed hyperparameters, or ones that follow a schedule."""

    def call(
        dynamics: Dynamics, objective: Objective, z: TrainState, raw: Params, batches: Sequence[Batch], target: Batch
    ) -> Outcome:
        return Outcome(z, [], None, trees.zeros(dynamics.tuned(raw)))

    return Engine(0, call, traceable=True, products=False)


def one_step() -> Engine:
    """The hypergradient of a single step: `neumann(1)`, which is also `unroll(1)`. No Hessian is involved."""
    return neumann(1)


def unroll(window: int) -> Engine:
    """Reverse mode through the last `window` steps, the optimizer's state included.

    Only the states along the window are kept; Φ is linearized anew at each on the way back, so memory is that of
    one step's graph plus `window` states.
    """
    _check_window(window)

    def call(
        dynamics: Dynamics, objective: Objective, z: TrainState, raw: Params, batches: Sequence[Batch], target: Batch
    ) -> Outcome:
        points, metrics, z = _roll(dynamics, z, raw, batches)
        value, v, total = _cotangent(dynamics, objective, z, raw, target)
        v = Cotangent(v.params, _zeros(z.state, z))
        for point, batch in zip(reversed(points[1:]), reversed(batches[1:]), strict=True):
            v, part = dynamics.pull(point, raw, batch, v)
            total = _joined(total, part)
        total = _joined(total, dynamics.pull_raw(points[0], raw, batches[0], v))
        return Outcome(z, metrics, value, total)

    return Engine(window, call, traceable=False, products=window > 1)


def forward(window: int) -> Engine:
    """Forward mode: tangents of z in every tuned number, pushed along the last `window` steps.

    Costs one Hessian-vector product per tuned number and step, and memory that does not grow with the window: for
    few hyperparameters (global and per-tensor values) over long horizons. Equals `unroll(window)`.
    """
    _check_window(window)

    def call(
        dynamics: Dynamics, objective: Objective, z: TrainState, raw: Params, batches: Sequence[Batch], target: Batch
    ) -> Outcome:
        tuned, metrics = dynamics.tuned(raw), []
        units, tangents = [], []
        for batch in batches:
            here = dynamics.linearize(z, raw, batch)
            if not metrics:
                units = _units(tuned, here.metrics["loss"].ndim)
                tangents = [Cotangent(_zeros(z.params, z), _zeros(z.state, z)) for _ in units]
            tangents = [here.push(tangent, unit) for tangent, unit in zip(tangents, units, strict=True)]
            z, metrics = here.z_next, [*metrics, here.metrics]
        value, v, direct = _cotangent(dynamics, objective, z, raw, target)
        total = _joined(direct, trees.zeros(tuned))
        for tangent, unit in zip(tangents, units, strict=True):
            slope = trees.inner(v.params, tangent.params, value.ndim)
            total = {k: torch.addcmul(total[k], unit[k], trees.per_run(slope, unit[k])) for k in total}
        return Outcome(z, metrics, value, total)

    return Engine(window, call, traceable=False, products=True, pushes=True)


def _units(tuned: Params, run_axes: int) -> list[Params]:
    """A tangent of raw for every tuned number: 1 there, in all runs alike, and 0 elsewhere."""
    numbers = sum(value[(0,) * run_axes].numel() for value in tuned.values())
    if numbers > MOST_TANGENTS:
        raise ValueError(
            f"forward mode takes a Hessian-vector product for each tuned number in each step, and {numbers} are tuned; "
            f"tune at most {MOST_TANGENTS} (granularity global or tensor), or take engine unroll or neumann"
        )
    units = []
    for key, value in tuned.items():
        flat = torch.zeros_like(value).reshape((*value.shape[:run_axes], -1))
        for position in range(flat.shape[-1]):
            unit = flat.index_fill(-1, torch.tensor(position, device=flat.device), 1.0).reshape(value.shape)
            units.append({**trees.zeros(tuned), key: unit})
    return units


def _check_window(window: int) -> None:
    check_whole("window", window, 1)


def _cotangent(
    dynamics: Dynamics, objective: Objective, z: TrainState, raw: Params, target: Batch
) -> tuple[Tensor, Cotangent, Params]:
    return objective_cotangent(lambda w, b, r: objective(w, b, r, target), z, raw, dynamics.tuned(raw))


def _zeros(tree: trees.Tree, z: TrainState) -> trees.Tree:
    """A linear form, or a tangent, of zeros."""
    return trees.cast(trees.zeros(tree), trees.precision(z.params))


def _joined(some: Params, slopes: Params) -> Params:
    """Sum of two gradients, of which the first lacks entries that are zero."""
    return {k: some[k] + slope if k in some else slope for k, slope in slopes.items()}


def _roll(
    dynamics: Dynamics, z: TrainState, raw: Params, batches: Sequence[Batch]
) -> tuple[list[Any], list[Metrics], TrainState]:
    hyper = dynamics.constrain(raw, z.params)
    points, metrics = [], []
    for batch in batches:
        points.append(z)
        z, measured = dynamics.step(z, hyper, batch)
        metrics.append(measured)
    return points, metrics, z
