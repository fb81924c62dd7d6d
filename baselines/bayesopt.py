r"""Bayesian optimization with a Gaussian process (scikit-optimize): model the losses, train where that promises most.

    python -m baselines.bayesopt -c configs/uci_energy.yaml [--repetitions 32] [--evaluations 30] [--random 5]

The space is that of the config's `sample` ranges, in log10 where that is the transform and in natural values elsewhere;
the objective \(f\) is the final loss on the whole validation set. The first evaluations start at random. Each of the
others maximizes the expected improvement \(\mathrm{E} \max(0, \min_i f(x_i) - f(x))\) under a process fitted to all
evaluations before it. With `--parallel`, several are chosen at once, and those that are not trained yet are taken for
evaluations with the lowest loss so far (the constant liar "CL-min" of Ginsbourger et al. 2010).

A proposal is a pure function of (config.seed, repetition, evaluation) and of the evaluations before it. So a search
that is continued from its log proposes what it would have without the interruption.
"""

import hashlib
import math
import multiprocessing
import signal
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from baselines import arguments, rounds
from hyperopt_id.build.names import build_space
from hyperopt_id.config_schema import Config, TransformName
from hyperopt_id.telemetry.search import incumbents

Point = list[float]  # in the unit cube
MARGIN = 1.0  # above the worst loss, where the losses have no spread
PROPOSALS_WORTH_PROCESSES = 100  # each takes about 0.1 s, starting the processes about 3 s


def told(losses: Sequence[float | None]) -> list[float]:
    """What the process is fitted to. A failure (None) counts as the worst finite loss plus a margin: the spread of the
    finite losses, or `MARGIN` where they have none. Where everything has failed, all values are `MARGIN`."""
    finite = [loss for loss in losses if loss is not None]
    worst, best = (max(finite), min(finite)) if finite else (0.0, 0.0)
    failed = worst + ((worst - best) or MARGIN)
    return [failed if loss is None else loss for loss in losses]


def propose(
    points: Sequence[Point], losses: Sequence[float | None], pending: Sequence[Point], count: int, seed: int
) -> list[Point]:
    """`count` further points, where `points` have these losses and `pending` ones are being evaluated. Pure."""
    from skopt import Optimizer
    from skopt.space import Real
    from threadpoolctl import threadpool_limits

    values = told(losses)
    lie = min(values, default=0.0)
    cube = [Real(0.0, 1.0)] * len([*points, *pending][0])
    optimizer = Optimizer(cube, base_estimator="GP", n_initial_points=0, acq_func="EI", random_state=seed)
    proposals: list[Point] = []
    with threadpool_limits(1), warnings.catch_warnings():  # one thread: sums in the same order everywhere
        warnings.filterwarnings("ignore", "The objective has been evaluated at point")  # it takes a random one then
        warnings.filterwarnings("ignore", "Predicted variances smaller than 0")  # rounding, where the process is sure
        optimizer.tell([*points, *pending], values + [lie] * len(pending))
        while len(proposals) < count:
            if proposals:
                optimizer.tell(proposals[-1], lie)
            proposals.append(np.asarray(optimizer.ask(), dtype=float).tolist())
    return proposals


class Axis(NamedTuple):
    """The range of a hyperparameter in natural values, and its transform: under log10, its logarithm is searched."""

    low: float
    high: float
    transform: TransformName

    def coordinate(self, natural: float) -> float:
        """0 at the lower end of the range, 1 at the upper."""
        low, high, value = (self._scale(number) for number in (self.low, self.high, natural))
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def natural(self, coordinate: float) -> float:
        """The inverse; below 1 under logit, which has no such value."""
        low, high = self._scale(self.low), self._scale(self.high)
        value = low + coordinate * (high - low)
        value = min(max(10.0**value if self.transform == "log10" else value, self.low), self.high)
        return min(value, math.nextafter(1.0, 0.0)) if self.transform == "logit" else value

    def _scale(self, natural: float) -> float:
        return math.log10(natural) if self.transform == "log10" else natural


