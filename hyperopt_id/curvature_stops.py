r"""The second derivative of a loss in whose first derivative gradients are stopped or changed.

`detach()`, `torch.no_grad()`, hooks on gradients and the padding row of an embedding make a gradient \(g\) that is not
the derivative of the loss: a straight-through estimator is the best known. \(g\) still is a function of the weights,
whose Jacobian J training follows, and automatic differentiation of the recorded \(g\) misses those parts of J that go
through what was stopped. Here values that are stopped are so in the first backward pass alone, and hooks act in it
alone, so that the second one gives u J.

A backward pass that is recorded (`create_graph=True`) has gradients enabled, one that is not has them disabled, which
tells the first from the second.
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


class StoppedOnce(torch.autograd.Function):
    """The identity, of derivative 0 in the first backward pass and 1 in the second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return torch.zeros_like(gradient) if torch.is_grad_enabled() else gradient


class StopsFollowed(TorchFunctionMode):
    """While it is entered, what stops gradients does so in the first backward pass alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _STOPPING:
            return _stopped(args[0])
        if func is Tensor.numpy:
            return args[0].detach().numpy(*args[1:], **kwargs)
        if func is Tensor.register_hook:
            return args[0].register_hook(_in_first_pass(*args[1:], **kwargs))
        if func is F.embedding:
            return _embedding(*args, **kwargs)
        if torch.is_grad_enabled() or not trees.leaves(args):  # the latter: `torch.no_grad()` itself
            return func(*args, **kwargs)
        return _without_gradient(func, args, kwargs)


def follow_stops(loss: Loss) -> Loss:
    """The same loss, whose gradient has the Jacobian that its values have."""

    def followed(params: Params) -> tuple[Tensor, Any]:
        with StopsFollowed():
            return loss(params)

    return followed


def _stopped(x: Tensor) -> Tensor:
    return StoppedOnce.apply(x) if x.is_floating_point() or x.is_complex() else x.detach()  # type: ignore[return-value]


def _in_first_pass(hook: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
    return lambda gradient: hook(gradient) if torch.is_grad_enabled() else None


def _embedding(index: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    if padding_idx is None:
        return F.embedding(index, weight, None, *args, **kwargs)
    rows = torch.arange(len(weight), device=weight.device).unsqueeze(1)
    padded = torch.where(rows == padding_idx % len(weight), _stopped(weight), weight)
    return F.embedding(index, padded, None, *args, **kwargs)


def _without_gradient(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A function under `torch.no_grad()`. What is written to later (`out=`, or in place) is not what was saved here."""
    name, out = getattr(func, "__name__", ""), kwargs.get("out")
    kept = 1 if name.endswith("_") and not name.endswith("__") else 0
    with torch.enable_grad():
        given = (*args[:kept], *trees.map(_copied, args[kept:]))
        if not isinstance(out, Tensor):
            return func(*given, **kwargs)
        return out.copy_(func(*given, **{key: value for key, value in kwargs.items() if key != "out"}))


def _copied(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return _stopped(value.clone())
