"""Streams that people read, which may go away: training does not depend on a terminal.

A terminal can be lost (EIO), the reader of a pipe can end (EPIPE: `2>&1 | head -1`), the disk behind a file can be
full, and a daemon has no streams at all. Then what would be written is dropped.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Screen:
    """A stream that never fails; None is one that nobody reads. `owned`: by this process alone, which then sends what
    Python and others still write to its descriptor nowhere. `failure` is why it was given up."""

    def __init__(self, stream: TextIO | None, owned: bool = False) -> None:
        self._stream, self._owned = stream, owned
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:  # ValueError: it has been closed
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def _give_up(self, error: Exception) -> None:
        self.failure = error if isinstance(error, OSError) else None
        stream, self._stream = self._stream, None
        if stream is None or not self._owned:
            return
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        if self._stream is None:
            raise AttributeError(name)
        return getattr(self._stream, name)


def screen() -> Screen:
    """The stream for messages, as it is now."""
    return sys.stderr if isinstance(sys.stderr, Screen) else Screen(sys.stderr)


def show(text: str) -> None:
    """Print what a command was asked for. Raises OSError where it cannot be written, as on a full disk; a reader that
    has seen enough (`| head`) and a terminal that is gone are none."""
    print(text, flush=True)
    failure = getattr(sys.stdout, "failure", None)
    if failure is not None and failure.errno not in (errno.EPIPE, errno.EIO):
        raise failure


def _occupy(descriptor: int) -> None:
    """Where a process was started without it (`2>&-`), the next file would get its number and messages."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Within, nothing that is written to stdout or stderr fails: for a command."""
    for descriptor in range(3):
        _occupy(descriptor)
    before = sys.stdout, sys.stderr
    ours = [stream if isinstance(stream, Screen) else Screen(stream, owned=True) for stream in before]
    sys.stdout, sys.stderr = ours  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for stream in ours:
            stream.flush()
        sys.stdout, sys.stderr = before
