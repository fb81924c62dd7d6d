"""The command line: every algorithm runs, every pair builds, and a mistake is one line on stderr with exit status 2."""

import fcntl
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from laws import random

import hyperopt_id.tasks.fashion_mnist as fashion
from hyperopt_id import Dataset, checkpoint, cli
from hyperopt_id.build import names
from hyperopt_id.config import load
from hyperopt_id.tasks.fetch import Source, Unavailable

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
DATASETS = sorted(p.stem for p in CONFIGS.glob("*.yaml") if not re.match("[A-Z]", p.stem))
ALGORITHMS = sorted(p.stem for p in CONFIGS.glob("*.yaml") if re.match("[A-Z]", p.stem))
QUICK = ["inner.compile=off", "log.progress=none", "threads=1"]


def config(*stems: str) -> list[str]:
    return ["-c", *(str(CONFIGS / f"{stem}.yaml") for stem in stems)]


def into(directory: Path) -> list[str]:
    return ["-l", str(directory.parent), "-g", ".", "-n", directory.name]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_runs_on_digits(algorithm, tmp_path):
    short = ["inner.updates=2", "task.model.sizes=[64,5,10]"]
    if "Long" in algorithm:
        short += ["inner.steps_per_update=8", "hypergradient.window=null"]
    assert cli.train([*config("digits", algorithm), *into(tmp_path / "run"), "-s", *QUICK, *short]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["diverged"] == [False]
    assert all(value[0] is not None for value in summary["final"].values())
    loaded = load([tmp_path / "run" / "config.yaml"])
    parts, _ = names.from_config(loaded)
    raw = checkpoint.load(tmp_path / "run" / "checkpoints")[0]["run"]["raw"]
    moved = {key.split("/")[0] for key, value in parts.start().raw.items() if not torch.equal(raw[key], value)}
    assert moved == {name for name, hyper in loaded.space.items() if hyper.tune}


@pytest.fixture
def small_data(monkeypatch):
    """Data sets that need files are replaced by a few random rows of the right form."""
    rows = {"train": (0, 60), "validation": (60, 90), "test": (90, 120)}
    for name in set(names.DATASETS) - {"digits", "diabetes", "toy_quadratic", "toy_ridge"}:

        def small(config, root):
            sizes = config.task.model.sizes
            if sizes[-1] == 1:
                return Dataset(random(120, sizes[0], seed=1), random(120, seed=2), rows), "mse"
            return Dataset(random(120, sizes[0], seed=1), torch.arange(120) % sizes[-1], rows), "cross_entropy"

        monkeypatch.setitem(names.DATASETS, name, small)


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_pair_builds(dataset, algorithm):
    if dataset not in names.DATASETS and dataset != "fashion_mnist_bn":
        pytest.skip(f"{dataset} is not connected to the builder yet")
    files = [CONFIGS / f"{stem}.yaml" for stem in (dataset, algorithm)]
    loaded = load(files, [*QUICK, "population.runs=2"])
    parts, plan = names.from_config(loaded)
    assert plan.updates == loaded.inner.total_updates
    assert parts.start().skipped.tolist() == [0, 0]


# Mistakes


def table(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "table.csv"
    path.write_text(text)
    own = f"task={{path: {path}, splits: [2, 1, 1], model: {{sizes: [2, 1]}}}}"
    return [*config("csv", "Ours_LR"), *into(tmp_path / "run"), "-s", own, *QUICK]


def digits(tmp_path: Path, *overrides: str) -> list[str]:
    short = ["inner.updates=1", "task.model.sizes=[64,5,10]"]
    return [*config("digits", "Ours_LR"), *into(tmp_path / "run"), "-s", *QUICK, *short, *overrides]


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
    return [*digits(tmp_path), "-n", "run/deeper"]


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
    "csv with too few rows": (lambda d: table(d, "1,2,3\n4,5,6\n"), r"splits 2 \+ 1 \+ 1 = 4 rows, but the data have 2"),
    "no csv": (lambda d: [*table(d, ""), f"task.path={d}/other.csv"], "there is no file .*other.csv"),
    "empty split": (
        lambda d: [*table(d, "1,2,3\n4,5,6\n1,2,3\n1,2,3\n"), "task.splits=[3,1,0]"],
        "a split is empty: train 3, validation 1, test 0",
    ),
    "no validation data": (
        lambda d: [*table(d, "1,2,3\n4,5,6\n1,2,3\n1,2,3\n"), "task.splits=[3,0,1]"],
        "leaves no validation data",
    ),
    "device cuda without CUDA": (lambda d: digits(d, "device=cuda"), "device cuda was asked for, .*use device cpu or auto"),
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
    "wrong number of inputs": (lambda d: digits(d, "task.model.sizes=[63,5,10]"), r"task.model.sizes: given \[63, 5, 10\].*\[64"),
    "too few classes": (lambda d: digits(d, "task.model.sizes=[64,5,9]"), r"task.model.sizes: given \[64, 5, 9\].*10\]"),
    "no starting weights": (lambda d: digits(d, "task.model.init_from=none.npz"), "there is no file none.npz"),
    "resume without a run": (lambda d: ["--resume", str(d)], "there is no run"),
    "resume auto without a run": (lambda d: [*digits(d), "--resume", "auto"], "found no run"),
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
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert not list(tmp_path.rglob("summary.json")) or name == "directory of a finished run"


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


# Options


def test_print_config_shows_what_would_run_and_writes_nothing(tmp_path, capsys):
    arguments = ["--runs", "3", "--seed", "5", "--dtype", "float64", "--threads", "1", "--sample"]
    assert cli.train([*digits(tmp_path), *arguments, "--print-config"]) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    shown = load([tmp_path / "shown.yaml"])
    assert (shown.population.runs, shown.seed, shown.dtype, shown.threads) == (3, 5, "float64", 1)
    assert shown.population.sample is True
    assert shown.log.name == "run"
    assert not (tmp_path / "run").exists()


def test_logs_go_to_dataset_and_algorithm_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["inner.updates=1", "task.model.sizes=[64,5,10]"]
    assert cli.train([*config("digits", "Ours_LR"), "-s", *QUICK, *short]) == 0
    (directory,) = (tmp_path / "runs" / "digits_Ours_LR").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", directory.name)
    assert (directory / "summary.json").is_file()


def test_the_program_that_users_type(tmp_path):
    """train.py, from another folder, in a process of its own: nothing on stdout, status 2 for a mistake."""
    program = [sys.executable, str(ROOT / "train.py")]
    done = subprocess.run([*program, *digits(tmp_path, "inner.updates=x")], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "inner.updates" in done.stderr


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0), (["fly"], 2)])
def test_the_console_script_explains_itself(arguments, status, capsys):
    assert cli.main(arguments) == status
    assert "hyperopt-id train" in capsys.readouterr().err


def test_the_console_script_trains(tmp_path):
    assert cli.main(["train", *digits(tmp_path)]) == 0
