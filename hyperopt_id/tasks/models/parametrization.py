r"""How a model's weights start, and what its layers multiply, so that one learning rate suits all widths.

.. math:: y = a\,W x + b, \qquad \text{attention} = \mathrm{softmax}(q k^\top / s)\, v

with n the fan-in of W, \(n_0\) the base width, D the width of a head, and σ the deviation that W starts with:

    parametrization   a                          σ                                      b                      s
    standard          1                          (3 n)^-1/2; embedding 1 (or 0.02)      U(± n^-1/2)            D^1/2
    mup               1; output n_0 / n          the same; output 0                     U(± n_0^-1/2)          D
    umup              n^-1/2; output 1 / n       1                                      0                      D

b under mup stays uniform in ± n^-1/2 in the first layer, whose inputs do not grow in number, and is 0 beside an output.
Embeddings and normalization have a = 1; the latter start as the identity. Learning rates that belong to this are in
module `mup`, which knows nothing of models. Sources: arXiv 2203.03466 (table 8), 2407.17465.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hyperopt_id.tasks.models.layers import Linear


class Parametrization(NamedTuple):
    """Functions of a layer's role and fan-in. `start` writes to a parameter that has its standard value, given its own
    role and that of the matrix beside it (its own for a matrix)."""

    start: Callable[[Tensor, str, str, int], None]
    multiplier: Callable[[str, int], float]  # a, by role and fan-in of the matrix
    attention: Callable[[int], float]  # s, by width of a head


STANDARD = Parametrization(lambda parameter, role, beside, n: None, lambda role, n: 1.0, math.sqrt)


def mup(base_width: int) -> Parametrization:
    """The maximal update parametrization; only outputs and attention differ from the standard one where all dimensions
    that grow have the base width."""

    def start(parameter: Tensor, role: str, beside: str, n: int) -> None:
        if beside == "output":
            parameter.zero_()
        elif role == "bias" and beside == "hidden":
            parameter.mul_((n / base_width) ** 0.5)

    return Parametrization(start, lambda role, n: base_width / n if role == "output" else 1.0, float)


def _start_unit(parameter: Tensor, role: str, beside: str, n: int) -> None:
    if role == "bias":
        parameter.zero_()
    elif role != "norm":
        parameter.normal_()


def _multiply_unit(role: str, n: int) -> float:
    if role in ("embedding", "norm"):
        return 1.0
    return 1.0 / n if role == "output" else 1.0 / math.sqrt(n)


UNIT_SCALED = Parametrization(_start_unit, _multiply_unit, float)


@torch.no_grad()
def parametrize(module: nn.Module, roles: dict[str, str], how: Parametrization) -> None:
    """Bring a model of standard layers under a parametrization: its parameters, and the multipliers of its linear
    layers. A ValueError where another layer would have to multiply."""
    for name, parameter in module.named_parameters():
        prefix = name[: name.rfind(".") + 1]
        part = module.get_submodule(prefix.removesuffix("."))
        weight = getattr(part, "weight", parameter)
        n = math.prod(weight.shape[1:])
        how.start(parameter, roles[name], roles.get(f"{prefix}weight", roles[name]), n)
        factor = how.multiplier(roles[name], n) if parameter is weight else 1.0
        if isinstance(part, Linear) and parameter is weight:
            part.multiplier = factor
        elif factor != 1.0:
            raise ValueError(f"{name}: {type(part).__name__} has no multiplier, which this parametrization needs")
