"""What makes the optimizer of a run: a function of the user's, called with the weights of every member."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hyperopt_id.arguments import first_line
from hyperopt_id.trees import Params

Make = Callable[[Params, int], Any]  # (leaf tensors by name, steps taken before) -> their optimizer


def as_weights(params: Params) -> Params:
    """Copies of parameters, such as a live module has them."""
    return {name: nn.Parameter(value.detach().clone()) for name, value in params.items()}


def made(make: Make, weights: Params) -> str:
    """The name of the optimizer that is made of these weights. Raises ValueError if none is made, or if it would train
    other tensors, which leaves the model as it is."""
    example = "make(params, taken), as lambda params, taken: torch.optim.SGD(params.values(), lr=0.1)"
    try:
        optimizer = make(weights, 0)
    except Exception as error:  # whatever the function of the user, or the optimizer, stumbles over
        if isinstance(error, ValueError) and "\n" not in str(error):
            raise  # what an optimizer says of a setting
        raise ValueError(
            f"{example}, has failed on parameters by name and 0 steps ({type(error).__name__}: {first_line(error)})"
        ) from error
    if not callable(getattr(optimizer, "step", None)):
        raise ValueError(f"{example}, has given {type(optimizer).__name__}, which is no optimizer: it has no step()")
    given, name = {id(weight) for weight in weights.values()}, type(optimizer).__name__
    groups = getattr(optimizer, "param_groups", None) or []
    foreign = [tensor for group in groups for tensor in group["params"] if id(tensor) not in given]
    if foreign:
        raise ValueError(
            f"{name} would train {len(foreign)} tensor(s) that are none of the parameters that make was given: let "
            "make(params, taken) make a new one at every call, of params.values() themselves and not of copies"
        )
    return name
