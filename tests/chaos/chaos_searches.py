"""Kills of searches, replays, parallel training and kernel builds: the same command goes on to the same numbers.

A trial starts a command in a process of its own, ends it at a random moment (after so many seconds, or so many files),
once or twice, and then lets the same command, with --resume where it has one, come to its end. Right is what an
undisturbed command comes to, but for times, with nothing left over.

    SIGKILL      of the command, of everything that it has started as well, or of one Ray worker
    SIGTERM, SIGHUP, SIGINT     end the command in an orderly way, with one line
"""

import ctypes
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests"), str(ROOT / "tests" / "baselines")]

import parallel_exec
import torch
from outcomes import Fault, Outcome
from short_runs import TINY, config, into, reports, summary
from short_searches import lines, timeless

from baselines import arguments, asha, bayesopt, pbt, random_search
from hyperopt_id import cli, files
from hyperopt_id.kernels import compiler

COUNT = 96
PATIENCE = 240.0  # seconds after which a command hangs
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
LEFT = ("search.lock", "Ours_LR.lock", ".*.tmp", "ray", "saved", "incumbent", "build-*")


class Kind(NamedTuple):
    """A command that works in a folder: `start(folder)` runs it from the beginning or goes on, and returns its exit
    status; `difference(folder, whole)` is what differs from an undisturbed one. `ray`: whether it has Ray workers."""

    start: Callable[[Path], int]
    difference: Callable[[Path, Path], str | None]
    weight: int
    ray: bool = False


def trials(count: int, seed: int, folder: Path, *names: str) -> Iterator[Outcome]:
    """Of all kinds, or of those that are named, in the proportions of their weights."""
    torch.set_num_threads(1)
    order = [name for name in names or KINDS for _ in range(KINDS[name].weight)]
    random.Random(seed).shuffle(order)
    wholes: dict[str, Whole] = {}
    for number in range(count):
        name = order[number % len(order)]
        if name not in wholes:
            wholes[name] = _undisturbed(KINDS[name], folder / f"whole_{name.replace(' ', '_')}")
        yield _trial(name, wholes[name], random.Random(f"{seed}/{number}"), folder / f"t{number}")
        shutil.rmtree(folder / f"t{number}", ignore_errors=True)


class Whole(NamedTuple):
    folder: Path
    seconds: float
    paths: int


def _undisturbed(kind: Kind, folder: Path) -> Whole:
    process, began = Process(kind, folder), time.monotonic()
    process.end()
    assert process.status == 0, process.said()
    return Whole(folder, time.monotonic() - began, process.paths())


def _trial(name: str, whole: Whole, chance: random.Random, folder: Path) -> Outcome:
    kind, events, what = KINDS[name], 0, [name]
    for _ in range(chance.choice((1, 1, 2))):
        how = chance.choices(("kill", "kill all", "kill a worker", "signal"), (5, 2, 2 * kind.ray, 2))[0]
        number = chance.choice(SIGNALS) if how == "signal" else signal.SIGKILL
        after = ("files", chance.randint(1, whole.paths)) if chance.random() < 0.6 else None
        after = after or ("seconds", round(chance.uniform(0, whole.seconds), 3))
        what.append(f"{how} ({number.name}) after {after[1]} {after[0]}")
        process = Process(kind, folder)
        hit = process.disturb(how, number, after)
        events += hit
        if process.fault(in_order=how != "kill" and how != "kill all"):
            return Outcome("; ".join(what), *process.fault(in_order=True), events)  # pyright: ignore[reportArgumentType]
        if how == "signal" and hit and process.status not in (130, 128 + number, -number, 0):
            return Outcome("; ".join(what), "not one line", f"status {process.status}: {process.said()}", events)
        if process.status == 0:
            break
    process = Process(kind, folder)
    process.end()
    if process.fault(in_order=True):
        return Outcome("; ".join(what), *process.fault(in_order=True), events)  # pyright: ignore[reportArgumentType]
    if process.status != 0:
        return Outcome("; ".join(what), "lost", f"status {process.status}: {process.said()}", events)
    if (difference := kind.difference(folder, whole.folder)) is not None:
        return Outcome("; ".join(what), "wrong numbers", difference, events)
    if left := [str(path.relative_to(folder)) for pattern in LEFT for path in folder.rglob(pattern)]:
        return Outcome("; ".join(what), "untidy", ", ".join(left), events)
    return Outcome("; ".join(what), events=events)


