"""Files of data: tables, images and text."""

import csv
import gzip
import io
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import damage
import numpy as np
import torch
from file_kinds import Kind
from sandbox import WrongNumbersError

from hyperopt_id import files
from hyperopt_id.tasks import fashion_mnist, models
from hyperopt_id.tasks.cifar10 import BATCHES, FOLDER, cifar10
from hyperopt_id.tasks.data import read_idx
from hyperopt_id.tasks.penn_treebank import penn_treebank
from hyperopt_id.tasks.user_csv import csv_table

GENERATOR = np.random.default_rng(0)


def _csv_text(rows: int = 12, header: str = "a,b,target\n") -> str:
    values = GENERATOR.normal(2, 3, (rows, 3))
    return header + "".join(",".join(f"{value:.6g}" for value in row) + "\n" for row in values)


def _make_csv(here: Path) -> Path:
    (here / "table.csv").write_text(_csv_text())
    return here / "table.csv"


def _read_csv(here: Path) -> None:
    """Splits by position need the number of rows, so one that is taken is of twelve."""
    data = csv_table(here / "table.csv", (6, 3, 3), False, False)
    text = (here / "table.csv").read_bytes().decode("utf-8-sig")
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(map(str.strip, row))]
    if not any(map(_is_number, rows[0])):
        rows = rows[1:]
    expected = np.array([[float(cell) for cell in row] for row in rows])
    table = torch.cat([data.inputs, data.targets[:, None]], 1).numpy()
    if not np.array_equal(table, expected) or not np.isfinite(table).all():
        raise WrongNumbersError("a table is not what its text says")
    scaled = csv_table(here / "table.csv", (6, 3, 3), True, True)
    if not torch.isfinite(scaled.inputs).all() or scaled.inputs[:9].abs().max() > 3.0:  # at most the root of 9 - 1
        raise WrongNumbersError("standardized values are not of order one")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


CELLS = (
    *(
        "",
        " ",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "-1e308",
        "1e308",
        "1e-320",
        "x",
        "0x10",
        "1_0",
        "1,5",
        "1;5",
        "\0",
        "é",
        "\ufeff1",
    ),
    *(
        '"1"',
        '"1',
        '"1\n"',
        "'1'",
        "9" * 400,
        "1" * 200_000,
        "x" * 200_000,
        "1 2",
        "+1",
        "--1",
        "1e",
        "True",
        "١٢",
        "=1+1",
    ),
)


def _cell(path: Path, chance: random.Random) -> str:
    lines = path.read_text().splitlines()
    number, value = chance.randrange(len(lines)), chance.choice(CELLS)
    cells = lines[number].split(",")
    cells[chance.randrange(len(cells))] = value
    lines[number] = ",".join(cells)
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"row {number + 1} has {value[:20]!r}"


def _rows(path: Path, chance: random.Random) -> str:
    lines = path.read_text().splitlines()
    number, how = chance.randrange(len(lines)), chance.randrange(8)
    changes: list[Callable[[], object]] = [
        lambda: lines.insert(0, ""),
        lambda: lines.append(",,"),
        lambda: lines.__setitem__(number, lines[number] + ",1"),
        lambda: lines.__delitem__(number),
        lambda: lines.insert(number, lines[number]),
        lambda: lines.insert(number, " , ,"),
        lambda: lines.__setitem__(slice(None), [f"{n - 1 if n else ''},{line}" for n, line in enumerate(lines)]),
        lambda: lines.__setitem__(0, "0,1,2"),
    ]
    for _ in range(chance.randint(1, 2)):
        changes[how]()
        how = chance.randrange(2)
    path.write_text(chance.choice(("\n", "\r\n", "\r")).join(lines))
    return f"rows changed, {how} at {number}"


def _columns(path: Path, chance: random.Random) -> str:
    """A column of constants, up to rounding, or of extreme size."""
    base, spread = chance.choice(((0.1, 1e-17), (1e22, 1e6), (0.0, 1e-300), (1e300, 1e290), (1e-310, 0.0), (3.0, 0.0)))
    lines = [f"{base + spread * chance.randrange(4)!r},{number % 5},{number}" for number in range(12)]
    path.write_text("\n".join(lines))
    return f"a column of {base} ± {spread}"


