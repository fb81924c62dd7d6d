"""A module as a pure function of its tensors.

    call(params, buffers, seed, inputs) = (outputs, new buffers)

Modules are made by the factory alone, so that whatever a module refers to is its own, and are given a run's tensors
for each call (`template`). Parameters that do not require a gradient are constants of a run: they are among the
buffers, as are the tensors that `state_dict` does not hold but that differ from seed to seed.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hyperopt_id.tasks import live_check, module_checks, module_state
from hyperopt_id.tasks.building import Builder, ModuleFactory
from hyperopt_id.tasks.module_state import Tensors
from hyperopt_id.tasks.template import Template

LIVE_SEED = 1
__all__ = ["FunctionalModule", "ModuleFactory", "Tensors"]


@dataclass(frozen=True)
class FunctionalModule:
    """The pure functions of a module factory: same factory and seed, same weights on every device and
    dtype."""

    factory: ModuleFactory
    device: torch.device
    dtype: torch.dtype
    build: Builder = field(init=False)
    varying: list[str] = field(init=False)  # names of tensors beside `state_dict` that each run has its own of
    promoted: dict[str, torch.dtype] = field(init=False)  # buffers that a step gives another type
    limits: dict[str, str] = field(init=False)  # "vmap" and "compile", where they do not serve this module: why
    spare: list[nn.Module] = field(init=False)
    training: Template = field(init=False)
    evaluation: Template = field(init=False)
    roles: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        build, module, again = Builder.create(self.factory, self.device, self.dtype)
        other = build(LIVE_SEED)
        module_checks.refuse_accumulation_hooks(module)
        varying = module_state.varying(module, again, other)
        roles = getattr(module, "roles", {})
        params, _ = module_state.divided(module, varying)
        if not params:
            raise ValueError("the model has no parameter to train: one or more must have requires_grad = True")
        for name, value in {
            "build": build,
            "varying": varying,
            "promoted": {},
            "limits": module_checks.limits(module, varying),
            "training": Template(lambda: build(0).train(), module.train(), varying),
            "evaluation": Template(lambda: build(0).eval(), again.eval(), varying),
            "spare": [other.train()],
            "roles": {name: role for name, role in roles.items() if name in params},
        }.items():
            object.__setattr__(self, name, value)

    def init(self, seed: int) -> tuple[Tensors, Tensors]:
        """(params, buffers), drawn by the module's own initialization on the CPU; the global generators of
        the caller are left as they were."""
        params, buffers = module_state.divided(self.build(seed), self.varying)
        return params, self.with_types(buffers)

    def with_types(self, buffers: Tensors) -> Tensors:
        """Buffers of the types that a step gives them."""
        return {name: value.to(self.promoted.get(name, value.dtype)) for name, value in buffers.items()}

    def train(self, params: Tensors, buffers: Tensors, seed: Tensor, *arguments: Any) -> tuple[Any, Tensors]:
        """Training mode: outputs and updated buffers. Buffers are copied first, since BatchNorm writes in
        place.

        Raises ValueError if the module assigns to a buffer what its type cannot hold.
        """
        if not buffers:
            return self.training(params, seed, *arguments)[0], buffers
        copies = {name: value.clone() for name, value in buffers.items()}
        outputs, after = self.training({**params, **copies}, seed, *arguments)
        return outputs, {name: _kept(name, value, after.get(name, value)) for name, value in copies.items()}

    def evaluate(self, params: Tensors, buffers: Tensors, *arguments: Any) -> Any:
        """Evaluation mode: outputs only; what the module writes to its buffers is dropped."""
        copies = {name: value.clone() for name, value in buffers.items()}
        return self.evaluation({**params, **copies}, None, *arguments)[0]

    def another(self) -> nn.Module:
        """A live module in training mode, of another seed than the templates."""
        return self.spare.pop() if self.spare else self.build(LIVE_SEED).train()

    def use_objects(self, reason: str) -> None:
        """Reach every reference to the module's tensors, at some microseconds for each of them."""
        for template in (self.training, self.evaluation):
            template.read_by_objects()
        self.limits.update(vmap=reason, compile=reason)

    def check(self, *arguments: Any, shown: tuple[Any, ...] | None = None) -> Any:
        """The outputs in evaluation mode for the arguments `shown` (default: all). The global generators are left as
        they were.

        Raises ValueError if a training step could not be repeated, would lose part of its state, or is not that of the
        module itself.
        """
        return live_check.check(self, arguments, arguments if shown is None else shown)


def _kept(name: str, before: Tensor, after: Any) -> Tensor:
    """A buffer after a step, in the type that it has in the run."""
    if not isinstance(after, Tensor):
        raise ValueError(f"forward removes the buffer {name}: leave a tensor there, of the shape it is registered with")
    if torch.promote_types(after.dtype, before.dtype) != before.dtype:
        raise ValueError(
            f"forward assigns {after.dtype} to the buffer {name}, which is {before.dtype} and could not hold it: "
            f"register it as a tensor of {after.dtype}"
        )
    return after.detach().to(before.dtype)
