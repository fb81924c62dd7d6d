"""Compiled graphs as libraries in the user's cache.

    CACHE/programs/<key>.so    key = hash(graph, torch, processor, threads, options and settings of the compiler)

A library is made by a process of its own (`compilation_worker`), which holds the lock <key>.lock as long as it lives,
so that each is compiled once for a machine; it is executed through its C interface, without torch's compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_id import trees, user_cache
from hyperopt_id.arguments import first_line
from hyperopt_id.compilation_graph import Graph

# Two of Inductor's optimizations (torch 2.13, CPU) give wrong Hessian-vector products, by up to a tenth: the pattern
# matcher where a bias is added to a column of examples, and vectorized loops over several independent results from the
# third term of a series on. Without them, compiled and eager agree to rounding.
OPTIONS = {"pattern_matcher": False, "cpp.max_horizontal_fusion_size": 1}
SECONDS_OF_A_REFUSAL = 86400.0
NICE = 10  # of what is compiled for later starts: behind other training, but before whoever waits for it gives up
logger = logging.getLogger("hyperopt_id")


class NotCompiled(RuntimeError):  # noqa: N818 - it is executed eagerly
    """There is no program, and the message says why."""


class Program(NamedTuple):
    """A graph, and the library that computes it or will."""

    graph: Graph
    path: Path

    def is_there(self) -> bool:
        return user_cache.is_usable(self.path)

    def is_being_made(self) -> bool:
        return user_cache.is_locked(self.path.with_suffix(".lock"))

    def refusal(self) -> str | None:
        """Why it could not be compiled, if that was tried today; tomorrow there may be another compiler."""
        said = self.path.with_suffix(".txt")
        with contextlib.suppress(OSError):
            if user_cache.is_own(said) and time.time() - said.stat().st_mtime < SECONDS_OF_A_REFUSAL:
                return said.read_text(errors="replace")[:500]
        return None


def program(graph: Graph, threads: int) -> Program:
    """The program of a graph whose loops are shared out among `threads` threads."""
    try:
        folder = user_cache.private(user_cache.PROGRAMS)
    except RuntimeError as error:
        folder = _temporary(str(error))
    key = user_cache.digest(graph.text, *_surroundings(), json.dumps(_settings(threads), sort_keys=True))
    path = folder / f"{key}.so"
    if not os.access(folder, os.W_OK) and not user_cache.is_usable(path):
        path = _temporary(f"{folder} cannot be written") / path.name
    return Program(graph, path)


@cache
def _temporary(reason: str) -> Path:
    logger.warning("compiled programs are not kept for the next start: %s", reason)
    made = tempfile.TemporaryDirectory(prefix="hyperopt_id_")
    _folders.append(made)
    return Path(made.name)


_background: list[subprocess.Popen[str]] = []  # they are not waited for
_folders: list[tempfile.TemporaryDirectory[str]] = []  # removed with the process


def _settings(threads: int) -> dict[str, Any]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    return {"threads": threads, "deterministic": deterministic, "options": OPTIONS}


def _surroundings() -> list[str]:
    """What a library depends on beside its graph and settings."""
    given = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(("TORCHINDUCTOR_", "AOT_INDUCTOR_")))
    given = [line for line in given if not line.startswith("TORCHINDUCTOR_CACHE_DIR=")]
    return [torch.__version__, str(torch.version.git_version), platform.machine(), _processor(), _source(), *given]


@cache
def _processor() -> str:
    """Model and instruction sets: libraries are made for the processor that they are made on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return "\n".join(next((x for x in lines if x.startswith(name)), "") for name in ("model name", "flags"))
    return platform.processor()


@cache
def _source() -> str:
    names = ("compilation_graph.py", "compilation_program.py", "compilation_worker.py")
    return user_cache.digest(*(Path(__file__).with_name(name).read_text() for name in names))


def compile_now(programs: Sequence[Program], threads: int) -> dict[Path, str]:
    """Have the programs there that can be compiled, each by a process of its own; what another process compiles is
    waited for. Returns why others are not there, by path."""
    running: dict[Path, subprocess.Popen[str]] = {}
    alive, writing = os.pipe()  # it ends with this process, also if that is killed
    try:
        return _compiled(programs, threads, running, alive)
    except OSError as error:  # a full disk, no more processes
        return {program.path: f"{error.strerror or error}" for program in programs if not program.is_there()}
    finally:
        for process in running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the C++ compiler that it has started
                process.communicate()
        os.close(alive)
        os.close(writing)


