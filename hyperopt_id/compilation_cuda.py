"""On a CUDA device: `torch.compile` of the pieces of a hyper-update, and CUDA graphs of the whole.

The compiled functions contain their own derivatives (`torch.autograd.grad` is traced, not called through), so what
comes out is one forward-only program; no second derivative is ever taken through a compiled module.
"""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch

from hyperopt_id import trees
from hyperopt_id.arguments import first_line
from hyperopt_id.compilation_program import OPTIONS
from hyperopt_id.compilation_worker import one_line

Function = Callable[..., Any]
logger = logging.getLogger("hyperopt_id")


def obstacle() -> str | None:
    """Why nothing can be compiled for a CUDA device here, or None."""
    import torch._dynamo.config as dynamo

    if hasattr(dynamo, "trace_autograd_ops"):
        return None
    return f"torch {torch.__version__} does not trace torch.autograd.grad (2.11 does)"


def compiled(function: Function) -> Function:
    """The function compiled as one graph for fixed shapes. Where that fails, one line says so, and it runs eagerly."""
    import torch._dynamo

    program = torch.compile(function, fullgraph=True, dynamic=False, options=OPTIONS)
    chosen: Function | None = None

    def call(*arguments: Any) -> Any:
        nonlocal chosen
        if not torch._dynamo.config.trace_autograd_ops:  # in every thread that calls
            torch._dynamo.config.trace_autograd_ops = True  # without it, a call of torch.autograd.grad is an error
        if chosen is not None:
            return chosen(*arguments)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the compiler, about itself
                result = program(*arguments)
            chosen = program
        except Exception as error:  # whatever the compiler stumbles over, eager execution still works
            logger.warning("not compiled, running eagerly: %s", one_line(error))
            chosen = function
            result = function(*arguments)
        return result

    return call


def captured(function: Function) -> Function:
    """The function replayed as a CUDA graph: one launch instead of one for every operation. Pure as before: arguments
    are copied into the graph's own memory, and results out of it.

    There is one graph for every combination of shapes and static entries of the arguments.
    """
    graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Any, Any]] = {}
    refused: set[Any] = set()

    def call(*arguments: Any) -> Any:
        key = _shape(arguments)
        if key in refused:
            return function(*arguments)
        if key not in graphs:
            try:
                graphs[key] = _capture(function, trees.map(torch.clone, arguments))
            except RuntimeError as error:
                logger.warning("not captured as a CUDA graph: %s", first_line(error))
                refused.add(key)
                return function(*arguments)
        graph, inputs, outputs = graphs[key]
        torch._foreach_copy_(trees.leaves(inputs), trees.leaves(arguments))
        graph.replay()
        fresh = trees.map(torch.empty_like, outputs)
        torch._foreach_copy_(trees.leaves(fresh), trees.leaves(outputs))
        return fresh

    return call


def _capture(function: Function, inputs: Any) -> tuple[torch.cuda.CUDAGraph, Any, Any]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compile, and let libraries allocate their workspaces, before recording
            function(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*inputs)
    return graph, inputs, outputs


def _shape(tree: Any) -> Any:
    """What a captured graph depends on: the structure, the shapes and types, and everything that is no tensor."""
    if isinstance(tree, torch.Tensor):
        return tree.shape, tree.dtype
    if isinstance(tree, dict):
        return tuple((key, _shape(value)) for key, value in tree.items())
    if isinstance(tree, (list, tuple)):
        return tuple(_shape(value) for value in tree)
    return tree
