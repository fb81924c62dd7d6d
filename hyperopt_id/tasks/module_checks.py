"""What a user's module must not do for its training step to be a pure function. Every error is a ValueError."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def refuse_cumulative_average(module: nn.Module) -> None:
    """Raise a ValueError where BatchNorm has no momentum."""
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.momentum is None and part.track_running_stats:
            raise ValueError(
                f"{name or 'the model'} ({type(part).__name__}) has momentum=None, which reads its number of batches "
                "on the host and so cannot train several runs at once: give it a number, such as momentum=0.1"
            )


def check_writes(module: nn.Module, kept: set[str], arguments: tuple[Any, ...]) -> None:
    """Raise a ValueError where a forward pass changes tensors that are not `kept` from step to step, or the shape of
    those that are."""

    def tensors() -> dict[str, Tensor | None]:
        return {
            f"{prefix}.{key}" if prefix else key: value
            for prefix, part in module.named_modules()
            for store in (part._parameters, part._buffers)
            for key, value in store.items()
        }

    trained = {name for name, _ in module.named_parameters()} - kept
    before = {name: None if value is None else value.clone() for name, value in tensors().items()}
    module(*arguments)
    for name, value in tensors().items():
        old = before.get(name)
        if value is None or (old is not None and same(old, value)):
            continue
        if old is None:
            raise ValueError(f"forward makes the buffer {name}: register it in __init__ as a tensor of its final shape")
        if name in trained:
            raise ValueError(f"forward writes to the parameter {name}, which is left to the optimizer: use a buffer")
        if name in kept and old.shape != value.shape:
            shapes = f"{list(old.shape)} to {list(value.shape)}"
            raise ValueError(f"forward changes the shape of the buffer {name} from {shapes}: register it with the last")
        if name in dict(module.named_buffers()) and name not in kept:
            raise ValueError(
                f"forward changes the buffer {name}, which is registered with persistent=False and so a constant "
                "of the run: register it with persistent=True"
            )


def same(first: Tensor, second: Tensor) -> bool:
    """Equal up to what the order of a sum may change."""
    if first.shape != second.shape:
        return False
    return torch.allclose(first.double(), second.double(), rtol=1e-4, atol=1e-7, equal_nan=True)


@contextmanager
def generators_untouched(device: torch.device) -> Iterator[None]:
    """Put the global generators back; a ValueError where they were drawn from."""
    devices = [device] if device.type == "cuda" else []
    python = random.getstate()
    with torch.random.fork_rng(devices):
        states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
        try:
            yield
            drawn = random.getstate() != python
        finally:
            random.setstate(python)
        after = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
    if drawn or not all(map(torch.equal, states, after)):
        raise ValueError(
            "the model's forward draws from a global generator (F.dropout, torch.rand, ...), so no step could be "
            "repeated: use nn.Dropout layers, which are replaced by a stateless one"
        )
