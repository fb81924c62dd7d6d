"""Signals that end a command: SIGTERM, SIGHUP and Ctrl-C (SIGINT) wait for the hyper-update that is being made.

    with answered():                    a command: an `Interrupted` is raised where one of them arrives, but
        with deferred() as arrived:     its loop: here it is only noted, and the loop asks for it
            ...
            if arrived(): ...

A second signal ends the process at once, if it is not part of the first one: `timeout` signals a process and then its
group, a lost terminal sends SIGHUP and its session SIGTERM. Signals that were ignored stay so (nohup), and a program
that uses the library without `answered` keeps its own handlers.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS_OF_ONE = 0.5  # signals that arrive together are one
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal ends the command; `number` says which."""

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(f"{signal.Signals(number).name}{where}")
        self.number = number


class _Arrivals:
    """What the handlers know: the process they are of, whether a loop defers signals, and the one that arrived then."""

    def __init__(self) -> None:
        self.process, self.deferring, self.number, self.time = os.getpid(), False, 0, -math.inf

    def handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if os.getpid() != self.process or (self.number and now - self.time >= SECONDS_OF_ONE):
            signal.signal(number, signal.SIG_DFL)  # for a child that was forked, too
            os.kill(os.getpid(), number)
        elif not self.deferring:
            raise Interrupted(number)
        elif not self.number:
            self.number, self.time = number, now


_current: _Arrivals | None = None


@contextmanager
def answered() -> Iterator[None]:
    """Within, the signals are answered; nothing changes outside of the main thread, where Python allows no change."""
    global _current
    if threading.current_thread() is not threading.main_thread() or _current is not None:
        yield
        return
    arrivals = _Arrivals()
    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    _current = arrivals
    for number in before:
        signal.signal(number, arrivals.handle)
    try:
        yield
    finally:
        _current = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Within, a signal waits: the function that is given returns its number, and 0 while none has arrived."""
    arrivals = _current
    if arrivals is None or threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    arrivals.deferring = True
    try:
        yield lambda: arrivals.number
    finally:
        arrivals.deferring = False
