"""The step of the learned optimizer in place, for many tensors at once: the operator `hyperopt_id::mulo_step`.

The kernels compute what `hyperopt_id.mulo` does, from the same accumulators; that module is their reference, and has
the equations. Here is what turns lists of tensors into a table of pointers and lengths, and runs into longer lists.
"""

import ctypes
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperopt_id.kernels import compiler, mulo_cuda
from hyperopt_id.kernels.layout import TYPES, geometry

SOURCE = Path(__file__).with_name("mulo_cpu.cpp")
DEVICES = ("cpu", "cuda")
GRADIENTS = 1  # among the lists, the one that is not changed
LANES = 0  # of the vectors: 0 the widest that the processor has; 16, 8, 4 at most these
# Written out, as torch 2.6 does not read `Sequence` of the standard library.
SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] gradients, Tensor(b!)[] momentum, Tensor(c!)[] square, Tensor(d!)[] row, "
    "Tensor(e!)[] column, Tensor theta, Tensor rates, Tensor steps, float step_multiplier) -> ()"
)


@torch.library.custom_op(
    "hyperopt_id::mulo_step",
    mutates_args=("params", "momentum", "square", "row", "column"),
    device_types="cpu",
    schema=SCHEMA,
)
def mulo_step(
    params: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momentum: Sequence[Tensor],
    square: Sequence[Tensor],
    row: Sequence[Tensor],
    column: Sequence[Tensor],
    theta: Tensor,
    rates: Tensor,
    steps: Tensor,
    step_multiplier: float,
) -> None:
    """One step for P tensors after `steps` of them. `rates` [P, 2], on the CPU, has learning rates and weight decays.

    Parameters and gradients are dense, of one layout each, and float32, bfloat16 or float16; accumulators are float32
    in the parameter's order of memory, and `column` of a vector is an empty tensor. θ is [2409], float32.
    """
    theta, rates = theta.contiguous(), rates.contiguous()
    assert theta.shape == (2409,)
    assert rates.shape == (len(params), 2)
    assert theta.dtype == rates.dtype == torch.float32
    assert rates.device.type == "cpu"
    table = array("q")  # of int64
    for leaves in zip(params, gradients, momentum, square, row, column, strict=True):
        table.extend(_described(*leaves))
    failed = params and compiler.cpu_library(SOURCE).hyperopt_id_mulo_step(
        ctypes.c_int64(len(params)),
        *(ctypes.c_void_p(address) for address in (table.buffer_info()[0], rates.data_ptr(), theta.data_ptr())),
        ctypes.c_float(steps.item()),
        ctypes.c_float(step_multiplier),
        ctypes.c_int64(torch.get_num_threads()),
        ctypes.c_int64(LANES),
    )
    if failed:
        raise MemoryError("no memory for the row and column statistics of a step")


mulo_step.register_kernel("cuda")(mulo_cuda.step)


@mulo_step.register_fake
def _(*arguments: object) -> None:
    """Nothing is returned, and what is changed keeps its shape."""


@mulo_step.register_vmap
def _(info: Any, in_dims: Any, *arguments: Any) -> tuple[None, None]:
    """R runs: their tensors become one longer list, but where runs have each their own θ or number of steps."""
    *lists, theta, rates, steps, step_multiplier = arguments
    *dims_of_lists, theta_dim, rates_dim, steps_dim, _ = in_dims
    runs, separate = info.batch_size, theta_dim is not None or steps_dim is not None
    placed, dense = [], []  # with the runs as first axis; dense: the same tensors, or copies
    for position, (leaves, dims) in enumerate(zip(lists, dims_of_lists, strict=True)):
        if position != GRADIENTS and any(dim is None and leaf.numel() for leaf, dim in zip(leaves, dims)):
            raise ValueError("mulo_step under vmap changes its tensors in place: each of them needs an axis of runs")
        placed.append([_runs_first(leaf, dim, runs) for leaf, dim in zip(leaves, dims)])
        dense.append([leaf.contiguous() for leaf in placed[-1]])
    members = [[[leaf[r] for leaf in leaves] for leaves in dense] for r in range(runs)]
    theta, rates, steps = (
        _runs_first(value, dim, runs) for value, dim in ((theta, theta_dim), (rates, rates_dim), (steps, steps_dim))
    )
    if separate:
        for r, own in enumerate(members):
            mulo_step(*own, theta[r], rates[r], steps[r], step_multiplier)
    else:
        longer = ([leaf for leaves in same for leaf in leaves] for same in zip(*members, strict=True))
        mulo_step(*longer, theta[0], rates.flatten(0, 1), steps[0], step_multiplier)
    for position, (places, results) in enumerate(zip(placed, dense, strict=True)):
        for place, result in zip(places, results, strict=True):
            if position != GRADIENTS and result is not place:
                place.copy_(result)
    return None, None


def _runs_first(leaf: Tensor, dim: int | None, runs: int) -> Tensor:
    return leaf.expand(runs, *leaf.shape) if dim is None else leaf.movedim(dim, 0)


def prepare(device: str) -> None:
    """Compile and load the kernel for a device; `compiler.NoCompiler` where that cannot be."""
    if device not in DEVICES:
        raise compiler.NoCompiler(f"there is no kernel for {device}")
    if device == "cuda":
        mulo_cuda.library()
    else:
        compiler.cpu_library(SOURCE)


def _described(
    param: Tensor, gradient: Tensor, momentum: Tensor, square: Tensor, row: Tensor, column: Tensor
) -> tuple[int, ...]:
    """The entry of one parameter in the kernel's table."""
    form = geometry(param.shape, param.stride())
    assert form is not None, f"a tensor with holes: shape {tuple(param.shape)}, strides {param.stride()}"
    assert momentum.dtype == torch.float32
    assert momentum.numel() == 3 * param.numel() == 3 * gradient.numel()
    addresses = param.data_ptr(), gradient.data_ptr(), momentum.data_ptr(), square.data_ptr(), row.data_ptr()
    return (*addresses, column.data_ptr(), *form, TYPES[param.dtype], TYPES[gradient.dtype])
