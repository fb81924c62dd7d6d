"""One training that a scheduler advances from report to report, leaves, takes up again, clones and perturbs.

Its state is the tree of a checkpoint with its lineage beside it: the config, the reports and the hyperparameter trace
of all that its weights have gone through. So a run directory always tells the history of the weights in it: after
weights have been copied from another training, `config.yaml`, `metrics.jsonl` and `trace/` are those of the donor up to
that step, and to replay the trace is to obtain the weights.
"""

import json
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from baselines.perturbation import Change, perturbed
from hyperopt_id import files, population
from hyperopt_id.analysis.cost import gradients_per_update
from hyperopt_id.analysis.load import load_reports
from hyperopt_id.build.identity import FILE as IDENTITY
from hyperopt_id.build.identity import Identity, identity, read_identity
from hyperopt_id.build.names import build_space, from_config, pick_device, starting_values
from hyperopt_id.build.tasks import build_task
from hyperopt_id.config import config_hash, dump, from_dict, to_dict
from hyperopt_id.config import load as load_config
from hyperopt_id.config_schema import Config, LogConfig
from hyperopt_id.experiment import Progress, stages
from hyperopt_id.experiment_plan import Parts, Plan
from hyperopt_id.files import check_form, open_regular
from hyperopt_id.space import Space
from hyperopt_id.tasks.task import Task
from hyperopt_id.telemetry import OccupiedError, as_json, first_device, measure, read_json
from hyperopt_id.telemetry.directory import claim, describe_environment, write_json, write_text
from hyperopt_id.telemetry.measure import dump as dump_json
from hyperopt_id.telemetry.measure import plain
from hyperopt_id.telemetry.trace import read_trace

Tree = dict[str, Any]
SECONDS_OF_A_WORKER = 30.0  # that it may take a worker to find out that nobody asks for its work any more
TREE = {"config": dict, "reports": [str], "trace": dict}  # form of what is saved


class Workshop(NamedTuple):
    """What all trainings of a search share: `config` is that of a population with a run for each of them."""

    config: Config
    task: Task
    space: Space
    parts: Parts
    plan: Plan
    gradients: float  # of one hyper-update


def open_workshop(config: Config, compiled: bool | None = None) -> Workshop:
    """`compiled` repeats the decision of another workshop."""
    task = build_task(config, pick_device(config.device))
    parts, plan = from_config(run_config(config, 0), compiled=compiled, task=task)
    digests, cost = parts.digests(), gradients_per_update(to_dict(config))
    parts = replace(parts, digests=lambda: digests)  # once, for all trainings
    return Workshop(config, task, build_space(config), parts, replace(plan, checkpoint_every=0), cost)


def run_config(config: Config, member: int) -> Config:
    """Member `member` of a population as a run of its own."""
    start = {name: (values[member],) for name, values in config.population.start.items()}
    members = replace(config.population, runs=1, sample=config.population.samples, start=start)
    return replace(config, seed=config.seed + member, population=members, log=LogConfig(progress="none"))


class Reports:
    """The reports of a run directory, which begin with those in `lines`."""

    def __init__(self, directory: Path, lines: list[str]) -> None:
        self.directory, self.lines = directory, list(lines)
        self._file = _claimed(directory)
        self._file.truncate(0)
        self._file.write("".join(lines).encode())
        self._file.flush()
        self._origin = time.monotonic() - (self.last["time"] if lines else 0.0)

    @property
    def last(self) -> dict[str, Any]:
        return json.loads(self.lines[-1])

    def report(self, update: int, step: int, values: Mapping[str, Any]) -> None:
        record: dict[str, Any] = {"step": step, "update": update, "time": time.monotonic() - self._origin}
        record |= {name: as_json(measure(value, 1), single=True) for name, value in values.items()}
        self.lines.append(dump_json(record) + "\n")
        self._file.write(self.lines[-1].encode())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _claimed(directory: Path) -> IO[bytes]:
    """The open reports, once the worker of a search that was killed, which may live on for a moment, is gone."""
    deadline = time.monotonic() + SECONDS_OF_A_WORKER
    while True:
        try:
            return claim(directory, resuming=True)
        except OccupiedError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.2)


@dataclass
class Training:
    """A training that is going on in `reports.directory`."""

    config: Config  # of the run that its weights began with
    parts: Parts
    plan: Plan
    reports: Reports
    progress: Progress
    stages: Iterator[Progress]
    began: float


def begin(workshop: Workshop, directory: Path, member: int) -> Training:
    """The run of member `member`, from its start."""
    config = run_config(workshop.config, member)
    fresh, _ = from_config(config, compiled=workshop.parts.compiled, task=workshop.task)
    return _open(workshop, directory, config, [], replace(_parts(workshop, config), start=fresh.start), None)


def take_up(workshop: Workshop, directory: Path, tree: Tree, changes: Mapping[str, Change] | None = None) -> Training:
    """Continue from the tree of a checkpoint, of this training or another one; `changes` are made to it first."""
    config = from_dict(tree["config"])
    if changes:
        raw = perturbed(workshop.space, tree["run"]["raw"], changes)
        tree = {**tree, "run": {**tree["run"], "raw": raw}}
    return _open(workshop, directory, config, tree["reports"], _parts(workshop, config), tree)


def _parts(workshop: Workshop, config: Config) -> Parts:
    """The workshop's parts for the run of `config`; batches that were drawn ahead for others are forgotten."""
    feed = population.Feed(workshop.task.batches, workshop.parts.lift)
    return replace(workshop.parts, seeds=[config.seed], batches=feed)


