"""Runs at the edge of what numbers can be, trained, replayed and drawn.

Learning rates of 0 and 1e38, norms of 1e300, seeds of 64 bits, columns of 1e30, one step, members that blow up beside
members that do not. Right is: each command works or refuses in one line; a run that ends without a finite validation
loss has diverged, and no other has; the last report, the summary and the row of the table are the same numbers; a
replay in float64 ends where the run did; and the run beside it stays in the table.
"""

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from analysis_trials import as_outcomes, drawn, paper_plots, refusal, said, write_healthy
from outcomes import Fault, Outcome
from short_runs import ENGINES, TINY, config, into

from hyperopt_id import cli

COUNT = 120
LRS = (0.0, 1e-320, 1e-30, 1e-3, 0.1, 1.0, 1e4, 1e10, 1e20, 1e30, 1e38)
DECAYS = (0.0, 1e-300, 1e-6, 1e3, 1e30)
MOMENTA = (0.0, 1e-12, 0.5, 1.0 - 1e-7, 1.0)
SEEDS = (0, 7, 2**31, 2**32 - 1, 2**63 - 4, 2**63 - 1, 2**63, 2**64, -1)
CLIPS = (None, None, 1e-300, 1e-10, 0.1, 1e10, 1e38, 1e300)
POPULATIONS = ("single", "loop", "vmap")
SGD = [name for name in ENGINES if name not in ("adamw", "mulo", "schedule")]
COLUMNS = ("0.5", "1e30", "-1e30", "1e-30", "0")


