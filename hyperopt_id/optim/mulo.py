r"""`MuLO`, the learned optimizer for a module's parameters, in place: `hyperopt_id.mulo` as a `torch.optim.Optimizer`.

Parameters of one device, θ and age take their step together, by one call of a kernel (`hyperopt_id.kernels.mulo`), or
one after the other by the rule itself, which is the kernels' reference, as exact and slower.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hyperopt_id.kernels import compiler
from hyperopt_id.kernels import mulo as kernels
from hyperopt_id.optim import mulo_steps
from hyperopt_id.optim.mulo_steps import Leaf
from hyperopt_id.optim.mulo_weights import Weights, load_weights
from hyperopt_id.optim.tags import GROWTH_CURE, fan_in_factor, none_grows

logger = logging.getLogger("hyperopt_id")
Implementation = Literal["auto", "torch", "cpu", "cuda"]
Parametrization = Literal["auto", "standard", "mup"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # of parameters


class MuLO(torch.optim.Optimizer):
    r"""μLO (arXiv 2406.00153), a drop-in optimizer whose update is a small network of 39 features of every weight.

    .. math:: w \leftarrow (1 - \eta\xi)\,w - c\,\eta\,\lambda\,\text{direction}\,e^{0.001\,\text{magnitude}}

    `weights`: θ of the network, in any form that `load_weights` takes; None: untrained ones, with a warning.
    `impl`: "cpu" and "cuda" are kernels, "torch" is the rule in PyTorch, "auto" takes a kernel where there is one.
    `lr`: \(\eta\), 1 for trained weights. `weight_decay`: \(\xi\), decoupled. `max_grad_norm`: gradients are scaled to
    at most this norm over all parameters, before the step. `parametrization`: \(\lambda\) is 1 under "standard"; under
    "mup" it is 1 / fan_in for hidden matrices, 1 for others, and `mup.set_base_shapes` or `tag_parameters` has to have
    said which dimensions grow; "auto" is "mup" where they have. `step_multiplier`: c, 0.01 for μLO, 0.001 for
    small_fc_mlp.

    Settings of groups are lr, weight_decay, step_multiplier, and θ as `theta`, so that `state_dict` holds it. A
    parameter counts the steps that it takes, those with a gradient. Accumulators are float32 for parameters of half
    precision; a bfloat16 parameter is rounded once a step. Entries of gradients beyond 1e15, infinite ones, and NaN
    count as 0. A ValueError for sparse gradients, complex or sharded parameters, and settings that are not possible.
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
        if max_grad_norm is not None:
            require_not_negative("max_grad_norm", max_grad_norm)
        if impl in ("cpu", "cuda"):
            try:
                kernels.prepare(impl)
            except compiler.NoCompiler as error:
                raise ValueError(f"MuLO: impl={impl!r} cannot be had here: {error}; or take impl='auto'") from error
        self.impl, self.max_grad_norm, self.parametrization = impl, max_grad_norm, parametrization
        self.factors: dict[Tensor, float] = {}  # λ
        defaults = {"lr": lr, "weight_decay": weight_decay, "step_multiplier": step_multiplier}
        super().__init__(params, defaults | {"theta": load_weights(weights)})
        self._require_growth()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As for every optimizer. `theta` may have any form that `load_weights` takes."""
        if "theta" in param_group:
            param_group["theta"] = load_weights(param_group["theta"])
        super().add_param_group(param_group)
        try:
            self._admit(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def _admit(self, group: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay", "step_multiplier"):
            require_not_negative(name, group[name])
        for param in group["params"]:
            fault = None
            if param.dtype not in DTYPES:
                fault = f"is {param.dtype}; needed: one of {', '.join(map(str, DTYPES))}"
            elif hasattr(param, "device_mesh"):  # a DTensor
                fault = "is a part of a sharded one; features are means over whole tensors, so take data parallelism"
            elif self.parametrization == "mup" and fan_in_factor(param) is None:
                fault = (
                    "does not say which of its dimensions grow with the width; call mup.set_base_shapes or "
                    "hyperopt_id.optim.tag_parameters on the model first, or take parametrization='standard'"
                )
            if fault is not None:
                raise ValueError(f"MuLO: a parameter {list(param.shape)} {fault}")
            self._factor(param)

    def _require_growth(self) -> None:
        """Factors are relative to width 1, so a model of the base width needs them, too; but if it was compared with a
        base model of its own width, nothing is known to grow. Raises ValueError then under "mup"; "auto" warns."""
        if self.parametrization != "standard" and none_grows(p for group in self.param_groups for p in group["params"]):
            fault = "MuLO: no dimension of any parameter grows with the width (the base model has that of this one)"
            if self.parametrization == "mup":
                raise ValueError(f"{fault}; {GROWTH_CURE}, or take parametrization='standard'")
            logger.warning("%s: nothing is scaled; to have it scaled, %s", fault, GROWTH_CURE)

    def _factor(self, param: Tensor) -> float:
        if param not in self.factors:
            self.factors[param] = 1.0 if self.parametrization == "standard" else fan_in_factor(param) or 1.0
        return self.factors[param]

    @torch._disable_dynamo  # a compiled loop calls it; torch.compiler.disable would load the compiler with this module
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override] - overloads
        """One step for every parameter that has a gradient. The loss is returned: what `closure` computes, or is."""
        loss = closure
        if callable(closure):
            with torch.enable_grad():
                loss = closure()
        batches: dict[Any, tuple[dict[str, Any], list[Leaf]]] = {}
        ages: dict[int, Tensor] = {}
        for group, leaf in self._leaves():
            age, device = leaf.state["step"], leaf.param.device
            ages[id(age)] = age
            count = age.item() if device.type == "cpu" else id(age)  # reading it elsewhere would wait for the device
            key = (device, count, id(group["theta"]), group["step_multiplier"], self._uses_kernel(leaf))
            batches.setdefault(key, (group, []))[1].append(leaf)
        if self.max_grad_norm is not None:
            mulo_steps.clip([leaf.param for _, leaves in batches.values() for leaf in leaves], self.max_grad_norm)
        for (device, *_, by_kernel), (group, leaves) in batches.items():
            theta = mulo_steps.placed(group["theta"], group["theta"]._version, device)
            by = mulo_steps.by_kernel if by_kernel else mulo_steps.by_rule
            by(leaves, theta, group["step_multiplier"])
        for age in ages.values():
            age += 1.0
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As for every optimizer. Counts of steps are copies, which no two parameters share."""
        found = super().state_dict()
        apart = {key: {**own, "step": own["step"].clone()} for key, own in found["state"].items()}
        return {**found, "state": apart}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for every optimizer, but accumulators keep their own precision, and are copied. A ValueError, before
        anything has changed, for what is no state of `MuLO`, or one of another model."""
        given: list[dict[str, Any]] = []  # what hooks have made of it
        last = self.register_load_state_dict_pre_hook(lambda _, found: given.append(self._fitting(found)))
        first = self.register_load_state_dict_post_hook(lambda _: self._restore(self._states(given[0])), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()
            first.remove()

    def _fitting(self, saved: dict[str, Any]) -> dict[str, Any]:
        for group in saved["param_groups"]:
            if "theta" not in group:
                raise ValueError(f"MuLO: the state of another optimizer: it has {', '.join(group)}; needed: theta, too")
        for param, state in self._states(saved):
            mulo_steps.require_state_of(param, state)
        return saved

    def _restore(self, states: Iterable[tuple[Tensor, dict[str, Any]]]) -> None:
        """Give parameters copies of states, of which those of one age share it."""
        ages: dict[Any, Tensor] = {}
        for param, own in list(states):
            state = mulo_steps.settled(param, own)
            state["step"] = ages.setdefault((param.device, own["step"].item()), state["step"])
            self.state[param] = state

    def _states(self, saved: dict[str, Any]) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """What a state that is saved has for each parameter."""
        keys = [key for group in saved["param_groups"] for key in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        return ((param, saved["state"][key]) for key, param in zip(keys, params) if key in saved["state"])

    def __getstate__(self) -> dict[str, Any]:
        own = ("impl", "max_grad_norm", "parametrization", "factors")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def _leaves(self) -> list[tuple[dict[str, Any], Leaf]]:
        """What takes a step now, with its group; parameters that meet their first gradient get their state."""
        found: list[tuple[dict[str, Any], Leaf]] = []
        resting: list[dict[str, Any]] = []
        born: dict[torch.device, Tensor] = {}
        for group in self.param_groups:
            lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
            for param in group["params"]:
                gradient = param.grad
                if gradient is None or param.numel() == 0:
                    resting += [self.state[param]] if param in self.state else []
                    continue
                if gradient.layout != torch.strided:
                    raise ValueError(
                        f"MuLO needs dense gradients, that of a parameter {list(param.shape)} is sparse; "
                        "make the embedding with sparse=False"
                    )
                state = self.state[param]
                if not state:
                    zero = torch.zeros((), dtype=torch.float32, device=param.device)
                    state.update(mulo_steps.accumulators(param), step=born.setdefault(param.device, zero))
                elif (state["square"].device, state["square"].dtype) != mulo_steps.place(param):
                    self._restore(self.state.items())  # the module has been moved
                    return self._leaves()
                factor = self._factor(param)
                found.append((group, Leaf(param, gradient, state, (lr * factor, weight_decay / factor))))
        mulo_steps.share_no_count(resting, [leaf for _, leaf in found])
        return found

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


def require_not_negative(name: str, value: float) -> None:
    if not value >= 0.0:
        raise ValueError(f"MuLO: {name}={value}; needed: a number of 0 or more")


@cache
def kernel_is_there(device: str) -> bool:
    """Whether the kernel for a device can be had here; said once, if not."""
    try:
        kernels.prepare(device)
    except compiler.NoCompiler as error:
        logger.warning("MuLO: no kernel for %s, so steps are taken by PyTorch, which is slower: %s", device, error)
        return False
    return True
