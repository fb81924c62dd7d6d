r"""Optimizers that promise to need no tuning: Prodigy (arXiv 2306.06101) and Schedule-Free (arXiv 2405.15682).

    python -m baselines.tuning_free -c configs/<data set>.yaml --optimizer prodigy|schedulefree_sgd|schedulefree_adamw

The packages `prodigyopt` and `schedulefree` take the steps of plain training, with the defaults of their classes and
the schedule that their authors recommend: cosine annealing for the one, a warm-up for the other, whose length of a
twentieth is ours. In step t of S:

    prodigy              lr 1, times (1 + cos(π t / S)) / 2
    schedulefree_sgd     lr 1, times min(1, 20 (t + 1) / S); momentum 0.9
    schedulefree_adamw   lr 0.0025, times the same; betas 0.9 and 0.999

Weight decay is 0 for all of them. `--option K=V` sets any argument of the class; what config files say in `space` is
for other optimizers. As nothing looks at validation data, training uses them, too, unless `-s task.train_on=train`.
Schedule-Free is evaluated at its averaged weights. Reports and the trace, with a row for every report, have the
learning rate of the next step; for Prodigy, its estimate d is a factor of that.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import itertools
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from baselines import arguments, rounds
from hyperopt_id import launch
from hyperopt_id.build.plain import in_whole_reports, plain_from_config
from hyperopt_id.config import load
from hyperopt_id.config_schema import RULES, Config, HyperConfig, HypergradientConfig, MetaConfig, RuleName
from hyperopt_id.experiment import Parts, Plan
from hyperopt_id.optim.plain import Make
from hyperopt_id.options import given_flags
from hyperopt_id.rules import State
from hyperopt_id.telemetry.search import incumbents
from hyperopt_id.trees import Params

ON_ALL_DATA = Path(__file__).parents[1] / "configs" / "Random.yaml"
Settings = dict[str, Any]  # arguments of an optimizer's class


class Method(NamedTuple):
    """An optimizer of a package. Its hyperparameters are those of our `rule`; `recommended(S)` are arguments other than
    the defaults; `share(t, S, settings)` of the learning rate is in use at step t, where `imposed` from outside."""

    algorithm: str
    name: str
    rule: RuleName
    package: str
    recommended: Callable[[int], Settings]
    share: Callable[[int, int, Settings], float]
    imposed: bool


def _annealed(step: int, total: int, settings: Settings) -> float:
    return (1.0 + math.cos(math.pi * step / total)) / 2.0


def _warmed_up(step: int, total: int, settings: Settings) -> float:
    return min(1.0, (step + 1) / max(1, settings["warmup_steps"]))


def _warmup(total: int) -> Settings:
    return {"warmup_steps": total // 20}


_FREE: dict[str, Any] = {"package": "schedulefree", "recommended": _warmup, "share": _warmed_up, "imposed": False}
METHODS = {
    "prodigy": Method("Prodigy", "Prodigy", "adamw", "prodigyopt", lambda total: {}, _annealed, imposed=True),
    "schedulefree_sgd": Method("ScheduleFree_SGD", "SGDScheduleFree", "sgd", **_FREE),
    "schedulefree_adamw": Method("ScheduleFree_AdamW", "AdamWScheduleFree", "adamw", **_FREE),
}


def train(
    config: Config, directory: Path, *, optimizer: str, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The summary of training as `config` says, but by `optimizer`, in that run directory, whatever part of it is still
    to be done there. `options` are arguments of the optimizer's class."""
    options = options or {}
    return launch.complete(configured(config, optimizer, options), directory, build=partial(build, optimizer, options))


