"""`torch.compile` of the pieces of a hyper-update, with an eager fallback that says why.

The compiled functions contain their own derivatives (`torch.autograd.grad` is traced, not called through), so what
comes out is one forward-only program; no second derivative is ever taken through a compiled module.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch

Function = Callable[..., Any]
logger = logging.getLogger("hyperopt_id")


def obstacle(device: torch.device) -> str | None:
    """Why nothing can be compiled here, or None."""
    import torch._dynamo.config as dynamo

    if not hasattr(dynamo, "trace_autograd_ops"):
        return f"torch {torch.__version__} does not trace torch.autograd.grad (2.11 does)"
    compilers = [name for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name]
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        return "there is no C++ compiler: install g++, or set CXX"
    return None


def compiled(function: Function, **options: Any) -> Function:
    """The function compiled as one graph for fixed shapes. Where that fails, one line says so, and it runs eagerly."""
    import torch._dynamo

    torch._dynamo.config.trace_autograd_ops = True  # without it, a call of torch.autograd.grad is an error
    program = torch.compile(function, fullgraph=True, dynamic=False, **options)
    chosen: Function | None = None

    def call(*arguments: Any) -> Any:
        nonlocal chosen
        if chosen is not None:
            return chosen(*arguments)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the compiler, about itself
                result = program(*arguments)
            chosen = program
        except Exception as error:  # whatever the compiler stumbles over, eager execution still works
            lines = str(error).strip().splitlines() or [type(error).__name__]
            logger.warning("not compiled, running eagerly: %s", lines[0])
            chosen = function
            result = function(*arguments)
        return result

    return call
