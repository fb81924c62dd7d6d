"""Where a module keeps what its forward pass reads.

A tensor is read from a slot, `store[key]`: the dictionaries of parameters and buffers of every submodule, and, for
what a module keeps beside these (plain attributes, also in lists, dictionaries and objects), the container that holds
it. A run's own tensors are put there for a call.
"""

import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hyperopt_id.tasks.dropout import Stateless

Tensors = dict[str, Tensor]
INTERNAL = {*vars(nn.Module()), "_forward_pre_hooks_with_kwargs", "_backward_pre_hooks", "_is_full_backward_hook"}
DEPTH = 4  # containers within containers that are looked through
NUMBERS = (bool, int, float, complex, np.number, np.bool_)


class Slot(NamedTuple):
    """Where a module keeps something: `store[key]`, known as `name` outside."""

    store: Any
    key: Any
    name: str

    @property
    def value(self) -> Any:
        return self.store[self.key]


def registered(module: nn.Module) -> Iterator[Slot]:
    """Parameters and buffers; tied ones share the first one's name."""
    names: dict[int, str] = {}
    for prefix, part in module.named_modules():
        for store in (part._parameters, part._buffers):
            for key, value in store.items():
                if value is not None:
                    yield Slot(store, key, names.setdefault(id(value), joined(prefix, key)))


def attributes(module: nn.Module, computed: bool = False) -> dict[str, Slot]:
    """Numbers, arrays and tensors that a module keeps beside its parameters and buffers, by name. Left out are further
    references to what is registered and, unless `computed`, tensors with a graph, which are made of parameters."""
    seen = {id(slot.value) for slot in registered(module)} | {id(part) for part in module.modules()}
    found: dict[str, Slot] = {}

    def visit(store: Any, key: Any, name: str, depth: int) -> None:
        value = store[key]
        if isinstance(value, NUMBERS):
            found[name] = Slot(store, key, name)
        if id(value) in seen or depth > DEPTH:
            return
        if isinstance(value, Tensor | np.ndarray):
            seen.add(id(value))
            if computed or not has_graph(value):
                found[name] = Slot(store, key, name)
            return
        seen.add(id(value))
        for inner, label in _entries(value):
            visit(inner, label, joined(name, str(label)), depth + 1)

    for prefix, part in module.named_modules():
        for key in [key for key in vars(part) if key not in INTERNAL]:
            if not (isinstance(part, Stateless) and key == "calls"):
                visit(vars(part), key, joined(prefix, key), 0)
    return found


def drop_graphs(module: nn.Module) -> None:
    """Detach what a module keeps of its last forward pass."""
    for slot in attributes(module, computed=True).values():
        if has_graph(slot.value) and not isinstance(slot.store, tuple):
            slot.store[slot.key] = slot.value.detach()


def has_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and value.grad_fn is not None


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    """(store, key) of everything inside a container or a plain object."""
    if isinstance(value, dict):
        yield from ((value, key) for key in list(value))
    elif isinstance(value, list | tuple):
        yield from ((value, position) for position in range(len(value)))
    elif isinstance(value, nn.Module):  # one that is not registered
        for store in (value._parameters, value._buffers, value._modules):
            yield from ((store, key) for key, entry in store.items() if entry is not None)
    elif _is_data(value):
        yield from ((vars(value), key) for key in list(vars(value)))


def _is_data(value: Any) -> bool:
    """Whether it is an object of the user's that holds something, no function, class or part of a library."""
    if isinstance(value, type) or callable(value) or not hasattr(value, "__dict__"):
        return False
    home = type(value).__module__.partition(".")[0]
    return isinstance(value, SimpleNamespace) or home not in {*sys.stdlib_module_names, "torch", "numpy"}


