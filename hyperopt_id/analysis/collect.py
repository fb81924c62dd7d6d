"""Everything that lies below some folders: runs of each kind, searches, and what is said about them.

A folder is a search directory if it holds `search.jsonl`, a run directory if it holds `metrics.jsonl`, and an event run
if it holds `config.json` and, itself or in a sub-run for each member, TensorBoard events. Nothing below one of these is
a run of its own. The models of a search were chosen by it and are no independent starts, whoever has searched.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from hyperopt_id.analysis.comparison import with_reports
from hyperopt_id.analysis.load import lacks_config, load_run
from hyperopt_id.analysis.load_event_runs import is_of_a_search, load_event_run, members
from hyperopt_id.analysis.load_events import event_files
from hyperopt_id.analysis.load_search import Search, load_search
from hyperopt_id.analysis.names import printable
from hyperopt_id.analysis.runs import DATA, ON_A_BATCH, VALIDATED, Runs, group
from hyperopt_id.telemetry.directory import may_hold_runs

UNFINISHED = "not finished, left out"
UNREAD = "no config.json beside config.yaml, named after folders and without what is selected"
PARTIAL = "the runs of a search are not there, so that only what it logged counts"
LEFT_OUT = {  # by kind of directory
    "chosen": "runs that searches by the published code have started, no independent starts, left out",
    "quantiles": "no metrics.jsonl, and TensorBoard has quantiles over the members alone, left out",
}
BATCHES = "their Loss/Validation is of a batch (no full_batch_validation_evaluations), so nothing is selected of them"
Found = dict[str, list[Path]]  # directories, by what is to be said of them


class Study(NamedTuple):
    """Runs of each kind, finished searches, and remarks for the user, a line each."""

    kinds: tuple[Runs, ...]
    searches: tuple[Search, ...]
    remarks: tuple[str, ...]

    @property
    def datasets(self) -> list[str]:
        return sorted({found.dataset for found in (*self.kinds, *self.searches)})

    def of(self, dataset: str, algorithm: str | None = None) -> list[Runs]:
        """All kinds of runs on a data set, of one algorithm or of all."""
        return [k for k in self.kinds if k.dataset == dataset and algorithm in (None, k.algorithm)]


def collect(folders: Sequence[Path], cache: Path | None = None, show: bool = False) -> Study:
    """Read all that lies below the folders; `show` a progress bar. What did not come to its end or is damaged is left
    out, with a remark. Raises ValueError if a folder is missing or holds nothing."""
    found = list(dict.fromkeys(place for folder in folders for place in _places(folder)))
    pieces: list[Runs] = []
    searches: list[Search] = []
    said: Found = {}
    damaged: list[str] = []
    for kind, directory in tqdm(found, desc="reading", unit="run", disable=not show, leave=False):
        try:
            read = _read(kind, directory, cache, said)
        except ValueError as error:
            damaged.append(f"left out: {error}")
            continue
        if isinstance(read, Search):
            searches.append(read)
        elif read is not None:
            pieces.append(read)
    namesakes = _namesakes([*pieces, *searches])
    pieces = [replace(runs, dataset=_own_name(runs, namesakes)) for runs in pieces]
    searches = [search._replace(dataset=_own_name(search, namesakes)) for search in searches]
    kinds = group(pieces)
    apart = "and are told apart by the beginning of their digest"
    damaged += [f"{count} different data sets are called {name}, {apart}" for name, count in namesakes.items()]
    remarks = [f"{what}: {_some(directories)}" for what, directories in said.items()]
    remarks = [printable(remark, None) for remark in (*damaged, *remarks, *_twice(pieces, kinds))]
    return Study(tuple(kinds), tuple(searches), tuple(remarks))


def _read(kind: str, directory: Path, cache: Path | None, said: Found) -> Runs | Search | None:
    """What is in a directory; None for what is left out, which is then in `said`."""
    if kind == "events" and is_of_a_search(directory):
        kind = "chosen"
    if kind in LEFT_OUT:
        said.setdefault(LEFT_OUT[kind], []).append(directory)
        return None
    if kind == "search":
        read = load_search(directory)
        read = _at_reports(directory, read, said) if read is not None else None
    else:
        read = _runs(kind, directory, cache, said)
    if read is None:
        said.setdefault(UNFINISHED, []).append(directory)
    return read


def _places(folder: Path) -> Iterator[tuple[str, Path]]:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; name the folders that hold the runs")
    empty, seen = True, set()
    for path, folders, files in os.walk(folder, followlinks=True):
        place = os.stat(path)
        if (place.st_dev, place.st_ino) in seen:  # links can lead in circles
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        kind = _kind(Path(path), folders, files)
        if kind is not None:
            empty = False
            yield kind, Path(path)
        folders[:] = [] if kind is not None else sorted(name for name in folders if may_hold_runs(name))
    if empty:
        raise ValueError(
            f"{folder} holds no runs: nothing below it has metrics.jsonl, search.jsonl, or TensorBoard events beside a "
            "config.json"
        )


def _kind(path: Path, folders: Iterable[str], files: Iterable[str]) -> str | None:
    if "search.jsonl" in files:
        return "search"
    if "metrics.jsonl" in files:
        return "run"
    if "config.json" not in files:
        return None
    if event_files(path) or members(path):
        return "events"
    summarized = any(event_files(path / name) for name in folders if name.startswith("members_"))
    return "quantiles" if summarized else None


def _runs(kind: str, directory: Path, cache: Path | None, said: Found) -> Runs | None:
    if kind == "run":
        runs, what = load_run(directory) if (directory / "summary.json").exists() else None, UNREAD
        lacking = runs is not None and lacks_config(directory)
    else:
        runs, what = load_event_run(directory, cache), BATCHES
        lacking = runs is not None and runs.settings.get(VALIDATED) == ON_A_BATCH
    if lacking:
        said.setdefault(what, []).append(directory)
    return runs


def _at_reports(directory: Path, search: Search, said: Found) -> Search:
    """The search with an evaluation at every report, as methods that look at their runs on the way have it; as it is,
    and said to be so, where its runs are not there."""
    runs = {line["run"] for evaluations in search.evaluations for line in evaluations}
    if all((directory / run / "metrics.jsonl").exists() for run in runs):
        return with_reports(directory, search)
    said.setdefault(PARTIAL, []).append(directory)
    return search


def _namesakes(found: Sequence[Runs | Search]) -> dict[str, int]:
    """{name of a data set: how many there are of that name}, where there are several."""
    digests: dict[str, set[str]] = {}
    for one in found:
        if DATA in one.settings:
            digests.setdefault(one.dataset, set()).add(one.settings[DATA])
    return {name: len(of_name) for name, of_name in digests.items() if len(of_name) > 1}


def _own_name(one: Runs | Search, namesakes: Mapping[str, int]) -> str:
    """The name of the data set, with the beginning of its digest where another one has that name, too."""
    if one.dataset not in namesakes or DATA not in one.settings:
        return one.dataset
    without = one.dataset.removesuffix("_bn")
    return f"{without}-{printable(one.settings[DATA])[:8]}{one.dataset.removeprefix(without)}"


def _twice(pieces: Sequence[Runs], kinds: Sequence[Runs]) -> Iterator[str]:
    twice = sum(map(len, pieces)) - sum(map(len, kinds))
    if twice:
        yield f"{twice} runs are there more than once (same config, seed and start) and are counted once"


def _some(directories: Sequence[Path]) -> str:
    return f"{directories[0]}" + (f" and {len(directories) - 1} more" if len(directories) > 1 else "")
