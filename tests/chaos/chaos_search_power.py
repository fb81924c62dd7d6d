"""Power losses of a machine that runs a search, a replay or a comparison, at any operation on files.

Of what was not synchronized, the disk has kept anything (see `disk`). The same command goes on to what an undisturbed
one comes to. Ray's own files, and the runs that its workers train, are not followed.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from disk import Disk
from operations import Operations
from outcomes import Outcome
from processes import Process
from search_kinds import KINDS

COUNT = 60
NAMES = ("random search", "bayesopt", "replay", "compare")


def trials(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    torch.set_num_threads(1)
    wholes: dict[str, tuple[Path, int]] = {}
    for number in range(count):
        name = NAMES[number % len(NAMES)]
        if name not in wholes:
            wholes[name] = _undisturbed(name, folder)
        yield trial(name, number, seed, folder, wholes[name])


def _undisturbed(name: str, folder: Path) -> tuple[Path, int]:
    """The folder of one, and how many operations it takes."""
    whole, counted = folder / f"whole_{name.replace(' ', '_')}", folder / "count"

    def start(place: Path) -> int:
        operations = Operations(place, fatal=0, die=lambda: None)
        operations.install()
        status = KINDS[name].start(place)
        counted.write_text(str(operations.count))
        return status

    process = Process(start, whole)
    process.end()
    assert process.status == 0, process.said()
    return whole, int(counted.read_text())


def trial(name: str, number: int, seed: int, folder: Path, known: tuple[Path, int]) -> Outcome:
    chance = random.Random(f"search power {seed} {number}")
    place, (whole, operations) = folder / f"disk_{number}", known
    what, losses = [name], 0
    for _ in range(1 + chance.randrange(2)):
        fatal = chance.randrange(1, operations)
        what.append(f"operation {fatal}")

        def powered(place: Path, fatal: int = fatal, lot: float = chance.random()) -> int:
            disk = Disk(place)
            disk.install()
            Operations(place, fatal, lambda: disk.lose(random.Random(lot))).install()
            return KINDS[name].start(place)

        process = Process(powered, place)
        process.end()
        losses += process.status == -9
        if process.status not in (0, -9) or process.fault(in_order=True):
            break
    else:
        process = Process(KINDS[name].start, place)
        process.end()
    label = ", ".join(what)
    if (fault := process.fault(in_order=True)) is not None:
        return Outcome(label, *fault, losses)
    if process.status != 0:
        return Outcome(label, "lost", f"status {process.status}: {process.said()}", losses)
    if (difference := KINDS[name].difference(place, whole)) is not None:
        return Outcome(label, "wrong numbers", f"{difference}: {process.said()}", losses)
    shutil.rmtree(place)
    return Outcome(label, events=losses)
