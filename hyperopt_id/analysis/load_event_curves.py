"""The points of TensorBoard tags as curves over common steps, by the names that metrics have in `metrics.jsonl`.

A hyperparameter with a tag for each parameter is one curve, what most parameters have; hypergradients in the values of
single parameters are left out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hyperopt_id.analysis.load import SHARES, middle
from hyperopt_id.analysis.load_events import Series, read_events

GROUPS = {"unnormalised_loss": "unnormalized_loss", "hyperparameter": "hyper"}


def event_curves(files: Sequence[Path], restarts: bool = False) -> dict[str, np.ndarray]:
    """{"steps": [N], "seconds": [N], metric: [N]}, NaN where nothing was written. With `restarts`, each file counts
    from 0 again, and goes on from the last step before it."""
    return _arrays(_restarted(files) if restarts else read_events(files))


def _restarted(files: Sequence[Path]) -> dict[str, Series]:
    joined: dict[str, list[Series]] = {}
    offset = 0
    for file in files:
        series = read_events([file])
        for tag, (steps, times, values) in series.items():
            joined.setdefault(tag, []).append(Series(steps + offset, times, values))
        offset += max((int(steps.max()) for steps, _, _ in series.values()), default=0)
    return {tag: Series(*(np.concatenate(columns) for columns in zip(*parts))) for tag, parts in joined.items()}


def _arrays(series: Mapping[str, Series]) -> dict[str, np.ndarray]:
    """Of what was logged twice for a step, the later counts."""
    series = {tag: found for tag, found in series.items() if "/" in tag and not _is_of_parameters(tag)}
    steps = np.unique(np.concatenate([found.steps for found in series.values()] or [np.empty(0, np.int64)]))
    times = np.full(len(steps), np.nan)
    curves: dict[str, list[np.ndarray]] = {}
    for tag, found in series.items():
        places = np.searchsorted(steps, found.steps)
        curve = np.full(len(steps), np.nan, dtype=np.float32)
        curve[places] = np.where(np.isfinite(found.values), found.values, np.nan)
        times[places] = found.times
        curves.setdefault(_metric(tag), []).append(curve)
    arrays = {name: alike[0] if len(alike) == 1 else middle(alike).astype(np.float32) for name, alike in curves.items()}
    return {"steps": steps, "seconds": _elapsed(times), **arrays}


def _elapsed(times: np.ndarray) -> np.ndarray:
    """Seconds since the beginning, without the pause before a run was continued: no step takes as long as 100 usual
    ones and more than a minute."""
    gaps = np.diff(times, prepend=times[:1])
    usual = np.median(gaps[1:]) if len(gaps) > 1 else 0.0
    return np.cumsum(np.where((gaps < 0.0) | (gaps > max(60.0, 100.0 * usual)), usual, gaps))


def _metric(tag: str) -> str:
    """`Loss/Training` -> `loss/train`, the name in `metrics.jsonl`; a hyperparameter's without the parameter's."""
    head, name, *rest = tag.lower().split("/")
    rest = [part for part in rest if head != "hyperparameter" or part in SHARES]
    return "/".join([GROUPS.get(head, head), "train" if name == "training" else name, *rest])


def _is_of_parameters(tag: str) -> bool:
    """Whether it is a hypergradient in the value of a single parameter, which is not kept."""
    return tag.startswith("Hypergradient/") and tag.count("/") > 1
