"""Damaged, foreign and harmful files of data and weights: what is read is what they hold, or one line says why not.

A trial makes a right file of a kind, damages it (bits, cuts, blocks, bombs, records, headers, another type, no regular
file at all) and reads it as the library does. What is accepted is compared with another reader of the same file.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import damage
import files_of_examples
import files_of_tensors
import torch
from outcomes import Outcome
from sandbox import judge

COUNT = 900
KINDS = files_of_examples.KINDS | files_of_tensors.KINDS


def trials(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    torch.set_num_threads(1)
    names = [name for name, kind in KINDS.items() for _ in range(kind.weight)]
    random.Random(seed).shuffle(names)
    for number in range(count):
        name, chance = names[number % len(names)], random.Random(f"{seed}/{number}")
        kind, here = KINDS[name], folder / f"t{number}"
        here.mkdir()
        path = kind.make(here)
        does = chance.choice((*damage.COMMON, *kind.variants * 3))
        what = does(path, chance)
        yield judge(f"{number}: {name}: {what}", lambda kind=kind, here=here: kind.read(here), here)
        shutil.rmtree(here, ignore_errors=True)
