"""Which searches are repetitions of one, and which one stands for its method.

Searches by one method with the same settings are repetitions of one, wherever they lie. A repetition is a function of
its seed: one with the seed of another whose trainings start where that one's do repeats it, and does not count. Under a
budget of seconds one of them may have come further, so the starts of either may be a part of the other's.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hyperopt_id.analysis import selection, style
from hyperopt_id.analysis.collect import Study
from hyperopt_id.analysis.load_search import Search

Starts = frozenset[tuple[tuple[str, float], ...]]


class Pool(NamedTuple):
    """The repetitions of all searches with the same settings, as one search, and how many more repeat one of them."""

    search: Search
    repeated: int


def searches(study: Study, dataset: str) -> dict[str, Search]:
    """{algorithm: search}. Of several settings, those with the most repetitions, then with the most evaluations."""
    return {name: pools[0].search for name, pools in _pools(study, dataset).items()}


def remarks(study: Study) -> Iterator[str]:
    """What was counted once or left out, a line each."""
    for dataset in style.datasets_in_order(study.datasets):
        for name, pools in _pools(study, dataset).items():
            label = f"{style.dataset(dataset)}, {style.look(name).label}"
            repeated = sum(pool.repeated for pool in pools)
            if repeated:
                what = "repetition repeats another" if repeated == 1 else "repetitions repeat others"
                yield f"{label}: {repeated} {what} (same settings, seed and starts), counted once"
            if len(pools) > 1:
                shown, *others = _told(pools)
                yield f"{label}: searches with {len(pools)} settings; shown is {shown}; left out: {'; '.join(others)}"


def _pools(study: Study, dataset: str) -> dict[str, list[Pool]]:
    """By algorithm, with the one that is shown first."""
    together: dict[tuple[str, str], list[Search]] = {}
    for search in study.searches:
        if search.dataset == dataset:
            name = style.canonical(search.method, search.algorithm)
            together.setdefault((name, json.dumps(search.settings, sort_keys=True)), []).append(search)
    found: dict[str, list[Pool]] = {}
    for (name, _), alike in together.items():
        found.setdefault(name, []).append(_pooled(alike))
    return {name: sorted(found[name], key=_rank, reverse=True) for name in style.in_order(found)}


def _rank(pool: Pool) -> tuple[int, int]:
    return len(pool.search.incumbents), sum(map(len, pool.search.evaluations))


def _pooled(alike: Sequence[Search]) -> Pool:
    kept: list[tuple[Any, Any]] = []  # (evaluations, incumbent)
    known: list[tuple[int | None, Starts]] = []
    repeated = 0
    for search in alike:
        before = list(known)
        for evaluations, incumbent in zip(search.evaluations, search.incumbents):
            starts = _starts(evaluations)
            if starts and any(search.seed == s and (starts <= others or others <= starts) for s, others in before):
                repeated += 1
                continue
            kept.append((evaluations, incumbent))
            if starts:
                known.append((search.seed, starts))
    evaluations, incumbents = ([pair[place] for pair in kept] for place in (0, 1))
    return Pool(alike[0]._replace(evaluations=tuple(evaluations), incumbents=tuple(incumbents)), repeated)


def _starts(evaluations: Sequence[Mapping[str, Any]]) -> Starts:
    """The hyperparameters that trainings began with, without those that were changed on the way."""
    first: dict[Any, Mapping[str, float]] = {}
    for line in evaluations:
        first.setdefault((line["run"], line["member"]), line["hyper"])
    return frozenset(tuple(sorted(hyper.items())) for hyper in first.values())


def _told(pools: Sequence[Pool]) -> list[str]:
    """What tells each from the others, as "evaluations = 30"."""
    settings = [pool.search.settings for pool in pools]
    names = selection.varying(settings)
    return [", ".join(f"{name} = {_value(of_search.get(name))}" for name in names) for of_search in settings]


def _value(value: Any) -> str:
    return "none" if value is None else str(value)
