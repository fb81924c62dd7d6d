"""The command line: every algorithm runs, every pair of data set and algorithm builds, options."""

import itertools
import json
import re
import subprocess
import sys

import pytest
import torch
from laws import random
from short_runs import CONFIGS, QUICK, config, digits, into
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore

from hyperopt_id import Dataset, checkpoint, cli, population
from hyperopt_id.build import names
from hyperopt_id.build import tasks as sources
from hyperopt_id.config import load
from hyperopt_id.experiment import hyper_update
from hyperopt_id.tasks.uci import SOURCES

DATASETS = sorted(p.stem for p in CONFIGS.glob("*.yaml") if not re.match("[A-Z]", p.stem))
ALGORITHMS = sorted(p.stem for p in CONFIGS.glob("*.yaml") if re.match("[A-Z]", p.stem))


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


SHAPES = {"fashion_mnist": (784, 10), "cifar10": ((3, 32, 32), 10), "csv": (8, 1)}  # inputs, classes (1: regression)
LIGHTER = {  # what would take a test too long
    "penn_treebank": ["task.model={embedding: 4, hidden: 4}", "task.batch_size=4"],
    "cifar10": ["task.batch_size=4"],
}


@pytest.fixture
def small_data(monkeypatch, tmp_path):
    """Data sets that need files are replaced by a few random rows of the right form."""
    rows = {"train": (0, 120), "validation": (120, 240), "test": (240, 280)}

    def small(root, task):
        uci = task.name.removeprefix("uci_")
        shape, classes = (SOURCES[uci].features, 1) if uci in SOURCES else SHAPES[task.name]
        inputs = random(280, *(shape if isinstance(shape, tuple) else (shape,)), seed=1)
        return Dataset(inputs, random(280, seed=2) if classes == 1 else torch.arange(280) % classes, rows)

    for name in set(sources.DATASETS) - {"digits", "diabetes"}:
        monkeypatch.setitem(sources.DATASETS, name, (small, sources.DATASETS[name][1]))
    (tmp_path / "penn_treebank").mkdir()
    for split in ("train", "valid", "test"):
        text = " the cat sat on the mat and the dog did not \n" * 250
        (tmp_path / "penn_treebank" / f"ptb.{split}.txt").write_text(text)
    monkeypatch.setenv("HYPEROPT_ID_DATA", str(tmp_path))


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_pair_builds(dataset, algorithm):
    files = [CONFIGS / f"{stem}.yaml" for stem in (dataset, algorithm)]
    loaded = load(files, [*QUICK, *LIGHTER.get(dataset, [])])
    parts, plan = names.from_config(loaded)
    assert plan.updates == loaded.inner.total_updates
    assert parts.start().skipped.tolist() == [0]
    assert parts.batches("train", parts.seeds, 0, 1)[0].seed.shape == ()


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("lift", ["loop", "vmap"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_trains(dataset, lift):
    """One hyper-update of two runs, a learning rate for every weight: finite, and everything has moved."""
    files = [CONFIGS / f"{stem}.yaml" for stem in (dataset, "Ours_HDLR")]
    short = ["inner={steps_per_update: 2, updates: 1}", f"population={{runs: 2, lift: {lift}}}"]
    if not dataset.startswith("toy") and not any("batch_size: all" in file.read_text() for file in files):
        short.append("task.batch_size=4")
    loaded = load(files, [*QUICK, *LIGHTER.get(dataset, []), "hypergradient.terms=2", *short])
    parts, plan = names.from_config(loaded)
    chunks = population.split(parts.start(), parts.members, parts.lift)
    for chunk, members in zip(chunks, parts.members, strict=True):
        after, record = hyper_update(parts, plan, 0, chunk, members)
        assert record.losses.isfinite().all()
        assert (after.diverged_at == -1).all()
        assert (after.skipped == 0).all()
        for before, now in ((chunk.z.params, after.z.params), (chunk.raw, after.raw)):
            assert any(not torch.equal(before[key], now[key]) for key in before)
        metrics = parts.evaluate(after.z.params, after.z.buffers, "test")
        assert all(value.isfinite().all() for value in metrics.values())


# Models and data


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize(
    ("dataset", "model"),
    [
        *itertools.product(("digits", "fashion_mnist", "cifar10"), ("cnn", "transformer")),
        ("penn_treebank", "transformer"),
    ],
)
def test_another_model_is_one_override(dataset, model, tmp_path):
    """The options of the data set's own model do not stand in its way."""
    short = ["inner={steps_per_update: 1, updates: 1}", "task.batch_size=4", "hypergradient.terms=2"]
    short += ["task.model.dropout=0.1"] if model == "transformer" else []
    override = [f"task.model.name={model}", *short]
    assert cli.train([*config(dataset, "Ours_LR"), *into(tmp_path / "run"), "-s", *QUICK, *override]) == 0


@pytest.mark.parametrize("override", ["task.validation_fraction=0", "task.splits=[24, 0, 6]"])
@pytest.mark.parametrize("batch_size", [8, "all"])
def test_without_hypergradients_there_may_be_no_validation_data(override, batch_size, tmp_path):
    (tmp_path / "table.csv").write_text("".join(f"{i % 7},{i % 5},{i % 3}\n" for i in range(30)))
    own = f"task={{path: {tmp_path}/table.csv, splits: [20, 4, 6], batch_size: {batch_size}, model: {{sizes: [2, 1]}}}}"
    short = [own, override, "inner.updates=2"]
    assert cli.train([*config("csv", "Random"), *into(tmp_path / "run"), "-s", *QUICK, *short]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["final"]) == {"loss/train", "loss/test", "unnormalized_loss/test"}


# Options


def test_the_directory_knows_threads_and_starting_values(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert cli.train([*digits(tmp_path, f"threads={threads}"), "--runs", "2"]) == 0
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["cpu"]["threads"] == threads
    loaded = load([tmp_path / "run" / "config.yaml"])
    starts = names.starting_values(loaded)
    parts, _ = names.from_config(loaded)
    for name, values in parts.hyper(parts.start()).items():
        assert values.tolist() == pytest.approx(starts[name], rel=1e-6)
    for member in (0, 1):
        content = EventAccumulator(str(tmp_path / "run" / f"member_{member:02d}")).Reload().summary_metadata
        started = HParamsPluginData.FromString(content["_hparams_/session_start_info"].plugin_data.content)
        shown = started.session_start_info.hparams
        assert {name: shown[name].number_value for name in starts} == {name: v[member] for name, v in starts.items()}


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
    program = [sys.executable, str(CONFIGS.parent / "train.py")]
    done = subprocess.run(
        [*program, *digits(tmp_path, "inner.updates=x")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "inner.updates" in done.stderr


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0), (["fly"], 2)])
def test_the_console_script_explains_itself(arguments, status, capsys):
    assert cli.main(arguments) == status
    assert "hyperopt-id train" in capsys.readouterr().err


def test_the_console_script_trains(tmp_path):
    assert cli.main(["train", *digits(tmp_path)]) == 0
