"""The learned optimizer against Adam: how long a step of it takes, with gradients at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from measuring import Loop, Row, compare
from torch import nn

from hyperopt_id import mulo
from hyperopt_id.optim import MuLO

Parameters = list[nn.Parameter]
Shapes = list[tuple[int, ...]]
MuLORule = partial(MuLO, impl="torch")
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
    theta = mulo.untrained()
    contestants: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
        "MuLO, kernel": partial(MuLO, weights=theta, impl=device),  # type: ignore[arg-type]
        "MuLO, rule in PyTorch": partial(MuLORule, weights=theta),
        "torch.optim.Adam(fused=True)": partial(torch.optim.Adam, fused=True),
        "torch.optim.Adam": torch.optim.Adam,
    }
    optimizers = {name: make(_parameters(shapes, device)) for name, make in contestants.items()}
    measured = compare({name: _stepping(each) for name, each in optimizers.items()}, 3, rounds, device)
    numbers = sum(torch.Size(shape).numel() for shape in shapes)
    rows: list[Row] = []
    for name, values in measured.items():
        row: Row = {"contestant": name, "milliseconds": values["microseconds"] / 1e3}
        row |= {"ns a parameter": 1e3 * values["microseconds"] / numbers, "ratio": values["ratio"]}
        rows.append(row | ({"launches": _launches(optimizers[name])} if device == "cuda" else {}))
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


def _launches(optimizer: torch.optim.Optimizer) -> int:
    """Kernels and copies of one step on the device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events() or [])
