"""A population: R independent runs that differ in their seed and their hyperparameters.

A `Run` is everything that training changes, one pytree with a leading axis R; it is what a checkpoint holds. One
hyper-update is a pure function of it,

    run' = update(run, T training batches, objective batch),

made of T training steps, the engine's hypergradient, and a step of the meta-optimizer on the raw hyperparameters.
`lift` is the one place where R runs become one computation: under "vmap" the parts of Φ are vectorized over chunks
of runs; under "loop" a chunk is a single run without the leading axis.

The policy on non-finite numbers is here and nowhere else. A run whose training loss or parameters become non-finite
is diverged: it keeps the state it had at the start of that hyper-update for good, and the step at which it happened
is noted. A non-finite hypergradient leaves that run's hyperparameters and meta-optimizer untouched for one update,
and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.dynamics import Batch, Dynamics, Metrics, TrainState
from hyperopt_id.hypergrad import Engine, Objective
from hyperopt_id.rules import Derivative, State, UpdateRule
from hyperopt_id.trees import Params

Lift = Literal["vmap", "loop"]
Function = Callable[..., Any]


class Run(NamedTuple):
    """State of R runs (every leaf [R, ...]), or of one run without that axis.

    `meta_hyper` holds the meta-optimizer's own hyperparameters by name; `diverged_at` the training step at which a
    run blew up, -1 while it has not; `skipped` the number of hyper-updates left out for a non-finite hypergradient.
    """

    z: TrainState
    raw: Params
    meta_state: State
    meta_hyper: Params
    diverged_at: Tensor
    skipped: Tensor


class Record(NamedTuple):
    """What one hyper-update measured: training losses [T] or [T, R], the objective, the hypergradient."""

    losses: Tensor
    objective: Tensor | None
    hypergradient: Params


class Proposal(NamedTuple):
    """The outcome of a hyper-update before the policy on non-finite numbers is applied."""

    z: TrainState
    raw: Params
    meta_state: State
    metrics: Sequence[Metrics]
    objective: Tensor | None
    hypergradient: Params
    parameter_sum: Tensor  # finite where the parameters are
    hypergradient_square: Tensor  # squared norm


Update = Callable[[Run, Sequence[Batch], Batch, int], tuple[Run, Record]]


def lift(function: Function, how: Lift) -> Function:
    """The function on single runs, made a function on chunks of runs."""
    if how == "loop":
        return function
    return lambda *arguments: torch.vmap(function, in_dims=tuple(trees.axes(a) for a in arguments))(*arguments)


def lift_rule(rule: UpdateRule, how: Lift) -> UpdateRule:
    derivative = rule.derivative and Derivative(*(lift(part, how) for part in rule.derivative))
    return rule._replace(update=lift(rule.update, how), derivative=derivative)


def make_update(
    dynamics: Dynamics,
    engine: Engine,
    objective: Objective,
    meta: UpdateRule,
    project: Callable[[Params], Params],
    *,
    run_axes: int,
    prepare: Callable[[Function, str], Function] = lambda function, part: function,
) -> Update:
    """One hyper-update from (already lifted) parts; `run_axes` is 1 for chunks and 0 for single runs.

    `prepare(function, part)` may replace a function by one that computes the same: it is handed the pieces that are
    worth compiling or timing, which are the training step ("inner") and ("hypergradient") either everything after the
    plain steps, for traceable engines, or a single pull-back; and "update", all of it up to the policy on non-finite
    numbers, which has no data-dependent control flow.
    """
    plain = dynamics._replace(step=prepare(dynamics.step, "inner"))
    inside = dynamics
    if not engine.traceable:
        pull, pull_raw = (prepare(piece, "hypergradient") for piece in (dynamics.pull, dynamics.pull_raw))
        inside = plain._replace(pull=pull, pull_raw=pull_raw)

    conclude = _conclusion(inside, engine, objective, meta, project, run_axes)
    finish = prepare(conclude, "hypergradient") if engine.traceable else conclude

    def propose(
        z: TrainState, raw: Params, meta_state: State, meta_hyper: Params, batches: Sequence[Batch], target: Batch
    ) -> tuple[Proposal, Tensor]:
        metrics = []
        free = len(batches) - engine.window
        hyper = dynamics.constrain(raw, z.params)
        for batch in batches[:free]:
            z, measured = plain.step(z, hyper, batch)
            metrics.append(measured)
        proposal = finish(z, raw, meta_state, meta_hyper, batches[free:], target)
        losses = torch.stack([measured["loss"] for measured in [*metrics, *proposal.metrics]])
        return proposal, trees.wide(losses)

    whole = prepare(propose, "update")

    @torch.enable_grad()
    def update(run: Run, batches: Sequence[Batch], target: Batch, step: int) -> tuple[Run, Record]:
        proposal, losses = whole(run.z, run.raw, run.meta_state, run.meta_hyper, batches, target)
        record = Record(losses, proposal.objective, proposal.hypergradient)
        return settle(run, proposal, losses, step), record

    return update


def _conclusion(
    dynamics: Dynamics,
    engine: Engine,
    objective: Objective,
    meta: UpdateRule,
    project: Callable[[Params], Params],
    run_axes: int,
) -> Callable[..., Proposal]:
    """Everything after the plain steps: the engine's steps, and the meta-optimizer's one."""

    def conclude(
        z: TrainState, raw: Params, meta_state: State, meta_hyper: Params, batches: Sequence[Batch], target: Batch
    ) -> Proposal:
        z, metrics, value, slopes = engine.call(dynamics, objective, z, raw, batches, target)
        parameter_sum = trees.total(z.params, run_axes)
        square = torch.zeros_like(parameter_sum)
        if tuned := dynamics.tuned(raw):
            hyper = {name: dict.fromkeys(tuned, value) for name, value in meta_hyper.items()}
            moved, meta_state = meta.update(tuned, slopes, meta_state, hyper)
            raw = project({**raw, **moved})
            # Its square has to be finite, too: an infinite second moment would hold the hyperparameters for good.
            square = trees.norm(slopes, run_axes).square()
        return Proposal(z, raw, meta_state, metrics, value, slopes, parameter_sum, square)

    return conclude


def to_plain(run: Run) -> dict[str, Any]:
    """Nested dicts, as a checkpoint holds them; what is `trees.Apart` is {"apart": its members}."""
    tree = {**run._asdict(), "z": run.z._asdict()}
    return trees.map(lambda leaf: leaf, tree, apart=lambda part: {"apart": list(part)})


def from_plain(tree: dict[str, Any]) -> Run:
    z = tree["z"]
    return Run(**{**tree, "z": TrainState(**{**z, "state": _with_parts_apart(z["state"])})})


def _with_parts_apart(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if list(tree) == ["apart"]:
        return trees.Apart(tuple(tree["apart"]))
    return {name: _with_parts_apart(value) for name, value in tree.items()}


def settle(run: Run, proposal: Proposal, losses: Tensor, step: int) -> Run:
    """Apply the policy on non-finite numbers. `step` is the number of training steps before this update."""
    moved = run._replace(z=proposal.z, raw=proposal.raw, meta_state=proposal.meta_state)
    everything = (losses.sum(0) + proposal.parameter_sum + proposal.hypergradient_square).abs()
    if bool(((everything < math.inf) & (run.diverged_at < 0)).all()):  # the usual case, in few operations
        return moved
    finite, usable = torch.isfinite(losses), torch.isfinite(proposal.hypergradient_square)
    fine = finite.all(0) & torch.isfinite(proposal.parameter_sum) & (run.diverged_at < 0)
    kept = run._replace(z=proposal.z, skipped=run.skipped + 1)
    moved = trees.where(usable, moved, kept)
    where = torch.where(finite.all(0), len(losses), finite.logical_not().int().argmax(0)) + step
    gone = run._replace(diverged_at=torch.where(run.diverged_at < 0, where, run.diverged_at))
    return trees.where(fine, moved, gone)


def chunks(runs: int, size: int) -> list[list[int]]:
    """Members of each chunk of at most `size` runs, all of one length so that one compiled program serves them; the
    last is filled up with copies of the last run, which `join` drops. Where runs divide well there are 1, 2, 4, 8, ...
    chunks, so that they are shared out evenly among as many threads."""
    length = -(-runs // (1 << (-(-runs // size) - 1).bit_length()))
    count = -(-runs // length)
    return [[min(c * length + i, runs - 1) for i in range(length)] for c in range(count)]


def split(run: Run, members: Sequence[Sequence[int]], how: Lift) -> list[Run]:
    """R runs -> one `Run` a chunk; single runs without the leading axis under "loop"."""
    if how == "loop":
        return [trees.take(run, chunk[0]) for chunk in members]
    return [trees.take(run, torch.tensor(chunk, device=run.skipped.device)) for chunk in members]


class Feed:
    """Batches of chunks as lists, drawn ahead in blocks: `feed(split, seeds, start, steps)` is batches
    start..start+steps-1 of the runs with these seeds, without the run axis under "loop".

    A batch is a function of its position, so the blocks that are kept are a cache and no state. As long as requests go
    forward, each position is drawn once: a task whose batches come from a stream loses nothing.
    """

    BLOCK = 64

    def __init__(self, draw: Callable[[str, Sequence[int], int, int], Batch], how: Lift) -> None:
        self._draw, self._how = draw, how
        self._blocks: dict[tuple[Any, ...], tuple[int, list[Batch]]] = {}

    def __call__(self, split: str, seeds: Sequence[int], start: int, steps: int) -> list[Batch]:
        key = (split, *seeds)
        first, block = self._blocks.get(key, (start, []))
        block = block[start - first :] if first <= start <= first + len(block) else []
        if len(block) < steps:
            drawn = self._draw(split, seeds, start + len(block), max(steps - len(block), self.BLOCK))
            block = block + trees.unstack(trees.take(drawn, (slice(None), 0)) if self._how == "loop" else drawn)
        self._blocks[key] = start, block
        return block[:steps]


def join(parts: Sequence[trees.Tree], runs: int, how: Lift) -> trees.Tree:
    """The inverse of `split`, for runs or anything measured of them."""
    whole = trees.stack(parts) if how == "loop" else trees.concatenate(parts)
    return trees.take(whole, slice(0, runs))
