r"""`MuLO`, the learned optimizer for a module's parameters, in place: `hyperopt_id.mulo` as a `torch.optim.Optimizer`.

Parameters of one device, θ and age take their step together, by one call of a kernel (`hyperopt_id.kernels.mulo`), or
one after the other by the rule itself, which is the kernels' reference, as exact and slower.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hyperopt_id.kernels import compiler
from hyperopt_id.kernels import mulo as kernels
from hyperopt_id.optim import mulo_steps
from hyperopt_id.optim.mulo_steps import Leaf
from hyperopt_id.optim.mulo_weights import Weights, load_weights
from hyperopt_id.optim.tags import width_tag

logger = logging.getLogger("hyperopt_id")
Implementation = Literal["auto", "torch", "cpu", "cuda"]
Parametrization = Literal["auto", "standard", "mup"]


class MuLO(torch.optim.Optimizer):
    r"""μLO (arXiv 2406.00153), a drop-in optimizer whose update is a small network of 39 features of every weight.

    .. math:: w \leftarrow (1 - \eta\xi)\,w - c\,\eta\,\lambda\,\text{direction}\,e^{0.001\,\text{magnitude}}

    `weights`: θ of the network, in any form that `load_weights` takes; None: untrained ones, with a warning.
    `impl`: "cpu" and "cuda" are kernels, "torch" is the rule in PyTorch, "auto" takes a kernel where there is one.
    `lr`: \(\eta\), 1 for trained weights. `weight_decay`: \(\xi\), decoupled. `max_grad_norm`: gradients are scaled to
    at most this norm over all parameters, before the step. `parametrization`: \(\lambda\) is 1 under "standard"; under
    "mup" it is 1 / fan_in for hidden matrices, 1 for others, and the model has to be prepared by `mup.set_base_shapes`
    or `tag_parameters`; "auto" is "mup" for parameters that are. `step_multiplier`: c, 0.01 for μLO, 0.001 for
    small_fc_mlp.

    Settings of groups are lr, weight_decay, step_multiplier, and θ as `theta`, so that `state_dict` holds it. A
    parameter counts its steps from its first gradient on. Accumulators are float32 for parameters of half precision; a
    bfloat16 parameter is rounded once a step. Entries of gradients beyond 1e15, infinite ones, and NaN count as 0. A
    ValueError for sparse gradients, complex parameters, and settings that are not possible.
    """

    def __init__(
        self,
        params: Iterable[Any],
        weights: Weights = None,
        impl: Implementation = "auto",
        lr: float = 1.0,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        parametrization: Parametrization = "auto",
        step_multiplier: float = 0.01,
    ) -> None:
        for name, given, kinds in (
            ("impl", impl, Implementation),
            ("parametrization", parametrization, Parametrization),
        ):
            if given not in get_args(kinds):
                raise ValueError(f"MuLO: {name}={given!r}; allowed: {', '.join(get_args(kinds))}")
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("max_grad_norm", max_grad_norm)):
            if value is not None and not value >= 0.0:
                raise ValueError(f"MuLO: {name}={value}; needed: a number of 0 or more")
        if impl in ("cpu", "cuda"):
            try:
                kernels.prepare(impl)
            except compiler.NoCompiler as error:
                raise ValueError(f"MuLO: impl={impl!r} cannot be had here: {error}; or take impl='auto'") from error
        self.impl, self.max_grad_norm, self.parametrization = impl, max_grad_norm, parametrization
        self.factors: dict[Tensor, float] = {}  # λ
        defaults = {"lr": lr, "weight_decay": weight_decay, "step_multiplier": step_multiplier}
        super().__init__(params, defaults | {"theta": load_weights(weights)})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As for every optimizer. `theta` may have any form that `load_weights` takes."""
        if param_group.get("theta") is not None:
            param_group["theta"] = load_weights(param_group["theta"])
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            fault = None if param.is_floating_point() else f"{param.dtype}; needed: real floating-point numbers"
            factor = 1.0 if self.parametrization == "standard" else multiplier(param)
            if factor is None and self.parametrization == "mup":
                fault = (
                    "that does not say which of its dimensions grow with the width; call mup.set_base_shapes or "
                    "hyperopt_id.optim.tag_parameters on the model first, or take parametrization='standard'"
                )
            if fault is not None:
                self.param_groups.pop()
                raise ValueError(f"MuLO: a parameter {list(param.shape)} {fault}")
            self.factors[param] = factor or 1.0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step for every parameter that has a gradient; the loss that `closure` computes, if it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        batches: dict[Any, tuple[dict[str, Any], list[Leaf]]] = {}
        for group, leaf in self._leaves():
            age, device = leaf.state["step"], leaf.param.device
            key = (device, id(age), id(group["theta"]), group["step_multiplier"], self._uses_kernel(leaf))
            batches.setdefault(key, (group, []))[1].append(leaf)
        if self.max_grad_norm is not None:
            every = [leaf.param for _, leaves in batches.values() for leaf in leaves]
            torch.nn.utils.clip_grad_norm_(every, self.max_grad_norm)
        for (device, *_, by_kernel), (group, leaves) in batches.items():
            theta = mulo_steps.placed(group["theta"], group["theta"]._version, device)
            by = mulo_steps.by_kernel if by_kernel else mulo_steps.by_rule
            by(leaves, theta, group["step_multiplier"])
        for age in {id(age): age for _, leaves in batches.values() for age in [leaves[0].state["step"]]}.values():
            age += 1.0
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for every optimizer, but accumulators keep their own precision, and are copied."""
        super().load_state_dict(state_dict)
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        ages: dict[Any, Tensor] = {}
        for key, param in zip(keys, params, strict=True):
            if key in state_dict["state"]:
                saved = state_dict["state"][key]
                state = {name: value.to(param.device, copy=True) for name, value in saved.items()}
                state["step"] = ages.setdefault((param.device, saved["step"].item()), state["step"])
                self.state[param] = state

    def __getstate__(self) -> dict[str, Any]:
        own = ("impl", "max_grad_norm", "parametrization", "factors")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def _leaves(self) -> Iterator[tuple[dict[str, Any], Leaf]]:
        """What takes a step now, with its group; parameters that meet their first gradient get their state."""
        born: dict[torch.device, Tensor] = {}
        for group in self.param_groups:
            lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
            for param in group["params"]:
                gradient = param.grad
                if gradient is None or param.numel() == 0:
                    continue
                if gradient.layout != torch.strided:
                    raise ValueError(
                        f"MuLO needs dense gradients, that of a parameter {list(param.shape)} is sparse; "
                        "make the embedding with sparse=False"
                    )
                state = self.state[param]
                if not state:
                    state["step"] = born.setdefault(param.device, torch.zeros((), device=param.device))
                    state.update(mulo_steps.accumulators(param))
                factor = self.factors[param]
                yield group, Leaf(param, gradient, state, (lr * factor, weight_decay / factor))

    def _uses_kernel(self, leaf: Leaf) -> bool:
        """Whether a kernel takes the step of a parameter; a ValueError where one was asked for that cannot."""
        device = leaf.param.device.type
        if self.impl == "torch":
            return False
        able = leaf.param.dtype in kernels.TYPES and leaf.gradient.dtype in kernels.TYPES
        if self.impl == "auto":
            return able and device in kernels.DEVICES and kernel_is_there(device)
        if not able or device != self.impl:
            raise ValueError(
                f"MuLO: impl={self.impl!r} needs parameters of float32, bfloat16 or float16 on {self.impl}, "
                f"given {leaf.param.dtype} on {device}; take impl='auto'"
            )
        return True


def MuLO_naive(params: Iterable[Any], hf_key: Weights = "btherien/mulo", **options: Any) -> MuLO:  # noqa: N802
    """`MuLO` without kernels, by the name and argument that PyLO has for it."""
    return MuLO(params, weights=hf_key, impl="torch", **options)


def MuLO_CUDA(params: Iterable[Any], hf_key: Weights = "btherien/mulo", **options: Any) -> MuLO:  # noqa: N802
    """`MuLO` by the CUDA kernel, by the name and argument that PyLO has for it."""
    return MuLO(params, weights=hf_key, impl="cuda", **options)


def multiplier(param: Tensor) -> float | None:
    """1 / fan_in for a matrix both of whose dimensions grow with the width, 1 for other parameters; None where the
    parameter does not say. Its base width, other than 1 elsewhere, does not matter here."""
    if (tag := width_tag(param)) is None:
        return None
    growing = [size for size, width in zip(tag.shape, tag.widths) if width is not None]
    return 1.0 / growing[-1] if len(growing) == 2 else 1.0


@cache
def kernel_is_there(device: str) -> bool:
    """Whether the kernel for a device can be had here; said once, if not."""
    try:
        kernels.prepare(device)
    except compiler.NoCompiler as error:
        logger.warning("MuLO: no kernel for %s, so steps are taken by PyTorch, which is slower: %s", device, error)
        return False
    return True
