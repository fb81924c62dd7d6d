"""What the host does for the learned optimizer's step on a CUDA device: `mulo_cuda.cu` has the kernels.

They read two tables in the device's memory: one that follows from the shapes and says which task belongs to which
tensor, and one of pointers and rates. A table is uploaded when what it says has changed and not otherwise, so that a
step is launches alone, and the host never waits. A CUDA graph keeps the tables and the workspace that it was captured
with.
"""

import ctypes
import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from hyperopt_id.kernels import compiler
from hyperopt_id.kernels.layout import TYPES, geometry

SOURCE = Path(__file__).with_name("mulo_cuda.cu")
PRECISION: Literal["float16", "split_float16"] = "split_float16"  # of the operands of the network's products
SMALL = 1 << 16  # numbers of a tensor for which they are split in any case: little work, and no errors average out
KEPT = 32  # plans and tables of pointers, at most

Kept = TypeVar("Kept")
Integers = ctypes.Array[ctypes.c_int64]
Upload = Callable[[Integers], Tensor]


class Plan(NamedTuple):
    """What belongs to the shapes of a list of tensors; the workspace is used by no other list."""

    sizes: Integers
    table: Tensor
    workspace: Tensor


_plans: OrderedDict[tuple, Plan] = OrderedDict()
_pointers: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
_captured: dict[int, object] = {}  # by identity, what was there before the graphs that read it


def step(*arguments: Any) -> None:
    """`hyperopt_id::mulo_step`, whose arguments these are, on the current stream of the device of the tensors."""
    *tensors, theta, rates, steps, step_multiplier = arguments
    params = tensors[0]
    if not params:
        return
    with torch.cuda.device(params[0].device):
        stream = torch.cuda.current_stream()
        used = launch(_loaded(theta.get_device()), tensors, theta, rates, steps, step_multiplier, stream.cuda_stream)
        if _capturing(theta.device):
            _captured.update((id(tensor), tensor) for tensor in (theta, steps))
        else:
            for tensor in used:
                tensor.record_stream(stream)


def library() -> ctypes.CDLL:
    """The kernels for the current device, compiled when they are needed for the first time, and loaded there."""
    if not torch.cuda.is_available():
        raise compiler.NoCompiler("torch sees no CUDA device")
    return _loaded(torch.cuda.current_device())


@functools.cache
def _loaded(device: int) -> ctypes.CDLL:
    """A driver that is older than nvcc, say, cannot load the kernels: better known now than at the first step."""
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise compiler.NoCompiler(f"the CUDA kernel needs compute capability 8.0, this device has {major}.{minor}")
    kernels = compiler.cuda_library(SOURCE, f"{major}{minor}")
    kernels.hyperopt_id_mulo_cuda_error.restype = ctypes.c_char_p
    if failed := kernels.hyperopt_id_mulo_cuda_load(ctypes.c_int64(device)):
        raise compiler.NoCompiler(f"the compiled CUDA kernel cannot be loaded: {_description(kernels, failed)}")
    return kernels


def launch(
    kernels: ctypes.CDLL,
    tensors: Sequence[Sequence[Tensor]],
    theta: Tensor,
    rates: Tensor,
    steps: Tensor,
    step_multiplier: float,
    stream: int,
) -> tuple[Tensor, ...]:
    """Enqueue one step; `tensors` are parameters, gradients and the accumulators. What must live until it is done."""
    theta, steps = theta.contiguous(), steps.contiguous()
    assert theta.shape == (2409,)
    assert rates.shape == (len(tensors[0]), 2)
    assert theta.dtype == rates.dtype == steps.dtype == torch.float32
    assert theta.device == steps.device == tensors[0][0].device
    assert rates.device.type == "cpu"  # else reading them would wait for the device
    upload = functools.partial(_uploaded, kernels, theta.device, stream)
    plan, pointers = _plan(kernels, upload, tensors), _table_of_pointers(upload, tensors, rates)
    arrays = (plan.table, pointers, theta, steps, plan.workspace)
    failed = kernels.hyperopt_id_mulo_cuda_step(
        ctypes.c_int64(theta.get_device()),
        ctypes.c_int64(len(tensors[0])),
        *(ctypes.c_void_p(array.data_ptr()) for array in arrays),
        plan.sizes,
        ctypes.c_float(step_multiplier),
        ctypes.c_void_p(stream),
    )
    _raise_if(kernels, failed)
    return arrays


