"""Tensors of real numbers from whatever a user gives as one."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperopt_id import files


def real_numbers(value: Any, where: str, shape: list[int], which: str = "") -> Tensor:
    """The float32 tensor on the CPU of a tensor, an array, or lists of numbers. Raises ValueError unless it has the
    shape, and holds real numbers that are finite and that float32 holds."""
    if not isinstance(value, Tensor):
        value = _tensor(value, where)
    elif not value.is_floating_point() or value.layout != torch.strided or value.device.type == "meta":
        raise ValueError(
            f"{where} is {value.dtype} ({value.layout}, {value.device.type}); needed: floating-point numbers"
        )
    if list(value.shape) != shape:
        raise ValueError(f"{where} has shape {files.shorten(str(list(value.shape)))}, needed: {shape}{which}")
    value = value.detach().cpu()
    if not value.isfinite().all():
        raise ValueError(f"{where} has numbers that are not finite: give another")
    if not value.float().isfinite().all():
        raise ValueError(f"{where} has numbers beyond 3.4e38, which float32 does not hold: give another")
    return value.float()


def _tensor(value: Any, where: str) -> Tensor:
    """A float64 tensor of an array of floating-point numbers, or of numbers in lists."""
    try:
        array = np.asarray(value)
        kinds = "f" if isinstance(value, np.ndarray) else "fiu"
        if array.dtype.kind not in kinds:
            raise ValueError(f"it holds {array.dtype}")
        return torch.from_numpy(np.array(array, dtype=np.float64))
    except Exception as error:  # whatever an object of any type raises
        reason = files.shorten(str(error) or type(error).__name__)
        raise ValueError(f"{where} is no tensor of floating-point numbers ({reason})") from error
