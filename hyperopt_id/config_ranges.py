"""Which single values of a config are possible. See `config_checks`."""

import math
from collections.abc import Iterator
from typing import Any

from hyperopt_id.config_schema import Config
from hyperopt_id.config_task_checks import Problem

AT_LEAST_ONE = (
    "base_width",
    "inner.steps_per_update",
    "inner.steps",
    "inner.updates",
    "hypergradient.terms",
    "hypergradient.window",
    "population.runs",
    "population.chunk",
    "report.every",
    "report.checkpoint_every",
    "report.keep",
    "task.batch_size",
    "task.model.embedding",
    "task.model.hidden",
    "task.model.layers",
    "task.model.heads",
    "threads",
)
NOT_NEGATIVE = ("seed", "meta.lr", "report.trace_every")
AT_MOST = {  # what is made one by one, before memory can be asked for
    "population.runs": 100_000,
    "threads": 1024,
    "hypergradient.terms": 10_000,  # a hyper-update is not interrupted
    "task.model.layers": 1000,
}
WIDTHS = 1000  # of one model
LARGEST = 2**63 - 1  # of what is counted in tensors
POSITIVE = ("inner.clip_norm", "meta.eps", "hypergradient.curvature.epsilon")
BELOW_ONE = (  # in [0, 1)
    "task.validation_fraction",
    "task.model.dropout",
    "inner.dampening",
    "meta.beta1",
    "meta.beta2",
)


def problems(config: Config) -> Iterator[Problem]:
    """Every value that is outside its range."""
    rules = (
        (AT_LEAST_ONE, lambda value: value >= 1, "1 or more"),
        (NOT_NEGATIVE, lambda value: 0 <= value < math.inf, "0 or more"),
        (POSITIVE, lambda value: 0 < value < math.inf, "a number above 0"),
        (BELOW_ONE, lambda value: 0 <= value < 1, "0 or more, below 1"),
        (("hypergradient.curvature.sub_batch",), lambda value: 0 < value <= 1, "above 0, at most 1"),
    )
    for keys, fits, allowed in rules:
        for key in keys:
            value = _get(config, key)
            if value is not None and not isinstance(value, str) and not fits(value):
                yield (key,), f"given {value}; allowed: {allowed}"
    for key, most in AT_MOST.items():
        value = _get(config, key)
        if value is not None and value > most:
            yield (key,), f"given {value}; allowed: at most {most}"
    for key in ("task.model.sizes", "task.model.channels"):
        value = _get(config, key)
        if value is not None and (not value or min(value) < 1):
            yield (key,), f"given {list(value)}; allowed: one or more widths, each 1 or more"
        if value is not None and len(value) > WIDTHS:
            yield (key,), f"given {len(value)} widths; allowed: at most {WIDTHS}"
    if config.seed + config.population.runs > LARGEST:
        keys = ("seed", "population.runs")
        yield keys, f"given {config.seed} for population.runs = {config.population.runs}; seeds must be below 2^63"
    splits = config.report.splits
    if len(set(splits)) < len(splits):
        yield ("report.splits",), f"given {list(splits)}; name every split once"


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
