"""From a config to the parts of a run: the only tables from names to objects."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch

from hyperopt_id import compilation, curvature, hypergrad, mulo, mup, population, rules, space
from hyperopt_id.build import vectorized
from hyperopt_id.build.assemble import adam_space, assemble
from hyperopt_id.build.execution import Execution
from hyperopt_id.build.identity import with_files
from hyperopt_id.build.products import Products, first_batch, pick_products
from hyperopt_id.build.tasks import build_task
from hyperopt_id.config_schema import META_STARTS, Config, CurvatureConfig, HyperConfig
from hyperopt_id.experiment import Parts, Plan, hyper_update
from hyperopt_id.hypergrad import Engine
from hyperopt_id.mup import Multipliers, Scheme
from hyperopt_id.optim.mulo_weights import load_weights
from hyperopt_id.rules import UpdateRule
from hyperopt_id.space import Hyper, Space
from hyperopt_id.tasks.task import Task

logger = logging.getLogger("hyperopt_id")

TRANSFORMS = {"log10": space.LOG10, "logit": space.LOGIT, "identity": space.IDENTITY}
RULES: dict[str, Callable[..., UpdateRule]] = {
    "sgd": rules.sgd,
    "adam": rules.adam,
    "adamw": rules.adamw,
    "mulo": mulo.mulo,
}
SCHEMES: dict[tuple[str, str], Scheme] = {  # parametrization, rule
    ("mup", "sgd"): mup.sgd,
    ("mup", "adam"): mup.adam,
    ("mup", "adamw"): mup.adam,
    ("mup", "mulo"): mup.adam,
    ("umup", "adam"): mup.unit_adam,
    ("umup", "adamw"): mup.unit_adam,
}
ENGINES: dict[str, Callable[[Config], Engine]] = {
    "none": lambda config: hypergrad.no_gradient(),
    "neumann": lambda config: hypergrad.neumann(
        config.hypergradient.terms, carry_state=config.hypergradient.carry_state
    ),
    "unroll": lambda config: hypergrad.unroll(config.window),
    "one_step": lambda config: hypergrad.one_step(),
    "forward": lambda config: hypergrad.forward(config.window),
}
SECONDS_WORTH_COMPILING = {  # of eager training: compiling takes 10 to 30 seconds, thrice that for mulo, and saves half
    **dict.fromkeys(RULES, 60.0),
    "mulo": 180.0,
}
# For programs that are there: to look for them takes a second, or thirty hyper-updates, and saves half of the training.
SECONDS_WORTH_LOOKING, UPDATES_WORTH_LOOKING = 2.0, 100


def from_config(
    config: Config,
    *,
    compiled: bool | None = None,
    engine: Callable[[Task], Engine] | None = None,
    task: Task | None = None,
) -> tuple[Parts, Plan]:
    """Parts and plan of the run that a config describes. `compiled` repeats the decision of an earlier start; `engine`
    makes another engine than the config names; `task` is the config's, where it has been built before."""
    if config.trained_by is not None:
        raise ValueError(f"this is the config of another command's run; repeat or resume it with: {config.trained_by}")
    device = pick_device(config.device)
    task = task or build_task(config, device)
    seeds = run_seeds(config)
    chosen = engine(task) if engine is not None else ENGINES[config.hypergradient.engine](config)
    common: dict[str, Any] = {
        "rule": build_rule(config, task),
        "space": build_space(config),
        "engine": chosen,
        "curvature": _curvature(config, task, chosen),
        "sub_batch": config.hypergradient.curvature.sub_batch,
        "seeds": seeds,
        "sample": config.population.samples,
        "starts": given_starts(config, config.space),
        "meta_starts": given_starts(config, META_STARTS),
        **_meta(config),
    }
    plan = build_plan(config)
    execution = _execution(config, task, seeds)

    def make(compiled: bool) -> Parts:
        return assemble(task, **common, execution=replace(execution, compile=compiled))

    parts = _decided(config, device, plan, make) if compiled is None else make(compiled)
    return with_files(parts, config), plan


def pick_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no CUDA device; use device cpu or auto")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def run_seeds(config: Config) -> list[int]:
    """Members of a population have consecutive seeds, so a larger population holds every smaller one."""
    return [config.seed + member for member in range(config.population.runs)]


def build_multipliers(config: Config, task: Task) -> Multipliers:
    """Factors of the rule's hyperparameters, by parameter of the task's model; none under the standard one."""
    if config.parametrization == "standard":
        return {}
    shapes = {name: tuple(value.shape) for name, value in task.init(config.seed)[0].items()}
    tags = mup.tags(shapes, task.roles, config.base_width or 1)
    return mup.multipliers(tags, SCHEMES[config.parametrization, config.inner.rule])


def build_rule(config: Config, task: Task) -> UpdateRule:
    inner = config.inner
    options = {"nesterov": inner.nesterov, "dampening": inner.dampening} if inner.rule == "sgd" else {}
    rule = RULES[inner.rule](**options)
    rule = rule if inner.clip_norm is None else rules.clipped(rule, inner.clip_norm)
    multipliers = build_multipliers(config, task)
    return mup.scaled(rule, multipliers) if multipliers else rule


def build_space(config: Config) -> Space:
    return Space({name: _hyper(hyper) for name, hyper in config.space.items()})


def _hyper(given: HyperConfig) -> Hyper:
    bounds, sample = (None if limits == "none" else limits for limits in (given.bounds, given.sample))
    init = given.init
    if isinstance(init, str):
        init = load_weights(None if init == "default" else init)
    return Hyper(init, TRANSFORMS[given.transform], bounds, sample, given.tune)


