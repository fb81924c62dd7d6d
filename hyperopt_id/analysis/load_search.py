"""Search directories: `search.jsonl` and `summary.json` of methods that train one model after another.

Every repetition of a search has an incumbent after each evaluation: the model with the lowest validation loss so far.
`best_so_far` is a test metric of the incumbent against what the repetition has spent.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hyperopt_id import files
from hyperopt_id.analysis import forms
from hyperopt_id.analysis.load import REPAIR, dataset_of, load_config, with_digests
from hyperopt_id.analysis.names import printable
from hyperopt_id.analysis.runs import OF_A_RUN, TEST_METRICS, flatten

COSTS = ("gradients", "seconds")
OF_ONE_SEARCH = ("repetitions", "compiled")  # in its settings: how many there are, and how they were computed


class Search(NamedTuple):
    """A finished search: `evaluations[p]` are the records of repetition p in their order, `incumbents[p]` what it ended
    with. `algorithm` is what trained the models, where their configs say it. Searches with the same `settings` (of the
    search, and of all its trainings) differ in what follows from the `seed`, and in nothing else."""

    dataset: str
    method: str
    algorithm: str
    evaluations: tuple[tuple[Mapping[str, Any], ...], ...]
    incumbents: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any] = {}
    seed: int | None = None

    @property
    def metric(self) -> str:
        """The test metric that these models are judged by."""
        there = {key for found in self.incumbents for key, value in found.items() if value is not None}
        return next((name for name in TEST_METRICS if name in there), TEST_METRICS[-1])

    @property
    def classifies(self) -> bool:
        return any(found.get("accuracy/test") is not None for found in self.incumbents)

    def final(self, key: str) -> np.ndarray:
        """A number of each repetition's incumbent [P]; NaN where there is none."""
        return np.array([found.get(key) for found in self.incumbents], dtype=np.float64)


class Steps(NamedTuple):
    """A step function: `values[i]` from `costs[i]` on, and nothing before the first."""

    costs: np.ndarray
    values: np.ndarray


def load_search(directory: str | Path) -> Search | None:
    """The search in a directory, None if it is not finished. Raises ValueError if a file of it is damaged, and names
    the file."""
    directory = Path(directory)
    if not (directory / "summary.json").exists():
        return None
    summary = forms.read_json(directory / "summary.json", forms.SEARCH, f"{REPAIR}, and start the search again")
    found = list(forms.read_lines(directory / "search.jsonl", forms.EVALUATION))
    for line, record in enumerate(found, start=1):
        files.check_form(record, forms.numbers_of_a_model, f"line {line} of {directory / 'search.jsonl'}")
    repetitions = sorted({record["repetition"] for record in found})
    evaluations = tuple(tuple(r for r in found if r["repetition"] == number) for number in repetitions)
    config = _config(directory, found)
    return Search(
        dataset_of(config) or printable(directory.resolve().parent.name),
        printable(summary["method"]),
        printable(config.get("algorithm", "")),
        evaluations,
        tuple(summary["repetitions"]),
        _settings(directory, config),
        config.get("seed"),
    )


def common_metric(searches: Iterable[Search]) -> str:
    """The test metric that several searches are judged by, of which some may have found nothing."""
    known = {search.metric for search in searches}
    return next((name for name in TEST_METRICS if name in known), TEST_METRICS[-1])


def best_so_far(search: Search, metric: str, cost: str = "seconds") -> list[Steps]:
    """The incumbent's test metric against `gradients` or `seconds`, of each repetition. A model without a validation
    loss is never the incumbent."""
    columns = ("loss/validation", metric, cost)
    return [
        incumbents(*(np.array([record.get(name) for record in evaluations], dtype=np.float64) for name in columns))
        for evaluations in search.evaluations
    ]


def incumbents(losses: np.ndarray, values: np.ndarray, costs: np.ndarray) -> Steps:
    """The values [N] of those with a lower validation loss [N] than all before."""
    lowest = np.minimum.accumulate(np.where(np.isnan(losses), np.inf, losses))
    better = lowest < np.concatenate([[np.inf], lowest[:-1]])
    return Steps(costs[better], values[better])


def on_grid(curves: Sequence[Steps], grid: np.ndarray) -> np.ndarray:
    """[P, G]: the step functions at the costs of a grid, NaN before their beginning."""
    rows = []
    for costs, values in curves:
        places = np.searchsorted(costs, grid, side="right") - 1
        rows.append(np.where(places >= 0, values[np.maximum(places, 0)], np.nan) if len(values) else grid * np.nan)
    return np.array(rows)


def spent(search: Search, cost: str) -> float:
    """The most that a repetition had spent when it evaluated its last model; 0 where nothing was evaluated."""
    known = [line.get(cost) for evaluations in search.evaluations for line in evaluations]
    return max((float(value) for value in known if value is not None), default=0.0)


def _config(directory: Path, evaluations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The config of the search. Where only its runs have one, that of the first; empty where they are not there. Where
    runs were evaluated on the way, a scheduler may have ended that one early, or given it the seed of another."""
    if (directory / "config.json").exists():
        return load_config(directory)
    first = min(directory.glob("runs/*/config.json"), default=None)
    config = load_config(first.parent) if first is not None else {}
    if len({(line["run"], line["member"]) for line in evaluations}) == len(evaluations):
        return config
    inner = {**config.get("inner", {}), "updates": None}
    return {**config, "inner": inner, "seed": None}


def _settings(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """All but what tells repetitions apart. The reports, unlike those of a run, are where a search looks."""
    path = directory / "search.json"
    settings = forms.read_json(path, dict, REPAIR) if path.exists() else {}
    of_search = {k: v for k, v in settings.items() if k not in OF_ONE_SEARCH}
    of_training = {k: v for k, v in config.items() if k == "report" or k not in OF_A_RUN}
    return with_digests({**of_search, **flatten(of_training)}, _with_identity(directory))


def _with_identity(directory: Path) -> Path:
    """The directory that says what the data of a search are: its own, or that of a run."""
    first = min(directory.glob("runs/*/identity.json"), default=directory / "identity.json")
    return directory if (directory / "identity.json").exists() else first.parent
