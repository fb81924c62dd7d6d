"""The digest of data: SHA-256 of their content, wherever they lie and whatever their files are called.

    digest(part, ...) = SHA-256 of, for each part, its kind (text; or type and shape of an array) and its bytes

A loader takes the digest of what it has read, before anything is computed from it: what floating-point arithmetic makes
of a table differs in the last bit between processors, and a digest must not.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hyperopt_id import files

BLOCK = 2**20


def digest(*parts: str | np.ndarray | Tensor) -> str:
    """64 hexadecimal digits, equal for equal parts in equal order; tensors may be on any device."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            encoded = part.encode("utf-8", "surrogateescape")
            whole.update(b"text %d\n" % len(encoded) + encoded)
            continue
        array = _bytes(part) if isinstance(part, Tensor) else np.ascontiguousarray(part)
        kind = str(part.dtype).removeprefix("torch.")
        whole.update(f"array {kind} {list(part.shape)}\n".encode())
        whole.update(array.reshape(-1).view(np.uint8).data)
    return whole.hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 of a regular file. Raises ValueError if it cannot be read."""
    whole = hashlib.sha256()
    with files.open_regular(path) as file:
        while block := file.read(BLOCK):
            whole.update(block)
    return whole.hexdigest()


def _bytes(values: Tensor) -> np.ndarray:
    """The memory of a tensor in row-major order, of any type."""
    return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
