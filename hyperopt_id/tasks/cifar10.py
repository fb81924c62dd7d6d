"""CIFAR-10 (Krizhevsky 2009): 60000 colored images, 32 × 32, 10 classes, in the archive of Python pickles.

Pickles can run code when they are read, so they are read by an unpickler that builds plain containers and
arrays only.
"""

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperopt_id import files
from hyperopt_id.tasks.data import Dataset, split_by_position
from hyperopt_id.tasks.digests import digest
from hyperopt_id.tasks.fetch import MOST_BYTES, fetch, read_known, read_verified, web

SPLITS = (45_000, 5_000, 10_000)
ARCHIVE, FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
HOME = "https://www.cs.toronto.edu/~kriz"
CHECKSUM = "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
BATCHES = {  # of the extracted folder
    "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
    "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
    "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "md5:40351d587109b95175f43aff81a1287e",
}
PLACES = ("cifar10", "CIFAR10", "")
ALLOWED = {
    "numpy.core.multiarray": {"_reconstruct"},
    "numpy._core.multiarray": {"_reconstruct"},
    "numpy": {"ndarray", "dtype"},
    "_codecs": {"encode"},
}


def cifar10(
    root: Path,
    validation_fraction: float | None = None,
    download: bool = True,
    splits: tuple[int, int, int] = SPLITS,
    checksum: str | None = CHECKSUM,
) -> Dataset:
    """Inputs [60000, 3, 32, 32] float32, standardized per channel with statistics of train + validation;
    targets in 0..9; 45000 / 5000 / 10000 by position. Read from the extracted folder or the archive, in
    `root` or `root`/cifar10; a missing archive is downloaded and checked. `splits` and `checksum` are there
    for small files in the same format."""
    batches = [_parse(*item) for item in _contents(locate(Path(root), download), checksum)]
    images = np.concatenate([image for image, _ in batches])
    targets = np.concatenate([target for _, target in batches])
    bounds = split_by_position(splits, len(images), "CIFAR-10", validation_fraction)
    inputs = torch.from_numpy(images).to(torch.float32).reshape(-1, 3, 32, 32)
    known = inputs[: bounds["validation"][1]].double()
    mean = known.mean(dim=(0, 2, 3), keepdim=True)
    deviation = known.std(dim=(0, 2, 3), keepdim=True, correction=0)
    deviation = torch.where(deviation == 0, 1.0, deviation)
    standardized = inputs.sub_(mean.float()).div_(deviation.float())
    return Dataset(standardized, torch.from_numpy(targets), bounds, source=digest(images, targets))


def locate(root: Path, download: bool = True) -> Path:
    """The extracted folder or else the archive, which is fetched when neither is there."""
    for place in PLACES:
        if all(os.path.isfile(root / place / FOLDER / name) for name in BATCHES):
            return root / place / FOLDER
    for place in PLACES:
        if os.path.isfile(root / place / ARCHIVE):
            return root / place / ARCHIVE
    folder = root / PLACES[0]
    cure = f"To provide it yourself: put {ARCHIVE} from {HOME}/cifar.html into {folder}."
    fetch("CIFAR-10", folder, {ARCHIVE: CHECKSUM}, (web(HOME),) if download else (), cure)
    return folder / ARCHIVE


def _contents(place: Path, checksum: str | None) -> list[tuple[str, bytes]]:
    """(name, bytes) of the six batch files in order."""
    if os.path.isdir(place):
        names = [str(place / name) for name in BATCHES]
        return list(zip(names, read_known(place, BATCHES, "CIFAR-10"), strict=True))
    content = read_verified(place, checksum) if checksum else files.read(place, MOST_BYTES)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = {Path(member.name).name: member for member in tar.getmembers() if member.isfile()}
        missing = [name for name in BATCHES if name not in members]
        if missing:
            raise ValueError(f"{place} lacks {', '.join(missing)}")
        streams = {name: tar.extractfile(members[name]) for name in BATCHES}
        return [(f"{place}:{name}", stream.read()) for name, stream in streams.items() if stream is not None]


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, strings, numbers and numpy arrays; refuses anything that could run code."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
        return super().find_class(module, name)


def _parse(name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 3072] and labels int64 [n] of one batch file."""
    try:
        batch = _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
        images, labels = batch[b"data"], batch[b"labels"]
        if type(images) is not np.ndarray or type(labels) is not list or {type(label) for label in labels} - {int}:
            raise ValueError("its data are no array, or its labels no list of integers")
        labels = np.asarray(labels, dtype=np.int64)
    except Exception as error:
        raise ValueError(f"{name} is not a batch of CIFAR-10 images ({files.shorten(str(error), 200)})") from error
    if images.dtype != np.uint8 or images.shape != (len(labels), 3072):
        raise ValueError(
            f"{name}: needs uint8 images [n, 3072], got {images.dtype} {images.shape}, {len(labels)} labels"
        )
    return images, labels
