"""SIGKILL of `train`, before and inside every operation on files and at random moments; then it is resumed.

A trial kills a run one to three times, and compares what the resumed run leaves with one that nothing interrupted: all
numbers of all files, to the last bit, and no file too many.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from interrupting import Attempt, Wholes, interrupted
from operations import Operations
from outcomes import Outcome
from tiny_runs import SETTINGS, child

COUNT = 500


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

    def attempts() -> Iterator[Attempt]:
        for attempt in range(1 + chance.randrange(3)):
            if number % 2:
                yield _at_a_moment(chance.uniform(0.0, seconds))
            else:
                first = number // 2 * 7 % operations + 1
                yield _at_an_operation(cut, chance.randrange(1, operations) if attempt else first)

    return interrupted([setting], whole, cut, setting, attempts())


def _at_an_operation(cut: Path, fatal: int) -> Attempt:
    return lambda command: (f"operation {fatal}", child(command, Operations(cut, fatal, lambda: None).install), "")


def _at_a_moment(after: float) -> Attempt:
    return lambda command: (f"after {after:.3f} s", child(command, kill_after=after), "")
