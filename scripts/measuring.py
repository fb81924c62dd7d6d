"""How the benchmark measures time and memory, and shows it."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Loop = Callable[[int], None]  # runs that many training steps
Row = dict[str, Any]


def compare(loops: dict[str, Loop], steps: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Microseconds a step and the ratio to the first loop, medians over rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for loop in loops.values():
        loop(steps)  # compile, warm up
    for _ in range(rounds):
        for name, loop in loops.items():
            synchronize(device)
            began = time.perf_counter()
            loop(steps)
            synchronize(device)
            seconds[name].append((time.perf_counter() - began) / steps)
    base = next(iter(seconds.values()))
    return {
        name: {
            "microseconds": 1e6 * statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, base, strict=True)),
        }
        for name, values in seconds.items()
    }


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def forget_peak(device: str) -> int:
    """Bytes held now, from which on the peak is counted."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the resident memory starts anew
    return _resident("VmRSS")


def peak_bytes(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")


def _resident(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(entry))


def markdown(rows: list[Row]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    yield "| " + " | ".join(names) + " |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield "| " + " | ".join(_shown(row.get(name)) for name in names) + " |"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def machine(device: str) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    described = {"torch": torch.__version__, "cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return described | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})
