"""One line per mistake that a user can make in a config: the message names the file and key and helps."""

import os
import re
from pathlib import Path

import pytest

from hyperopt_id.config import from_dict, load

CONFIGS = Path(__file__).parents[1] / "configs"
HDLR = ("digits", "Ours_HDLR")
RANDOM = ("digits", "Random")


def shipped(*names: str, overrides: tuple[str, ...] = ()):
    return load([CONFIGS / f"{name}.yaml" for name in names], overrides)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


MISTAKES = [  # files, overrides, what the message says
    (HDLR, "inner.update=3", "--set: inner.update: unknown key; did you mean inner.updates?"),
    (HDLR, "updates=3", "updates: unknown key; did you mean inner.updates?"),
    (HDLR, "space.momentun.init=0.5", "did you mean space.momentum?"),
    (HDLR, "task.model.size=[1, 2]", "did you mean task.model.sizes?"),
    (HDLR, "inner.updates=ten", "inner.updates: given 'ten' (text); allowed: a whole number"),
    (HDLR, "inner.updates=1.5", "inner.updates: given 1.5 (a number); allowed: a whole number"),
    (HDLR, "seed=true", "seed: given True (true/false); allowed: a whole number"),
    (HDLR, "meta.lr=true", "meta.lr: given True (true/false); allowed: a number"),
    (HDLR, "meta.lr=.nan", "meta.lr: given nan"),
    (HDLR, "inner.reset=1", "inner.reset: given 1 (a whole number); allowed: true or false"),
    (HDLR, "algorithm=3", "algorithm: given 3 (a whole number); allowed: text"),
    (HDLR, "meta=adam", "meta: given 'adam' (text); allowed: a mapping with the keys rule"),
    (HDLR, "space=[lr]", "space: given ['lr'] (a list); allowed: a mapping with the keys lr, weight_decay"),
    (HDLR, "seed.value=1", "seed: given {'value': 1} (a mapping); allowed: a whole number"),
    (HDLR, "space.lr.bounds=[1]", "space.lr.bounds: given [1] (a list); allowed: a list of 2, each a number"),
    (HDLR, "task.model.sizes=[64, ten]", "task.model.sizes: given [64, 'ten'] (a list)"),
    (
        HDLR,
        "task.batch_size=al",
        "task.batch_size: given 'al' (text); allowed: a whole number or all; did you",
    ),
    (HDLR, "hypergradient.engine=neuman", "none, neumann, unroll, one_step, forward; did you mean neumann?"),
    (HDLR, "task.name=fashion_minst", "did you mean fashion_mnist?"),
    (HDLR, "inner.rule=adamm", "did you mean adam"),
    (HDLR, "hypergradient.curvature.sides=3", "curvature.sides: given 3 (a whole number); allowed: 1, 2"),
    (HDLR, "space.lr.tune=[elements]", "space.lr.tune: given ['elements']"),
    (HDLR, "space.lr.tune=[global, global]", "space.lr.tune: given ['global', 'global']; name every"),
    (HDLR, "inner.updates", "--set: given 'inner.updates'; allowed: key=value"),
    (HDLR, "inner..updates=1", "--set: given 'inner..updates=1'; allowed: key=value"),
    (HDLR, "inner.updates=[1", "--set inner.updates: line 1: "),
    (HDLR, "_base_=[a.yaml]", "_base_: unknown key"),
    (HDLR, "space.lr.init=-0.1", "space.lr.init: given -0.1; allowed: 0 or more, in natural units"),
    (HDLR, "space.weight_decay.init=-6", "space.weight_decay.init: given -6.0; allowed: 0 or more"),
    (HDLR, "space.weight_decay.init=0", "space.weight_decay.init: given 0, which has no logarithm"),
    (HDLR, "space.lr.init=2", "space.lr.init: given 2.0, outside space.lr.bounds = [1e-10, 1.0]"),
    (HDLR, "space.lr.bounds=[1, 1e-10]", "space.lr.bounds: given [1.0, 1e-10], which is reversed"),
    (HDLR, "space.lr.sample=[0.1, 0.01]", "space.lr.sample: given [0.1, 0.01], which is reversed"),
    (HDLR, "space.momentum.init=1", "space.momentum.init: given 1.0; allowed: 0 or more, below 1"),
    (HDLR, "space.momentum.sample=[0, 2]", "space.momentum.sample: given [0.0, 2.0]; allowed: from 0 to 1"),
    (
        HDLR,
        ("population.runs=3", "space.lr.sample=[0, 0.1]"),
        "space.lr.sample: given [0.0, 0.1]; allowed: finite",
    ),
    (HDLR, "space.lr.sample=[0, 0.1]", "space.lr.sample: given [0.0, 0.1]; allowed: finite limits, above 0 for log10"),
    (HDLR, "space.lr.bounds=None", "space.lr.bounds: given 'None' (text); allowed: a list of 2, each a number or none"),
    (HDLR, ("population.runs=3", "space.lr.sample=[0.1, 2]"), "space.lr.sample: given [0.1, 2.0], outside"),
    (
        HDLR,
        "inner.rule=adam",
        "space.momentum: inner.rule = adam has lr, weight_decay, beta1, beta2, eps, but not",
    ),
    (
        ("digits",),
        ("inner.rule=adam", "space.beta1.init=1"),
        "space.beta1.init: given 1.0; allowed: 0 or more, bel",
    ),
    (
        HDLR,
        "space.beta1.init=0.5",
        "space.beta1: inner.rule = sgd has lr, weight_decay, momentum, but not beta1",
    ),
    (HDLR, "inner.steps_per_update=0", "inner.steps_per_update: given 0; allowed: 1 or more"),
    (HDLR, "inner.updates=0", "inner.updates: given 0; allowed: 1 or more"),
    (HDLR, "inner.steps=0", "inner.steps: given 0; allowed: 1 or more"),
    (
        HDLR,
        "inner.steps=2001",
        "inner.steps: given 2001, which is not a multiple of inner.steps_per_update = 10",
    ),
    (HDLR, "inner.steps=null", "inner.updates: the length of the run is missing"),
    (HDLR, "inner.clip_norm=0", "inner.clip_norm: given 0.0; allowed: a number above 0"),
    (HDLR, "inner.dampening=1", "inner.dampening: given 1.0; allowed: 0 or more, below 1"),
    (HDLR, ("inner.nesterov=true", "inner.dampening=0.1"), "inner.nesterov: Nesterov momentum needs"),
    (("digits",), ("inner.rule=adam", "inner.nesterov=true"), "inner.nesterov: only inner.rule = sgd"),
    (HDLR, "hypergradient.terms=0", "hypergradient.terms: given 0; allowed: 1 or more"),
    (HDLR, "hypergradient.window=5", "hypergradient.window: only the engines unroll and forward"),
    (
        ("digits", "DiffThroughOpt"),
        "hypergradient.window=0",
        "hypergradient.window: given 0; allowed: 1 or more",
    ),
    (
        ("digits", "DiffThroughOpt"),
        "hypergradient.window=11",
        "given 11, longer than inner.steps_per_update = 10",
    ),
    (("digits", "DiffThroughOpt"), "inner.steps_per_update=4", "hypergradient.window: given 5, longer than"),
    (("digits", "DiffThroughOpt"), "hypergradient.carry_state=true", "only the engine neumann has it"),
    (HDLR, "hypergradient.curvature.sub_batch=0", "sub_batch: given 0.0; allowed: above 0, at most 1"),
    (HDLR, "hypergradient.curvature.sub_batch=1.5", "sub_batch: given 1.5; allowed: above 0, at most 1"),
    (HDLR, "hypergradient.curvature.epsilon=0", "epsilon: given 0.0; allowed: a number above 0"),
    (HDLR, "hypergradient.engine=none", "space.lr.tune: given ['element'], but hypergradient.engine = none"),
    (RANDOM, ("hypergradient.engine=neumann", "task.train_on=train"), "given neumann, but nothing is tuned"),
    (
        HDLR,
        "task.train_on=train+validation",
        "task.train_on: the objective of the hypergradient is the valid",
    ),
    (HDLR, "task.validation_fraction=0", "task.validation_fraction: the objective of the hypergradient"),
    (HDLR, "task.validation_fraction=1", "task.validation_fraction: given 1.0; allowed: 0 or more, below 1"),
    (("csv", "Ours_LR"), "task.splits=[700, 0, 100]", "task.splits: the objective of the hypergradient"),
    (("csv",), "task.splits=[0, 700, 100]", "task.splits: given [0, 700, 100]; allowed: row counts, 1 or more for"),
    (("csv",), "task.splits=[700, 100, 0]", "task.splits: given [700, 100, 0]; allowed: row counts, 1 or more for"),
    (("csv",), "task.splits=[700, -1, 100]", "0 or more for validation"),
    (("penn_treebank",), "task.validation_fraction=0", "task.validation_fraction: given 0; penn_treebank needs"),
    (("penn_treebank",), "task.batch_size=all", "task.batch_size: given all; penn_treebank needs a number of streams"),
    (("csv",), "task.splits=null", "task.splits: missing"),
    (("csv",), "task.path=null", "task.path: missing"),
    (("csv",), "task.loss=cross_entropy", "task.standardize.targets: given true; classes"),
    (HDLR, "task.path=mine.csv", "task.path: only task.name = csv has it, but task.name = digits"),
    (HDLR, "task.standardize.inputs=false", "task.standardize.inputs: only task.name = csv has it, but task.name = d"),
    (("uci_wine",), "task.standardize.targets=true", "csv has it, but task.name = uci_wine; set task.standardize.targ"),
    (HDLR, "task.batch_size=0", "task.batch_size: given 0; allowed: 1 or more"),
    (HDLR, "task.model.sizes=null", "task.model.sizes: an mlp needs [inputs"),
    (HDLR, "task.model.sizes=[64, 0, 10]", "task.model.sizes: given [64, 0, 10]; allowed"),
    (HDLR, "task.model.heads=2", "task.model.heads: given 2, but task.model.name = mlp has no such option; set task"),
    (HDLR, "task.model.channels=[4, 4]", "task.model.channels=null, or name one of the models that have it: cnn"),
    (("cifar10",), "task.model.dropout=0.5", "task.model.dropout: given 0.5, but task.model.name = resnet18 has no"),
    (("penn_treebank",), "task.model.dropout=0.5", "task.model.dropout: given 0.5, but task.model.name = lstm has no"),
    (HDLR, ("task.model.name=cnn", "task.model.batch_norm=true"), "batch_norm: given True, but task.model.name = cnn"),
    (HDLR, ("task.model.activation=tanh", "task.model.name=cnn"), "activation: given tanh, but task.model.name = cnn"),
    (("toy_ridge",), "task.model.sizes=[5, 1]", "given [5, 1], but task.name = toy_ridge, which brings its own param"),
    (
        ("toy_ridge",),
        "task.batch_size=10",
        "given 10, but task.name = toy_ridge, which brings its own parameters and",
    ),
    (("toy_quadratic",), "task.validation_fraction=0.2", "task.validation_fraction: given 0.2, but task.name = toy_qu"),
    (("toy_ridge",), "task.model.init_from=a.npz", "task.model.init_from: given a.npz, but task.name = toy_ridge"),
    (("toy_ridge",), "task.model.name=cnn", "has no such option; set task.model.name=null"),
    (HDLR, "task.model.name=lstm", "task.model.name: given lstm; allowed for task.name = digits: mlp, cnn, resnet18"),
    (("penn_treebank",), "task.model.name=cnn", "given cnn; allowed for task.name = penn_treebank: lstm, transformer"),
    (HDLR, ("task.model.name=transformer", "task.model.heads=3"), "embedding: given 64, which is not a multiple of ta"),
    (HDLR, ("task.model.name=transformer", "task.model.embedding=6"), "not a multiple of task.model.heads = 4"),
    (HDLR, "task.model.dropout=1", "task.model.dropout: given 1.0; allowed: 0 or more, below 1"),
    (HDLR, "meta.lr=-1", "meta.lr: given -1.0; allowed: 0 or more"),
    (HDLR, "meta.beta2=1", "meta.beta2: given 1.0; allowed: 0 or more, below 1"),
    (HDLR, "meta.factor=0.9", "meta.factor: only meta.rule = geometric has it, but meta.rule = adam"),
    (HDLR, "meta.rule=geometric", "meta.rule: geometric is a schedule and needs hypergradient.engine = none"),
    (RANDOM, "meta.rule=geometric", "meta.rule: geometric multiplies the learning rate and nothing else"),
    (("digits", "Random_SteppedLR"), "meta.factor=null", "meta.factor: missing; geometric needs"),
    (("digits", "Random_SteppedLR"), "meta.factor=0", "meta.factor: given 0.0 to 0.0; allowed: above 0"),
    (("digits", "Random_SteppedLR"), "meta.factor.sample=[2, 1]", "meta.factor: given 2.0 to 1.0; allowed"),
    (("digits", "Random_SteppedLR"), "space.momentum.tune=[global]", "tuned now: lr, momentum"),
    (HDLR, "population.runs=0", "population.runs: given 0; allowed: 1 or more"),
    (HDLR, "population.start=[1]", "population.start: given [1] (a list); allowed: a mapping, each entry a list, each"),
    (HDLR, "population.start.lr=0.1", "population.start: given {'lr': 0.1} (a mapping); allowed: a mapping, each"),
    (
        HDLR,
        "population.start.beta1=[0.9]",
        "population.start.beta1: inner.rule = sgd has lr, weight_decay, momentum, but",
    ),
    (
        HDLR,
        "population.start.lr=[0.1, 0.2]",
        "population.start.lr: given 2 values for population.runs = 1; give each run",
    ),
    (HDLR, "population.start.lr=[-3]", "population.start.lr: given -3.0; allowed: 0 or more, in natural units"),
    (HDLR, "population.start.lr=[2]", "population.start.lr: given 2.0, outside space.lr.bounds"),
    (HDLR, "population.start.lr=[0]", "population.start.lr: given 0"),
    (HDLR, "population.start.momentum=[1]", "population.start.momentum: given 1.0; allowed: 0 or more, below 1"),
    (HDLR, "population.chunk=0", "population.chunk: given 0; allowed: 1 or more"),
    (HDLR, "report.every=0", "report.every: given 0; allowed: 1 or more"),
    (HDLR, "report.keep=0", "report.keep: given 0; allowed: 1 or more"),
    (HDLR, "report.splits=[test, test]", "report.splits: given ['test', 'test']; name every split once"),
    (HDLR, "seed=-1", "seed: given -1; allowed: 0 or more"),
    (HDLR, "threads=0", "threads: given 0; allowed: 1 or more"),
    (("Ours_HDLR",), (), "task.name: missing; allowed: digits"),
]


