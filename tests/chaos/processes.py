"""A command in a process of its own, which is ended at some moment."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from outcomes import Fault

PATIENCE = 240.0  # seconds after which a command hangs


class Process:
    """`start(folder)` in a session of its own; what it says goes to a file beside the folder."""

    def __init__(self, start: Callable[[Path], int], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.log = folder, folder.with_suffix(".log")
        self.log.write_text("")
        self.status: int | None = None
        self.hangs = False
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(start, folder, self.log)

    def disturb(self, how: str, number: signal.Signals, after: tuple[str, float]) -> int:
        """Send the signal when the moment has come, and wait for the end; how many signals were sent."""
        began, hit = time.monotonic(), 0
        while not self._ended():
            if (self.paths() if after[0] == "files" else time.monotonic() - began) >= after[1]:
                hit = self._send(how, number)
                break
            time.sleep(0.002)
        self.end()
        return hit

    def _send(self, how: str, number: signal.Signals) -> int:
        targets = _descendants(self.pid) if how == "kill all" else []
        if how == "kill a worker":
            workers = [pid for pid in _descendants(self.pid) if _command(pid).startswith("ray::")]
            targets = workers[:1]
        else:
            targets = [self.pid, *targets]
        for pid in targets:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return int(bool(targets))

    def end(self) -> None:
        began = time.monotonic()
        while not self._ended():
            if time.monotonic() - began > PATIENCE:
                self.hangs = True
                self._send("kill all", signal.SIGKILL)
            time.sleep(0.005)

    def wait_for_others(self) -> None:
        """Until what it had started, and nobody has killed, has come to its end."""
        began = time.monotonic()
        while self.others() and not self.hangs:
            self.hangs = time.monotonic() - began > PATIENCE
            time.sleep(0.02)

    def others(self) -> list[int]:
        return [pid for pid, _, session in _processes() if session == self.pid != pid]

    def _ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def paths(self) -> int:
        with suppress(OSError):  # something is being removed
            return sum(1 for _ in self.folder.rglob("*"))
        return 0

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def fault(self, in_order: bool) -> tuple[Fault, str] | None:
        """What is wrong with how it ended, where nobody has killed it."""
        if self.hangs:
            return "hang", self.said()
        if in_order and "Traceback" in self.said():
            return "traceback", self.said()
        return None


def _child(start: Callable[[Path], int], folder: Path, log: Path) -> None:
    status = 99
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = start(folder)
    except KeyboardInterrupt:  # before or after the command itself answers it
        status = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _processes() -> Iterator[tuple[int, int, int]]:
    """(process, its parent, its session) of all that go on."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            state, parent, _, session, *_ = path.read_text().rpartition(")")[2].split()
            if state != "Z":
                yield int(path.parent.name), int(parent), int(session)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for child, parent, _ in _processes():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
