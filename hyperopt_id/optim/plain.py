r"""Plain training as the parts of a run: a `torch.optim` optimizer takes the steps, and nothing is learned about it.

.. math:: (w_t, s_t) = \mathrm{step}(\nabla L(w_{t-1}, \mathrm{batch}), w_{t-1}, s_{t-1})

A hyper-update is then nothing but T such steps in a plain loop. Between them the optimizer is a tree of tensors, of one
structure for all members and at all times, from which it is restored to the last bit:

    step                         0-d, steps taken
    groups/<entry>               [G], float64: the numbers and booleans of `param_groups`, one for each group
    parameters/<name>/<entry>    what `optimizer.state` holds of a parameter: tensors, and numbers as 0-d float64

Before the first step the entries of parameters are zeros that mean nothing. The initial entries of `param_groups` are
those that count: what a step adds there is taken for a message to the user.

Optimizers that train with other weights than they evaluate with (Schedule-Free, arXiv 2405.15682) have methods `train`
and `eval`, which are called before the first and after the last of the T steps, so the weights of a `Run` are those to
evaluate. Statistics of BatchNorm remain those of the weights that it trains with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_id import population, trees
from hyperopt_id.dynamics import Batch, TrainState
from hyperopt_id.experiment_plan import Parts
from hyperopt_id.population import Proposal, Record, Run
from hyperopt_id.rules import State
from hyperopt_id.runtime import Stopwatch
from hyperopt_id.tasks.task import Task
from hyperopt_id.trees import Params

Make = Callable[[Params, int], torch.optim.Optimizer]  # (leaf tensors by name, steps taken before) -> their optimizer


def plain_parts(
    task: Task,
    make: Make,
    seeds: Sequence[int],
    hyper: Callable[[State], dict[str, Any]],
    clip_norm: float | None = None,
) -> Parts:
    """The parts of R = len(seeds) runs of `task`, each trained by the optimizer that `make` gives for its weights.

    A schedule is part of the optimizer, as a hook of its steps (`register_step_pre_hook`). `hyper` reads the natural
    values to report from the optimizer's state; gradients are clipped to the norm `clip_norm`.
    """
    like = task.init(seeds[0])[0]
    form, watch = _form(make, like), Stopwatch()
    update = partial(_update, task, make, form, clip_norm)
    return Parts(
        start=lambda: trees.stack([_member(task, make, form, seed) for seed in seeds]),
        update=watch.timed(update, "inner"),
        evaluate=task.evaluate,
        hyper=lambda run: hyper(run.z.state),
        hypergradient=lambda slopes: {},
        batches=population.Feed(task.batches, "loop"),
        window=0,
        seeds=list(seeds),
        members=population.chunks(len(seeds), 1),
        lift="loop",
        device=next(iter(like.values())).device,
        stopwatch=watch,
        sizes=task.sizes,
        digests=lambda: {"data": digest} if (digest := task.digest()) else {},
    )


class _Form(NamedTuple):
    """What an optimizer consists of: `groups` names the numbers of its groups, `entries` has an example of everything
    that it keeps of a parameter."""

    groups: list[str]
    entries: dict[str, dict[str, Any]]


def _form(make: Make, params: Params) -> _Form:
    """The form of an optimizer, seen from a step on copies that are thrown away."""
    params = trees.variables(trees.map(torch.clone, params))
    optimizer = make(params, 0)
    numbers = [key for key, value in optimizer.param_groups[0].items() if isinstance(value, bool | int | float)]
    _switch(optimizer, "train")
    for weight in params.values():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    entries = {name: dict(optimizer.state[weight]) for name, weight in params.items()}
    for key, value in (item for kept in entries.values() for item in kept.items()):
        if not isinstance(value, Tensor | bool | int | float):
            what = f"{type(optimizer).__name__} keeps {key} as {type(value).__name__}"
            raise ValueError(f"{what}, but only tensors and numbers can be stored; take another optimizer")
    return _Form(numbers, entries)


def _member(task: Task, make: Make, form: _Form, seed: int) -> Run:
    params, buffers = task.init(seed)
    state = _stored(make(trees.variables(params), 0), params, form, 0)
    like = next(iter(params.values()))
    never, none = (torch.tensor(number, device=like.device) for number in (-1, 0))
    return Run(TrainState(params, buffers, state), {}, {}, {}, never, none)


@torch.enable_grad()
def _update(
    task: Task,
    make: Make,
    form: _Form,
    clip_norm: float | None,
    run: Run,
    batches: Sequence[Batch],
    target: Batch,
    step: int,
) -> tuple[Run, Record]:
    """T = len(batches) steps, the first of them number `step` of the run."""
    del target
    params, buffers = trees.variables(trees.map(torch.clone, run.z.params)), run.z.buffers
    taken, losses = int(run.z.state["step"]), []
    optimizer = make(params, taken)
    _restore(optimizer, params, form, run.z.state)
    _switch(optimizer, "train")
    for batch in batches:
        loss, (buffers, _) = task.loss(params, buffers, batch)
        loss.backward()
        for weight in params.values():
            if weight.grad is None:  # the loss does not use it
                weight.grad = torch.zeros_like(weight)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    _switch(optimizer, "eval")
    z = TrainState(trees.detach(params), buffers, _stored(optimizer, params, form, taken + len(batches)))
    total, measured = trees.total(z.params), trees.wide(torch.stack(losses))
    proposal = Proposal(z, {}, {}, [], None, {}, total, torch.zeros_like(total))
    return population.settle(run, proposal, measured, step), Record(measured, None, {})


def _switch(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """To the weights for mode "train" or "eval", where the optimizer has two kinds."""
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


def _stored(optimizer: torch.optim.Optimizer, params: Params, form: _Form, taken: int) -> State:
    """The optimizer as a tree, of which its tensors become part without being copied."""
    device = next(iter(params.values())).device

    def tensor(value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().to(device)
        return torch.tensor(value, dtype=torch.float64, device=device)

    parameters = {}
    for name, entries in form.entries.items():
        kept = optimizer.state[params[name]] if taken else trees.zeros(entries)
        parameters[name] = {key: tensor(kept[key]) for key in entries}
    groups = {key: tensor([group[key] for group in optimizer.param_groups]) for key in form.groups}
    return {"step": torch.tensor(taken, device=device), "groups": groups, "parameters": parameters}


def _restore(optimizer: torch.optim.Optimizer, params: Params, form: _Form, state: State) -> None:
    """Bring a new optimizer into the state that was stored; tensors are copied."""
    for key, values in state["groups"].items():
        for group, value in zip(optimizer.param_groups, values.tolist(), strict=True):
            group[key] = _number(group[key], value)
    for name, entries in form.entries.items() if state["step"] > 0 else ():
        stored = state["parameters"][name]
        optimizer.state[params[name]] = {
            key: stored[key].to(like.device, copy=True)
            if isinstance(like, Tensor)
            else _number(like, stored[key].item())
            for key, like in entries.items()
        }


def _number(like: float, value: float) -> float:
    """The value as what it was: a boolean or integer, where the optimizer has made no other of it."""
    return type(like)(value) if value.is_integer() else value
