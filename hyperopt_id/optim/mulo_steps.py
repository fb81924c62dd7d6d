"""How parameters take a step of the learned optimizer in place: all together by a kernel, or each by the rule.

What a parameter carries from step to step are the accumulators of `hyperopt_id.mulo`, float32 at least, in the order of
memory of the parameter, and `step`, the number of steps that it has taken, a count that parameters of one device which
take all their steps together share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_id import mulo
from hyperopt_id.kernels import layout
from hyperopt_id.kernels import mulo as kernels
from hyperopt_id.mulo import Accumulators


class Leaf(NamedTuple):
    """What one parameter brings to a step."""

    param: Tensor
    gradient: Tensor
    state: dict[str, Any]
    rate: tuple[float, float]  # learning rate; weight decay


def place(param: Tensor) -> tuple[torch.device, torch.dtype]:
    """Where accumulators of a parameter are, and of which precision."""
    return param.device, torch.float64 if param.dtype == torch.float64 else torch.float32


def settled(param: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state in its `place`; the count of steps is float32."""
    device, dtype = place(param)
    dtypes = dict.fromkeys(state, dtype) | {"step": torch.float32}
    return {name: value.to(device, dtypes[name], copy=True) for name, value in state.items()}


def accumulators(param: Tensor) -> dict[str, Tensor]:
    """Zeros, in the parameter's order of memory."""
    param, (_, dtype) = param.reshape(tuple(param.shape) or 1), place(param)
    found = {}
    for name, value in mulo.start(param.to("meta"))._asdict().items():
        leading = value.ndim - param.ndim
        found[name] = layout.zeros(param, value.shape[:leading], value.shape[leading:], dtype)
    return found


def require_state_of(param: Tensor, state: Mapping[str, Any]) -> None:
    """A ValueError that says what a parameter needs, if a state that is to be loaded is not of one like it."""
    for name, needed in {**mulo.start(param.to("meta"))._asdict(), "step": torch.zeros((), device="meta")}.items():
        found = list(state[name].shape) if isinstance(state.get(name), Tensor) else "no tensor"
        if found != list(needed.shape):
            raise ValueError(
                f"MuLO: in the state of a parameter {list(param.shape)}, {name} has shape {found}, needed: "
                f"{list(needed.shape)}; load a state of the same model"
            )


def share_no_count(resting: Iterable[dict[str, Any]], moving: Iterable[Leaf]) -> None:
    """Parameters that do not take this step get counts of their own, where they have shared those of ones that do."""
    counting = {id(leaf.state["step"]) for leaf in moving}
    apart: dict[int, Tensor] = {}
    for state in resting:
        if (count := id(state["step"])) in counting:
            state["step"] = apart.setdefault(count, state["step"].clone())


def clip(params: Sequence[Tensor], norm: float) -> None:
    """Scale gradients to at most a norm over all parameters. Entries that count as 0 in a step do so in the norm."""
    for gradient in (param.grad for param in params):
        assert gradient is not None
        largest = min(mulo.LARGEST, torch.finfo(gradient.dtype).max)
        gradient.masked_fill_(~(gradient.abs() <= largest), 0.0)
    torch.nn.utils.clip_grad_norm_(params, norm)


def by_rule(leaves: Sequence[Leaf], theta: Tensor, step_multiplier: float) -> None:
    rule = mulo.mulo(step_multiplier=step_multiplier)
    for param, gradient, state, rate in leaves:
        dtype = state["square"].dtype
        before = {name: {"": state[name]} for name in Accumulators._fields} | {"step": state["step"].to(dtype)}
        hyper = {"theta": {"": theta.to(dtype)}}
        hyper |= {name: {"": theta.new_tensor(x, dtype=dtype)} for name, x in zip(("lr", "weight_decay"), rate)}
        moved, after = rule.update({"": param.to(dtype)}, {"": gradient.to(dtype)}, before, hyper)
        param.copy_(moved[""])
        for name in Accumulators._fields:
            state[name].copy_(after[name][""])


def by_kernel(leaves: Sequence[Leaf], theta: Tensor, step_multiplier: float) -> None:
    dense = [_dense(leaf) for leaf in leaves]
    params, gradients = [leaf.param for leaf in dense], [leaf.gradient for leaf in dense]
    states = ([leaf.state[name] for leaf in dense] for name in Accumulators._fields)
    rates = torch.tensor([leaf.rate for leaf in leaves], dtype=torch.float32, device="cpu")
    kernels.mulo_step(params, gradients, *states, theta.float(), rates, leaves[0].state["step"], step_multiplier)
    for leaf, same in zip(leaves, dense):
        if same.param is not leaf.param:
            leaf.param.copy_(same.param)


@lru_cache(maxsize=64)
def placed(theta: Tensor, version: int, device: torch.device) -> Tensor:
    """θ on a device; `version` counts its changes in place."""
    del version
    return theta.to(device)


def _dense(leaf: Leaf) -> Leaf:
    """The leaf with parameter, gradient and accumulators in one order of memory without holes: itself, if they are."""
    param, gradient, state, rate = leaf
    if layout.geometry(param.shape, param.stride()) is None:
        param = param.contiguous()
    if not layout.alike(gradient, param):
        gradient = torch.empty_like(param, dtype=gradient.dtype).copy_(gradient)
    if param.ndim and not layout.alike(state["square"], param):  # the module has been laid out anew
        for name, value in accumulators(param).items():
            state[name] = value.copy_(state[name])
    return Leaf(param, gradient, state, rate)
