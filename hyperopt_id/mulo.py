r"""μLO, the learned optimizer: an update rule whose hyperparameters are a small network.

Every weight has 39 features: its gradient, value and accumulators, and the time. Those of index 0 to 27 are divided
by their root mean square over the tensor; then, for each weight,

.. math:: (\text{direction}, \text{magnitude}) = \mathrm{MLP}_\theta(\text{features}), \qquad
          w \leftarrow (1 - \eta\xi)\,w - c\,\eta\,\text{direction}\,e^{0.001\,\text{magnitude}}

with learning rate \(\eta\), decoupled weight decay \(\xi\) and a constant \(c\). The accumulators, with decays that
belong to \(\theta\), are means of the gradient g (momentum, three decays), of g² (square), and of the means of g² over
the rows and over the columns of a tensor (three decays), as in Adafactor. They start at zero, are not corrected for
it, and are updated before the features are formed.

Source: arXiv 2406.00153; architecture small_fc_mlp of arXiv 2203.11860. \(\theta\) is one vector [2409], `LAYOUT`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.kernels.layout import factored_axes
from hyperopt_id.rules import Hyperparameters, State, UpdateRule, by_parameter
from hyperopt_id.trees import Params

HIDDEN = 32
SPATIAL = 28  # features of a weight, normalized over its tensor
TIMES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 1e4, 3e4, 1e5)  # steps, of the features tanh(t/τ - 1)
DECAYS = {"momentum": (0.9, 0.99, 0.999), "square": (0.999,), "factored": (0.9, 0.99, 0.999)}
LARGEST = 1e15  # of a gradient: one beyond it counts as 0, as NaN does, and sums of its square are finite in float32
LAYOUT = {  # of θ, each part flattened in row-major order
    "w0": (SPATIAL + len(TIMES), HIDDEN),
    "b0": (HIDDEN,),
    "w1": (HIDDEN, HIDDEN),
    "b1": (HIDDEN,),
    "w2": (HIDDEN, 2),
    "b2": (2,),
    **{name: (len(decays),) for name, decays in DECAYS.items()},
}
SIZE = sum(math.prod(shape) for shape in LAYOUT.values())


class Theta(NamedTuple):
    """The parts of θ; the last three are offsets of decays, see `decays`."""

    w0: Tensor
    b0: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    momentum: Tensor
    square: Tensor
    factored: Tensor


class Accumulators(NamedTuple):
    """Of one tensor of weights: momentum [3, *shape], square [*shape], row and column [3, *shape], of which the axis
    averaged over has size 1. A tensor of fewer than 2 axes has the mean of g² itself in row, and an empty column."""

    momentum: Tensor
    square: Tensor
    row: Tensor
    column: Tensor


def unpack(theta: Tensor) -> Theta:
    """The parts of a vector [2409], as views."""
    sizes = [math.prod(shape) for shape in LAYOUT.values()]
    return Theta(*(part.reshape(shape) for part, shape in zip(theta.split(sizes), LAYOUT.values(), strict=True)))


def pack(parts: Theta) -> Tensor:
    """The inverse of `unpack`."""
    return torch.cat([part.reshape(-1) for part in parts])


def untrained(seed: int = 0) -> Tensor:
    r"""θ as meta-training starts it: weights from a normal distribution cut at 2σ, σ = 1/√fan_in, the rest zero."""
    generator = torch.Generator("cpu").manual_seed(seed)
    parts = {name: torch.zeros(shape, dtype=torch.float32, device="cpu") for name, shape in LAYOUT.items()}
    for name in ("w0", "w1", "w2"):
        sigma = LAYOUT[name][0] ** -0.5
        torch.nn.init.trunc_normal_(parts[name], 0.0, sigma, -2.0 * sigma, 2.0 * sigma, generator)
    return pack(Theta(**parts))


def decays(theta: Theta) -> dict[str, Tensor]:
    r"""\(\beta = 1 - (1 - \beta_0)\,e^{10\,\text{offset}}\) by accumulator; those of squares are kept in [0, 1]."""
    found = {}
    for name, initial in DECAYS.items():
        offset = getattr(theta, name)
        found[name] = 1.0 - (1.0 - offset.new_tensor(initial)) * torch.exp(10.0 * offset)
    return {name: beta if name == "momentum" else beta.clamp(0.0, 1.0) for name, beta in found.items()}


def start(param: Tensor) -> Accumulators:
    """Accumulators of zeros; a number is a vector of one."""
    param = param.reshape(1) if param.ndim == 0 else param
    zeros, axes = param.new_zeros((3, *param.shape)), factored_axes(tuple(param.shape))
    if axes is None:
        return Accumulators(zeros, torch.zeros_like(param), zeros.clone(), param.new_zeros(0))
    columns, rows = axes
    means = [zeros.sum(axis + 1, keepdim=True) for axis in (rows, columns)]
    return Accumulators(zeros, torch.zeros_like(param), *means)


def accumulate(gradient: Tensor, before: Accumulators, beta: dict[str, Tensor]) -> Accumulators:
    r"""\(a \leftarrow \beta a + (1 - \beta) x\) for every accumulator; `gradient` is finite."""

    def mean(old: Tensor, new: Tensor, beta: Tensor) -> Tensor:
        return torch.lerp(new, old, beta.reshape((-1,) + (1,) * (old.ndim - 1)))

    square, axes = gradient.square(), factored_axes(tuple(gradient.shape))
    momentum = mean(before.momentum, gradient[None], beta["momentum"])
    squares = torch.lerp(square, before.square, beta["square"][0])
    if axes is None:
        row = mean(before.row, square[None] + 1e-30, beta["factored"])
        return Accumulators(momentum, squares, row, before.column.clone())
    column, row = (
        mean(old, (square + 1e-30).mean(axis, keepdim=True)[None], beta["factored"])
        for old, axis in zip((before.column, before.row), axes, strict=True)
    )
    return Accumulators(momentum, squares, row, column)


def features(param: Tensor, gradient: Tensor, now: Accumulators) -> tuple[Tensor, Tensor]:
    """The features 0 to 27 of all weights, [28, weights], and what each is multiplied by to be normalized, [28]."""
    momentum, square, row, column = now
    axes = factored_axes(tuple(param.shape))
    scale = torch.rsqrt(square + 1e-6)
    if axes is None:
        column = row
        gradient_factor = torch.rsqrt((row + 1e-9).clamp_min(1e-9))
        momentum_factor = torch.rsqrt(row + 1e-6)
    else:
        relative = row / (row.mean(axes[0] + 1, keepdim=True) + 1e-9)
        gradient_factor = torch.rsqrt(relative.clamp_min(1e-9)) * torch.rsqrt(column.clamp_min(1e-9))
        momentum_factor = gradient_factor
    groups = (
        gradient[None],
        param[None],
        momentum,
        square[None],
        momentum * scale,
        scale[None],
        gradient * gradient_factor,
        row,
        column,
        torch.rsqrt(row + 1e-8),
        torch.rsqrt(column + 1e-8),
        momentum * momentum_factor,
    )
    raw = torch.cat([group.expand(-1, *param.shape) for group in groups]).flatten(1)
    power = torch.linalg.vecdot(raw, raw) / raw.shape[1]
    return raw, torch.rsqrt(power + 1e-5)


def time_features(step: Tensor) -> Tensor:
    """The features 28 to 38, [11], of the 0-based step (0-d)."""
    return torch.tanh(step / step.new_tensor(TIMES) - 1.0)


def network(theta: Theta, spatial: Tensor, scale: Tensor, times: Tensor) -> Tensor:
    """direction · exp(0.001 magnitude) of every weight; spatial [28, weights], scale [28], times [11]."""
    constant = times @ theta.w0[SPATIAL:] + theta.b0  # what all weights of all tensors share
    hidden = torch.addmm(constant, spatial.mT, scale[:, None] * theta.w0[:SPATIAL]).relu_()
    hidden = torch.addmm(theta.b1, hidden, theta.w1).relu_()
    direction, magnitude = torch.addmm(theta.b2, hidden, theta.w2).unbind(-1)
    return direction * torch.exp(0.001 * magnitude)


def mulo(*, step_multiplier: float = 0.01) -> UpdateRule:
    """The rule. `theta` is a hyperparameter, a vector [2409] for every parameter (one shared by all, as a rule).

    `step_multiplier` is the constant c: 0.01 for μLO, 0.001 for small_fc_mlp under the standard parametrization. State:
    the `Accumulators` of every parameter by name, and `step` (0-d, a floating-point count from 0), float32 at least.
    """

    def init(params: Params) -> State:
        step = next(iter(params.values())).new_zeros((), dtype=trees.precision(params))
        return {**_by_name({k: start(trees.wide(param)) for k, param in params.items()}), "step": step}

    def update(params: Params, gradients: Params, state: State, hyper: Hyperparameters) -> tuple[Params, State]:
        times = trees.map_distinct(time_features, by_parameter(state["step"], params))
        moved, accumulators = {}, {}
        for k, param in params.items():
            before = Accumulators(*(state[name][k] for name in Accumulators._fields))
            if param.numel() == 0:  # means over nothing would be NaN
                moved[k], accumulators[k] = param, before
                continue
            theta, rate = unpack(hyper["theta"][k]), hyper["lr"][k]
            shaped = param.reshape(1) if param.ndim == 0 else param
            gradient = gradients[k].reshape(shaped.shape)
            gradient = torch.where(gradient.abs() <= LARGEST, gradient, 0.0)
            accumulators[k] = accumulate(gradient, before, decays(theta))
            step = network(theta, *features(shaped, gradient, accumulators[k]), times[k]).reshape(param.shape)
            moved[k] = param * (1.0 - rate * hyper["weight_decay"][k]) - step_multiplier * rate * step
        return moved, {**_by_name(accumulators), "step": trees.map(lambda step: step + 1.0, state["step"])}

    return UpdateRule(init, update, ("lr", "weight_decay", "theta"), counts_apart=True)


def _by_name(accumulators: dict[str, Accumulators]) -> State:
    """{parameter: its accumulators} as {accumulator: {parameter: tensor}}."""
    return {name: {k: getattr(own, name) for k, own in accumulators.items()} for name in Accumulators._fields}
