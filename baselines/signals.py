"""What ends a command of many trainings: SIGTERM and SIGHUP do what Ctrl-C does.

Cluster managers and closed terminals send them. Ctrl-C is what Ray, process pools and the commands answer in an orderly
way; without this, the command would be gone, and what it has started and made for itself would stay.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def as_ctrl_c() -> Iterator[None]:
    """Pass these signals on to whatever answers Ctrl-C at that time, but for those that are ignored (nohup).

    Nothing changes outside of the main thread, where Python allows no change.
    """
    in_main = threading.current_thread() is threading.main_thread()
    with kept():
        for number in ENDING:
            if in_main and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _interrupt)
        yield


@contextmanager
def kept() -> Iterator[None]:
    """Have the same handlers of these signals afterwards, whatever is put in their place meanwhile: Ray does so."""
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) != handler and handler is not None:
                signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)
