"""The loop: hyper-updates, reports, checkpoints. No building and no mathematics happen here.

    state -> update -> state -> ... ,  with a report every `report_every` hyper-updates and a checkpoint now and then

A population of R runs goes through it in chunks, all in lockstep. Data order is a function of the run's seed and the
position, so the state of a run and the number of hyper-updates are all that a resumed run needs.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from hyperopt_id import checkpoint, population, runtime, trees
from hyperopt_id.arguments import entrance
from hyperopt_id.experiment_plan import Parts, Plan
from hyperopt_id.experiment_skips import Skips, left_out, note_skips
from hyperopt_id.experiment_state import state_check
from hyperopt_id.interruption import Interrupted, deferred
from hyperopt_id.population import Record, Run
from hyperopt_id.telemetry import Telemetry, as_json, measure, synchronize
from hyperopt_id.telemetry.trace import Trace, open_trace


class Log(Protocol):
    """Where the loop writes: a `Telemetry`, or what has its directory and takes its reports."""

    directory: Path

    def report(self, update: int, step: int, values: Mapping[str, Any]) -> Any: ...


@entrance
def run(
    parts: Parts,
    plan: Plan,
    telemetry: Log | None = None,
    *,
    resume: Mapping[str, Any] | None = None,
    remember: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    began: float | None = None,
) -> dict[str, Any]:
    """Train all R members to the end and return the summary, as `docs/run_directory.md` has it.

    `resume` is the tree of a checkpoint to continue from; `remember` is stored in checkpoints beside the state, and
    `identity` beside all of it. `began` is the `time.perf_counter()` from which seconds are counted (default: now).
    """
    began = time.perf_counter() if began is None else began
    *_, progress = stages(parts, plan, telemetry, resume=resume, remember=remember, identity=identity, began=began)
    return progress.summary(parts, began)


def stages(
    parts: Parts,
    plan: Plan,
    telemetry: Log | None,
    *,
    resume: Mapping[str, Any] | None,
    remember: Mapping[str, Any] | None,
    began: float,
    identity: Mapping[str, Any] | None = None,
) -> Iterator["Progress"]:
    """The work of `run` in pieces: its progress at the start, and again after every report."""
    _check_splits(parts, plan)
    progress = Progress.load(parts, plan, resume) if resume is not None else Progress.begin(parts)
    starting = Progress.begin(parts).chunks if plan.reset else None
    if isinstance(telemetry, Telemetry):
        for message, said_at in parts.notes:
            telemetry.note(message, said_at)
    trace = _begin_trace(parts, plan, progress, telemetry, (resume or {}).get("trace"))
    on_threads = parts.compiled and parts.device.type == "cpu"
    if parts.compilation is not None and progress.update < plan.updates:
        first = partial(hyper_update, parts, plan, progress.update, progress.chunks[0], parts.members[0])
        parts.compilation.prepare(first)
    yield progress
    share = runtime.shared_out(len(parts.members) if on_threads else 1)
    with share as each, closing(trace or ExitStack()), deferred() as arrived:
        for update in range(progress.update, plan.updates):
            _write_trace(parts, progress, trace)
            advanced = list(each(partial(hyper_update, parts, plan, update), progress.chunks, parts.members))
            counts = left_out(progress.chunks, [chunk for chunk, _ in advanced], parts.members)
            if counts or progress.skips:
                progress.skips = note_skips(progress.skips, counts, update)
            progress.chunks, records = [chunk for chunk, _ in advanced], [record for _, record in advanced]
            progress.update = update + 1
            last = progress.update == plan.updates
            reported = last or progress.update % plan.report_every == 0
            if reported:
                _report(parts, plan, progress, records, telemetry)
            if starting is not None and not last:
                progress.chunks = [c._replace(z=s.z) for c, s in zip(progress.chunks, starting, strict=True)]
            ends = 0 if last else arrived()
            due = plan.checkpoint_every and (last or ends or progress.update % plan.checkpoint_every == 0)
            if telemetry is not None and due:
                with parts.stopwatch.measure("logging"):
                    tree = {**progress.tree(parts, began), **(remember or {})}
                    reports = telemetry.digest if isinstance(telemetry, Telemetry) else None
                    synchronize(telemetry.directory)
                    place = telemetry.directory / "checkpoints"
                    traced = None if trace is None else trace.written
                    checkpoint.save(place, tree, progress.update, plan.keep, identity, reports, traced)
            if ends:
                raise Interrupted(ends, f" after hyper-update {progress.update}")
            if reported:
                yield progress
        if trace is not None:
            trace.finish()


def _check_splits(parts: Parts, plan: Plan) -> None:
    """Raise a ValueError where reports ask for a split without rows, before anything is trained."""
    there = [split for split, rows in parts.sizes.items() if rows]
    kept = tuple(split for split in plan.report_splits if split in there)
    if there and len(kept) < len(plan.report_splits):
        missing = ", ".join(split for split in plan.report_splits if split not in there)
        raise ValueError(
            f"report_splits asks for {missing}, but the data have rows only in {', '.join(there)}; "
            f"take Plan(report_splits={kept}), or give {missing} rows"
        )


def hyper_update(parts: Parts, plan: Plan, update: int, chunk: Run, members: Sequence[int]) -> tuple[Run, Record]:
    """Hyper-update number `update` of one chunk: its batches, then `parts.update`. Pure."""
    steps = plan.steps_per_update
    if parts.window > steps:
        raise ValueError(
            f"the engine's window of {parts.window} steps must fit into steps_per_update, which is {steps}"
        )
    seeds = [parts.seeds[member] for member in members]
    batches = parts.batches(plan.train_split, seeds, update * steps, steps)
    if plan.objective == "training":
        targets = parts.batches(plan.train_split, seeds, (update + 1) * steps, 1)
    else:
        targets = parts.batches("validation", seeds, update, 1)
    return parts.update(chunk, batches, targets[0], update * steps)


@dataclass
class Progress:
    """The state of all runs and what the summary needs to know of their past."""

    chunks: list[Run]
    update: int
    best: dict[str, Tensor]  # values [R] of the report with the lowest validation loss
    final: dict[str, Tensor]  # values [R] of the last report
    seconds: dict[str, float]
    skips: Skips = field(default_factory=dict)

    @staticmethod
    def begin(parts: Parts) -> "Progress":
        chunks = population.split(parts.start(), parts.members, parts.lift)
        return Progress(chunks, 0, {}, {}, {})

    @staticmethod
    def load(parts: Parts, plan: Plan, tree: Mapping[str, Any]) -> "Progress":
        """The progress that a checkpoint's tree holds. Raises ValueError if it is not of this run."""
        check, _ = state_check(parts, plan)
        tree = check(tree)
        whole, best, final = (
            trees.map(lambda leaf: leaf.to(parts.device), part)
            for part in (population.from_plain(tree["run"]), tree["best"], tree["final"])
        )
        chunks = population.split(whole, parts.members, parts.lift)
        return Progress(chunks, tree["update"], best, final, tree["seconds"], tree.get("skips", {}))

    def tree(self, parts: Parts, began: float) -> dict[str, Any]:
        whole = population.join(self.chunks, len(parts.seeds), parts.lift)
        return {
            "run": population.to_plain(whole),
            "update": self.update,
            "best": self.best,
            "final": self.final,
            "seconds": self.spent(parts, began),
            **({"skips": self.skips} if self.skips else {}),
        }

    def spent(self, parts: Parts, began: float) -> dict[str, float]:
        """Seconds by part, those before an interruption included."""
        now = {"total": time.perf_counter() - began, **parts.stopwatch.seconds}
        return {name: seconds + self.seconds.get(name, 0.0) for name, seconds in now.items()}

    def hyper(self, parts: Parts) -> dict[str, Any]:
        """Natural values of all runs, [R] or {parameter: [R, ...]}."""
        return population.join([parts.hyper(chunk) for chunk in self.chunks], len(parts.seeds), parts.lift)

    def summary(self, parts: Parts, began: float) -> dict[str, Any]:
        runs = len(parts.seeds)
        whole = population.join(self.chunks, runs, parts.lift)
        lost = whole.diverged_at >= 0
        hyper = {name: _failed(value, lost) for name, value in self.hyper(parts).items()}
        return {
            "final": self.final,
            "best_validation": self.best,
            "diverged": lost,
            "diverged_at": whole.diverged_at,
            "skipped_updates": whole.skipped,
            "hyper": {name: as_json(measure(value, runs), single=False) for name, value in hyper.items()},
            "seconds": self.spent(parts, began),
        }


