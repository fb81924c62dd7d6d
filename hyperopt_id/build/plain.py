"""From a config to plain training: a `torch.optim` optimizer on its task, in updates as long as its reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hyperopt_id.build.assemble import autocast
from hyperopt_id.build.identity import with_files
from hyperopt_id.build.names import build_plan, pick_device, run_seeds
from hyperopt_id.build.tasks import build_task
from hyperopt_id.config_schema import Config
from hyperopt_id.experiment import Parts, Plan
from hyperopt_id.optim.plain import Make, plain_parts
from hyperopt_id.rules import State
from hyperopt_id.tasks.task import Task


def in_whole_reports(config: Config, stretch: float = 1.0) -> Config:
    """The same training, or one `stretch` times as long, in hyper-updates that reach from report to report: where
    nothing is tuned, the fewer the faster. A stretched run is a whole number of them, the nearest."""
    inner, report, apart = config.inner, config.report, _steps_between_reports(config)
    total = inner.total_steps
    whole = max(n for n in range(1, min(apart, total) + 1) if total % n == 0)
    steps = max(1, round(stretch * whole))
    updates = max(1, round(stretch * total / steps))
    saves = report.checkpoint_every and max(1, round(report.checkpoint_every * inner.steps_per_update / whole))
    return replace(
        config,
        inner=replace(inner, steps_per_update=steps, steps=None, updates=updates, compile="off"),
        report=replace(report, every=max(1, round(apart / whole)), checkpoint_every=saves),
    )


def _steps_between_reports(config: Config) -> int:
    return build_plan(config).report_every * config.inner.steps_per_update


def plain_from_config(
    config: Config,
    make: Callable[[Task], Make],
    hyper: Callable[[State], dict[str, Any]],
    *,
    trace_every: int,
    first_step: int = 0,
) -> tuple[Parts, Plan]:
    """Parts and plan of plain training by the optimizer that `make` gives for the task (see `optim.plain`), on batches
    number `first_step` and after."""
    task = build_task(config, pick_device(config.device))
    if config.dtype == "bfloat16":
        task = replace(task, loss=autocast(task.loss))
    parts = plain_parts(task, make(task), run_seeds(config), hyper, config.inner.clip_norm)
    draw = parts.batches
    parts = replace(parts, batches=lambda split, seeds, start, steps: draw(split, seeds, start + first_step, steps))
    return with_files(parts, config), replace(build_plan(config), trace_every=trace_every)
