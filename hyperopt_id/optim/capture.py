r"""A live optimizer as a tree that a checkpoint holds; `restore` is the way back.

.. math:: \mathrm{restore}(\mathrm{make}(w, t), \mathrm{capture}(o_t)) \equiv o_t

Captured is all that hangs on the attributes of the optimizer: `state`, `param_groups` and whatever else it keeps, other
optimizers that it wraps, and what its hooks remember. In the tree, numbers, strings, None, tensors, lists, tuples, and
dictionaries by strings stand for themselves; everything else is a dictionary with the entry `KIND`:

    parameter     a parameter of the model, by its name
    shared        what several places refer to: with a value at the first, by its number alone at the others
    mapping       a dictionary with other keys, or of another type, as pairs
    tensor        one on another device than the parameters, or of another class, or one that requires a gradient
    object        an instance of a class, by its attributes
    function      variables of its closure, and the object that it is a method of
    same          what an optimizer that was newly made has in this place: classes, modules, other objects

Two tensors that are views of one storage come back as two: `plain_check` finds out whether that matters.
"""

from __future__ import annotations

import functools
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyperopt_id.trees import Params

KIND = "<kind>"
SAME = {KIND: "same"}
PLAIN = (type(None), bool, int, float, str)
MAPPINGS: dict[str, type] = {"dict": dict, "ordered": OrderedDict, "default": defaultdict}
FACTORIES: dict[str, Any] = {"none": None, "dict": dict, "list": list, "int": int, "float": float}
SEQUENCES: dict[str, type] = {"set": set, "deque": deque, "size": torch.Size}
FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)


class CaptureError(ValueError):
    """Something that a checkpoint does not hold; the message says where it is."""


def capture(optimizer: Any, params: Params) -> Any:
    """The tree of an optimizer of these parameters. Its tensors become part of the tree without being copied.

    Raises CaptureError for what can be neither stored nor taken from an optimizer that is newly made.
    """
    capturing = _Capture(optimizer, params)
    capturing.count(optimizer)
    return capturing.encode(optimizer, "")


def packages(optimizer: Any) -> set[str]:
    """Packages of the optimizer's classes, whose instances are taken apart wherever they are."""
    return {kind.__module__.partition(".")[0] for kind in type(optimizer).__mro__} - {"builtins"}


def class_name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def cells(function: Any) -> tuple[Any, ...]:
    """The variables of a function's closure that have a value."""
    inner = function.__func__ if isinstance(function, types.MethodType) else function
    found = []
    for cell in getattr(inner, "__closure__", None) or ():
        try:
            cell.cell_contents  # noqa: B018 - it has none before the variable is assigned
        except ValueError:
            continue
        found.append(cell)
    return tuple(found)


def owner(function: Any) -> Any:
    """The object that a function is a method of, or that it is: a callable instance."""
    while isinstance(function, functools.partial):
        function = function.func
    return function.__self__ if isinstance(function, types.MethodType) else None


def are_functions(value: Mapping[Any, Any]) -> bool:
    """Whether a dictionary holds hooks."""
    return bool(value) and all(callable(entry) for entry in value.values())