def trials(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    plots = paper_plots()
    return as_outcomes(_trial(random.Random(f"{seed}/{n}"), folder / f"{n}", plots) for n in range(count))


def _trial(draw: random.Random, folder: Path, plots: ModuleType) -> tuple[str, Fault | None, str]:
    """Until a run is trained: what is refused has to be so in one line, and is no edge run yet."""
    run = folder / "runs" / "edge"
    while True:
        (folder / "runs").mkdir(parents=True)
        write_healthy(folder / "runs")
        overrides = _overrides(draw, folder)
        trained = said(lambda chosen=overrides: cli.train([*config("csv"), *into(run), "-s", *chosen]))
        fault, detail = refusal(trained)
        if fault is None and trained.status == 0:
            fault, detail = _check(run, folder, overrides, plots)
        shutil.rmtree(folder)
        if fault is not None or trained.status == 0:
            return " ".join(overrides), fault, detail


def _overrides(draw: random.Random, folder: Path) -> list[str]:
    """One or a few edges, and all else usual."""
    table, generator = folder / "table.csv", random.Random(draw.random())
    column = draw.choice(COLUMNS) if draw.random() < 0.2 else None
    rows = [
        [f"{generator.gauss(0, 1):.6f}" for _ in range(3)] + [column or f"{generator.gauss(0, 1)}"] for _ in range(30)
    ]
    draw.choice(rows)[draw.randrange(4)] = draw.choice(COLUMNS)
    table.write_text("".join(",".join(row) + "\n" for row in rows))
    runs, edge = draw.choice(POPULATIONS), draw.choice(SEEDS)
    splits = draw.choice(("[validation, test]", "[test]", "[validation]"))
    hypers = {"lr": (LRS, 0.01), "weight_decay": (DECAYS, 1e-6), "momentum": (MOMENTA, 0.5)}
    starts = {
        name: [draw.choice(edges) if draw.random() < 0.5 else usual for _ in range(1 if runs == "single" else 3)]
        for name, (edges, usual) in hypers.items()
    }
    lift = "loop" if runs == "loop" else "vmap"
    population = {"runs": len(starts["lr"]), "lift": lift, "start": starts}
    engine = draw.choice([*SGD, "none", "none"])
    chosen = [
        *ENGINES[engine],
        f"population={json.dumps(population)}",
        f"inner={{steps_per_update: {draw.choice((1, 3))}, updates: {draw.choice((1, 2, 5))}, compile: off}}",
        f"report={{every: {draw.choice((1, 2))}, splits: {splits}}}",
        f"inner.clip_norm={json.dumps(draw.choice(CLIPS))}",
        f"seed={edge if draw.random() < 0.3 else draw.randrange(100)}",
        f"dtype={draw.choice(('float64', 'float64', 'float32', 'bfloat16'))}",
        *(["space.lr.bounds=none"] if draw.random() < 0.8 else []),
        *(["space.lr.tune=[]", "space.momentum.tune=[]"] if draw.random() < 0.3 else []),
    ]
    if engine == "reset":
        chosen.append("inner.reset=true")
    task = f"task={{path: {table}, splits: [20, 5, 5], batch_size: 5, model: {{sizes: [3, 4, 1]}}}}"
    return [task, *TINY[4:], *chosen]


def _check(run: Path, folder: Path, overrides: list[str], plots: ModuleType) -> tuple[Fault | None, str]:
    summary = json.loads((run / "summary.json").read_text())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    final, lost = summary["final"], summary["diverged"]
    for name, values in final.items():
        if (last[name] if isinstance(last[name], list) else [last[name]]) != values:
            return "wrong numbers", f"{name}: {last[name]} in the last report, {values} in the summary"
    judged = final.get("loss/validation", final.get("loss/test"))
    if [value is None for value in judged] != lost:
        return "wrong numbers", f"diverged: {lost}, but final losses {judged}"
    if [at >= 0 for at in summary["diverged_at"]] != lost:
        return "wrong numbers", f"diverged: {lost}, at {summary['diverged_at']}"
    fault, detail, rows = drawn(folder, plots, figures=True)
    if fault is None:
        fault, detail = _check_row(rows, final, lost)
    for member in range(len(lost)) if fault is None else ():
        fault, detail = _check_replay(run, member, final, lost, "dtype=float64" in overrides)
        if fault:
            break
    return fault, detail


def _check_row(rows: list[dict[str, str]], final: dict[str, Any], lost: list[bool]) -> tuple[Fault | None, str]:
    (row,) = [row for row in rows if row["data set"] == "table"]
    metric = "unnormalized_loss/test" if "unnormalized_loss/test" in final else "loss/test"
    if metric not in final:
        return None, ""
    known = [value for value in final[metric] if value is not None]
    if not known:
        return ("wrong numbers", f"mean {row['mean']} of nothing") if row["mean"] else (None, "")
    mean = math.fsum(value / len(known) for value in known)
    if not math.isclose(float(row["mean"]), mean, rel_tol=1e-12, abs_tol=1e-300):
        return "wrong numbers", f"mean {row['mean']}, should be {mean}"
    share = 100.0 * (len(lost) - len(known)) / len(lost)
    if not math.isclose(float(row["diverged %"]), share, abs_tol=1e-6):
        return "wrong numbers", f"diverged {row['diverged %']} %, should be {share}"
    return None, ""


def _check_replay(
    run: Path, member: int, final: dict[str, Any], lost: list[bool], exact: bool
) -> tuple[Fault | None, str]:
    given = ["replay", str(run), "--member", str(member), "-n", f"replay_{member}", "-l", str(run.parents[1])]
    ended = said(lambda: cli.main([*given, "-g", "replays", "--progress", "none"]))
    fault, detail = refusal(ended)
    if fault or ended.status != 0 or lost[member]:
        accepted = ended.status == 0 and lost[member] and fault is None
        return ("wrong numbers", "a member that has diverged is replayed") if accepted else (fault, detail)
    found = json.loads((run.parents[1] / "replays" / f"replay_{member}" / "summary.json").read_text())["final"]
    for name in ("loss/validation", "loss/test"):
        if name in final and name in found and exact:
            one, two = final[name][member], found[name][0]
            if one is None or two is None or not math.isclose(one, two, rel_tol=1e-6, abs_tol=1e-12):
                return "wrong numbers", f"{name} of member {member}: {one}, of its replay: {two}"
    return None, ""