def joined(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def equal(first: Any, second: Any) -> bool:
    """Whether two attributes are of one kind, shape and value; NaN equals itself."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        first, second = (value.detach().to("cpu").resolve_conj().resolve_neg() for value in (first, second))
        return torch.equal(first, second) or bool(((first == second) | ((first != first) & (second != second))).all())
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        numeric = first.dtype.kind in "biufc" and second.dtype.kind in "biufc"
        return not numeric or np.array_equal(first, second, equal_nan=first.dtype.kind in "fc")
    if isinstance(first, NUMBERS) and isinstance(second, NUMBERS):
        return bool(first == second or (first != first and second != second))
    return type(first) is type(second)


def difference(first: nn.Module, second: nn.Module) -> list[Slot]:
    """Attributes of `first` that `second` has otherwise, or not at all."""
    ours, theirs = attributes(first), attributes(second)
    return [slot for name, slot in ours.items() if name not in theirs or not equal(slot.value, theirs[name].value)]


def structure(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Shape, type and kind of every parameter and buffer."""
    return {
        slot.name: (list(slot.value.shape), slot.value.dtype, slot.value.requires_grad) for slot in registered(module)
    }


def varying(first: nn.Module, again: nn.Module, other: nn.Module) -> list[str]:
    """Names of the tensors that `state_dict` does not hold and that differ from seed to seed: each run has its own.
    `first` and `again` are of one seed, `other` of another one.

    Raises ValueError if they are not of one structure, or if something differs that cannot be a tensor of the run.
    """
    for twin, when in ((again, "twice at one seed"), (other, "at seeds 0 and 1")):
        ours, theirs = structure(first), structure(twin)
        for name in [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]:
            forms = " and ".join(str(form[0]) if form else "absent" for form in (ours.get(name), theirs.get(name)))
            raise ValueError(
                f"called {when}, the function makes modules of another structure ({name}: {forms}): every run needs "
                "the same parameters and buffers, so nothing about them may be drawn"
            )
    values = {slot.name: slot.value for slot in registered(again)}
    unequal = [slot for slot in registered(first) if not equal(slot.value, values[slot.name])]
    for slot in unequal + difference(first, again):
        raise ValueError(
            f"called twice at one seed, the function makes modules that differ in {slot.name}: let it draw from the "
            "global generators of torch, numpy or random, which are seeded for it, and count nothing"
        )
    stored, values = {*first.state_dict()}, {slot.name: slot.value for slot in registered(other)}
    loose = {slot.name: slot for slot in registered(first) if not isinstance(slot.value, nn.Parameter)}
    own = [name for name, slot in loose.items() if name not in stored and not equal(slot.value, values[name])]
    theirs = attributes(other)
    for slot in difference(first, other):
        twin = theirs.get(slot.name)
        alike = twin is not None and isinstance(twin.value, Tensor) and isinstance(slot.value, Tensor)
        if not alike or twin.value.shape != slot.value.shape or isinstance(slot.store, tuple):  # type: ignore[union-attr]
            raise ValueError(
                f"{slot.name} differs from seed to seed and is no tensor of one shape, so the runs of a task would all "
                "have that of seed 0: make it a tensor and a buffer, register_buffer(...)"
            )
        own.append(slot.name)
    return own


def divided(module: nn.Module, varying: Sequence[str]) -> tuple[Tensors, Tensors]:
    """Copies of (the parameters that are trained; the buffers that `state_dict` holds, frozen parameters and the
    tensors named `varying`). Other buffers are constants of the template."""
    parameters = dict(module.named_parameters())
    stored = {*module.state_dict(), *varying}
    buffers: Tensors = {name: value for name, value in parameters.items() if not value.requires_grad}
    buffers |= {name: value for name, value in module.named_buffers() if name in stored}
    if varying:
        loose = attributes(module)
        buffers |= {name: loose[name].value for name in varying if name in loose}
    params = {name: value.detach().clone() for name, value in parameters.items() if value.requires_grad}
    return params, {name: value.detach().clone() for name, value in buffers.items()}
