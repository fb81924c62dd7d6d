"""A module whose tensors are given at each call.

The tensors stay in the module until the graph made with them is gone, since a backward pass may read them again
(activation checkpointing, hooks). A call meanwhile, with other tensors or the same, takes another instance of the
module, so there are as many as there are graphs at a time: one for ordinary steps, and one more while Hessian-vector
products of an earlier point are being taken. Every thread has its own.

They are put where the module looks them up (`Slot`). With `objects`, they become what the module's own tensor objects
hold, for modules that keep further references to these, which a slot does not reach.
"""

import copy
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from hyperopt_id import derivatives
from hyperopt_id.arguments import first_line
from hyperopt_id.tasks.building import hooks_of
from hyperopt_id.tasks.dropout import Stateless, begin_pass, dropouts_of
from hyperopt_id.tasks.module_state import Tensors, attributes, drop_graphs, has_graph, joined, registered

MOST_KEPT = 8  # instances of a thread that wait for their graph to go; more are made and thrown away
_swap: Callable[[Tensor, Tensor], None] = torch._C._swap_tensor_impl  # type: ignore[attr-defined] - no stub


class _Token:
    """Lives as long as the node of a graph that has it."""


class Instance:
    """One module and the tensors given to it. A parameter's own hooks act on the gradient of what is given."""

    def __init__(self, module: nn.Module, varying: Sequence[str], objects: bool) -> None:
        self.module, self.objects = module, objects
        loose = attributes(module) if varying else {}
        self.slots = [*registered(module), *(loose[name] for name in varying if name in loose)]
        self.own = [slot.value for slot in self.slots]
        self.hooks = {slot.name: hooks for slot in self.slots if (hooks := hooks_of(slot.value))}
        self.dropouts = dropouts_of(module)
        self.given: Tensors = {}
        self.leaves: list[Tensor] = []
        self.handles: list[RemovableHandle] = []
        self.swapped: list[tuple[Tensor, Tensor]] = []
        self.tokens: list[weakref.ref[_Token]] = []

    def is_free(self) -> bool:
        """Whether no graph is left that was made with the tensors given last, but for what the module itself keeps."""
        if self._is_unused():
            return True
        drop_graphs(self.module)
        return self._is_unused()

    def _is_unused(self) -> bool:
        if not self.objects:
            return all(leaf._use_count() == 1 for leaf in self.leaves)  # type: ignore[attr-defined] - no stub
        if any(own._use_count() > 1 for own, _ in self.swapped):  # type: ignore[attr-defined]
            return False
        given, tokens = self.given, self.tokens
        self.release()
        if any(token() for token in tokens):
            self.place(given)
            return False
        return True

    def place(self, given: Tensors) -> None:
        self._forget()
        self.given = given
        if self.objects:
            self._place_in_objects(given)
        else:
            for slot in self.slots:
                if slot.name in given:
                    slot.store[slot.key] = given[slot.name]
            self.leaves = [tensor for tensor in given.values() if tensor.requires_grad and tensor.is_leaf]
            for name in self.hooks:
                self._hook(name, given.get(name))

    def _hook(self, name: str, tensor: Tensor | None) -> None:
        if tensor is not None and tensor.requires_grad and derivatives.applies_hooks():
            self.handles += [tensor.register_hook(derivatives.first_time(hook)) for hook in self.hooks.get(name, ())]

    def _place_in_objects(self, given: Tensors) -> None:
        done = set()
        for slot, own in zip(self.slots, self.own, strict=True):
            slot.store[slot.key] = own
            if slot.name not in given or id(own) in done:
                continue
            done.add(id(own))
            alias = given[slot.name].view_as(given[slot.name])
            self._hook(slot.name, alias)  # before it is that object's, which has hooks already
            _swap(own, alias)
            self.swapped.append((own, alias))
            if own.grad_fn is not None:
                own.grad_fn.metadata["token"] = token = _Token()
                self.tokens.append(weakref.ref(token))

    def assigned(self) -> Tensors:
        """What the module has put in the place of tensors that were given."""
        kept = self.own if self.objects else [self.given.get(slot.name) for slot in self.slots]
        found = {s.name: s.value for s, tensor in zip(self.slots, kept, strict=True) if s.value is not tensor}
        for slot, own in zip(self.slots, self.own, strict=True):
            if has_graph(slot.value) and (slot.name in found or not isinstance(own, nn.Parameter)):
                with torch._C.DisableTorchFunction():  # which may keep the graph (`curvature_rewritten`)
                    slot.store[slot.key] = slot.value.detach()  # or it would not go before the module does
                if slot.name not in found:  # it was written in place
                    self.given = {**self.given, slot.name: slot.value}
        return found

    def release(self) -> None:
        """The module's own tensors in their places."""
        self._forget()
        for slot, own in zip(self.slots, self.own, strict=True):
            slot.store[slot.key] = own

    def _forget(self) -> None:
        for handle in self.handles:
            handle.remove()
        for own, alias in self.swapped:
            _swap(own, alias)
        self.given, self.leaves, self.handles, self.swapped, self.tokens = {}, [], [], [], []


