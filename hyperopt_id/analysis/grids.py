r"""Experiments over T, the steps of a hyper-update, and K, the terms of the series or the steps differentiated through.

**Accuracy** of hypergradients: for two sets of runs in the same state, one with an approximate and one with the exact
hypergradient \(a_r\) and \(e_r\) of run r in the raw values of all hyperparameters,

\[\frac{\|a_r - e_r\|}{\|e_r\|} \quad\text{and}\quad 1 - \frac{a_r \cdot e_r}{\|a_r\| \|e_r\|}
= \frac{1}{2} \Big\| \frac{a_r}{\|a_r\|} - \frac{e_r}{\|e_r\|} \Big\|^2 .\]

Runs with one seed are in the same state until hyperparameters move: at the first hyper-update, and at all of them where
the meta-optimizer is `none`. The exact hypergradient of neumann with K terms is that through the last K steps, which it
approximates, or that through all T steps.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from hyperopt_id.analysis.collect import Study
from hyperopt_id.analysis.runs import Runs

FEWEST = 3  # cells that make a grid
NEEDS = (
    "neumann and unroll runs with the same seeds at the same (T, K), with the first hyper-update reported "
    "(report.every = 1) or meta.rule = none"
)
FREE = ("inner.steps_per_update", "inner.updates", "hypergradient.terms", "hypergradient.window")
THROUGH_K, THROUGH_T = "K steps", "T steps"
PREFIX = "hypergradient/"
Cells = Mapping[tuple[int, int], Runs]  # by (T, K)


class Accuracy(NamedTuple):
    """Of M hypergradients: relative errors and cosine distances (1 - cosine) [M], and the relative error of each
    hyperparameter's part."""

    errors: np.ndarray
    distances: np.ndarray
    parts: dict[str, np.ndarray]


def sensitivity(study: Study, dataset: str) -> dict[str, Cells]:
    """{engine: cells} for neumann and unroll: the largest set that differs in (T, K) alone, at one number of
    hyper-updates or of steps. Without engines that have no grid."""
    found = {
        engine: _largest(k for k in _candidates(study, dataset, engine) if k.settings.get("meta.rule") != "none")
        for engine in ("neumann", "unroll")
    }
    return {engine: cells for engine, cells in found.items() if len(cells) >= FEWEST}


def accuracies(study: Study, dataset: str) -> dict[str, dict[tuple[int, int], Accuracy]]:
    """{what the exact hypergradients go through: of neumann with K terms, by (T, K <= T)}, of runs in the same states.
    Without references that were not run."""
    approximate, exact = (
        _largest(runs for runs in _candidates(study, dataset, engine) if _same_state(runs, runs))
        for engine in ("neumann", "unroll")
    )
    found: dict[str, dict[tuple[int, int], Accuracy]] = {THROUGH_K: {}, THROUGH_T: {}}
    for (steps, terms), runs in sorted(approximate.items()):
        for reference, cell in ((THROUGH_K, (steps, terms)), (THROUGH_T, (steps, steps))):
            if terms <= steps and cell in exact and (measured := accuracy(runs, exact[cell])) is not None:
                found[reference][steps, terms] = measured
    return {reference: cells for reference, cells in found.items() if cells}


def accuracy(approximate: Runs, exact: Runs) -> Accuracy | None:
    """Of the runs that both have; None where nothing can be compared."""
    others = {identity: member for member, identity in enumerate(exact.identities)}
    pairs = [(m, others[identity]) for m, identity in enumerate(approximate.identities) if identity in others]
    names = [n for n in approximate.curves if n.startswith(PREFIX) and n in exact.curves and n.count("/") == 1]
    steps = _same_state(approximate, exact)
    if not pairs or not names or not steps:
        return None
    a, e = (
        np.stack([runs.curve(name)[members][:, np.searchsorted(runs.steps, steps)] for name in names], axis=-1)
        for runs, members in ((approximate, [m for m, _ in pairs]), (exact, [m for _, m in pairs]))
    )
    a, e = (vectors.reshape(-1, len(names)).astype(np.float64) for vectors in (a, e))
    with np.errstate(all="ignore"):  # a part, or all of an approximation, can be zero; numbers can be huge
        sizes = np.linalg.norm(e, axis=1)
        there = np.isfinite(a).all(axis=1) & np.isfinite(sizes) & (sizes > 0.0)
        a, e, sizes = a[there], e[there], sizes[there]
        ratios = np.where(e == 0.0, np.nan, np.abs(a - e) / np.abs(e))
        turned = a / np.linalg.norm(a, axis=1, keepdims=True) - e / sizes[:, None]
        distances = (turned**2).sum(axis=1) / 2.0
        errors = np.linalg.norm(a - e, axis=1) / sizes
    parts = {name.removeprefix(PREFIX): ratios[:, place] for place, name in enumerate(names)}
    return Accuracy(errors, distances, parts) if there.any() else None


def _candidates(study: Study, dataset: str, engine: str) -> list[Runs]:
    known = [runs for runs in study.of(dataset) if runs.settings.get("hypergradient.engine") == engine]
    return [runs for runs in known if runs.terms is not None and runs.steps_per_update is not None]


def _largest(candidates: Iterable[Runs]) -> Cells:
    """The largest set of runs that have all in common but T and K, and either the number of hyper-updates or that of
    steps."""
    sets: dict[tuple[Any, ...], dict[tuple[int, int], Runs]] = {}
    for runs in candidates:
        steps, updates = runs.steps_per_update or 0, runs.settings.get("inner.updates") or 0
        rest = {key: value for key, value in runs.settings.items() if key not in FREE}
        common = (runs.algorithm, json.dumps(rest, sort_keys=True, default=str))
        for length in (("updates", updates), ("steps", steps * updates)):
            sets.setdefault((*common, length), {})[steps, runs.terms or 0] = runs
    return max(sets.values(), key=lambda cells: (len(cells), sum(map(len, cells.values()))), default={})


def _same_state(left: Runs, right: Runs) -> list[int]:
    """The steps at which runs of both, with one seed, report the hypergradient of one state."""
    reported = all(any(name.startswith(PREFIX) for name in runs.curves) for runs in (left, right))
    common = sorted(set(left.steps.tolist()) & set(right.steps.tolist())) if reported else []
    if all(runs.settings.get("meta.rule") == "none" for runs in (left, right)):
        return common
    return [step for step in common if step == left.steps_per_update == right.steps_per_update]
