"""Layers and activations shared by the models."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperopt_id.tasks.hashing import random_bits
from hyperopt_id.tasks.models import twice

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


class Dropout(nn.Module):
    """y = x · keep / (1 - p), keep ~ Bernoulli(1 - p) drawn from a hash of (seed, stream, element).

    The seed is a buffer that the functional call replaces by `batch.seed`, so no module between has to pass
    it on; `stream` numbers the dropout layers of a model. No generator is touched, so the layer works under
    vmap (each run its own mask), torch.compile and double backward, and a step can be evaluated again with
    the same mask.
    """

    seed: Tensor

    def __init__(self, probability: float, stream: int = 0) -> None:
        super().__init__()
        if not 0.0 <= probability < 1.0:
            raise ValueError(f"a dropout probability must be in [0, 1), got {probability}")
        self.probability = probability
        self.stream = stream
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return inputs
        bits = random_bits(self.seed, self.stream, inputs.numel()).reshape(inputs.shape)
        keep = bits >= round(self.probability * 2.0**32)
        return torch.where(keep, inputs / (1.0 - self.probability), 0.0)

    def extra_repr(self) -> str:
        return f"probability={self.probability}, stream={self.stream}"


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
