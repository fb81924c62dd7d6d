r"""The map that training iterates, and its derivatives.

.. math:: z' = \Phi(z, \mathrm{raw}, \mathrm{batch}) = U(w, \nabla L(w, \mathrm{batch}), s, \mathrm{constrain}(\mathrm{raw})),
          \qquad z = (w, \text{buffers}, s).

With \(g = \nabla L(w)\) and \(H\) its derivative, \(\Phi\) factorizes, so that a cotangent \(v\) is pulled back by

.. math:: v\,\partial_w \Phi = v\,\partial_w U + (v\,\partial_g U)\,H, \qquad
          v\,\partial_{\mathrm{raw}} \Phi = v\,\partial_h U\,\partial_{\mathrm{raw}} \mathrm{constrain},

where only the first needs the Hessian, by one product. Buffers (BatchNorm statistics, carried hidden states) are
constants of the derivative.

Every function here serves one run or R independent runs with a leading axis: the loss, rule and constraint it is
given are then lifted, losses are [R], and the sum over runs is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.curvature import Curvature, gradient
from hyperopt_id.rules import Hyperparameters, Params, State, UpdateRule

Batch = Any
LossFunction = Callable[[Params, Params, Batch], tuple[Tensor, tuple[Params, dict[str, Tensor]]]]
Metrics = dict[str, Tensor]


class TrainState(NamedTuple):
    """z: everything that training changes."""

    params: Params
    buffers: Params
    state: State


class Cotangent(NamedTuple):
    """A linear form on z; `state` None stands for zero."""

    params: Params
    state: State | None


class Linearization(NamedTuple):
    """Φ at one point. `pull_state: v -> v·∂Φ/∂z`, `pull_raw: v -> v·∂Φ/∂raw` (tuned entries only), and
    `push: (dz, draw) -> dz'`, the same derivative applied to a tangent (`Cotangent` holds tangents, too)."""

    z_next: TrainState
    metrics: Metrics
    pull_state: Callable[[Cotangent], Cotangent]
    pull_raw: Callable[[Cotangent], Params]
    push: Callable[[Cotangent, Params], Cotangent]


class Dynamics(NamedTuple):
    """Φ in the two forms that are needed, with `linearize(z, raw, b).z_next == step(z, constrain(raw, z.params), b)`.

    The plain step takes natural values, for raw ones are constant between hyper-updates and need to be transformed
    once. `pull` is a linearization used once, `(v·∂Φ/∂z, v·∂Φ/∂raw)`. `tuned` selects the entries of raw that
    derivatives are taken in.
    """

    constrain: Callable[[Params, Params], Hyperparameters]
    step: Callable[[TrainState, Hyperparameters, Batch], tuple[TrainState, Metrics]]
    linearize: Callable[[TrainState, Params, Batch], Linearization]
    pull: Callable[[TrainState, Params, Batch, Cotangent], tuple[Cotangent, Params]]
    tuned: Callable[[Params], Params]


def make_dynamics(
    loss: LossFunction,
    rule: UpdateRule,
    constrain: Callable[[Params, Params], Hyperparameters],
    tuned: Callable[[Params], Params],
    curvature: Curvature,
    thin: Callable[[Batch], Batch] | None = None,
) -> Dynamics:
    """Φ from its parts. `thin` reduces a batch to the rows that Hessian-vector products use (default: all)."""

    def step(z: TrainState, hyper: Hyperparameters, batch: Batch) -> tuple[TrainState, Metrics]:
        slopes, value, (buffers, metrics), _ = gradient(lambda w: loss(w, z.buffers, batch), z.params)
        params, state = rule.update(z.params, slopes, z.state, hyper)
        return TrainState(params, buffers, state), {**metrics, "loss": value}

    def linearize(z: TrainState, raw: Params, batch: Batch) -> Linearization:
        whole = lambda w: loss(w, z.buffers, batch)  # noqa: E731
        thinned = whole
        if thin is not None:
            few = thin(batch)
            thinned = lambda w: loss(w, z.buffers, few)  # noqa: E731
        at = curvature(whole, thinned, z.params)
        buffers, metrics = at.auxiliary
        update = _Update(rule, constrain, z, at.value, raw, tuned(raw))
        z_next = TrainState(update.params, buffers, update.state)

        def pull_state(v: Cotangent) -> Cotangent:
            v_params, v_gradient, v_state = update.pull(v)
            return Cotangent(trees.add(v_params, at.product(v_gradient)), v_state)

        def push(dz: Cotangent, draw: Params) -> Cotangent:
            return update.push(dz, at.product(dz.params), draw)

        return Linearization(z_next, {**metrics, "loss": at.loss}, pull_state, update.pull_raw, push)

    def pull(z: TrainState, raw: Params, batch: Batch, v: Cotangent) -> tuple[Cotangent, Params]:
        here = linearize(z, raw, batch)
        return here.pull_state(v), here.pull_raw(v)

    return Dynamics(constrain, step, linearize, pull, tuned)


class _Update:
    """The rule's part U of Φ, recorded once at (w, g, s, raw): elementwise and cheap, it holds no Hessian."""

    def __init__(self, rule: UpdateRule, constrain: Any, z: TrainState, slopes: Params, raw: Params, tuned: Params):
        def apply(params: Params, gradients: Params, state: State, learned: Params) -> tuple[Params, State]:
            return rule.update(params, gradients, state, constrain({**raw, **learned}, params))

        self._apply = apply
        self._point = tuple(trees.variables(part) for part in (z.params, slopes, z.state, tuned))
        with torch.enable_grad():
            self._output = apply(*self._point)
        self.params, self.state = trees.detach(self._output)

    def _vector_jacobian(self, v: Cotangent, inputs: list[Tensor]) -> list[Tensor]:
        outputs, forms = list(self._output[0].values()), list(v.params.values())
        if v.state is not None:
            pairs = zip(trees.leaves(self._output[1]), trees.leaves(v.state), strict=True)
            moving = [(out, form) for out, form in pairs if out.requires_grad]
            outputs, forms = outputs + [out for out, _ in moving], forms + [form for _, form in moving]
        return list(
            torch.autograd.grad(
                outputs, inputs, forms, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        )

    def pull(self, v: Cotangent) -> tuple[Params, Params, State | None]:
        """v·∂U/∂(w, g, s); the state's part only where v has one."""
        params, slopes, state, _ = self._point
        state_leaves = [] if v.state is None else trees.leaves(state)
        parts = self._vector_jacobian(v, [*params.values(), *slopes.values(), *state_leaves])
        n = len(params)
        pulled_state = None if v.state is None else trees.like(state, parts[2 * n :])
        return dict(zip(params, parts[:n], strict=True)), dict(zip(params, parts[n : 2 * n], strict=True)), pulled_state

    def pull_raw(self, v: Cotangent) -> Params:
        """v·∂U/∂raw over the tuned entries."""
        learned = self._point[3]
        if not learned:
            return {}
        return dict(zip(learned, self._vector_jacobian(v, list(learned.values())), strict=True))

    def push(self, dz: Cotangent, dslopes: Params, draw: Params) -> Cotangent:
        """∂U·(dw, dg, ds, draw)."""
        point = tuple(trees.detach(part) for part in self._point)
        dstate = trees.zeros(point[2]) if dz.state is None else dz.state
        _, tangent = torch.func.jvp(self._apply, point, (dz.params, dslopes, dstate, draw))
        return Cotangent(*tangent)


def objective_cotangent(
    objective: Callable[[Params, Params, Params], Tensor], z: TrainState, raw: Params, tuned: Params
) -> tuple[Tensor, Cotangent, Params]:
    """`(ℓ, dℓ/dz, dℓ/draw)` for `objective(params, buffers, raw)`; the last is the direct term."""
    with torch.enable_grad():
        params, learned = trees.variables(z.params), trees.variables(tuned)
        value = objective(params, z.buffers, {**raw, **learned})
        inputs = [*params.values(), *learned.values()]
        slopes = torch.autograd.grad(
            value, inputs, torch.ones_like(value), allow_unused=True, materialize_grads=True
        )
    n = len(params)
    v = Cotangent(dict(zip(params, slopes[:n], strict=True)), None)
    return value.detach(), v, dict(zip(learned, slopes[n:], strict=True))
