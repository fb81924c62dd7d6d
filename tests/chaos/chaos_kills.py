"""SIGKILL of `train`, before and inside every operation on files and at random moments; then it is resumed.

A trial kills a run one to three times, and compares what the resumed run leaves with one that nothing interrupted: all
numbers of all files, to the last bit, and no file too many.
"""

import random
import shutil
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from operations import Operations
from outcomes import Outcome
from tiny_runs import SETTINGS, arguments, child, difference, finish

from hyperopt_id import cli

COUNT = 500


class Wholes:
    """The runs that nothing interrupts, with the number of operations that each takes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        cli.train(arguments(folder / "first", "one run"))  # children are forked from a process that has trained before
        self.get = cache(self._make)

    def _make(self, setting: str) -> tuple[Path, int, float]:
        directory, counted = self._folder / setting, self._folder / f"{setting}.count"

        operations = Operations(directory, fatal=0, die=lambda: None)
        began = time.monotonic()
        command = arguments(directory, setting)
        ended = child(command, operations.install, conclude=lambda: counted.write_text(str(operations.count)))
        assert ended.status == 0, ended.said
        return directory, int(counted.read_text()), time.monotonic() - began


def trials(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    wholes = Wholes(folder)
    for number in range(count):
        yield trial(number, seed, folder, wholes)


def trial(number: int, seed: int, folder: Path, wholes: Wholes) -> Outcome:
    """Even trials go through all operations one after another, odd ones kill at random moments."""
    chance = random.Random(f"{seed} {number}")
    setting = list(SETTINGS)[number % len(SETTINGS)] if number % 2 else chance.choice(list(SETTINGS))
    whole, operations, seconds = wholes.get(setting)
    cut = folder / f"cut_{number}"
    what, kills = [setting], 0
    command = arguments(cut, setting)
    for attempt in range(1 + chance.randrange(3)):
        if attempt and (cut / "config.yaml").is_file():
            command = ["--resume", str(cut)]
        if number % 2 == 0:
            fatal = number // 2 * 7 % operations + 1 if attempt == 0 else chance.randrange(1, operations)
            what.append(f"operation {fatal}")
            ended = child(command, Operations(cut, fatal, lambda: None).install)
        else:
            after = chance.uniform(0.0, seconds)
            what.append(f"after {after:.3f} s")
            ended = child(command, kill_after=after)
        kills += ended.status == -9
        if ended.status not in (0, -9) or "Traceback" in ended.said:
            return Outcome(", ".join(what), "traceback" if "Traceback" in ended.said else "lost", ended.said, kills)
    return concluded(what, kills, whole, cut, setting)


def concluded(what: list[str], events: int, whole: Path, cut: Path, setting: str) -> Outcome:
    """Finish the run and compare."""
    ended = finish(cut, setting)
    label = ", ".join(what)
    if ended.status == 1000:
        return Outcome(label, "hang", ended.said, events)
    if "Traceback" in ended.said:
        return Outcome(label, "traceback", ended.said, events)
    if ended.status != 0:
        return Outcome(label, "lost", ended.said, events)
    fault, detail = difference(whole, cut)
    if fault is None:
        shutil.rmtree(cut)
    return Outcome(label, fault, f"{detail}: {ended.said}" if fault else "", events)
