"""Configs: merging, round trips, identity, and the shipped YAML files."""

import dataclasses
import inspect
import math
from pathlib import Path

import pytest
import yaml

from hyperopt_id.build.names import build_plan, build_space, starting_values
from hyperopt_id.config import config_hash, differences, dump, from_dict, load, to_dict
from hyperopt_id.config_schema import HYPERPARAMETERS, MODELS, RULES, ModelConfig
from hyperopt_id.config_task_checks import TRANSFORMER
from hyperopt_id.tasks import models

CONFIGS = Path(__file__).parents[1] / "configs"
SCALARS = dict.fromkeys(RULES["sgd"], ("global",))
ALGORITHMS = {  # name -> (engine, what is tuned, T x updates on digits)
    "Random": ("none", {}, (10, 200)),
    "Random_SteppedLR": ("none", {"lr": ("global",)}, (10, 200)),
    "Random_TrainingSetOnly": ("none", {}, (10, 200)),
    "Random_Validation": ("none", {}, (10, 200)),
    "Lorraine": ("neumann", {"weight_decay": ("global",)}, (10, 200)),
    "Baydin": ("one_step", {"lr": ("global",)}, (1, 2000)),
    "Ours_LR": ("neumann", {"lr": ("global",), "weight_decay": ("global",)}, (10, 200)),
    "Ours_LR_Momentum": ("neumann", SCALARS, (10, 200)),
    "Ours_HDLR": ("neumann", SCALARS | {"lr": ("element",)}, (10, 200)),
    "Ours_Carry": ("neumann", SCALARS | {"lr": ("global", "element")}, (10, 200)),
    "MuLO": ("none", {}, (10, 200)),
    "Ours_MuLO": ("neumann", {"lr": ("global",), "theta": ("global",)}, (10, 200)),
    "DiffThroughOpt": ("unroll", SCALARS, (10, 200)),
    "LongDiffThroughOpt_Medium": ("unroll", SCALARS, (200, 50)),
    "LongDiffThroughOpt_Standalone": ("unroll", SCALARS, (200, 30)),
    "LongDiffThroughOpt_Standalone_FashionMNIST": ("unroll", SCALARS, (1000, 50)),
    "LongDiffThroughOpt_Full": ("unroll", SCALARS, (4000, 30)),
}
ALGORITHMS["Ours_HDLR_Momentum"] = ALGORITHMS["Ours_HDLR"]
UPDATES = {  # data set -> hyper-updates of T = 10 in the study (experiments of arXiv 2110.10461) or here
    "digits": 200,
    "diabetes": 200,
    "csv": 400,
    "toy_quadratic": 100,
    "toy_ridge": 100,
    "fashion_mnist": 1000,
    "fashion_mnist_bn": 1000,
    "penn_treebank": 2391,
    "cifar10": 3240,
} | {f"uci_{name}": 400 for name in ("energy", "kin8nm", "power", "boston", "concrete", "naval", "wine", "yacht")}
HDLR = ("digits", "Ours_HDLR")
RANDOM = ("digits", "Random")


def shipped(*names: str, overrides: tuple[str, ...] = ()):
    return load([CONFIGS / f"{name}.yaml" for name in names], overrides)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# The shipped files


def test_every_shipped_file_is_listed():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(ALGORITHMS) | set(UPDATES)