def _open(
    workshop: Workshop, directory: Path, config: Config, lines: list[str], parts: Parts, tree: Tree | None
) -> Training:
    began = time.perf_counter()
    parts.stopwatch.seconds.update(dict.fromkeys(parts.stopwatch.seconds, 0.0))
    reports = Reports(directory, lines)
    _describe(directory, config, identity(config, parts))
    if not (directory / "environment.json").is_file():
        write_json(directory / "environment.json", describe_environment(directory, str(parts.device)))
    remaining = stages(parts, workshop.plan, reports, resume=tree, remember=None, began=began)
    return Training(config, parts, workshop.plan, reports, next(remaining), remaining, began)


def advance(training: Training) -> dict[str, Any]:
    """Train until the next report, if there is one to come; the last report, as in `metrics.jsonl`."""
    (training.reports.directory / "summary.json").unlink(missing_ok=True)  # of what an interrupted search had come to
    training.progress = next(training.stages, training.progress)
    return training.reports.last


def is_diverged(training: Training) -> bool:
    return bool(training.progress.chunks[0].diverged_at >= 0)


def never(training: Training) -> bool:
    """Whether a training is over that goes on though it has diverged: it may be given other weights."""
    return False


def summary(training: Training) -> dict[str, Any]:
    """As in `summary.json`, of the training so far."""
    own = identity(training.config, training.parts)
    return {**plain(training.progress.summary(training.parts, training.began)), "config_hash": own["config"]}


def to_tree(training: Training) -> Tree:
    """The state as a checkpoint holds it, with its lineage."""
    rows: dict[str, torch.Tensor] = {}
    if training.plan.trace_every != 0:
        steps, trace = read_trace(training.reports.directory)
        written = -(-training.progress.update * training.plan.steps_per_update // steps)
        rows = {name: torch.from_numpy(np.array(values[:written])) for name, values in trace.items()}
    return {
        **training.progress.tree(training.parts, training.began),
        "compile": training.parts.compiled,
        "config": to_dict(training.config),
        "reports": training.reports.lines,
        "trace": rows,
    }


def end(directory: Path, step: int) -> None:
    """Make the run that a scheduler has ended after training step `step` a whole run of that many steps. What is
    interrupted is done again: `config.yaml`, which tells, is written last."""
    if step < load_config([directory / "config.yaml"]).inner.total_steps:
        unpack(pack(directory, step, read_json(directory / "summary.json")), directory)


def pack(directory: Path, step: int, summary: Mapping[str, Any]) -> Tree:
    """What a run directory tells of the training up to `step`, where it had this summary, as a whole run of so many
    steps; a ValueError where it does not tell of that step."""
    reports = [line for line in load_reports(directory) if line["step"] <= step]
    if not reports or reports[-1]["step"] != step:
        raise ValueError(f"{directory} has no report of step {step}")
    config = load_config([directory / "config.yaml"])
    inner = config.inner
    config = replace(config, inner=replace(inner, updates=step // inner.steps_per_update))
    known = read_identity(directory)  # None in a search of an earlier version
    digest = config_hash(replace(config, device=first_device(directory)), known and known["digests"])
    steps, trace = read_trace(directory) if config.report.trace_every != 0 else (step, {})
    return {
        "config": to_dict(config),
        "reports": [dump_json(line) + "\n" for line in reports],
        "steps_per_row": min(steps, step),
        "trace": {name: torch.from_numpy(np.array(rows[: -(-step // steps)])) for name, rows in trace.items()},
        "summary": {**summary, "config_hash": digest},
        "identity": known and {**known, "config": digest},
    }


def unpack(tree: Tree, directory: Path) -> None:
    """Write a run that was packed."""
    directory.mkdir(exist_ok=True)
    write_text(directory / "metrics.jsonl", "".join(tree["reports"]))
    for name, rows in tree["trace"].items():
        path = directory / "trace" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, lambda file, rows=rows: np.save(file, rows.numpy()))
    if tree["trace"]:
        write_json(directory / "trace" / "trace.json", {"steps_per_row": tree["steps_per_row"]})
    write_json(directory / "summary.json", tree["summary"])
    _describe(directory, from_dict(tree["config"]), tree.get("identity"))


def _describe(directory: Path, config: Config, own: Identity | None) -> None:
    path, text = directory / "config.yaml", dump(config)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:  # new, or another lineage
        if own is not None:
            write_json(directory / IDENTITY, own)
        write_json(directory / "config.json", {**to_dict(config), "start": starting_values(config)})
        write_text(path, text)


def save(tree: Tree, file: Path) -> None:
    """Write a tree, whole or not at all."""
    files.replace(file, lambda opened: torch.save(tree, opened))


def load(file: Path) -> Tree:
    """The tree that was saved. Raises ValueError if the file is damaged, or holds something else."""
    try:
        with open_regular(file) as opened:
            with zipfile.ZipFile(opened) as archive:  # torch.load itself does not compare checksums
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"checksum of {damaged} is wrong")
            opened.seek(0)
            tree = torch.load(opened, map_location="cpu", weights_only=True)
        check_form(tree, TREE, "")
    except Exception as error:  # damage can surface as almost any of them
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split()) or type(error).__name__})") from error
    return tree


def without_lineage(tree: Tree) -> Tree:
    """What a checkpoint in a run directory holds, where the lineage lies beside it."""
    parts = ("run", "update", "best", "final", "seconds", "compile")
    return {name: tree[name] for name in parts}
