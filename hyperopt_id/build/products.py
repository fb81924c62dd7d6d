"""Which Hessian-vector products a task takes, compared on its first batch, and the line of the log that says so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_id import population, trees
from hyperopt_id.arguments import first_line
from hyperopt_id.curvature import Curvature, examine, none
from hyperopt_id.derivatives import Loss, gradient
from hyperopt_id.hypergrad import Engine
from hyperopt_id.tasks.task import Task
from hyperopt_id.trees import Params

FEW, LEAST_SHARE = 500_000, 1 / 8  # numbers kept by a pass beyond which rows are left out, and the share that stays

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

    def losses(rows: Any) -> tuple[Loss, Loss | None]:
        def bound(loss: Callable[..., Any]) -> Loss:
            return lambda w: loss(w, buffers, rows)

        return bound(autocast(task.loss) if under_autocast else task.loss), bound(task.loss) if under_autocast else None

    loss, plain = losses(batch)
    if under_autocast:
        _check_autocast(loss, params)
    share = FEW / max(count_saved(loss, params), 1)
    few = losses(task.thin(batch, max(share, LEAST_SHARE))) if share < 1.0 else None
    choice = examine(loss, params, given=given, differences=differences, plain=plain, pushes=engine.pushes, few=few)
    note = f"curvature: {choice.line}"
    logger.log(logging.WARNING if choice.doubtful else logging.INFO, note)
    return Products(choice.curvature, choice.outside_autocast, ((note, time.perf_counter()),))


@torch.enable_grad()
def _check_autocast(loss: Loss, params: Params) -> None:
    try:
        gradient(loss, trees.variables(params))
    except Exception as problem:  # whatever a loss of the user's own raises
        reason = first_line(problem)
        raise ValueError(
            f"under autocast to bfloat16 the loss has no gradient ({type(problem).__name__}: {reason}): take float32, "
            f"or compute the part that cannot have bfloat16 under torch.autocast(..., enabled=False)"
        ) from problem


@torch.enable_grad()
def count_saved(loss: Loss, params: Params) -> int:
    """How many numbers a forward pass keeps for the gradient: its size, whatever machine it is on."""
    count = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal count
        count += tensor.numel()
        return tensor

    with (
        suppress(RuntimeError),  # of a forward that calls torch.func, where nothing is counted
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        loss(trees.variables(params))
    return count


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
