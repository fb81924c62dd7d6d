"""Modules from the function that makes them: same seed, same module, whatever generator it draws from.

The generators of torch (CPU), numpy and Python are seeded for a call and put back after it. Tensors are converted as
`Module.to` does, but complex ones become the complex type of the same precision.
"""

import copy
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyperopt_id.arguments import first_line
from hyperopt_id.tasks.substitutes import substituted

ModuleFactory = Callable[[], nn.Module]
COMPLEX = {torch.float16: torch.complex32, torch.float32: torch.complex64, torch.float64: torch.complex128}
_lock = threading.RLock()  # the generators are those of the process


@dataclass(frozen=True)
class Builder:
    """Calls a factory. One that hands out the same parts at every call, `original`, has them copied."""

    factory: ModuleFactory
    device: torch.device
    dtype: torch.dtype
    original: nn.Module | None

    @staticmethod
    def create(
        factory: ModuleFactory, device: torch.device, dtype: torch.dtype
    ) -> "tuple[Builder, nn.Module, nn.Module]":
        """The builder, and what two calls at seed 0 gave.

        Raises ValueError if the factory is no function that makes modules.
        """
        first, second = _call(factory, 0), _call(factory, 0)
        build = Builder(factory, device, dtype, first if _identities(first) & _identities(second) else None)
        return build, build.prepared(first), build.prepared(second)

    def __call__(self, seed: int) -> nn.Module:
        """The module of this seed, with layers that draw from the batch's seed."""
        return self.prepared(_call(self.factory, seed))

    def prepared(self, module: nn.Module) -> nn.Module:
        module = _uncompiled(module)
        if self.original is not None:
            module = _copied(module)
        return substituted(converted(uncompiled(module), self.device, self.dtype))


def uncompiled(module: nn.Module) -> nn.Module:
    """The module without `torch.compile`, whole or in parts, whose guards would see every run's tensors as other ones:
    what is worth it is compiled with the step (`Execution(compile=True)`)."""
    whole = _uncompiled(module)
    for part in list(whole.modules()):
        if part._compiled_call_impl is not None:  # by part.compile()
            part._compiled_call_impl = None
        for name, child in list(part.named_children()):
            if _uncompiled(child) is not child:
                part._modules[name] = _uncompiled(child)
    return whole


def _uncompiled(module: nn.Module) -> nn.Module:
    return getattr(module, "_orig_mod", module) if type(module).__name__ == "OptimizedModule" else module


def _copied(module: nn.Module) -> nn.Module:
    """A deep copy, with the hooks of parameters, which torch leaves out."""
    try:
        twin = copy.deepcopy(module)
    except RuntimeError as error:
        why = first_line(error)
        raise ValueError(
            f"the function hands out the same module at every call, which cannot be copied ({why}): "
            "make the module inside the function"
        ) from error
    for parameter, copied in zip(module.parameters(), twin.parameters(), strict=True):
        for hook in hooks_of(parameter):
            copied.register_hook(hook)
    return twin


def hooks_of(tensor: Tensor) -> list[Callable[..., Any]]:
    """What `register_hook` was called with."""
    return list((tensor._backward_hooks or {}).values())


def _call(factory: ModuleFactory, seed: int) -> nn.Module:
    cure = "a function that makes the model is needed, such as lambda: nn.Linear(4, 1)"
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ValueError(f"{cure}; given {type(factory).__name__} itself")
    try:
        with seeded(seed):
            module = factory()
    except TypeError as error:  # as of a class that needs arguments
        raise ValueError(f"{cure}; given one that fails ({first_line(error)})") from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"{cure}; it returned {type(module).__name__}, which is no nn.Module")
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"{name} has no shape yet, as a lazy module has before its first call: give the layer its number of "
                "inputs, or call the module once inside the function that makes it"
            )
    return module


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Global generators that start from `seed`, and are as they were afterwards."""
    with _lock, torch.random.fork_rng(devices=[]):
        python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - what people's modules draw from
        try:
            # Not torch.manual_seed: it would also reseed the CUDA generators, which are not forked here.
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002


def converted(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The module with its tensors on the device, floating-point and complex ones in that precision."""

    def convert(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device, COMPLEX.get(dtype, torch.complex64))
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    return module._apply(convert)


def _identities(module: nn.Module) -> set[int]:
    parts: list[Any] = [*module.modules(), *module.parameters(), *module.buffers()]
    return {id(part) for part in parts}
