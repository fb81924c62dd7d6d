"""What a disk holds after a power loss: what was synchronized, and of the rest anything.

    a file       what was there at its last fsync, written over by what is there now or not, and a part of what is new
    a name       what it stood for when its folder was last synchronized, or stands for now

Each is drawn anew, for a file system may write them in any order.
"""

import os
import random
import shutil
from pathlib import Path
from typing import Any

Content = bytes


class File:
    """A file, whatever its name is now; `synced` is what the disk is sure to hold of it."""

    def __init__(self) -> None:
        self.synced: Content = b""


class Disk:
    """Follows the operations of a process below `folder`, which is on the disk itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, File] = {}  # path -> what it names now
        self.names: dict[str, dict[str, File | None]] = {str(folder): {}}  # folder -> names on the disk
        self.scan()  # what is there when the process starts has been there for long
        for path, file in self.files.items():
            file.synced = Path(path).read_bytes()
        for place in self._folders():
            self.names[str(place)] = self._present(place)

    def install(self) -> None:
        """Follow fsync, replace, and unlink of this process."""
        fsync, replace, unlink = os.fsync, os.replace, os.unlink

        def synced(descriptor: int) -> None:
            fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self.scan()
            if path.is_dir():
                self.names[str(path)] = self._present(path)
            elif str(path) in self.files:
                self.files[str(path)].synced = path.read_bytes()

        def replaced(source: Any, target: Any) -> None:
            self.scan()
            replace(source, target)
            if str(source) in self.files:
                self.files[str(target)] = self.files.pop(str(source))

        def unlinked(path: Any, *others: Any, **named: Any) -> None:
            self.scan()
            unlink(path, *others, **named)
            self.files.pop(str(path), None)

        os.fsync, os.replace, os.unlink = synced, replaced, unlinked

    def scan(self) -> None:
        """New files are known from now on, and those that are gone no longer."""
        there = {str(path) for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()}
        self.files = {path: file for path, file in self.files.items() if path in there}
        for path in there - self.files.keys():
            self.files[path] = File()

    def _folders(self) -> list[Path]:
        return [self.folder, *(path for path in self.folder.rglob("*") if path.is_dir())]

    def _present(self, place: Path) -> dict[str, File | None]:
        return {path.name: self.files.get(str(path)) for path in place.iterdir()}

    def lose(self, chance: random.Random) -> None:
        """Leave in the folder what may be on the disk."""
        self.scan()
        contents = {file: (file.synced, Path(path).read_bytes()) for path, file in self.files.items()}
        self._lose(self.folder, contents, chance)

    def _lose(self, place: Path, contents: dict[File, tuple[Content, Content]], chance: random.Random) -> None:
        now, before = self._present(place), self.names.get(str(place), {})
        for name in sorted(now.keys() | before.keys()):
            path = place / name
            states = [name in now and (now[name],), name in before and (before[name],)]
            kept = chance.choice(states) if states[0] != states[1] else states[0]
            if path.is_dir():
                self._lose(path, contents, chance) if kept else shutil.rmtree(path)
                continue
            path.unlink(missing_ok=True)
            if isinstance(kept, tuple) and kept[0] is not None:
                synced, present = contents.get(kept[0], (kept[0].synced,) * 2)
                path.write_bytes(present if synced == present else _either(synced, present, chance))


def _either(synced: Content, present: Content, chance: random.Random) -> Content:
    """Of a file whose content has changed since it was synchronized. What was synchronized is written over in place, in
    any order; what is behind it is there, or zeros, as far as the disk has come; a file that was cut is so, or not."""
    known = len(synced)
    if len(present) < known:
        return chance.choice([synced, present])
    border = chance.randint(0, known)
    parts = [
        synced[:known],
        present[:known],
        present[:border] + synced[border:],
        synced[:border] + present[border:known],
    ]
    behind = present[known : chance.randint(known, len(present))]
    return chance.choice(parts) + chance.choice([behind, bytes(len(behind)), present[known:], b""])
