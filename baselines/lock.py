"""One process at a time: a lock file beside what it protects.

The holder has an exclusive ``flock`` on the file, which the operating system drops when the process ends, however it
ends; processes that it has started do not inherit it. What the file says, {"pid", "host"}, is for whoever is refused.
The file goes when the lock is given back, and one that a killed process has left means nothing.
"""

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from hyperopt_id.telemetry import OccupiedError, read_json

logger = logging.getLogger("hyperopt_id")
MISSING = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of a file system without locks


@contextmanager
def held(path: Path, cure: str) -> Iterator[None]:
    """Hold the lock file ``path``. Its folder, and those that are made for it, go with it if they are empty then.

    Raises OccupiedError if another process holds it, which `cure` says what to do about, and ValueError if the folder
    cannot be written. Where the file system has no locks, that is said, and nothing is locked.
    """
    made = [path.parent, *(folder for folder in path.parents[1:] if not folder.exists())]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(path, cure)
    except OSError as error:
        _remove(made)
        raise ValueError(f"{path.parent} cannot be written ({error.strerror}); choose another") from error
    except OccupiedError:
        _remove(made)
        raise
    with file:
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
            _remove(made)


def _locked(path: Path, cure: str) -> IO[bytes]:
    while True:
        file = open(path, "a+b")  # noqa: SIM115 - open as long as the lock is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_there(path, file):  # its last holder has just removed it
                file.close()
                continue
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
            file.flush()
        except BlockingIOError:
            file.close()
            raise OccupiedError(f"{_holder(path)} is at work in {path.parent}; {cure}") from None
        except OSError as error:
            if error.errno not in MISSING:
                file.close()
                raise
            logger.warning("%s cannot be locked (%s): start nothing else there", path.parent, error.strerror)
        return file


def _is_there(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    owner = read_json(path)
    if isinstance(owner, dict) and {"pid", "host"} <= owner.keys():
        return f"process {owner['pid']} on {owner['host']}"
    return "another process"


def _remove(folders: list[Path]) -> None:
    """Those that are empty, innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
