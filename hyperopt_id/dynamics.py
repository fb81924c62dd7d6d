r"""The map that training iterates, and its derivatives.

.. math:: z' = \Phi(z, \mathrm{raw}, \mathrm{batch})
             = U(w, \nabla L(w, \mathrm{batch}), s, \mathrm{constrain}(\mathrm{raw})),
          \qquad z = (w, \text{buffers}, s).

With \(g = \nabla L(w)\) and \(H\) its derivative, \(\Phi\) factorizes, so that a cotangent \(v\) is pulled back by

.. math:: v\,\partial_w \Phi = v\,\partial_w U + (v\,\partial_g U)\,H, \qquad
          v\,\partial_{\mathrm{raw}} \Phi = v\,\partial_h U\,\partial_{\mathrm{raw}} \mathrm{constrain},

where only the first needs the Hessian, by one product. Buffers (BatchNorm statistics, carried hidden states) are
constants of the derivative. Parameters that L does not use stay as they are (`rules_unused`).

A model may be of half precision, or of several types. Rules, and all that is linear in cotangents but the Hessian, are
computed in `trees.precision(w)`, float32 or float64, in which hyperparameters are, too. New parameters and states are
rounded once, to the types they had; the rounding counts as the identity in derivatives. Of complex tensors there are
both parts, as in `torch.optim`.

Every function here serves one run or R independent runs with a leading axis: the loss, rule and constraint it is
given are then lifted, losses are [R], and the sum over runs is differentiated. Gradients have to be enabled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hyperopt_id import derivatives, trees
from hyperopt_id.derivatives import Curvature, Loss, Product, gradient
from hyperopt_id.rules import Hyperparameters, State, UpdateRule
from hyperopt_id.rules_unused import rule_of_step
from hyperopt_id.trees import Params

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
    `push: (dz, draw) -> dz'`, the same derivative applied to a tangent (`Cotangent` holds tangents, too). A
    cotangent without a state takes the optimizer's state for a constant."""

    z_next: TrainState
    metrics: Metrics
    pull_state: Callable[[Cotangent], Cotangent]
    pull_raw: Callable[[Cotangent], Params]
    push: Callable[[Cotangent, Params], Cotangent]


class Linearize(Protocol):
    """Φ linearized; with `constant_state`, for cotangents without a state only, which is faster for some rules."""

    def __call__(self, z: TrainState, raw: Params, batch: Batch, constant_state: bool = False) -> Linearization: ...


class Dynamics(NamedTuple):
    """Φ in the two forms that are needed, with `linearize(z, raw, b).z_next == step(z, constrain(raw, z.params), b)`.

    The plain step takes natural values, for raw ones are constant between hyper-updates and need to be transformed
    once. `pull` is a linearization used once, `(v·∂Φ/∂z, v·∂Φ/∂raw)`, and `pull_raw` the second of these alone, which
    needs no Hessian. `tuned` selects the entries of raw that derivatives are taken in.
    """

    constrain: Callable[[Params, Params], Hyperparameters]
    step: Callable[[TrainState, Hyperparameters, Batch], tuple[TrainState, Metrics]]
    linearize: Linearize
    pull: Callable[[TrainState, Params, Batch, Cotangent], tuple[Cotangent, Params]]
    pull_raw: Callable[[TrainState, Params, Batch, Cotangent], Params]
    tuned: Callable[[Params], Params]


def make_dynamics(
    loss: LossFunction,
    whole_rule: UpdateRule,
    constrain: Callable[[Params, Params], Hyperparameters],
    tuned: Callable[[Params], Params],
    curvature: Curvature,
    thin: Callable[[Batch], Batch] | None = None,
    curved: LossFunction | None = None,
    optional: Collection[str] | None = None,
) -> Dynamics:
    """Φ from its parts. `thin` reduces a batch to the rows that Hessian-vector products use (default: all), `curved` is
    the loss in the precision that they need (default: that of the steps). `optional` names the parameters that the loss
    is known not to use in every step, where anything is known of it."""

    def loss_on(batch: Batch, buffers: Params) -> Loss:
        return lambda w: loss(w, buffers, batch)

    def curved_on(batch: Batch, buffers: Params, whole: Loss) -> Loss:
        if thin is None and curved is None:
            return whole
        few = batch if thin is None else thin(batch)
        return lambda w: (curved or loss)(w, buffers, few)

    def step(z: TrainState, hyper: Hyperparameters, batch: Batch) -> tuple[TrainState, Metrics]:
        here = gradient(loss_on(batch, z.buffers), trees.variables(z.params))
        rule = rule_of_step(whole_rule, here.unused, z.state, optional)
        exact, rounded = _precision(z)
        w, slopes, state = exact((z.params, here.value, z.state))
        params, state = rounded(rule.update(w, slopes, state, hyper))
        buffers, metrics = here.auxiliary
        return TrainState(params, buffers, state), {**metrics, "loss": here.loss}

    def linearize(z: TrainState, raw: Params, batch: Batch, constant_state: bool = False) -> Linearization:
        assert torch.is_grad_enabled()  # else some derivatives would silently be zero
        whole = loss_on(batch, z.buffers)
        here, own_product = curvature(whole, curved_on(batch, z.buffers, whole), z.params)
        rule = rule_of_step(whole_rule, here.unused, z.state, optional)
        exact, rounded = _precision(z)
        w, slopes, state = exact((z.params, here.value, z.state))
        differentiate = _closed_form if constant_state and rule.derivative is not None else _recorded

        def natural(learned: Params) -> Hyperparameters:
            return constrain({**raw, **learned}, z.params)

        def product(u: Params) -> Params:
            return exact(own_product(trees.cast_like(u, z.params)))

        point = TrainState(w, z.buffers, state)
        after, pull_state, pull_raw = differentiate(rule, natural, point, slopes, tuned(raw), product)
        buffers, metrics = here.auxiliary

        def push(dz: Cotangent, draw: Params) -> Cotangent:
            def apply(w: Params, slopes: Params, state: State, learned: Params) -> tuple[Params, State]:
                return rule.update(w, slopes, state, natural(learned))

            point = trees.detach((w, slopes, state, tuned(raw)))
            dstate = trees.zeros(state) if dz.state is None else dz.state
            tangent = (*exact((dz.params, product(dz.params), dstate)), draw)  # H dw
            return Cotangent(*torch.func.jvp(apply, point, tangent)[1])

        params, state_next = rounded(after)
        z_next = TrainState(params, buffers, state_next)
        metrics = {**metrics, "loss": here.loss}
        return Linearization(z_next, metrics, lambda v: pull_state(exact(v)), lambda v: pull_raw(exact(v)), push)

    def pull(z: TrainState, raw: Params, batch: Batch, v: Cotangent) -> tuple[Cotangent, Params]:
        here = linearize(z, raw, batch)
        return here.pull_state(v), here.pull_raw(v)

    def pull_raw(z: TrainState, raw: Params, batch: Batch, v: Cotangent) -> Params:
        return linearize(z, raw, batch).pull_raw(v)

    return Dynamics(constrain, step, linearize, pull, pull_raw, tuned)


