"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747, MIT license): 70000 images of clothes, 28 ×
28, 10 classes.

The four files are looked for in the data folder; when they are not there they are fetched from the first
source that answers and kept, so that the next start needs no network.
"""

import os
from pathlib import Path

import numpy as np
import torch

from hyperopt_id.tasks import debian
from hyperopt_id.tasks.data import Dataset, read_idx, split_by_position
from hyperopt_id.tasks.digests import digest
from hyperopt_id.tasks.fetch import fetch, read_verified, web

SPLITS = (50_000, 10_000, 10_000)
PACKAGE, SHARE = "dataset-fashion-mnist", "datasets/fashion-mnist"
FOLDERS = ("fashion_mnist", "FashionMNIST/raw", "FashionMNIST", "Fashion_MNIST")
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com",
)
# SHA-256 of the decompressed content: Debian's gzip files differ from the original ones in their headers,
# which hold a name and a time. With these put back they have the published MD5 sums.
DIGESTS = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CHECKSUMS = {name: f"gzip sha256:{digest}" for name, digest in DIGESTS.items()}


def fashion_mnist(root: Path, validation_fraction: float | None = None, download: bool = True) -> Dataset:
    """Inputs [70000, 784] float32, standardized per pixel with statistics of train + validation (a constant
    pixel is divided by 1); targets [70000] in 0..9; 50000 / 10000 / 10000 by position. A corrupt file, or a
    missing one that no source provides, is a ValueError."""
    folder = locate(Path(root), download)
    images, labels, test_images, test_labels = (
        read_idx(read_verified(folder / name, checksum), name) for name, checksum in CHECKSUMS.items()
    )
    known = len(images)
    pixels = np.concatenate([images, test_images]).reshape(-1, 28 * 28)
    targets = np.concatenate([labels, test_labels]).astype(np.int64)
    splits = split_by_position(SPLITS, len(pixels), "Fashion-MNIST", validation_fraction)
    source = digest(pixels, targets)
    return Dataset(_standardize_pixels(pixels, known), torch.from_numpy(targets), splits, source=source)


def locate(root: Path, download: bool = True) -> Path:
    """The folder that holds the four files, fetched when they are not there."""
    for name in FOLDERS:
        if all(os.path.isfile(root / name / file) for file in CHECKSUMS):
            return root / name
    folder = root / FOLDERS[0]
    fetch("Fashion-MNIST", folder, CHECKSUMS, sources() if download else (), _cure(folder))
    return folder


def sources() -> tuple:
    """Where the files may come from, in the order in which they are tried."""
    return (
        debian.installed(PACKAGE, SHARE),
        debian.downloaded(PACKAGE, SHARE),
        *(web(url) for url in MIRRORS),
    )


def _cure(folder: Path) -> str:
    return (
        f"To provide it yourself: sudo apt-get install {PACKAGE}; or put {', '.join(CHECKSUMS)} "
        f"(from https://github.com/zalandoresearch/fashion-mnist) into {folder}; "
        "--data-root names another data folder."
    )


def _standardize_pixels(pixels: np.ndarray, known: int, block: int = 5000) -> torch.Tensor:
    """uint8 [N, D] -> float32 [N, D]. Sums of bytes and of their squares are exact integers, so the
    statistics do not depend on the order of summation; blocks keep the temporary copies small."""
    total = np.zeros(pixels.shape[1], dtype=np.int64)
    squares = np.zeros(pixels.shape[1], dtype=np.int64)
    for start in range(0, known, block):
        values = pixels[start : min(start + block, known)].astype(np.uint32)
        total += values.sum(axis=0, dtype=np.int64)
        squares += (values * values).sum(axis=0, dtype=np.int64)
    mean = total / known
    variance = (known * squares - total * total) / known**2
    deviation = np.sqrt(np.where(variance == 0, 1.0, variance))
    result = torch.from_numpy(pixels).to(torch.float32)
    return result.sub_(torch.from_numpy(mean).float()).div_(torch.from_numpy(deviation).float())
