"""Files that survive a crash, and readers that trust none.

A rename is atomic, but reaches the disk when the system likes, perhaps before what was written to the file. So the
content is synchronized before the rename, and the folder, which knows the name, after it.

Whatever is read may be damaged, foreign or no file at all: only regular files are opened, their size is bounded before
memory is taken, and the types of what they hold are compared with a form before anything is used. Every error is a
ValueError of one line that begins with the path.
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

MEBIBYTE = 2**20


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Within, an OSError that names no file, as that of a full disk, names this one."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write(file)`` fill ``path``, on the disk when this returns. What fails leaves the old content; an OSError
    names ``path``."""
    temporary = temporary_of(path)
    try:
        remove(temporary)  # a link or pipe of that name, too, which would be written to
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    synchronize(path.parent)


def temporary_of(path: Path) -> Path:
    """What `replace` writes to."""
    return path.with_name(f".{path.name}.tmp")


def remove(path: Path) -> None:
    """Remove a file, link, pipe or empty folder, if there is one. Raises OSError for a folder with something in it."""
    try:
        path.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):
        path.rmdir()


def remove_temporary(paths: Iterable[Path]) -> None:
    """Remove what `replace` left behind when the process was killed; a folder with something in it stays."""
    for path in paths:
        with contextlib.suppress(OSError):
            remove(path)


def make_way(path: Path) -> None:
    """Remove an empty folder that stands where `replace` is to write. Raises ValueError for one that is not empty."""
    for place in (path, temporary_of(path)):
        if place.is_dir() and not place.is_symlink():
            try:
                place.rmdir()
            except OSError as error:
                raise ValueError(f"{place}: is a folder, in the place of a file; remove it to go on") from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, on the disk when this returns."""
    missing = [place for place in (path, *path.parents) if not place.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    for place in missing:
        synchronize(place.parent)


def synchronize(path: Path) -> None:
    """Have on the disk what was written to a file, by whomever, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: str | Path, limit: int | None = None) -> IO[bytes]:
    """The file, opened for reading. Raises ValueError if it cannot be opened, is a folder, pipe or device, or has more
    than `limit` bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer does not block
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and (limit is None or status.st_size <= limit):
        return open(path, "rb", opener=lambda *_: descriptor)
    os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: is no regular file")
    raise ValueError(f"{path}: has {status.st_size} bytes, where at most {limit} are expected")


def open_to_write(path: str | Path, flags: int, mode: int = 0o666) -> int:
    """An `opener` for `open`: a regular file itself. What a link leads to is not ours to write to (ELOOP), and a pipe
    does not keep us waiting for a reader. Raises OSError."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return descriptor


def read(path: str | Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises ValueError as `open_regular` does."""
    with open_regular(path, limit) as file:
        try:
            return file.read()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def read_json_file(path: str | Path, form: Any, limit: int = 64 * MEBIBYTE) -> Any:
    """The value that a JSON file holds, which has the form (see `check_form`). Raises ValueError if it has not."""
    content = read(path, limit)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON ({' '.join(str(error).split())})") from error
    check_form(value, form, f"{path}")
    return value


def check_form(value: Any, form: Any, where: str) -> None:
    """Raise ValueError if `value` has not the form, naming the entry after `where`.

    A form is a type or tuple of types (`float` takes integers, too, and nothing but `bool` takes booleans), a mapping
    {key: form} with other keys left alone and those that end in "?" optional, a list [form] for lists of it, or a
    function that says whether a value will do and whose docstring says what is needed. `object` takes anything.
    """
    if isinstance(form, Mapping):
        _need(isinstance(value, dict), "a mapping", value, where)
        for key, inner in form.items():
            name = key.removesuffix("?")
            if name in value:
                check_form(value[name], inner, f"{where}: {name}")
            elif name == key:
                raise ValueError(f"{where}: {name} is missing")
    elif isinstance(form, list):
        _need(isinstance(value, list), "a list", value, where)
        for index, entry in enumerate(value):
            check_form(entry, form[0], f"{where}[{index}]")
    elif isinstance(form, type | tuple):
        types = form if isinstance(form, tuple) else (form,)
        wanted = {*types, int} if float in types else {*types}
        _need(object in wanted or type(value) in wanted, " or ".join(map(_type_name, types)), value, where)
    else:
        _need(form(value), " ".join((form.__doc__ or form.__name__).split()), value, where)


def shorten(text: str, most: int = 60) -> str:
    """The text on one line of at most `most` characters, for a message; what is longer keeps its two ends."""
    if len(text) <= 4 * most and len(line := " ".join(text.split())) <= most:
        return line
    first, last = " ".join(text[: 4 * most].split()), " ".join(text[-4 * most :].split())
    ahead = 2 * (most - 3) // 3
    return f"{first[:ahead]}...{last[ahead + 3 - most :]}"


def _need(holds: bool, needed: str, value: Any, where: str) -> None:
    if not holds:
        plain = isinstance(value, bool | int | float | str | None)
        raise ValueError(f"{where}: needs {needed}, found {shorten(repr(value) if plain else _type_name(type(value)))}")


def _type_name(kind: type) -> str:
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false", dict: "a mapping"}
    return {**names, list: "a list", type(None): "null"}.get(kind, kind.__name__)
