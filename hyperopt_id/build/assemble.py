"""Put the parts of a run together: the library's entrance.

Objects in, functions out: nothing here knows a config or looks anything up by name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hyperopt_id import population, rules, trees
from hyperopt_id.arguments import as_seeds, entrance
from hyperopt_id.build.entrances import as_starts, check_kinds, check_names, check_task, optional_parameters
from hyperopt_id.build.execution import Execution, preparation
from hyperopt_id.build.products import Products, autocast, pick_products
from hyperopt_id.build.vectorized import check_vectorized, lifted_products
from hyperopt_id.compilation import Compilation
from hyperopt_id.curvature import RECORDED, Curvature, rewritten, rewritten_forward
from hyperopt_id.dynamics import Dynamics, TrainState, make_dynamics
from hyperopt_id.experiment import Parts
from hyperopt_id.hypergrad import Engine, Objective
from hyperopt_id.population import Run
from hyperopt_id.rules import UpdateRule
from hyperopt_id.rules_unused import counting_apart
from hyperopt_id.runtime import Stopwatch
from hyperopt_id.space import Hyper, Space
from hyperopt_id.tasks.task import Task
from hyperopt_id.trees import Params

logger = logging.getLogger("hyperopt_id")


@entrance
def assemble(
    task: Task,
    *,
    rule: UpdateRule,
    space: Space,
    engine: Engine,
    meta: UpdateRule | None = None,
    meta_space: Space | None = None,
    curvature: Curvature | Products | None = None,
    sub_batch: float = 1.0,
    seeds: Iterable[int] = (0,),
    sample: bool = False,
    starts: Sequence[Mapping[str, float]] | None = None,
    meta_starts: Sequence[Mapping[str, float]] | None = None,
    execution: Execution | None = None,
) -> Parts:
    """The parts of R = len(seeds) runs of `task`, each trained by `rule` with the hyperparameters in `space`.

    `meta` (default Adam) moves the raw hyperparameters along `engine`'s hypergradients, with its own hyperparameters
    in `meta_space` (default lr 0.05). Hyperparameters start at their `init`, with `sample` at values drawn from the
    spaces; `starts` has the natural values of those runs that start elsewhere, by name, a mapping for each of `seeds`;
    `meta_starts` has the same of `meta_space`.
    `curvature` None takes exact products where they agree with differences of gradients, else finite differences, and
    logs which; given ones are kept, with a warning where they are wrong. `sub_batch` is the fraction of a batch that
    they use.

    Raises ValueError if a space does not hold exactly the hyperparameters of its rule, if seeds or starting values are
    none, or if the task's loss is not one number.
    """
    execution = execution or Execution()
    meta = rules.adam() if meta is None else meta
    meta_space = adam_space(0.05) if meta_space is None else meta_space
    check_kinds(task=task, rule=rule, space=space, engine=engine, meta=meta, meta_space=meta_space)
    check_names("space", space, rule)
    check_names("meta_space", meta_space, meta)
    seeds = as_seeds(seeds)
    values, meta_values = as_starts(starts, space, len(seeds)), as_starts(meta_starts, meta_space, len(seeds))
    feed = population.Feed(task.batches, execution.lift)
    batch = _first_batch(feed, seeds, execution)
    check_task(task, batch, seeds[0])
    if execution.lift == "vmap":
        check_vectorized(task, batch, seeds[0])
    if execution.compile and "compile" in task.limits:
        logger.warning("not compiled, running eagerly: %s", task.limits["compile"])
        execution = replace(execution, compile=False)
    products = _products(curvature, engine, task, batch, seeds[0], execution)
    optional = optional_parameters(task, batch, seeds[0])
    rule = counting_apart(rule) if optional else rule
    lifted = _lifted(task, rule, space, products, sub_batch, execution, optional)

    def start() -> Run:
        begin = partial(_member, task, rule, space, meta, meta_space, sample)
        return trees.stack(list(map(begin, seeds, values, meta_values)))

    parts = _parts(task, space, engine, meta, lifted, start, seeds, feed, execution)
    return replace(parts, notes=products.notes)


def _products(
    given: Curvature | Products | None, engine: Engine, task: Task, batch: Any, seed: int, execution: Execution
) -> Products:
    """The given products, or those that are right here, of runs that are lifted as `execution` says."""
    chosen = given
    if not isinstance(chosen, Products):
        chosen = pick_products(chosen, engine, task, seed, batch, under_autocast=execution.autocast)
    if execution.lift == "loop" or chosen.curvature not in RECORDED:
        return chosen
    again = rewritten_forward if engine.pushes else rewritten
    return chosen._replace(curvature=lifted_products(task, batch, seed, (chosen.curvature, again)))


def _members(seeds: Sequence[int], execution: Execution) -> list[list[int]]:
    return population.chunks(len(seeds), 1 if execution.lift == "loop" else execution.chunk)


def _first_batch(feed: population.Feed, seeds: Sequence[int], execution: Execution) -> Any:
    """The first training batch of the first run, by the request that its training begins with."""
    chunk = [seeds[member] for member in _members(seeds, execution)[0]]
    try:
        batch = feed("train", chunk, 0, 1)[0]
    except ValueError:  # too few rows, which matters where they are trained on alone
        batch = feed("train+validation", chunk, 0, 1)[0]
    return batch if execution.lift == "loop" else trees.take(batch, 0)


def _parts(
    task: Task,
    space: Space,
    engine: Engine,
    meta: UpdateRule,
    lifted: tuple[Dynamics, Objective],
    start: Callable[[], Run],
    seeds: Sequence[int],
    feed: population.Feed,
    execution: Execution,
) -> Parts:
    """The parts, computed as `execution` says, of runs that `start` begins."""
    how, watch = execution.lift, Stopwatch()
    device = next(iter(task.init(seeds[0])[0].values())).device
    dynamics, objective = lifted
    members = _members(seeds, execution)
    ahead = execution.compile and device.type == "cpu"
    compiling = Compilation(len(members), partial(watch.measure, "compile")) if ahead else None
    return Parts(
        start=start,
        update=population.make_update(
            dynamics,
            engine,
            objective,
            population.lift_rule(meta, how),
            space.project,
            run_axes=int(how == "vmap"),
            prepare=preparation(execution, watch, device, compiling),
        ),
        evaluate=population.lift(task.evaluate, how),
        hyper=partial(_natural, dynamics, space),
        hypergradient=_by_name,
        batches=feed,
        window=engine.window,
        seeds=seeds,
        members=members,
        lift=how,
        device=device,
        compiled=execution.compile,
        compilation=compiling,
        stopwatch=watch,
        sizes=task.sizes,
        digests=lambda: {"data": digest} if (digest := task.digest()) else {},
    )


def _lifted(
    task: Task,
    rule: UpdateRule,
    space: Space,
    products: Products,
    sub_batch: float,
    execution: Execution,
    optional: frozenset[str],
) -> tuple[Dynamics, Objective]:
    """Φ and the objective on chunks of runs."""
    lift = partial(population.lift, how=execution.lift)
    loss = lift(autocast(task.loss) if execution.autocast else task.loss)
    thin = None if sub_batch == 1.0 else _thinner(task, sub_batch, lift)
    lifted_rule = population.lift_rule(rule, execution.lift)
    curved = lift(task.loss) if products.outside_autocast else None
    constrain = lift(space.constrain)
    dynamics = make_dynamics(loss, lifted_rule, constrain, space.tuned, products.curvature, thin, curved, optional)

    def objective(params: Params, buffers: Params, raw: Params, batch: Any) -> Tensor:
        return loss(params, buffers, batch)[0]

    return dynamics, objective


def adam_space(lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Space:
    """Fixed hyperparameters for Adam as a meta-optimizer."""
    values = {"lr": lr, "weight_decay": 0.0, "beta1": beta1, "beta2": beta2, "eps": eps}
    return Space({name: Hyper(value) for name, value in values.items()})


def _member(
    task: Task,
    rule: UpdateRule,
    space: Space,
    meta: UpdateRule,
    meta_space: Space,
    sample: bool,
    seed: int,
    start: Mapping[str, float],
    meta_start: Mapping[str, float],
) -> Run:
    """The initial state of one run; every random number in it is a function of `seed`."""
    params, buffers = task.init(seed)
    raw = space.init(params, {**(space.draw(seed) if sample else {}), **start})
    tuned = space.tuned(raw)
    like = next(iter(params.values()))
    own = {**meta_space.draw(seed), **meta_start}  # a hyperparameter without a range is drawn as its `init`
    precision = trees.precision(params)
    return Run(
        TrainState(params, buffers, trees.map(_count, rule.init(params))),
        raw,
        meta.init(tuned) if tuned else {},
        {name: like.new_tensor(value, dtype=precision) for name, value in own.items()},
        torch.tensor(-1, device=like.device),
        torch.tensor(0, device=like.device),
    )


def _count(leaf: Tensor) -> Tensor:
    """A number of a state that a rule has begun: one that counts would stop at 256 in bfloat16."""
    return leaf if leaf.ndim else trees.wide(leaf)


def _thinner(task: Task, fraction: float, lift: Callable[..., Any]) -> Callable[[Any], Any]:
    """`task.thin` on batches of a chunk; only tensors go through vmap, the name of the split does not."""

    def tensors(batch: Any) -> dict[str, Tensor]:
        fields = task.thin(batch, fraction)._asdict()
        return {name: value for name, value in fields.items() if isinstance(value, Tensor)}

    return lambda batch: batch._replace(**lift(tensors)(batch))


def _natural(dynamics: Dynamics, space: Space, run: Run) -> dict[str, Any]:
    """Natural values to report: a single number where all parameters share it, else one for each parameter tensor."""
    fine = {name for name, hyper in space.hypers.items() if {"tensor", "element"} & set(hyper.tune)}
    natural = dynamics.constrain(run.raw, run.z.params)
    return {k: values if k in fine else next(iter(values.values())) for k, values in natural.items()}


def _by_name(slopes: Params) -> dict[str, Any]:
    """`lr/global` -> `lr`; `lr/element/<parameter>` -> {parameter: ...} under `lr/element`."""
    named: dict[str, Any] = {}
    for key, value in slopes.items():
        name, granularity, *parameter = key.split("/", 2)
        if granularity == "global":
            named[name] = value
        else:
            named.setdefault(f"{name}/{granularity}", {})[parameter[0]] = value
    return named