def search(
    config: Config,
    directory: Path,
    *,
    repetitions: int = 1,
    evaluations: int | None = None,
    random: int = 5,
    parallel: int = 1,
    gradients: float | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """`repetitions` searches of `evaluations` each, or of as many as the budget of one holds; `random` of them start at
    random, and `parallel` are chosen at once. Returns the summary. What is in `directory` already is not done again.

    Members of a round have the seeds that `baselines.rounds` states; random starts are those that their seeds draw.
    """
    _check(evaluations, random, parallel)
    settings = {"method": "BayesOpt", "repetitions": repetitions, "evaluations": evaluations, "random": random}
    settings |= {"parallel": parallel, "gradients": gradients, "seconds": seconds}
    plan = rounds.Plan(repetitions, evaluations, parallel, gradients, seconds)
    with processes(config, repetitions, rounds.affordable(config, plan) - random) as each:
        choose = _chooser(config, repetitions, random, each)
        search = rounds.Search(config, directory, settings, plan, choose, _annotate)
        return rounds.complete(search, lambda found: {"method": "BayesOpt", "repetitions": incumbents(found)})


def _check(evaluations: int | None, random: int, parallel: int) -> None:
    try:
        import skopt  # noqa: F401 - whether it is there
    except ImportError as error:
        raise ValueError(f"bayesopt needs scikit-optimize: {arguments.INSTALL}") from error
    if random < 1 or (evaluations is not None and random > evaluations):
        raise ValueError(f"given {evaluations} evaluations, {random} of them random; allowed: 1 or more random ones")
    if parallel < 1:
        raise ValueError(f"given {parallel} evaluations at once; allowed: 1 or more")


def _chooser(config: Config, repetitions: int, random: int, each: Callable[..., Any]) -> rounds.Choose:
    """Where the evaluations of a round start: drawn while there are fewer than `random`, then proposed."""
    space = build_space(config)
    axes = {name: Axis(*limits, config.space[name].transform) for name, limits in rounds.searched(config).items()}

    def point(start: Mapping[str, float]) -> Point:
        return [axis.coordinate(start[name]) for name, axis in axes.items()]

    def choose(before: Sequence[rounds.Evaluation], first: int, size: int) -> rounds.Starts:
        drawn, seed = min(max(random - first, 0), size), rounds.first_seed(config, repetitions, first)
        starts = [[space.draw(seed + r * size + place) for place in range(drawn)] for r in range(repetitions)]
        if drawn < size:
            mine = [[line for line in before if line["repetition"] == r] for r in range(repetitions)]
            proposed = each(
                propose,
                [[point(line["hyper"]) for line in lines] for lines in mine],
                [[line["loss/validation"] for line in lines] for lines in mine],
                [[point(start) for start in pending] for pending in starts],
                [size - drawn] * repetitions,
                [_stream(config.seed, r, first + drawn) for r in range(repetitions)],
            )
            for known, points in zip(starts, proposed, strict=True):
                known += [{n: axis.natural(x) for (n, axis), x in zip(axes.items(), p, strict=True)} for p in points]
        return {name: [start[name] for known in starts for start in known] for name in axes}

    return choose


def _stream(seed: int, repetition: int, evaluation: int) -> int:
    """The random state of a proposal."""
    name = f"bayesopt/{seed}/{repetition}/{evaluation}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _annotate(before: Sequence[rounds.Evaluation], lines: Sequence[rounds.Evaluation]) -> Sequence[rounds.Evaluation]:
    """With what the process is told of each evaluation right after the round."""
    losses: dict[int, list[float | None]] = defaultdict(list)
    for line in (*before, *lines):
        losses[line["repetition"]].append(line["loss/validation"])
    return [{**line, "told": told(losses[line["repetition"]])[line["evaluation"]]} for line in lines]


@contextmanager
def processes(config: Config, repetitions: int, proposals: float) -> Iterator[Callable[..., Any]]:
    """A `map` over repetitions: on as many processes as torch may use threads, where that pays."""
    count = min(config.threads or torch.get_num_threads(), repetitions)
    if count == 1 or repetitions * proposals < PROPOSALS_WORTH_PROCESSES:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in an unknown state
    ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered here
    with ProcessPoolExecutor(count, context, initializer=signal.signal, initargs=ignore) as pool:
        yield pool.map


def run(given: Sequence[str] | None = None) -> None:
    parser = arguments.parser("Bayesian optimization of the hyperparameters that training starts from.")
    add = parser.add_argument
    add("--evaluations", type=int, default=30, metavar="N", help="of each repetition, random ones included")
    add("--random", type=int, default=5, metavar="N", help="evaluations that start at random")
    add("--repetitions", type=int, default=1, metavar="R", help="independent searches, trained together")
    add("--parallel", type=int, default=1, metavar="Q", help="evaluations of a repetition chosen at once")
    arguments.add_budget(parser)
    options = parser.parse_args(given)
    arguments.searching(
        search,
        options,
        "bayesopt",
        repetitions=options.repetitions,
        evaluations=options.evaluations,
        random=options.random,
        parallel=options.parallel,
    )


if __name__ == "__main__":
    sys.exit(arguments.main(run))