class Template:
    """The function of a module: `(tensors, seed, *arguments) -> (outputs, what was assigned in their place)`."""

    def __init__(self, build: Callable[[], nn.Module], first: nn.Module, varying: Sequence[str]) -> None:
        self.build, self.varying, self.objects = build, varying, False
        self.first = [first]
        self.instances: dict[int, list[Instance]] = {}
        try:
            # A compiler has its own way of replacing tensors, in a module that nothing else touches.
            self.module, self.obstacle = copy.deepcopy(first), None
        except Exception as error:  # whatever an attribute raises
            self.module, self.obstacle = first, first_line(error)

    def __call__(self, tensors: Tensors, seed: Tensor | None, *arguments: Any) -> tuple[Any, Tensors]:
        if torch.compiler.is_compiling():
            return self.traced(tensors, seed, *arguments)
        instance = self._instance()
        transformed = torch._C._are_functorch_transforms_active()
        if transformed and instance.hooks:
            raise ValueError(f"{next(iter(instance.hooks))} has hooks, which cannot act on several runs at once")
        try:
            instance.place(tensors)
            begin_pass(instance.dropouts, seed)
            outputs = instance.module(*arguments)
            after = instance.assigned()
        except BaseException:
            instance.release()
            raise
        if transformed or not torch.is_grad_enabled() or not (instance.leaves or instance.tokens):
            instance.release()  # no backward pass will come to read them
        return outputs, after

    def own_instances(self) -> list[Instance]:
        """Those of the calling thread."""
        return self.instances.setdefault(threading.get_ident(), [])

    def read_by_objects(self) -> None:
        """Give tensors to the module's own objects from now on."""
        self.objects = True
        self.instances.clear()

    def _instance(self) -> Instance:
        kept = self.own_instances()
        with temporarily_clear_interpreter_stack(), _disable_current_modes():  # outside of vmap and of tracing
            for instance in kept:
                if instance.is_free():
                    return instance
            instance = Instance(self.first.pop() if self.first else self.build(), self.varying, self.objects)
        if len(kept) < MOST_KEPT:
            kept.append(instance)
        return instance

    def traced(self, tensors: Tensors, seed: Tensor | None, *arguments: Any) -> tuple[Any, Tensors]:
        dropouts = {name: part for name, part in self.module.named_modules() if isinstance(part, Stateless)}
        for part in dropouts.values():
            if part.repeated or not torch.compiler.is_compiling():
                part.calls = 0
        seeds = {} if seed is None else {joined(name, "seed"): seed for name in dropouts}
        after = {**tensors, **seeds}
        return torch.func.functional_call(self.module, after, arguments), after  # it writes what is assigned there
