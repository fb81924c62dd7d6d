"""Which configs are possible: values that exclude each other.

A problem is (keys, text): the keys that contradict, the first of them leading, and what was given, what
is allowed, how to fix it.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from hyperopt_id import config_ranges, config_task_checks
from hyperopt_id.config_ranges import LARGEST
from hyperopt_id.config_schema import META_STARTS, Config, FactorConfig, HyperConfig
from hyperopt_id.config_task_checks import Problem


def problems(config: Config) -> Iterator[Problem]:
    """Everything impossible in `config`; the first is the one to report."""
    yield from config_ranges.problems(config)
    yield from config_task_checks.problems(config)
    yield from _inner(config)
    for name, hyper in config.space.items():
        yield from _hyper(f"space.{name}", hyper, config.population.samples)
    yield from _starts(config)
    yield from _hypergradient(config)
    yield from _meta(config)


def _inner(config: Config) -> Iterator[Problem]:
    inner = config.inner
    steps, every = inner.steps, inner.steps_per_update
    if inner.updates is None and steps is None:
        yield (
            ("inner.updates",),
            "the length of the run is missing: set inner.steps (weight updates) or inner.updates",
        )
    elif inner.updates is None and steps is not None and steps % every:
        yield (
            ("inner.steps", "inner.steps_per_update"),
            f"given {steps}, which is not a multiple of inner.steps_per_update = {every}; change one, "
            "or set inner.updates",
        )
    elif inner.total_steps > LARGEST:
        yield ("inner.updates", "inner.steps_per_update"), f"{inner.total_steps} steps are given; allowed: below 2^63"
    if inner.rule != "sgd" and (inner.nesterov or inner.dampening):
        key = "inner.nesterov" if inner.nesterov else "inner.dampening"
        yield (key, "inner.rule"), f"only inner.rule = sgd has it, but inner.rule = {inner.rule}"
    if inner.nesterov and inner.dampening:
        keys = ("inner.nesterov", "inner.dampening")
        yield keys, f"Nesterov momentum needs inner.dampening = 0, given {inner.dampening}"


def _hyper(key: str, hyper: HyperConfig, samples: bool) -> Iterator[Problem]:
    init, bounds, sample = hyper.init, hyper.bounds, hyper.sample
    if key == "space.theta":
        yield from _theta(key, hyper)
        return
    if isinstance(init, str):
        yield (f"{key}.init",), f"given {init!r} (text); allowed: a number"
        return
    top = 1.0 if hyper.transform == "logit" else math.inf
    if hyper.transform == "logit" and not 0.0 <= init < 1.0:
        yield (f"{key}.init",), f"given {init}; allowed: 0 or more, below 1"
    if not 0.0 <= init < math.inf:
        yield (f"{key}.init",), f"given {init}; allowed: 0 or more, in natural units (not as a logarithm)"
    for name, limits in (("bounds", bounds), ("sample", sample)):
        if isinstance(limits, str):  # none
            continue
        low, high = limits
        if low > high:
            yield (f"{key}.{name}",), f"given [{low}, {high}], which is reversed; allowed: [low, high]"
        if low < 0.0 or high > top:
            yield (f"{key}.{name}",), f"given [{low}, {high}]; allowed: from 0 to {top} for this transform"
    if bounds != "none" and not bounds[0] <= init <= bounds[1]:
        yield (
            (f"{key}.init", f"{key}.bounds"),
            f"given {init}, outside {key}.bounds = [{bounds[0]}, {bounds[1]}]; change one of them",
        )
    if hyper.transform == "log10" and hyper.tune and init == 0.0:
        yield (
            (f"{key}.init", f"{key}.tune"),
            f"given 0, which has no logarithm, so {key} cannot be tuned from there; start above 0",
        )
    if sample != "none":
        yield from _sample(key, hyper, sample, samples)


def _theta(key: str, hyper: HyperConfig) -> Iterator[Problem]:
    """θ is a vector, which is read from somewhere, not drawn from a range."""
    if not isinstance(hyper.init, str):
        yield (f"{key}.init",), f"given {hyper.init}; allowed: default, a file of weights, or a repository on the hub"
    for name in ("bounds", "sample"):
        if getattr(hyper, name) != "none":
            yield (f"{key}.{name}",), f"given {list(getattr(hyper, name))}; theta is a vector and has no range: none"
    if hyper.transform != "identity":
        yield (f"{key}.transform",), f"given {hyper.transform}; theta is a vector of any numbers: identity"
    if "element" in hyper.tune:
        yield (f"{key}.tune",), f"given {list(hyper.tune)}; allowed: global, for one theta, and tensor, for one each"


def _sample(key: str, hyper: HyperConfig, sample: tuple[float, float], drawn: bool) -> Iterator[Problem]:
    low, high = sample
    if math.isinf(high) or (hyper.transform == "log10" and low <= 0.0):
        yield (f"{key}.sample",), f"given [{low}, {high}]; allowed: finite limits, above 0 for log10"
    if drawn and hyper.bounds != "none" and not hyper.bounds[0] <= low <= high <= hyper.bounds[1]:
        yield (
            (f"{key}.sample", f"{key}.bounds"),
            f"given [{low}, {high}], outside {key}.bounds = {list(hyper.bounds)}; change one of them",
        )


def _starts(config: Config) -> Iterator[Problem]:
    """`population.start` holds for every run a value that it could have as `space.<name>.init`."""
    for name, values in config.population.start.items():
        key, runs = f"population.start.{name}", config.population.runs
        of_meta = name in META_STARTS and config.meta.rule == "geometric"
        if name not in config.space and not of_meta:
            known = ", ".join(config.space)
            yield (key, "inner.rule"), f"inner.rule = {config.inner.rule} has {known}, but not {name}"
            continue
        if len(values) != runs:
            text = f"given {len(values)} values for population.runs = {runs}; give each run one"
            yield (key, "population.runs"), text
        if of_meta:
            if wrong := [value for value in values if not 0 < value < math.inf]:
                yield (key,), f"given {wrong[0]}; allowed: numbers above 0"
            continue
        for value in values:
            for _, text in _hyper(
                f"space.{name}", replace(config.space[name], init=value, sample="none"), samples=False
            ):
                yield (key,), text
                return


def _hypergradient(config: Config) -> Iterator[Problem]:
    settings, engine = config.hypergradient, config.hypergradient.engine
    if settings.window is not None and settings.window > config.inner.steps_per_update:
        yield (
            ("hypergradient.window", "inner.steps_per_update"),
            f"given {settings.window}, longer than inner.steps_per_update = {config.inner.steps_per_update}, "
            "within which the hyperparameters are constant; shorten the window or lengthen the other",
        )
    if settings.window is not None and engine not in ("unroll", "forward"):
        yield (
            ("hypergradient.window", "hypergradient.engine"),
            f"only the engines unroll and forward have it, but the engine is {engine} (null takes it out)",
        )
    if settings.carry_state and engine != "neumann":
        keys = ("hypergradient.carry_state", "hypergradient.engine")
        yield keys, f"only the engine neumann has it, but the engine is {engine}"
    tuned = [name for name, hyper in config.space.items() if hyper.tune]
    if engine != "none" and not tuned:
        yield (
            ("hypergradient.engine",),
            f"given {engine}, but nothing is tuned: give space.<name>.tune = [global] to one or more of "
            f"{', '.join(config.space)}",
        )


def _meta(config: Config) -> Iterator[Problem]:
    meta, engine = config.meta, config.hypergradient.engine
    tuned = {name: hyper for name, hyper in config.space.items() if hyper.tune}
    if meta.rule != "geometric":
        if meta.factor is not None:
            yield (
                ("meta.factor", "meta.rule"),
                f"only meta.rule = geometric has it, but meta.rule = {meta.rule}",
            )
        if engine == "none" and tuned:
            name, hyper = next(iter(tuned.items()))
            yield (
                (f"space.{name}.tune", "hypergradient.engine"),
                f"given {list(hyper.tune)}, but hypergradient.engine = none; choose an engine or tune []",
            )
        return
    if engine != "none":
        keys = ("meta.rule", "hypergradient.engine")
        yield keys, f"geometric is a schedule and needs hypergradient.engine = none, given {engine}"
    if list(tuned) != ["lr"] or len(tuned["lr"].tune) != 1 or tuned["lr"].transform != "log10":
        yield (
            ("meta.rule", "space.lr.tune"),
            "geometric multiplies the learning rate and nothing else: it needs space.lr.tune = [global], "
            f"transform log10, and [] for the others; tuned now: {', '.join(tuned) or 'nothing'}",
        )
    if meta.factor is None:
        yield ("meta.factor", "meta.rule"), "missing; geometric needs a number or {sample: [low, high]}"
        return
    low, high = meta.factor.sample if isinstance(meta.factor, FactorConfig) else (meta.factor, meta.factor)
    if not 0 < low <= high < math.inf:
        yield ("meta.factor",), f"given {low} to {high}; allowed: above 0, and low first"
