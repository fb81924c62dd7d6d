"""Reading tables of numbers: comma-separated text in UTF-8, one row per example.

    table [rows, columns] = the cells below the header, blank rows left out

A header is the first row that is not blank, if none of its cells is a number. A column without a name in front of the
others is the index that pandas and R write, and no input: it is refused, for whether it is meant cannot be known.
"""

import csv
import io
import logging
import math
import warnings
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hyperopt_id import files, memory

logger = logging.getLogger("hyperopt_id")
MOST_CELL = 128 * 1024  # characters, which is what Python's csv module takes


def read_csv(path: Path) -> np.ndarray:
    """Numbers of a comma-separated file, float64 [rows, columns]. Text, missing or non-finite values and ragged rows
    are a ValueError with file, row and column (counted from 1), and so is what is no regular file, or text in another
    encoding than UTF-8."""
    with (
        files.open_regular(path, memory.total() // 4) as binary,
        io.TextIOWrapper(binary, "utf-8-sig", newline="") as text,
    ):
        try:
            header, lines = _header(text, path)
            text.seek(0)
            table = _fast(text, lines)
            if table is None:
                text.seek(0)
                table = _slow(text, path, header is not None)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a text file in UTF-8 ({error}): save it as comma-separated UTF-8") from error
    _check_names(path, header, table)
    return table


def _header(text: io.TextIOWrapper, path: Path) -> tuple[list[str] | None, int]:
    """(names of the columns, or None where the first row holds a number; lines of the file before the numbers)."""
    lines = 0
    for _, row, end in _rows(text, path):
        if any(map(_is_number, row)):
            return None, lines
        return row, end
    return None, 0


def _rows(text: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, list[str], int]]:
    """(number of the row, cells, lines of the file up to its end) of each row that is not blank."""
    reader, number = csv.reader(text), 0
    try:
        for number, row in enumerate(reader, start=1):
            if any(map(str.strip, row)):
                yield number, row, reader.line_num
    except csv.Error as error:
        what = f"a cell of more than {MOST_CELL} characters" if "limit" in str(error) else str(error)
        raise ValueError(f"{path}: row {number + 1}: {what}: save it as comma-separated numbers") from error


def _fast(text: io.TextIOWrapper, lines: int) -> np.ndarray | None:
    """The table by numpy's reader, which does not say which cell is wrong: then, None."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about a file without rows, an error of the slow reader
            table = np.loadtxt(text, delimiter=",", skiprows=lines, ndmin=2, comments=None, quotechar='"')
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        return None
    return table if table.shape[1] >= 2 and table.size and np.isfinite(table).all() else None


def _slow(text: io.TextIOWrapper, path: Path, header: bool) -> np.ndarray:
    width, cells = 0, array("d")
    rows = _rows(text, path)
    if header:
        next(rows)
    for number, row, _ in rows:
        if not width and len(row) < 2:
            raise ValueError(f"{path}: needs at least one input column and the target column, found {len(row)} column")
        width = width or len(row)
        cells.extend(_numbers(path, number, row, width))
    if not width:
        raise ValueError(f"{path}: no rows of numbers in this file")
    return np.array(cells).reshape(-1, width)


def _numbers(path: Path, number: int, row: list[str], width: int) -> list[float]:
    if len(row) != width:
        raise ValueError(f"{path}: row {number} has {len(row)} columns, the first row has {width}")
    for column, cell in enumerate(row, start=1):
        if not _is_number(cell) or not math.isfinite(float(cell)):
            raise ValueError(
                f"{path}: row {number}, column {column}: {files.shorten(cell.strip())!r} is not a finite number; "
                "every cell must be one (remove or encode text, fill in missing values)"
            )
    return [float(cell) for cell in row]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # 1_0 is 10 to Python alone


def _check_names(path: Path, header: list[str] | None, table: np.ndarray) -> None:
    """Refuse a header that does not fit, or that leaves the first column without a name; warn of what may be an index
    or a header."""
    if header is not None:
        if len(header) != table.shape[1] and len(header) > 1:  # one cell is a title
            raise ValueError(f"{path}: the header names {len(header)} columns, the rows have {table.shape[1]}")
        first = header[0].strip()
        if not first or first == "Unnamed: 0":
            raise ValueError(
                f"{path}: the first column has no name, as the index that pandas and R write: leave it out "
                "(to_csv(path, index=False), row.names=FALSE), or name it in the header if it is an input"
            )
    column = table[:, 0]
    if len(column) >= 3 and np.array_equal(column, column[0] + np.arange(len(column))) and column[0] in (0.0, 1.0):
        logger.warning("%s: the first column counts the rows; if that is no input, leave it out", path)
    if header is None and table.shape[1] >= 3 and np.array_equal(table[0], np.arange(table.shape[1])):
        logger.warning("%s: the first row counts the columns and is taken for data; if it is a header, name them", path)
