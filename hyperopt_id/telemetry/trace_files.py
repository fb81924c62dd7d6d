"""Files of rows: npy files of known length that are written row by row.

    header of the npy format | row 0 | row 1 | ... | row N - 1

They are written by `pwrite` and not through memory maps, for a map keeps a file descriptor each, and where the disk is
full it ends the process by SIGBUS. What was never written is 0. The rows that were written one after the other from the
first have a running CRC-32, by which they are known again.
"""

import errno
import math
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hyperopt_id.files import make_folder, naming, open_regular, synchronize

BLOCK = 2**20  # bytes
Shape = tuple[int, ...]


class _Header(NamedTuple):
    shape: Shape
    dtype: np.dtype
    offset: int  # of row 0


class RowFile:
    """An npy file [rows, ...], open all the time (`keep_open`) or for every row; its first `rows` rows have the CRC-32
    `checksum`."""

    def __init__(self, path: Path, header: _Header, keep_open: bool) -> None:
        self.rows, self.checksum = 0, 0
        self._path, self._header = path, header
        self._row = header.dtype.itemsize * math.prod(header.shape[1:])
        self._descriptor = os.open(path, os.O_WRONLY) if keep_open else None

    def write(self, row: int, values: np.ndarray) -> None:
        """Write a row; one of the first `rows`, which are written again after a resume, has the value it had."""
        self.write_all(values[None], row)

    def write_all(self, rows: np.ndarray, first: int = 0) -> None:
        """Write rows, from row `first` on."""
        content = np.ascontiguousarray(rows, self._header.dtype).reshape(-1).view(np.uint8).data
        self._write(self._header.offset + first * self._row, content)
        if first == self.rows:
            self.rows, self.checksum = first + len(rows), zlib.crc32(content, self.checksum)

    def keep(self, rows: int, checksum: int | None = None) -> bool:
        """Go on behind the first `rows` rows of the file; False, with nothing done, if these have another checksum than
        the one given."""
        found = _checksum(self._path, self._header.offset, rows * self._row)
        if checksum not in (None, found):
            return False
        self.rows, self.checksum = rows, found
        return True

    def forget(self, rows: int) -> None:
        """Make the first `rows` rows unknown."""
        nothing = np.full(self._header.shape[1:], math.nan, self._header.dtype)
        for row in range(rows):
            self.write(row, nothing)

    def _write(self, offset: int, content: memoryview) -> None:
        descriptor = os.open(self._path, os.O_WRONLY) if self._descriptor is None else self._descriptor
        try:
            while content:
                written = os.pwrite(descriptor, content, offset)
                content, offset = content[written:], offset + written
        finally:
            if self._descriptor is None:
                os.close(descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def open_rows(path: Path, shape: Shape, dtype: np.dtype, *, again: bool, keep_open: bool) -> tuple[RowFile, bool]:
    """(the file, whether it is new): the one that is there, `again`, where it has this shape and type."""
    if again and not path.is_symlink():
        try:
            header = _header(path)
        except ValueError:
            header = None
        if header is not None and (header.shape, header.dtype) == (shape, dtype):
            return RowFile(path, header, keep_open), False
    return RowFile(path, _create(path, shape, dtype), keep_open), True


def _create(path: Path, shape: Shape, dtype: np.dtype) -> _Header:
    """A file of zeros, with its space on the disk. What is there goes, and is not written to, for it may be a link to a
    file elsewhere."""
    make_folder(path.parent)
    path.unlink(missing_ok=True)
    with naming(path), open(path, "xb") as file:
        about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, about)
        offset, size = file.tell(), dtype.itemsize * math.prod(shape)
        file.flush()
        _allocate(file.fileno(), offset + size)
        os.fsync(file.fileno())
    synchronize(path.parent)
    return _Header(shape, dtype, offset)


def _allocate(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(descriptor, size)  # a file system that cannot promise space


def _checksum(path: Path, offset: int, size: int) -> int:
    """CRC-32 of `size` bytes of a file, or of those that there are."""
    checksum = 0
    with open_regular(path) as file:
        file.seek(offset)
        while size and (block := file.read(min(size, BLOCK))):
            checksum, size = zlib.crc32(block, checksum), size - len(block)
    return checksum


def _header(path: Path) -> _Header:
    """Raises ValueError unless the file is a whole npy file of rows."""
    with open_regular(path) as file:
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("of another version of the format")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # damage can surface as almost any exception
            raise ValueError(f"{path}: is damaged, or no npy file") from error
        offset, size = file.tell(), os.fstat(file.fileno()).st_size
    if fortran or dtype.hasobject or not shape or size != offset + dtype.itemsize * math.prod(shape):
        raise ValueError(f"{path}: is damaged: {size} bytes are not {list(shape)} of {dtype}")
    return _Header(shape, dtype, offset)


def read_rows(path: Path, mapped: bool) -> np.ndarray:
    """The rows of a file [rows, ...], mapped into memory or read. Raises ValueError if it is damaged."""
    header = _header(path)
    if not math.prod(header.shape):
        return np.zeros(header.shape, header.dtype)
    if mapped:
        return np.memmap(path, header.dtype, "r", header.offset, header.shape)
    return np.fromfile(path, header.dtype, offset=header.offset).reshape(header.shape)
