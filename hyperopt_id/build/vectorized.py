"""Whether runs of a task can be one computation: `torch.vmap` of its loss is tried on two runs and a few rows.

The losses, gradients and buffers of both must be those of a loop over them. Some layers of torch cannot be vectorized,
and some give other numbers. What was found is remembered of the loss, for another task may share all else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hyperopt_id import population, trees
from hyperopt_id.arguments import first_line
from hyperopt_id.curvature_reference import make_direction
from hyperopt_id.derivatives import Curvature, Gradient, Loss, gradient
from hyperopt_id.tasks.task import Task
from hyperopt_id.trees import Params

ROWS = 8  # that are tried
SAME_PRODUCT = 0.05  # relative difference of products, which kinks may make in float32
_tried: WeakKeyDictionary[Callable[..., Any], str] = WeakKeyDictionary()


def check_vectorized(task: Task, batch: Any, seed: int) -> None:
    """Raises ValueError if runs of the task cannot be lifted by vmap."""
    why = obstacle(task, batch, seed)
    if why is not None:
        raise _refusal(why)


@torch.enable_grad()
def lifted_products(task: Task, batch: Any, seed: int, curvatures: Sequence[Curvature]) -> Curvature:
    """The first curvature whose Hessian-vector products of two runs at once are those that `curvatures[0]` has of each.

    Raises ValueError if there is none.
    """
    rows, members = few_rows(task, batch), [task.init(each) for each in (seed, seed + 1)]
    directions = [trees.cast_like(make_direction(params, 0), params) for params, _ in members]
    params, buffers, stacked = trees.stack([(w, b, rows) for w, b in members])
    lifted, why = population.lift(task.loss, "vmap"), ""

    def product(curvature: Curvature, loss: Loss, w: Params, u: Params) -> Params:
        return curvature(loss, loss, w)[1](u)

    try:
        singles = [
            product(curvatures[0], lambda q, b=b: task.loss(q, b, rows), w, u)
            for (w, b), u in zip(members, directions, strict=True)
        ]
    except Exception:  # of few rows, as of BatchNorm
        return curvatures[0]
    for curvature in curvatures:
        try:
            with warnings.catch_warnings(action="ignore"):  # of torch about its own speed
                both = product(curvature, lambda q: lifted(q, buffers, stacked), params, trees.stack(directions))
        except Exception as error:  # whatever torch raises for a derivative that it cannot vectorize
            why = why or f"second derivatives: {_sentence(error)}"
            continue
        run = next((run for run, single in enumerate(singles) if not _same(single, both, run)), None)
        if run is None:
            return curvature
        why = why or f"the Hessian-vector product of run {run} would be another one than in a loop"
    raise _refusal(why)


def _same(single: Params, both: Params, run: int) -> bool:
    apart = float(trees.norm({name: value - both[name][run] for name, value in single.items()}))
    return not apart > SAME_PRODUCT * float(trees.norm(single))


def _refusal(why: str) -> ValueError:
    return ValueError(
        f'lift="vmap" cannot train several runs of this model as one: {why}; '
        'take lift="loop" (in a config, population.lift: loop)'
    )


@torch.enable_grad()
def obstacle(task: Task, batch: Any, seed: int) -> str | None:
    """Why vmap does not serve the task, or None. `batch` is one of a single run."""
    if "vmap" in task.limits:
        return task.limits["vmap"] or None
    if task.loss not in _tried:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own speed
            try:
                _tried[task.loss] = _difference(task, seed, few_rows(task, batch))
            except Exception:  # whatever a model raises that needs batches of their own size
                _tried[task.loss] = _difference(task, seed, batch)
    return _tried[task.loss] or None


def few_rows(task: Task, batch: Any, few: int = ROWS) -> Any:
    index, split = getattr(batch, "index", None), getattr(batch, "split", None)
    rows = index.shape[-1] if isinstance(index, Tensor) and index.ndim else task.sizes.get(split or "", few)
    return batch if rows <= few else task.thin(batch, few / rows)


def _difference(task: Task, seed: int, batch: Any) -> str:
    """What is wrong with two runs at once, "" if nothing is."""
    members = [(*task.init(each), batch) for each in (seed, seed + 1)]
    singles = [gradient(lambda w, b=b, x=x: task.loss(w, b, x), trees.variables(w)) for w, b, x in members]
    params, buffers, rows = trees.stack(members)
    lifted = population.lift(task.loss, "vmap")
    try:
        both = gradient(lambda w: lifted(w, buffers, rows), trees.variables(params))
    except Exception as error:  # whatever torch raises for a layer that it cannot vectorize
        return f"{_layer(error.__traceback__)}: {_sentence(error)}"
    for run, single in enumerate(singles):
        largest = max(float(slope.abs().amax()) for slope in single.value.values() if slope.numel())
        for what, one, all_ in _pairs(single, both):
            if not _close(one, all_[run], largest):
                return f"{what} of run {run} would be another one than in a loop"
    return ""


def _pairs(single: Gradient, both: Gradient) -> list[tuple[str, Tensor, Tensor]]:
    (old, _), (new, _) = single.auxiliary, both.auxiliary
    losses = [("the loss", single.loss, both.loss)]
    slopes = [(f"the gradient of {name}", value, both.value[name]) for name, value in single.value.items()]
    return losses + slopes + [(f"the buffer {name}", value, new[name]) for name, value in old.items()]


def _close(first: Tensor, second: Tensor, largest: float) -> bool:
    """Equal up to rounding of these numbers, or of the largest entry of the gradient, of which zeros are sums."""
    if not (first.is_floating_point() or first.is_complex()):
        return torch.equal(first, second)
    if not first.numel() or torch.equal(first, second):
        return True
    eps = torch.finfo(first.dtype).eps
    size = torch.maximum(first.abs().amax(), second.abs().amax())
    return bool(((first - second).abs() <= 10.0 * eps**0.5 * size + 100.0 * eps * largest).all() | size.isnan())


def _sentence(error: Exception) -> str:
    """The first sentence of an error."""
    if "may have escaped from inside a function being vmapped" in str(error):
        return "its backward pass runs forward again (activation checkpointing), where there is no vmap"
    return first_line(error).partition(". ")[0].removesuffix(".")


def _layer(trace: TracebackType | None) -> str:
    """The innermost module that an error passed through, by its name in the outermost."""
    modules = []
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            modules.append(owner)
        trace = trace.tb_next
    if not modules:
        return "its loss"
    names = {id(part): name for name, part in modules[0].named_modules()}
    name, kind = names.get(id(modules[-1])), type(modules[-1]).__name__
    return f"{name} ({kind})" if name else kind