@pytest.mark.parametrize("dataset", UPDATES)
def test_every_pair_loads_and_round_trips(dataset, tmp_path):
    assert shipped(dataset).inner.total_updates == UPDATES[dataset]
    for algorithm in ALGORITHMS:
        config = shipped(dataset, algorithm)
        assert config.task.name == dataset.removesuffix("_bn")
        assert load([write(tmp_path, "config.yaml", dump(config))]) == config
        assert shipped(dataset, algorithm, overrides=("inner.updates=100",)).inner.total_updates == 100


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithm(name):
    engine, tuned, counts = ALGORITHMS[name]
    config = shipped("digits", name)
    assert config.algorithm == name.removesuffix("_FashionMNIST")
    assert config.hypergradient.engine == engine
    assert {key: hyper.tune for key, hyper in config.space.items() if hyper.tune} == tuned
    assert (config.inner.steps_per_update, config.inner.total_updates) == counts
    trains_on_all = name in ("Random", "Random_SteppedLR", "Baydin", "MuLO")
    assert config.task.train_on == ("train+validation" if trains_on_all else "train")
    assert config.window == (5 if name == "DiffThroughOpt" else counts[0])
    assert config.inner.reset == name.startswith(("LongDiffThroughOpt_S", "LongDiffThroughOpt_F"))
    assert config.hypergradient.carry_state == (name == "Ours_Carry")


@pytest.mark.parametrize("dataset", UPDATES)
def test_step_by_step_tuning_keeps_the_number_of_steps(dataset):
    assert shipped(dataset, "Baydin").inner.total_steps == shipped(dataset).inner.total_steps


def test_defaults_of_the_space():
    config = shipped("digits", overrides=("inner.rule=adamw",))
    assert config.space == {name: HYPERPARAMETERS[name] for name in RULES["adamw"]}
    assert tuple(config.space) == RULES["adamw"]


def test_the_documented_example(tmp_path):
    dataset = """
        task:  {name: fashion_mnist, model: {name: mlp, sizes: [784, 50, 10]}, batch_size: 50, validation_fraction: 0.166667}
        inner: {rule: sgd, steps_per_update: 10, updates: 1000}
        space: {lr: {init: 1.0e-3, transform: log10, bounds: [1.0e-10, 1.0]}, weight_decay: {init: 1.0e-6, transform: log10}, momentum: {init: 0.5, transform: logit}}
        """  # noqa: E501
    mine = load([write(tmp_path, "mine.yaml", dataset), CONFIGS / "Ours_HDLR.yaml"])
    assert mine.inner.total_updates == 1000
    assert mine.space == shipped("fashion_mnist", "Ours_HDLR").space


# Reading and merging


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("1.5E-3", 1.5e-3),
        ("1.e+2", 100.0),
        (".5", 0.5),
        ("1", 1.0),
        ("1_0", 10.0),
    ],
)
def test_numbers_read_as_floats(text, value):
    config = shipped("digits", overrides=(f"inner.clip_norm={text}",))
    assert config.inner.clip_norm == value
    assert type(config.inner.clip_norm) is float


@pytest.mark.parametrize("name", ["2024-01-01", "12:30:00", "on", "no", "007", "1.2.3", "e5"])
def test_text_stays_text(name):
    assert shipped("digits", overrides=(f"log.name={name}",)).log.name == name


@pytest.mark.parametrize("name", ["1e5", "10", "true", "null", "on", ".inf", "a: b", "é\n", ""])
def test_text_that_looks_like_something_else_round_trips(name, tmp_path):
    config = shipped("digits")
    config = dataclasses.replace(config, log=dataclasses.replace(config.log, name=name))
    assert load([write(tmp_path, "config.yaml", dump(config))]) == config


def test_dump_keeps_every_digit_and_any_reader_can_read_it(tmp_path):
    numbers = {"lr": {"init": 1e-5, "bounds": [0.0, math.inf]}, "weight_decay": {"init": 0.1 + 0.2}}
    config = from_dict(to_dict(shipped("digits")) | {"space": numbers})
    assert load([write(tmp_path, "config.yaml", dump(config))]) == config
    assert yaml.safe_load(dump(config)) == to_dict(config)
    assert from_dict(to_dict(config)) == config