def _compiled(
    programs: Sequence[Program], threads: int, running: dict[Path, subprocess.Popen[str]], alive: int
) -> dict[Path, str]:
    for wanted in {program.path: program for program in programs}.values():
        with user_cache.locked(wanted.path.with_suffix(".lock")) as lock:
            if not wanted.is_there() and wanted.refusal() is None:
                running[wanted.path] = _start([wanted], threads, [lock], alive)
    said = {path: process.communicate()[1].strip().splitlines() for path, process in running.items()}
    ended = {path: f"the compiler ended with status {process.returncode}" for path, process in running.items()}
    missing = (program for program in programs if not program.is_there())
    return {p.path: p.refusal() or (said.get(p.path) or [ended.get(p.path, "it is missing")])[-1] for p in missing}


def compile_later(programs: Sequence[Program], threads: int) -> bool:
    """Begin to compile the programs in the background, for later starts: in one process of low priority, which goes on
    when this one ends. False if another one does so already, the system allows none, or they could not be kept."""
    if programs[0].path.parent in [Path(made.name) for made in _folders]:
        return False
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        locks = []
        names = [program.path.with_suffix(".lock") for program in programs if program.refusal() is None]
        for path in dict.fromkeys([programs[0].path.with_name("background.lock"), *names]):
            file = opened.enter_context(open(path, "w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locks.append(file.fileno())
        if len(names) == len(programs):
            _background.append(_start(programs, threads, locks, alive=None))
            return True
    return False


def _start(programs: Sequence[Program], threads: int, locks: Sequence[int], alive: int | None) -> subprocess.Popen[str]:
    """A process that compiles, and keeps the locks until it ends: at the latest when the pipe `alive` does; without one
    it works in the background."""
    scratch = programs[0].path.parent / user_cache.SCRATCH  # where nobody else can write
    (scratch / "tmp").mkdir(parents=True, exist_ok=True)
    job = {
        **_settings(threads),
        "nice": NICE if alive is None else 0,
        "alive": alive,
        "programs": [[str(p.path), p.graph.text] for p in programs],
    }
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch),
        "TMPDIR": str(scratch / "tmp"),
    }
    with tempfile.TemporaryFile("w+", dir=scratch) as given:
        json.dump(job, given)
        given.seek(0)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "hyperopt_id.compilation_worker"],
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if alive is None else subprocess.PIPE,
            text=True,
            env=environment,
            pass_fds=[*locks, *([] if alive is None else [alive])],
            start_new_session=True,  # Ctrl-C ends this process, which ends that one, or leaves it to its work
        )


def load(program: Program, callers: int) -> Callable[[list[Tensor]], Any]:
    """The function on the tensors of its arguments. Several `callers` may call at a time, and then leave Python's lock
    while they compute. Raises NotCompiled if there is no program, or it cannot be loaded."""
    constants, result = program.graph.constants, program.graph.result
    if not program.is_there():
        raise NotCompiled(program.refusal() or "it is missing")
    try:
        if callers == 1:
            run = _aoti().AOTIModelContainerRunnerCpu(str(program.path), 1).run
        else:
            run = _without_lock(program.path, callers, len(trees.leaves(result)))
    except (RuntimeError, OSError) as error:
        raise NotCompiled(f"the program cannot be loaded: {first_line(error)}") from error
    return lambda leaves: trees.like(result, run([*leaves, *constants]))


def _aoti() -> Any:
    """What torch has for libraries that are compiled ahead of time."""
    return getattr(torch._C, "_aoti")  # noqa: B009 - torch's stubs do not know it


def _without_lock(path: Path, callers: int, outputs: int) -> Callable[[list[Tensor]], list[Tensor]]:
    """The library through its C interface: the same as torch's runner, which keeps Python's lock."""
    library, container, count = ctypes.CDLL(str(path)), ctypes.c_void_p(), ctypes.c_size_t
    if library.AOTInductorModelContainerCreateWithDevice(ctypes.byref(container), count(callers), b"cpu", None):
        raise RuntimeError("its container cannot be made")
    pointer, capsule = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_New
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    lent, taken = (
        _aoti().unsafe_alloc_void_ptrs_from_tensors,
        _aoti().alloc_tensors_by_stealing_from_void_ptrs,
    )

    def run(tensors: list[Tensor]) -> list[Tensor]:
        given = (ctypes.c_void_p * len(tensors))(*[pointer(handle, None) for handle in lent(tensors)])
        results = (ctypes.c_void_p * outputs)()
        sizes = count(len(tensors)), count(outputs)
        if library.AOTInductorModelContainerRun(container, given, sizes[0], results, sizes[1], None, None):
            raise RuntimeError("a compiled program failed; what it says is on the standard error stream")
        return taken([capsule(handle, None, None) for handle in results])

    return run
