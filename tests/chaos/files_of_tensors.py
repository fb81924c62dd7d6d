"""Files of tensors and of starting values: data, weights, and dictionaries of them in memory."""

import pickle
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import damage
import numpy as np
import safetensors.torch
import torch
from file_kinds import Kind
from mulo_cases import random_theta
from sandbox import WrongNumbersError

from hyperopt_id import mulo
from hyperopt_id.optim import mulo_weights
from hyperopt_id.tasks import models
from hyperopt_id.tasks.uci import SOURCES, uci
from scripts.earlier_starts import found_starts

THETA = random_theta()
LIKE = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
GENERATOR = np.random.default_rng(0)


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
    torch.save({"w0": damage.Harmful()}, path, _use_new_zipfile_serialization=not old)
    return "code in a file of torch.save"


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
        *(
            ("more", np.zeros(1)),
            ("weight", np.array({"a": damage.Harmful()}, dtype=object)),
            ("weight.npy", np.zeros(1)),
        ),
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
    "UCI": Kind(_make_uci, _read_uci, (_tensors, damage.records, _harm), weight=3),
    "npz": Kind(_make_npz, _read_npz, (_arrays, _arrays, _header, damage.records), weight=5),
    "theta": Kind(_make_theta, _read_theta, (_tensors, _tensors, damage.records, _harm), weight=4),
    "safetensors": Kind(_make_safetensors, _read_safetensors, (_safetensors, _safetensors_header), weight=2),
    "dictionary": Kind(_make_memory, _read_memory, (_given,) * 9, weight=3),
    "starts": Kind(_make_starts, _read_starts),
}