class Process:
    """A command of a kind in a folder, in a process group of its own; what it says goes to a file beside the folder."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.log = folder, folder.with_suffix(".log")
        self.log.write_text("")
        self.status: int | None = None
        self.hangs = False
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(kind, folder, self.log)

    def disturb(self, how: str, number: signal.Signals, after: tuple[str, float]) -> int:
        """Send the signal when the moment has come, and wait for the end; how many signals were sent."""
        began, hit = time.monotonic(), 0
        while not self._ended():
            if (self.paths() if after[0] == "files" else time.monotonic() - began) >= after[1]:
                hit = self._send(how, number)
                break
            time.sleep(0.002)
        self.end()
        return hit

    def _send(self, how: str, number: signal.Signals) -> int:
        targets = _descendants(self.pid) if how == "kill all" else []
        if how == "kill a worker":
            workers = [pid for pid in _descendants(self.pid) if _command(pid).startswith("ray::")]
            targets = workers[:1]
        else:
            targets = [self.pid, *targets]
        for pid in targets:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return int(bool(targets))

    def end(self) -> None:
        began = time.monotonic()
        while not self._ended():
            if time.monotonic() - began > PATIENCE:
                self.hangs = True
                self._send("kill all", signal.SIGKILL)
            time.sleep(0.005)

    def _ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def paths(self) -> int:
        with suppress(OSError):  # something is being removed
            return sum(1 for _ in self.folder.rglob("*"))
        return 0

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def fault(self, in_order: bool) -> tuple[Fault, str] | None:
        """What is wrong with how it ended, where nobody has killed it."""
        if self.hangs:
            return "hang", self.said()
        if in_order and "Traceback" in self.said():
            return "traceback", self.said()
        return None


def _child(kind: Kind, folder: Path, log: Path) -> None:
    status = 99
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = kind.start(folder)
    except KeyboardInterrupt:  # before or after the command itself answers it
        status = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


# The commands


def _search(run: Callable[..., Any], options: list[str], folder: Path) -> int:
    directory = folder / "search"
    begun = ["--resume"] if (directory / "config.yaml").is_file() else []
    return arguments.main(run, [*config("digits"), *into(directory), *begun, *options])


def _same_log(folder: Path, whole: Path) -> str | None:
    """Of searches in rounds."""
    one, other = folder / "search", whole / "search"
    if timeless(lines(one)) != timeless(lines(other)):
        return "search.jsonl differs"
    ends = [timeless(json.loads((directory / "summary.json").read_text())) for directory in (one, other)]
    return None if ends[0] == ends[1] else "summary.json differs"


def _same_models(folder: Path, whole: Path) -> str | None:
    """Of trials that come in any order."""
    found = [[_model(line) for line in lines(place / "search")] for place in (folder, whole)]
    if sorted(found[0], key=str) != sorted(found[1], key=str):
        return f"{len(found[0])} models instead of {len(found[1])}, or other ones"
    ends = [json.loads((place / "search" / "summary.json").read_text())["repetitions"] for place in (folder, whole)]
    if [_model(line) for line in ends[0]] != [_model(line) for line in ends[1]]:
        return "the best model differs"
    for run in (whole / "search" / "runs").iterdir():
        if (text := _different_run(folder / "search" / "runs" / run.name, run)) is not None:
            return text
    return None


def _model(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("evaluation", "gradients", "seconds")}


def _whole_population(folder: Path, whole: Path) -> str | None:
    """PBT may take another course: its log and its runs have to agree with each other."""
    found = lines(folder / "search")
    if len({(line["run"], line["explored"], line["step"]) for line in found}) != len(found):
        return "an evaluation is logged twice"
    if [line["evaluation"] for line in found] != list(range(len(found))):
        return "an evaluation is missing"
    logged = {(line["step"], line["loss/validation"]) for line in found}
    for run in (whole / "search" / "runs").iterdir():
        told = [(line["step"], line["loss/validation"]) for line in reports(folder / "search" / "runs" / run.name)]
        if [step for step, _ in told] != [line["step"] for line in reports(run)] or not logged.issuperset(told):
            return f"{run.name} tells of {told}"
    (best,) = json.loads((folder / "search" / "summary.json").read_text())["repetitions"]
    losses = [line["loss/validation"] for line in found if line["loss/validation"] is not None]
    return None if best["loss/validation"] == min(losses) else "the best model is another one"


def _different_run(one: Path, other: Path) -> str | None:
    told = [[{k: v for k, v in line.items() if k != "time"} for line in reports(run)] for run in (one, other)]
    if told[0] != told[1]:
        return f"reports of {one.name} differ"
    return None if timeless(summary(one)) == timeless(summary(other)) else f"summary of {one.name} differs"


def _replay(folder: Path) -> int:
    """Of a search that is made first, once."""
    source = folder.parent / "source"
    if not (source / "search" / "summary.json").is_file():
        source.mkdir(exist_ok=True)
        _search(random_search.run, ["--trials", "2", "-s", *TINY], source)
    again = ["--resume"] if (folder / "replay" / "config.yaml").is_file() else []
    return cli.replay([str(source / "search"), *into(folder / "replay"), *again, "--stretch", "5", *REPLAYED])


def _parallel(folder: Path) -> int:
    given = ["--algorithms", "Ours_LR", "--repetitions", "4", "--chunk", "2", "--workers", "2", "--progress", "none"]
    return parallel_exec.main([*config("digits"), "-l", str(folder), "-g", "group", *given, "-s", *TINY[:3], *MANY])


def _same_chunks(folder: Path, whole: Path) -> str | None:
    for run in (whole / "group").iterdir():
        if run.is_dir() and (text := _different_run(folder / "group" / run.name, run)) is not None:
            return text
    return None


def _build(folder: Path) -> int:
    """A kernel of two functions, compiled into a cache in the folder."""
    source = folder.parent / "tiny.cpp"
    if not source.exists():
        text = "".join(f'extern "C" int f{number}() {{ return {number}; }}\n' for number in range(2000))
        files.replace(source, lambda file: file.write(text.encode()))
    os.environ["HYPEROPT_ID_CACHE"] = str(folder / "cache")
    library = compiler.load(source, compiler.find_compiler("CXX", ("c++", "g++", "clang++")), compiler.CXX_FLAGS)
    return 0 if isinstance(library, ctypes.CDLL) and library.f1999() == 1999 else 1


def _same_library(folder: Path, whole: Path) -> str | None:
    names = [sorted(path.name for path in (place / "cache").glob("*.so")) for place in (folder, whole)]
    return None if names[0] == names[1] else f"{names[0]} instead of {names[1]}"


REPLAYED = ["-s", "report.checkpoint_every=1", "log.progress=none"]
MANY = ["inner.updates=60", "report.every=10"]
ROUNDS = ["-s", *TINY, "inner.updates=20"]
TRIALS = ["--workers", "2", "-s", *TINY, "report.every=2"]
KINDS = {
    "random search": Kind(
        partial(_search, random_search.run, ["--trials", "4", "--repetitions", "2", *ROUNDS]), _same_log, 5
    ),
    "bayesopt": Kind(
        partial(_search, bayesopt.run, ["--evaluations", "4", "--random", "2", "--repetitions", "2", *ROUNDS]),
        _same_log,
        5,
    ),
    "asha": Kind(  # none ends early: whatever their order, all trials are the same
        partial(_search, asha.run, ["--trials", "4", "--grace", "60", *TRIALS, "inner.updates=20"]),
        _same_models,
        2,
        ray=True,
    ),
    "pbt": Kind(
        partial(_search, pbt.run, ["--population", "4", "--interval", "6", *TRIALS, "inner.updates=12"]),
        _whole_population,
        1,
        ray=True,
    ),
    "replay": Kind(_replay, lambda one, other: _different_run(one / "replay", other / "replay"), 5),
    "parallel": Kind(_parallel, _same_chunks, 1, ray=True),
    "kernel build": Kind(_build, _same_library, 4),
}
