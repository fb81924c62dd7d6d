"""Reading, checking, splitting and standardizing tables; the loaders that need no network."""

import builtins
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hyperopt_id.tasks.csv_files import read_csv
from hyperopt_id.tasks.data import Dataset, read_idx, regression, split_by_position, standardize
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
        "\n1,2,3\n4,5,6\n,,\n",
        "\n ,,\n\na,b,c\n1,2,3\n\n4,5,6\n,,\n",
        '"a\nb",c,"d\n"\n1,2,3\n4,5,6\n',
        "measured in May\n1,2,3\n4,5,6\n",
    ],
    ids=[
        "plain",
        "header",
        "blank lines",
        "quoted",
        "byte order mark",
        "blank first and last",
        "header after blank lines",
        "lines in a header",
        "title",
    ],
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
        ("\n\n", "no rows of numbers"),
        (",a,b\n0,1,2\n1,3,4\n", "the first column has no name, as the index that pandas and R write: leave it out"),
        ('"","a","b"\n"7",1,2\n"9",3,4\n', "the first column has no name"),
        ("Unnamed: 0,a,b\n0,1,2\n1,3,4\n", "the first column has no name"),
        ("a,b\n0,1,2\n1,3,4\n", "the header names 2 columns, the rows have 3"),
        ("1,2\n3," + "4" * 200_000 + "x\n", r"row 2: a cell of more than 131072 characters"),
        ('1,2\n3,"4\n' + "5,6\n" * 90_000, r"row 2: a cell of more than 131072 characters"),
        ("1,2\n3,\0\n", "row 2, column 2"),
        ("1,2\n3,1_0\n", "row 2, column 2: '1_0' is not a finite number"),
        ("1,2\n3,1e400\n", "row 2, column 2: '1e400' is not a finite number"),
        ("1,2\n3," + "x" * 1000 + "\n", r"'xxx.*\.\.\.x+' is not a finite number"),
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


def test_only_regular_files_are_tables(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop", "", "/dev/zero", "missing"):
        with pytest.raises(ValueError, match=r"no regular file|cannot be read"):
            read_csv(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("t,x\n0,2\n1,4\n2,3\n", "the first column counts the rows; if that is no input, leave it out"),
        ("1,2\n2,4\n3,3\n", "the first column counts the rows"),
        ("0,1,2\n1,5,4\n7,4,3\n", "the first row counts the columns and is taken for data"),
        ("5,2\n6,4\n7,3\n", None),
        ("0,1\n1,5\n7,4\n", None),
    ],
)
def test_what_may_be_an_index_or_a_header_is_said(tmp_path: Path, caplog, text: str, said: str | None):
    read_csv(write(tmp_path / "table.csv", text))
    assert [said in record.getMessage() for record in caplog.records] == [True] * (said is not None)


@settings(max_examples=60)
@given(
    rows=st.lists(st.lists(st.integers(-9, 9).map(str), min_size=2, max_size=2), min_size=1, max_size=4),
    blank=st.lists(st.sampled_from(["", " ", ",", " , "]), min_size=6, max_size=6),
    header=st.sampled_from(["", "a,b\n", '"a\n",b\n']),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_blank_rows_anywhere_change_nothing(tmp_path_factory, rows, blank, header, end):
    lines = [",".join(row) for row in rows]
    text = blank[0] + "\n" + header + "".join(f"{line}\n{gap}\n" for line, gap in zip(lines, blank[1:], strict=False))
    path = tmp_path_factory.mktemp("table") / "table.csv"
    path.write_bytes(text.replace("\n", end).encode())
    assert read_csv(path).tolist() == [[float(cell) for cell in row] for row in rows]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00\x08\x03\x00\x00", "not an idx file: its header is cut, or of rank 3"),
        (b"\x00\x00\x08\xff" + b"\0" * 2000, "not an idx file: its header is cut, or of rank 255"),
        (b"\x00\x00\x08\x00\x01", "not an idx file: its header is cut, or of rank 0"),
        (b"\x00\x00\x08\x02" + b"\xff" * 8, "holds 0 values, its header says"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "not an idx file"),
        (b"", "not an idx file"),
    ],
)
def test_cut_idx_files(content: bytes, message: str):
    with pytest.raises(ValueError, match=f"^file: {message}"):
        read_idx(content, "file")


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


