"""Fashion-MNIST, from small files in the true format."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperopt_id.tasks import fashion_mnist
from hyperopt_id.tasks.fetch import Source


def idx(values: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return b"\x00\x00\x08" + bytes([values.ndim]) + sizes + values.tobytes()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Arrays of a tiny Fashion-MNIST, whose checksums and sizes the loader is told to expect."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50, 28, 28), dtype=np.uint8)
    images[:40, 0, 0] = 7  # a constant pixel, but for the test part
    labels = generator.integers(0, 10, 50, dtype=np.uint8)
    arrays = dict(zip(fashion_mnist.CHECKSUMS, (images[:40], labels[:40], images[40:], labels[40:])))
    digests = {name: f"gzip sha256:{hashlib.sha256(idx(values)).hexdigest()}" for name, values in arrays.items()}
    monkeypatch.setattr(fashion_mnist, "CHECKSUMS", digests)
    monkeypatch.setattr(fashion_mnist, "SPLITS", (30, 10, 10))
    return arrays


def save(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in arrays.items():
        (folder / name).write_bytes(gzip.compress(idx(values)))


@pytest.mark.parametrize("folder", fashion_mnist.FOLDERS)
def test_fashion_mnist_from_a_local_folder(small: dict, tmp_path: Path, folder: str):
    save(tmp_path / folder, small)
    data = fashion_mnist.fashion_mnist(tmp_path, download=False)
    images, labels, test_images, test_labels = small.values()
    pixels = torch.from_numpy(np.concatenate([images, test_images])).reshape(50, 784).double()
    deviation = pixels[:40].std(0, correction=0)
    deviation[0] = 1.0
    torch.testing.assert_close(data.inputs.double(), (pixels - pixels[:40].mean(0)) / deviation, rtol=1e-5, atol=1e-5)
    assert data.inputs.dtype == torch.float32
    assert data.targets.tolist() == [*labels, *test_labels]
    assert data.splits == {"train": (0, 30), "validation": (30, 40), "test": (40, 50)}
    assert fashion_mnist.fashion_mnist(tmp_path, 0.5, download=False).splits["train"] == (0, 20)


def test_fashion_mnist_is_fetched_once(small: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "mirror", small)
    monkeypatch.setattr(
        fashion_mnist, "sources", lambda: (Source("a mirror", lambda names, scratch: tmp_path / "mirror"),)
    )
    fetched = fashion_mnist.fashion_mnist(tmp_path)
    monkeypatch.setattr(fashion_mnist, "sources", lambda: ())
    assert torch.equal(fashion_mnist.fashion_mnist(tmp_path).inputs, fetched.inputs)


def test_a_corrupt_file_of_fashion_mnist_is_named(small: dict, tmp_path: Path):
    save(tmp_path / "fashion_mnist", small)
    path = tmp_path / "fashion_mnist" / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz is corrupt: .*should be [0-9a-f]{64}, but it is"):
        fashion_mnist.fashion_mnist(tmp_path)


def test_a_missing_fashion_mnist_says_what_would_provide_it(small: dict, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"sudo apt-get install dataset-fashion-mnist; or put train-images-idx3-ubyte.gz"
    ):
        fashion_mnist.fashion_mnist(tmp_path, download=False)


def test_the_sources_of_fashion_mnist_are_tried_in_the_promised_order():
    labels = [source.label for source in fashion_mnist.sources()]
    assert labels[:2] == [f"{how} dataset-fashion-mnist" for how in ("the installed package", "apt-get download")]
    assert all(label.startswith("https://") for label in labels[2:])
