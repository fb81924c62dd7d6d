"""What a user's module must not do for its training step to be a pure function. Every error is a ValueError."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hyperopt_id.tasks.building import hooks_of


def refuse_accumulation_hooks(module: nn.Module) -> None:
    """Raises ValueError if a parameter has hooks on `.grad`, which nothing accumulates here."""
    for name, parameter in module.named_parameters():
        if parameter._post_accumulate_grad_hooks:
            raise ValueError(
                f"{name} has a hook of register_post_accumulate_grad_hook, which would never run: gradients are not "
                "accumulated in .grad here; use register_hook, which may return another gradient"
            )


def limits(module: nn.Module, varying: Sequence[str]) -> dict[str, str]:
    """Why a module cannot be vectorized over runs ("vmap") or compiled ("compile"), as far as can be seen from it."""
    found: dict[str, str] = {}
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.momentum is None and part.track_running_stats:
            why = f"{name or 'the model'} ({type(part).__name__}) has momentum=None, which reads its number of batches"
            found = dict.fromkeys(("vmap", "compile"), f"{why} on the host (give it one, such as momentum=0.1)")
    for name, parameter in module.named_parameters():
        if hooks_of(parameter):
            found = dict.fromkeys(("vmap", "compile"), f"{name} has hooks of register_hook")
    buffers = dict(module.named_buffers())
    loose = [name for name in varying if name not in buffers]
    if loose:
        found.setdefault("compile", f"{loose[0]} is drawn anew for each run, and neither a parameter nor a buffer")
    return found


def check_writes(module: nn.Module, kept: set[str], step: Callable[[], Any]) -> Any:
    """What `step`, a training step of the module, returns.

    Raises ValueError if it changes tensors that are not `kept` from step to step, or the shape of those that are.
    """

    def tensors() -> dict[str, Tensor | None]:
        return {
            f"{prefix}.{key}" if prefix else key: value
            for prefix, part in module.named_modules()
            for store in (part._parameters, part._buffers)
            for key, value in store.items()
        }

    trained = {name for name, _ in module.named_parameters()} - kept
    before = {name: None if value is None else value.clone() for name, value in tensors().items()}
    result = step()
    for name, value in tensors().items():
        old = before.get(name)
        if value is None or (old is not None and same(old, value)):
            continue
        if old is None:
            raise ValueError(f"forward makes the buffer {name}: register it in __init__ as a tensor of its final shape")
        if name in trained:
            raise ValueError(
                f"forward writes to the parameter {name}, which is left to the optimizer (nn.Embedding does so with "
                "max_norm): use a buffer, or normalize what is read (parametrize)"
            )
        if name in kept and old.shape != value.shape:
            shapes = f"{list(old.shape)} to {list(value.shape)}"
            raise ValueError(f"forward changes the shape of the buffer {name} from {shapes}: register it with the last")
        if name in dict(module.named_buffers()) and name not in kept:
            raise ValueError(
                f"forward changes the buffer {name}, which is registered with persistent=False and so a constant "
                "of the run: register it with persistent=True"
            )
    return result


def same(first: Tensor, second: Tensor) -> bool:
    """Equal up to what the order of a sum may change."""
    if first.shape != second.shape:
        return False
    if first.dtype == second.dtype and torch.equal(first, second):
        return True
    wide = torch.complex128 if first.is_complex() or second.is_complex() else torch.float64
    return torch.allclose(first.to(wide), second.to(wide), rtol=1e-4, atol=1e-7, equal_nan=True)


@contextmanager
def generators_untouched(device: torch.device) -> Iterator[None]:
    """Put the global generators back.

    Raises ValueError if they were drawn from, whatever error of the module's that may have led to.
    """
    devices = [device] if device.type == "cuda" else []
    error = None
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - what people's modules draw from
    with torch.random.fork_rng(devices):
        states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
        try:
            yield
        except ValueError as found:
            error = found
        finally:
            moved = map(np.array_equal, np.random.get_state(), arrays)  # noqa: NPY002
            drawn = random.getstate() != python or not all(moved)
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002
        after = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
    if drawn or not all(map(torch.equal, states, after)):
        raise ValueError(
            "the model's forward draws from a global generator (F.dropout, torch.rand, ...), so no step could be "
            "repeated: use nn.Dropout layers, which are replaced by a stateless one"
        ) from error
    if error is not None:
        raise error
