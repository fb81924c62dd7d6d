"""Reading, checking, splitting and standardizing tables; the loaders that need no network."""

import builtins
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hyperopt_id.tasks.data import Dataset, read_csv, read_idx, regression, split_by_position, standardize
from hyperopt_id.tasks.diabetes import diabetes
from hyperopt_id.tasks.digits import digits
from hyperopt_id.tasks.task import supervised


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# reading


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3\n4,5,6\n",
        "a,b,target\n1,2,3\n4,5,6\n",
        "1,2,3\n\n4,5,6\n\n",
        '"a","b","c"\n"1","2","3"\n"4","5","6"',
        "\ufeff1, 2 ,3\r\n4,5.0e0,6\r\n",
    ],
    ids=["plain", "header", "blank lines", "quoted", "byte order mark"],
)
def test_numbers_of_a_csv_file(tmp_path: Path, text: str):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    assert read_csv(path).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "text, message",
    [
        ("1,2\n3,four\n", r"table.csv: row 2, column 2: 'four' is not a finite number"),
        ("1,2\n3,4\nnan,6\n", "row 3, column 1: 'nan'"),
        ("1,2\n3,inf\n", "row 2, column 2: 'inf'"),
        ("a,b\n1,2\n3,\n", "row 3, column 2: ''"),
        ("1,x\n3,4\n", "row 1, column 2: 'x'"),
        ("1,2\n3,4,5\n", "row 2 has 3 columns, the first row has 2"),
        ("1\n2\n", "at least one input column and the target column, found 1"),
        ("", "no rows of numbers"),
        ("a,b\n", "no rows of numbers"),
    ],
)
def test_bad_cells_of_a_csv_file_are_named(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_csv(write(tmp_path / "table.csv", text))


@pytest.mark.parametrize(
    "content",
    ["Größe,b\n1,2\n".encode("latin-1"), "1,2\n".encode("utf-16"), b"1,2\n" * 9000 + "3,ß\n".encode("latin-1")],
    ids=["header", "utf-16", "late"],
)
def test_a_csv_file_in_another_encoding_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"table\.csv: not a text file in UTF-8"):
        read_csv(tmp_path / "table.csv")


def test_idx_files():
    content = b"\x00\x00\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6))
    assert read_idx(content, "file").tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match=r"file: holds 5 values, its header says \(2, 3\)"):
        read_idx(content[:-1], "file")
    with pytest.raises(ValueError, match="not an idx file"):
        read_idx(b"\x89PNG....", "file")


# splitting and standardizing


@pytest.mark.parametrize("fraction, validation", [(None, 20), (0.11, 11), (0.25, 25), (0.375, 38), (0.5, 50)])
def test_splits_by_position(fraction: float | None, validation: int):
    splits = split_by_position((80, 20, 7), 107, "table", fraction)
    assert splits == {
        "train": (0, 100 - validation),
        "validation": (100 - validation, 100),
        "test": (100, 107),
    }


@pytest.mark.parametrize(
    "counts, rows, fraction, message",
    [
        ((80, 20), 100, None, "three row counts"),
        ((80, -1, 20), 99, None, "a split is empty: train 80, validation -1, test 20"),
        ((0, 80, 20), 100, None, "a split is empty"),
        ((80, 20, 0), 100, None, "a split is empty"),
        ((80, 20, 5), 100, None, r"80 \+ 20 \+ 5 = 105 rows, but the data have 100"),
        ((80, 20, 5), 105, 1.0, "validation_fraction must be 0 or more, below 1, got 1.0"),
        ((80, 20, 5), 105, -0.1, "validation_fraction must be 0 or more, below 1, got -0.1"),
        ((80, 20, 5), 105, 1e-3, "a split is empty"),
    ],
)
def test_impossible_splits_are_refused(counts: tuple, rows: int, fraction: float | None, message: str):
    with pytest.raises(ValueError, match=message):
        split_by_position(counts, rows, "table", fraction)


@pytest.mark.parametrize(("counts", "fraction"), [((80, 0, 20), None), ((60, 20, 20), 0.0)])
def test_there_may_be_no_validation_data_where_that_is_asked_for(counts: tuple, fraction: float | None):
    splits = split_by_position(counts, 100, "table", fraction)
    assert splits == {"train": (0, 80), "validation": (80, 80), "test": (80, 100)}


