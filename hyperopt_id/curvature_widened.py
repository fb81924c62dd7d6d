"""The gradient of a loss in double precision, whatever precision its data and constants have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hyperopt_id import trees
from hyperopt_id.derivatives import Loss, gradient
from hyperopt_id.trees import Params

WIDE = {
    torch.complex64: torch.complex128,
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
}
_NUMBERS = {*WIDE, *WIDE.values()}
_WRITING = {"__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__imatmul__"}
_MAKING = (torch.tensor, torch.as_tensor, torch.full)
_CASTS = {"to", "type", "type_as", "float", "half", "bfloat16"}


def widened(value: Tensor) -> Tensor:
    """The tensor in double precision; whole numbers stay what they are."""
    return value.to(WIDE.get(value.dtype, value.dtype))


class Widened(TorchFunctionMode):
    """While it is entered, results are in double precision, and so are operands that meet one that is; casts to other
    real types do nothing, and what is written to keeps its type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        writes = name in _WRITING or (name.endswith("_") and not name.endswith("__")) or kwargs.get("out") is not None
        if writes:
            return func(*args, **kwargs)
        if len({leaf.dtype for leaf in trees.leaves((args, kwargs)) if leaf.dtype in _NUMBERS}) > 1:
            args, kwargs = trees.map(widened, (args, kwargs))
        result = func(*args, **kwargs)
        if func in _MAKING and result.dtype in WIDE:  # of a number that was taken from a tensor
            return func(*args, **{**kwargs, "dtype": WIDE[result.dtype]})
        if name in _CASTS and _is_real(result) and _is_real(args[0]):
            return widened(args[0].to(result.device))  # without the rounding
        return trees.map(widened, result)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def widened_gradient(loss: Loss, params: Params) -> Params:
    """The gradient at `params`, given in double precision; any error of a loss that cannot be computed in it."""
    variables = trees.variables(params)
    with Widened():
        return gradient(loss, variables).value