def _begin_trace(
    parts: Parts, plan: Plan, progress: Progress, telemetry: Log | None, rows_before: Mapping[str, Tensor] | None
) -> Trace | None:
    if telemetry is None:
        return None
    hyper = progress.hyper(parts)
    length = plan.updates, plan.steps_per_update, plan.trace_every
    known = checkpoint.read_trace_state(telemetry.directory / "checkpoints", progress.update)
    before = {"update": progress.update, "rows_before": rows_before, "written": known}
    return open_trace(telemetry.directory, hyper, *length, **before)


def _write_trace(parts: Parts, progress: Progress, trace: Trace | None) -> None:
    if trace is not None and trace.due(progress.update):
        with parts.stopwatch.measure("logging"):
            trace.write(progress.update, progress.hyper(parts))


def _report(parts: Parts, plan: Plan, progress: Progress, records: list[Record], telemetry: Log | None) -> None:
    """Evaluate, remember the best, write."""
    with parts.stopwatch.measure("evaluation"):
        measured = [_measure(parts, plan, c, r) for c, r in zip(progress.chunks, records, strict=True)]
        if progress.update == plan.updates:
            progress.chunks = [_ended(plan, c, m) for c, m in zip(progress.chunks, measured, strict=True)]
        values = population.join(measured, len(parts.seeds), parts.lift)
        lost = population.join([c.diverged_at for c in progress.chunks], len(parts.seeds), parts.lift) >= 0
        values = {name: _failed(value, lost) for name, value in values.items()}
        _remember_best(progress, values)
        progress.final = {
            name: v for name, v in values.items() if isinstance(v, Tensor) and not name.startswith("hyper")
        }
    if telemetry is not None:
        with parts.stopwatch.measure("logging"):
            telemetry.report(progress.update, progress.update * plan.steps_per_update, values)