@pytest.mark.parametrize(("files", "overrides", "message"), MISTAKES)
def test_mistake(files, overrides, message):
    overrides = (overrides,) if isinstance(overrides, str) else overrides
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        shipped(*files, overrides=overrides)
    assert "\n" not in str(caught.value)


BAD_FILES = {
    "seed: 1\nmeta:\n  lr: 1\n  lr: 2\n": "bad.yaml: line 4: duplicate key 'lr'",
    "seed: 1\nseed: 1\n": "bad.yaml: line 2: duplicate key 'seed'",
    "inner: {step_per_update: 3}": "inner.step_per_update: unknown key; did you mean inner.steps_per",
    "inner: {steps_per_update: three}": "bad.yaml: inner.steps_per_update: given 'three' (text)",
    "inner.steps: 3": "bad.yaml: inner.steps: unknown key; did you mean steps inside inner?",
    "seed: [1": "bad.yaml: line 1: ",
    "- seed": "bad.yaml: a config is a mapping from keys to values, this is list",
    "1: 2": "bad.yaml: line 1: key '1' is not text",
    "seed: !!python/object/apply:os.getcwd []": "os.getcwd' is none of plain data",
    "seed: !!timestamp x": "bad.yaml: line 1: the tag 'tag:yaml.org,2002:timestamp' is none of plain data; write",
    "seed: !!int abc": "bad.yaml: line 1: the tag !!int does not fit",
    "seed: !!map [1]": "bad.yaml: line 1: the tag !!map does not fit",
    "seed: 1\nmeta: !!seq {lr: 1}": "bad.yaml: line 2: the tag !!seq does not fit",
    "!!merge x: 1": "bad.yaml: line 1: the tag 'tag:yaml.org,2002:merge' is none of plain data",
    "? [a]\n: 1": "bad.yaml: line 1: a key is a list or mapping, not text",
    "seed: &a [*a]": "bad.yaml: line 1: *a stands for something that it is a part of",
    "&a {seed: *a}": "bad.yaml: line 1: *a stands for something that it is a part of",
    "seed: " + "[" * 5000: "bad.yaml: line 1: more than 64 levels of lists and mappings",
    "{seed: " * 5000: "bad.yaml: line 1: more than 64 levels of lists and mappings",
    "a0: &a0 x\n" + "".join(f"a{i + 1}: &a{i + 1} [{f'*a{i},' * 9}]\n" for i in range(40)): "too large for a config",
    f"a: &a {'x' * 100_000}\nb: [{'*a,' * 100}]": "bad.yaml: line 2: this is too large for a config",
    "#" + "x" * 2**22: "bad.yaml: has 4194305 bytes, where at most 4194304 are expected",
    "seed: " + "9" * 5000: "9 is beyond the largest whole number, 2^63 - 1",
    "seed: 9223372036854775807": "bad.yaml: seed: given 9223372036854775807 for population.runs = 1; seeds must",
    "meta: {lr: 1e400}": "bad.yaml: line 1: 1e400 is beyond the largest number, 1.8e308",
    'seed: "\\UFFFFFFFF"': "bad.yaml: cannot be read (Python int too large",
    'log: {dir: "a\\0b"}': "bad.yaml: line 1: text with a character that no file can hold",
    'log: {dir: "\\ud800"}': "bad.yaml: line 1: text with a character that no file can hold",
    "seed: 1\n---\nseed: 2": "bad.yaml: line 2: another document begins, where a config is one; remove the line ---",
    f"seed: {'x' * 100_000}": "bad.yaml: seed: given 'xxxx",
    f"{'x' * 1000}: 1": "bad.yaml: xxxx",
    "meta: {}\nseed: \x01": "bad.yaml: line 2: a control character (U+0001), which no text has; remove it",
    f"_base_: [{'digits.yaml,' * 1500}]": "digits.yaml: _base_: more than 256 files are read for one config",
    "hypergradient: {terms: 1000000000}": "hypergradient.terms: given 1000000000; allowed: at most 10000",
    "threads: 100000": "bad.yaml: threads: given 100000; allowed: at most 1024",
    "population: {runs: 1000000000}": "bad.yaml: population.runs: given 1000000000; allowed: at most 100000",
    f"task: {{model: {{sizes: [{'1,' * 5000}]}}}}": "task.model.sizes: given 5000 widths; allowed: at most 1000",
    "inner: {steps_per_update: 4000000000, updates: 4000000000}": "16000000000000000000 steps are given; allowed",
    "_base_: {a: b}": "bad.yaml: _base_: given {'a': 'b'}; allowed: a list of files",
    "_base_: [bad.yaml]": "bad.yaml: _base_: goes in a circle: bad.yaml -> bad.yaml",
    "_base_: [digit.yaml]": "digits.yaml?",
    "hypergradient: {engine: unroll, window: 50}": "bad.yaml: hypergradient.window: given 50, longer than",
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.items())
def test_bad_file(text, message, tmp_path):
    write(tmp_path, "digits.yaml", "seed: 1")
    bad = write(tmp_path, "bad.yaml", text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load([CONFIGS / "digits.yaml", bad])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 500


def test_tags_may_say_what_is_so_anyway(tmp_path):
    text = "seed: !!int 3\nmeta: !!map {lr: !!float 1}\nlog: {name: !!str 7}\nreport: {splits: !!seq [test]}"
    config = load([CONFIGS / "digits.yaml", write(tmp_path, "tags.yaml", text)])
    assert (config.seed, config.meta.lr, config.log.name, config.report.splits) == (3, 1.0, "7", ("test",))


def test_an_alias_is_a_copy(tmp_path):
    config = load([write(tmp_path, "a.yaml", "task: {name: toy_ridge}\nseed: &n 7\ninner: {updates: *n}")])
    assert config.seed == config.inner.updates == 7


def test_a_base_of_several_files_is_read_once_and_merged_each_time(tmp_path):
    """A file whose bases double at every level would be merged 2^40 times."""
    for level in range(40):
        write(tmp_path, f"{level}.yaml", f"_base_: [{level + 1}.yaml, {level + 1}.yaml]")
    write(tmp_path, "40.yaml", "seed: 5")
    with pytest.raises(ValueError, match="more than 256 files"):
        load([tmp_path / "0.yaml"])
    assert load([CONFIGS / "digits.yaml", tmp_path / "36.yaml"]).seed == 5


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for name in ("pipe.yaml", "loop.yaml", ".", "/dev/zero", "x" * 5000, "a\0b"):
        with pytest.raises(ValueError, match=r"is no regular file|cannot be read|name too long\)$") as caught:
            load([tmp_path / name])
        assert len(str(caught.value)) <= 500


def itself() -> dict:
    tree: dict = {"seed": 1}
    tree["meta"] = tree
    return tree


@pytest.mark.parametrize("tree", [itself(), {1: 2}, {"seed": 10**400}, {"seed": object()}, {"meta": {"lr": 10**400}}])
def test_plain_values_are_judged_as_files_are(tree):
    with pytest.raises(ValueError, match=r"^config: ") as caught:
        from_dict({"task": {"name": "toy_ridge"}, "inner": {"updates": 1}} | tree)
    assert len(str(caught.value)) <= 500


def test_circle_of_two_names_both(tmp_path):
    write(tmp_path, "a.yaml", "_base_: [b.yaml]")
    b = write(tmp_path, "b.yaml", "_base_: [a.yaml]")
    with pytest.raises(ValueError, match=re.escape("goes in a circle: b.yaml -> a.yaml -> b.yaml")):
        load([b])


def test_missing_file_names_the_nearest():
    with pytest.raises(ValueError, match=r"Our_HDLR\.yaml: cannot be read .*; did you mean .*Ours_HDLR\.yaml\?"):
        load([CONFIGS / "Our_HDLR.yaml"])


def test_contradiction_names_every_file(tmp_path):
    mine = write(tmp_path, "mine.yaml", "inner: {steps_per_update: 4}")
    with pytest.raises(ValueError, match=r"DiffThroughOpt\.yaml, .*mine\.yaml: hypergradient\.window: given 5"):
        load([CONFIGS / "digits.yaml", CONFIGS / "DiffThroughOpt.yaml", mine])


@pytest.mark.parametrize("key", ["inner", "space.lr"])
def test_a_section_is_not_lost_to_a_value_that_is_then_overridden(key, tmp_path):
    section, *rest = key.split(".")
    file = write(tmp_path, "mistake.yaml", f"{section}: 3" if not rest else f"{section}: {{{rest[0]}: 3}}")
    files = [CONFIGS / "digits.yaml", CONFIGS / "Ours_HDLR.yaml", file]
    with pytest.raises(ValueError, match=f"mistake.yaml: {key}: given 3, where --set has a mapping"):
        load(files, ["inner.updates=1", "space.lr.init=0.1"])
