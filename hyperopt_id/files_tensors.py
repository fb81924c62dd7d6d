"""Reading files of `torch.save` that may be damaged, foreign, or made to fill the memory.

A file counts if it is a regular one of bounded size, its records are stored (not compressed) with their checksums
right, what it holds is read without running code, and every tensor owns as much memory as it has elements. Tensors are
read as values, without a gradient.
"""

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperopt_id import files

NEEDED = "a file of torch.save with tensors, numbers, lists and dictionaries alone"


def load(path: str | Path, limit: int, needed: str = NEEDED) -> Any:
    """What `torch.save` has written: tensors on the CPU, numbers, text, lists, tuples and dictionaries.

    Raises ValueError of one line if the file has more than `limit` bytes, packed or not, or is anything else than
    `needed` says.
    """
    content = files.read(path, limit)
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            _check_records(content, limit)
        with warnings.catch_warnings(action="ignore"):
            value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        _check_tensors(value)
    except Exception as error:  # damage surfaces as almost any exception, some of many lines with advice of torch's
        reason = str(error) if isinstance(error, _UnfitError) else type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}); needed, undamaged: {needed}") from error
    return value


class _UnfitError(Exception):
    """The text says in few words what is wrong with a file."""


def _check_records(content: bytes, limit: int) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise _UnfitError("its records are compressed")
        if sum(record.file_size for record in records) > limit:
            raise _UnfitError(f"its records have more than {limit} bytes")
        if (damaged := archive.testzip()) is not None:  # torch.load does not compare checksums
            raise _UnfitError(f"the checksum of {files.shorten(damaged)} is wrong")


def _check_tensors(value: Any) -> None:
    pending, seen = [value], set()
    while pending:
        entry = pending.pop()
        if isinstance(entry, Tensor):
            if entry.layout != torch.strided or entry.device.type != "cpu" or entry.is_quantized:
                raise _UnfitError(f"a tensor is {entry.layout} on {entry.device.type}, not an ordinary one")
            if entry.numel() * entry.element_size() > entry.untyped_storage().nbytes():
                raise _UnfitError(f"a tensor of shape {files.shorten(str(list(entry.shape)))} repeats its memory")
            entry.requires_grad_(False)  # what a file holds are values
        elif id(entry) not in seen and isinstance(entry, Mapping | list | tuple):
            seen.add(id(entry))
            pending += [*entry, *entry.values()] if isinstance(entry, Mapping) else entry
