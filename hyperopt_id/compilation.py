"""The compiled pieces of a run's hyper-update: programs ahead of the loop, each for one shape of its arguments.

    piece(arguments) = program[signature(arguments)](tensors of the arguments)

A piece is traced into a graph (`compilation_graph`), which a library in the user's cache computes
(`compilation_program`). `Compilation.prepare` has the programs of all pieces there before the loop begins, so that
threads may call them; what turns up later is compiled under a lock. Every program is held to the eager result of the
arguments that it was traced for. Where it differs, or there is none, the piece runs eagerly, and one line says why.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_id import compilation_cuda, compilation_graph, compilation_program, trees
from hyperopt_id.compilation_program import NotCompiled, Program

Function = Callable[..., Any]
Signature = tuple[Any, ...]
SLACK = 100.0  # roundings that a program may be away from eager execution, or as many times what one does to that
logger = logging.getLogger("hyperopt_id")
_tracing = threading.RLock()  # torch traces one function at a time


def obstacle(device: torch.device) -> str | None:
    """Why nothing can be compiled here, or None."""
    if device.type == "cuda":
        return compilation_cuda.obstacle()
    needed = ("AOTIModelContainerRunnerCpu", "unsafe_alloc_void_ptrs_from_tensors")
    if not all(hasattr(getattr(torch._C, "_aoti", None), name) for name in needed):
        return f"torch {torch.__version__} cannot compile ahead of time (2.13 does)"
    compilers = [name for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name]
    if not any(shutil.which(name) for name in compilers):
        return "there is no C++ compiler: install g++, or set CXX"
    return None


def signature(arguments: Any) -> tuple[list[Tensor], Signature]:
    """The tensors among the arguments, and everything else that a program is for."""
    leaves: list[Tensor] = []
    described: list[Any] = [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype()]
    _describe(arguments, leaves, described)
    return leaves, tuple(described)


def _describe(tree: Any, leaves: list[Tensor], described: list[Any]) -> None:
    if isinstance(tree, Tensor):
        leaves.append(tree)
        described += (tree.shape, tree.stride(), tree.dtype, tree.requires_grad or not tree.is_cpu)
    elif isinstance(tree, dict):
        described.append(tuple(tree))
        for value in tree.values():
            _describe(value, leaves, described)
    elif isinstance(tree, list | tuple):
        described.append(len(tree))
        for value in tree:
            _describe(value, leaves, described)
    else:
        described.append(tree)


class Call(NamedTuple):
    """A call of a piece: what a program is made of and held to."""

    piece: Piece
    signature: Signature
    arguments: tuple[Any, ...]
    result: Any  # of eager execution


@dataclass(eq=False)
class Piece:
    """A function, and what computes it for each signature: a program, or the function itself."""

    function: Function
    timed: Callable[[Function], Function]
    owner: Compilation
    programs: dict[Signature, Function] = field(default_factory=dict)

    def __call__(self, *arguments: Any) -> Any:
        leaves, shape = signature(arguments)
        known = self.programs.get(shape)
        if known is None:
            if (calls := self.owner.recorded) is not None:
                return self._record(shape, arguments, calls)
            known = self.owner.obtain(self, shape, arguments)
        return known(leaves, arguments)

    def _record(self, shape: Signature, arguments: tuple[Any, ...], calls: list[Call]) -> Any:
        result = self.function(*arguments)
        if not any(call.piece is self and call.signature == shape for call in calls):
            calls.append(Call(self, shape, arguments, result))
        return result

    def eagerly(self, leaves: list[Tensor], arguments: tuple[Any, ...]) -> Any:
        return self.function(*arguments)


class Compilation:
    """The pieces of one run, which `chunks` callers may want to call at a time, each on its share of torch's threads.

    `measure()` is entered while there is compiled.
    """

    def __init__(self, chunks: int = 1, measure: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.callers = min(chunks, torch.get_num_threads())
        self.threads = torch.get_num_threads() // self.callers
        self.recorded: list[Call] | None = None  # while a trial goes on
        self._measure, self._lock = measure, threading.RLock()
        self._pieces: list[Piece] = []
        self._traced: list[tuple[Call, Program | str]] = []  # a program, or why there is none

    def piece(self, function: Function, timed: Callable[[Function], Function] = lambda function: function) -> Function:
        """The function, compiled; its programs are those that `timed` returns."""
        self._pieces.append(Piece(function, timed, self))
        return self._pieces[-1]

    def prepare(self, trial: Callable[[], Any]) -> None:
        """Have programs for all calls that `trial`, which has to be pure, makes of the pieces."""
        with self._lock, self._measure():
            if not any(piece.programs for piece in self._pieces):
                self._survey(trial)
                self._install()

    def is_there(self, trial: Callable[[], Any]) -> bool:
        """Whether the programs for all calls of a pure `trial` are there, or are being made."""
        with self._lock, self._measure():
            self._survey(trial)
            programs = self._programs()
            return len(programs) == len(self._traced) and all(p.is_there() or p.is_being_made() for p in programs)

    def later(self) -> Callable[[], object] | None:
        """What has that compiled in the background which `is_there` missed, to be called when the run is over; None if
        that cannot be, or $HYPEROPT_ID_COMPILE_LATER is 0."""
        programs = self._programs()
        if os.environ.get("HYPEROPT_ID_COMPILE_LATER") == "0" or len(programs) < len(self._traced):
            return None
        return partial(compilation_program.compile_later, programs, self.threads)

    def obtain(self, piece: Piece, shape: Signature, arguments: tuple[Any, ...]) -> Function:
        """What computes a piece for arguments that no trial has made."""
        with self._lock, self._measure():
            if shape not in piece.programs:
                self._traced = [self._trace(Call(piece, shape, arguments, piece.function(*arguments)))]
                self._install()
            return piece.programs[shape]

    def _survey(self, trial: Callable[[], Any]) -> None:
        if self._traced:
            return
        self.recorded = []
        try:
            trial()
            calls = self.recorded
        finally:
            self.recorded = None
        self._traced = [self._trace(call) for call in calls]

    def _trace(self, call: Call) -> tuple[Call, Program | str]:
        if any(leaf.requires_grad or not leaf.is_cpu for leaf in trees.leaves(call.arguments)):
            return call, "it is given tensors of another device, or with gradients"
        try:
            with _tracing:
                graph = compilation_graph.trace(call.piece.function, call.arguments)
        except compilation_graph.Untraceable as error:
            return call, str(error)
        return call, compilation_program.program(graph, self.threads)

    def _programs(self) -> list[Program]:
        return [found for _, found in self._traced if isinstance(found, Program)]

    def _install(self) -> None:
        """Compile what is not there, and give every call that was traced its program, or eager execution."""
        missing, began = [p for p in self._programs() if not p.is_there()], time.perf_counter()
        if missing:
            how = "waiting for another process to compile" if missing[0].is_being_made() else "compiling"
            logger.info("%s, once for this configuration: %d program(s) of the hyper-update", how, len(missing))
        reasons = compilation_program.compile_now(missing, self.threads)
        if missing:
            logger.info("compiled in %.0f s; programs are in %s", time.perf_counter() - began, missing[0].path.parent)
        for call, found in self._traced:
            try:
                if isinstance(found, str):
                    raise NotCompiled(found)
                if found.path in reasons:
                    raise NotCompiled(reasons[found.path])
                known = self._checked(call, found)
            except NotCompiled as error:
                logger.warning("not compiled, running eagerly: %s", error)
                known = call.piece.eagerly
            call.piece.programs[call.signature] = call.piece.timed(known)
        self._traced = []

    def _checked(self, call: Call, program: Program) -> Function:
        run = compilation_program.load(program, self.callers)
        if difference := disagreement(call, run(trees.leaves(call.arguments)), program.graph.epsilon):
            raise NotCompiled(f"the program differs from eager execution, {difference}")
        return lambda leaves, arguments: run(leaves)


def disagreement(call: Call, found: Any, epsilon: float) -> str | None:
    """By how much the results of a program differ from the call's, if by more than rounding can explain.

    For each tensor, |found - eager| may be `SLACK` times epsilon |eager| + |eager - eager of rounded arguments|, the
    second of which says how much the result depends on roundings. Numbers that are not finite eagerly are left out.
    """
    generator = torch.Generator().manual_seed(0)

    def rounded(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return x * (1 + epsilon * (2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1)).to(x.dtype)

    try:
        nearby = trees.leaves(call.piece.function(*trees.map(rounded, call.arguments)))
    except (RuntimeError, ValueError):  # not defined there, such as a probability above 1
        nearby = trees.leaves(call.result)
    for place, (f, e, n) in enumerate(zip(trees.leaves(found), trees.leaves(call.result), nearby, strict=True)):
        if f.shape != e.shape or f.dtype != e.dtype:
            return f"result {place} is {f.dtype} {list(f.shape)}, not {e.dtype} {list(e.shape)}"
        defined = e.isfinite() & (n.isfinite() if n.shape == e.shape else True)
        f, e, n = (torch.where(defined, x, 0).to(torch.float64) for x in (f, e, n))
        apart, allowed = (f - e).norm().item(), SLACK * (epsilon * e.norm() + (n - e).norm()).item()
        if not apart <= allowed + 1e-3 * epsilon:
            return f"result {place} by {apart / max(e.norm().item(), 1e-300):.1e} of its size"
    return None
