"""What a module returns: tensors, alone or inside of containers and objects, such as dataclasses, distributions and the
dictionaries with attributes that some libraries have. A criterion is given them as they are."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

DEPTH = 6  # containers within containers that are looked through


def tensors(outputs: Any) -> list[Tensor]:
    """All tensors in the outputs, each once."""
    found: list[Tensor] = []

    def visit(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    converted(visit, outputs)
    return found


def detached(outputs: Any) -> Any:
    return converted(Tensor.detach, outputs)


def concatenated(parts: Sequence[Any]) -> Any:
    """Outputs of the same form, whose tensors have a row for every example, as one."""
    columns = zip(*map(tensors, parts), strict=True)
    joined = iter([torch.cat(column) for column in columns])
    return converted(lambda tensor: next(joined), parts[0])


def converted(function: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    """The outputs with every tensor replaced by the function's value for it; what holds one is copied."""
    return _convert(outputs, function, {}, DEPTH)


def _convert(value: Any, function: Callable[[Tensor], Tensor], results: dict[int, Tensor], depth: int) -> Any:
    if isinstance(value, Tensor):
        if id(value) not in results:
            results[id(value)] = function(value)
        return results[id(value)]
    if depth == 0:
        return value
    if isinstance(value, list | tuple):
        parts = [_convert(part, function, results, depth - 1) for part in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    entries = _entries(value)
    parts = {key: _convert(entry, function, results, depth - 1) for key, entry in entries.items()}
    changed = {key: part for key, part in parts.items() if part is not entries[key]}
    twin = copy.copy(value) if changed else value
    for key, part in changed.items():
        if isinstance(value, dict):
            twin[key] = part
        else:
            object.__setattr__(twin, key, part)  # also of frozen dataclasses
    return twin


def _entries(value: Any) -> dict[Any, Any]:
    """What a dictionary or a plain object holds."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, type | nn.Module) or callable(value):
        return {}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dict(getattr(value, "__dict__", {}))
