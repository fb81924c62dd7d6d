"""Getting files that are not there: sources tried in turn, checksums, atomic writes, a progress bar.

A file appears under its final name only when it is complete and its checksum is right.
"""

import gzip
import hashlib
import http.client
import io
import logging
import os
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from hyperopt_id import files

logger = logging.getLogger("hyperopt_id")
MOST_BYTES = 256 * files.MEBIBYTE  # of a file, and of what it holds compressed; the largest has 163
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 18


class Source(NamedTuple):
    """Where files may come from. `provide(names, scratch)` returns the folder that holds them (`scratch` is
    an empty folder it may use) or raises `Unavailable`."""

    label: str
    provide: Callable[[Sequence[str], Path], Path]


class Unavailable(Exception):  # noqa: N818 - not an error for the user, only for the next source to be tried
    """This source cannot provide the files; the text says why."""


def fetch(name: str, target: Path, checksums: Mapping[str, str], sources: Sequence[Source], cure: str) -> None:
    """Fill the folder `target` with the files of `checksums` (file name -> see `read_verified`) from the
    first source whose files all have the right checksums. When none does, a ValueError lists what was tried
    and ends with `cure`, the commands that would provide the files."""
    failures = []
    for source in sources:
        say(f"{name}: not in {target}, trying {source.label}")
        with tempfile.TemporaryDirectory(prefix="hyperopt_id_") as scratch:
            try:
                folder = source.provide(list(checksums), Path(scratch))
                for file, checksum in checksums.items():
                    verify(folder / file, checksum)
            except (Unavailable, ValueError) as reason:
                failures.append(f"{source.label}: {reason}")
                continue
            _install(folder, target, list(checksums))
            say(f"{name}: {len(checksums)} files from {source.label} are in {target}, checksums right")
            return
    tried = "".join(f"\n  - {failure}" for failure in failures)
    why = f"no source could provide it:{tried}\n" if sources else "downloading is switched off. "
    raise ValueError(f"{name} is not in {target} and {why}{cure}")


def _install(folder: Path, target: Path, names: Sequence[str]) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file in names:
            with open(folder / file, "rb") as stream:
                write_atomically(target / file, iter(lambda: stream.read(CHUNK_BYTES), b""))
    except OSError as error:
        raise ValueError(
            f"cannot write the data set to {target} ({error.strerror}): choose a writable folder with --data-root"
        ) from error


def write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    """Write an iterable of bytes to a temporary file beside `path`, flush it to the disk, then rename it."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files only their owner can read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def web(url: str) -> Source:
    """Files below an address: `url`/name."""

    def provide(names: Sequence[str], scratch: Path) -> Path:
        for name in names:
            download(f"{url}/{name}", scratch / name)
        return scratch

    return Source(url, provide)


def download(url: str, path: Path) -> None:
    """Fetch one file with a progress bar; `Unavailable` where that fails or the file ends early."""
    request = urllib.request.Request(url, headers={"User-Agent": "hyperopt-id"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            total = int(response.headers.get("Content-Length") or 0)
            with progress(path.name, total) as bar, open(path, "wb") as stream:
                while chunk := response.read(CHUNK_BYTES):
                    if stream.tell() + len(chunk) > MOST_BYTES:
                        raise Unavailable(f"{path.name}: has more than {MOST_BYTES} bytes")
                    stream.write(chunk)
                    bar.update(len(chunk))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"{path.name}: {error}") from error
    if total and path.stat().st_size != total:
        raise Unavailable(f"{path.name}: ended after {path.stat().st_size} of {total} bytes")


def progress(label: str, total: int) -> tqdm:
    """A bar in bytes; where standard error is no terminal it is redrawn rarely, to keep log files short."""
    rarely = 0.1 if sys.stderr.isatty() else 5.0
    return tqdm(desc=label, total=total or None, unit="B", unit_scale=True, unit_divisor=1024, mininterval=rarely)


def say(text: str) -> None:
    """One line for the user, above any progress bar."""
    tqdm.write(text, file=sys.stderr)


def read_verified(path: Path, checksum: str) -> bytes:
    """The content of a file whose checksum was found right; a wrong one is a ValueError, and so are more than
    `MOST_BYTES`, before or after decompression.

    "sha256:..." and "md5:..." are checksums of the file's bytes. With "gzip " in front, as in "gzip
    sha256:...", the file is decompressed and the checksum is that of the result: distributors compress the
    same data anew.
    """
    zipped = checksum.startswith("gzip ")
    algorithm, _, expected = checksum.removeprefix("gzip ").partition(":")
    content = files.read(path, MOST_BYTES)
    actual = hashlib.new(algorithm, content).hexdigest()
    if zipped:
        try:
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MOST_BYTES + 1)
            actual = hashlib.new(algorithm, content).hexdigest()
        except (OSError, EOFError, zlib.error) as error:
            actual += f" as it is, and it cannot be decompressed ({error})"
        if len(content) > MOST_BYTES:
            actual += f" of its first {MOST_BYTES} bytes"
    if actual != expected:
        what = "content" if zipped else "file"
        raise ValueError(
            f"{path} is corrupt: the {algorithm.upper()} checksum of its {what} should be {expected}, "
            f"but it is {actual}; delete the file and start again to fetch it anew"
        )
    return content


def read_known(folder: Path, checksums: Mapping[str, str], name: str) -> list[bytes]:
    """The content of the files of `checksums` in `folder`, in that order. Where some have the right checksum, the
    others are corrupt, a ValueError; where none has, they are other data of the same form, which the log says."""
    wrong, contents = [], []
    for file, checksum in checksums.items():
        try:
            contents.append(read_verified(folder / file, checksum))
        except ValueError as error:
            wrong.append(error)
            contents.append(files.read(folder / file, MOST_BYTES))
    if len(wrong) == len(checksums):
        logger.warning("%s: no file in %s has the checksum of the published one: these are other data", name, folder)
    elif wrong:
        raise wrong[0]
    return contents


def verify(path: Path, checksum: str) -> None:
    """Raise a ValueError unless the file is there and has this checksum (see `read_verified`)."""
    if not os.path.isfile(path):
        raise ValueError(f"{path} is missing")
    read_verified(path, checksum)
