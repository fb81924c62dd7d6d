"""Functions and layers whose recorded second derivative is wrong, not there, or that of another function."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Saved(torch.autograd.Function):
    """Swish as memory-efficient implementations have it: the derivative is kept, as a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        s = torch.sigmoid(x)
        ctx.save_for_backward(s + x * s * (1 - s))
        return x * s

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g * ctx.saved_tensors[0]


class Once(Saved):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g * ctx.saved_tensors[0]


class ByNumPy(Saved):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(g.detach().numpy() * ctx.saved_tensors[0].numpy())


class WithoutGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        with torch.no_grad():
            return g * ctx.saved_tensors[0].cos()


class Normed(torch.autograd.Function):
    """Layer norm that keeps its outputs and scales."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        scale = (x.var(-1, keepdim=True, unbiased=False) + 1e-5).rsqrt()
        y = (x - x.mean(-1, keepdim=True)) * scale
        ctx.save_for_backward(y, scale)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        y, scale = ctx.saved_tensors
        return scale * (g - g.mean(-1, keepdim=True) - y * (g * y).mean(-1, keepdim=True))


class Scaled(torch.autograd.Function):
    """The identity, of a gradient times `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:  # type: ignore[override]
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.factor * g, None


class Sign(torch.autograd.Function):
    """A straight-through estimator that only says so to the first backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g * (ctx.saved_tensors[0].abs() < 1.0)


def rounded(x: Tensor) -> Tensor:
    """A straight-through estimator."""
    return x + ((4.0 * x).round() / 4.0 - x).detach()


def reversed_gradient(x: Tensor) -> Tensor:
    return (2.0 * x).detach() - x


def hooked(x: Tensor) -> Tensor:
    """A gradient of which half is kept."""
    x = x * 1.0
    if x.requires_grad:
        x.register_hook(lambda g: torch.cat([g[..., :3], 0.0 * g[..., 3:]], -1))
    return x


def with_inner_gradient(x: Tensor) -> Tensor:
    """A gradient that is taken in between, as a constant."""
    (slope,) = torch.autograd.grad(x.sin().sum(), x, retain_graph=True)
    return x * slope


def by_running_size(x: Tensor) -> Tensor:
    """Divided by a statistic that is taken without gradients, and written in place."""
    size = torch.ones((), dtype=x.dtype)
    with torch.no_grad():
        size.mul_(0.9).add_(0.1 * x.abs().mean())
    return x / size.clone()


class Layer(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)
