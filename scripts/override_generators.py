"""What an experiment varies: generators of jobs, by name.

    jobs = generate("sensitivity", base, repetitions=100, seed=0, arguments=["10"])

A generator is a pure function (base config, repetitions, seed, arguments) -> jobs. A job is one variation of the base
config, as overrides, together with the starts that are trained with it. A start is a seed, of which weights, data order
and drawn hyperparameters are functions, and perhaps values that take the place of drawn ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hyperopt_id.config_schema import META_STARTS, Config
from scripts.earlier_starts import found_starts

DRAWN, INITIAL = "population.sample=true", "population.sample=false"
GRID = 10  # the study's T and K go from 1 to this
ACCURACY_UPDATES = 5  # hypergradients that are compared, of each start


class Job(NamedTuple):
    """`label` names the variation ("" where nothing varies); `values` are natural starting values, one for each seed,
    of the hyperparameters that are not left to the config."""

    label: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]] = {}


Generator = Callable[[Config, int | None, int, Sequence[str]], list[Job]]


def natural_sgd(base: Config, repetitions: int | None, seed: int, arguments: Sequence[str]) -> list[Job]:
    """Random starts, drawn from the `sample` ranges of the config: seeds N, N + 1, ..."""
    _no_more(arguments, 0, "natural_sgd")
    return [Job("", (DRAWN,), _seeds(repetitions, seed))]


def from_directory(base: Config, repetitions: int | None, seed: int, arguments: Sequence[str]) -> list[Job]:
    """DIR: the starts of earlier runs below DIR, or their first R, values and seeds. Runs of the study's published code
    (`config.json`) and its published starts (`inits/*.yaml`) give their values; seeds are then N, N + 1, ..."""
    if len(arguments) != 1:
        raise ValueError(f"--overrides from_directory needs the directory of earlier runs, given {list(arguments)}")
    wanted = [*base.space, *(META_STARTS if base.meta.rule == "geometric" else ())]
    starts = found_starts(Path(arguments[0]), seed, wanted)
    count = len(starts) if repetitions is None else repetitions
    if count > len(starts):
        raise ValueError(f"{arguments[0]} holds {len(starts)} starts, but --repetitions asks for {count}")
    seeds, found = zip(*starts[:count], strict=True)
    names = [name for name in wanted if name in found[0]]
    if lacking := [number for number, start in enumerate(found) if not {*names} <= {*start}]:
        raise ValueError(
            f"{arguments[0]}: start {lacking[0]} lacks some of {', '.join(names)}, which the first one has"
        )
    return [Job("", (DRAWN,), seeds, {name: tuple(start[name] for start in found) for name in names})]


def sensitivity(base: Config, repetitions: int | None, seed: int, arguments: Sequence[str]) -> list[Job]:
    """[MOST]: every T and K from 1 to MOST (10), each for as many hyper-updates as the config has. K is the number of
    terms of neumann, or the window of unroll, and then at most T; without an engine, the config once."""
    seeds, engine = _seeds(repetitions, seed), base.hypergradient.engine
    if engine == "none":
        return [Job("", (DRAWN,), seeds)]
    most = _whole(arguments, GRID, "sensitivity")
    key = _length_key(base)
    length = f"inner.updates={base.inner.total_updates}"
    return [
        Job(f"T{t:02d}_K{k:02d}", (DRAWN, f"inner.steps_per_update={t}", length, f"{key}={k}"), seeds)
        for t, k in product(range(1, most + 1), repeat=2)
        if engine == "neumann" or k <= t
    ]


def hypergradient_accuracy(base: Config, repetitions: int | None, seed: int, arguments: Sequence[str]) -> list[Job]:
    """[MOST]: every T from 1 to MOST (10) and K <= T, for a few hyper-updates that move nothing, so that hypergradients
    of all K are taken at the same points; those of unroll with K = T are exact."""
    seeds, most, key = _seeds(repetitions, seed), _whole(arguments, GRID, "hypergradient_accuracy"), _length_key(base)
    common = [DRAWN, "meta.rule=none", "report.every=1"]
    common += [f"inner.updates={min(ACCURACY_UPDATES, base.inner.total_updates)}"]
    common += [f"space.{name}.bounds=none" for name, hyper in base.space.items() if hyper.tune]
    return [
        Job(f"T{t:02d}_K{k:02d}", (*common, f"inner.steps_per_update={t}", f"{key}={k}"), seeds)
        for t in range(1, most + 1)
        for k in range(1, t + 1)
    ]


def grid(base: Config, repetitions: int | None, seed: int, arguments: Sequence[str]) -> list[Job]:
    """NAME=LOW:HIGH:COUNT...: a grid of starting values, R times over; evenly spaced in the logarithm where that is the
    transform. Other hyperparameters start at their `init`."""
    axes = dict(_axis(base, argument) for argument in arguments)
    if not axes or len(axes) < len(arguments):
        raise ValueError(
            f"--overrides grid needs NAME=LOW:HIGH:COUNT for one or more hyperparameters, each once, as in "
            f"lr=1e-6:1e-1:20; given {list(arguments)}"
        )
    points = [*product(*axes.values())] * (1 if repetitions is None else repetitions)
    values = {name: tuple(point[i] for point in points) for i, name in enumerate(axes)}
    return [Job("", (INITIAL,), _seeds(len(points), seed), values)]


def validation_fraction(base: Config, repetitions: int | None, seed: int, arguments: Sequence[str]) -> list[Job]:
    """F...: each of these shares of train + validation as the validation set."""
    if not arguments:
        raise ValueError("--overrides validation_fraction needs one or more fractions, as in 0.11 0.25")
    seeds = _seeds(repetitions, seed)
    return [Job(f"validation{text}", (DRAWN, f"task.validation_fraction={text}"), seeds) for text in arguments]


GENERATORS: dict[str, Generator] = {
    "natural_sgd": natural_sgd,
    "from_directory": from_directory,
    "sensitivity": sensitivity,
    "hypergradient_accuracy": hypergradient_accuracy,
    "grid": grid,
    "validation_fraction": validation_fraction,
}


def generate(name: str, base: Config, repetitions: int | None, seed: int, arguments: Sequence[str]) -> list[Job]:
    """The jobs of the generator called `name`; `repetitions` None is one start, or all that `from_directory` finds."""
    return GENERATORS[known(name, GENERATORS, "--overrides")](base, repetitions, seed, arguments)


def known(name: str, choices: Sequence[str] | Mapping[str, object], what: str) -> str:
    """`name` if it is one of the choices, else a ValueError that says which one is nearest."""
    if name in choices:
        return name
    lowered = {choice.lower(): choice for choice in choices}
    near = [lowered[match] for match in get_close_matches(name.lower(), lowered, n=1, cutoff=0.4)]
    hint = f"; did you mean {near[0]}?" if near else ","
    raise ValueError(f"{what}: there is no {name!r}{hint} allowed: {', '.join(choices)}")


def _seeds(repetitions: int | None, seed: int) -> tuple[int, ...]:
    return tuple(range(seed, seed + (1 if repetitions is None else repetitions)))


def _no_more(arguments: Sequence[str], allowed: int, name: str) -> None:
    if len(arguments) > allowed:
        raise ValueError(f"--overrides {name} takes at most {allowed} argument(s), given {' '.join(arguments)}")


def _whole(arguments: Sequence[str], default: int, name: str) -> int:
    _no_more(arguments, 1, name)
    text = arguments[0] if arguments else str(default)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--overrides {name}: given {text}; allowed: a whole number, 1 or more")
    return int(text)


def _length_key(base: Config) -> str:
    """The key of K."""
    engine = base.hypergradient.engine
    if engine not in ("neumann", "unroll"):
        raise ValueError(
            f"(T, K) can be varied of the engines neumann and unroll, but {base.algorithm} has {engine}; "
            "leave it out of --algorithms"
        )
    return {"neumann": "hypergradient.terms", "unroll": "hypergradient.window"}[engine]


def _axis(base: Config, argument: str) -> tuple[str, list[float]]:
    """(name, values) of NAME=LOW:HIGH:COUNT."""
    try:
        name, limits = argument.split("=")
        low, high, number = limits.split(":")
        low, high, count = float(low), float(high), int(number)
    except ValueError:
        raise ValueError(
            f"--overrides grid: given {argument!r}; allowed: NAME=LOW:HIGH:COUNT, as in lr=1e-6:1e-1:20"
        ) from None
    logarithmic = base.space[known(name, base.space, "--overrides grid")].transform == "log10"
    if count < 1 or not -math.inf < low <= high < math.inf or (logarithmic and low <= 0.0):
        raise ValueError(
            f"--overrides grid: given {argument!r}; allowed: the lower limit first"
            f"{', above 0 for ' + name if logarithmic else ''}, and a COUNT of 1 or more"
        )
    return name, (np.geomspace if logarithmic else np.linspace)(low, high, count).tolist()
