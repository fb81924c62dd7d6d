"""A call in a process of its own, with bounded time and memory, and what came of it."""

import contextlib
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from outcomes import Fault, Outcome

MEMORY = 3 * 2**30  # bytes of address space beyond those of this process
LONGEST = 600  # characters of a message
TRAP = "executed"  # the file that code in an input makes, in the folder of the trial


class WrongNumbersError(Exception):
    """What was read is not what the input holds."""


def judge(what: str, call: Callable[[], object], folder: Path, seconds: int = 30) -> Outcome:
    """Right is a return, or a ValueError of one line; `folder` is where the call works.

    Anything else is a fault: another exception or a signal ("traceback"), no end within `seconds` of the
    processor, or ten times as many of the clock ("hang"), a message of several lines or of more than 600
    characters ("not one line"), `WrongNumbersError`, and code of the input that ran ("outside").
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        os._exit(_child(call, folder, write, seconds))
    os.close(write)
    status, said = _wait(child, read, 10.0 * seconds)
    if status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return Outcome(what, "hang", f"{seconds} s of the processor or {10 * seconds} s")
    if (folder / TRAP).exists():
        return Outcome(what, "outside", "code of the input ran")
    kind, _, detail = said.partition("\n")
    if kind == "returned":
        return Outcome(what)
    if kind == "ValueError":
        short = "\n" not in detail and len(detail) <= LONGEST
        return Outcome(what, None if short else "not one line", "" if short else detail[:300])
    fault: Fault = "wrong numbers" if kind == "WrongNumbersError" else "traceback"
    return Outcome(what, fault, detail[-300:] or f"status {status}")


def _child(call: Callable[[], object], folder: Path, write: int, seconds: int) -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, spent + seconds + 5))
    os.chdir(folder)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        call()
        said = "returned"
    except ValueError as error:
        said = f"ValueError\n{error}"
    except WrongNumbersError as error:
        said = f"WrongNumbersError\n{error}"
    except BaseException:
        said = f"traceback\n{traceback.format_exc()[-5000:]}"
    with contextlib.suppress(OSError):
        os.write(write, said[:30_000].encode("utf-8", "replace"))
    return 0


def _wait(child: int, read: int, seconds: float) -> tuple[int | None, str]:
    end, said = time.monotonic() + seconds, b""
    with open(read, "rb", buffering=0) as stream:
        os.set_blocking(read, False)
        while True:
            said += stream.read(65536) or b""
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                said += stream.read() or b""
                return status, said.decode("utf-8", "replace")
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None, ""
            time.sleep(0.005)
