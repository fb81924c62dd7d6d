"""Starting from given weights.

An npz archive is a zip of arrays, each with a header that says its type and shape. Headers are compared with the model
before any array is read, so that an archive takes no more memory than the model does, whatever it claims.
"""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from hyperopt_id import files

Tensors = dict[str, Tensor]
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def load_weights(path: Path | str, params: Tensors, buffers: Tensors) -> tuple[Tensors, Tensors]:
    """(params, buffers) with the values of an npz archive, names and shapes as in `state_dict`; device and
    type stay those of `params`. Every parameter must be there; buffers may be left out. A missing file, a
    wrong name, shape or type, and numbers that are not finite or do not fit the type are a ValueError that says
    which."""
    known = {**params, **buffers}
    limit = files.MEBIBYTE + sum(4096 + 32 * value.numel() for value in known.values())
    if not os.path.exists(path):
        raise ValueError(f"init_from: there is no file {path}")
    with _opened(path, limit) as stream:
        try:
            arrays = _arrays(stream, known, params)
        except _UnfitError as error:
            raise ValueError(f"init_from: {path}{error}") from None
        except Exception as error:  # damage surfaces as almost any exception
            reason = files.shorten(str(error) or type(error).__name__, 200)
            raise ValueError(f"init_from: {path} is not a readable npz archive of arrays ({reason})") from error

    def given(tensors: Tensors) -> Tensors:
        return {
            name: _like(arrays[name], value, f"init_from: {path}: {name}") if name in arrays else value
            for name, value in tensors.items()
        }

    return given(params), given(buffers)


def _opened(path: Path | str, limit: int) -> IO[bytes]:
    try:
        return files.open_regular(path, limit)
    except ValueError as error:
        raise ValueError(f"init_from: {error}") from error


class _UnfitError(Exception):
    """An archive that can be read does not fit the model; the text goes on after the path."""


def _arrays(stream: IO[bytes], known: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(stream) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if any(name.endswith("/data.pkl") for name in names):
            raise _UnfitError(" is a file of torch.save; an npz archive is needed, as numpy.savez writes it")
        missing = [name for name in needed if name not in names]
        unknown = [name for name in names if name not in known]
        if missing or unknown:
            shown = [files.shorten(str(found), 100) if found else "nothing" for found in (missing, unknown)]
            has = files.shorten(str(list(known)), 200)
            raise _UnfitError(f" does not fit the model: missing {shown[0]}, unknown {shown[1]}; the model has {has}")
        if len({*names}) < len(names):
            raise _UnfitError(" holds two arrays of one name")
        members = zip(names, archive.infolist(), strict=True)
        return {name: _array(archive, member, known[name], name) for name, member in members}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, like: Tensor, name: str) -> np.ndarray:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in HEADERS:
            raise _UnfitError(f": {name} holds something else than numbers")
        shape, _, dtype = HEADERS[version](stream)
    if shape != tuple(like.shape):
        given = files.shorten(str(shape))
        raise _UnfitError(f": {name} has shape {given}, the model needs {tuple(like.shape)}")
    if dtype.kind not in ("fiubc" if like.is_complex() else "fiub"):
        raise _UnfitError(f": {name} holds {files.shorten(str(dtype))}, real numbers are needed")
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):  # also compares the checksum, at the end
            raise _UnfitError(f": {name} has more bytes than its header says")
    return array


def _like(array: np.ndarray, value: Tensor, where: str) -> Tensor:
    """The numbers of `array` in the type of `value`. Raises ValueError if one is not finite or does not fit."""
    wide = np.complex128 if array.dtype.kind == "c" else np.float64 if array.dtype.kind == "f" else None
    if not np.isfinite(array).all():
        raise ValueError(f"{where} has numbers that are not finite")
    with np.errstate(over="ignore"):
        plain = torch.from_numpy(np.array(array, dtype=wide or array.dtype.newbyteorder("=")))
    result = plain.to(value.device, value.dtype)
    exact = value.is_floating_point() or value.is_complex()
    if not (result.isfinite().all() if exact else torch.equal(result.to(plain), plain)):
        raise ValueError(f"{where} has numbers that {str(value.dtype).removeprefix('torch.')} does not hold")
    return result
