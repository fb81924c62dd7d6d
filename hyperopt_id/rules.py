r"""Weight-update rules as pure functions: `(params, state') = update(params, gradients, state, hyperparameters)`.

A rule is two functions on flat dicts keyed like `params`, and perhaps their derivative. `hyperparameters[name]` is
itself such a dict; its entries are 0-d (shared) or full-shape (per element), and broadcasting makes the two the same
code. Nothing is captured: whatever may be tuned is an argument, so the update can be differentiated in it. The
meta-optimizer that moves raw hyperparameters is one of these rules, acting on raw values as its `params`.

Φ calls `update` in float32 or float64, whatever the precision of the model, and rounds what comes out once, to the
types that parameters have, and that `init` gives the state: that of its parameter, as in `torch.optim`, but float32 at
least for counts of steps, and for squares of float16 gradients, which would be 0 below 2e-4.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.trees import Params

State = dict[str, Any]  # Params by name, or single tensors
Hyperparameters = dict[str, Params]  # by name, then keyed like the parameters


class Derivative(NamedTuple):
    """The new weights of a rule that updates every weight by itself, differentiated; functions of what `update` takes.

    `diagonals` is (∂w'/∂w, ∂w'/∂g), shaped like weights or like the hyperparameters that these share; `hyper` is ∂w'/∂h
    for every hyperparameter h, shaped like weights. The optimizer's state before the update is a constant.
    """

    diagonals: Callable[[Params, Params, State, Hyperparameters], tuple[Params, Params]]
    hyper: Callable[[Params, Params, State, Hyperparameters], Hyperparameters]


class UpdateRule(NamedTuple):
    """`init: params -> state`; `update: (params, gradients, state, hyperparameters) -> (params, state)`, both pure.

    `hyperparameters` names those that `update` reads. `derivative` is the closed form, where there is one that is
    faster than automatic differentiation of `update`. `counts_apart` says that a count of steps in the state may also
    be a dict of counts, one for each parameter (see `rules_unused`).
    """

    init: Callable[[Params], State]
    update: Callable[[Params, Params, State, Hyperparameters], tuple[Params, State]]
    hyperparameters: tuple[str, ...]
    derivative: Derivative | None = None
    counts_apart: bool = False


def sgd(*, dampening: float = 0.0, nesterov: bool = False) -> UpdateRule:
    r"""Stochastic gradient descent as in `torch.optim.SGD`.

    With \(g_t\) the gradient, \(\xi\) the weight decay, \(\mu\) the momentum, \(\tau\) the dampening:

    .. math:: b_t = \mu b_{t-1} + (1 - \tau)(g_t + \xi w_{t-1}), \qquad w_t = w_{t-1} - \eta\, b_t,

    where the first step takes \(b_1\) undamped, and Nesterov momentum steps along \(g_t + \xi w_{t-1} + \mu b_t\).
    State: `momentum`, zeros at first; `started` (0-d) only where dampening has to know the first step.
    """
    if nesterov and dampening:
        raise ValueError(f"Nesterov momentum needs dampening 0, but dampening is {dampening}; set one of them off")

    def init(params: Params) -> State:
        state: State = {"momentum": trees.zeros(params)}
        if dampening:
            state["started"] = _zero(params)
        return state

    def buffer_and_direction(
        params: Params, gradients: Params, state: State, hyper: Hyperparameters
    ) -> tuple[Params, Params]:
        weight_decay, momentum = hyper["weight_decay"], hyper["momentum"]
        decayed = {k: torch.addcmul(g, weight_decay[k], params[k]) for k, g in gradients.items()}
        fresh = decayed
        if dampening:
            started = by_parameter(state["started"], params)
            fresh = {k: d * (1.0 - dampening * started[k]) for k, d in decayed.items()}
        buffer = {k: torch.addcmul(f, momentum[k], state["momentum"][k]) for k, f in fresh.items()}
        if nesterov:
            return buffer, {k: torch.addcmul(decayed[k], momentum[k], b) for k, b in buffer.items()}
        return buffer, buffer

    def update(params: Params, gradients: Params, state: State, hyper: Hyperparameters) -> tuple[Params, State]:
        buffer, direction = buffer_and_direction(params, gradients, state, hyper)
        moved = {k: torch.addcmul(params[k], hyper["lr"][k], d, value=-1.0) for k, d in direction.items()}
        new_state: State = {"momentum": buffer}
        if dampening:
            new_state["started"] = trees.map(torch.ones_like, state["started"])
        return moved, new_state

    derivative = _sgd_derivative(dampening, nesterov, buffer_and_direction)
    return UpdateRule(init, update, ("lr", "weight_decay", "momentum"), derivative, counts_apart=True)


def _sgd_derivative(
    dampening: float,
    nesterov: bool,
    buffer_and_direction: Callable[[Params, Params, State, Hyperparameters], tuple[Params, Params]],
) -> Derivative:
    r"""With \(d_t\) the direction and \(c\) its derivative in \(g_t + \xi w_{t-1}\), which is 1, less where damped, and
    \(1 + \mu\) under Nesterov momentum:

    .. math:: \frac{\partial w_t}{\partial g_t} = -\eta c, \quad
              \frac{\partial w_t}{\partial w_{t-1}} = 1 - \eta c\,\xi, \quad
              \frac{\partial w_t}{\partial \eta} = -d_t, \quad
              \frac{\partial w_t}{\partial \xi} = -\eta c\,w_{t-1}, \quad
              \frac{\partial w_t}{\partial \mu} = -\eta\,b_{t-1}, \text{ Nesterov: } -\eta (b_t + \mu b_{t-1}).
    """

    def diagonals(params: Params, gradients: Params, state: State, hyper: Hyperparameters) -> tuple[Params, Params]:
        if nesterov:
            across = trees.map_distinct(lambda rate, m: -rate * (1.0 + m), hyper["lr"], hyper["momentum"])
        elif dampening:
            started = by_parameter(state["started"], params)
            across = trees.map_distinct(lambda rate, s: -(1.0 - dampening * s) * rate, hyper["lr"], started)
        else:
            across = trees.map_distinct(lambda rate: -rate, hyper["lr"])
        along = trees.map_distinct(lambda a, decay: 1.0 + a * decay, across, hyper["weight_decay"])
        return along, across

    def hyper_slopes(params: Params, gradients: Params, state: State, hyper: Hyperparameters) -> Hyperparameters:
        rate, momentum, before = hyper["lr"], hyper["momentum"], state["momentum"]
        buffer, direction = buffer_and_direction(params, gradients, state, hyper)
        _, across = diagonals(params, gradients, state, hyper)
        if nesterov:
            before = {k: torch.addcmul(b, momentum[k], before[k]) for k, b in buffer.items()}
        return {
            "lr": {k: -d for k, d in direction.items()},
            "weight_decay": {k: across[k] * w for k, w in params.items()},
            "momentum": {k: -rate[k] * b for k, b in before.items()},
        }

    return Derivative(diagonals, hyper_slopes)


def _zero(params: Params) -> Tensor:
    """A 0-d count, for these parameters."""
    return next(iter(params.values())).new_zeros((), dtype=trees.precision(params))


def by_parameter(count: Tensor | Params, params: Params) -> Params:
    """A count of the state for each parameter, whether they share one or not."""
    return count if isinstance(count, dict) else dict.fromkeys(params, count)


def _of_squares(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float16 else dtype


def _adam(*, decoupled: bool) -> UpdateRule:
    def init(params: Params) -> State:
        square = {k: torch.zeros_like(p, dtype=_of_squares(p.dtype)) for k, p in params.items()}
        return {"mean": trees.zeros(params), "square": square, "step": _zero(params)}

    def update(params: Params, gradients: Params, state: State, hyper: Hyperparameters) -> tuple[Params, State]:
        step = trees.map(lambda count: count + 1.0, state["step"])
        steps = by_parameter(step, params)
        # The step size and the root of the second bias correction, of which parameters usually share one.
        size = trees.map_distinct(lambda rate, beta1, t: rate / (1.0 - beta1**t), hyper["lr"], hyper["beta1"], steps)
        scale = trees.map_distinct(lambda beta2, t: (1.0 - beta2**t).sqrt(), hyper["beta2"], steps)
        moved, mean, square = {}, {}, {}
        for k, gradient in gradients.items():
            param, decay = params[k], hyper["weight_decay"][k]
            if not decoupled:
                gradient = torch.addcmul(gradient, decay, param)
            mean[k] = torch.lerp(gradient, state["mean"][k], hyper["beta1"][k])
            square[k] = torch.lerp(gradient.square(), state["square"][k], hyper["beta2"][k])
            # A weight whose gradient has always been zero has square 0, where the square root has no derivative.
            root = square[k].clamp_min(torch.finfo(param.dtype).tiny).sqrt()
            denominator = torch.addcdiv(hyper["eps"][k], root, scale[k])
            if decoupled:
                param = param * (1.0 - hyper["lr"][k] * decay)
            moved[k] = torch.addcmul(param, size[k], mean[k] / denominator, value=-1.0)
        return moved, {"mean": mean, "square": square, "step": step}

    return UpdateRule(init, update, ("lr", "weight_decay", "beta1", "beta2", "eps"), counts_apart=True)


def adam() -> UpdateRule:
    r"""Adam as in `torch.optim.Adam` (arXiv 1412.6980), weight decay added to the gradient.

    .. math:: m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t,\quad v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2,\quad
              w_t = w_{t-1} - \frac{\eta}{1-\beta_1^t}\,\frac{m_t}{\sqrt{v_t}/\sqrt{1-\beta_2^t} + \epsilon}.

    State: `mean`, `square`, and `step` (0-d, a floating-point count so that it travels through every derivative).
    """
    return _adam(decoupled=False)


def adamw() -> UpdateRule:
    r"""`torch.optim.AdamW` (arXiv 1711.05101): Adam after a decoupled decay \(w \leftarrow (1-\eta\xi) w\)."""
    return _adam(decoupled=True)


def geometric() -> UpdateRule:
    r"""A schedule in disguise: \(r_t = r_{t-1} + \log_{10} c\) multiplies \(10^r\) by the factor \(c\) at every step.

    Gradients are ignored; there is no state.
    """

    def update(params: Params, gradients: Params, state: State, hyper: Hyperparameters) -> tuple[Params, State]:
        del gradients
        return {k: p + torch.log10(hyper["factor"][k]) for k, p in params.items()}, state

    return UpdateRule(lambda params: {}, update, ("factor",))


def clipped(rule: UpdateRule, max_norm: float) -> UpdateRule:
    r"""The rule fed with \(g \cdot \min(1, c / (\lVert g \rVert_2 + 10^{-6}))\), the norm taken over all tensors.

    As `torch.nn.utils.clip_grad_norm_`; being part of the rule, it is differentiated through. The quotient is 2
    for norms below c / 2: c over a small norm can be infinite, and the derivative of what is then cut off at 1 is NaN.
    """

    def update(params: Params, gradients: Params, state: State, hyper: Hyperparameters) -> tuple[Params, State]:
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()]))
        limit = min(max_norm, torch.finfo(norm.dtype).max / 16)
        scale = (limit / (norm + 1e-6).clamp_min(limit / 2)).clamp_max(1.0)
        return rule.update(params, {k: g * scale for k, g in gradients.items()}, state, hyper)

    return rule._replace(update=update, derivative=None)
