"""Chunks as Ray tasks: so many at a time, retried where a worker dies, watched through what they report.

Nothing but configs and directories goes through Ray. What a chunk has done lies in its run directory, which all nodes
of a cluster have to see under the same path.
"""

import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import ray
from chunks import Chunk
from ray import exceptions
from ray.util import client
from tqdm import tqdm

from baselines.cluster import Resources, cluster, environment, reach
from hyperopt_id.arguments import first_line
from hyperopt_id.config import to_dict

RETRIES = 5  # of a chunk whose worker dies
SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_WITHOUT_RAY = 20.0
TAIL_BYTES = 2**20  # of a file of reports: more than one report of a whole chunk
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]"


def train(chunks: Sequence[Chunk], resources: Resources, threads: int, progress: str) -> Iterator[tuple[Path, str]]:
    """Train all chunks, `resources.workers` at a time; the directories of those that could not be trained, as it turns
    out, and why. A ValueError where Ray is lost."""
    out_of_memory = {"RAY_task_oom_retries": str(RETRIES)}  # else for ever; over ray:// others own them
    try:
        with environment(out_of_memory), cluster(resources), Progress(chunks, progress) as shown:
            yield from _train(chunks, resources, threads, shown)
    except (exceptions.RayError, ConnectionError) as error:
        reason = first_line(error)
        raise ValueError(f"Ray is lost ({reason}); the same command continues") from error


def _train(
    chunks: Sequence[Chunk], resources: Resources, threads: int, shown: "Progress"
) -> Iterator[tuple[Path, str]]:
    submit, check = _submission(resources, threads), _watch()
    waiting, running = deque(chunks), {}
    while waiting or running:
        while waiting and len(running) < resources.workers:
            chunk = waiting.popleft()
            running[submit(chunk)] = chunk
        ended, _ = ray.wait(list(running), timeout=SECONDS_BETWEEN_LOOKS)
        for task in ended:
            chunk = running.pop(task)
            reason = _failure(task)
            shown.ended(chunk, reason)
            if reason is not None:
                yield chunk.directory, reason
        shown.look(running.values())
        check()


def _watch() -> Callable[[], None]:
    """What raises a ConnectionError when Ray has been gone for a while. Without its head, Ray would end this process in
    a minute, and without nodes wait for ever."""
    last = time.monotonic()

    def check() -> None:
        nonlocal last
        if _is_there():
            last = time.monotonic()
        elif time.monotonic() - last > SECONDS_WITHOUT_RAY:
            raise ConnectionError("its head does not answer, or it has no nodes any more")

    return check


def _is_there() -> bool:
    """Whether Ray's head answers and knows a living node; true where another process of ours asks, over ray://."""
    if client.ray.is_connected():
        return True
    try:
        reach(ray.get_runtime_context().gcs_address, SECONDS_BETWEEN_LOOKS)
    except OSError:
        return False
    return any(node["Alive"] for node in ray.nodes())  # which does not return where the head does not answer


def _submission(resources: Resources, threads: int) -> Callable[[Chunk], ray.ObjectRef]:
    """How Ray is given a chunk; a ValueError where no node could ever take one. A Ray of our own has as many CPUs as
    there are workers, one of somebody else counts its cores."""
    cpus, gpus = (threads if resources.address else 1), resources.gpus_per_trial or 0.0
    most = max(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])
    if most < cpus:
        raise ValueError(f"--threads: given {cpus}, but the largest node of the Ray cluster has {most:g} CPUs")

    def task(folders: list[str], tree: dict[str, Any], directory: str) -> None:
        sys.path[:0] = [folder for folder in folders if folder not in sys.path]  # a worker starts somewhere else
        import chunks

        chunks.train(tree, Path(directory))

    scripts = Path(__file__).resolve().parent
    folders = [str(scripts), str(scripts.parent)]
    remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(task)
    return lambda chunk: remote.remote(folders, to_dict(chunk.config), str(chunk.directory))


def _failure(task: ray.ObjectRef) -> str | None:
    """Why a task that has ended failed, in one line; None where it did not."""
    try:
        ray.get(task)
    except exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        text = (str(cause).strip().splitlines() or [""])[0]
        return text if isinstance(cause, ValueError) else f"{type(cause).__name__}: {text}"
    except exceptions.OutOfMemoryError:
        return f"memory ran out {RETRIES + 1} times; take fewer --workers, or a smaller --chunk with another -g GROUP"
    except exceptions.RayError as error:
        return f"its worker died {RETRIES + 1} times, of memory perhaps ({type(error).__name__})"
    return None


class Progress:
    """How far all chunks are, in training steps of all members: a bar on a terminal, else a line for each chunk."""

    def __init__(self, chunks: Sequence[Chunk], mode: str) -> None:
        self._steps: dict[Path, int] = {}
        self._note(chunks)  # what an interrupted start has done
        self._left, self._quiet = len(chunks), mode == "none"
        with_bar = mode == "bar" or (mode == "auto" and sys.stderr.isatty())
        self._bar = tqdm(
            total=sum(chunk.steps for chunk in chunks),
            initial=sum(self._steps.values()),
            bar_format=BAR,
            dynamic_ncols=True,
            unit_scale=True,
            disable=not with_bar,
        )

    def look(self, running: Iterable[Chunk]) -> None:
        """Show what these chunks have reported by now."""
        self._note(running)
        self._bar.n = sum(self._steps.values())
        self._bar.refresh()

    def ended(self, chunk: Chunk, failure: str | None) -> None:
        self._steps[chunk.directory], self._left = chunk.steps, self._left - 1
        self._bar.set_postfix_str(f"{self._left} chunks left", refresh=False)
        if not self._quiet and (failure or self._bar.disable):
            how = f"failed: {failure}" if failure else "finished"
            tqdm.write(f"{chunk.directory.name} {how}, {self._left} chunks left", file=sys.stderr)

    def _note(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            self._steps[chunk.directory] = reported_step(chunk.directory) * chunk.config.population.runs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def reported_step(directory: Path) -> int:
    """The training step of the newest report in a run directory, 0 where there is none."""
    try:
        with (directory / "metrics.jsonl").open("rb") as metrics:
            size = metrics.seek(0, 2)
            metrics.seek(max(0, size - TAIL_BYTES))
            steps = re.findall(rb'^\{"step": (\d+)', metrics.read(), re.MULTILINE)
    except OSError:
        return 0
    return int(steps[-1]) if steps else 0
