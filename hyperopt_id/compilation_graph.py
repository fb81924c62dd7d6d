"""A pure function of tensors, written down as the operations of PyTorch that it executes.

`trace` runs the function once on tensors without content, and records what reaches PyTorch below autograd and vmap:
derivatives, vectorized loops, hooks and recomputation have become ordinary operations there, the same ones that an
eager call executes. Tensors that the function holds itself, as a data set, become inputs. So the text of a graph is all
that a program computes, contains no number of the data, and is what a program is known by.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_id import trees


class Untraceable(ValueError):  # noqa: N818 - no mistake: it is executed eagerly
    """The function is none of tensors alone: its course depends on their values, or it holds what cannot be written
    down."""


class Graph(NamedTuple):
    """`text`: JSON of {"inputs": [[shape, strides, dtype, device]], "nodes": [[operation, arguments, keywords]],
    "outputs": [...]}, inputs being the arguments' tensors and then `constants`, held by the function. `result`: a tree
    of what it returns, with any tensors in it. `epsilon`: of the coarsest precision that it computes in."""

    text: str
    constants: list[Tensor]
    result: Any
    epsilon: float


def trace(function: Callable[..., Any], arguments: Sequence[Any]) -> Graph:
    """The graph of `function(*arguments)`, which holds for all arguments of these shapes and static entries.

    Raises Untraceable if there is none. Not to be called from two threads at a time.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # both load much of torch's compiler
    from torch.fx.experimental.proxy_tensor import make_fx

    result: list[Any] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        result.append(function(*trees.like(list(arguments), tensors)))
        return trees.leaves(result[-1])

    with FakeTensorMode(allow_non_fake_inputs=True):
        # New ones, not images of the arguments: an argument that is given twice would be one input, and the program
        # wrong where it is given two.
        inputs = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in trees.leaves(arguments)
        ]
    try:
        recorded = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    except Exception as error:  # of the function, of any operation in it
        raise Untraceable(_first_line(error)) from error
    text, constants, epsilon = _written(recorded)
    return Graph(text, constants, trees.map(lambda _: torch.empty(0), result[-1]), epsilon)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if type(error).__name__ in ("DataDependentOutputException", "DynamicOutputShapeException"):
        return f"its course depends on the values of tensors, in {lines[0]}"
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _written(recorded: torch.fx.GraphModule) -> tuple[str, list[Tensor], float]:
    """(text, constants, epsilon)."""
    nodes = list(recorded.graph.nodes)
    arguments = [node for node in nodes if node.op == "placeholder"]
    held: dict[str, Tensor] = {}
    for node in nodes:
        if node.op == "get_attr":
            held[node.target] = _held(recorded, node.target)
    inputs = [*(node.meta["val"] for node in arguments), *held.values()]
    numbers: dict[Any, int] = {node: place for place, node in enumerate(arguments)}
    names = {name: len(arguments) + place for place, name in enumerate(held)}
    numbers |= {node: names[node.target] for node in nodes if node.op == "get_attr"}
    lines, outputs, epsilon = [], [], min(map(_epsilon, inputs), default=0.0)
    for node in nodes:
        if node.op == "call_function":
            numbers[node] = len(inputs) + len(lines)
            keywords = {name: _encoded(value, numbers) for name, value in node.kwargs.items()}
            lines.append([_operation(node), _encoded(node.args, numbers), keywords])
            epsilon = max([epsilon, *map(_epsilon, trees.leaves(node.meta.get("val")))])
        elif node.op == "output":
            outputs = _encoded(node.args[0], numbers)
    described = [[list(x.shape), list(x.stride()), str(x.dtype), str(x.device)] for x in inputs]
    return json.dumps({"inputs": described, "nodes": lines, "outputs": outputs}), list(held.values()), epsilon


def _held(recorded: torch.fx.GraphModule, name: str) -> Tensor:
    value = getattr(recorded, name, None)
    if not isinstance(value, Tensor) or value.requires_grad:
        raise Untraceable(f"it contains {type(value).__name__} {name}, which is no tensor without a gradient")
    return value


def _epsilon(x: Tensor) -> float:
    """Of numbers alone, which constants are, nothing is said."""
    return torch.finfo(x.dtype).eps if x.ndim and (x.is_floating_point() or x.is_complex()) else 0.0


def _operation(node: torch.fx.Node) -> str:
    target = node.target
    if target is operator.getitem:
        return "getitem"
    if not isinstance(target, torch._ops.OpOverload) or target.namespace not in ("aten", "prims"):
        raise Untraceable(f"{target} is no operation of PyTorch's own")
    if torch.Tag.nondeterministic_seeded in target.tags and not _is_without_dropout(target, node):
        raise Untraceable(f"{target} draws from a global generator, and a program draws other numbers")
    return str(target)


def _is_without_dropout(target: torch._ops.OpOverload, node: torch.fx.Node) -> bool:
    """Whether an operation that draws masks, as attention does, is given the probability 0 to drop."""
    names = [argument.name for argument in target._schema.arguments]
    given = {argument.name: argument.default_value for argument in target._schema.arguments}
    given |= {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return given.get("dropout_p") == 0.0


def _encoded(value: Any, numbers: dict[Any, int]) -> Any:
    """A value as JSON; what JSON does not know is a mapping {kind: text}."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, torch.fx.Node):
        return {"node": numbers[value]}
    if isinstance(value, list | tuple):
        return [_encoded(entry, numbers) for entry in value]
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return {"torch": str(value).removeprefix("torch.")}
    raise Untraceable(f"an operation is given {type(value).__name__}, which cannot be written down")


def read(text: str) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """The graph that a text describes as a module, and tensors that it could be given; the inverse of `trace`."""
    description = json.loads(text)
    graph = torch.fx.Graph()
    values: list[Any] = [graph.placeholder(f"input_{place}") for place in range(len(description["inputs"]))]
    for operation, arguments, keywords in description["nodes"]:
        target = operator.getitem if operation == "getitem" else _found(operation)
        keywords = {name: _decoded(value, values) for name, value in keywords.items()}
        values.append(graph.call_function(target, tuple(_decoded(arguments, values)), keywords))
    graph.output(tuple(_decoded(description["outputs"], values)))
    inputs = [
        torch.empty_strided(shape, strides, dtype=getattr(torch, dtype.removeprefix("torch.")), device=device)
        for shape, strides, dtype, device in description["inputs"]
    ]
    return torch.fx.GraphModule({}, graph), inputs


def _found(operation: str) -> Any:
    namespace, name, overload = operation.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def _decoded(value: Any, values: list[Any]) -> Any:
    if isinstance(value, list):
        return [_decoded(entry, values) for entry in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return values[content]
    if kind == "float":
        return float.fromhex(content)
    if kind == "complex":
        return complex(*map(float.fromhex, content))
    return torch.device(content) if kind == "device" else getattr(torch, content)
