"""Which runs belong together in a table or figure, in the order in which they are shown."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hyperopt_id.analysis import style
from hyperopt_id.analysis.collect import Study
from hyperopt_id.analysis.runs import GIVEN, GROUP, VALIDATED, Runs, Timing
from hyperopt_id.analysis.statistics import shares_of_batches

Kinds = dict[str, Runs]  # by algorithm
STUDY = (10, 5)  # (T, K) of arXiv 2110.10461
BATCHED, BATCH = "Random_3Batched", 3
VANILLA = ("Random", "Random_TrainingSetOnly", "Random_Validation")  # nothing is tuned
LEARNED = ("Ours_LR", "Ours_LR_Momentum", "DiffThroughOpt")  # their learning rate and weight decay are single numbers
RIVALS = ("Random", "Random_Validation", "Ours_LR_Momentum", "DiffThroughOpt")  # of the long-horizon variants
FRACTION, COMPILED = "task.validation_fraction", "inner.compile"
OF_AN_ALGORITHM = (  # settings that algorithms which are compared need not share
    *("task.train_on", "inner.steps_per_update", "inner.updates", "inner.reset", "hypergradient", "meta"),
    *(GROUP, VALIDATED),
)
VARIED = {  # what experiments vary, and how it is called
    "inner.steps_per_update": "T",
    "inner.updates": "hyper-updates",
    FRACTION: "validation fraction",
    COMPILED: "compile",
    "meta.lr": "meta lr",
    "meta.rule": "meta rule",
    "hypergradient.curvature.name": "curvature",
    "source": "from",
}
TERMS = ("hypergradient.terms", "hypergradient.window")


def usual(study: Study, dataset: str) -> Kinds:
    """One kind for every algorithm, and Random (3-batched), made of the runs of Random that validate. Where there are
    several kinds, it is the one in the setting that most runs on the data set share; then that with the smallest
    validation fraction, of the group with the most runs in that setting, with T and K of the study, with the most
    runs."""
    return _in_order(_preferred(study.of(dataset)))


def by_dataset(study: Study) -> Iterator[tuple[str, Kinds]]:
    """What is shown of every data set: without long-horizon variants, which are shown with their rivals."""
    for dataset in style.datasets_in_order(study.datasets):
        kinds = {n: runs for n, runs in usual(study, dataset).items() if n not in style.LONG_HORIZON}
        if kinds:
            yield dataset, kinds


def drawn(kinds: Kinds) -> Kinds:
    """Without the runs of Random that validate, where batches of them and Random itself are there."""
    hidden = "Random_Validation" if BATCHED in kinds and "Random" in kinds else None
    return {name: runs for name, runs in kinds.items() if name != hidden}


def timed(study: Study, dataset: str) -> Kinds:
    """Kinds to compare by their time: those that `measured` holds of, if there are vanilla ones and others among
    them; else all, whose times are no measurement."""
    kinds = [runs for runs in study.of(dataset) if runs.cost.get("total") and runs.algorithm not in style.LONG_HORIZON]
    clean = [runs for runs in kinds if measured(runs)]
    names = {runs.algorithm for runs in clean}
    found = _preferred(clean if names & {*VANILLA} and len(names) > 1 else kinds)
    return {name: runs for name, runs in _in_order(found).items() if name != BATCHED}


def measured(runs: Runs) -> bool:
    """Whether the times of these runs measure their method: not compiled, and some trained alone."""
    return runs.settings.get(COMPILED) == "off" and bool(alone(runs))


def alone(runs: Runs) -> tuple[Timing, ...]:
    """What the runs took that trained in a run directory of their own."""
    return tuple(timing for timing in runs.timings if timing.runs == 1)


def long_horizon(study: Study, dataset: str) -> dict[str, Kinds]:
    """{variant: itself and its rivals}, those that trained as long as one of its trainings, where there are any."""
    kinds = study.of(dataset)
    variants = {n: runs for n, runs in _preferred(kinds).items() if n in style.LONG_HORIZON}
    found = {}
    for name in style.in_order(variants):
        rivals = [runs for runs in kinds if runs.algorithm in RIVALS]
        fair = [runs for runs in rivals if runs.length == variants[name].length]
        found[name] = _in_order({**drawn(_preferred(fair or rivals)), name: variants[name]})
    return found


def landscape(study: Study, dataset: str) -> tuple[Runs, Runs] | None:
    """(runs that keep their learning rate and weight decay, runs that learn both), where nothing else varies among the
    starts: of the first the most, of the second those of the same group. None if the experiment was not made."""
    known = [runs for runs in study.of(dataset) if {"lr", "weight_decay"} <= set(runs.starts) and _is_plane(runs)]
    kept = [runs for runs in known if runs.algorithm in VANILLA and (runs.final(runs.metric) > 0.0).any()]
    if not kept:
        return None
    ground = max(kept, key=len)
    learned = [runs for runs in known if runs.algorithm in LEARNED and runs.has("hyper/weight_decay")]
    learned = [runs for runs in learned if _surroundings(runs) == _surroundings(ground)]
    if not learned:
        return None
    return ground, max(learned, key=lambda runs: (-LEARNED.index(runs.algorithm), len(runs)))


def _surroundings(runs: Runs) -> str:
    """What runs have in common that can be drawn in one plane of learning rate and weight decay."""
    common = {k: v for k, v in runs.settings.items() if not _is_of_an_algorithm(k) and not k.startswith("space.")}
    common.pop(FRACTION, None)
    fixed = {name: float(values[0]) for name, values in runs.starts.items() if name not in ("lr", "weight_decay")}
    return json.dumps([runs.settings.get(GROUP), common, fixed], sort_keys=True, default=str)


def _is_plane(runs: Runs) -> bool:
    """Whether the starts differ in learning rate and weight decay alone."""
    others = [values for name, values in runs.starts.items() if name not in ("lr", "weight_decay")]
    fixed = all(np.ptp(values) == 0.0 for values in others)
    return fixed and runs.settings.get("space.momentum.start", GIVEN) == GIVEN


def batch_norm(study: Study) -> list[str]:
    """Data sets that there are runs of with and without batch normalization, by the name without."""
    there = {runs.dataset for runs in study.kinds}
    return [name for name in style.datasets_in_order(there) if f"{name}_bn" in there]


def fractions(study: Study, dataset: str) -> dict[str, Kinds]:
    """{validation fraction: kinds} of algorithms with several, in ascending order; empty where there are none."""
    by_fraction: dict[float | None, Kinds] = {}
    for fraction in {runs.settings.get(FRACTION) for runs in study.of(dataset)}:
        of_fraction = [runs for runs in study.of(dataset) if runs.settings.get(FRACTION) == fraction]
        by_fraction[fraction] = {n: runs for n, runs in _preferred(of_fraction).items() if n != BATCHED}
    counts = Counter(name for kinds in by_fraction.values() for name in kinds)
    several = {f: {n: r for n, r in kinds.items() if counts[n] > 1} for f, kinds in by_fraction.items()}
    return {_value(f): _in_order(several[f]) for f in sorted(several, key=lambda f: f or 0.0) if several[f]}


def differences(runs: Runs, kinds: Iterable[Runs]) -> str:
    """What tells these runs from others of one algorithm, as "T = 5, K = 2"."""
    settings = _with_short_groups([kind.settings for kind in (*kinds, runs)])
    varied = varying(settings)
    called = {name: VARIED.get(name, name.removeprefix("space.").replace(".start", " from")) for name in varied}
    told = [f"{called[name]} = {_value(settings[-1].get(name))}" for name in varied if name not in TERMS]
    if any(name in TERMS for name in varied):
        told.append(f"K = {_value(runs.terms)}")
    return ", ".join(told)


def _with_short_groups(settings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """With as much of the path of a group as tells it from the others."""
    groups = {of_kind[GROUP]: Path(of_kind[GROUP]) for of_kind in settings if GROUP in of_kind}
    if not groups:
        return list(settings)
    above = os.path.commonpath([path.parent for path in groups.values()])
    short = {group: str(path.relative_to(above)) for group, path in groups.items()}
    return [{**s, GROUP: short[s[GROUP]]} if GROUP in s else s for s in settings]


def varying(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The settings that are not the same everywhere."""
    settings = list(settings)
    names = dict.fromkeys(name for of_kind in settings for name in of_kind)
    return [name for name in names if len({str(of_kind.get(name)) for of_kind in settings}) > 1]