VARIED = np.array([0.0, 1.0, 2.0, 1.0, 5.0])
COLUMNS = {  # values of train and validation, and whether they are constant up to rounding
    "the same": (np.full(5, 0.1), True),
    "one unit in the last place": (0.3 + 5.6e-17 * VARIED, True),
    "a sum of a hundred terms": (1.0 + 1e-15 * VARIED, True),
    "of float32": (np.float32(0.1) + 2.0**-27 * VARIED.clip(max=3), True),
    "of float32, as printed": (np.array([0.99999994, 1.0, 0.9999999, 1.0, 1.0]), True),
    "seconds of a clock": (1.6e9 + 0.01 * VARIED, False),
    "seconds of a clock, whole": (1.6e9 + VARIED, False),
    "numbers of things": (1e15 + VARIED, False),
    "counts that differ by one in a million": (1e6 + VARIED, False),
    "tiny": (1e-30 * VARIED, False),
    "tiny squares": (1e-200 * VARIED, False),
    "huge squares": (1e200 * VARIED, False),
    "the largest": (1.7e308 * np.array([1.0, -1.0, 1.0, -1.0, 0.0]), False),
    "eight digits": (1.0 + 1e-8 * VARIED, False),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_that_are_constant_up_to_rounding_are_not_divided(name: str, caplog):
    """A row elsewhere that differs stays what it is, instead of becoming 1e16; what varies has deviation 1, however
    large or small it is beside its mean."""
    values, flat = COLUMNS[name]
    column = np.append(values, values[0] + (1.0 if flat else values[1] / 2))[:, None]
    result, deviation = standardize(column, 5, "input column")
    assert np.isfinite(result).all()
    assert (deviation.item() == 1.0) == flat
    assert bool(caplog.records) == (flat and len(np.unique(values)) > 1)
    if flat:
        assert (result[:5] == 0.0).all() or len(np.unique(values)) == 1
        assert result[5, 0] == pytest.approx(1.0, abs=1e-6)
    else:
        np.testing.assert_allclose(result[:5].mean(), 0.0, atol=0.1)  # of 1e15, the last place is an eighth
        np.testing.assert_allclose(result[:5].std(), 1.0, rtol=0.01)
    for record in caplog.records:
        assert record.getMessage().startswith(
            "data: input column 1 is constant up to rounding: it is centered, and not"
        )


def test_what_is_left_of_a_difference_is_no_scale_beside_other_rows():
    """Zeros but for 1e-22 made 1e22 of a 1 in the test rows."""
    result, deviation = standardize(np.array([[0.0], [1e-22], [0.0], [1.0]]), 3)
    assert deviation.item() == 1.0
    assert result[3, 0] == 1.0


@pytest.mark.parametrize("scale", [1.0, 1e-5, 3e7])
def test_powers_of_two_that_are_taken_out_change_no_bit(scale: float):
    values = scale * np.random.default_rng(0).normal(3, 5, (50, 4))
    result, deviation = standardize(values, 40)
    assert np.array_equal(deviation, values[:40].std(0))
    assert np.array_equal(result, (values - values[:40].mean(0)) / values[:40].std(0))


def test_the_precision_asked_for_is_that_of_models_of_whole_and_complex_numbers():
    targets, splits = torch.ones(3), {"train": (0, 3)}
    for inputs in (torch.arange(3), torch.ones(3, 2, dtype=torch.uint8), torch.ones(3, 2) > 0):
        data = Dataset(inputs, targets, splits)
        assert data.dtype == torch.get_default_dtype()
        moved = data.to("cpu", torch.float64).to("cpu")
        assert (moved.dtype, moved.inputs.dtype, moved.targets.dtype) == (torch.float64, inputs.dtype, torch.float64)
    data = Dataset(torch.ones(3, 2, dtype=torch.complex64), targets, splits)
    assert data.dtype == torch.float32
    moved = data.to("cpu", torch.float64)
    assert (moved.dtype, moved.inputs.dtype) == (torch.float64, torch.complex128)


@pytest.mark.parametrize("name", ["inputs", "targets"])
def test_numbers_beyond_the_precision_asked_for_are_refused(name: str):
    parts = {"inputs": torch.ones(3, 1).double(), "targets": torch.ones(3).double()}
    parts[name][1] = 1e300
    data = Dataset(**parts, splits={"train": (0, 3)})
    with pytest.raises(
        ValueError, match=rf"^Dataset: {name} hold numbers beyond 3.4e\+38, the largest of float32: stand"
    ):
        data.to("cpu", torch.float32)
    assert data.to("cpu", torch.float64).inputs.isfinite().all()


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