def test_later_wins(tmp_path):
    first = write(tmp_path, "a.yaml", "space: {lr: {init: 0.1, tune: [global]}}\nhypergradient: {engine: neumann}")
    second = write(tmp_path, "b.yaml", "space: {lr: {init: 0.2}}\nreport: {splits: [test]}")
    config = load([CONFIGS / "digits.yaml", first, second], ["space.lr.sample=[1e-5, 0.3]", "seed=3", "seed=4"])
    lr = config.space["lr"]
    assert (lr.init, lr.tune, lr.sample, lr.bounds) == (0.2, ("global",), (1e-5, 0.3), (1e-10, 1.0))
    assert config.report.splits == ("test",)
    assert config.seed == 4


def test_override_with_a_mapping_merges():
    config = shipped(*HDLR, overrides=("space.lr={init: 0.1}", "task.model.sizes=[64, 10]"))
    assert (config.space["lr"].init, config.space["lr"].tune) == (0.1, ("element",))
    assert config.task.model.sizes == (64, 10)


def test_null_resets_to_the_default():
    config = shipped(*HDLR, overrides=("space.lr=null", "hypergradient.terms=", "meta.lr=~"))
    assert config.space["lr"] == HYPERPARAMETERS["lr"]
    assert (config.hypergradient.terms, config.meta.lr) == (5, 0.05)
    adam = shipped(*HDLR, overrides=("inner.rule=adam", "space.momentum=null"))
    assert tuple(adam.space) == RULES["adam"]


def test_none_switches_limits_off(tmp_path):
    off = ("space.lr.bounds=none", "space.lr.sample=none", "space.lr.init=20", "population.runs=2")
    config = shipped(*HDLR, overrides=off)
    assert (config.space["lr"].bounds, config.space["lr"].sample) == ("none", "none")
    assert load([write(tmp_path, "config.yaml", dump(config))]) == config
    lr = build_space(config).hypers["lr"]
    assert (lr.bounds, lr.sample, lr.init) == (None, None, 20.0)
    assert starting_values(config)["lr"] == [20.0, 20.0]
    assert shipped(*HDLR, overrides=(*off, "space.lr=null", "space.lr.bounds=null")).space["lr"].bounds == (1e-10, 1.0)


def test_starts_are_the_natural_values_that_each_run_begins_with(tmp_path):
    given = ("population.runs=2", "population.start={lr: [0.1, 1e-3]}", "population.start.momentum=[0, 0.5]")
    config = shipped(*HDLR, overrides=given)
    assert config.population.start == {"lr": (0.1, 0.001), "momentum": (0.0, 0.5)}
    assert load([write(tmp_path, "config.yaml", dump(config))]) == config
    drawn = starting_values(shipped(*HDLR, overrides=("population.runs=2",)))
    assert starting_values(config) == {**drawn, "lr": [0.1, 0.001], "momentum": [0.0, 0.5]}
    assert config_hash(config) != config_hash(shipped(*HDLR, overrides=given[:2]))


def test_naming_another_model_forgets_the_options_of_the_one_before(tmp_path):
    mine = write(tmp_path, "mine.yaml", "task: {model: {sizes: [64, 7, 10], dropout: 0.2, batch_norm: true}}")
    files = [CONFIGS / "digits.yaml", mine]
    assert load(files, ["task.model.name=cnn"]).task.model == ModelConfig("cnn")
    two = load(files, ["task.model.hidden=8", "task.model.name=transformer", "task.model.dropout=0.1"]).task.model
    assert two == ModelConfig("transformer", hidden=8, dropout=0.1)
    same = load(files, ["task.model.name=mlp", "task.model.sizes=[64, 10]"]).task.model
    assert same == ModelConfig("mlp", (64, 10), dropout=0.2, batch_norm=True)
    text = shipped("penn_treebank", overrides=("task.model.name=transformer",)).task.model
    assert text == ModelConfig("transformer")


def test_every_option_of_a_model_has_a_taker_and_is_one_of_its_arguments():
    options = {f.name for f in dataclasses.fields(ModelConfig)} - {"name", "init_from"}
    assert {option for taken in MODELS.values() for option in taken} == options
    for name, taken in MODELS.items():
        arguments = inspect.signature(getattr(models, name)).parameters
        assert set(taken) <= set(arguments), name
        if name == "transformer":
            assert {key: arguments[key].default for key in TRANSFORMER} == TRANSFORMER


