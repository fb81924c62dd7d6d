r"""Diff-through-Opt (Domke 2012; arXiv 1502.03492): hypergradients through the last W of every T training steps.

    python -m baselines.diff_through_opt -c configs/<data set>.yaml [--backend unroll|higher] [--runs R]

The backend `unroll` is `hypergrad.unroll`: the run that `train.py` makes of `configs/DiffThroughOpt.yaml`. The backend
`higher` is the same run with the peer library `higher` 0.2.1 (arXiv 1910.01727) in place of that engine: it unrolls a
`torch.optim` optimizer, whose settings are our natural hyperparameters,

.. math:: (w_k, s_k) = \mathrm{step}(\nabla L(w_{k-1}), w_{k-1}, s_{k-1}; \mathrm{constrain}(\mathrm{raw})), \qquad
          \frac{d \ell(w_W)}{d\,\mathrm{raw}},

and differentiates the recorded graph of all W steps at once. Both take the same steps and find the same hypergradients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from baselines import arguments
from hyperopt_id import curvature, derivatives, hypergrad, launch, rules, trees
from hyperopt_id.build.names import from_config
from hyperopt_id.build.products import pick_curvature
from hyperopt_id.config_schema import Config, InnerConfig
from hyperopt_id.dynamics import Batch, Dynamics, LossFunction, TrainState
from hyperopt_id.experiment import Parts, Plan
from hyperopt_id.hypergrad import Engine, Objective, Outcome
from hyperopt_id.rules import Hyperparameters, UpdateRule
from hyperopt_id.tasks.task import Task
from hyperopt_id.trees import Params

ALGORITHM = Path(__file__).parents[1] / "configs" / "DiffThroughOpt.yaml"


Counts = dict[str, int]


class Peer(NamedTuple):
    """An update rule as `torch.optim` has it: the optimizer's `make`, the tensors of its state by our names of them
    (`moments`), and `settings(hyper, steps)`, the natural values as its own settings, a value for each parameter, whose
    steps are numbered 1, 2, ..."""

    make: Callable[..., torch.optim.Optimizer]
    moments: dict[str, str]
    settings: Callable[[Hyperparameters, Counts], dict[str, list[Any]]]


def _sgd_settings(hyper: Hyperparameters, steps: Counts) -> dict[str, list[Any]]:
    return {name: list(values.values()) for name, values in hyper.items()}


def _adam_settings(hyper: Hyperparameters, steps: Counts) -> dict[str, list[Any]]:
    r"""`higher` adds \(\epsilon\) to \(\sqrt{v_t}\) before the bias of \(v_t\) is corrected, we do so after it."""
    beta1, beta2 = (hyper[name].values() for name in ("beta1", "beta2"))
    return {
        "lr": list(hyper["lr"].values()),
        "weight_decay": list(hyper["weight_decay"].values()),
        "betas": list(zip(beta1, beta2, strict=True)),
        "eps": [e * (1.0 - hyper["beta2"][name] ** steps[name]).sqrt() for name, e in hyper["eps"].items()],
    }


PEERS = {
    "sgd": Peer(partial(torch.optim.SGD, lr=1.0, momentum=0.5), {"momentum": "momentum_buffer"}, _sgd_settings),
    "adam": Peer(torch.optim.Adam, {"mean": "exp_avg", "square": "exp_avg_sq"}, _adam_settings),
}


def unroll_by_higher(loss: LossFunction, inner: InnerConfig, window: int) -> Engine:
    """`hypergrad.unroll(window)` for single runs, by `higher`. Memory is that of the graphs of all `window` steps."""
    peer = PEERS[inner.rule]

    def call(
        dynamics: Dynamics, objective: Objective, z: TrainState, raw: Params, batches: Sequence[Batch], target: Batch
    ) -> Outcome:
        learned = trees.variables(dynamics.tuned(raw))
        hyper = dynamics.constrain({**raw, **learned}, z.params)
        params, buffers, metrics = trees.variables(z.params), z.buffers, []
        taken = rules.by_parameter(z.state.get("step", torch.tensor(0)), params)
        counts = {name: int(count) for name, count in taken.items()}
        optimizer = _differentiable(peer, inner, params, z, counts)
        for batch in batches:
            value, auxiliary = loss(params, buffers, batch)
            buffers, measured = trees.detach(auxiliary)
            metrics.append({**measured, "loss": value.detach()})
            settings = peer.settings(hyper, {name: count + 1 for name, count in counts.items()})
            moved = optimizer.step(value, params=params.values(), override=settings)
            params = dict(zip(params, moved, strict=True))
        value = objective(params, buffers, {**raw, **learned}, target)
        slopes = torch.autograd.grad(value, list(learned.values()), allow_unused=True)
        hypergradient = dict(zip(learned, derivatives.filled(slopes, learned.values()), strict=True))
        state = {**z.state, **_moments(peer, optimizer, params)}
        if "step" in state:
            state["step"] = _counted(state["step"], counts, len(batches))
        return Outcome(TrainState(trees.detach(params), buffers, state), metrics, value.detach(), hypergradient)

    # Handed over as one piece, so that it is timed as a hypergradient; `from_config_by_higher` never compiles it.
    return Engine(window, call, traceable=True, products=False)


def _differentiable(peer: Peer, inner: InnerConfig, params: Params, z: TrainState, counts: Counts) -> Any:
    """`higher`'s optimizer in the state of z, each parameter a group of its own, which counts its steps in `counts`."""
    from higher.optim import get_diff_optim

    options = {"nesterov": True} if inner.nesterov else {}
    optimizer = peer.make([{"params": [w]} for w in params.values()], **options)
    for name, w in params.items():
        optimizer.state[w] = {theirs: z.state[ours][name] for ours, theirs in peer.moments.items()}
        optimizer.state[w]["step"] = counts[name]

    def prepared(slopes: Sequence[Tensor | None]) -> list[Tensor | None]:
        given = {name: slope for name, slope in zip(params, slopes, strict=True) if slope is not None}
        counts.update({name: counts[name] + 1 for name in given})
        given = given if inner.clip_norm is None else _clipped(given, inner.clip_norm)
        return [given.get(name) for name in params]

    return get_diff_optim(optimizer, list(params.values()), grad_callback=prepared)