def test_standardization_uses_train_and_validation_rows_only():
    generator = np.random.default_rng(0)
    values = np.column_stack([generator.normal(3, 5, 50), np.full(50, 0.1), generator.integers(0, 9, 50)])
    values[40:] += 100
    result, deviation = standardize(values, 40)
    np.testing.assert_allclose(result[:40].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(result[:40].std(0), [1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(result * deviation + values[:40].mean(0), values)
    assert deviation[1] == 1.0


def test_targets_keep_their_scale():
    generator = np.random.default_rng(0)
    values = generator.normal(3, 5, (50, 3))
    data = regression(values, split_by_position((30, 10, 10), 50, "table"))
    assert data.target_scale == pytest.approx(values[:40, -1].std())
    assert data.inputs.shape == (50, 2)
    assert data.targets.shape == (50,)
    plain = regression(values, data.splits, standardize_inputs=False, standardize_targets=False)
    assert plain.target_scale == 1.0
    assert torch.equal(plain.targets, torch.from_numpy(values[:, -1]))


def test_moving_changes_the_type_of_floating_point_tensors_only():
    data = digits().to("cpu", torch.float32)
    assert data.inputs.dtype == data.dtype == torch.float32
    assert data.targets.dtype == torch.int64
    assert data.bounds("train+validation") == (0, 1447)


# the data set itself


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "splits must name train, and may name validation and test, got"),
        ({"validation": (0, 5)}, r"splits must name train, .* got \['validation'\]"),
        ({"train": (0, 5), "valid": (5, 10)}, r"splits must name train, .* got \['train', 'valid'\]"),
        ([0, 5], r"splits must name train, .* got \[0, 5\]"),
        ({"train": 5}, r"split train must be \(first row, last row \+ 1\), got 5"),
        ({"train": (0.0, 5.0)}, r"split train must be \(first row, last row \+ 1\), got \(0.0, 5.0\)"),
        ({"train": (0, 0), "test": (0, 5)}, r"split train must be 1 or more of the rows 0 to 10, got \(0, 0\)"),
        ({"train": (0, 11)}, r"split train must be 1 or more of the rows 0 to 10, got \(0, 11\)"),
        ({"train": (-3, 5)}, r"split train must be 1 or more of the rows 0 to 10, got \(-3, 5\)"),
        ({"train": (0, 5), "test": (5, 11)}, r"split test must be within the rows 0 to 10, got \(5, 11\)"),
        ({"train": (0, 5), "validation": (8, 6)}, "split validation must be within the rows"),
        ({"train": (0, 5), "validation": (4, 8)}, "split validation must begin at row 5, where the one before it ends"),
        ({"train": (0, 5), "validation": (6, 8)}, "split validation must begin at row 5"),
        ({"train": (5, 10), "test": (0, 5)}, "split test must begin at row 10"),
    ],
)
def test_wrong_splits_are_refused(splits: dict, message: str):
    with pytest.raises(ValueError, match=f"^Dataset: {message}") as caught:
        Dataset(torch.zeros(10, 2), torch.zeros(10), splits)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (np.zeros((10, 2)), torch.zeros(10), "inputs must be a tensor with a row per example, got ndarray"),
        (torch.zeros(10, 2), [0.0] * 10, "targets must be a tensor with a row per example, got list"),
        (torch.zeros(10, 2), torch.tensor(0.0), "targets must be a tensor .* got a single number"),
        (torch.zeros(10, 2), torch.zeros(9), "got 10 rows of inputs and 9 of targets"),
    ],
)
def test_wrong_tables_are_refused(inputs, targets, message: str):
    with pytest.raises(ValueError, match=f"^Dataset: {message}"):
        Dataset(inputs, targets, {"train": (0, 9)})


def test_splits_that_nothing_asks_for_may_be_left_out():
    data = Dataset(torch.zeros(10, 2), torch.zeros(10), {"test": (6, 10), "train": (0, 6)})
    assert data.bounds("train+validation") == (0, 6)
    assert data.bounds("test") == (6, 10)
    message = "the data set has no validation split, only test, train: give it rows, or leave validation out of"
    with pytest.raises(ValueError, match=message):
        data.bounds("validation")
    task = supervised(data, lambda: nn.Linear(2, 1), "mse", 3)
    assert task.sizes == {"train": 6, "test": 4, "train+validation": 6}
    assert task.evaluate(*task.init(0), "test")["loss"].isfinite()
    for fails in (lambda: task.batches("validation", [0], 0, 1), lambda: task.evaluate(*task.init(0), "validation")):
        with pytest.raises(ValueError, match=message):
            fails()


# digits, diabetes


def test_digits_equal_the_copy_of_scikit_learn():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    inputs, targets = sklearn_datasets.load_digits(return_X_y=True)
    data = digits()
    assert torch.equal(data.inputs, torch.from_numpy(inputs / 16.0))
    assert torch.equal(data.targets, torch.from_numpy(targets))
    assert data.splits == {"train": (0, 1097), "validation": (1097, 1447), "test": (1447, 1797)}


def test_diabetes():
    pytest.importorskip("sklearn.datasets")
    data = diabetes()
    assert data.inputs.shape == (442, 10)
    assert data.inputs[: data.splits["test"][0]].std(0, correction=0).tolist() == pytest.approx([1.0] * 10)
    assert data.target_scale == pytest.approx(77, abs=5)


def test_diabetes_without_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *arguments, **options):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="pip install scikit-learn"):
        diabetes()
