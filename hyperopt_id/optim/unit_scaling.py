r"""u-μP for optimizers of `torch.optim`: parameter groups with a learning rate and weight decay for every shape.

.. math:: \eta_k = c_k\,\eta, \qquad \xi_k = \xi / \eta_k \quad \text{(independent weight decay)}

with \(c_k\) of `mup.unit_adam` or `mup.unit_sgd` (arXiv 2407.17465), so that the decay of a step of AdamW is
\(\xi\) as long as the learning rate is what it started with. Names and arguments are those of the package unit_scaling.
Parameters say their type by `mup_type` and `mup_scaling_depth`, as that package's do, or by `tag_parameters`. Those
that are added later keep the settings they come with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from hyperopt_id import mup
from hyperopt_id.optim.tags import TYPES, groups, require, type_tag

ScaleFunction = Callable[[Any], float]  # of a parameter
CURE = (
    f"make it by unit_scaling.Parameter (its mup_type is one of {', '.join(TYPES)}), call tag_parameters on the model, "
    "or allow_non_unit_scaling_params=True"
)


def lr_scale_for_depth(param: Any) -> float:
    """L^-1/2 of a parameter in a residual stack of depth L; 1 where none is stated."""
    return mup.depth_factor(require(param, type_tag, 0, CURE))


def lr_scale_func_adam(param: Any) -> float:
    """The factor of a parameter's learning rate for Adam and AdamW: `mup.unit_adam`."""
    return mup.unit_adam(require(param, type_tag, 0, CURE))


def lr_scale_func_sgd(readout_constraint: str | None) -> ScaleFunction:
    """The same for SGD. `readout_constraint` is that of the model's `unit_scaling.LinearReadout`: with None, gradients
    are of size 1 and the function is that for Adam; with "to_output_scale" it is `mup.unit_sgd`."""
    schemes = {None: mup.unit_adam, "to_output_scale": mup.unit_sgd}
    if readout_constraint not in schemes:
        raise ValueError(f"readout_constraint={readout_constraint!r}; allowed: None, 'to_output_scale'")
    return lambda param: schemes[readout_constraint](require(param, type_tag, 0, CURE))


def scaled_parameters(
    params: Iterable[Any],
    lr_scale_func: ScaleFunction,
    lr: float | Tensor | None = None,
    weight_decay: float = 0.0,
    independent_weight_decay: bool = True,
    allow_non_unit_scaling_params: bool = False,
) -> list[dict[str, Any]]:
    """Groups for any optimizer, one for each parameter, in the order given.

    `lr` and `weight_decay` hold for what has none in a group of its own. The learning rate is multiplied by
    `lr_scale_func(parameter)`, and with `independent_weight_decay` the decay is divided by the product. A parameter
    without a tag is a ValueError, unless `allow_non_unit_scaling_params`, which leaves its learning rate alone.
    """
    found = []
    for group in groups(params):
        shared = {"lr": lr, "weight_decay": weight_decay} | group
        if shared["lr"] is None:
            raise ValueError("scaled_parameters has no learning rate: give lr=..., or every group its own")
        for member in shared["params"]:
            parameter = member[1] if isinstance(member, tuple) else member
            if not allow_non_unit_scaling_params:
                require(member, type_tag, len(found), CURE)
            rate = shared["lr"] * (1.0 if type_tag(parameter) is None else lr_scale_func(parameter))
            decay = shared["weight_decay"]
            if independent_weight_decay and decay:
                decay = _per_rate(decay, float(rate))
            found.append(shared | {"params": [member], "lr": rate, "weight_decay": decay})
    return found


def _per_rate(decay: float, rate: float) -> float:
    if rate <= 0.0:
        raise ValueError(f"weight_decay={decay} independent of lr={rate:g}: give a learning rate above 0 to start with")
    return decay / rate


class _OnScaledParameters(torch.optim.Optimizer):
    """What the optimizers below share; stands before that of `torch.optim` among the bases."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        *args: Any,
        weight_decay: float = 0.0,
        independent_weight_decay: bool = True,
        allow_non_unit_scaling_params: bool = False,
        lr_scale_func: ScaleFunction = lr_scale_func_adam,
        **kwargs: Any,
    ) -> None:
        given = (lr_scale_func, lr, weight_decay, independent_weight_decay, allow_non_unit_scaling_params)
        super().__init__(scaled_parameters(params, *given), lr, *args, **kwargs)  # type: ignore[arg-type] - the next base


class Adam(_OnScaledParameters, torch.optim.Adam):
    """`torch.optim.Adam` on `scaled_parameters`."""


class AdamW(_OnScaledParameters, torch.optim.AdamW):
    """`torch.optim.AdamW` on `scaled_parameters`."""


class SGD(_OnScaledParameters, torch.optim.SGD):
    """`torch.optim.SGD` on `scaled_parameters`."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        *args: Any,
        readout_constraint: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(params, lr, *args, lr_scale_func=lr_scale_func_sgd(readout_constraint), **kwargs)
