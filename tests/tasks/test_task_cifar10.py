"""CIFAR-10 from small files in the true format, and no code runs while they are read."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperopt_id.tasks import cifar10 as cifar
from hyperopt_id.tasks.cifar10 import ARCHIVE, BATCHES, FOLDER, cifar10

SPLITS = (8, 2, 2)


def batches() -> dict[str, bytes]:
    """Two images each, pickled as the real files are: protocol 2 with byte-string keys."""
    generator = np.random.default_rng(0)
    return {
        name: pickle.dumps(
            {
                b"batch_label": name.encode(),
                b"labels": [number % 10, (number + 1) % 10],
                b"data": generator.integers(0, 256, (2, 3072), dtype=np.uint8),
                b"filenames": [b"a.png", b"b.png"],
            },
            protocol=2,
        )
        for number, name in enumerate(BATCHES)
    }


def save_folder(root: Path, files: dict[str, bytes]) -> None:
    (root / FOLDER).mkdir(parents=True)
    for name, content in files.items():
        (root / FOLDER / name).write_bytes(content)


def save_archive(root: Path, files: dict[str, bytes]) -> str:
    root.mkdir(exist_ok=True)
    with tarfile.open(root / ARCHIVE, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return f"sha256:{hashlib.sha256((root / ARCHIVE).read_bytes()).hexdigest()}"


@pytest.mark.parametrize("place", ["", "cifar10", "CIFAR10"])
def test_images_of_folder_and_archive_are_the_same(tmp_path: Path, place: str):
    files = batches()
    save_folder(tmp_path / "one" / place, files)
    (tmp_path / "two").mkdir()
    checksum = save_archive(tmp_path / "two" / place, files)
    one = cifar10(tmp_path / "one", splits=SPLITS, download=False)
    two = cifar10(tmp_path / "two", splits=SPLITS, download=False, checksum=checksum)
    assert torch.equal(one.inputs, two.inputs)
    assert one.inputs.shape == (12, 3, 32, 32)
    assert one.inputs.dtype == torch.float32
    assert one.targets.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert one.splits == {"train": (0, 8), "validation": (8, 10), "test": (10, 12)}
    known = one.inputs[:10].double()
    torch.testing.assert_close(known.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(known.std((0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-6, rtol=0)
    first = pickle.loads(files["data_batch_1"])[b"data"][0].reshape(3, 32, 32)  # channel, row, column
    red = torch.from_numpy(first[0]).double()
    assert torch.corrcoef(torch.stack([one.inputs[0, 0].flatten().double(), red.flatten()]))[0, 1] > 0.999999


class Harmful:
    def __reduce__(self) -> tuple:
        return os.mkdir, (str(MARK),)


MARK = Path("harm_was_done")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    save_folder(tmp_path, batches() | {"data_batch_3": pickle.dumps({b"data": Harmful(), b"labels": []})})
    with pytest.raises(ValueError, match=r"data_batch_3 is not a batch .*it asks for posix.mkdir"):
        cifar10(tmp_path, splits=SPLITS, download=False)
    assert not MARK.exists()


def nested(depth: int) -> list:
    """A list that holds itself ten times, at every level: a page of pickle, 10^depth numbers."""
    value = [1]
    for _ in range(depth):
        value = [value] * 10
    return value


def test_labels_that_grow_while_they_are_read_are_refused(tmp_path: Path):
    wrong = pickle.dumps({b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": nested(30)})
    save_folder(tmp_path, batches() | {"test_batch": wrong})
    with pytest.raises(ValueError, match=r"test_batch is not a batch .*its labels no list of integers"):
        cifar10(tmp_path, splits=SPLITS, download=False)


def test_one_batch_that_is_damaged_among_published_ones_is_refused(tmp_path: Path, monkeypatch, caplog):
    files = batches()
    sums = {name: f"md5:{hashlib.md5(content).hexdigest()}" for name, content in files.items()}
    save_folder(tmp_path, files | {"data_batch_2": files["data_batch_1"]})
    cifar10(tmp_path, splits=SPLITS, download=False)
    assert "these are other data" in caplog.text
    monkeypatch.setattr(cifar, "BATCHES", sums)
    with pytest.raises(ValueError, match="data_batch_2 is corrupt: the MD5 checksum"):
        cifar10(tmp_path, splits=SPLITS, download=False)


def test_wrong_files_are_named(tmp_path: Path):
    wrong = pickle.dumps({b"data": np.zeros((2, 100), dtype=np.uint8), b"labels": [0, 1]})
    save_folder(tmp_path / "one", batches() | {"test_batch": wrong})
    with pytest.raises(ValueError, match=r"test_batch: needs uint8 images \[n, 3072\], got uint8 \(2, 100\)"):
        cifar10(tmp_path / "one", splits=SPLITS, download=False)
    files = batches()
    del files["data_batch_2"]
    checksum = save_archive(tmp_path / "two", files)
    with pytest.raises(ValueError, match=f"{ARCHIVE} lacks data_batch_2"):
        cifar10(tmp_path / "two", splits=SPLITS, download=False, checksum=checksum)
    with pytest.raises(ValueError, match=f"{ARCHIVE} is corrupt: the SHA256 checksum of its file should be 6d958be"):
        cifar10(tmp_path / "two", download=False)
    with pytest.raises(ValueError, match=r"CIFAR-10 is not in .* switched off"):
        cifar10(tmp_path / "three", download=False)
