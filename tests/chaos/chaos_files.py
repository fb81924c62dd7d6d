"""Damaged, foreign and harmful files of data and weights: what is read is what they hold, or one line says why not.

A trial makes a right file of a kind, damages it (bits, cuts, blocks, bombs, records, headers, another type, no regular
file at all) and reads it as the library does. What is accepted is compared with another reader of the same file.
"""

import csv
import gzip
import io
import os
import pickle
import random
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import safetensors.torch
import torch
from mulo_cases import random_theta
from outcomes import Outcome
from sandbox import TRAP, WrongNumbersError, judge

from hyperopt_id import files, mulo
from hyperopt_id.optim import mulo_weights
from hyperopt_id.tasks import fashion_mnist, models
from hyperopt_id.tasks.cifar10 import BATCHES, FOLDER, cifar10
from hyperopt_id.tasks.data import read_idx
from hyperopt_id.tasks.penn_treebank import penn_treebank
from hyperopt_id.tasks.uci import SOURCES, uci
from hyperopt_id.tasks.user_csv import csv_table
from scripts.earlier_starts import found_starts

COUNT = 900
THETA = random_theta()
LIKE = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
GENERATOR = np.random.default_rng(0)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (TRAP,)


class Kind(NamedTuple):
    """`make(folder)` writes right files and returns the one to be damaged; `read(folder)` reads them as the library
    does, and raises WrongNumbersError if they hold something else; `variants`: damages of this kind alone."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    variants: tuple[Callable[[Path, random.Random], str], ...] = ()
    weight: int = 1


def trials(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    torch.set_num_threads(1)
    names = [name for name, kind in KINDS.items() for _ in range(kind.weight)]
    random.Random(seed).shuffle(names)
    for number in range(count):
        name, chance = names[number % len(names)], random.Random(f"{seed}/{number}")
        kind, here = KINDS[name], folder / f"t{number}"
        here.mkdir()
        path = kind.make(here)
        damage = chance.choice((*COMMON, *kind.variants * 3))
        what = damage(path, chance)
        yield judge(f"{number}: {name}: {what}", lambda kind=kind, here=here: kind.read(here), here)
        shutil.rmtree(here, ignore_errors=True)


# Damage of any file


def _flip(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    places = [chance.randrange(len(content)) for _ in range(chance.choice((1, 1, 1, 8, 64)))]
    for place in places:
        content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return f"bits at {places[:3]}"


def _cut(path: Path, chance: random.Random) -> str:
    content = path.read_bytes()
    place = chance.choice((0, 1, 4, 8, len(content) - 1, chance.randrange(len(content))))
    path.write_bytes(content[:place])
    return f"cut at {place}"


def _blocks(path: Path, chance: random.Random) -> str:
    content = path.read_bytes()
    place, size = chance.randrange(len(content)), chance.choice((1, 16, 512))
    block = content[place : place + size]
    new = chance.choice((b"", bytes(size), block * 3, chance.randbytes(size), b"\xff" * size))
    path.write_bytes(content[:place] + new + content[place + size :])
    return f"block of {size} at {place} replaced by {len(new)}"


def _longer(path: Path, chance: random.Random) -> str:
    content, more = path.read_bytes(), chance.choice((b"\0", chance.randbytes(1000), bytes(2**20), b"\n,,\n\n"))
    path.write_bytes(content + more if chance.random() < 0.7 else more + content)
    return f"{len(more)} bytes more"


def _other(path: Path, chance: random.Random) -> str:
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


def _special(path: Path, chance: random.Random) -> str:
    path.unlink()
    makes: list[Callable[[], object]] = [
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: path.symlink_to(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("/dev/full"),
        lambda: path.symlink_to("/nowhere"),
        lambda: None,
    ]
    number = chance.randrange(len(makes))
    makes[number]()
    return f"no regular file, {number}"


def _huge(path: Path, chance: random.Random) -> str:
    with open(path, "ab") as file:
        file.truncate(2**40)
    return "a file of 1 TB with nothing in it"


COMMON = (_flip, _flip, _cut, _cut, _blocks, _blocks, _longer, _other, _special, _huge)


# Tables


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


# Images and text


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
        {b"data": Harmful(), b"labels": [1, 2]},
        {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": nested},
        {b"data": nested, b"labels": [1, 2]},
        {b"data": np.zeros((2, 3072)), b"labels": [1, 2]},
        {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [1, 10**30]},
        {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": ["a", None]},
        {b"data": np.array([Harmful()] * 2), b"labels": [1, 2]},
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


# Tensors


def _make_uci(here: Path) -> Path:
    (here / "UCI_Yacht").mkdir()
    rows = sum(SOURCES["yacht"].splits)
    torch.save(torch.from_numpy(GENERATOR.normal(size=(rows, 6))), here / "UCI_Yacht" / "data.pt")
    torch.save(torch.from_numpy(GENERATOR.normal(size=rows)), here / "UCI_Yacht" / "targets.pt")
    return here / "UCI_Yacht" / "data.pt"


def _read_uci(here: Path) -> None:
    data = uci(here, "yacht", download=False)
    if not data.inputs.isfinite().all():
        raise WrongNumbersError("inputs are not finite")
    stored = torch.load(here / "UCI_Yacht" / "data.pt", weights_only=True).double()
    known = data.splits["validation"][1]
    expected = (stored - stored[:known].mean(0)) / stored[:known].std(0, correction=0)
    if not torch.allclose(data.inputs, expected, rtol=1e-6, atol=1e-6):
        raise WrongNumbersError("inputs are not those of the file")


TENSORS: tuple[Callable[[], Any], ...] = (
    lambda: torch.zeros(1).expand(10**12),
    lambda: torch.zeros(1, 1).expand(2_000_000, 1000),
    lambda: torch.zeros(3, dtype=torch.complex64),
    lambda: torch.zeros(308, 6).to_sparse(),
    lambda: torch.full((308, 6), float("nan")),
    lambda: torch.full((2409,), 1e300, dtype=torch.float64),
    lambda: torch.zeros(308, 6, dtype=torch.bool),
    lambda: torch.zeros(308, 6, 1),
    lambda: torch.zeros(0, 6),
    lambda: torch.zeros(()),
    lambda: torch.nn.Parameter(torch.zeros(308, 6)),
    lambda: [torch.zeros(308, 6)] * 3,
    lambda: {"a": {"b": [None, "x", 3]}},
    lambda: "text",
    lambda: None,
    lambda: 10**400,
    lambda: {"tree": None},
    lambda: {"tree": {"run": {"raw": {"theta/global": torch.zeros(3)}}}},
    lambda: {"state_dict": 3, "decays": None},
    lambda: dict(mulo.unpack(THETA)._asdict(), w0=torch.zeros(39, 32, dtype=torch.complex64)),
    lambda: dict(mulo.unpack(THETA)._asdict(), w1=torch.full((32, 32), 1e300, dtype=torch.float64)),
    lambda: dict(mulo.unpack(THETA)._asdict(), more=torch.zeros(1)),
)


def _tensors(path: Path, chance: random.Random) -> str:
    number, old = chance.randrange(len(TENSORS)), chance.random() < 0.2
    torch.save(TENSORS[number](), path, _use_new_zipfile_serialization=not old)
    return f"tensors {number}{', in the old format' if old else ''}"


def _harm(path: Path, chance: random.Random) -> str:
    old = chance.random() < 0.5
    torch.save({"w0": Harmful()}, path, _use_new_zipfile_serialization=not old)
    return "code in a file of torch.save"


def _records(path: Path, chance: random.Random) -> str:
    """The records of a zip archive, packed, doubled, renamed, exchanged, replaced."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    how, number = chance.randrange(7), chance.randrange(len(records))
    name, content = records[number]
    changed = {
        0: (name, bytes(2**28)),
        1: (name + "x", content),
        2: (name, b""),
        3: ("../../outside", content),
        4: (name, content[: len(content) // 2]),
        5: (name, chance.randbytes(len(content))),
        6: (name, content),
    }
    records[number] = changed[how]
    if how == 6:
        records += records[:1]
    compression = zipfile.ZIP_DEFLATED if how == 0 or chance.random() < 0.3 else zipfile.ZIP_STORED
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records:
            archive.writestr(name, content)
    return f"record {number} changed, {how}"


def _make_npz(here: Path) -> Path:
    np.savez(here / "weights.npz", weight=GENERATOR.normal(size=(3, 4)), bias=GENERATOR.normal(size=3).astype("f4"))
    return here / "weights.npz"


def _read_npz(here: Path) -> None:
    params, _ = models.load_weights(here / "weights.npz", LIKE, {})
    with np.load(here / "weights.npz", allow_pickle=False) as archive:
        for name, value in params.items():
            if not np.array_equal(value.numpy(), archive[name].astype(np.float32)) or not value.isfinite().all():
                raise WrongNumbersError(f"{name} is not what the archive holds")


def _arrays(path: Path, chance: random.Random) -> str:
    good: dict[str, Any] = {"weight": np.zeros((3, 4)), "bias": np.zeros(3)}
    changes: list[tuple[str, Any]] = [
        *(("bias", np.zeros(3, kind)) for kind in ("c8", "U3", "S3", "O", "M8[s]", "g", ">f8", "i8", "?", "f2", "V4")),
        *(("bias", np.full(3, value)) for value in (1e300, np.nan, np.inf, -1e39, 3e38)),
        *(("bias", np.zeros(shape)) for shape in ((4,), (3, 1), (), (0,))),
        *(("more", np.zeros(1)), ("weight", np.array({"a": Harmful()}, dtype=object)), ("weight.npy", np.zeros(1))),
    ]
    number = chance.randrange(len(changes))
    name, value = changes[number]
    np.savez(path, allow_pickle=True, **(good | {name: value}))
    return f"arrays {number}: {name} {value.dtype} {value.shape}"


def _header(path: Path, chance: random.Random) -> str:
    shape = chance.choice(("(1000000000000,)", "(-3,)", "(3,", "(2**63,)", "(3, 0)", "[3]", "(3.0,)", "(True,)"))
    kind = chance.choice(("<f8", "<f4", "|O", "<c16", "<f9", "abc", "<U1000000"))
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    member = b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text.encode() + bytes(24)
    with zipfile.ZipFile(path) as archive:
        weight = archive.read("weight.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weight.npy", weight)
        archive.writestr("bias.npy", member)
    return f"a header with {kind} {shape}"


def _make_theta(here: Path) -> Path:
    torch.save(mulo.unpack(THETA)._asdict(), here / "theta.pt")
    return here / "theta.pt"


def _read_theta(here: Path) -> None:
    found = mulo_weights.load_weights(here / "theta.pt")
    if found.shape != THETA.shape or not found.isfinite().all():
        raise WrongNumbersError("θ is not finite, or of another shape")
    stored = torch.load(here / "theta.pt", weights_only=True)
    if isinstance(stored, dict) and set(mulo.LAYOUT) <= set(stored):
        stored = mulo.pack(mulo.Theta(**{name: value.float() for name, value in stored.items()}))
        if not torch.equal(found, stored):
            raise WrongNumbersError("θ is not what the file holds")


def _make_safetensors(here: Path) -> Path:
    mulo_weights.save_weights(THETA, here / "model.safetensors")
    return here / "model.safetensors"


def _read_safetensors(here: Path) -> None:
    found = mulo.unpack(mulo_weights.load_weights(here / "model.safetensors"))
    stored = safetensors.torch.load_file(here / "model.safetensors")
    if not torch.equal(found.w1, stored["network.linear_0.weight"].float().mT):
        raise WrongNumbersError("θ is not what the file holds")


def _safetensors(path: Path, chance: random.Random) -> str:
    tensors = safetensors.torch.load_file(path)
    name = chance.choice(list(tensors))
    how = chance.randrange(7)
    values = [tensors[name].half(), tensors[name].long(), tensors[name].bool(), tensors[name].double() * 1e300]
    values += [tensors[name][:0], tensors[name] * float("nan"), tensors[name].flatten()]
    safetensors.torch.save_file(tensors | {name: values[how].contiguous()}, path)
    return f"{name} changed, {how}"


def _safetensors_header(path: Path, chance: random.Random) -> str:
    header = chance.choice(
        (b"{", b"[" * 5000, b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}', b"{}")
    )
    length = chance.choice((len(header), 2**40, 2**63 - 1, 0))
    path.write_bytes(length.to_bytes(8, "little") + header + bytes(64))
    return f"a header of {length} bytes"


def _make_memory(here: Path) -> Path:
    (here / "given.pickle").write_bytes(pickle.dumps(mulo.unpack(THETA)._asdict()))
    return here / "given.pickle"


def _read_memory(here: Path) -> None:
    """Dictionaries in memory: the file only says which."""
    number = int((here / "number").read_text()) if (here / "number").exists() else -1
    if number < 0:
        return
    found = mulo_weights.load_weights(GIVEN[number]())
    if found.shape != THETA.shape or found.dtype != torch.float32 or not found.isfinite().all():
        raise WrongNumbersError("θ is not finite, or of another shape or type")


def _part(name: str, value: Any) -> Callable[[], Any]:
    return lambda: dict(mulo.unpack(THETA)._asdict(), **{name: value})


ODD: tuple[Any, ...] = (3, 3.0, [], (), {}, set(), b"x", "x\0y", "", "a/b", ".", "/dev/zero", object())
SQUARES: tuple[Any, ...] = (
    *(1j, [1j], "x", None, object(), [1e300], [float("nan")], [[1.0]], [True], {}, b"", [10**400], np.zeros(1, int)),
)
GIVEN: tuple[Callable[[], Any], ...] = (
    *(lambda make=make: make() for make in TENSORS),
    *(_part("square", value) for value in SQUARES),
    *(lambda value=value: value for value in ODD),
    lambda: Path("/dev/zero"),
    lambda: {1: torch.zeros(1)},
    lambda: {"state_dict": {1: 2}},
    lambda: torch.empty(2409, device="meta"),
    lambda: np.zeros(2409, dtype=object),
    lambda: [[1.0], [1.0, 2.0]],
)


def _given(path: Path, chance: random.Random) -> str:
    number = chance.randrange(len(GIVEN))
    (path.parent / "number").write_text(str(number))
    return f"given {number}"


def _make_starts(here: Path) -> Path:
    (here / "iteration_1.yaml").write_text(
        "config_dicts: {network_weight: {lr: -2.5, weight_decay: -5, momentum: 0.5}}"
    )
    return here / "iteration_1.yaml"


def _read_starts(here: Path) -> None:
    for _, start in found_starts(here, 0, ["lr", "weight_decay", "momentum"]):
        if not all(np.isfinite(value) for value in start.values()):
            raise WrongNumbersError("a start is not finite")


KINDS = {
    "csv": Kind(_make_csv, _read_csv, (_cell, _cell, _rows, _columns), weight=6),
    "idx": Kind(_make_idx, _read_idx, (_idx_header,), weight=2),
    "Fashion-MNIST": Kind(_make_fashion, _read_fashion, (_gzip_bomb,)),
    "CIFAR-10": Kind(_make_cifar, _read_cifar, (_pickle,), weight=2),
    "Penn Treebank": Kind(_make_text, _read_text),
    "UCI": Kind(_make_uci, _read_uci, (_tensors, _records, _harm), weight=3),
    "npz": Kind(_make_npz, _read_npz, (_arrays, _arrays, _header, _records), weight=5),
    "theta": Kind(_make_theta, _read_theta, (_tensors, _tensors, _records, _harm), weight=4),
    "safetensors": Kind(_make_safetensors, _read_safetensors, (_safetensors, _safetensors_header), weight=2),
    "dictionary": Kind(_make_memory, _read_memory, (_given,) * 9, weight=3),
    "starts": Kind(_make_starts, _read_starts),
}
