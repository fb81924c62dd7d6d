"""Commands that train more than once, and what differs between what two of them have left."""

import csv
import ctypes
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests"), str(ROOT / "tests" / "baselines")]

import compare
import parallel_exec
import run_all
from experiments import Experiment, Part
from short_runs import TINY, config, into, reports, summary
from short_searches import lines, timeless

from baselines import arguments, asha, bayesopt, pbt, random_search
from hyperopt_id import cli, files
from hyperopt_id.kernels import compiler


class Kind(NamedTuple):
    """A command that works in a folder: `start(folder)` runs it from the beginning or goes on, and returns its exit
    status; `difference(folder, whole)` is what differs from an undisturbed one. `ray`: whether it has Ray workers;
    `alone`: whether nothing that it has started goes on for long when it has been killed."""

    start: Callable[[Path], int]
    difference: Callable[[Path, Path], str | None]
    weight: int
    ray: bool = False
    alone: bool = True


def _search(run: Callable[..., Any], options: list[str], folder: Path) -> int:
    directory = folder / "search"
    begun = ["--resume"] if (directory / "config.yaml").is_file() else []
    return arguments.main(run, [*config("digits"), *into(directory), *begun, *options])


def _same_log(folder: Path, whole: Path) -> str | None:
    """Of searches in rounds."""
    one, other = folder / "search", whole / "search"
    if timeless(lines(one)) != timeless(lines(other)):
        return "search.jsonl differs"
    ends = [timeless(json.loads((directory / "summary.json").read_text())) for directory in (one, other)]
    return None if ends[0] == ends[1] else "summary.json differs"


def _same_models(folder: Path, whole: Path) -> str | None:
    """Of trials that come in any order."""
    found = [[_model(line) for line in lines(place / "search")] for place in (folder, whole)]
    if sorted(found[0], key=str) != sorted(found[1], key=str):
        return f"{len(found[0])} models instead of {len(found[1])}, or other ones"
    ends = [json.loads((place / "search" / "summary.json").read_text())["repetitions"] for place in (folder, whole)]
    if [_model(line) for line in ends[0]] != [_model(line) for line in ends[1]]:
        return "the best model differs"
    for run in (whole / "search" / "runs").iterdir():
        if (text := _different_run(folder / "search" / "runs" / run.name, run)) is not None:
            return text
    return None


def _model(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("evaluation", "gradients", "seconds")}


def _whole_population(folder: Path, whole: Path) -> str | None:
    """PBT may take another course: its log and its runs have to agree with each other."""
    found = lines(folder / "search")
    if len({(line["run"], line["explored"], line["step"]) for line in found}) != len(found):
        return "an evaluation is logged twice"
    if [line["evaluation"] for line in found] != list(range(len(found))):
        return "an evaluation is missing"
    logged = {(line["step"], line["loss/validation"]) for line in found}
    for run in (whole / "search" / "runs").iterdir():
        told = [(line["step"], line["loss/validation"]) for line in reports(folder / "search" / "runs" / run.name)]
        if [step for step, _ in told] != [line["step"] for line in reports(run)] or not logged.issuperset(told):
            return f"{run.name} tells of {told}"
    (best,) = json.loads((folder / "search" / "summary.json").read_text())["repetitions"]
    losses = [line["loss/validation"] for line in found if line["loss/validation"] is not None]
    return None if best["loss/validation"] == min(losses) else "the best model is another one"


def _different_run(one: Path, other: Path) -> str | None:
    told = [[{k: v for k, v in line.items() if k != "time"} for line in reports(run)] for run in (one, other)]
    if told[0] != told[1]:
        return f"reports of {one.name} differ"
    return None if timeless(summary(one)) == timeless(summary(other)) else f"summary of {one.name} differs"


def _replay(folder: Path) -> int:
    """Of a search that is made first, once."""
    source = folder.parent / "source"
    if not (source / "search" / "summary.json").is_file():
        source.mkdir(exist_ok=True)
        _search(random_search.run, ["--trials", "2", "-s", *TINY], source)
    again = ["--resume"] if (folder / "replay" / "config.yaml").is_file() else []
    return cli.replay([str(source / "search"), *into(folder / "replay"), *again, "--stretch", "5", *REPLAYED])


def _parallel(folder: Path) -> int:
    given = ["--algorithms", "Ours_LR", "--repetitions", "4", "--chunk", "2", "--workers", "2", "--progress", "none"]
    return parallel_exec.main([*config("digits"), "-l", str(folder), "-g", "group", *given, "-s", *TINY[:3], *MANY])