def search(
    config: Config,
    directory: Path,
    *,
    optimizer: str,
    options: Mapping[str, Any] | None = None,
    trials: int | None = None,
    repetitions: int = 1,
    gradients: float | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """A search over nothing but seeds: `trials` of them for each repetition, or as many as its budget holds (see
    `random_search.search`); returns the summary."""
    options = options or {}
    config = configured(config, optimizer, options)
    plan = rounds.Plan(repetitions, trials, None if seconds is None else 1, gradients, seconds)
    settings = {"method": config.trained_by, "repetitions": repetitions, "trials": trials}
    settings |= {"gradients": gradients, "seconds": seconds}
    made = partial(build, optimizer, options)
    search = rounds.Search(config, directory, settings, plan, build=made)
    return rounds.complete(search, lambda found: {"method": config.algorithm, "repetitions": incumbents(found)})


def configured(config: Config, optimizer: str, options: Mapping[str, Any]) -> Config:
    """The config of a run by `optimizer`: its hyperparameters, and one hyper-update for each report; a ValueError where
    the config tunes something, or the optimizer cannot have the options."""
    method = _method(optimizer)
    if config.hypergradient.engine != "none" or any(hyper.tune for hyper in config.space.values()):
        raise ValueError(f"{optimizer} tunes nothing, but {config.algorithm} does; name no algorithm among the configs")
    if config.parametrization != "standard":
        raise ValueError(f"{optimizer} has no rates for parametrization = {config.parametrization}; take standard")
    settings = _settings(method, config.inner.total_steps, options)
    betas = dict(zip(("beta1", "beta2"), settings.get("betas", ()), strict=False))
    values = {**settings, **betas}
    given = [f"--option {name}={shlex.quote(json.dumps(value))}" for name, value in sorted(options.items())]
    config = replace(
        config,
        algorithm=method.algorithm,
        trained_by=" ".join(["python -m baselines.tuning_free --optimizer", optimizer, *given]),
        inner=replace(config.inner, rule=method.rule, reset=False, nesterov=False, dampening=0.0),
        space={name: HyperConfig(float(values[name]), "identity") for name in RULES[method.rule]},
        hypergradient=HypergradientConfig(),
        meta=MetaConfig(),
        population=replace(config.population, sample=False, start={}),
    )
    return in_whole_reports(config)


def _method(optimizer: str) -> Method:
    if optimizer not in METHODS:
        raise ValueError(f"there is no optimizer {optimizer!r} here; there are {', '.join(METHODS)}")
    return METHODS[optimizer]


def _class(method: Method) -> Callable[..., torch.optim.Optimizer]:
    try:
        return getattr(importlib.import_module(method.package), method.name)
    except ImportError as error:
        install = "python -m pip install -c constraints.txt -e '.[baselines]'"
        raise ValueError(f"{method.algorithm} needs the package {method.package}: {install}") from error


def _settings(method: Method, total: int, options: Mapping[str, Any]) -> Settings:
    """All arguments of the class but the weights; a ValueError where it has no such option."""
    parameters = inspect.signature(_class(method)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    known = [name for name in defaults if name != "fsdp_in_use"]  # of processes that share the weights
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"--option {unknown[0]}: {method.name} has no such option; it has {', '.join(known)}")
    for name, value in options.items():
        pair = isinstance(defaults[name], tuple)  # betas
        numbers = value if isinstance(value, list | tuple) else [value]
        fits = isinstance(value, list | tuple) == pair and len(numbers) == 1 + pair
        if not fits or not all(isinstance(n, bool | int | float) and 0 <= n < math.inf for n in numbers):
            allowed = "two numbers, as [0.9,0.99]" if pair else "true, false, or a number of 0 or more"
            raise ValueError(f"--option {name}={json.dumps(value)}: allowed is {allowed}")
    return {**defaults, **method.recommended(total), **options}


def build(
    optimizer: str, options: Mapping[str, Any], config: Config, *, compiled: bool | None = None
) -> tuple[Parts, Plan]:
    """Parts and plan of a run (a `launch.Build`, once it knows the optimizer)."""
    del compiled
    method, total = _method(optimizer), config.inner.total_steps
    settings = _settings(method, total, options)
    constants = {name: hyper.init for name, hyper in config.space.items() if not isinstance(hyper.init, str)}

    def hyper(state: State) -> dict[str, Tensor]:
        estimate = state["groups"].get("d", torch.ones_like(state["groups"]["lr"]))[0]
        rate = settings["lr"] * method.share(int(state["step"]), total, settings) * estimate
        return {name: torch.full_like(rate, value) for name, value in constants.items()} | {"lr": rate}

    every = 0 if config.report.trace_every == 0 else 1
    return plain_from_config(config, lambda task: _make(method, settings, total), hyper, trace_every=every)


def _make(method: Method, settings: Settings, total: int) -> Make:
    create = _class(method)

    def make(params: Params, taken: int) -> torch.optim.Optimizer:
        with contextlib.redirect_stdout(io.StringIO()):  # Prodigy announces weight decay, and is made anew often
            optimizer = create(params.values(), **settings)
        steps = itertools.count(taken)

        def schedule(*_: Any) -> None:
            rate = settings["lr"] * method.share(next(steps), total, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate

        if method.imposed:
            optimizer.register_step_pre_hook(schedule)
        return optimizer

    return make


def run(given: Sequence[str] | None = None) -> dict[str, Any]:
    """The run that command-line arguments ask for, in its run directory; returns its summary."""
    parser = arguments.parser("Train by an optimizer that promises to need no tuning.")
    parser.add_argument("--optimizer", choices=METHODS, required=True)
    parser.add_argument("--option", nargs="+", action="extend", default=[], metavar="K=V", help="of the optimizer")
    parser.add_argument("--runs", type=int, metavar="R", help="R runs, with seeds SEED, SEED + 1, ...")
    asked = parser.parse_args(given)
    if not asked.config:
        raise ValueError("no config: name at least one file, as in -c configs/uci_energy.yaml")
    if spaces := [override for override in asked.set if override.startswith("space")]:
        raise ValueError(f"--set {spaces[0]}: the optimizer has settings of its own, as in --option lr=0.5")
    options = dict(_option(text) for text in asked.option)
    config = load([ON_ALL_DATA, *asked.config], [*asked.set, *given_flags(asked)])
    config = configured(config, asked.optimizer, options)
    named = config.log.name is not None
    directory = launch.newest(config) if asked.resume and not named else launch.new_directory(config)
    begin = launch.run
    if asked.resume:
        begin = launch.resume
        if not (directory / "config.yaml").is_file():
            raise ValueError(f"--resume: there is no run (no config.yaml) in {directory}; leave --resume out")
    return begin(config, directory, build=partial(build, asked.optimizer, options))


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--option {text}: needed is K=V, as in weight_decay=0.01")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.exit(arguments.main(run))
