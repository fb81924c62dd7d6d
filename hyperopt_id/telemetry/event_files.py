"""The event files of a folder as files: their order, and what an interrupted process wrote at their end.

    record = length (8 bytes), checksum (4), content, checksum (4)

Readers take the files of a folder by name, which begins with the time, and of two statuses of a session the first.
"""

import os
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hyperopt_id.files import open_to_write

HEADER, CHECKSUM = 12, 4
MOST_BYTES = 1 << 20  # that are read of a record: those of a session's end are short
PREFIX = "events.out.tfevents."


def next_time(folder: Path) -> float:
    """The time for the name of a new file: now, but after all files that are there, whatever the clock says."""
    latest = [max(_named(path), path.lstat().st_mtime) for path in folder.glob(f"{PREFIX}*")]
    return max([time.time(), *(known + 1e-3 for known in latest)])


def _named(path: Path) -> float:
    seconds = ".".join(path.name.removeprefix(PREFIX).split(".")[:2])
    return float(seconds) if seconds.replace(".", "", 1).isdigit() else 0.0


def forget_end(folder: Path, label: str) -> None:
    """Cut the last record of each file where it holds `label`: the end of a session that now goes on. What is no file
    that can be written stays."""
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError), open(path, "r+b", opener=open_to_write) as file:
            size = os.fstat(file.fileno()).st_size
            begin, end = max(_records(file.fileno(), size), default=(0, 0))
            if label.encode() in os.pread(file.fileno(), min(end - begin, MOST_BYTES), begin):
                file.truncate(begin)


def _records(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the whole records of a file begin and end."""
    place = 0
    while len(header := os.pread(descriptor, HEADER, place)) == HEADER:
        length = struct.unpack("<Q", header[:8])[0]
        end = place + HEADER + length + CHECKSUM
        if end > size or not length:  # zeros, as many as a file of nothing can have
            return
        yield place, end
        place = end