def _plan(kernels: ctypes.CDLL, upload: Upload, tensors: Sequence[Sequence[Tensor]]) -> Plan:
    params, gradients, momentum = tensors[:3]
    shapes = [(tuple(p.shape), p.stride(), p.dtype, g.dtype) for p, g in zip(params, gradients, strict=True)]
    split_below = SMALL if PRECISION == "float16" else 1 << 62
    key = (split_below, *(leaf.data_ptr() for leaf in momentum), *shapes)

    def make() -> Plan:
        sizes, table = _tasks(kernels, shapes, split_below)
        return Plan(sizes, upload(table), torch.empty(sizes[1], dtype=torch.float32, device=params[0].device))

    return _kept(_plans, key, make, params[0].device)


def _tasks(kernels: ctypes.CDLL, shapes: Sequence[tuple], split_below: int) -> tuple[Integers, Integers]:
    """Sizes (of table and workspace, then tasks by phase) and the table itself, for tensors of these shapes."""
    rows = []
    for shape, stride, param_type, gradient_type in shapes:
        found = geometry(shape, stride)
        assert found is not None, f"a tensor with holes: shape {shape}, strides {stride}"
        rows += [*found, len(shape) < 2 or 0 in shape, TYPES[param_type], TYPES[gradient_type]]
    given, sizes = (ctypes.c_int64 * len(rows))(*rows), (ctypes.c_int64 * 8)()
    arguments = ctypes.c_int64(len(shapes)), given, ctypes.c_int64(split_below)
    kernels.hyperopt_id_mulo_cuda_plan(*arguments, None, sizes)
    table = (ctypes.c_int64 * sizes[0])()
    kernels.hyperopt_id_mulo_cuda_plan(*arguments, table, sizes)
    return sizes, table


def _table_of_pointers(upload: Upload, tensors: Sequence[Sequence[Tensor]], rates: Tensor) -> Tensor:
    pairs = rates.contiguous().view(torch.int64).flatten().tolist()  # of floats, as the struct has them
    words = ((*(leaf.data_ptr() for leaf in leaves), pair) for *leaves, pair in zip(*tensors, pairs, strict=True))
    key = tuple(word for each in words for word in each)
    return _kept(_pointers, key, lambda: upload((ctypes.c_int64 * len(key))(*key)), tensors[0][0].device)


def _uploaded(kernels: ctypes.CDLL, device: torch.device, stream: int, integers: Integers) -> Tensor:
    """From pinned memory; under capture, when that cannot be had, by launches that carry them."""
    if device.type == "cuda" and not _capturing(device):
        return torch.frombuffer(integers, dtype=torch.int64).pin_memory().to(device, non_blocking=True)
    table = torch.empty(len(integers), dtype=torch.int64, device=device)
    failed = kernels.hyperopt_id_mulo_cuda_write(
        ctypes.c_int64(table.get_device()),
        ctypes.c_void_p(table.data_ptr()),
        integers,
        ctypes.c_int64(len(integers)),
        ctypes.c_void_p(stream),
    )
    _raise_if(kernels, failed)
    return table


def _raise_if(kernels: ctypes.CDLL, failed: int) -> None:
    if failed:
        raise RuntimeError(f"MuLO: the CUDA kernel cannot be launched: {_description(kernels, failed)}")


def _description(kernels: ctypes.CDLL, failed: int) -> str:
    return f"CUDA error {failed}, {kernels.hyperopt_id_mulo_cuda_error(failed).decode()}"


def _kept(found: OrderedDict[Any, Kept], key: tuple, make: Callable[[], Kept], device: torch.device) -> Kept:
    """The entry of a key, made where there is none. One made under capture is in the graph's own memory, where every
    replay writes it before it is read; one that is found must stay for the graph."""
    capturing = _capturing(device)
    if key not in found:
        made = make()
        if capturing:
            return made
        found[key] = made
    if capturing:
        _captured[id(found[key])] = found[key]
    found.move_to_end(key)
    if len(found) > KEPT:
        found.popitem(last=False)
    return found[key]


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