@pytest.mark.parametrize("override", ["task.validation_fraction=0", "task.splits=[700, 0, 100]"])
def test_without_need_for_validation_data_there_may_be_none(override):
    config = shipped("csv", "Random", overrides=(override,))
    plan = build_plan(config)
    assert (plan.objective, plan.report_splits) == ("training", ["test"])
    assert build_plan(shipped("csv", "Ours_LR")).objective == "validation"


@pytest.mark.parametrize(
    ("overrides", "updates"),
    [
        ((), 200),
        (("inner.updates=7",), 7),
        (("inner.updates=7", "inner.steps=100"), 10),
        (("inner.steps=100", "inner.updates=7"), 7),
        (("inner.updates=7", "inner.updates=null"), 200),
        (("inner={steps: 100, updates: 7}",), 7),
        (("inner.steps_per_update=5",), 400),
    ],
)
def test_length_of_the_run(overrides, updates):
    assert shipped("digits", overrides=overrides).inner.total_updates == updates


def test_bases_are_relative_to_their_file(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path, "root.yaml", "seed: 1\nmeta: {lr: 0.2}")
    write(tmp_path / "deep", "middle.yaml", "_base_: ../root.yaml\nseed: 2")
    leaf = write(tmp_path, "leaf.yaml", "_base_: [deep/middle.yaml, root.yaml]\nmeta: {beta1: 0.5}")
    config = load([CONFIGS / "digits.yaml", leaf])
    assert (config.seed, config.meta.lr, config.meta.beta1) == (1, 0.2, 0.5)


# Identity of a run

SAME = [
    ("log.dir=/somewhere", "log.group=g", "log.name=n", "log.progress=none"),
    ("threads=4",),
    ("data_root=/data",),
    ("algorithm=Another",),
    ("report.keep=3", "report.checkpoint_every=7"),
    ("inner.updates=200",),
    ("inner.steps=2000",),
    ("population.sample=false",),
    ("space.lr.init=0.001",),
]
DIFFERENT = [
    "seed=1",
    "dtype=float64",
    "space.lr.init=0.002",
    "space.lr.tune=[global, element]",
    "inner.updates=201",
    "task.model.activation=tanh",
    "hypergradient.terms=4",
    "population.runs=2",
    "task.batch_size=all",
]


@pytest.mark.parametrize("overrides", SAME)
def test_hash_ignores_what_does_not_change_numbers(overrides):
    before, after = shipped(*HDLR), shipped(*HDLR, overrides=overrides)
    assert config_hash(before) == config_hash(after)
    assert differences(before, after) == []


@pytest.mark.parametrize("override", DIFFERENT)
def test_hash_and_differences_see_what_does(override):
    before, after = shipped(*HDLR), shipped(*HDLR, overrides=(override,))
    assert config_hash(before) != config_hash(after)
    assert differences(before, after)[0].startswith(override.partition("=")[0] + ": ")


def test_differences_give_both_values():
    before, after = shipped(*HDLR), shipped(*HDLR, overrides=("space.lr.init=0.1", "inner.updates=7"))
    assert differences(before, after) == ["inner.updates: 200 -> 7", "space.lr.init: 0.001 -> 0.1"]


def test_order_of_granularities_means_nothing():
    one, other = (
        shipped(*HDLR, overrides=(f"space.lr.tune={tune}",)) for tune in ("[global, element]", "[element, global]")
    )
    assert one == other


def test_empty_file_says_nothing(tmp_path):
    assert load([CONFIGS / "digits.yaml", write(tmp_path, "empty.yaml", "# nothing\n")]) == shipped("digits")


@pytest.mark.parametrize("override", ["space.weight_decay.init=0", "space.momentum.init=0", "inner.updates=1"])
def test_off_is_possible(override):
    shipped(*RANDOM, overrides=(override,))
