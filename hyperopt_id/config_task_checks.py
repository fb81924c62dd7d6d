"""Which tasks are possible: data, model, and the splits that a run draws from. See `config_checks`."""

from collections.abc import Iterator
from dataclasses import fields
from itertools import chain
from typing import Any

from hyperopt_id.config_schema import MODELS, TOYS, Config, ModelConfig, StandardizeConfig, TaskConfig

Problem = tuple[tuple[str, ...], str]

PARAMETRIZED = {  # the models and rules that a parametrization is defined for
    "mup": (("mlp", "cnn", "transformer"), ("sgd", "adam", "adamw", "mulo")),
    "umup": (("mlp", "transformer"), ("adam", "adamw")),
}
TRANSFORMER = {"embedding": 64, "heads": 4}  # the model's own defaults


def problems(config: Config) -> Iterator[Problem]:
    """Everything impossible in `config.task`."""
    yield from _model(config)
    if config.task.name == "penn_treebank":
        yield from _text(config)
    yield from _table(config)
    yield from _parametrization(config)
    if config.draws_validation:
        yield from _validation_data(config)


def _model(config: Config) -> Iterator[Problem]:
    name, model = config.task.name, config.task.model
    if name in TOYS:
        yield from _toy(config)
        return
    taken = MODELS[model.name]
    for option in (f for f in fields(ModelConfig) if f.name not in ("name", "init_from", *taken)):
        value = getattr(model, option.name)
        if value != option.default:
            having = ", ".join(other for other, options in MODELS.items() if option.name in options)
            cure = f"set task.model.{option.name}=null, or name one of the models that have it: {having}"
            text = f"given {_shown(value)}, but task.model.name = {model.name} has no such option; {cure}"
            yield (f"task.model.{option.name}", "task.model.name"), text
    allowed = (
        ("lstm", "transformer") if name == "penn_treebank" else tuple(other for other in MODELS if other != "lstm")
    )
    if model.name not in allowed:
        keys = ("task.model.name", "task.name")
        yield keys, f"given {model.name}; allowed for task.name = {name}: {', '.join(allowed)}"
    if model.name == "mlp" and len(model.sizes or ()) < 2:
        yield ("task.model.sizes",), "an mlp needs [inputs, hidden widths..., outputs], for example [784, 50, 10]"
    if model.name == "transformer":
        width, heads = (getattr(model, key) or default for key, default in TRANSFORMER.items())
        if width % heads:
            keys = ("task.model.embedding", "task.model.heads")
            yield keys, f"given {width}, which is not a multiple of task.model.heads = {heads}; change one of them"


def _parametrization(config: Config) -> Iterator[Problem]:
    name, base, model = config.parametrization, config.base_width, config.task.model
    if name != "mup" and base is not None:
        yield ("base_width", "parametrization"), f"only parametrization = mup has it, but it is {name}; set it to null"
    if name == "standard":
        return
    models, rules = PARAMETRIZED[name]
    key, what = ("task.name", config.task.name) if config.task.name in TOYS else ("task.model.name", model.name)
    if what not in models:
        cure = f"take {_defined_for(what)}, or one of the models {', '.join(models)}"
        yield ("parametrization", key), f"given {name}, which {key} = {what} does not have; {cure}"
    if (rule := config.inner.rule) not in rules:
        cure = f"take {_defined_for(rule)}, or one of the rules {', '.join(rules)}"
        yield ("parametrization", "inner.rule"), f"given {name}, which inner.rule = {rule} does not have; {cure}"
    if name == "mup" and base is None:
        text = "missing; mup needs the width at which it is the standard parametrization, such as 64 (or 1, for mulo)"
        yield ("base_width", "parametrization"), text
    if name == "mup" and rule == "mulo" and base not in (None, 1):
        text = (
            f"given {base}, but inner.rule = mulo divides the rate of a hidden matrix by its whole fan-in; set it to 1"
        )
        yield ("base_width", "inner.rule"), text
    if model.name == "mlp" and len(model.sizes or ()) == 2:
        keys = ("parametrization", "task.model.sizes")
        yield keys, f"given {name}, but task.model.sizes = {_shown(model.sizes)} has no hidden layer; insert a width"


def _defined_for(what: str) -> str:
    """The parametrizations that a model or rule has."""
    return " or ".join(["standard", *(name for name, taken in PARAMETRIZED.items() if what in chain(*taken))])


def _toy(config: Config) -> Iterator[Problem]:
    """Toys have no model, rows of their own, and one batch: all of them."""
    task = config.task
    settings = {f"task.model.{f.name}": (getattr(task.model, f.name), f.default) for f in fields(ModelConfig)}
    settings["task.validation_fraction"] = task.validation_fraction, None
    if task.batch_size != "all":
        settings["task.batch_size"] = task.batch_size, TaskConfig.batch_size
    for key, (value, default) in settings.items():
        if value != default:
            who = f"task.name = {task.name}, which brings its own parameters and data, has no such option"
            yield (key, "task.name"), f"given {_shown(value)}, but {who}; set {key}=null"


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _text(config: Config) -> Iterator[Problem]:
    task = config.task
    if task.batch_size == "all":
        yield ("task.batch_size",), "given all; penn_treebank needs a number of streams, such as 40"
    if task.validation_fraction == 0:
        yield ("task.validation_fraction",), "given 0; penn_treebank needs validation text: a number above 0, or null"


def _table(config: Config) -> Iterator[Problem]:
    task = config.task
    if task.name != "csv":
        settings = {f"task.{key}": getattr(task, key) for key in ("path", "splits", "loss")}
        for f in fields(StandardizeConfig):
            value = getattr(task.standardize, f.name)
            settings[f"task.standardize.{f.name}"] = value if value != f.default else None
        for key, value in settings.items():
            if value is not None:
                yield (key,), f"only task.name = csv has it, but task.name = {task.name}; set {key}=null"
        return
    if task.loss == "cross_entropy" and task.standardize.targets:
        keys = ("task.standardize.targets", "task.loss")
        yield keys, "given true; classes (task.loss = cross_entropy) cannot be standardized, use false"
    if task.path is None:
        yield ("task.path", "task.name"), "missing; task.name = csv needs the path of the table"
    if task.splits is None:
        yield ("task.splits", "task.name"), "missing; task.name = csv needs [train, validation, test] row counts"
    elif min(task.splits) < 0 or task.splits[0] < 1 or task.splits[2] < 1:
        counts = "row counts, 1 or more for train and test, 0 or more for validation"
        yield ("task.splits",), f"given {list(task.splits)}; allowed: {counts}"


def _validation_data(config: Config) -> Iterator[Problem]:
    task = config.task
    why, cure = (
        "the objective of the hypergradient is the validation loss, but ",
        "or hypergradient.objective = training",
    )
    if task.train_on == "train+validation":
        keys = ("task.train_on", "hypergradient.objective")
        yield keys, f"{why}task.train_on = train+validation leaves no validation data; use train, {cure}"
    if task.has_validation:
        return
    if task.validation_fraction == 0:
        keys = ("task.validation_fraction", "hypergradient.objective")
        yield keys, f"{why}task.validation_fraction = 0 leaves no validation data; raise it, {cure}"
    else:
        keys = ("task.splits", "hypergradient.objective")
        yield keys, f"{why}task.splits = {list(task.splits or ())} leaves no validation data; give it rows, {cure}"
