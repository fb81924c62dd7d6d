"""Speed and memory against plain PyTorch, as ratios measured in one process.

    python scripts/benchmark.py                       all tables, on the CPU
    python scripts/benchmark.py step models           some of them: step, models, population, peers, memory,
                                                      mulo, analysis
    python scripts/benchmark.py --device cuda --json benchmark.json

The contestants of a table take turns, a few hundred steps each, and the table shows medians over the rounds of
(time of one step / time of the plain loop's step in the same round), so that a machine that slows down slows down all
of them. Evaluation, logging and compilation are left out, except in the population table, which times whole runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout that is not installed

from experiments import STUDY
from measuring import Row, compare, forget_peak, machine, markdown, peak_bytes
from optimizers import mulo_table
from workloads import Workload, space, stepper, write_logs

from baselines import diff_through_opt
from hyperopt_id import Execution, curvature, hypergrad, runtime
from hyperopt_id.config import load
from hyperopt_id.config_schema import Config
from hyperopt_id.tasks import models

SECONDS_PUBLISHED = 29.0  # the published code: one run of UCI Energy, 4000 steps, on one core


def step_table(device: str, rounds: int) -> list[Row]:
    """The training step of an MLP 784-50-10, batch 50, and Ours_LR_Momentum and Ours_HDLR on it (T = 10, K = 5)."""
    work = Workload(lambda: models.mlp([784, 50, 10]), (784,), 20_000, device)
    scalar, element = (
        space("lr", "weight_decay", "momentum"),
        space("lr", "weight_decay", "momentum", granularity="element"),
    )
    compiled = Execution(compile=True)
    loops = {
        "plain loop, torch.optim.SGD": work.plain(),
        "ours, not tuning, eager": work.ours(hypergrad.no_gradient(), space()),
        "ours, not tuning, compiled": work.ours(hypergrad.no_gradient(), space(), execution=compiled),
        "Ours_LR_Momentum, eager": work.ours(hypergrad.neumann(5), scalar),
        "Ours_LR_Momentum, compiled": work.ours(hypergrad.neumann(5), scalar, execution=compiled),
        "replay of Ours_LR_Momentum": work.replay("global"),
        "replay of Ours_HDLR": work.replay("element"),
        "Ours_HDLR, eager": work.ours(hypergrad.neumann(5), element),
        "Ours_HDLR, compiled": work.ours(hypergrad.neumann(5), element, execution=compiled),
    }
    measured = compare(loops, 200, rounds, device)
    base = measured["ours, not tuning, compiled"]["microseconds"]
    return [
        {"contestant": name, **values, "ratio to plain compiled": values["microseconds"] / base}
        for name, values in measured.items()
    ]


def models_table(device: str, rounds: int) -> list[Row]:
    """Ours_LR_Momentum (T = 10, K = 5, eager) on a small CNN with BatchNorm and a 2-layer transformer."""
    scalar = space("lr", "weight_decay", "momentum")
    factories = {
        "CNN with BatchNorm": lambda: models.cnn((1, 28, 28)),
        "2-layer transformer": lambda: models.transformer(features=28, outputs=10, length=28),
    }
    rows = []
    for title, factory in factories.items():
        work = Workload(factory, (784,), 2_000, device)
        loops = {
            "plain loop, torch.optim.SGD": work.plain(),
            "exact": work.ours(hypergrad.neumann(5), scalar),
            "one-sided finite differences": work.ours(
                hypergrad.neumann(5), scalar, curvature=curvature.finite_difference()
            ),
            "exact on a quarter of the batch": work.ours(hypergrad.neumann(5), scalar, sub_batch=0.25),
            "one-sided finite differences on a quarter": work.ours(
                hypergrad.neumann(5), scalar, curvature=curvature.finite_difference(), sub_batch=0.25
            ),
        }
        measured = compare(loops, 20, rounds, device)
        rows += [{"model": title, "contestant": name, **values} for name, values in measured.items()]
    return rows


def population_table(device: str, rounds: int) -> list[Row]:
    """Whole runs of Ours_HDLR on UCI Energy, 4000 steps, from the command line: start, data, compilation, training,
    ten reports; and their ratio to the published code, which takes 29 s for one run on one core."""
    data = os.environ.get("HYPEROPT_ID_DATA", "data")
    if not (Path(data) / "UCI_Energy").is_dir():
        return [{"runs": f"skipped: no UCI_Energy in {data} (set HYPEROPT_ID_DATA)"}]
    rows = []
    for runs in (1, 10, 100, 1000) if device == "cuda" else (1, 200):
        with tempfile.TemporaryDirectory() as folder:
            rows += [_population_row(device, runs, start, data, Path(folder)) for start in ("first", "second")]
    return rows


def _population_row(device: str, runs: int, start: str, data: str, folder: Path) -> Row:
    """The first start compiles into an empty cache, the second one finds its programs there."""
    options = [
        f"--runs {runs} --sample --device {device} --progress none --data-root {data} -l {folder} -g g -n {start}"
    ]
    options += ["--set inner.compile=on report.every=40 report.checkpoint_every=400"]
    if device == "cuda":
        options += [f"population.chunk={runs}"]
    command = [sys.executable, str(ROOT / "train.py"), "-c"]
    command += [str(ROOT / "configs" / name) for name in ("uci_energy.yaml", "Ours_HDLR.yaml")]
    command += " ".join(options).split()
    environment = {**os.environ, "HYPEROPT_ID_CACHE": str(folder / "cache")}
    began = time.perf_counter()
    subprocess.run(command, check=True, env=environment)
    seconds = time.perf_counter() - began
    summary = json.loads((folder / "g" / start / "summary.json").read_text())
    return {
        "runs": runs,
        "start": start,
        "seconds": seconds,
        "of it compiling": summary["seconds"]["compile"],
        "x the published code": SECONDS_PUBLISHED * runs / seconds,
        "mean test MSE": statistics.fmean(x for x in summary["final"]["unnormalized_loss/test"] if x is not None),
        "diverged": sum(summary["diverged"]),
    }


def through_opt(data: str, steps: int, window: int, device: str) -> Config:
    """Diff-through-Opt on a data set: through the last `window` of every `steps` steps."""
    files = [diff_through_opt.ALGORITHM, ROOT / "configs" / f"{data}.yaml"]
    lengths = [f"inner={{steps_per_update: {steps}, updates: 1}}", f"hypergradient.window={window}"]
    return load(files, [*lengths, f"device={device}"])


def peers_table(device: str, rounds: int) -> list[Row]:
    """Diff-through-Opt by the library `higher` and by our `unroll`: one hyper-update of T steps, the last W of them
    differentiated through, and the memory that it needs beyond the data."""
    rows = []
    for steps, window in ((10, 5), (200, 200)):
        config = through_opt("digits", steps, window, device)
        build = {**diff_through_opt.BACKENDS, "unroll, compiled": diff_through_opt.BACKENDS["unroll"]}
        loops = {
            name: stepper(*build[name](config, compiled=name.endswith("compiled")))
            for name in ("higher", "unroll", "unroll, compiled")
        }
        for name, times in compare(loops, 200, rounds, device).items():
            row = {"T": steps, "W": window, "contestant": name, "milliseconds": times["microseconds"] * steps / 1000}
            known = name in diff_through_opt.BACKENDS
            memory = peak_apart(name, steps, window, device) if known else ""
            rows.append({**row, "ratio": times["ratio"], "MiB": memory})
    return rows


def memory_table(device: str, rounds: int) -> list[Row]:
    """Peak memory of a process that trains an MLP 784-1000-1000-10 with batch 500, beyond its data: weights, optimizer
    state, gradients, activations."""
    rows = []
    for contestant, period, updates in (
        ("plain loop, torch.optim.SGD", 10, 10),
        ("neumann(5), T = 10, 100 steps", 10, 10),
        ("neumann(5), T = 10, 400 steps", 10, 40),
        ("neumann(5), T = 100, 400 steps", 100, 4),
    ):
        rows.append({"contestant": contestant, "MiB": peak_apart(contestant, period, updates, device)})
    for row in rows:
        row["ratio"] = row["MiB"] / rows[0]["MiB"]
    return rows


def analysis_table(device: str, rounds: int) -> list[Row]:
    """All tables and figures of many runs, by `scripts/paper_plots.py`; event runs have TensorBoard's events alone."""
    rows = []
    for what, algorithms, starts, reports in (("directories", 9, 200, 100), ("event runs", 2, 100, 4000)):
        with tempfile.TemporaryDirectory() as folder:
            logs, out = Path(folder) / "runs", Path(folder) / "out"
            write_logs(logs, ROOT / "configs", STUDY[:algorithms], starts, reports)
            if what == "event runs":
                for name in ("metrics.jsonl", "summary.json"):
                    for path in logs.glob(f"*/{name}"):
                        path.unlink()
            command = [sys.executable, str(ROOT / "scripts" / "paper_plots.py"), str(logs), "--out", str(out)]
            for again in ("", ", again, from the cache")[: 2 if what == "event runs" else 1]:
                began = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                row = {"runs": f"{algorithms * starts} {what}{again}", "reports of each": reports}
                rows.append({**row, "seconds": time.perf_counter() - began})
    return rows


