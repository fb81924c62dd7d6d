"""Power losses of a machine that runs `train`, at any operation on files; then the run is resumed.

Of what was not synchronized, the disk has kept anything (see `disk`). What is resumed must have the numbers of a run
that nothing interrupted, and go on from no earlier checkpoint than the last one that had been saved.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from disk import Disk
from interrupting import Wholes, interrupted
from operations import Operations
from outcomes import Outcome
from tiny_runs import SETTINGS, Ended, child

from hyperopt_id import checkpoint

COUNT = 300


def trials(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    wholes = Wholes(folder)
    for number in range(count):
        yield trial(number, seed, folder, wholes)


def trial(number: int, seed: int, folder: Path, wholes: Wholes) -> Outcome:
    chance = random.Random(f"power {seed} {number}")
    setting = list(SETTINGS)[number % len(SETTINGS)]
    whole, operations, _ = wholes.get(setting)
    (place := folder / f"disk_{number}").mkdir()
    cut, saved = place / "run", folder / f"saved_{number}"

    def attempt(command: list[str]) -> tuple[str, Ended, str]:
        fatal = chance.randrange(1, operations)
        saved.write_text("-1")
        ended = child(command, lambda: powered(place, fatal, saved, random.Random(chance.random())))
        least = int(saved.read_text()) if ended.status == -9 else -1
        is_lost = least >= 0 and newest(cut) < least
        return f"operation {fatal}", ended, f"checkpoint {least}: there is {newest(cut)}" if is_lost else ""

    return interrupted([setting], whole, cut, setting, [attempt] * (1 + chance.randrange(2)))


def powered(place: Path, fatal: int, saved: Path, chance: random.Random) -> None:
    """In the child: follow the disk, note every checkpoint that has been saved, and lose power at operation `fatal`."""
    disk = Disk(place)
    disk.install()
    save = checkpoint.save

    def noted(directory: Path, tree: dict, step: int, *others: object) -> Path:
        path = save(directory, tree, step, *others)  # pyright: ignore[reportArgumentType]
        saved.write_text(str(step))
        return path

    checkpoint.save = noted
    Operations(place, fatal, lambda: disk.lose(chance)).install()


def newest(cut: Path) -> int:
    """The newest checkpoint of a run that could be resumed; -1 without one."""
    try:
        return checkpoint.load(cut / "checkpoints", lambda message: None)[1] if (cut / "config.yaml").is_file() else -1
    except ValueError:
        return -1
