"""A mistake of the user is one line on stderr that says what to do, and exit status 2."""

import fcntl
import os
import re
from pathlib import Path

import pytest
import torch
from short_runs import CONFIGS, QUICK, config, digits, into

import hyperopt_id.tasks.fashion_mnist as fashion
from hyperopt_id import cli
from hyperopt_id.tasks.fetch import Source, Unavailable


def table(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "table.csv"
    path.write_text(text)
    own = f"task={{path: {path}, splits: [2, 1, 1], model: {{sizes: [2, 1]}}}}"
    return [*config("csv", "Ours_LR"), *into(tmp_path / "run"), "-s", own, *QUICK]


def corrupt_fashion_mnist(tmp_path: Path) -> list[str]:
    (tmp_path / "fashion_mnist").mkdir()
    for file in fashion.CHECKSUMS:
        (tmp_path / "fashion_mnist" / file).write_bytes(b"not a picture")
    return missing("fashion_mnist")(tmp_path)


def missing(dataset: str):
    def arguments(tmp_path: Path) -> list[str]:
        return [*config(dataset, "Ours_LR"), *into(tmp_path / "run"), "--data-root", str(tmp_path), "-s", *QUICK]

    return arguments


def wrong_uci(tmp_path: Path) -> list[str]:
    (tmp_path / "UCI_Energy").mkdir()
    (tmp_path / "UCI_Energy" / "data.csv").write_text("1,2,3\n4,5,6\n")
    return missing("uci_energy")(tmp_path)


def below_a_file(tmp_path: Path) -> list[str]:
    (tmp_path / "run").write_text("in the way")
    return [*digits(tmp_path), "-l", str(tmp_path / "run"), "-n", "deeper"]


def finished(tmp_path: Path) -> list[str]:
    assert cli.train(digits(tmp_path)) == 0
    return digits(tmp_path)


def locked(tmp_path: Path) -> list[str]:
    """Another process (here: another open file) is writing into the directory."""
    (tmp_path / "run").mkdir()
    other = open(tmp_path / "run" / "metrics.jsonl", "ab")  # noqa: SIM115 - held until `mistakes` lets it go
    fcntl.flock(other, fcntl.LOCK_EX)
    HELD.append(other)
    return digits(tmp_path)


HELD = []
MISTAKES = {
    "missing UCI set": (missing("uci_energy"), "UCI_Energy is not there: needs .*data.csv"),
    "UCI set of the wrong form": (wrong_uci, "has 3 columns"),
    "corrupt Fashion-MNIST": (corrupt_fashion_mnist, "is corrupt: the SHA256 checksum"),
    "csv with text": (lambda d: table(d, "1,2,3\n4,b,6\n1,2,3\n1,2,3\n"), "row 2, column 2: 'b'"),
    "csv with NaN": (lambda d: table(d, "1,2,3\n4,5,6\n1,2,nan\n1,2,3\n"), "row 3, column 3: 'nan'"),
    "csv with an empty cell": (lambda d: table(d, "1,2,3\n4,5,6\n,2,3\n1,2,3\n"), "row 3, column 1: ''"),
    "csv with too few rows": (
        lambda d: table(d, "1,2,3\n4,5,6\n"),
        r"splits 2 \+ 1 \+ 1 = 4 rows, but the data have 2",
    ),
    "no csv": (lambda d: [*table(d, ""), f"task.path={d}/other.csv"], "there is no file .*other.csv"),
    "empty split": (
        lambda d: [*table(d, "1,2,3\n4,5,6\n1,2,3\n1,2,3\n"), "task.validation_fraction=1e-3"],
        "a split is empty: train 3, validation 0, test 1",
    ),
    "batch larger than the training split": (
        lambda d: digits(d, "task.batch_size=1098"),
        "task.batch_size: given 1098, but the train split has 1097 rows; take fewer, or all",
    ),
    "batch larger than the validation split": (
        lambda d: digits(d, "task.batch_size=351"),
        "task.batch_size: given 351, but the validation split has 350 rows",
    ),
    "no validation data": (
        lambda d: [*table(d, "1,2,3\n4,5,6\n1,2,3\n1,2,3\n"), "task.splits=[3,0,1]"],
        "leaves no validation data",
    ),
    "device cuda without CUDA": (
        lambda d: digits(d, "device=cuda"),
        "device cuda was asked for, .*use device cpu or auto",
    ),
    "log directory below a file": (below_a_file, "log directory .* cannot be written .*-l DIR"),
    "directory of a finished run": (finished, "already holds a run; continue it with --resume"),
    "directory of a running run": (locked, "two runs into the same directory"),
    "unknown key": (lambda d: digits(d, "inner.update=3"), "inner.update.*inner.updates"),
    "negative lr": (lambda d: digits(d, "space.lr.init=-0.1"), "space.lr.init"),
    "lr outside its bounds": (lambda d: digits(d, "space.lr.init=2.0"), "outside space.lr.bounds"),
    "window too long": (
        lambda d: digits(d, "hypergradient={engine: unroll, window: 11}"),
        "longer than inner.steps_per_update = 10",
    ),
    "wrong number of inputs": (
        lambda d: digits(d, "task.model.sizes=[63,5,10]"),
        r"task.model.sizes: given \[63, 5, 10\].*\[64",
    ),
    "too few classes": (
        lambda d: digits(d, "task.model.sizes=[64,5,9]"),
        r"task.model.sizes: given \[64, 5, 9\].*10\]",
    ),
    "no starting weights": (lambda d: digits(d, "task.model.init_from=none.npz"), "there is no file none.npz"),
    "resume without a run": (lambda d: ["--resume", str(d)], "there is no run"),
    "resume of a run from Python": (
        lambda d: ["--resume", str(d), str((d / "config.yaml").write_text(""))][:2],
        r"this run was started from Python, .*resume it from Python, too: hyperopt_id\.run",
    ),
    "resume auto without a run": (lambda d: [*digits(d), "--resume", "auto"], "found no run"),
    "resume auto without a config": (
        lambda d: ["--resume", "auto"],
        "--resume auto finds the run by its config files: add -c FILE..., or name the directory",
    ),
    "resume of a name that is too long": (lambda d: ["--resume", "x" * 5000], "File name too long: xxx.*xxx"),
    "weights of a name that is too long": (
        lambda d: digits(d, f"task.model.init_from={'x' * 5000}"),
        "there is no file",
    ),
    "a pipe as config": (lambda d: [os.mkfifo(d / "pipe") or "-c", str(d / "pipe")], "pipe: is no regular file"),
    "a pipe as table": (
        lambda d: [*table(d, ""), os.mkfifo(d / "pipe") or f"task.path={d}/pipe"],
        "is no regular file",
    ),
    "sizes beyond the machine": (
        lambda d: digits(d, "task.model.sizes=[64,1000000000,10]"),
        "parameters, for population.runs = 1, needs about .* GiB, this machine has .*; take a smaller model",
    ),
    "no config": (lambda d: [], "no config"),
    "no such config": (lambda d: ["-c", str(CONFIGS / "digit.yaml")], "did you mean .*digits.yaml"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, tmp_path, capsys, monkeypatch):
    arguments, message = MISTAKES[name]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = arguments(tmp_path)
    capsys.readouterr()
    try:
        assert cli.train(given) == 2
    finally:
        while HELD:
            HELD.pop().close()
    output = capsys.readouterr()
    assert re.search(message, output.err)
    assert output.err.startswith("error: ")
    assert len(output.err) <= 1001
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert not (tmp_path / "run").is_dir() or name in ("directory of a finished run", "directory of a running run")


def test_missing_fashion_mnist_offline(tmp_path, capsys, monkeypatch):
    """Every source that was tried is listed, then what would provide the files."""

    def nothing(names, scratch):
        raise Unavailable("no network")

    monkeypatch.setattr(fashion, "sources", lambda: (Source("a mirror", nothing), Source("another", nothing)))
    assert cli.train(missing("fashion_mnist")(tmp_path)) == 2
    error = capsys.readouterr().err
    assert "a mirror: no network" in error
    assert "another: no network" in error
    assert "sudo apt-get install" in error
    assert "Traceback" not in error


def test_after_a_mistake_the_same_name_can_be_used(tmp_path):
    arguments = table(tmp_path, "1,2,3\n4,b,6\n1,2,3\n1,2,3\n")
    assert cli.train(arguments) == 2
    (tmp_path / "table.csv").write_text("1,2,3\n4,5,6\n1,2,4\n1,2,3\n")
    assert cli.train([*arguments, "inner.steps=10"]) == 0


@pytest.mark.parametrize("wrong", [["--device", "tpu"], ["--runs", "many"], ["--nonsense"]])
def test_argparse_mistakes_have_exit_status_2(wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.train(wrong)
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err
