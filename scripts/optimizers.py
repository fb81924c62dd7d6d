"""The learned optimizer against Adam: how long a step of it takes, with gradients at hand."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial

import torch
from measuring import Loop, Row, compare
from torch import nn

from hyperopt_id import mulo
from hyperopt_id.kernels import mulo_cuda
from hyperopt_id.optim import MuLO

Parameters = list[nn.Parameter]
Shapes = list[tuple[int, ...]]
WORKLOADS: dict[str, dict[str, Shapes]] = {  # by device
    "cpu": {
        "three linear layers 768 × 768": [(768, 768), (768,)] * 3,
        "two linear layers 768 × 768": [(768, 768), (768,)] * 2,
        "150 tensors of 100": [(10, 10)] * 75 + [(100,)] * 75,
    },
    "cuda": {
        "100M in 150 tensors": [(1152, 1152), (1152,)] * 75,
        "150 tensors of 100": [(10, 10)] * 75 + [(100,)] * 75,
    },
}


def mulo_table(device: str, rounds: int) -> list[Row]:
    """A step of the learned optimizer by its kernel and by its rule in PyTorch, and of Adam, on the same parameters."""
    everything = range(1, torch.get_num_threads() + 1) if device == "cpu" else [torch.get_num_threads()]
    rows = []
    for name, shapes in WORKLOADS[device].items():
        for threads in everything:
            torch.set_num_threads(threads)
            rows += [{"parameters": name, "threads": threads} | row for row in _rows(shapes, device, rounds)]
    return rows


def _rows(shapes: Shapes, device: str, rounds: int) -> list[Row]:
    kernel = partial(MuLO, weights=mulo.untrained(), impl=device)  # type: ignore[arg-type] - of these
    rule = partial(MuLO, weights=mulo.untrained(), impl="torch")
    loops = {"MuLO, kernel": _stepping(kernel(_parameters(shapes, device)))}
    if device == "cuda":
        loops["MuLO, kernel, float16 operands"] = _fast(_stepping(kernel(_parameters(shapes, device))))
        loops["MuLO, kernel, in a graph"] = _captured(kernel(_parameters(shapes, device)))
    loops |= {
        "MuLO, rule in PyTorch": _stepping(rule(_parameters(shapes, device))),
        "torch.optim.Adam(fused=True)": _stepping(torch.optim.Adam(_parameters(shapes, device), fused=True)),
        "torch.optim.Adam": _stepping(torch.optim.Adam(_parameters(shapes, device))),
    }
    measured = compare(loops, 3 if device == "cpu" else 10, rounds, device)
    numbers = sum(torch.Size(shape).numel() for shape in shapes)
    rows: list[Row] = []
    for name, values in measured.items():
        row: Row = {"contestant": name, "milliseconds": values["microseconds"] / 1e3}
        row |= {"ns a parameter": 1e3 * values["microseconds"] / numbers, "ratio": values["ratio"]}
        rows.append(row | (_launches(loops[name]) if device == "cuda" else {}))
    return rows


def _parameters(shapes: Shapes, device: str) -> Parameters:
    generator = torch.Generator(device).manual_seed(0)
    found = [nn.Parameter(torch.randn(shape, generator=generator, device=device)) for shape in shapes]
    for parameter in found:
        parameter.grad = torch.randn(parameter.shape, generator=generator, device=device)
    return found


def _stepping(optimizer: torch.optim.Optimizer) -> Loop:
    def loop(steps: int) -> None:
        for _ in range(steps):
            optimizer.step()

    return loop


def _fast(loop: Loop) -> Loop:
    """With operands of large tensors that are not split."""

    def fast(steps: int) -> None:
        chosen, mulo_cuda.PRECISION = mulo_cuda.PRECISION, "float16"
        loop(steps)
        mulo_cuda.PRECISION = chosen

    return fast


def _captured(optimizer: torch.optim.Optimizer) -> Loop:
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()

    def loop(steps: int) -> None:
        for _ in range(steps):
            graph.replay()

    return loop


def _launches(loop: Loop) -> Row:
    """Kernels and copies of one step on the device, and the milliseconds of those that take the most."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        loop(1)
        torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    found = [event for event in profile.events() or [] if event.device_type == torch.autograd.DeviceType.CUDA]
    found = [event for event in found if not event.is_user_annotation]  # "Optimizer.step#MuLO.step"
    for event in found:
        names = re.findall(r"(\w+)(?=[(<])", event.name)
        spent[names[0] if names else event.name] += event.time_range.elapsed_us() / 1e3
    most = ", ".join(f"{name} {milliseconds:.3g}" for name, milliseconds in spent.most_common(7))
    return {"launches": len(found), "of them": most}
