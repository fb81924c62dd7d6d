"""Chunks of a population on the cores of a CPU: a `map` whose calls are shared out among threads.

The chunks are independent, and compiled programs leave Python's lock while they compute, so that this scales where the
parallel loops inside of one small chunk do not. (Eager chunks spend their time in Python and take turns.)
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

Map = Callable[..., Iterable[Any]]


@contextmanager
def shared_out(tasks: int) -> Iterator[Map]:
    """A `map` for `tasks` calls at a time, on as many threads as torch may use; each of them computes with its share of
    torch's threads. The first `map` runs in the calling thread: it is the one that compiles."""
    cores = torch.get_num_threads()
    count = min(cores, tasks)
    if count == 1:
        yield map
        return
    first = True

    def shared(function: Callable[..., Any], *arguments: Iterable[Any]) -> Iterable[Any]:
        nonlocal first
        if first:
            first = False
            return map(function, *arguments)
        return pool.map(function, *arguments)

    try:
        with ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, cores // count)) as pool:
            yield shared
    finally:
        torch.set_num_threads(cores)