def remarks(study: Study) -> Iterator[str]:
    """What a reader should know about the choices made here, a line each: which of several settings stand for an
    algorithm in tables and curves, and where what is compared is not alike."""
    for dataset in style.datasets_in_order(study.datasets):
        for algorithm, runs in usual(study, dataset).items():
            kinds = study.of(dataset, algorithm)
            if len(kinds) > 1:
                label = f"{style.dataset(dataset)}, {style.look(algorithm).label}"
                yield f"{label}: {len(kinds)} settings; shown is {differences(runs, kinds)} (table variants has all)"
        for name, kinds in long_horizon(study, dataset).items():
            lengths = {runs.length for runs in kinds.values()} - {kinds[name].length}
            if lengths:
                others = " and ".join(map(str, sorted(lengths)))
                label = f"{style.dataset(dataset)}, {style.look(name).label}"
                yield f"{label}: no rival trained for its {kinds[name].length} steps; compared are runs of {others}"


def _preferred(kinds: Iterable[Runs]) -> Kinds:
    kinds = list(kinds)
    settings = [_setting(runs) for runs in kinds]
    shared, grouped = Counter(), Counter()
    for runs, setting in zip(kinds, settings):
        shared[setting] += len(runs)
        grouped[setting, runs.settings.get(GROUP)] += len(runs)
    chosen: dict[str, tuple[tuple, Runs]] = {}
    for runs, setting in zip(kinds, settings):
        fraction = runs.settings.get(FRACTION) or 0.0  # None: the standard split
        of_group = grouped[setting, runs.settings.get(GROUP)]
        rank = (shared[setting], -fraction, of_group, (runs.steps_per_update, runs.terms) == STUDY, len(runs))
        if runs.algorithm not in chosen or rank > chosen[runs.algorithm][0]:
            chosen[runs.algorithm] = rank, runs
    found = {name: runs for name, (_, runs) in chosen.items()}
    validated = found.get("Random_Validation")
    if validated is not None and len(validated) >= BATCH and validated.validates:
        found[BATCHED] = batched(validated)
    return found


def batched(runs: Runs) -> Runs:
    """Runs as they come out where one of each three, that with the lowest final validation loss, is kept."""
    return replace(runs, algorithm=BATCHED, weights=shares_of_batches(runs.validation, BATCH))


def _setting(runs: Runs) -> str:
    """What algorithms that are compared have in common."""
    common = {k: v for k, v in runs.settings.items() if not _is_of_an_algorithm(k)}
    return json.dumps([runs.length, common], sort_keys=True, default=str)


def _is_of_an_algorithm(key: str) -> bool:
    own = key.startswith("space.") and not key.endswith(".start")
    return own or any(f"{key}.".startswith(f"{name}.") for name in OF_AN_ALGORITHM)


def _in_order(kinds: Kinds) -> Kinds:
    return {name: kinds[name] for name in style.in_order(kinds)}


def _value(value: object) -> str:
    return "standard" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