def _measure(parts: Parts, plan: Plan, chunk: Run, record: Record) -> dict[str, Any]:
    values: dict[str, Any] = {"loss/train": record.losses.mean(0)}
    for split in plan.report_splits:
        metrics = parts.evaluate(chunk.z.params, chunk.z.buffers, split)
        values |= {f"{name}/{split}": value for name, value in metrics.items()}
    if record.objective is not None:
        values["objective"] = record.objective
    values |= {f"hyper/{name}": value for name, value in parts.hyper(chunk).items()}
    return values | {f"hypergradient/{n}": v for n, v in parts.hypergradient(record.hypergradient).items()}


def _ended(plan: Plan, chunk: Run, values: Mapping[str, Any]) -> Run:
    """The chunk after its last report. No further step can show that the last one was too large, so the loss does: a
    run whose validation loss (without one: any loss of a split that is reported) is not finite has diverged."""
    splits = ["validation"] if "loss/validation" in values else plan.report_splits
    losses = [values[f"loss/{split}"] for split in splits if f"loss/{split}" in values]
    if not losses:
        return chunk
    blown_up = torch.stack([loss.isfinite() for loss in losses]).all(0).logical_not() & (chunk.diverged_at < 0)
    steps = plan.updates * plan.steps_per_update
    return chunk._replace(diverged_at=torch.where(blown_up, steps, chunk.diverged_at))


def _failed(value: Any, lost_R: Tensor) -> Any:
    """NaN for members that have diverged: whatever they would show, they count as failed."""
    return trees.where(lost_R, trees.map(lambda leaf: torch.full_like(leaf, math.nan), value), value)


def _remember_best(progress: Progress, values: dict[str, Any]) -> None:
    if "loss/validation" not in values:
        return
    update = torch.full_like(trees.wide(values["loss/validation"]), progress.update)
    now = {"update": update, **{n: v for n, v in values.items() if isinstance(v, Tensor) and v.shape == update.shape}}
    if not progress.best:
        progress.best = now
    before = progress.best["loss/validation"]
    better = (now["loss/validation"] < before) | before.isnan()
    progress.best = trees.where(better, now, progress.best)
