"""A run that is interrupted, once or several times, and then finished: what came of it."""

import shutil
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from operations import Operations
from outcomes import Outcome
from tiny_runs import Ended, arguments, child, difference, finish

from hyperopt_id import cli

Attempt = Callable[[list[str]], tuple[str, Ended, str]]  # arguments of `train` -> how it is interrupted, its end, what
# has been lost by then


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


def interrupted(what: list[str], whole: Path, cut: Path, setting: str, attempts: Iterable[Attempt]) -> Outcome:
    """Start the run in `cut`, go on after each interruption, finish, and compare with `whole`."""
    command, events = arguments(cut, setting), 0
    for attempt in attempts:
        if (cut / "config.yaml").is_file():
            command = ["--resume", str(cut)]
        how, ended, lost = attempt(command)
        what.append(how)
        events += ended.status == -9
        if ended.status not in (0, -9) or "Traceback" in ended.said:
            fault = "traceback" if "Traceback" in ended.said else "lost"
            return Outcome(", ".join(what), fault, ended.said, events)
        if lost:
            return Outcome(", ".join(what), "lost", lost, events)
    return concluded(what, events, whole, cut, setting)


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
