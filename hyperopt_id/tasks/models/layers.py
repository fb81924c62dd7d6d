"""Layers and activations shared by the models."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperopt_id.tasks.dropout import Dropout
from hyperopt_id.tasks.models import twice

__all__ = [
    "ACTIVATIONS",
    "ColumnLinear",
    "Dropout",
    "Linear",
    "activation_function",
    "image_shape",
    "pieces",
    "roles_of",
]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": twice.relu, "tanh": torch.tanh, "gelu": F.gelu}


class Linear(nn.Linear):
    """Y = a X Wᵀ + b for examples in rows, with the constant `multiplier` a (1 unless a parametrization sets it)."""

    multiplier = 1.0

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear gives it
        return super().forward(input if self.multiplier == 1.0 else self.multiplier * input)


class ColumnLinear(Linear):
    """Y = a W X + b for examples in columns: [inputs, B] -> [outputs, B].

    Where R runs share their inputs (whole-split batches), vmap makes one matrix product [R·outputs, D] [D, B] of this
    and of its derivative, where `nn.Linear` becomes R small ones; for a single run the two cost the same.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear gives it
        weight, bias, factor = self.weight, self.bias, self.multiplier
        if bias is None:
            return weight @ (input if factor == 1.0 else factor * input)
        return torch.addmm(bias.unsqueeze(1), weight, input, alpha=factor)


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of that name; an unknown name is a ValueError."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}: use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def roles_of(module: nn.Module, matrices: dict[str, str]) -> dict[str, str]:
    """Roles of all parameters: those of `matrices` (name -> role) as given; of the others, parameters of a
    normalization layer are "norm" and the rest "bias"."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    normalizing = {name for name, part in module.named_modules() if isinstance(part, norms)}
    return {
        name: matrices.get(name) or ("norm" if name.rpartition(".")[0] in normalizing else "bias")
        for name, _ in module.named_parameters()
    }


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of inputs of this shape; a flat row must hold a square image of one
    channel, else a ValueError says so."""
    if len(shape) == 3:
        channels, height, width = shape
        return channels, height, width
    side = math.isqrt(shape[0]) if len(shape) == 1 else 0
    if side < 1 or side**2 != shape[0]:
        raise ValueError(
            f"inputs of shape {list(shape)} are no images: "
            "[channels, height, width] or a square number of pixels is needed"
        )
    return 1, side, side


def pieces(shape: Sequence[int]) -> tuple[int, int]:
    """(length, features) that cut inputs of this shape into a sequence: images into their lines, any other
    row into its columns."""
    try:
        channels, height, width = image_shape(shape)
    except ValueError:
        return math.prod(shape), 1
    return channels * height, width
