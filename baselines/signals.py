"""SIGTERM and SIGHUP do what Ctrl-C does, while something else answers that one.

Ray Tune answers Ctrl-C by noting how far it is, and a command that is being waited for by ending. Cluster managers and
closed terminals send the other two, which `hyperopt_id.interruption` answers everywhere else.
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
