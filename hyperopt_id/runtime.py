"""How the cores, the memory and the time of a machine are used."""

import time
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
    torch's threads.

    For compiled chunks of a population: they are independent, and compiled programs leave Python's lock while they
    compute, so that this scales where the parallel loops inside of one small chunk do not.
    """
    cores = torch.get_num_threads()
    count = min(cores, tasks)
    if count == 1:
        yield map
        return
    share = partial(torch.set_num_threads, cores // count)
    share()  # here, too, for what is computed between the calls
    try:
        with ThreadPoolExecutor(count, initializer=share) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(cores)


def keep_freed_memory() -> None:
    """Have malloc keep what is freed, up to 60 MB, for the next allocation.

    A hyper-update allocates and frees the same few megabytes again and again; glibc gives them back to the system and
    faults them in anew, thousands of pages each time. The largest block that was ever freed sets its thresholds, so one
    block of 30 MB is made and dropped. Elsewhere this does nothing.
    """
    torch.empty(30 * 2**20, dtype=torch.uint8)


class Stopwatch:
    """Seconds by part of the work. On a CUDA device, work that is still queued is counted where it is waited for."""

    def __init__(self) -> None:
        parts = ("compile", "inner", "hypergradient", "evaluation", "logging")
        self.seconds: dict[str, float] = dict.fromkeys(parts, 0.0)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - began

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments)
            self.seconds[part] += time.perf_counter() - began
            return result

        return call
