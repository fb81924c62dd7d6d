"""An optimizer that was newly made, brought into the state that `capture` has taken of another, to the last bit.

What the new one has in the same place is changed where it can be, so that functions which refer to it see the change;
what the tree calls the same is left as it is. Nothing is imported, and no function is called that the tree names.
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyperopt_id.optim.capture import (
    FACTORIES,
    FUNCTIONS,
    KIND,
    MAPPINGS,
    PLAIN,
    SEQUENCES,
    CaptureError,
    cells,
    class_name,
    owner,
    packages,
)
from hyperopt_id.trees import Params


def restore(optimizer: Any, params: Params, tree: Any) -> None:
    """Bring an optimizer of these parameters into the state that was captured, in place; tensors are copied.

    Raises ValueError if the tree is not that of such an optimizer.
    """
    fault = f"the state that was stored is not one of {type(optimizer).__name__}"
    try:
        found = _Restoration(optimizer, params).decode(tree, optimizer, "")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{fault}: {type(error).__name__}: {error}") from error
    if found is not optimizer:
        raise ValueError(fault)


class _Restoration:
    """`decode(tree, fresh, where)` is what the tree stands for; `fresh` is what the new optimizer has there."""

    def __init__(self, optimizer: Any, params: Params) -> None:
        self.packages = packages(optimizer)
        self.params = dict(params)  # an optimizer may hold the dictionary itself
        self.device = next(iter(params.values())).device
        self.shared: dict[int, Any] = {}
        self.kinds: dict[str, Callable[[Any, Any, str, int | None], Any]] = {
            "same": self.same,
            "shared": self.share,
            "mapping": self.mapping,
            "hooks": self.hooks,
            "function": self.function,
            "object": self.instance,
            "tensor": self.tensor,
            "generator": self.generator,
            "parameter": lambda tree, *_: self.params[tree["name"]],
            "dtype": self.dtype,
            "numpy": self.numpy,
            **dict.fromkeys(SEQUENCES, self.sequence),
        }

    def decode(self, tree: Any, fresh: Any, where: str, number: int | None = None) -> Any:
        """`number` is that of a shared object, which is known by it before its entries are decoded."""
        if type(tree) in PLAIN:
            return tree
        if isinstance(tree, Tensor):
            return tree.to(self.device, copy=True)
        if isinstance(tree, list):
            target = self.known(number, fresh if type(fresh) is list else [])
            target[:] = self.entries(tree, list(target), where)
            return target
        if isinstance(tree, tuple):
            return tuple(self.entries(tree, fresh, where))
        if KIND in tree:
            return self.kinds[tree[KIND]](tree, fresh, where, number)
        return self.fill(fresh if type(fresh) is dict else {}, list(tree.items()), where, number)

    def known(self, number: int | None, value: Any) -> Any:
        if number is not None:
            self.shared[number] = value
        return value

    def entries(self, items: Any, olds: Any, where: str) -> list[Any]:
        olds = list(olds) if isinstance(olds, list | tuple) else []
        olds += [None] * (len(items) - len(olds))
        return [self.decode(item, old, f"{where}[{i}]") for i, (item, old) in enumerate(zip(items, olds))]

    def fill(self, target: Any, pairs: list[Any], where: str, number: int | None) -> Any:
        olds = dict(self.known(number, target))
        target.clear()
        for encoded, entry in pairs:
            key = self.decode(encoded, None, where)
            target[key] = self.decode(entry, olds.get(key), f"{where}[{key if isinstance(key, str) else '...'}]")
        return target

    def same(self, tree: Any, fresh: Any, where: str, number: int | None) -> Any:
        if fresh is None:
            raise CaptureError(f"{where.removeprefix('.')} is of a kind that a checkpoint does not hold")
        return fresh

    def share(self, tree: Any, fresh: Any, where: str, number: int | None) -> Any:
        if "value" in tree:
            self.shared[tree["number"]] = self.decode(tree["value"], fresh, where, tree["number"])
        return self.shared[tree["number"]]

    def mapping(self, tree: Any, fresh: Any, where: str, number: int | None) -> Any:
        kind = MAPPINGS[tree["type"]]
        target = fresh if type(fresh) is kind else kind()
        if isinstance(target, defaultdict):
            target.default_factory = FACTORIES[tree["factory"]]
        return self.fill(target, tree["items"], where, number)

    def hooks(self, tree: Any, fresh: Any, where: str, number: int | None) -> Any:
        """Their keys are numbers that are never given twice: functions are known by their order."""
        if not isinstance(fresh, Mapping) or len(fresh) != len(tree["items"]):
            raise CaptureError(f"{where.removeprefix('.')} has other functions than an optimizer that was newly made")
        for encoded, function in zip(tree["items"], fresh.values()):
            self.decode(encoded, function, where)
        return self.known(number, fresh)

    def function(self, tree: Any, fresh: Any, where: str, number: int | None) -> Any:
        variables = cells(fresh)
        if not isinstance(fresh, FUNCTIONS) or len(variables) != len(tree["cells"]):
            raise CaptureError(f"{where.removeprefix('.')} is a function that a newly made optimizer does not have")
        self.known(number, fresh)
        for cell, encoded in zip(variables, tree["cells"]):
            cell.cell_contents = self.decode(encoded, cell.cell_contents, where)
        if (own := owner(fresh)) is not None:
            self.decode(tree["owner"], own, where)
        return fresh

    def instance(self, tree: Any, fresh: Any, where: str, number: int | None) -> Any:
        alike = fresh is not None and class_name(fresh) == tree["class"]
        target = self.known(number, fresh if alike else self.made(tree["class"], where))
        olds, attributes = dict(vars(target)), vars(target)
        for name in olds.keys() - tree["attributes"].keys():
            del attributes[name]
        for name, entry in tree["attributes"].items():
            attributes[name] = self.decode(entry, olds.get(name), f"{where}.{name}")
        return target

    def made(self, described: str, where: str) -> Any:
        """An empty instance of a class of the optimizer's own package."""
        module, _, name = described.partition(":")
        kind = getattr(sys.modules.get(module), name, None)
        if not isinstance(kind, type) or module.partition(".")[0] not in self.packages:
            raise CaptureError(f"{where.removeprefix('.')} is a {name}, which is no class of the optimizer's package")
        return object.__new__(kind)

    def tensor(self, tree: Any, fresh: Any, where: str, number: int | None) -> Any:
        value = tree["value"].to(tree["device"], copy=True)
        needs = tree["requires_grad"]
        return nn.Parameter(value, needs) if tree["parameter"] else value.requires_grad_(needs)

    def dtype(self, tree: Any, fresh: Any, where: str, number: int | None) -> Any:
        found = getattr(torch, tree["name"])
        if not isinstance(found, torch.dtype):
            raise TypeError(f"{where} is no dtype")
        return found

    def numpy(self, tree: Any, fresh: Any, where: str, number: int | None) -> Any:
        value = np.array(tree["value"], dtype=tree["dtype"])
        return value if tree["array"] else value[()]

    def generator(self, tree: Any, fresh: Any, where: str, number: int | None) -> Any:
        generator = fresh if isinstance(fresh, torch.Generator) else torch.Generator(tree["device"])
        generator.set_state(tree["value"].cpu())
        return generator

    def sequence(self, tree: Any, fresh: Any, where: str, number: int | None) -> Any:
        items = self.entries(tree["items"], None, where)
        return deque(items, tree["limit"]) if tree[KIND] == "deque" else SEQUENCES[tree[KIND]](items)