class _Capture:
    """What is referred to more than once is found in a first pass, `count`, and the tree is made in a second."""

    def __init__(self, optimizer: Any, params: Params) -> None:
        self.packages = packages(optimizer)
        self.names = {id(value): name for name, value in params.items()}
        self.device = next(iter(params.values())).device
        self.places: Counter[int] = Counter()
        self.numbers: dict[int, int] = {}
        self.owners: set[int] = set()

    def is_taken_apart(self, value: Any) -> bool:
        """Instances of the optimizer's own package, of what has a state by torch's convention, and owners of hooks."""
        if not hasattr(value, "__dict__") or isinstance(value, (type, types.ModuleType, *FUNCTIONS)):
            return False
        own = type(value).__module__.partition(".")[0] in self.packages
        return own or id(value) in self.owners or hasattr(value, "load_state_dict")

    def children(self, value: Any) -> Iterator[Any]:
        if isinstance(value, Mapping):
            if are_functions(value):
                self.owners.update(id(entry) for entry in value.values() if not isinstance(entry, FUNCTIONS))
            for key, entry in value.items():
                yield from (key, entry)
        elif type(value) in (list, tuple, *SEQUENCES.values()):
            yield from value
        elif isinstance(value, FUNCTIONS):
            yield from (cell.cell_contents for cell in cells(value))
            if (own := owner(value)) is not None and not isinstance(own, type | types.ModuleType):
                self.owners.add(id(own))
                yield own
        elif not isinstance(value, Tensor) and self.is_taken_apart(value):
            yield from vars(value).values()

    def count(self, value: Any) -> None:
        if type(value) in PLAIN or id(value) in self.names:
            return
        self.places[id(value)] += 1
        if self.places[id(value)] == 1:
            for child in self.children(value):
                self.count(child)

    def encode(self, value: Any, where: str) -> Any:
        if type(value) in PLAIN:
            return value
        if id(value) in self.names:
            return {KIND: "parameter", "name": self.names[id(value)]}
        if self.places[id(value)] < 2 or type(value) is tuple:
            return self.encode_once(value, where)
        if id(value) in self.numbers:
            return {KIND: "shared", "number": self.numbers[id(value)]}
        number = self.numbers[id(value)] = len(self.numbers)
        return {KIND: "shared", "number": number, "value": self.encode_once(value, where)}

    def encode_once(self, value: Any, where: str) -> Any:
        if isinstance(value, Tensor):
            return self.tensor(value, where)
        if isinstance(value, Mapping):
            return self.mapping(value, where)
        if type(value) in (list, tuple):
            return type(value)(self.encode(item, f"{where}[{i}]") for i, item in enumerate(value))
        for name, kind in SEQUENCES.items():
            if type(value) is kind:
                items = [self.encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
                items = sorted(items, key=repr) if kind is set else items  # whose order is that of the process
                return {KIND: name, "items": items, "limit": getattr(value, "maxlen", None)}
        if isinstance(value, torch.dtype):
            return {KIND: "dtype", "name": str(value).removeprefix("torch.")}
        if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biuf":
            shaped = isinstance(value, np.ndarray)
            return {KIND: "numpy", "dtype": value.dtype.str, "value": value.tolist(), "array": shaped}
        if isinstance(value, torch.Generator):
            return {KIND: "generator", "device": str(value.device), "value": value.get_state()}
        if isinstance(value, FUNCTIONS):
            return self.function(value, where)
        if self.is_taken_apart(value):
            attributes = {name: self.encode(entry, f"{where}.{name}") for name, entry in vars(value).items()}
            return {KIND: "object", "class": class_name(value), "attributes": attributes}
        return SAME

    def function(self, value: Any, where: str) -> Any:
        found = [self.encode(cell.cell_contents, f"{where}: a variable of a function") for cell in cells(value)]
        own = owner(value)
        own = SAME if id(own) not in self.owners else self.encode(own, f"{where}: the owner of a method")
        return {KIND: "function", "cells": found, "owner": own} if found or own != SAME else SAME

    def mapping(self, value: Mapping[Any, Any], where: str) -> Any:
        name = next((name for name, kind in MAPPINGS.items() if type(value) is kind), None)
        factory = getattr(value, "default_factory", None)
        factories = [known for known, kind in FACTORIES.items() if factory is kind]
        if name is None or not factories:
            return SAME
        if are_functions(value):
            return {KIND: "hooks", "items": [self.encode(entry, where) for entry in value.values()]}
        pairs = [(self.encode(k, where), self.encode(v, f"{where}[{self.key(k)}]")) for k, v in value.items()]
        if type(value) is dict and all(type(key) is str and key != KIND for key in value):
            return dict(pairs)
        return {KIND: "mapping", "type": name, "factory": factories[0], "items": [list(pair) for pair in pairs]}

    def key(self, key: Any) -> str:
        return self.names.get(id(key), "a tensor" if isinstance(key, Tensor) else repr(key))

    def tensor(self, value: Tensor, where: str) -> Any:
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_quantized:
            raise CaptureError(f"{where.lstrip('.')} is a {type(value).__name__} that is no plain tensor")
        if value.grad_fn is not None:
            raise CaptureError(f"{where.lstrip('.')} is part of an autograd graph")
        if value.device == self.device and type(value) is Tensor and not value.requires_grad:
            return value
        kept = {"value": value.detach(), "device": str(value.device), "requires_grad": value.requires_grad}
        return {KIND: "tensor", "parameter": type(value) is nn.Parameter, **kept}