def _same_chunks(folder: Path, whole: Path) -> str | None:
    for run in (whole / "group").iterdir():
        if run.is_dir() and (text := _different_run(folder / "group" / run.name, run)) is not None:
            return text
    return None


def _build(folder: Path) -> int:
    """A kernel of two functions, compiled into a cache in the folder."""
    source = folder.parent / "tiny.cpp"
    if not source.exists():
        text = "".join(f'extern "C" int f{number}() {{ return {number}; }}\n' for number in range(2000))
        files.replace(source, lambda file: file.write(text.encode()))
    os.environ["HYPEROPT_ID_CACHE"] = str(folder / "cache")
    library = compiler.load(source, compiler.find_compiler("CXX", ("c++", "g++", "clang++")), compiler.CXX_FLAGS)
    return 0 if isinstance(library, ctypes.CDLL) and library.f1999() == 1999 else 1


def _same_library(folder: Path, whole: Path) -> str | None:
    names = [sorted(path.name for path in (place / "cache").glob("*.so")) for place in (folder, whole)]
    return None if names[0] == names[1] else f"{names[0]} instead of {names[1]}"


def _compare(folder: Path) -> int:
    given = ["--methods", "Random", "Ours_LR", "Prodigy", "--seeds", "2", "--budget-gradients", "130"]
    short = ["inner={steps: 40, compile: off}", *TINY[:2], "threads=1"]
    return compare.main([*config("digits"), "-s", *short, "--progress", "none", *given, "--out", str(folder / "out")])


def _same_comparison(folder: Path, whole: Path) -> str | None:
    for log in (whole / "out").glob("*/*/search.jsonl"):
        if timeless(lines(log.parent)) != timeless(lines(folder / log.parent.relative_to(whole))):
            return f"{log.relative_to(whole)} differs"
    tables = []
    for place in (folder, whole):
        with (place / "out" / "comparison.csv").open(newline="") as file:
            tables.append([{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(file)])
    return None if tables[0] == tables[1] else "comparison.csv differs"


def _run_all(folder: Path) -> int:
    """Two experiments of two searches, each by a command of its own."""
    settings, algorithms = (*TINY, "inner.updates=20"), ("Random_Validation", "Random_TrainingSetOnly")
    both, one = (
        Part(("digits",), names, 2, (), settings, "random_search", {"trials": 2})
        for names in (algorithms, algorithms[:1])
    )
    run_all.EXPERIMENTS = (Experiment("one", "", "", (both,)), Experiment("two", "", "", (one,)))
    return run_all.main(["-l", str(folder), "--workers", "1"])


def _same_experiments(folder: Path, whole: Path) -> str | None:
    for log in whole.glob("*/*/search.jsonl"):
        if timeless(lines(log.parent)) != timeless(lines(folder / log.parent.relative_to(whole))):
            return f"{log.relative_to(whole)} differs"
    missing = [name for name in ("one", "two") if not (folder / name / "finished.json").is_file()]
    return f"{missing} is not finished" if missing else None


REPLAYED = ["-s", "report.checkpoint_every=1", "log.progress=none"]
MANY = ["inner.updates=60", "report.every=10"]
ROUNDS = ["-s", *TINY, "inner.updates=20"]
TRIALS = ["--workers", "2", "-s", *TINY, "report.every=2"]
KINDS = {
    "random search": Kind(
        partial(_search, random_search.run, ["--trials", "4", "--repetitions", "2", *ROUNDS]), _same_log, 5
    ),
    "bayesopt": Kind(
        partial(_search, bayesopt.run, ["--evaluations", "4", "--random", "2", "--repetitions", "2", *ROUNDS]),
        _same_log,
        5,
    ),
    "asha": Kind(  # none ends early: whatever their order, all trials are the same
        partial(_search, asha.run, ["--trials", "4", "--grace", "60", *TRIALS, "inner.updates=20"]),
        _same_models,
        2,
        ray=True,
    ),
    "pbt": Kind(
        partial(_search, pbt.run, ["--population", "4", "--interval", "6", *TRIALS, "inner.updates=12"]),
        _whole_population,
        1,
        ray=True,
    ),
    "replay": Kind(_replay, lambda one, other: _different_run(one / "replay", other / "replay"), 5),
    "parallel": Kind(_parallel, _same_chunks, 1, ray=True),
    "compare": Kind(_compare, _same_comparison, 2),
    "run_all": Kind(_run_all, _same_experiments, 1, alone=False),
    "kernel build": Kind(_build, _same_library, 4),
}
