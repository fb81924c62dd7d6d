r"""A loss with operations rewritten so that its gradient, recorded, has the right derivative.

`detach()`, `torch.no_grad()`, hooks on gradients and the padding row of an embedding make a gradient \(g\) that is not
the derivative of the loss: a straight-through estimator is the best known. \(g\) still is a function of the weights,
whose Jacobian J training follows, and automatic differentiation of the recorded \(g\) misses those parts of J that go
through what was stopped. Here values that are stopped are so in the first backward pass alone, and hooks act in it
alone, so that the second one gives u J. The fused weight norm, whose own derivative is wrong when it is differentiated
again, is written out, and what a Function computes from its inputs and keeps for its `backward` has a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hyperopt_id import trees
from hyperopt_id.derivatives import Loss
from hyperopt_id.trees import Params

_STOPPING = (Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]


class Passes:
    """Whether the first backward pass is over."""

    first_is_over = False


class StoppedOnce(torch.autograd.Function):
    """The identity, of derivative 0 in the first backward pass and 1 later."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, passes: Passes) -> Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.passes = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient if ctx.passes.first_is_over else torch.zeros_like(gradient), None


class Rewriting(TorchFunctionMode):
    """While it is entered, operations are rewritten."""

    def __init__(self, passes: Passes) -> None:
        super().__init__()
        self.passes = passes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _STOPPING:
            return self.stopped(args[0])
        if func is Tensor.numpy:
            return args[0].detach().numpy(*args[1:], **kwargs)
        if func is Tensor.register_hook:
            return args[0].register_hook(self.in_first_pass(*args[1:], **kwargs))
        if func is F.embedding:
            return self.embedding(*args, **kwargs)
        if func is torch.autograd.grad and not kwargs.get("create_graph"):
            return trees.map(self.stopped, func(*args, **{**kwargs, "create_graph": True}))
        if func is torch._weight_norm:
            return _weight_norm(*args, **kwargs)
        if torch.is_grad_enabled() or not trees.leaves(args):  # the latter: `torch.no_grad()` itself
            return func(*args, **kwargs)
        return self.without_gradient(func, args, kwargs)

    def stopped(self, x: Tensor) -> Tensor:
        if x.is_floating_point() or x.is_complex():
            return StoppedOnce.apply(x, self.passes)  # type: ignore[return-value]
        return x.detach()

    def in_first_pass(self, hook: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
        return lambda gradient: None if self.passes.first_is_over else hook(gradient)

    def embedding(
        self, index: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if padding_idx is not None:
            rows = torch.arange(len(weight), device=weight.device).unsqueeze(1)
            weight = torch.where(rows == padding_idx % len(weight), self.stopped(weight), weight)
        return F.embedding(index, weight, None, *args, **kwargs)

    def without_gradient(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A function under `torch.no_grad()`. What is written to later (`out=`, or in place) is not what was saved."""
        name, out = getattr(func, "__name__", ""), kwargs.get("out")
        kept = 1 if name.endswith("_") and not name.endswith("__") else 0
        with torch.enable_grad():
            given = (*args[:kept], *trees.map(self.copied, args[kept:]))
            if not isinstance(out, Tensor):
                return func(*given, **kwargs)
            return out.copy_(func(*given, **{key: value for key, value in kwargs.items() if key != "out"}))

    def copied(self, value: Tensor) -> Tensor:
        return self.stopped(value.clone()) if value.is_floating_point() else value


def rewrite(loss: Loss, passes: Passes) -> Loss:
    """The same loss, whose gradient has the Jacobian that its values have once the first pass is over."""

    def rewritten(params: Params) -> tuple[Tensor, Any]:
        with Rewriting(passes):
            return loss(params)

    return rewritten


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    others = [axis for axis in range(v.ndim) if axis != dim]  # all of them for -1
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=dim != -1))
