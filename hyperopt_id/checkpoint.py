"""Checkpoints: one tree per file, written atomically, verified when read, restored to the last bit.

    directory/step_000001200.pt    {"format", "step", "tree", "identity", "reports", "trace", "digest"}, by torch.save
    directory/latest               the name of the newest of them, for people and scripts

`identity` says whose it is (see `build.identity`), `reports` is the SHA-256 of the reports that it follows, `trace`
knows the rows of the trace that come before it (`Trace.written`); each is None where nobody said it. `digest` is the
SHA-256 of all the rest. Files of earlier versions lack some of these. A tree is built of tensors, numbers, strings,
booleans, None, lists, tuples and dictionaries, nothing else, which is what ``weights_only`` reads without running code.
Two invariants hold at every instant, also when the process is killed or the machine loses power in the middle of
``save``:

* a ``step_*.pt`` is complete: it is written under another name in the same folder, synchronized to the
  disk, and renamed;
* once ``save`` has returned, its checkpoint survives: the folder is synchronized before older files are
  removed.

``load`` trusts nothing: a file counts only when it is a regular file, not larger than what is expected, holds what it
declares, uncompressed, the CRC-32 of each of its records is right, ``torch.load`` reads it, it is of the step that its
name says, and its content has the digest that was saved with it.
"""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from hyperopt_id import files
from hyperopt_id.tasks.digests import digest

FORMAT = 1
_NAME = re.compile(r"step_(\d+)\.pt")
_LEAVES = (bool, int, float, str, type(None))
_ALLOWED = "allowed are tensors, numbers, strings, booleans, None, lists, tuples and dictionaries"
Check = Callable[[dict[str, Any]], object]  # of what a file holds; raises ValueError if it will not do
_warn = partial(warnings.warn, stacklevel=3)  # the place that it names is the one that called `load`


def save(
    directory: str | Path,
    tree: Any,
    step: int,
    keep: int,
    identity: Any = None,
    reports: str | None = None,
    trace: Any = None,
) -> Path:
    """Write ``tree`` as the newest checkpoint of ``directory``; the ``keep`` newest remain.

    Files of later steps are removed: they belong to a continuation that was abandoned by resuming before
    them. ``OSError`` (disk full, no permission) leaves the earlier checkpoints as they were.
    """
    if keep < 1:
        raise ValueError(f"checkpoints to keep must be at least 1, not {keep}")
    directory = Path(directory)
    files.make_folder(directory)
    _remove_temporary(directory)
    record = {"format": FORMAT, "step": step, "tree": _portable(tree, ""), "identity": _portable(identity, "identity")}
    record |= {"reports": reports, "trace": _portable(trace, "trace")}
    record["digest"] = _digest(record)
    path = directory / f"step_{step:09d}.pt"
    files.replace(path, lambda file: _write(record, file))
    _name_latest(directory, path.name)
    up_to_now = [known for known in _newest_first(directory) if _step(known) <= step]
    _remove(directory, set(_newest_first(directory)) - set(up_to_now[:keep]))
    return path


def _write(record: dict[str, Any], file: IO[bytes]) -> None:
    """Let torch write; where the disk refuses, it raises a RuntimeError of many lines instead of what the disk said."""
    refusals: list[OSError] = []

    class Watched:
        def write(self, content: Any) -> int:
            try:
                return file.write(content)
            except OSError as error:
                refusals.append(error)
                raise

        def flush(self) -> None:
            file.flush()

    try:
        torch.save(record, Watched())  # pyright: ignore[reportArgumentType]
    except RuntimeError:
        if refusals:
            raise refusals[0] from None
        raise


def tidy(directory: str | Path, step: int, keep: int) -> None:
    """Finish what a killed ``save`` left, before continuing from the checkpoint of ``step``: no temporary files,
    ``latest`` names that checkpoint, and the ``keep`` newest up to it remain. Later ones stay until the next ``save``,
    for they may be wanted."""
    directory = Path(directory)
    _remove_temporary(directory)
    _remove(directory, [known for known in _newest_first(directory) if _step(known) <= step][keep:])
    name, latest = f"step_{step:09d}.pt", directory / "latest"
    try:
        named = files.read(latest, len(name) + 1).decode("ascii", "replace").strip()
    except ValueError:
        named = None
    if named != name and (directory / name).exists():
        _name_latest(directory, name)


def _remove(directory: Path, stale: Collection[Path]) -> None:
    for path in stale:
        path.unlink()
    if stale:
        files.synchronize(directory)


def _name_latest(directory: Path, name: str) -> None:
    try:
        files.make_way(latest := directory / "latest")
    except ValueError:  # a folder with something in it stays: nothing here needs the name
        return
    files.replace(latest, lambda file: file.write(name.encode() + b"\n"))