def peak_apart(contestant: str, *counts: Any) -> float:
    """`peak` in a process of its own."""
    *numbers, device = map(str, counts)
    command = [sys.executable, __file__, "--peak", contestant, *numbers, "--device", device]
    # Without a heap of its own, malloc returns what is freed, so that the resident memory is what tensors hold.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384"}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def peak(contestant: str, period: int, count: int, device: str) -> float:
    """MiB that training needs at most, measured in this process: `count` hyper-updates of `period` steps, or, by a
    backend of Diff-through-Opt, one through the last `count` of them."""
    if contestant in diff_through_opt.BACKENDS:
        build, updates = diff_through_opt.BACKENDS[contestant], 1
        warm = [stepper(*build(through_opt("digits", 10, 5, device), compiled=False))]
        make = partial(stepper, *build(through_opt("digits", period, count, device), compiled=False))
    else:
        tuned, updates = space("lr", "weight_decay", "momentum"), count
        small = Workload(lambda: models.mlp([784, 10]), (784,), 400, device)
        warm = [small.plain(), small.ours(hypergrad.neumann(5), tuned)]
        work = Workload(lambda: models.mlp([784, 1000, 1000, 10]), (784,), 4_000, device, batch=500)
        plain = contestant.startswith("plain")
        make = work.plain if plain else partial(work.ours, hypergrad.neumann(5), tuned, period)
    for loop in warm:
        loop(10)  # libraries allocate their own buffers at first use
    before = forget_peak(device)
    make()(period * updates)
    return (peak_bytes(device) - before) / 2**20


TABLES = {
    "step": step_table,
    "models": models_table,
    "population": population_table,
    "peers": peers_table,
    "memory": memory_table,
    "mulo": mulo_table,
    "analysis": analysis_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory against plain PyTorch.")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)} (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=15, help="rounds in which all contestants take turns")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak[0], int(options.peak[1]), int(options.peak[2]), options.device))
        return
    if unknown := [name for name in options.tables if name not in TABLES]:
        parser.error(f"unknown table {unknown[0]}: choose from {', '.join(TABLES)}")
    runtime.keep_freed_memory()  # as the command line does
    result: dict[str, Any] = {"machine": machine(options.device)}
    print(", ".join(f"{name} {value}" for name, value in result["machine"].items()), flush=True)
    for name in options.tables or TABLES:
        result[name] = TABLES[name](options.device, options.rounds)
        print(f"\n{(TABLES[name].__doc__ or '').strip()}\n", *markdown(result[name]), sep="\n", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