def _idx(shape: tuple[int, ...]) -> bytes:
    head = b"\0\0\x08" + bytes([len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    return head + GENERATOR.integers(0, 255, shape, dtype=np.uint8).tobytes()


def _make_idx(here: Path) -> Path:
    (here / "images").write_bytes(_idx((5, 4, 4)))
    return here / "images"


def _read_idx(here: Path) -> None:
    content = files.read(here / "images", 2**24)
    array = read_idx(content, "images")
    if array.tobytes() != content[4 + 4 * content[3] :]:
        raise WrongNumbersError("images are not the bytes of their file")


def _idx_header(path: Path, chance: random.Random) -> str:
    head = b"\0\0" + bytes([chance.choice((8, 8, 9, 13))]) + bytes([chance.choice((0, 1, 3, 8, 9, 255))])
    path.write_bytes(head + chance.choice((b"", b"\xff" * 12, b"\0" * 12, b"\0\0\0\x01" * 300)))
    return "a header of its own"


def _make_fashion(here: Path) -> Path:
    (here / "fashion_mnist").mkdir()
    for name in fashion_mnist.CHECKSUMS:
        (here / "fashion_mnist" / name).write_bytes(gzip.compress(_idx((5, 28, 28) if "images" in name else (5,))))
    return here / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"


def _read_fashion(here: Path) -> None:
    fashion_mnist.fashion_mnist(here, download=False)
    raise WrongNumbersError("images of other content were taken for the published ones")


def _gzip_bomb(path: Path, chance: random.Random) -> str:
    size = chance.choice((2**20, 2**28, 2**31))
    block = gzip.compress(bytes(2**20), 1)
    path.write_bytes(block * (size // 2**20))
    return f"{size} zeros in {path.stat().st_size} bytes"


def _make_cifar(here: Path) -> Path:
    (here / FOLDER).mkdir()
    for name in BATCHES:
        batch = {b"labels": [1, 2], b"data": GENERATOR.integers(0, 256, (2, 3072), dtype=np.uint8)}
        (here / FOLDER / name).write_bytes(pickle.dumps(batch, protocol=2))
    return here / FOLDER / "data_batch_3"


def _read_cifar(here: Path) -> None:
    data = cifar10(here, splits=(8, 2, 2), download=False)
    if data.inputs.shape != (12, 3, 32, 32) or not data.inputs.isfinite().all():
        raise WrongNumbersError("images of another shape")


def _pickle(path: Path, chance: random.Random) -> str:
    nested: Any = [1]
    for _ in range(30):
        nested = [nested] * 9
    values: list[Any] = [
        {b"data": damage.Harmful(), b"labels": [1, 2]},
        {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": nested},
        {b"data": nested, b"labels": [1, 2]},
        {b"data": np.zeros((2, 3072)), b"labels": [1, 2]},
        {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [1, 10**30]},
        {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": ["a", None]},
        {b"data": np.array([damage.Harmful()] * 2), b"labels": [1, 2]},
        [1, 2],
        {"data": 1},
    ]
    number = chance.randrange(len(values))
    path.write_bytes(pickle.dumps(values[number], protocol=chance.choice((2, 4))))
    return f"pickle {number}"


def _make_text(here: Path) -> Path:
    (here / "penn_treebank").mkdir()
    for name in ("train", "valid", "test"):
        (here / "penn_treebank" / f"ptb.{name}.txt").write_text(" the cat sat on the mat \n" * 60)
    return here / "penn_treebank" / "ptb.valid.txt"


def _read_text(here: Path) -> None:
    penn_treebank(here, lambda words: models.lstm(words, 4, 5, 1), 4, 5, 0.3, download=False)


KINDS = {
    "csv": Kind(_make_csv, _read_csv, (_cell, _cell, _rows, _columns), weight=6),
    "idx": Kind(_make_idx, _read_idx, (_idx_header,), weight=2),
    "Fashion-MNIST": Kind(_make_fashion, _read_fashion, (_gzip_bomb,)),
    "CIFAR-10": Kind(_make_cifar, _read_cifar, (_pickle,), weight=2),
    "Penn Treebank": Kind(_make_text, _read_text),
}
