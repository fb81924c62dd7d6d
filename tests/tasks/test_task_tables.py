"""Tables of the user and of the UCI repository."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperopt_id.tasks.data import regression, split_by_position
from hyperopt_id.tasks.uci import SOURCES, uci
from hyperopt_id.tasks.user_csv import csv_table

DATA = os.environ.get("HYPEROPT_ID_DATA")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# csv


def regression_file(folder: Path) -> Path:
    return write(folder / "table.csv", "a,b,y\n" + "".join(f"{i},{i * i % 7},{3 * i}\n" for i in range(20)))


def test_a_table_of_the_user(tmp_path: Path):
    path = regression_file(tmp_path)
    data = csv_table(path, [12, 4, 4], standardize_targets=True)
    assert data.inputs[:16].mean(0).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert data.target_scale == pytest.approx(3 * np.arange(16).std())
    assert data.inputs.shape[1] == 2
    assert data.targets.is_floating_point()
    half = csv_table(path, [12, 4, 4], standardize_inputs=False, validation_fraction=0.5)
    assert half.splits["validation"] == (8, 16)
    assert half.inputs[:, 0].tolist() == list(range(20))


def test_a_table_with_classes(tmp_path: Path):
    path = write(tmp_path / "table.csv", "".join(f"{i},{i % 3}\n" for i in range(12)))
    data = csv_table(path, [6, 3, 3], loss="cross_entropy")
    assert data.targets.dtype == torch.int64
    assert data.targets.tolist() == [i % 3 for i in range(12)]
    assert data.inputs.shape[1] == 1
    assert data.targets.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("targets", ["0.5", "-1", "5", "1"])
def test_targets_that_are_no_classes_are_refused(tmp_path: Path, targets: str):
    rows = [f"{i},{i % 2 if targets != '1' else 1}\n" for i in range(11)] + [f"0,{targets}\n"]
    with pytest.raises(ValueError, match=r"cross_entropy needs classes 0, 1, \.\.\., C-1 .* found"):
        csv_table(write(tmp_path / "table.csv", "".join(rows)), [6, 3, 3], loss="cross_entropy")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"splits": [12, 4, 5]}, "but the data have 20"),
        ({"splits": [16, 4, 0]}, "a split is empty"),
        ({"splits": [12, 4, 4], "loss": "hinge"}, "must be mse or cross_entropy, got 'hinge'"),
        (
            {"splits": [12, 4, 4], "loss": "cross_entropy", "standardize_targets": True},
            "cannot be standardized",
        ),
    ],
)
def test_wrong_options_of_a_table_are_refused(tmp_path: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        csv_table(regression_file(tmp_path), **options)


def test_a_missing_table_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"there is no file .*absent.csv"):
        csv_table(tmp_path / "absent.csv", [1, 1, 1])


# UCI


def yacht_like(rows: int = 308, columns: int = 7) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns))


@pytest.mark.parametrize("folder", ["UCI_Yacht", "Yacht", "uci_yacht", "YACHT"])
def test_uci_from_csv_in_any_spelling_of_its_folder(tmp_path: Path, folder: str):
    table = yacht_like()
    (tmp_path / folder).mkdir()
    np.savetxt(tmp_path / folder / "data.csv", table, delimiter=",")
    data = uci(tmp_path, "yacht")
    assert data.splits == {"train": (0, 222), "validation": (222, 277), "test": (277, 308)}
    torch.testing.assert_close(
        data.targets * data.target_scale, torch.from_numpy(table[:, -1] - table[:277, -1].mean())
    )
    assert uci(tmp_path, "yacht", validation_fraction=0.5).splits["train"] == (0, 277 - 138)


@pytest.mark.parametrize("target_shape", [(308,), (308, 1)])
def test_uci_from_the_tensors_of_the_published_code(tmp_path: Path, target_shape: tuple[int, ...]):
    table = yacht_like()
    folder = tmp_path / "UCI_Yacht"
    folder.mkdir()
    torch.save(torch.from_numpy(table[:, :-1]), folder / "data.pt")
    targets = torch.from_numpy(table[:, -1]).reshape(target_shape)
    torch.save(torch.nn.Parameter(targets), folder / "targets.pt")  # values, whatever they were to whoever saved them
    expected = regression(table, split_by_position(SOURCES["yacht"].splits, 308, "yacht"))
    data = uci(tmp_path, "yacht")
    torch.testing.assert_close(data.inputs, expected.inputs)
    torch.testing.assert_close(data.targets, expected.targets)


def test_wrong_uci_files_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="unknown UCI data set 'iris': use one of energy"):
        uci(tmp_path, "iris")
    with pytest.raises(ValueError, match=r"needs .*UCI_Yacht/data.csv .* public source: https://archive.ics.uci.edu"):
        uci(tmp_path, "yacht")
    folder = tmp_path / "UCI_Yacht"
    folder.mkdir()
    np.savetxt(folder / "data.csv", yacht_like(columns=6), delimiter=",")
    with pytest.raises(ValueError, match="has 6 columns, UCI_Yacht needs 6 features and the target"):
        uci(tmp_path, "yacht")
    np.savetxt(folder / "data.csv", yacht_like(rows=300), delimiter=",")
    with pytest.raises(ValueError, match="but the data have 300"):
        uci(tmp_path, "yacht")
    (folder / "data.csv").unlink()
    torch.save([1, 2], folder / "data.pt")
    torch.save(torch.ones(308), folder / "targets.pt")
    with pytest.raises(ValueError, match="not tensors with one row per example"):
        uci(tmp_path, "yacht")
    torch.save(torch.full((308, 6), torch.nan), folder / "data.pt")
    with pytest.raises(ValueError, match="row 1, column 1 is not a finite number"):
        uci(tmp_path, "yacht")


@pytest.mark.parametrize("name", SOURCES)
def test_real_uci_data(name: str):
    source = SOURCES[name]
    if not DATA or not (Path(DATA) / source.folder).is_dir():
        pytest.skip(f"HYPEROPT_ID_DATA does not point at a folder with {source.folder}")
    data = uci(Path(DATA), name)
    assert data.inputs.shape == (sum(source.splits), source.features)
    known = data.targets[: data.splits["test"][0]]
    assert known.mean().item() == pytest.approx(0, abs=1e-9)
    assert known.std(correction=0).item() == pytest.approx(1)
