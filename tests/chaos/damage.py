"""Damage of any file: bits, cuts, blocks, another content, no regular file at all.

A damage is a function (path, chance) -> what was done; all that is random in it follows from `chance`.
"""

import gzip
import os
import pickle
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandbox import TRAP

Damage = Callable[[Path, random.Random], str]


class Harmful:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (TRAP,)


def flip(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    places = [chance.randrange(len(content)) for _ in range(chance.choice((1, 1, 1, 8, 64)))]
    for place in places:
        content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return f"bits at {places[:3]}"


def cut(path: Path, chance: random.Random) -> str:
    content = path.read_bytes()
    place = chance.choice((0, 1, 4, 8, len(content) - 1, chance.randrange(len(content))))
    path.write_bytes(content[:place])
    return f"cut at {place}"


def blocks(path: Path, chance: random.Random) -> str:
    content = path.read_bytes()
    place, size = chance.randrange(len(content)), chance.choice((1, 16, 512))
    block = content[place : place + size]
    new = chance.choice((b"", bytes(size), block * 3, chance.randbytes(size), b"\xff" * size))
    path.write_bytes(content[:place] + new + content[place + size :])
    return f"block of {size} at {place} replaced by {len(new)}"


def longer(path: Path, chance: random.Random) -> str:
    content, more = path.read_bytes(), chance.choice((b"\0", chance.randbytes(1000), bytes(2**20), b"\n,,\n\n"))
    path.write_bytes(content + more if chance.random() < 0.7 else more + content)
    return f"{len(more)} bytes more"


def other(path: Path, chance: random.Random) -> str:
    harm = pickle.dumps(Harmful())
    contents = [b"", b"\0" * 100, chance.randbytes(3000), b"{}", b"<html>404</html>", harm, pickle.dumps([1] * 9)]
    contents += [
        gzip.compress(bytes(2**24)),
        b"PK\x05\x06" + bytes(18),
        b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    ]
    number = chance.randrange(len(contents))
    path.write_bytes(contents[number])
    return f"another file, {number}"


def special(path: Path, chance: random.Random) -> str:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    makes: dict[str, Callable[[], object]] = {
        "a pipe": lambda: os.mkfifo(path),
        "a folder": path.mkdir,
        "a folder with a file": lambda: (path.mkdir(), (path / "file").touch()),
        "a link to itself": lambda: path.symlink_to(path),
        "a device": lambda: path.symlink_to("/dev/zero"),
        "a full device": lambda: path.symlink_to("/dev/full"),
        "a link to nothing": lambda: path.symlink_to(TRAP),  # a file of this name has been written through it
        "nothing": lambda: None,
    }
    what = chance.choice(list(makes))
    makes[what]()
    return what


def huge(path: Path, chance: random.Random) -> str:
    with open(path, "ab") as file:
        file.truncate(2**40)
    return "a file of 1 TB with nothing in it"


def records(path: Path, chance: random.Random) -> str:
    """The records of a zip archive, packed, doubled, renamed, exchanged, replaced."""
    with zipfile.ZipFile(path) as archive:
        found = [(name, archive.read(name)) for name in archive.namelist()]
    how, number = chance.randrange(7), chance.randrange(len(found))
    name, content = found[number]
    changed = {
        0: (name, bytes(2**28)),
        1: (name + "x", content),
        2: (name, b""),
        3: ("../../outside", content),
        4: (name, content[: len(content) // 2]),
        5: (name, chance.randbytes(len(content))),
        6: (name, content),
    }
    found[number] = changed[how]
    if how == 6:
        found += found[:1]
    compression = zipfile.ZIP_DEFLATED if how == 0 or chance.random() < 0.3 else zipfile.ZIP_STORED
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in found:
            archive.writestr(name, content)
    return f"record {number} changed, {how}"


COMMON: tuple[Damage, ...] = (flip, flip, cut, cut, blocks, blocks, longer, other, special, huge)