def _clipped(slopes: Params, clip_norm: float) -> Params:
    unchanged = UpdateRule(lambda params: {}, lambda params, gradients, state, hyper: (gradients, state), ())
    return rules.clipped(unchanged, clip_norm).update({}, slopes, {}, {})[0]


def _counted(before: Tensor | Params, counts: Counts, steps: int) -> Tensor | Params:
    """The count of steps in the state, which parameters share or have one each of."""
    if isinstance(before, dict):
        return {name: torch.full_like(count, counts[name]) for name, count in before.items()}
    return before + steps


def _moments(peer: Peer, optimizer: Any, params: Params) -> dict[str, Params]:
    """Our names of the tensors in the optimizer's state after its last step."""
    return {
        ours: {name: optimizer.state[group][0][theirs].detach() for group, name in enumerate(params)}
        for ours, theirs in peer.moments.items()
    }


def from_config_by_higher(config: Config, *, compiled: bool | None = None) -> tuple[Parts, Plan]:
    """`from_config` with `higher` in place of the engine `unroll`; a ValueError for a setting that it does not have."""
    for setting, reason in _unsupported(config):
        raise ValueError(f"--backend higher cannot have {setting}: {reason}, or leave --backend higher out")
    try:
        import higher  # noqa: F401 - whether it is there
    except ImportError as error:
        raise ValueError(
            "--backend higher needs the package higher: python -m pip install -c constraints.txt -e '.[baselines]'"
        ) from error

    def engine(task: Task) -> Engine:
        needed = pick_curvature(None, hypergrad.unroll(config.window), task, config.seed)
        if needed not in (curvature.exact, curvature.none):
            raise ValueError(
                "--backend higher needs a loss that can be differentiated twice, which this model's cannot; "
                "leave --backend higher out"
            )
        return unroll_by_higher(task.loss, config.inner, config.window)

    return from_config(config, compiled=False, engine=engine)


