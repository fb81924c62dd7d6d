"""Which tasks are possible: data, model, and the splits that a run draws from. See `config_checks`."""

from collections.abc import Iterator
from dataclasses import fields

from hyperopt_id.config_schema import MODELS, TOYS, Config, ModelConfig

Problem = tuple[tuple[str, ...], str]

TRANSFORMER = {"embedding": 64, "heads": 4}  # the model's own defaults


def problems(config: Config) -> Iterator[Problem]:
    """Everything impossible in `config.task`."""
    yield from _model(config)
    if config.task.name == "penn_treebank":
        yield from _text(config)
    yield from _table(config)
    if config.draws_validation:
        yield from _validation_data(config)


def _model(config: Config) -> Iterator[Problem]:
    name, model = config.task.name, config.task.model
    taken = () if name in TOYS else MODELS[model.name]
    who = f"task.name = {name}, which brings its own parameters," if name in TOYS else f"task.model.name = {model.name}"
    for option in (f for f in fields(ModelConfig) if f.name not in ("name", "init_from", *taken)):
        value = getattr(model, option.name)
        if value != option.default:
            shown = list(value) if isinstance(value, tuple) else value
            cure = f"set task.model.{option.name}=null, or name one of the models that have it"
            having = ", ".join(other for other, options in MODELS.items() if option.name in options)
            keys = (f"task.model.{option.name}", "task.name" if name in TOYS else "task.model.name")
            yield keys, f"given {shown}, but {who} has no such option; {cure}: {having}"
    if name in TOYS:
        return
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


def _text(config: Config) -> Iterator[Problem]:
    task = config.task
    if task.batch_size == "all":
        yield ("task.batch_size",), "given all; penn_treebank needs a number of streams, such as 40"
    if task.validation_fraction == 0:
        yield ("task.validation_fraction",), "given 0; penn_treebank needs validation text: a number above 0, or null"


def _table(config: Config) -> Iterator[Problem]:
    task = config.task
    if task.name != "csv":
        for key in ("path", "splits", "loss"):
            if getattr(task, key) is not None:
                yield (f"task.{key}",), f"only task.name = csv has it, but task.name = {task.name}"
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
