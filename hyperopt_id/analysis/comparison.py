"""Methods under one budget: what each has found, and when.

A method has P repetitions, and every repetition spends the same budget. Whatever a method trains, the models that it
could hand over are those at the reports of its runs; it does hand over the one with the lowest validation loss. A
repetition without any model that has such a loss has failed: it is counted, and worse than all others.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hyperopt_id.analysis import forms, style
from hyperopt_id.analysis.load import load_reports
from hyperopt_id.analysis.load_search import COSTS, Search, common_metric
from hyperopt_id.analysis.statistics import RESAMPLES, Estimate, estimate, mean
from hyperopt_id.analysis.tables import Table, shown
from hyperopt_id.telemetry.search import incumbents

NOTE = (
    "Test metric of the model with the lowest validation loss, mean and median over repetitions, 95 % bootstrap "
    "intervals (1000 resamples). The mean is over repetitions that found a model; in the median, one without is "
    "worse than all others. Diverged: share of the runs that ended without a finite validation loss."
)
Evaluations = Sequence[Mapping[str, Any]]


def with_reports(directory: Path, search: Search) -> Search:
    """The search with an evaluation at every report of a run, in place of one at the end of it. Runs that were logged
    report by report stay as they are. What a run spent is shared evenly among its steps."""

    @cache
    def reports(run: str) -> list[dict[str, Any]]:
        return load_reports(directory / run)

    def expanded(evaluations: Evaluations) -> Iterator[Mapping[str, Any]]:
        times = Counter((line["run"], line["member"]) for line in evaluations)
        before = dict.fromkeys(COSTS, 0.0)
        for line in evaluations:
            if times[line["run"], line["member"]] > 1:
                yield line
            else:
                for report in reports(line["run"]):
                    share = report["step"] / line["step"]
                    spent = {cost: before[cost] + share * (line[cost] - before[cost]) for cost in COSTS}
                    where = f"the report at step {report['step']} in {directory / line['run']}"
                    yield {**line, **_of_member(report, line["member"], where), **spent}
            before = {cost: line[cost] for cost in COSTS}

    return _renewed(search, [list(expanded(evaluations)) for evaluations in search.evaluations])


def merged(searches: Sequence[Search]) -> Search:
    """The repetitions of several searches by one method; one that has evaluated nothing is a repetition, too."""
    return _renewed(searches[0], [found for search in searches for found in search.evaluations or ((),)])


def thinned(search: Search, steps: int, looks: int) -> Search:
    """The first evaluation of each run in every `looks`-th part of its `steps`: all are looked at equally often,
    however their reports fell."""

    def kept(evaluations: Evaluations) -> Iterator[Mapping[str, Any]]:
        parts: dict[Any, int] = {}
        for line in evaluations:
            run, part = (line["run"], line["member"]), line["step"] * looks // steps
            if part > parts.get(run, 0):
                parts[run] = part
                yield line

    return _renewed(search, [list(kept(evaluations)) for evaluations in search.evaluations])


def within(search: Search, gradients: float | None, seconds: float | None) -> Search:
    """What had been found when the budget was spent; None: no limit."""
    limits = {"gradients": gradients, "seconds": seconds}

    def affordable(line: Mapping[str, Any]) -> bool:
        return all(limit is None or line[cost] <= limit * (1 + 1e-9) for cost, limit in limits.items())

    return _renewed(search, [list(filter(affordable, evaluations)) for evaluations in search.evaluations])


def table(searches: Mapping[str, Search], name: str) -> Table:
    """A row for each method, in the order of what they reach."""
    first, metric = next(iter(searches.values())), common_metric(list(searches.values()))
    rows = [_row(method, search, metric) for method, search in searches.items()]
    rows.sort(key=lambda row: row["median"] if isinstance(row["median"], float) else np.inf)
    classifies = any(search.classifies for search in searches.values())
    note = f"{style.dataset(first.dataset)}, {style.metric(metric, classifies)}. {NOTE}"
    return Table(name, note, rows, lowest=("median",))


def _row(method: str, search: Search, metric: str) -> dict[str, Any]:
    values = search.final(metric)
    middle, average = _ranked_median(values), estimate(values, mean)
    last = [{(line["run"], line["member"]): line for line in found}.values() for found in search.evaluations]
    lost = [line["loss/validation"] is None for found in last for line in found]
    return {
        "method": style.look(method).label,
        "repetitions": len(values),
        "median": middle.value if np.isfinite(middle.value) else None,
        "median, 95 %": _interval(middle),
        "mean": average.value,
        "mean, 95 %": _interval(average),
        "failed": int(np.isnan(values).sum()),
        "runs": len(lost) / len(last),
        "diverged %": 100.0 * sum(lost) / max(1, len(lost)),
        **{cost: sum(found[-1][cost] for found in search.evaluations if found) / len(last) for cost in COSTS},
    }


def _ranked_median(values: np.ndarray) -> Estimate:
    """The median, with what is missing as the largest values of all, and its 95 % bootstrap interval."""
    ranked = np.where(np.isnan(values), np.inf, values)
    drawn = ranked[np.random.default_rng(0).integers(len(ranked), size=(RESAMPLES, len(ranked)))]
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975], method="inverted_cdf")
    return Estimate(float(np.median(ranked)), np.nan, float(low), float(high))


def _interval(found: Estimate) -> str | None:
    ends = [shown(end) if np.isfinite(end) else "∞" for end in (found.low, found.high)]
    return f"{ends[0]} to {ends[1]}" if not np.isnan(found.value) else None


def _of_member(report: Mapping[str, Any], member: int, where: str) -> dict[str, Any]:
    """The numbers of one member of a population; those of a single run are not in lists. Raises ValueError, which
    begins with `where`, if there is no such member."""
    found: dict[str, Any] = {"step": report["step"]}
    for name, value in report.items():
        if "/" not in name or isinstance(value, Mapping):
            continue
        if not forms.values_of_members(value) or (isinstance(value, list) and member >= len(value)):
            raise ValueError(f"{where}: {name} has no number of member {member}")
        number = value[member] if isinstance(value, list) else value
        found[name] = None if number is None or not math.isfinite(number) else number
    return found


def _renewed(search: Search, evaluations: Sequence[Evaluations]) -> Search:
    """The same method with other evaluations, and the incumbents that follow from them."""
    numbered = [[{**line, "repetition": p} for line in found] for p, found in enumerate(evaluations)]
    best = [next(iter(incumbents(found)), {}) for found in numbered]
    return search._replace(evaluations=tuple(map(tuple, numbered)), incumbents=tuple(best))
