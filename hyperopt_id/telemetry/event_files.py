"""The event files of a folder as files: their order, and what an interrupted process wrote at their end.

    record = length (8 bytes), checksum (4), content, checksum (4)

Readers take the files of a folder by name, which begins with the time, and of two statuses of a session the first.
"""

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

HEADER, CHECKSUM = 12, 4
PREFIX = "events.out.tfevents."


def next_time(folder: Path) -> float:
    """The time for the name of a new file: now, but after all files that are there, whatever the clock says."""
    latest = [max(_named(path), path.stat().st_mtime) for path in folder.glob(f"{PREFIX}*")]
    return max([time.time(), *(known + 1e-3 for known in latest)])


def _named(path: Path) -> float:
    seconds = ".".join(path.name.removeprefix(PREFIX).split(".")[:2])
    return float(seconds) if seconds.replace(".", "", 1).isdigit() else 0.0


def forget_end(folder: Path, label: str) -> None:
    """Cut the last record of each file where it holds `label`: the end of a session that now goes on."""
    for path in folder.glob(f"{PREFIX}*"):
        with open(path, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            last = max(_records(file.fileno(), size), default=None)
            if last is not None and label.encode() in os.pread(file.fileno(), size - last, last):
                file.truncate(last)


def _records(descriptor: int, size: int) -> Iterator[int]:
    """Where the whole records of a file begin."""
    place = 0
    while len(header := os.pread(descriptor, HEADER, place)) == HEADER:
        end = place + HEADER + struct.unpack("<Q", header[:8])[0] + CHECKSUM
        if end > size:
            return
        yield place
        place = end
