"""Files that survive a crash: readers, and a machine that lost power, find the old content or the whole new one.

A rename is atomic, but reaches the disk when the system likes, perhaps before what was written to the file. So the
content is synchronized before the rename, and the folder, which knows the name, after it.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


def replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write(file)`` fill ``path``, on the disk when this returns. What fails leaves the old content."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    synchronize(path.parent)


def synchronize(path: Path) -> None:
    """Have on the disk what was written to a file, by whomever, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
