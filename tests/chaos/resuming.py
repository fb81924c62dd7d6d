"""A run that was interrupted, with something in its directory changed: how a resume has to end."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from outcomes import Fault, Outcome
from sandbox import TRAP
from tiny_runs import arguments, child, difference

from hyperopt_id import cli

LONGEST = 1100  # characters of a line
NOT_SAID = ("Traceback", "weights_only", "Error(")
FREE = ("log.txt",)  # what a refusal may change


class Runs:
    """Finished runs by setting and further options, and copies of them as if they had been interrupted."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._made = folder, 0
        torch.set_num_threads(1)
        self.whole = cache(self._whole)

    def _whole(self, setting: str, *options: str) -> Path:
        self._made += 1
        directory = self._folder / f"whole_{self._made}"
        command = [*arguments(directory, setting), "report.keep=20", *options]
        if self._made == 1:  # children are forked from a process that has trained before
            cli.train([*arguments(self._folder / "first", setting)])
        ended = child(command)
        assert ended.status == 0, ended.said
        return directory

    def interrupted(self, setting: str, directory: Path, update: int) -> Path:
        """What is left of a run that is killed after the checkpoint of hyper-update `update` or the one before."""
        whole = self.whole(setting)
        shutil.copytree(whole, directory)
        (directory / "summary.json").unlink()
        for path in (directory / "checkpoints").glob("step_*.pt"):
            if int(path.stem.removeprefix("step_")) > update:
                path.unlink()
        kept, latest = sorted((directory / "checkpoints").glob("step_*.pt")), directory / "checkpoints" / "latest"
        latest.write_text(f"{kept[-1].name}\n") if kept else latest.unlink()
        return directory


def judge(
    what: str,
    whole: Path,
    cut: Path,
    may_be_refused: bool = True,
    compare: Callable[[Path, Path], tuple[Fault | None, str]] = difference,
    options: tuple[str, ...] = (),
) -> Outcome:
    """Right is an end with the numbers of `whole`, or, where that may be, a line that says why not, with nothing
    changed."""
    before = snapshot(cut)
    ended = child(["--resume", str(cut), "--progress", "none", *options])
    if ended.status == 1000:
        return Outcome(what, "hang", ended.said)
    if ended.status not in (0, 2) or "Traceback" in ended.said:
        return Outcome(what, "traceback", f"{ended.status}: {ended.said[-1500:]}")
    if any(path.is_file() and not path.is_symlink() for path in cut.rglob(TRAP)):
        return Outcome(what, "outside", ended.said)
    lines = ended.said.splitlines()
    if any(len(line) > LONGEST for line in lines) or any(word in ended.said for word in NOT_SAID):
        return Outcome(what, "not one line", ended.said[:500])
    if ended.status == 0:
        fault, detail = compare(whole, cut)
        return Outcome(what, fault, f"{detail}: {ended.said}" if fault else ended.said)
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) != 1 or lines[-1] != errors[0] or cut.name not in errors[0]:
        return Outcome(what, "not one line", ended.said[:500])
    if not may_be_refused:
        return Outcome(what, "lost", ended.said)
    after = {name: content for name, content in snapshot(cut).items() if content or name in before}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    if changed - {*FREE}:
        return Outcome(what, "lost", f"{sorted(changed)}: {ended.said}")
    return Outcome(what, None, ended.said)


def snapshot(directory: Path) -> dict[str, Any]:
    """What is in a folder: bytes of small files, kinds of everything else."""
    found: dict[str, Any] = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        is_small = path.is_file() and not path.is_symlink() and status.st_size < 2**24
        content = path.read_bytes() if is_small else (status.st_mode, status.st_size if not path.is_dir() else 0)
        found[str(path.relative_to(directory))] = os.readlink(path) if path.is_symlink() else content
    return found
