r"""Plain training as the parts of a run: a `torch.optim` optimizer takes the steps, and nothing is learned about it.

.. math:: (w_t, s_t) = \mathrm{step}(\nabla L(w_{t-1}, \mathrm{batch}), w_{t-1}, s_{t-1})

A hyper-update is then nothing but T such steps in a plain loop. Between them the optimizer is a tree, from which one
that is newly made is restored to the last bit:

    step                0-d, steps taken
    groups/<entry>      [G], float64: numbers of `param_groups`, one for each group, to be reported
    optimizer           all that it keeps (`capture`), of whatever structure, `packed`, for each member by itself

Whether an optimizer can be stored like that is tried when the parts are made (`plain_check`).

Optimizers that train with other weights than they evaluate with (Schedule-Free, arXiv 2405.15682) have methods `train`
and `eval`, which are called before the first and after the last of the T steps, so the weights of a `Run` are those to
evaluate. Statistics of BatchNorm remain those of the weights that it trains with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hyperopt_id import population, trees
from hyperopt_id.arguments import as_seeds, entrance, first_line
from hyperopt_id.dynamics import Batch, TrainState
from hyperopt_id.experiment_plan import Parts
from hyperopt_id.optim.plain_check import check, switch, take_step
from hyperopt_id.optim.plain_make import Make, as_weights
from hyperopt_id.optim.plain_state import Trainer, adopt, numbers_of, restored, stored
from hyperopt_id.population import Proposal, Record, Run
from hyperopt_id.rules import State
from hyperopt_id.runtime import Stopwatch
from hyperopt_id.tasks.task import Task
from hyperopt_id.trees import Params

__all__ = ["Make", "plain_parts"]
GROWTH, MEGABYTE = 100, 2**20  # a state is at most so many times as large as after the steps of the check


@entrance
def plain_parts(
    task: Task,
    make: Make,
    seeds: Iterable[int],
    hyper: Callable[[State], dict[str, Any]],
    clip_norm: float | None = None,
) -> Parts:
    """The parts of R = len(seeds) runs of `task`, each trained by the optimizer that `make` gives for its weights.

    A schedule is part of the optimizer, as a hook of its steps (`register_step_pre_hook`). `hyper` reads the natural
    values to report from the state of one run: a number, a tensor, or {parameter: tensor} for each name. Gradients are
    clipped to the norm `clip_norm`. An optimizer that needs a closure is given one.

    Raises ValueError, which names the optimizer, if it cannot take part (see `plain_check.check`), and if seeds or
    what `hyper` gives at the start are none.
    """
    seeds = as_seeds(seeds)
    like = task.init(seeds[0])[0]
    device = next(iter(like.values())).device
    trainer, watch = Trainer(task, make, check(make, like), numbers_of(make, like), clip_norm), Stopwatch()
    _check_hyper(trainer, hyper, like)
    update = partial(_update, trainer)
    return Parts(
        start=lambda: trees.stack([_member(trainer, seed) for seed in seeds]),
        update=watch.timed(update, "inner"),
        evaluate=task.evaluate,
        hyper=lambda run: _reported(hyper, run.z.state),
        hypergradient=lambda slopes: {},
        batches=population.Feed(task.batches, "loop"),
        window=0,
        seeds=seeds,
        members=population.chunks(len(seeds), 1),
        lift="loop",
        device=device,
        stopwatch=watch,
        sizes=task.sizes,
        adopt=partial(adopt, trainer, device),
        growth=len(seeds) * GROWTH * (MEGABYTE + trainer.checked.size),
        digests=lambda: {"data": digest} if (digest := task.digest()) else {},
    )


def _check_hyper(trainer: Trainer, hyper: Callable[[State], dict[str, Any]], params: Params) -> None:
    weights = as_weights(params)
    state = stored(trainer, trainer.make(weights, 0), weights, 0)
    try:
        _reported(hyper, state)
    except Exception as error:  # whatever a function of the user's stumbles over
        known = ", ".join(trainer.numbers) or "no entries"
        raise ValueError(
            "hyper must give {name: number, tensor or {parameter: tensor}} of a run's state, such as "
            f"lambda state: {{'lr': state['groups']['lr'][0]}} for the first group; groups has {known}, each with a "
            f"number for every group ({type(error).__name__}: {first_line(error)})"
        ) from error


def _reported(hyper: Callable[[State], dict[str, Any]], state: State) -> dict[str, Any]:
    """What is reported of a run, in tensors."""

    def tensor(value: Any) -> Tensor:
        return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)

    values = hyper(state)
    if not isinstance(values, Mapping):
        raise TypeError(f"given {type(values).__name__}")
    return {
        name: {p: tensor(x) for p, x in value.items()} if isinstance(value, Mapping) else tensor(value)
        for name, value in values.items()
    }


def _member(trainer: Trainer, seed: int) -> Run:
    params, buffers = trainer.task.init(seed)
    weights = as_weights(params)
    state = stored(trainer, trainer.make(weights, 0), weights, 0)
    like = next(iter(params.values()))
    never, none = (torch.tensor(number, device=like.device) for number in (-1, 0))
    return Run(TrainState(params, buffers, state), {}, {}, {}, never, none)


@contextmanager
def _naming(optimizer: Any, params: Params) -> Iterator[None]:
    """Raises ValueError if an optimizer takes steps, but not where a parameter has no gradient."""
    try:
        yield
    except (AttributeError, LookupError, TypeError) as error:
        unused = [name for name, weight in params.items() if weight.grad is None]
        if not unused:
            raise
        raise ValueError(
            f"{type(optimizer).__name__} stops where a parameter has no gradient ({unused[0]}; {type(error).__name__}: "
            f"{first_line(error)}): take another optimizer, or add 0.0 * {unused[0]}.sum() to the outputs"
        ) from error


@torch.enable_grad()
def _update(trainer: Trainer, run: Run, batches: Sequence[Batch], target: Batch, step: int) -> tuple[Run, Record]:
    """T = len(batches) steps, the first of them number `step` of the run."""
    del target
    params, taken = as_weights(run.z.params), int(run.z.state["step"])
    optimizer = restored(trainer, params, run.z.state)
    buffers = run.z.buffers

    def evaluate(batch: Batch) -> Tensor:
        nonlocal buffers
        loss, (buffers, _) = trainer.task.loss(params, buffers, batch)
        loss.backward()
        if trainer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), trainer.clip_norm)
        return loss

    with _naming(optimizer, params):
        switch(optimizer, "train")
        losses = [take_step(optimizer, trainer.checked.calling, partial(evaluate, batch)) for batch in batches]
        switch(optimizer, "eval")
    state = stored(trainer, optimizer, params, taken + len(batches))
    z = TrainState(trees.detach(params), buffers, state)
    total, measured = trees.total(z.params), trees.wide(torch.stack(losses))
    proposal = Proposal(z, {}, {}, [], None, {}, total, torch.zeros_like(total))
    return population.settle(run, proposal, measured, step), Record(measured, None, {})
