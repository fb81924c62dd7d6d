"""θ of the learned optimizer from and to the files that it is kept in.

    network.{input.weight [32, 39], linear_0.weight [32, 32], output.weight [2, 32], and .bias of each}
    decays.{momentum [3], rms [1], adafactor [3]}

are the names of our safetensors files; those of other projects lack the decays (the hub's `btherien/mulo`), or are
pickled dictionaries {"state_dict": ..., "decays": ...} whose decays end in `_decays`. Weights are of `torch.nn.Linear`,
so θ holds their transposes. Checkpoints of a run that has learned θ have it as the raw value `theta/global`.

A network without decays gets those of `btherien/mulo`, as in PyLO, and a warning where it may be another network.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hyperopt_id import checkpoint, files, files_tensors, mulo
from hyperopt_id.mulo import LAYOUT, SIZE, Theta
from hyperopt_id.optim.real_numbers import real_numbers

logger = logging.getLogger("hyperopt_id")
SHIPPED = Path(__file__).with_name("mulo.pt")  # meta-trained weights, where the package has them
NEEDED = "a safetensors file, or one of torch.save with tensors, numbers, lists and dictionaries alone"
MOST_BYTES = 256 * files.MEBIBYTE  # of a file; checkpoints hold the run that has learned θ, too
Weights = None | str | Path | Tensor | Mapping[str, Any] | Theta

NAMES = {
    "w0": "network.input.weight",
    "b0": "network.input.bias",
    "w1": "network.linear_0.weight",
    "b1": "network.linear_0.bias",
    "w2": "network.output.weight",
    "b2": "network.output.bias",
    "momentum": "decays.momentum",
    "square": "decays.rms",
    "factored": "decays.adafactor",
}
PUBLISHED = "btherien/mulo"  # its file does not hold the offsets of its decays, which are
PUBLISHED_DECAYS = {
    "decays.momentum": [0.15216392, 0.14245212, 0.06812963],
    "decays.rms": [0.01079706],
    "decays.adafactor": [0.18621896, -0.10864615, -0.06185547],
}
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl")  # of files, not of repositories
UNTRAINED = (
    "MuLO: these weights are untrained, they move parameters at random; give trained ones, as "
    "weights='btherien/mulo' or weights='theta.safetensors' here, and as space.theta.init in a config"
)


def load_weights(weights: Weights) -> Tensor:
    """θ [2409], float32, on the CPU, from what `MuLO` takes as `weights`; a ValueError says what is wrong with them.

    None is what the package ships, or, where that is nothing, θ as meta-training starts it, with a warning. A path is a
    safetensors file, a file of `torch.save` (read without running code), a folder with `model.safetensors`, or the
    folder of a run or of its checkpoints; another string is a repository on the Hugging Face hub.
    """
    if weights is None and SHIPPED.is_file():
        return _from_file(SHIPPED)
    if weights is None:
        logger.warning(UNTRAINED)
        return mulo.untrained()
    if isinstance(weights, Theta):
        return _from_mapping(weights._asdict(), "θ")
    if isinstance(weights, Mapping):
        return _from_mapping(weights, "the dictionary given")
    if not isinstance(weights, str | Path):
        return _vector(weights, "the tensor given")
    path = Path(weights)
    if os.path.isdir(path):
        return _from_folder(path)
    if os.path.exists(path):
        return _from_file(path)
    if isinstance(weights, str) and REPOSITORY.fullmatch(weights) and path.suffix not in SUFFIXES:
        return _from_hub(weights)
    given = files.shorten(str(weights), 200)
    raise ValueError(
        f"weights={given!r}: there is no such file; give a safetensors file, a folder with model.safetensors, a "
        "repository on the Hugging Face hub such as btherien/mulo, or a tensor"
    )


def save_weights(theta: Tensor, path: str | Path) -> None:
    """Write θ as a safetensors file that `load_weights` reads; others read the network from it, too."""
    parts = mulo.unpack(theta.detach().float().cpu())._asdict()
    tensors = {NAMES[part]: (value.mT if _is_matrix(part) else value).contiguous() for part, value in parts.items()}
    _package("safetensors.torch", "safetensors").save_file(tensors, str(path))


def _from_folder(path: Path) -> Tensor:
    if (path / "model.safetensors").is_file():
        return _from_file(path / "model.safetensors")
    checkpoints = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not any(checkpoints.glob("step_*.pt")):
        raise ValueError(
            f"{path} has neither model.safetensors nor the checkpoints of a run: give another folder, or a file"
        )
    return _from_run(checkpoint.load(checkpoints)[0], str(path))


def _from_file(path: Path) -> Tensor:
    if path.suffix == ".safetensors":
        files.open_regular(path, MOST_BYTES).close()
        found: Any = _safetensors(path)
    else:
        found = files_tensors.load(path, MOST_BYTES, NEEDED)
    if isinstance(found, Tensor):
        return _vector(found, str(path))
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}; needed: a tensor [{SIZE}] or a dictionary of tensors")
    return _from_run(found["tree"], str(path)) if "tree" in found else _from_mapping(found, str(path))


def _safetensors(path: Path) -> dict[str, Any]:
    load_file = _package("safetensors.torch", "safetensors").load_file
    try:
        return load_file(path)
    except Exception as error:  # of several kinds
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); needed, undamaged: {NEEDED}") from error


def _from_hub(repository: str) -> Tensor:
    hub = _package("huggingface_hub", "huggingface_hub safetensors")
    try:
        path = hub.hf_hub_download(repository, "model.safetensors")
    except Exception as error:  # of many kinds: no network, no such repository, no access
        raise ValueError(
            f"{repository} is no file or folder here, and the Hugging Face hub does not give it "
            f"({type(error).__name__}): download model.safetensors from huggingface.co/{repository} elsewhere, and "
            "give its path"
        ) from error
    found = _safetensors(Path(path))
    return _from_mapping(PUBLISHED_DECAYS | found if repository == PUBLISHED else found, repository)


def _from_run(tree: Any, where: str) -> Tensor:
    raw = tree
    for name in ("run", "raw"):
        raw = raw.get(name) if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise ValueError(f"{where} is no checkpoint of a run: it holds no raw hyperparameters")
    found = raw.get("theta/global", torch.empty(0, SIZE))
    if found.ndim != 2 or len(found) != 1:
        count = len(found) if found.ndim else 1
        raise ValueError(f"{where} is the checkpoint of a run with {count} θ; needed: one run whose rule is mulo")
    if any(str(name).startswith("theta/tensor/") for name in raw):
        raise ValueError(f"{where} has learned a θ for every tensor; needed: one for all, space.theta.tune=[global]")
    return _vector(found[0], where)


def _from_mapping(found: Mapping[str, Any], where: str) -> Tensor:
    """A dictionary of parts of θ by our names, by those of the files, or as other projects pickle it."""
    if set(LAYOUT) <= set(found):
        return _packed(found, {part: part for part in LAYOUT}, where)
    if "state_dict" in found:
        network, decays = found["state_dict"], found.get("decays", {})
        _check_names(network, f"{where}: state_dict")
        _check_names(decays, f"{where}: decays")
        offsets = {f"decays.{name.removesuffix('_decays')}": value for name, value in decays.items()}
        found = offsets | dict(network)
    _check_names(found, where)
    known = ("network.", "decays.")
    return _packed({n if n.startswith(known) else f"network.{n}": x for n, x in found.items()}, NAMES, where)


def _check_names(found: Any, where: str) -> None:
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{where} is {type(found).__name__}; needed: a dictionary from names to tensors")


def _packed(found: Mapping[str, Any], names: Mapping[str, str], where: str) -> Tensor:
    """θ from tensors by name; `names` says which part is called what."""
    missing = [name for name in names.values() if name not in found]
    if missing == list(PUBLISHED_DECAYS):
        logger.warning(
            "MuLO: %s is a network without decays, so those of %s are taken; give others as "
            "weights={'state_dict': ..., 'decays': {'momentum': [...], 'rms': [...], 'adafactor': [...]}}",
            where,
            PUBLISHED,
        )
        found = {**found, **PUBLISHED_DECAYS}
    elif missing:
        raise ValueError(f"{where} has no {', '.join(missing)}")
    if more := set(found) - set(names.values()):
        first = files.shorten(min(map(str, more)))
        raise ValueError(f"{where} has {first}, too, which the network 39-32-32-2 does not have: give another")
    parts = {}
    for part, shape in LAYOUT.items():
        transposed = names is NAMES and _is_matrix(part)
        needed = list(shape[::-1] if transposed else shape)
        value = real_numbers(found[names[part]], f"{where}: {names[part]}", needed)
        parts[part] = value.mT if transposed else value
    return _vector(mulo.pack(Theta(**parts)), where)


def _is_matrix(part: str) -> bool:
    """θ has these as [inputs, outputs], a linear module as [outputs, inputs]."""
    return len(LAYOUT[part]) == 2


def _vector(theta: Any, where: str) -> Tensor:
    return real_numbers(theta, where, [SIZE], ", the whole of θ in one vector").clone()


def _package(name: str, needed: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"for these weights: python -m pip install {needed}") from error