def starting_values(config: Config) -> dict[str, list[float]]:
    """The natural value that each member's hyperparameters start at, by name; of those that are numbers."""
    inits = {name: hyper.init for name, hyper in config.space.items() if not isinstance(hyper.init, str)}
    space, draws = Space({name: _hyper(config.space[name]) for name in inits}), config.population.samples
    starts = [space.draw(seed) if draws else inits for seed in run_seeds(config)]
    return {name: [start[name] for start in starts] for name in inits} | {
        name: list(values) for name, values in config.population.start.items()
    }


def given_starts(config: Config, names: Collection[str]) -> list[dict[str, float]]:
    """What the config states of each member's starting values, of those called so."""
    given = {name: values for name, values in config.population.start.items() if name in names}
    return [{name: values[member] for name, values in given.items()} for member in range(config.population.runs)]


def _meta(config: Config) -> dict[str, Any]:
    meta = config.meta
    if meta.rule == "geometric":
        assert meta.factor is not None
        factor = Hyper(meta.factor) if isinstance(meta.factor, float | int) else Hyper(1.0, sample=meta.factor.sample)
        return {"meta": rules.geometric(), "meta_space": Space({"factor": factor})}
    if meta.rule in ("sgd", "none"):  # none: hypergradients are computed and reported, and nothing follows them
        values = {"lr": meta.lr if meta.rule == "sgd" else 0.0, "weight_decay": 0.0, "momentum": 0.0}
        return {"meta": rules.sgd(), "meta_space": Space({name: Hyper(value) for name, value in values.items()})}
    return {"meta": rules.adam(), "meta_space": adam_space(meta.lr, meta.beta1, meta.beta2, meta.eps)}


def _curvature(config: Config, task: Task, engine: Engine) -> Products:
    chosen, standard = config.hypergradient.curvature, CurvatureConfig()
    differences = curvature.finite_difference(chosen.epsilon, chosen.sides)
    given = {"auto": None, "exact": curvature.exact, "finite_difference": differences}[chosen.name]
    return pick_products(
        given,
        engine,
        task,
        config.seed,
        first_batch(task, config.seed),
        differences=differences if (chosen.epsilon, chosen.sides) != (standard.epsilon, standard.sides) else None,
        under_autocast=config.dtype == "bfloat16",
    )


def _execution(config: Config, task: Task, seeds: Sequence[int]) -> Execution:
    members = config.population
    lift = members.lift if members.lift != "auto" else ("loop" if members.runs == 1 else "vmap")
    if members.lift == "auto" and lift == "vmap":
        batch = population.Feed(task.batches, "loop")(config.task.train_on, [seeds[0]], 0, 1)[0]
        why = vectorized.obstacle(task, batch, seeds[0])
        if why is not None:
            logger.info("runs one after another, not vectorized: %s", why)
            lift = "loop"
    return Execution(lift, members.chunk, compile=False, autocast=config.dtype == "bfloat16")


def build_plan(config: Config) -> Plan:
    """Without validation rows, nothing is reported of them; without need for their batches, none is drawn; the trace of
    hyperparameters that stay what they are is one row."""
    inner, report, updates = config.inner, config.report, config.inner.total_updates
    fixed = not any(hyper.tune for hyper in config.space.values())
    return Plan(
        updates,
        inner.steps_per_update,
        config.task.train_on,
        "validation" if config.draws_validation else "training",
        inner.reset,
        report.every or max(1, updates // 100),
        [split for split in report.splits if split != "validation" or config.task.has_validation],
        report.checkpoint_every or max(1, updates // 20),
        report.keep,
        updates if fixed and report.trace_every is None else report.trace_every,
    )


def _decided(config: Config, device: torch.device, plan: Plan, make: Callable[[bool], Parts]) -> Parts:
    """The parts that `make(compiled)` makes, compiled where that is asked for, worth it, or has been done before."""
    setting = config.inner.compile
    if setting == "off":
        return make(False)
    if reason := compilation.obstacle(device):
        logger.log(logging.WARNING if setting == "on" else logging.INFO, "not compiled, running eagerly: %s", reason)
        return make(False)
    if setting == "on":
        return make(True)
    seconds = _eager_seconds(make(False), plan)
    if seconds >= SECONDS_WORTH_COMPILING[config.inner.rule]:
        return make(True)
    reason = f"the whole run takes about {seconds:.0f} s as it is"
    ready = make(True)
    long = seconds >= SECONDS_WORTH_LOOKING and plan.updates * len(ready.members) >= UPDATES_WORTH_LOOKING
    if long and (compiling := ready.compilation) is not None:
        if compiling.is_there(lambda: _first_update(ready, plan)):
            return ready
        if (later := compiling.later()) is not None:
            logger.info("not compiled, running eagerly: %s; when it ends, it is compiled for later starts", reason)
            return replace(make(False), afterwards=later)  # not beside it: two cores would take four times as long
    logger.info("not compiled, running eagerly: %s", reason)
    return make(False)


def _first_update(parts: Parts, plan: Plan) -> None:
    """The first hyper-update, which is pure and so may be tried."""
    chunk = population.split(parts.start(), parts.members[:1], parts.lift)[0]
    hyper_update(parts, plan, 0, chunk, parts.members[0])


def _eager_seconds(parts: Parts, plan: Plan) -> float:
    """The length of the run, extrapolated from its first hyper-update."""
    chunk = population.split(parts.start(), parts.members[:1], parts.lift)[0]
    attempts = []
    for _ in range(2 if parts.window <= 100 else 1):  # the first one also warms up, which is nothing beside a long one
        began = time.perf_counter()
        hyper_update(parts, plan, 0, chunk, parts.members[0])
        attempts.append(time.perf_counter() - began)
    return min(attempts) * plan.updates * len(parts.members)
