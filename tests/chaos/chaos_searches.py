"""Kills of searches, replays, parallel training and kernel builds: the same command goes on to the same numbers.

A trial starts a command in a process of its own, ends it at a random moment (after so many seconds, or so many files),
once or twice, and then lets the same command, with --resume where it has one, come to its end. Right is what an
undisturbed command comes to, but for times, with nothing left over, and no run that had been finished trained again.

    SIGKILL      of the command, of everything that it has started as well, or of one Ray worker
    SIGTERM, SIGHUP, SIGINT     end the command in an orderly way, with one line
"""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from outcomes import Outcome
from processes import Process
from search_kinds import KINDS, Kind

COUNT = 110
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
LEFT = ("search.lock", "Ours_LR.lock", "compare.lock", "run_all.lock", ".*.tmp", "ray", "saved", "incumbent", "build-*")


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


def finished(folder: Path) -> dict[str, bytes]:
    """The summaries of runs, which tell how long they took."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("runs/*/summary.json")}


class Whole(NamedTuple):
    folder: Path
    seconds: float
    paths: int


def _undisturbed(kind: Kind, folder: Path) -> Whole:
    process, began = Process(kind.start, folder), time.monotonic()
    process.end()
    assert process.status == 0, process.said()
    return Whole(folder, time.monotonic() - began, process.paths())


def _trial(name: str, whole: Whole, chance: random.Random, folder: Path) -> Outcome:
    kind, events, what, done = KINDS[name], 0, [name], {}
    for _ in range(chance.choice((1, 1, 2))):
        how = chance.choices(("kill", "kill all", "kill a worker", "signal"), (5, 2, 2 * kind.ray, 2))[0]
        number = chance.choice(SIGNALS) if how == "signal" else signal.SIGKILL
        after = ("files", chance.randint(1, whole.paths)) if chance.random() < 0.6 else None
        after = after or ("seconds", round(chance.uniform(0, whole.seconds), 3))
        what.append(f"{how} ({number.name}) after {after[1]} {after[0]}")
        process = Process(kind.start, folder)
        hit = process.disturb(how, number, after)
        events += hit
        if not kind.alone:
            process.wait_for_others()
        done = finished(folder)
        if process.fault(in_order=how != "kill" and how != "kill all"):
            return Outcome("; ".join(what), *process.fault(in_order=True), events)  # pyright: ignore[reportArgumentType]
        if how == "signal" and hit and process.status not in (130, 128 + number, -number, 0):
            return Outcome("; ".join(what), "not one line", f"status {process.status}: {process.said()}", events)
        if process.status == 0:
            break
    process = Process(kind.start, folder)
    process.end()
    if process.fault(in_order=True):
        return Outcome("; ".join(what), *process.fault(in_order=True), events)  # pyright: ignore[reportArgumentType]
    if process.status != 0:
        return Outcome("; ".join(what), "lost", f"status {process.status}: {process.said()}", events)
    if (difference := kind.difference(folder, whole.folder)) is not None:
        return Outcome("; ".join(what), "wrong numbers", difference, events)
    if not kind.ray and (again := [name for name, content in done.items() if finished(folder).get(name) != content]):
        return Outcome("; ".join(what), "lost", f"{again} was finished and is done again", events)
    if left := [str(path.relative_to(folder)) for pattern in LEFT for path in folder.rglob(pattern)]:
        return Outcome("; ".join(what), "untidy", ", ".join(left), events)
    return Outcome("; ".join(what), events=events)
