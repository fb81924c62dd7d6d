"""The user's cache folder: files that take long to make, are made once, and are code.

    file = content + SHA-256 of the content

The folder is $HYPEROPT_ID_CACHE, else $XDG_CACHE_HOME/hyperopt_id, else ~/.cache/hyperopt_id. A file whose digest does
not fit, because a disk was full or a machine lost power, counts as missing. To load one executes it, so that `private`
folders, and files in them, are taken from the user (or root) alone.
"""

import contextlib
import fcntl
import hashlib
import os
import pwd
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hyperopt_id import files

BYTES_KEPT = 2**29  # of files in a private folder; the ones used last stay
PROGRAMS = "programs"  # the private folder of compiled programs
SCRATCH = "torch"  # in there: what torch's compiler keeps for itself, mostly headers, some 300 MB
_DIGEST = hashlib.sha256().digest_size
TAG = "CACHEDIR.TAG"  # of a folder that was made for the cache, by the convention of https://bford.info/cachedir
_SIGNATURE = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# Made by hyperopt_id; hyperopt-id cache --clear removes it.\n"
)
_PROGRAM = re.compile(r"\.?([0-9a-f]{16}|background)\.(so|txt|lock)(\.tmp)?")
_KERNEL = re.compile(r"[a-z_]+-[0-9a-f]{16}-[0-9a-f]{16}\.so")


class Entry(NamedTuple):
    """A file of the cache. `used`: when it was made, or, for programs, loaded last, in seconds since the epoch."""

    path: Path
    kind: str
    size: int
    used: float


def folder() -> Path:
    """Where the cache is. Raises RuntimeError if there is no home folder and no variable that names another one."""
    if named := os.environ.get("HYPEROPT_ID_CACHE"):
        return Path(named).expanduser().absolute()  # a library is looked for by its path alone where that has a slash
    named = os.environ.get("XDG_CACHE_HOME", "")  # a relative one does not count, says its specification
    return (Path(named) if os.path.isabs(named) else _home() / ".cache") / "hyperopt_id"


def _home() -> Path:
    """The home folder; an empty or relative $HOME is none. Raises RuntimeError without one."""
    named = os.environ.get("HOME")
    if named is None or os.path.isabs(named):
        return Path.home()
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError as error:
        raise RuntimeError("there is no home folder") from error


def digest(*parts: str) -> str:
    """A short name for what is made of these parts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def seal(path: Path) -> None:
    """Append the digest that `is_whole` looks for."""
    with open(path, "ab") as file:
        file.write(hashlib.sha256(path.read_bytes()).digest())


def is_whole(path: Path) -> bool:
    content = path.read_bytes() if path.is_file() else b""
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock that the file `path` stands for, waiting while others do; the file's descriptor."""
    with open(path, "w") as file:
        with contextlib.suppress(OSError):  # a file system without locks: at worst two processes make the same
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def is_locked(path: Path) -> bool:
    """Whether someone holds the lock now."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def private(name: str) -> Path:
    """The folder `name` of the cache, which only the user may change; made where it is missing.

    Raises RuntimeError if it belongs to another user, others may write there, it holds what is not the cache's, or it
    cannot be made.
    """
    path = folder() / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        if is_own(path) and not _is_tagged(path) and all(map(_is_of_programs, path.iterdir())):
            (path / TAG).write_text(_SIGNATURE)
    except OSError as error:
        raise RuntimeError(
            f"{path} cannot be made ({error.strerror}): set HYPEROPT_ID_CACHE to a folder that can be written"
        ) from error
    if not is_own(path):
        raise RuntimeError(
            f"{path} can be changed by others, and what is in there is executed: remove it, or set HYPEROPT_ID_CACHE"
        )
    if not _is_tagged(path) and os.access(path, os.W_OK):
        raise RuntimeError(f"{path} holds other things than programs: set HYPEROPT_ID_CACHE to a folder of its own")
    return path


def _is_of_programs(path: Path) -> bool:
    return path.name in (SCRATCH, TAG) or _PROGRAM.fullmatch(path.name) is not None


def _is_tagged(path: Path) -> bool:
    """Whether a folder was made for the cache, and is not another one of its name."""
    return is_own(path) and is_own(path / TAG) and (path / TAG).read_text(errors="replace") == _SIGNATURE


def is_own(path: Path) -> bool:
    """Whether `path` is a folder or regular file of the user's or root's that nobody else may write to."""
    try:
        status = path.lstat()
    except OSError:
        return False
    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        return False  # a link may lead anywhere
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def is_usable(path: Path) -> bool:
    """Whether a file of a private folder may be loaded; it counts as used from now on."""
    try:
        if not (is_own(path) and is_whole(path)):
            return False
    except OSError:
        return False
    with contextlib.suppress(OSError):  # a folder that is only read
        os.utime(path)
    return True


def store(path: Path, content: bytes) -> None:
    """Have a sealed file in a private folder, complete or not at all, and drop those used longest ago."""
    files.replace(path, lambda file: file.write(content + hashlib.sha256(content).digest()))
    kept = 0
    for entry in sorted(entries(path.parent), key=lambda entry: -entry.used):
        kept += entry.size
        if kept > BYTES_KEPT and entry.path != path:
            with contextlib.suppress(OSError):
                entry.path.unlink()


def entries(path: Path, kind: str = "program") -> Iterator[Entry]:
    """The libraries in one folder."""
    with contextlib.suppress(OSError):
        for file in sorted(path.glob("*.so")):
            status = file.lstat()
            if stat.S_ISREG(status.st_mode) and (kind == "program" or _KERNEL.fullmatch(file.name)):
                yield Entry(file, kind, status.st_size, status.st_mtime)


def contents() -> list[Entry]:
    """All that the cache holds: kernels, compiled programs, and the folder of what the compiler keeps for itself."""
    programs, kernels = folder() / PROGRAMS, list(entries(folder(), "kernel"))
    if not _is_tagged(programs):
        return kernels
    own = programs / SCRATCH
    sizes = [path.lstat().st_size for path in own.rglob("*") if path.is_file()]
    scratch = [Entry(own, "compiler", sum(sizes), own.stat().st_mtime)] if sizes else []
    return [*kernels, *entries(programs), *scratch]


def clear() -> list[Entry]:
    """Remove what the cache holds, and nothing else that is in its folder; what was removed. While a program is being
    compiled, its lock stays, and with it the folder and what the compiler keeps for itself."""
    programs = folder() / PROGRAMS
    busy = any(map(is_locked, programs.glob("*.lock")))
    removed = [entry for entry in contents() if not (busy and entry.kind == "compiler")]
    for entry in removed:
        if entry.kind != "compiler":
            entry.path.unlink(missing_ok=True)
    if _is_tagged(programs) and not busy:  # with locks, and what the compiler keeps for itself
        shutil.rmtree(programs, ignore_errors=True)
    return removed
