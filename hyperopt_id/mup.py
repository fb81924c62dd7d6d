r"""Hyperparameters that fit a network of any width: factors of the learning rate and weight decay, by parameter.

.. math:: \eta_k = c_k\,\eta, \qquad \xi_k = \xi / c_k, \qquad c_k = \mathrm{scheme}(\mathrm{tag}_k)

for parameter k, so that the decay of a step, \(\eta_k \xi_k\), is the same for all. With n the fan-in, and m the size
of a dimension that grows with the width divided by its base size (two of them in a hidden matrix, \(m_{in}\) and
\(m_{out}\); none or one elsewhere), and L the depth of a residual stack, where it is given:

    parameter                          adam       sgd               unit_adam    unit_sgd
    hidden matrix                      1 / m_in   m_out / m_in      (n L)^-1/2   (n / L)^1/2
    input matrix, embedding            1          m                 (n L)^-1/2   (n / L)^1/2
    output matrix                      1          m                 L^-1/2       L^-1/2
    bias, norm                         1          m                 L^-1/2       size L^-1/2

The first two are μP (arXiv 2203.03466, table 8), in which the width changes nothing at m = 1; the others u-μP (arXiv
2407.17465), where weights start with variance 1. `unit_sgd` is for gradients that a unit-scaled backward pass makes.
A model says roles and shapes in plain data; its forward pass and initial weights are its own affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

from hyperopt_id import trees
from hyperopt_id.rules import Derivative, Hyperparameters, State, UpdateRule
from hyperopt_id.trees import Params

ROLES: dict[str, tuple[int, ...]] = {  # with the dimensions that grow with the width
    "input": (0,),
    "hidden": (0, 1),
    "output": (1,),
    "embedding": (1,),
    "bias": (0,),
    "norm": (0,),
}
Multipliers = Mapping[str, Mapping[str, float]]  # hyperparameter -> parameter -> factor


class Tag(NamedTuple):
    """What a scheme knows of one parameter: its role; its shape; for each dimension, size / base size, None where it
    does not grow with the width; the depth L of the residual stack that it is in, None where that is not scaled."""

    role: str
    shape: tuple[int, ...]
    widths: tuple[float | None, ...]
    depth: int | None = None


Scheme = Callable[[Tag], float]


def tags(
    shapes: Mapping[str, Sequence[int]],
    roles: Mapping[str, str],
    base: int | Mapping[str, Sequence[int]],
    delta: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Tag]:
    """Tags of the parameters with these shapes.

    `base` as a number is the base size of all dimensions that grow according to their roles (but a bias beside an
    output matrix, which does not grow). As shapes of a base model, with the same names, it says itself what grows:
    the dimensions in which it differs from `delta`, the shapes of a third model, or without one from `shapes`, so that
    none grows in a model of the base width itself. Roles may then be missing.

    Raises ValueError if names, dimensions or roles do not fit together.
    """
    if not isinstance(base, int):
        other = shapes if delta is None else delta
        return {name: _by_shape(name, tuple(shape), roles.get(name, ""), base, other) for name, shape in shapes.items()}
    if delta is not None:
        raise ValueError(f"delta says which dimensions of a base model grow, but base is a width, {base}; leave it out")
    if base < 1:
        raise ValueError(f"base width {base}: needed is a width of 1 or more, at which the factors are 1")
    outputs = {name.rpartition(".")[0] for name, role in roles.items() if role == "output"}
    found = {}
    for name, shape in shapes.items():
        if roles.get(name) not in ROLES:
            given = f"has the role {roles[name]}" if name in roles else "has no role"
            raise ValueError(f"parameter {name} {given}; give it one of {', '.join(ROLES)}, or shapes of a base model")
        role = roles[name]
        growing = () if role == "bias" and name.rpartition(".")[0] in outputs else ROLES[role]
        if len(shape) <= max(growing, default=-1):
            raise ValueError(f"parameter {name} of shape {list(shape)} has too few dimensions for the role {role}")
        widths = tuple(size / base if axis in growing else None for axis, size in enumerate(shape))
        found[name] = Tag(role, tuple(shape), widths)
    return found


def _by_shape(
    name: str,
    shape: tuple[int, ...],
    role: str,
    base: Mapping[str, Sequence[int]],
    other: Mapping[str, Sequence[int]],
) -> Tag:
    for what, shapes in (("base", base), ("delta", other)):
        if len(shapes.get(name, ())) != len(shape) or name not in shapes:
            given = f"has {list(shapes[name])}" if name in shapes else "lacks it"
            raise ValueError(f"parameter {name} has shape {list(shape)}, the {what} model {given}; make both alike")
    grows = [size != other_size for size, other_size in zip(base[name], other[name])]
    return Tag(role, shape, tuple(size / b if g else None for size, b, g in zip(shape, base[name], grows)))


def adam(tag: Tag) -> float:
    """μP for rules that normalize the gradient of every weight."""
    growing = _growing(tag)
    return 1.0 / growing[-1] if len(growing) == 2 else 1.0


def sgd(tag: Tag) -> float:
    """μP for rules whose step is linear in the gradient."""
    growing = _growing(tag)
    if len(growing) == 2:
        return (tag.widths[0] or 1.0) / (tag.widths[1] or 1.0)
    return growing[0] if growing else 1.0


def _growing(tag: Tag) -> list[float]:
    found = [width for width in tag.widths if width is not None]
    if len(found) > 2:
        raise ValueError(f"{len(found)} dimensions of a parameter {list(tag.shape)} grow with the width; 2 at most can")
    return found


def unit_adam(tag: Tag) -> float:
    """u-μP for rules that normalize the gradient of every weight, or where it is of size 1 by itself."""
    matrix = tag.role not in ("bias", "norm", "output")
    return depth_factor(tag) * (fan_in(tag.shape) ** -0.5 if matrix else 1.0)


def unit_sgd(tag: Tag) -> float:
    """u-μP for steps that are linear in gradients whose size is that of the outputs."""
    if tag.role in ("bias", "norm"):
        return depth_factor(tag) * tag.shape[0]
    return depth_factor(tag) * (fan_in(tag.shape) ** 0.5 if tag.role != "output" else 1.0)


def depth_factor(tag: Tag) -> float:
    return 1.0 if tag.depth is None else tag.depth**-0.5


def fan_in(shape: Sequence[int]) -> int:
    """n of u-μP, of an embedding its width; a ValueError where there is none."""
    if not 1 <= len(shape) <= 3:
        given = f"a weight of shape {list(shape)}"
        raise ValueError(f"u-μP defines no fan-in for {given}: needed are 1 to 3 dimensions; μP takes any number")
    return shape[0] if len(shape) == 1 else math.prod(shape[1:])


def multipliers(tags: Mapping[str, Tag], scheme: Scheme, *, decoupled: bool = False) -> Multipliers:
    r"""\(c_k\) for `lr` and \(1 / c_k\) for `weight_decay`; the latter left out for a rule whose decay is `decoupled`
    from its learning rate, as none in `rules` is."""
    rates = {name: scheme(tag) for name, tag in tags.items()}
    return {"lr": rates} if decoupled else {"lr": rates, "weight_decay": {k: 1.0 / c for k, c in rates.items()}}


def scaled(rule: UpdateRule, multipliers: Multipliers) -> UpdateRule:
    r"""The rule on hyperparameters times their factors, \(U(w, g, s, c \odot h)\); state and further names as before.

    Natural values, which are learned, reported and bounded, are those before the factors, at any granularity. A
    ValueError for a hyperparameter that the rule does not have, or a parameter without a factor.
    """
    if unknown := [name for name in multipliers if name not in rule.hyperparameters]:
        raise ValueError(f"multipliers of {', '.join(unknown)}, but the rule has {', '.join(rule.hyperparameters)}")

    def init(params: Params) -> State:
        for name, factors in multipliers.items():
            if missing := [k for k in params if k not in factors]:
                raise ValueError(f"multipliers of {name} lack the parameter {missing[0]}; make tags of all parameters")
        return rule.init(params)

    def effective(hyper: Hyperparameters) -> Hyperparameters:
        return {n: _times(values, multipliers[n]) if n in multipliers else values for n, values in hyper.items()}

    def update(params: Params, gradients: Params, state: State, hyper: Hyperparameters) -> tuple[Params, State]:
        return rule.update(params, gradients, state, effective(hyper))

    derivative = rule.derivative and _scaled_derivative(rule.derivative, multipliers, effective)
    return rule._replace(init=init, update=update, derivative=derivative)


def _scaled_derivative(
    derivative: Derivative, multipliers: Multipliers, effective: Callable[[Hyperparameters], Hyperparameters]
) -> Derivative:
    r"""\(\partial w' / \partial h = c\,\partial U / \partial (c h)\); those in w and g are the rule's."""

    def diagonals(params: Params, gradients: Params, state: State, hyper: Hyperparameters) -> tuple[Params, Params]:
        return derivative.diagonals(params, gradients, state, effective(hyper))

    def hyper_slopes(params: Params, gradients: Params, state: State, hyper: Hyperparameters) -> Hyperparameters:
        return effective(derivative.hyper(params, gradients, state, effective(hyper)))

    return Derivative(diagonals, hyper_slopes)


def _times(values: Params, factors: Mapping[str, float]) -> Params:
    """Products; parameters that share a value and a factor share the product, too."""
    found = dict(values)
    for factor in dict.fromkeys(factors.values()):
        if factor != 1.0:
            own = {k: value for k, value in values.items() if factors[k] == factor}
            found |= trees.map_distinct(partial(torch.mul, other=factor), own)
    return found
