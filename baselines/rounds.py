"""Searches that go on in rounds: a few evaluations of every repetition, trained together as one population.

With R repetitions, a round of k evaluations after e₀ earlier ones has R k members. Evaluation e of repetition r is

    member m = r k + e − e₀   with   seed = config.seed + R e₀ + m ,

so its weights, data order and drawn starting values are functions of (config.seed, r, e). A search directory holds

    config.yaml, search.json    what all trainings have in common, and the settings of the search
    search.jsonl                a line for each evaluation, on the disk before the next round is chosen
    runs/round_000, ...         run directories
    summary.json                what was found; written last

The seconds of an evaluation are its share of its round's, those of choosing and of training it, over R k. All
repetitions therefore spend the same, and together the time on the clock.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from baselines.directory import claimed, discard, identify
from hyperopt_id import compilation, launch
from hyperopt_id.analysis.cost import gradients_per_update
from hyperopt_id.build.names import SECONDS_WORTH_COMPILING, from_config, pick_device, starting_values
from hyperopt_id.config import to_dict
from hyperopt_id.config_schema import Config
from hyperopt_id.files import check_form, read_json_file
from hyperopt_id.telemetry.directory import write_json
from hyperopt_id.telemetry.measure import plain, typical
from hyperopt_id.telemetry.search import EVALUATION, SearchLog, incumbents

Evaluation = dict[str, Any]  # a line of search.jsonl
Starts = Mapping[str, Sequence[float]]  # natural starting values of a round's members, by hyperparameter
Choose = Callable[[Sequence[Evaluation], int, int], Starts]
Annotate = Callable[[Sequence[Evaluation], Sequence[Evaluation]], Sequence[Evaluation]]


@dataclass(frozen=True)
class Plan:
    """`repetitions` with `evaluations` each, or as many as the budget holds; `together` of them in a round, or all.

    `gradients` and `seconds` are what a repetition may spend. An evaluation that would need more gradients is not
    begun; one that ends after the seconds is logged, but counts only if it is the first.
    """

    repetitions: int
    evaluations: int | None = None
    together: int | None = None
    gradients: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.evaluations is None and self.gradients is None and self.seconds is None:
            raise ValueError("nothing says when the search ends: give a number of evaluations, or a budget")
        for name in ("repetitions", "evaluations", "together"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"given {value} {name}; a search needs 1 or more")
        for name in ("gradients", "seconds"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"given a budget of {value} {name}; allowed: a number above 0")

    def counts(self, line: Evaluation) -> bool:
        return self.seconds is None or line["evaluation"] == 0 or line["seconds"] <= self.seconds


@dataclass(frozen=True)
class Search:
    """`choose(evaluations before, e₀, k)` says where the members of a round start; what it does not name is drawn.

    `settings`, plain data, tell searches with one config apart. `annotate(evaluations before, those of a round)` may
    add to the lines that are logged. `build` makes the parts of a round's run.
    """

    config: Config
    directory: Path
    settings: Mapping[str, Any]
    plan: Plan
    choose: Choose = lambda before, first, size: {}
    annotate: Annotate = lambda before, lines: lines
    build: launch.Build = from_config


def complete(search: Search, summarize: Callable[[Sequence[Evaluation]], dict[str, Any]]) -> dict[str, Any]:
    """The summary of the evaluations that count, after training what is not in the directory yet.

    Raises ValueError where another process searches there, the directory holds another search, or the budget not a
    single evaluation.
    """
    total = affordable(search.config, search.plan)
    with claimed(search.directory, search.config, search.settings) as new:
        log = SearchLog(search.directory, EVALUATION)
        try:
            _train(search, log, total)
        except ValueError:  # a mistake of the user, which the caller shows
            if new and not log.records:
                discard(search.directory)
            raise
        summary = summarize(sorted(filter(search.plan.counts, log.records), key=_place))
        write_json(search.directory / "summary.json", summary)
    return summary


def _train(search: Search, log: SearchLog, total: float) -> None:
    """All rounds, as far as they are not in the log."""
    plan, first, number = search.plan, 0, 0
    together = plan.together or total
    rounds = None if math.isinf(total) else math.ceil(total / together)
    with _progress(search.config.log.progress, rounds) as show:
        while first < total and (plan.seconds is None or _spent(log.records, first) < plan.seconds):
            size = int(min(together, total - first))
            _round(search, log, number, first, size, alone=rounds == 1)
            first, number = first + size, number + 1
            show(number, [line for line in log.records if line["evaluation"] < first and plan.counts(line)])


@contextmanager
def _progress(mode: str, rounds: int | None) -> Iterator[Callable[[int, Sequence[Evaluation]], None]]:
    """Shows after a round how many there have been, and what has been found: the median over repetitions. A single
    round shows itself."""
    with_bar = mode == "bar" or (mode == "auto" and sys.stderr.isatty())
    with tqdm(total=rounds, unit="round", dynamic_ncols=True, disable=rounds == 1 or not with_bar) as bar:

        def show(number: int, evaluations: Sequence[Evaluation]) -> None:
            found = f"loss/validation {typical([best['loss/validation'] for best in incumbents(evaluations)]):.4g}"
            bar.set_postfix_str(found, refresh=False)
            bar.update()
            if rounds != 1 and not with_bar and mode != "none":
                print(f"round {number}{'' if rounds is None else f'/{rounds}'}: {found}", file=sys.stderr)

        yield show


def _round(search: Search, log: SearchLog, number: int, first: int, size: int, *, alone: bool) -> None:
    """Train round `number` and log its evaluations `first`, ... of every repetition, as far as they are not there."""
    repetitions = search.plan.repetitions
    there = {(line["repetition"], line["evaluation"]) for line in log.records if line["evaluation"] >= first}
    if sum(evaluation < first + size for _, evaluation in there) == repetitions * size:
        return
    began = time.perf_counter()
    before = sorted((line for line in log.records if line["evaluation"] < first), key=_place)
    config = _round_config(search, number, first, size, search.choose(before, first, size), alone)
    choosing = time.perf_counter() - began
    run = f"runs/round_{number:03d}"
    summary = plain(launch.complete(config, search.directory / run, build=_on_the_same_data(search)))
    _check(summary, config.population.runs, search.directory / run)
    share = (choosing + summary["seconds"]["total"]) / config.population.runs
    lines = _evaluations(config, summary, run, repetitions, first, _spent(before, first), share)
    for line in search.annotate(before, lines):
        if (line["repetition"], line["evaluation"]) not in there:
            log.append(line)


def _on_the_same_data(search: Search) -> launch.Build:
    """`search.build`, which refuses other data than those of earlier rounds."""

    def build(config: Config, **options: Any) -> Any:
        parts, plan = search.build(config, **options)
        identify(search.directory, search.config, parts)
        return parts, plan

    return build


def _check(summary: Any, runs: int, directory: Path) -> None:
    """Raise ValueError if the summary of a round, which was perhaps there before, is damaged."""
    where, final = f"{directory / 'summary.json'}", {"final": dict, "seconds": {"total": float}}
    cure = "remove it, and the same command makes it again"
    try:
        check_form(summary, final, where)
        for name, values in summary["final"].items():
            check_form(values, [(float, type(None))], f"{where}: final: {name}")
            if len(values) != runs:
                raise ValueError(f"{where}: final: {name}: needs {runs} numbers, found {len(values)}")
        check_form(summary["final"], {"loss/validation": list}, f"{where}: final")
    except ValueError as error:
        raise ValueError(f"{error}; {cure}") from error


def _round_config(search: Search, number: int, first: int, size: int, starts: Starts, alone: bool) -> Config:
    config, repetitions = search.config, search.plan.repetitions
    start = {name: tuple(values) for name, values in starts.items()}
    return replace(
        config,
        seed=first_seed(config, repetitions, first),
        population=replace(config.population, runs=repetitions * size, sample=True, start=start),
        inner=replace(config.inner, compile=compile_round(search, number)),
        log=replace(config.log, progress=config.log.progress if alone else "none"),
    )


def compile_round(search: Search, number: int) -> Literal["auto", "on", "off"]:
    """`inner.compile` of a round. Rounds have the same shapes and share one compiled program, so after the first one
    `auto` asks whether what its training took adds up, over all further rounds, to what is worth compiling. Its summary
    is on the disk, so that an interrupted search decides the same."""
    config, plan = search.config, search.plan
    first = search.directory / "runs" / "round_000" / "summary.json"
    if config.inner.compile != "auto" or number == 0 or not first.exists():
        return config.inner.compile
    parts = dict.fromkeys(("total", "inner", "hypergradient", "compile"), float)
    seconds = read_json_file(first, {"seconds": parts})["seconds"]
    rounds = 1.0 if plan.together is None else affordable(config, plan) / plan.together
    budget = math.inf if plan.seconds is None else plan.seconds * plan.repetitions
    left = min((seconds["inner"] + seconds["hypergradient"]) * (rounds - 1), budget - seconds["total"])
    worthwhile = seconds["compile"] > 0.0 or left >= SECONDS_WORTH_COMPILING[config.inner.rule]
    return "on" if worthwhile and compilation.obstacle(pick_device(config.device)) is None else "off"


def _evaluations(
    config: Config, summary: Mapping[str, Any], run: str, repetitions: int, first: int, before: float, share: float
) -> list[Evaluation]:
    """The lines of a finished round, in order: each repetition had spent `before` seconds, an evaluation takes `share`
    more. Raises ValueError if the round has no such summary."""
    size = config.population.runs // repetitions
    starts, cost = starting_values(config), _cost(config)
    return [
        {
            "repetition": repetition,
            "evaluation": first + place,
            "hyper": {name: values[member] for name, values in starts.items()},
            "step": config.inner.total_steps,
            "gradients": cost * (first + place + 1),
            "seconds": before + share * (place + 1),
            **{name: values[member] for name, values in summary["final"].items()},
            "run": run,
            "member": member,
        }
        for member, (repetition, place) in enumerate((r, p) for r in range(repetitions) for p in range(size))
    ]


def _cost(config: Config) -> float:
    """Gradients of one training."""
    return gradients_per_update(to_dict(config)) * config.inner.total_updates


def searched(config: Config) -> dict[str, tuple[float, float]]:
    """The hyperparameters that have a range to search, in natural values; a ValueError where there is none."""
    ranges = {n: h.sample for n, h in config.space.items() if h.sample != "none" and h.sample[0] < h.sample[1]}
    if not ranges:
        name = next(iter(config.space))
        raise ValueError(
            f"nothing to search: give space.{name}.sample a range, as in -s 'space.{name}.sample=[low,high]'"
        )
    return ranges


def first_seed(config: Config, repetitions: int, first: int) -> int:
    """The seed of member 0 of the round after `first` evaluations of each repetition."""
    return config.seed + repetitions * first


def affordable(config: Config, plan: Plan) -> float:
    """How many evaluations a repetition has, if its seconds hold out."""
    cost = _cost(config)
    total = math.inf if plan.evaluations is None else plan.evaluations
    if plan.gradients is None:
        return total
    if cost > plan.gradients:
        raise ValueError(
            f"a budget of {plan.gradients:g} gradients holds no evaluation, which takes {cost:g}; give more, "
            "or shorten the training (inner.updates)"
        )
    return min(total, plan.gradients // cost)


def _place(line: Evaluation) -> tuple[int, str, int, int]:
    """Orders lines as they are logged, of which one that was lost comes again after later ones."""
    return len(line["run"]), line["run"], line["repetition"], line["evaluation"]


def _spent(lines: Sequence[Evaluation], first: int) -> float:
    """Seconds of a repetition before its evaluation number `first`."""
    return max((line["seconds"] for line in lines if line["evaluation"] < first), default=0.0)
