"""A module as a pure function of its tensors.

    call(params, buffers, seed, inputs) = (outputs, new buffers)

The module built once serves as a template: its tensors are swapped for the given ones during a call, as
`torch.func.functional_call` does. That function costs a few percent of a small model's training step, so
outside `torch.compile` the same swap is done through slots looked up once.

Parameters that do not require a gradient are constants of a run: they are among the buffers.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from hyperopt_id import trees
from hyperopt_id.tasks import module_checks
from hyperopt_id.tasks.models.layers import Dropout

Tensors = dict[str, Tensor]
ModuleFactory = Callable[[], nn.Module]


@dataclass(frozen=True)
class FunctionalModule:
    """The pure functions of a module factory: same factory and seed, same weights on every device and
    dtype."""

    factory: ModuleFactory
    device: torch.device
    dtype: torch.dtype
    training: "Template" = field(init=False)
    evaluation: "Template" = field(init=False)
    roles: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        module = stateless_dropout(self._build(0))
        module_checks.refuse_cumulative_average(module)
        params, _ = divided(module)
        if not params:
            raise ValueError("the model has no parameter to train: one or more must have requires_grad = True")
        object.__setattr__(self, "training", Template(module.train()))
        object.__setattr__(self, "evaluation", Template(module.eval()))
        roles = getattr(module, "roles", {})
        object.__setattr__(self, "roles", {name: role for name, role in roles.items() if name in params})

    def init(self, seed: int) -> tuple[Tensors, Tensors]:
        """(params, buffers), drawn by the module's own initialization on the CPU; the global generators of
        the caller are left as they were."""
        return divided(self._build(seed))

    def _build(self, seed: int) -> nn.Module:
        cure = "a function that makes the model is needed, such as lambda: nn.Linear(4, 1)"
        if isinstance(self.factory, nn.Module) or not callable(self.factory):
            raise ValueError(f"{cure}; given {type(self.factory).__name__} itself")
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it would also reseed the CUDA generators, which are not forked here.
            torch.default_generator.manual_seed(seed)
            module = self.factory()
        if not isinstance(module, nn.Module):
            raise ValueError(f"{cure}; it returned {type(module).__name__}, which is no nn.Module")
        return copy.deepcopy(module).to(self.device, self.dtype)

    def train(self, params: Tensors, buffers: Tensors, seed: Tensor, *arguments: Any) -> tuple[Any, Tensors]:
        """Training mode: outputs and updated buffers. Buffers are copied first, since BatchNorm writes in
        place; those that the module assigns anew keep their type, as those that it writes to do."""
        if not buffers:
            return self.training(params, seed, *arguments)[0], buffers
        copies = {name: value.clone() for name, value in buffers.items()}
        outputs, after = self.training({**params, **copies}, seed, *arguments)
        return outputs, {k: after.get(k, copies[k]).detach().to(value.dtype) for k, value in buffers.items()}

    def evaluate(self, params: Tensors, buffers: Tensors, *arguments: Any) -> Any:
        """Evaluation mode: outputs only; what the module writes to its buffers is dropped."""
        copies = {name: value.clone() for name, value in buffers.items()}
        return self.evaluation({**params, **copies}, None, *arguments)[0]

    @torch.no_grad()
    def check(self, *arguments: Any) -> Any:
        """Raise a ValueError where a training step could not be repeated or would lose part of its state; the
        outputs in evaluation mode. The global generators are left as they were."""
        params, buffers = divided(self.training.module)
        seed = torch.zeros((), dtype=torch.int64, device=self.device)
        with module_checks.generators_untouched(self.device):
            module_checks.check_writes(copy.deepcopy(self.training.module), {*buffers}, arguments)
            twice = [self.train(params, buffers, seed, *arguments)[0] for _ in range(2)]
            outputs = self.evaluate(params, buffers, *arguments)
        first, second = map(trees.leaves, twice)
        if len(first) != len(second) or not all(map(module_checks.same, first, second)):
            raise ValueError(
                "the model gives other outputs when a training step is repeated, so no step could be: keep what it "
                "remembers in buffers (register_buffer), and let nn.Dropout draw its random numbers"
            )
        return outputs


class Template:
    """A module whose parameters and buffers are given at each call. Every thread swaps those of a copy of its own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module)
        self.dropouts = [name for name, part in module.named_modules() if isinstance(part, Dropout)]
        self.copies: dict[int, tuple[nn.Module, list[Slot]]] = {}

    def __call__(self, tensors: Tensors, seed: Tensor | None, *arguments: Any) -> tuple[Any, Tensors]:
        """Outputs, and what the module assigned in the place of tensors that were given."""
        if seed is not None and self.dropouts:
            tensors = tensors | {f"{name}.seed" if name else "seed": seed for name in self.dropouts}
        if torch.compiler.is_compiling():
            after = dict(tensors)
            return torch.func.functional_call(self.module, after, arguments), after  # it writes what is assigned there
        thread = threading.get_ident()
        if thread not in self.copies:
            module = copy.deepcopy(self.module)
            self.copies[thread] = module, list(_slots(module))
        module, slots = self.copies[thread]
        before = [slot.store[slot.key] for slot in slots]
        try:
            for slot in slots:
                if slot.name in tensors:
                    slot.store[slot.key] = tensors[slot.name]
            outputs = module(*arguments)
            return outputs, {s.name: x for s in slots if (x := s.store[s.key]) is not tensors.get(s.name)}
        finally:
            for slot, value in zip(slots, before, strict=True):
                slot.store[slot.key] = value


class Slot(NamedTuple):
    """Where a module keeps a tensor: `store[key]`, known as `name` outside."""

    store: dict[str, Any]
    key: str
    name: str


def _slots(module: nn.Module) -> Iterator[Slot]:
    """Every tensor that a module reads; tied ones share the first one's name."""
    names: dict[int, str] = {}
    for prefix, part in module.named_modules():
        for store in (part._parameters, part._buffers):
            for key, value in store.items():
                if value is not None:
                    yield Slot(store, key, names.setdefault(id(value), f"{prefix}.{key}" if prefix else key))


def divided(module: nn.Module) -> tuple[Tensors, Tensors]:
    """Copies of (the parameters that are trained, the buffers that `state_dict` holds and frozen parameters); other
    buffers are constants of the template."""
    parameters = dict(module.named_parameters())
    stored = module.state_dict().keys()
    buffers: Tensors = {name: value for name, value in parameters.items() if not value.requires_grad}
    buffers |= {name: value for name, value in module.named_buffers() if name in stored}
    params = {name: value.detach().clone() for name, value in parameters.items() if value.requires_grad}
    return params, {name: value.detach().clone() for name, value in buffers.items()}


def stateless_dropout(module: nn.Module) -> nn.Module:
    """Replace `nn.Dropout`, which draws from a global generator, by the layer that draws from the batch's
    seed, and number the dropout layers so that each has its own random stream."""
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Dropout):
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], Dropout(part.p))
    for number, part in enumerate(part for part in module.modules() if isinstance(part, Dropout)):
        part.stream = number
    for name, part in module.named_modules():
        hidden = isinstance(part, nn.MultiheadAttention | nn.RNNBase) and part.dropout > 0
        if hidden or (isinstance(part, _DropoutNd) and part.p > 0):
            raise ValueError(
                f"{name or 'the model'} ({type(part).__name__}) draws dropout from a global generator, "
                "so no step could be repeated: use nn.Dropout layers, which are replaced by a stateless one"
            )
    return module
