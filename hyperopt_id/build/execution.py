"""How the numbers of a run are computed, which changes them by rounding alone: lifted, compiled, under autocast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hyperopt_id import compilation_cuda
from hyperopt_id.arguments import check_whole
from hyperopt_id.compilation import Compilation
from hyperopt_id.population import Lift
from hyperopt_id.runtime import Stopwatch


@dataclass(frozen=True)
class Execution:
    """How the same numbers are computed: runs lifted by vmap in chunks or looped over, compiled or not, under
    autocast to bfloat16 or not."""

    lift: Lift = "loop"
    chunk: int = 1
    compile: bool = False
    autocast: bool = False

    def __post_init__(self) -> None:
        if self.lift not in ("loop", "vmap"):
            raise ValueError(f"Execution: lift must be 'loop' or 'vmap', not {self.lift!r}")
        check_whole("Execution: chunk", self.chunk, 1)


def preparation(
    execution: Execution, watch: Stopwatch, device: torch.device, compiling: Compilation | None
) -> Callable[..., Any]:
    """Compile where asked, and time. On a CUDA device, the first call of a compiled piece counts as compilation."""

    def prepare(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        if part == "update":
            capture = execution.compile and device.type == "cuda"
            return watch.timed(compilation_cuda.captured(function), "inner") if capture else function
        if not execution.compile:
            return watch.timed(function, part)
        if compiling is not None:
            return compiling.piece(function, partial(watch.timed, part=part))
        program = compilation_cuda.compiled(function)
        first, later = watch.timed(program, "compile"), watch.timed(program, part)
        pending = [True]

        def call(*arguments: Any) -> Any:
            return (first if pending and pending.pop() else later)(*arguments)

        return call

    return prepare
