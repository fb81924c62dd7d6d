"""Which Hessian-vector products a task takes, compared on its first batch, and the line of the log that says so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from hyperopt_id import population
from hyperopt_id.curvature import Curvature, examine, none
from hyperopt_id.hypergrad import Engine
from hyperopt_id.tasks.task import Task
from hyperopt_id.trees import Params

logger = logging.getLogger("hyperopt_id")


class Products(NamedTuple):
    """Products that have been examined; of the loss without autocast if `outside_autocast`; `notes` have been logged,
    at those times of `time.perf_counter()`."""

    curvature: Curvature
    outside_autocast: bool = False
    notes: tuple[tuple[str, float], ...] = ()


def pick_products(
    given: Curvature | None,
    engine: Engine,
    task: Task,
    seed: int,
    batch: Any,
    *,
    differences: Curvature | None = None,
    under_autocast: bool = False,
) -> Products:
    """The curvature given, or, for None, the one of `curvature.examine` at the start of the run with this seed; none
    where the engine needs no products."""
    if not engine.products or given is none:
        return Products(none)
    params, buffers = task.init(seed)

    def bound(loss: Callable[..., Any]) -> Callable[[Params], Any]:
        return lambda w: loss(w, buffers, batch)

    choice = examine(
        bound(autocast(task.loss) if under_autocast else task.loss),
        params,
        given=given,
        differences=differences,
        plain=bound(task.loss) if under_autocast else None,
        pushes=engine.pushes,
    )
    note = f"curvature: {choice.why}"
    logger.log(logging.WARNING if choice.doubtful else logging.INFO, note)
    return Products(choice.curvature, choice.outside_autocast, ((note, time.perf_counter()),))


def pick_curvature(given: Curvature | None, engine: Engine, task: Task, seed: int) -> Curvature:
    """The curvature alone, examined on a batch drawn for it."""
    return pick_products(given, engine, task, seed, first_batch(task, seed)).curvature


def first_batch(task: Task, seed: int) -> Any:
    """The first training batch of a run by itself."""
    return population.Feed(task.batches, "loop")("train", [seed], 0, 1)[0]


def autocast(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The loss under autocast to bfloat16, in float32."""

    def under_autocast(params: Params, buffers: Params, batch: Any) -> Any:
        device = next(iter(params.values())).device.type
        with torch.autocast(device, torch.bfloat16):
            value, rest = loss(params, buffers, batch)
        return value.float(), rest

    return under_autocast
