"""Runs of a few milliseconds in children of this process, and whether two of them left the same."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from outcomes import Fault

from hyperopt_id import checkpoint, cli
from hyperopt_id.telemetry import directory as run_directory

SECONDS_TO_HANG = 120.0
ROOT = Path(__file__).parents[2]
COMMON = [
    "inner={steps_per_update: 2, updates: 5, compile: off}",
    "report={every: 1, checkpoint_every: 1, keep: 2}",
    "log.progress=none",
    "threads=1",
    "space={lr: {init: 0.1, tune: [global]}, weight_decay: {init: 0.001}, momentum: {init: 0.5, tune: [tensor]}}",
]
TOY, RIDGE = ["task.name=toy_quadratic"], ["task.name=toy_ridge", "task.batch_size=all"]
SETTINGS: dict[str, list[str]] = {
    "one run": [*TOY, "hypergradient={engine: neumann, terms: 2}"],
    "a population": [*TOY, "hypergradient={engine: one_step}", "population={runs: 3, lift: loop}"],
    "a vectorized population": [*TOY, "hypergradient={engine: neumann, terms: 2}", "population={runs: 3, lift: vmap}"],
    "ridge, unrolled": [*RIDGE, "hypergradient={engine: unroll, window: 2}"],
    "rare checkpoints": [*TOY, "hypergradient={engine: one_step}", "report={every: 2, checkpoint_every: 3, keep: 1}"],
    "reset": [*TOY, "inner.reset=true", "hypergradient={engine: unroll}"],
    "per element": [*TOY, "hypergradient={engine: one_step}", "space.momentum.tune=[element]"],
    "adam": [*RIDGE, "hypergradient={engine: one_step}", "inner.rule=adam", "space.momentum=null"],
    "no tuning": [*TOY, "hypergradient.engine=none", "space.lr.tune=[]", "space.momentum.tune=[]"],
    "a coarse trace": [*TOY, "hypergradient={engine: one_step}", "report.trace_every=2"],
}


class Ended(NamedTuple):
    status: int  # negative: a signal; 1000: it did not end
    said: str


def arguments(directory: Path, setting: str) -> list[str]:
    place = ["-l", str(directory.parent), "-g", ".", "-n", directory.name]
    return ["-c", str(ROOT / "configs" / "toy_quadratic.yaml"), *place, "-s", *COMMON, *SETTINGS[setting]]


def child(
    command: list[str],
    prepare: Callable[[], object] = lambda: None,
    conclude: Callable[[], object] = lambda: None,
    kill_after: float | None = None,
) -> Ended:
    """`train` with these arguments in a forked process, with `prepare()` before and `conclude()` behind it."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            for descriptor in (1, 2):
                os.dup2(writing, descriptor)
            sys.stdout = sys.stderr = os.fdopen(2, "w", 1, closefd=False)  # not pytest's
            os.close(reading)
            torch.set_num_threads(1)
            run_directory._git_commit = lambda: None  # a process of its own, which takes longer than the training
            run_directory._versions = dict
            prepare()
            status = cli.train(command)
            conclude()
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 99
        os._exit(status)
    os.close(writing)
    return Ended(_wait(process, kill_after), _read(reading))


def _wait(process: int, kill_after: float | None) -> int:
    began, killed = time.monotonic(), kill_after is None
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - began
        if (kill_after is not None and not killed and passed > kill_after) or passed > SECONDS_TO_HANG:
            os.kill(process, signal.SIGKILL)
            killed = True
            if passed > SECONDS_TO_HANG:
                os.waitpid(process, 0)
                return 1000
        time.sleep(0.001)


def _read(descriptor: int) -> str:
    with open(descriptor, "rb") as pipe:
        return pipe.read().decode(errors="replace")


def finish(directory: Path, setting: str) -> Ended:
    """What a user does after an interruption: resume, or start again where there was no run yet."""
    if (directory / "config.yaml").is_file():
        return child(["--resume", str(directory), "--progress", "none"])
    return child(arguments(directory, setting))


def difference(whole: Path, cut: Path) -> tuple[Fault | None, str]:
    """What the finished run in `cut` has in another way than the one in `whole` that nothing interrupted."""
    fault, detail = other_numbers(whole, cut)
    if fault is not None:
        return fault, detail
    if repr(_trace(whole)) != repr(_trace(cut)):
        return "wrong numbers", "trace"
    left, right = (sorted(path.relative_to(place).as_posix() for path in _files(place)) for place in (whole, cut))
    if left != right:
        return "untidy", f"{set(left) ^ set(right)}"
    paths = (place / "checkpoints" / "latest" for place in (whole, cut))
    latest = {path.read_text() if path.is_file() else None for path in paths}
    return (None, "") if len(latest) == 1 else ("untidy", "checkpoints/latest")


def other_numbers(whole: Path, cut: Path) -> tuple[Fault | None, str]:
    """The same without the trace, and whatever files there are."""
    if not (cut / "summary.json").is_file():
        return "lost", "no summary.json"
    for what, read in (("summary", _summary), ("reports", _reports), ("state", _state)):
        if repr(read(whole)) != repr(read(cut)):
            return "wrong numbers", what
    return None, ""


def _files(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if not path.name.startswith("events.out")]


def _summary(place: Path) -> Any:
    found = json.loads((place / "summary.json").read_text())
    return {key: value for key, value in found.items() if key != "seconds"}


def _reports(place: Path) -> Any:
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def _state(place: Path) -> Any:
    tree, step = checkpoint.load(place / "checkpoints")
    return step, _plain({key: value for key, value in tree.items() if key != "seconds"})


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return (tree.dtype, tree.shape, tree.numpy().tobytes()) if isinstance(tree, torch.Tensor) else tree


def _trace(place: Path) -> Any:
    files = sorted((place / "trace").rglob("*.npy"))
    about = (place / "trace" / "trace.json").read_text()
    return about, [(path.name, np.load(path).shape, np.load(path).tobytes()) for path in files]
