"""What is replayed: one member of a finished run, or the best model of a finished search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hyperopt_id.config import load
from hyperopt_id.config_schema import Config
from hyperopt_id.files import check_form, read_json_file
from hyperopt_id.telemetry.search import is_below


class Source(NamedTuple):
    """The run that is replayed, with the validation loss of that member, and the search that has found it, if any."""

    directory: Path
    member: int
    config: Config
    loss: float | None = None
    search: Path | None = None

    def __str__(self) -> str:
        loss = "" if self.loss is None else f", validation loss {self.loss:g}"
        of = "" if self.search is None else f", the best model of the search {self.search}"
        return f"member {self.member} of {self.directory}{of}{loss}"


def _losses(value: Any) -> bool:
    """a list of finite numbers or null"""
    return isinstance(value, list) and all(x is None or (type(x) in (int, float) and abs(x) < math.inf) for x in value)


def _finals(value: Any) -> bool:
    """a mapping in which loss/validation, if it is there, is a list of finite numbers or null"""
    return isinstance(value, dict) and _losses(value.get("loss/validation", []))


def _loss(value: Any) -> bool:
    """a finite number or null"""
    return _losses([value])


RUN = {"final": _finals, "diverged": [bool], "diverged_at": [int]}
SEARCH = {"repetitions": [{"run": is_below, "member": int, "loss/validation": _loss}]}


def find(run: Path, member: int | None = None) -> Source:
    """The run and member that `run`, a run or search directory, means. Raises ValueError if it has not been finished,
    or cannot be replayed."""
    summary = _summary(run)
    if "repetitions" not in summary:
        return _of_run(run, summary, member)
    if member is not None:
        raise ValueError(f"{run} is a search, whose best model is replayed; leave --member out, or name one run")
    check_form(summary, SEARCH, f"{run / 'summary.json'}")
    return _best_of_search(run, summary["repetitions"])


def _summary(run: Path) -> dict[str, Any]:
    there = (run / "config.yaml").exists()
    if not there or not (run / "summary.json").exists():
        what = f"is not finished, so its trace is not whole; --resume {run} first" if there else "holds no run"
        raise ValueError(f"{run} {what} (a finished one has config.yaml and summary.json)")
    return read_json_file(run / "summary.json", dict)


def _of_run(run: Path, summary: dict[str, Any], member: int | None) -> Source:
    check_form(summary, RUN, f"{run / 'summary.json'}")
    if not (run / "config.yaml").stat().st_size:
        raise ValueError(
            f"{run} was started from Python, so nothing in it says what its task is; replay it from Python, too: "
            "replay.schedule and optim.traced.follow (see docs/replay.md)"
        )
    config = load([run / "config.yaml"])
    if config.trained_by is not None:
        raise ValueError(f"{run} is a run of another command and has no schedule to replay; see: {config.trained_by}")
    lists = [summary["diverged"], summary["diverged_at"], summary["final"].get("loss/validation", [])]
    if {len(known) for known in lists if known} != {config.population.runs}:
        raise ValueError(f"{run / 'summary.json'} is not of the {config.population.runs} runs in config.yaml")
    chosen = _chosen(run, summary, member)
    if summary["diverged"][chosen]:
        step = summary["diverged_at"][chosen]
        raise ValueError(f"member {chosen} of {run} diverged at step {step}; name another one with --member")
    losses = summary["final"].get("loss/validation")
    return Source(run, chosen, config, losses[chosen] if losses else None)


def _best_of_search(search: Path, repetitions: Sequence[dict[str, Any]]) -> Source:
    found = repetitions[_lowest(search, [found["loss/validation"] for found in repetitions])]
    directory = search / found["run"]
    source = _of_run(directory, _summary(directory), found["member"])
    if source.loss != found["loss/validation"]:
        end = "without a finite one" if source.loss is None else f"with {source.loss}"
        raise ValueError(
            f"the best model of {search} has a validation loss of {found['loss/validation']:g}, but its run "
            f"{directory} ends {end}; search again, or name that run to replay it as it is"
        )
    return source._replace(search=search)


def _chosen(run: Path, summary: dict[str, Any], member: int | None) -> int:
    runs = len(summary["diverged"])
    if member is not None:
        if not 0 <= member < runs:
            raise ValueError(f"--member {member}: {run} has members 0 to {runs - 1}")
        return member
    if runs == 1:
        return 0
    losses = summary["final"].get("loss/validation")
    if not losses:
        raise ValueError(f"{run} has {runs} members and no validation loss to choose by; name one with --member")
    return _lowest(run, losses)


def _lowest(run: Path, losses: Sequence[float | None]) -> int:
    known = [(loss, number) for number, loss in enumerate(losses) if loss is not None]
    if not known:
        raise ValueError(f"{run} has nothing to replay: no model in it has a final validation loss")
    return min(known)[1]