def _unsupported(config: Config) -> Iterator[tuple[str, str]]:
    """(setting, why not and what instead)."""
    inner, curve, members = config.inner, config.hypergradient.curvature, config.population
    if inner.rule not in PEERS:
        yield f"inner.rule = {inner.rule}", f"it differentiates no such optimizer; take {' or '.join(PEERS)}"
    if config.parametrization != "standard":
        yield f"parametrization = {config.parametrization}", "its learning rates are not passed on; take standard"
    if inner.dampening:
        yield f"inner.dampening = {inner.dampening}", "it is not passed on; take 0"
    if inner.compile == "on":
        yield "inner.compile = on", "its graphs are recorded anew each time; take off or auto"
    if curve.name == "finite_difference" or curve.sub_batch != 1.0:
        setting = f"hypergradient.curvature.name = {curve.name}, sub_batch = {curve.sub_batch}"
        yield setting, "it differentiates the loss of the whole batch exactly; take auto and 1"
    if members.lift == "vmap" or (members.lift == "auto" and members.runs > 1):
        yield f"population.lift = {members.lift} of {members.runs} runs", "it unrolls one at a time; take loop"
    if config.dtype == "bfloat16":
        yield "dtype = bfloat16", "it runs without autocast; take float32"
    for name, hyper in config.space.items():
        if name == "beta2" and hyper.tune:
            yield "space.beta2.tune", "it takes the correction of the second moment's bias for a constant; take []"
        if name in ("weight_decay", "momentum") and "element" in hyper.tune:
            yield f"space.{name}.tune = element", "it takes one number for each parameter tensor; take global or tensor"
        if name in ("weight_decay", "momentum") and hyper.tune and hyper.transform == "identity":
            yield f"space.{name}.transform = identity", "it takes a value of 0 for a constant; take log10 or logit"


BACKENDS: dict[str, launch.Build] = {"unroll": from_config, "higher": from_config_by_higher}


def configured(config: Config, backend: str) -> Config:
    """The config as `backend` runs it; a ValueError where its engine is another."""
    engine = config.hypergradient.engine
    if engine != "unroll":
        raise ValueError(
            f"Diff-through-Opt is the engine unroll, but the config's is {engine}; name an algorithm with it, "
            f"as {ALGORITHM.name}, or none"
        )
    if backend == "unroll":
        return config
    lift = "loop" if config.population.lift == "auto" else config.population.lift
    population = replace(config.population, lift=lift)
    return replace(config, algorithm=f"{config.algorithm}_{backend}", population=population)


def run(given: Sequence[str] | None = None) -> dict[str, Any]:
    """The run that command-line arguments ask for, in its run directory; returns its summary."""
    parser = arguments.parser("Diff-through-Opt: hypergradients through the last steps of training.")
    parser.add_argument("--backend", choices=BACKENDS, default="unroll", help="what unrolls the steps")
    parser.add_argument("--runs", type=int, metavar="R", help="R independent runs with random starts")
    parser.add_argument("--sample", action="store_true", default=None, help="a random start for a single run, too")
    options = parser.parse_args(given)
    options.config = options.config and [ALGORITHM, *options.config]
    config, build = configured(arguments.load(options), options.backend), BACKENDS[options.backend]
    if not options.resume:
        return launch.run(config, launch.new_directory(config), build=build)
    directory = launch.newest(config) if config.log.name is None else launch.new_directory(config)
    if not (directory / "config.yaml").is_file():
        raise ValueError(f"--resume: there is no run (no config.yaml) in {directory}; leave --resume out to start one")
    return launch.resume(config, directory, build=build)


if __name__ == "__main__":
    sys.exit(arguments.main(run))
