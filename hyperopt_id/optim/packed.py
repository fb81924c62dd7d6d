"""A tree as `capture` makes it, with all that is no tensor in one: a run has only tensors, which can be compared.

structure    uint8, the tree as JSON, in which tensors are numbered, and tuples told from lists
tensors      the tensors, by number
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperopt_id.optim.capture import KIND


def pack(tree: Any) -> dict[str, Any]:
    tensors: list[Tensor] = []

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            return {KIND: "leaf", "number": len(tensors) - 1}
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            items = [plain(item) for item in value]
            return items if isinstance(value, list) else {KIND: "tuple", "items": items}
        return value

    text = json.dumps(plain(tree)).encode()
    structure = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
    return {"structure": structure, "tensors": tensors}


def unpack(packed: dict[str, Any]) -> Any:
    """The tree. Raises ValueError if there is none in it."""
    tensors = packed["tensors"]

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.get(KIND) == "leaf":
            return tensors[value["number"]]
        if value.get(KIND) == "tuple":
            return tuple(whole(item) for item in value["items"])
        return {key: whole(entry) for key, entry in value.items()}

    return whole(json.loads(packed["structure"].cpu().numpy().tobytes()))
