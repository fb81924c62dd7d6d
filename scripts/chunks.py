"""Packing: the starts of a job into run directories of at most `size` members each.

    DIR/GROUP/<label>_<first seed>-<last seed>       one run directory, a population with consecutive seeds

What a member computes is a function of its seed and its starting values alone, so starts may be cut anywhere; every
start is in exactly one chunk. A chunk that is finished is not trained again, one that was interrupted continues, and a
directory that was cut otherwise or holds another config is refused, for it would count starts twice.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from override_generators import Job

from hyperopt_id import launch
from hyperopt_id.build.tasks import build_task
from hyperopt_id.config import from_dict, to_dict
from hyperopt_id.config_schema import Config, LogConfig
from hyperopt_id.telemetry import is_finished

MOST_MEMBERS = 128  # of a chunk: four times what is vectorized together; more would only be lost together


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
    return [_chunk(tree, label, job, group, places) for places in _cuts(job.seeds, size)]


def _cuts(seeds: Sequence[int], size: int) -> Iterator[range]:
    """Places of seeds that follow each other, at most `size` at a time."""
    first = 0
    for place in range(1, len(seeds) + 1):
        if place == len(seeds) or place - first == size or seeds[place] != seeds[place - 1] + 1:
            yield range(first, place)
            first = place


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
    """Raise a ValueError where starts are already in directories that are cut otherwise."""
    planned: dict[tuple[Path, str], list[tuple[int, int]]] = {}
    for chunk in chunks:
        label, first, last = _parsed(chunk.directory)
        planned.setdefault((chunk.directory.parent, label), []).append((first, last))
    for group in {group for group, _ in planned}:
        there = [_parsed(path.parent) for path in sorted(group.glob("*_*-*/config.yaml"))]
        for label, first, last in there:
            cuts = planned.get((group, label), [])
            if (first, last) not in cuts and any(first <= b and a <= last for a, b in cuts):
                longest = max(b - a + 1 for name, a, b in there if name == label)
                raise ValueError(
                    f"{group} holds starts {first} to {last} of {label}, cut otherwise than now; "
                    f"add --chunk {longest} to continue, or choose another group with -g GROUP"
                )


def _parsed(directory: Path) -> tuple[str, int, int]:
    """(label, first, last) of a chunk's name."""
    found = re.fullmatch(r"(.+)_(\d+)-(\d+)", directory.name)
    return (found[1], int(found[2]), int(found[3])) if found else ("", 0, -1)


def check_data(chunks: Sequence[Chunk]) -> None:
    """Build every task once, so that missing data are fetched, or said to be missing, before many workers ask."""
    seen = []
    for chunk in chunks:
        if chunk.config.task not in seen:
            seen.append(chunk.config.task)
            build_task(chunk.config, torch.device("cpu"))


# The config that the compiled programs of this process are of: torch keeps them for the process, not for a caller, and
# a worker hands nothing from one task to the next, so only the process can remember.
_last: list[Config] = []


def train(tree: dict[str, Any], directory: Path) -> None:
    """Train a chunk to its end, wherever it is. Runs in a worker's process, which may have trained others before.

    The compiled programs of a run serve the next one of the same algorithm; those of another one are forgotten, since
    torch keeps only a few of each function.
    """
    config = from_dict(tree)
    alike = replace(config, seed=0, population=replace(config.population, start={}))
    if _last != [alike]:
        torch.compiler.reset()
        _last[:] = [alike]
    launch.complete(config, directory)
