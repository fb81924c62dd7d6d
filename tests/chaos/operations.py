"""Every operation on files that a process makes below a folder, counted, so that it can be killed at any of them.

The process that installs this is a child that is to die: what is installed is never removed.
"""

import builtins
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

AUDITED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
WRAPPED = ("fsync", "pwrite", "posix_fallocate", "ftruncate")


class Operations:
    """Calls `before(number, name)` before operation `number`; `half`: of a write, let the first half happen first."""

    def __init__(self, folder: Path, fatal: int, die: Callable[[], object]) -> None:
        self.folder, self.fatal, self.die, self.count = str(folder), fatal, die, 0
        self.busy = False

    def install(self) -> None:
        sys.addaudithook(self._audit)
        for name in WRAPPED:
            setattr(os, name, self._wrapped(getattr(os, name)))
        plain_open = builtins.open

        def opened(file: Any, mode: str = "r", *others: Any, **named: Any) -> Any:
            stream = plain_open(file, mode, *others, **named)
            ours = "b" in mode and mode != "rb" and str(file).startswith(self.folder) and "events.out" not in str(file)
            return _Stream(stream, self) if ours else stream

        builtins.open = opened

    def step(self) -> bool:
        """Count an operation; whether it is the fatal one."""
        if self.busy:
            return False
        self.count += 1
        return self.count == self.fatal

    def _audit(self, event: str, arguments: tuple) -> None:
        if event in AUDITED and str(arguments[0]).startswith(self.folder) and self.step():
            self.kill()

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self.step():
                self.kill()
            return function(*arguments)

        return call

    def kill(self) -> None:
        self.busy = True
        self.die()
        os.kill(os.getpid(), signal.SIGKILL)


class _Stream:
    """A stream whose writes are operations, of which the fatal one is done by half."""

    def __init__(self, stream: Any, operations: Operations) -> None:
        self._stream, self._operations = stream, operations

    def write(self, content: Any) -> int:
        if self._operations.step():
            self._stream.write(bytes(content)[: len(bytes(content)) // 2])
            self._stream.flush()
            self._operations.kill()
        return self._stream.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._stream)