def load(
    directory: str | Path,
    warn: Callable[[str], object] = _warn,
    check: Check = lambda record: None,
    limit: int | None = None,
) -> tuple[Any, int]:
    """Return (tree, step) of the newest checkpoint that can be read, with every tensor on the CPU; see
    ``load_record``."""
    record = load_record(directory, warn, check, limit)
    return record["tree"], record["step"]


def load_record(
    directory: str | Path,
    warn: Callable[[str], object] = _warn,
    check: Check = lambda record: None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Return what the newest checkpoint that can be read holds, with every tensor on the CPU.

    ``warn`` (default: a ``UserWarning``) is told of each newer one that cannot, with the reason; ``ValueError``,
    with all reasons, when none is left. One that ``check`` refuses, or that has more than ``limit`` bytes, is passed
    over as a damaged one is.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"no checkpoint to load: {directory} is not a directory")
    reasons = []
    for path in _newest_first(directory):
        try:
            return _read(path, check, limit)
        except Exception as error:  # damage can surface as almost any exception, and all of them mean the same
            reason = f"{type(error).__name__}: {_said(error, path)}"
            warn(f"checkpoint {path} is unusable and is passed over ({reason})")
            reasons.append(f"{path.name}: {reason}")
    none = f"no checkpoint to load: {directory} holds no usable step_*.pt"
    raise ValueError("; ".join([none, *reasons, "start the run anew"]))


def _read(path: Path, check: Check, limit: int | None) -> dict[str, Any]:
    with files.open_regular(path, limit) as file, warnings.catch_warnings(action="ignore"):
        _verify(file)
        record = torch.load(file, map_location="cpu", weights_only=True)
    files.check_form(record, {"format": int, "step": int, "tree": object}, "it")
    if record["format"] != FORMAT:
        raise ValueError(f"format {record['format']}, this version reads {FORMAT}")
    if record["step"] != _step(path):
        raise ValueError(f"it is of step {record['step']}, and its name says {_step(path)}")
    check(record)
    if record.get("digest", saved := _digest(record)) != saved:
        raise ValueError("its content is not the one that was saved")
    return record


def read_trace_state(directory: Path, step: int) -> Any:
    """What the checkpoint of ``step`` says of the trace, read without its tensors; None if it says nothing."""
    path = directory / f"step_{step:09d}.pt"
    try:
        with files.open_regular(path):
            record = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        files.check_form(record, {"trace": {"every": int, "rows": int, "checksums": dict}}, "it")
    except Exception:  # it is of an earlier version; what is damaged `load` has passed over
        return None
    return record["trace"]


def _digest(record: dict[str, Any]) -> str:
    return digest(*_pieces({key: value for key, value in record.items() if key != "digest"}))


def _pieces(tree: Any) -> Iterator[str | Tensor]:
    """What a tree consists of, in an order that says how."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        yield f"{type(tree).__name__} {len(tree)}"
        for entry in tree:
            yield from (repr(entry), *_pieces(tree[entry])) if isinstance(tree, dict) else _pieces(entry)
    else:
        yield repr(tree)


def _verify(file: IO[bytes]) -> None:
    """Raise ValueError if an archive is damaged, or would take more memory than it has bytes."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:  # torch.load itself does not compare checksums
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, which a checkpoint never is")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("it declares more bytes than it has")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"checksum of {damaged} is wrong")
    file.seek(0)


def _said(error: Exception, path: Path) -> str:
    """What an error says, on one line, but for torch's errors, which advise to run code from the file."""
    if isinstance(error, pickle.UnpicklingError):
        return f"it holds something else than what a checkpoint may; {_ALLOWED}"
    if isinstance(error, RuntimeError):
        return "torch cannot read it"
    return files.shorten(str(error).removeprefix(f"{path}: "), 300)


def _portable(tree: Any, where: str) -> Any:
    """``tree`` with tensors detached and owning their storage (a view would write all that it views)."""
    if isinstance(tree, Tensor):
        leaf = tree.detach()
        whole = leaf.untyped_storage().nbytes() == leaf.numel() * leaf.element_size()
        return leaf if whole else leaf.clone()
    if isinstance(tree, dict):
        return {_key(key, where): _portable(value, f"{where}/{key}") for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_portable(value, f"{where}/{i}") for i, value in enumerate(tree))
    if type(tree) in _LEAVES:
        return tree
    raise TypeError(f"checkpoint entry {where or '/'} is a {type(tree).__name__}; {_ALLOWED}")


def _key(key: Any, where: str) -> str | int:
    if type(key) not in (str, int):
        raise TypeError(f"checkpoint entry {where or '/'} has a key of type {type(key).__name__}, not a string")
    return key


def _remove_temporary(directory: Path) -> None:
    """Remove what a killed ``save`` left behind; a run directory has one writer, so nobody is using it."""
    files.remove_temporary(directory.glob(".*.tmp"))


def _newest_first(directory: Path) -> list[Path]:
    known = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(known, key=_step, reverse=True)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match.group(1))
