"""Packing: the starts of a job into run directories of at most `size` members each.

    DIR/GROUP/<label>_<first seed>-<last seed>       one run directory, a population with consecutive seeds

What a member computes is a function of its seed and its starting values alone, so starts may be cut anywhere; every
start is in exactly one chunk. Chunks that are there stay as they were cut, whatever the size is now. One that is
finished is not trained again, one that was interrupted continues, and one that holds other starts as well, or another
config, is refused.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from override_generators import Job

from hyperopt_id import launch
from hyperopt_id.build.identity import check_digests, file_digests, read_identity
from hyperopt_id.build.tasks import build_task
from hyperopt_id.config import from_dict, to_dict
from hyperopt_id.config_schema import Config, LogConfig
from hyperopt_id.telemetry import OccupiedError, is_finished

MOST_MEMBERS = 128  # of a chunk: four times what is vectorized together; more would only be lost together
SECONDS_OF_A_LOCK = 120.0  # that a directory of a node that died stays locked: NFS servers mostly take 90
SECONDS_BETWEEN_TRIES = 2.0


class Chunk(NamedTuple):
    """A run directory and what is trained there."""

    config: Config
    directory: Path

    @property
    def steps(self) -> int:
        """Training steps of all members."""
        return self.config.inner.total_steps * self.config.population.runs


def default_size(starts: int, workers: int) -> int:
    """Members of a chunk so that all workers have one, of one length, and none has more than `MOST_MEMBERS`."""
    count = -(-starts // min(-(-starts // workers), MOST_MEMBERS))
    return -(-starts // count)


def pack(config: Config, label: str, job: Job, group: Path, size: int) -> list[Chunk]:
    """The chunks of a job whose `config`, overrides applied, is given."""
    tree = to_dict(replace(config, log=LogConfig(progress="none")))
    there = {first: last - first + 1 for first, last in _there(group, label)}
    return [_chunk(tree, label, job, group, places) for places in _cuts(job.seeds, size, there)]


def _cuts(seeds: Sequence[int], size: int, there: Mapping[int, int]) -> Iterator[range]:
    """Places of seeds that follow each other: so many as are `there` from the first seed on, else at most `size`."""
    first = 0
    while first < len(seeds):
        length = there.get(seeds[first], size)
        end = first + 1
        while end < min(first + length, len(seeds)) and seeds[end] == seeds[end - 1] + 1:
            if seeds[end] in there and seeds[first] not in there:
                break
            end += 1
        yield range(first, end)
        first = end


def _chunk(tree: dict[str, Any], label: str, job: Job, group: Path, places: range) -> Chunk:
    start = {name: [values[place] for place in places] for name, values in job.values.items()}
    first, last = job.seeds[places[0]], job.seeds[places[-1]]
    population = {**tree["population"], "runs": len(places), "start": start}
    config = from_dict({**tree, "seed": first, "population": population}, label)
    return Chunk(config, group / f"{label}_{first:03d}-{last:03d}")


def unfinished(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The chunks that are still to be trained; a ValueError where a directory is in the way."""
    planned = {chunk.directory: chunk for chunk in chunks}
    if len(planned) < len(chunks):
        raise ValueError("two variations have the same name and starts; name each algorithm and argument once")
    _check_cuts(chunks)
    for chunk in chunks:
        there = (chunk.directory / "config.yaml").is_file()
        if there and (changed := launch.changes(chunk.directory, chunk.config)):
            raise ValueError(
                f"the run in {chunk.directory} was made with another config: {'; '.join(changed)}; "
                "choose another group with -g GROUP"
            )
    return [chunk for chunk in chunks if not is_finished(chunk.directory)]


def _check_cuts(chunks: Sequence[Chunk]) -> None:
    """Raise a ValueError where starts are already in a directory together with others."""
    planned: dict[tuple[Path, str], list[tuple[int, int]]] = {}
    for chunk in chunks:
        label, first, last = _parsed(chunk.directory)
        planned.setdefault((chunk.directory.parent, label), []).append((first, last))
    for (group, label), cuts in planned.items():
        for first, last in _there(group, label):
            if (first, last) not in cuts and any(first <= b and a <= last for a, b in cuts):
                raise ValueError(
                    f"{group} holds starts {first} to {last} of {label} in one run, and only some of them are asked "
                    "for; ask for all of them, or choose another group with -g GROUP"
                )


def _there(group: Path, label: str) -> list[tuple[int, int]]:
    """(first, last) of the chunks that have been begun."""
    found = [_parsed(path.parent) for path in sorted(group.glob(f"{escape(label)}_*-*/config.yaml"))]
    return [(first, last) for known, first, last in found if known == label]


def _parsed(directory: Path) -> tuple[str, int, int]:
    """(label, first, last) of a chunk's name."""
    found = re.fullmatch(r"(.+)_(\d+)-(\d+)", directory.name)
    return (found[1], int(found[2]), int(found[3])) if found else ("", 0, -1)


def check_data(chunks: Sequence[Chunk], needed: bool = True) -> None:
    """Build every task once, so that missing data are fetched, or said to be missing, before many workers ask; where
    nothing is to be trained, they are not `needed`, and only files that are there are looked at.

    Raises ValueError where chunks of the same starts were trained on other data.
    """
    digests: list[tuple[Any, dict[str, str]]] = []  # of what is named: that cannot be hashed
    checked = set()
    for chunk in chunks:
        named = (chunk.config.task, chunk.config.space.get("theta"))
        own = next((found for known, found in digests if known == named), None)
        if own is None:
            own = _digests(chunk.config, needed)
            digests.append((named, own))
        label, _, _ = _parsed(chunk.directory)
        for name, first, last in ((label, *cut) for cut in _there(chunk.directory.parent, label)):
            run = chunk.directory.parent / f"{name}_{first:03d}-{last:03d}"
            if run not in checked and (known := read_identity(run)) is not None:
                check_digests(known["digests"], own, f"the run in {run}")
            checked.add(run)


def _digests(config: Config, needed: bool) -> dict[str, str]:
    if not needed and config.task.path is None:
        return {}
    try:
        digest = build_task(config, torch.device("cpu")).digest()
        return file_digests(config) | ({} if digest is None else {"data": digest})
    except ValueError:
        if needed:
            raise
        return {}


# The config that programs for a GPU of this process are of: torch keeps them for the process, not for a caller, and a
# worker hands nothing from one task to the next, so only the process can remember.
_last: list[Config] = []


def train(tree: dict[str, Any], directory: Path) -> None:
    """Train a chunk to its end, wherever it is. Runs in a worker's process, which may have trained others before.

    On a GPU, the compiled programs of a run serve the next one of the same algorithm; those of another one are
    forgotten, since torch keeps only a few of each function. Those of a CPU are in the user's cache.
    """
    config = from_dict(tree)
    alike = replace(config, seed=0, population=replace(config.population, start={}))
    if torch.cuda.is_available() and _last != [alike]:
        torch.compiler.reset()
        _last[:] = [alike]
    _complete(config, directory)


def _complete(config: Config, directory: Path) -> None:
    """Complete the run once nobody holds its lock: that of a worker which died with its node lives on for a while."""
    deadline = time.monotonic() + SECONDS_OF_A_LOCK
    while True:
        try:
            launch.complete(config, directory)
            return
        except OccupiedError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(SECONDS_BETWEEN_TRIES)