Convert = Callable[[Any], Any]


def _precision(z: TrainState) -> tuple[Convert, Convert]:
    """`(exact, rounded)`: trees in the precision to compute in, and new (parameters, state) in the types of z."""
    dtype = trees.precision(z.params)
    if trees.is_of(z.params, dtype):  # the usual case
        return lambda tree: tree, lambda after: after
    return partial(trees.cast, dtype=dtype), partial(trees.cast_like, model=(z.params, z.state))


Natural = Callable[[Params], Hyperparameters]  # tuned entries of raw -> natural values
Pulls = tuple[tuple[Params, State], Callable[[Cotangent], Cotangent], Callable[[Cotangent], Params]]


def _recorded(
    rule: UpdateRule, natural: Natural, z: TrainState, slopes: Params, learned: Params, product: Product
) -> Pulls:
    """(new parameters and state, `pull_state`, `pull_raw`), the rule differentiated automatically."""
    params, slopes, state, learned = (trees.variables(part) for part in (z.params, slopes, z.state, learned))
    after = rule.update(params, slopes, state, natural(learned))

    def pull_into(v: Cotangent, inputs: trees.Tree) -> trees.Tree:
        moved = after if v.state is not None else after[:1]
        return derivatives.pull(trees.leaves(moved), trees.leaves(v), inputs)

    def pull_state(v: Cotangent) -> Cotangent:
        direct, bent, *carried = pull_into(v, (params, slopes) if v.state is None else (params, slopes, state))
        return Cotangent(trees.add(direct, product(bent)), *carried or (None,))

    return trees.detach(after), pull_state, lambda v: pull_into(v, learned)


def _closed_form(
    rule: UpdateRule, natural: Natural, z: TrainState, slopes: Params, learned: Params, product: Product
) -> Pulls:
    """The same for a constant optimizer state, by the rule's own derivative."""
    derivative = rule.derivative
    assert derivative is not None
    learned = trees.variables(learned)
    recorded = natural(learned)
    hyper = {name: trees.map_distinct(Tensor.detach, values) for name, values in recorded.items()}
    point = (z.params, trees.detach(slopes), z.state, hyper)
    along, across = derivative.diagonals(*point)  # ∂w'/∂w, ∂w'/∂g

    def pull_state(v: Cotangent) -> Cotangent:
        assert v.state is None
        curved = product({k: trees.per_run(across[k], x) * x for k, x in v.params.items()})
        pulled = {k: torch.addcmul(curved[k], trees.per_run(along[k], x), x) for k, x in v.params.items()}
        return Cotangent(pulled, None)

    def pull_raw(v: Cotangent) -> Params:
        assert v.state is None
        partial = derivative.hyper(*point)
        forms: dict[Tensor, Tensor] = {}  # by value, of which parameters may share one
        for name, values in recorded.items():
            for k, value in values.items():
                if not value.requires_grad:
                    continue
                form = trees.contract(v.params[k], partial[name][k], value.ndim)
                forms[value] = forms[value] + form if value in forms else form
        return derivatives.pull(list(forms), list(forms.values()), learned)

    return rule.update(*point), pull_state, pull_raw


def objective_cotangent(
    objective: Callable[[Params, Params, Params], Tensor], z: TrainState, raw: Params, tuned: Params
) -> tuple[Tensor, Cotangent, Params]:
    """`(ℓ, dℓ/dz, dℓ/draw)` for `objective(params, buffers, raw)`; the last is the direct term, of those entries that
    the objective depends on."""
    params, learned = trees.variables(z.params), trees.variables(tuned)
    value = derivatives.evaluate_objective(objective, params, z.buffers, {**raw, **learned})
    inputs = [*params.values(), *learned.values()]
    slopes = torch.autograd.grad(value, inputs, torch.ones_like(value), allow_unused=True)
    n = len(params)
    v = dict(zip(params, derivatives.filled(slopes[:n], params.values()), strict=True))
    v = trees.cast(v, trees.precision(params))
    direct = {k: slope for k, slope in zip(learned, slopes[n:], strict=True) if slope is not None}
    return value.detach(), Cotangent(v, None), direct
