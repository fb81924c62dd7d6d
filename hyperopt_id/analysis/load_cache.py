"""A cache of what was read from files, by their paths, sizes and times.

An entry is a file of arrays, with the files that it was made of inside. One that cannot be read, or was made of other
files, is made again: the cache may be damaged or removed at any time.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

VERSION = 2  # of what readers put into it
Arrays = dict[str, np.ndarray]


def cached(cache: Path | None, files: Sequence[Path], read: Callable[[list[Path]], Arrays]) -> Arrays:
    """`read(files)`, or what it returned the last time for these files as they are now."""
    files = list(files)
    if cache is None or not files:
        return read(files)
    state = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    made_of = json.dumps([VERSION, state])
    entry = cache / f"{hashlib.sha256(state[0][0].encode()).hexdigest()[:32]}.npz"
    # a damaged file can make zipfile and numpy raise anything, and the latter does not close it
    with suppress(Exception), entry.open("rb") as file, np.load(file) as stored:
        if str(stored["made_of"]) == made_of:
            return {name: stored[name] for name in stored.files if name != "made_of"}
    arrays = read(files)
    with suppress(OSError):  # nowhere to write: slower the next time, nothing else
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = entry.with_suffix(f".{os.getpid()}.tmp")
        with unfinished.open("wb") as file:
            np.savez(file, **{"made_of": np.array(made_of), **arrays})  # pyright: ignore[reportArgumentType]
        os.replace(unfinished, entry)
    return arrays
