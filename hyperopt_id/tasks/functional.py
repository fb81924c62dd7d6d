"""A module as a pure function of its tensors.

    call(params, buffers, seed, inputs) = (outputs, new buffers)

The module built once serves as a template: its tensors are swapped for the given ones during a call, as
`torch.func.functional_call` does. That function costs a few percent of a small model's training step, so
outside `torch.compile` the same swap is done through slots looked up once.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from hyperopt_id.tasks.models.layers import Dropout

Tensors = dict[str, Tensor]
ModuleFactory = Callable[[], nn.Module]
Slot = tuple[dict[str, Any], str, str]


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
        object.__setattr__(self, "training", Template(module.train()))
        object.__setattr__(self, "evaluation", Template(module.eval()))
        object.__setattr__(self, "roles", dict(getattr(module, "roles", {})))

    def init(self, seed: int) -> tuple[Tensors, Tensors]:
        """(params, buffers), drawn by the module's own initialization on the CPU; the global generators of
        the caller are left as they were."""
        module = self._build(seed)
        params = {name: value.detach().clone() for name, value in module.named_parameters()}
        return params, {name: value.detach().clone() for name, value in persistent_buffers(module)}

    def _build(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it would also reseed the CUDA generators, which are not forked here.
            torch.default_generator.manual_seed(seed)
            return copy.deepcopy(self.factory()).to(self.device, self.dtype)

    def train(self, params: Tensors, buffers: Tensors, seed: Tensor, *arguments: Any) -> tuple[Any, Tensors]:
        """Training mode: outputs and updated buffers. Buffers are copied first, since BatchNorm writes in
        place."""
        if not buffers:
            return self.training(params, seed, *arguments), buffers
        buffers = {name: value.clone() for name, value in buffers.items()}
        outputs = self.training({**params, **buffers}, seed, *arguments)
        return outputs, {name: value.detach() for name, value in buffers.items()}

    def evaluate(self, params: Tensors, buffers: Tensors, *arguments: Any) -> Any:
        """Evaluation mode: outputs only."""
        return self.evaluation({**params, **buffers}, None, *arguments)


class Template:
    """A module whose parameters and buffers are given at each call. Every thread swaps those of a copy of its own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module)
        self.dropouts = [name for name, part in module.named_modules() if isinstance(part, Dropout)]
        self.copies: dict[int, tuple[nn.Module, tuple[Slot, ...]]] = {}

    def __call__(self, tensors: Tensors, seed: Tensor | None, *arguments: Any) -> Any:
        if seed is not None and self.dropouts:
            tensors = {**tensors, **{f"{name}.seed" if name else "seed": seed for name in self.dropouts}}
        if torch.compiler.is_compiling():
            return torch.func.functional_call(self.module, tensors, arguments)
        thread = threading.get_ident()
        if thread not in self.copies:
            module = copy.deepcopy(self.module)
            self.copies[thread] = module, tuple(_slots(module))
        module, slots = self.copies[thread]
        with _swapped(slots, tensors):
            return module(*arguments)


@contextmanager
def _swapped(slots: tuple[Slot, ...], tensors: Tensors) -> Iterator[None]:
    saved = [store[key] for store, key, _ in slots]
    try:
        for store, key, name in slots:
            if name in tensors:
                store[key] = tensors[name]
        yield
    finally:
        for (store, key, _), value in zip(slots, saved, strict=True):
            store[key] = value


def _slots(module: nn.Module) -> Iterator[Slot]:
    """(dictionary, key, dotted name) of every tensor a module reads; tied ones share the first one's name."""
    names: dict[int, str] = {}
    for prefix, part in module.named_modules():
        for store in (part._parameters, part._buffers):
            for key, value in store.items():
                if value is not None:
                    yield store, key, names.setdefault(id(value), f"{prefix}.{key}" if prefix else key)


def persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers that `state_dict` holds; the others are constants of the template."""
    stored = module.state_dict().keys()
    return [(name, value) for name, value in module.named_buffers() if name in stored]


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
