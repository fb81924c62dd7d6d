"""Speed and memory against plain PyTorch, as ratios measured in one process.

    python scripts/benchmark.py                       all tables, on the CPU
    python scripts/benchmark.py step models           some of them: step, models, population, memory
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import Loop, Row, compare, forget_peak, machine, markdown, peak_bytes
from torch import nn

from hyperopt_id import (
    LOG10,
    LOGIT,
    Dataset,
    Execution,
    Hyper,
    Plan,
    Space,
    assemble,
    curvature,
    hypergrad,
    population,
    rules,
    runtime,
    supervised,
)
from hyperopt_id.experiment import Parts, hyper_update
from hyperopt_id.hypergrad import Engine
from hyperopt_id.tasks import models

ROOT = Path(__file__).parents[1]
SECONDS_PUBLISHED = 29.0  # the published code: one run of UCI Energy, 4000 steps, on one core


def space(*tuned: str, granularity: str = "global") -> Space:
    """SGD's hyperparameters, of which some are tuned; the learning rate at the given granularity."""

    def tune(name: str) -> tuple[str, ...]:
        return () if name not in tuned else (granularity if name == "lr" else "global",)

    return Space(
        {
            "lr": Hyper(1e-3, LOG10, (1e-10, 1.0), (1e-6, 1e-1), tune("lr")),
            "weight_decay": Hyper(1e-6, LOG10, None, (1e-7, 1e-2), tune("weight_decay")),
            "momentum": Hyper(0.5, LOGIT, None, (0.0, 1.0), tune("momentum")),
        }
    )


class Workload:
    """A model on random data, as a plain PyTorch loop and as parts of ours."""

    def __init__(
        self, model: Callable[[], nn.Module], inputs: tuple[int, ...], rows: int, device: str, batch: int = 50
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        targets = torch.randint(0, 10, (rows,), generator=generator)
        splits = {"train": (0, rows * 3 // 4), "validation": (rows * 3 // 4, rows - 50), "test": (rows - 50, rows)}
        self.data = Dataset(torch.randn(rows, *inputs, generator=generator), targets, splits).to(device)
        self.model, self.device, self.batch = model, device, batch
        self.task = supervised(self.data, model, "cross_entropy", batch_size=batch)

    def plain(self) -> Loop:
        """What people write: a module, `torch.optim.SGD`, batches by index from data on the device."""
        module = self.model().to(self.device)
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.5, weight_decay=1e-6)
        inputs, targets, last, batch = self.data.inputs, self.data.targets, self.data.splits["train"][1], self.batch

        def loop(steps: int) -> None:
            order = torch.randperm(last, device=self.device)
            for step in range(steps):
                index = order[(step * batch) % (last - batch) :][:batch]
                optimizer.zero_grad()
                F.cross_entropy(module(inputs[index]), targets[index]).backward()
                optimizer.step()

        return loop

    def ours(self, engine: Engine, tuned: Space, steps_per_update: int = 10, **options: Any) -> Loop:
        parts = assemble(self.task, rule=rules.sgd(), space=tuned, engine=engine, **options)
        return stepper(parts, Plan(updates=1, steps_per_update=steps_per_update))


def stepper(parts: Parts, plan: Plan) -> Loop:
    """Hyper-updates of the first chunk, without evaluation and logging."""
    members = parts.members[0]
    state = {"chunk": population.split(parts.start(), parts.members[:1], parts.lift)[0], "update": 0}

    def loop(steps: int) -> None:
        for _ in range(steps // plan.steps_per_update):
            state["chunk"], _ = hyper_update(parts, plan, state["update"], state["chunk"], members)
            state["update"] += 1

    return loop


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
        with tempfile.TemporaryDirectory() as logs:
            options = [
                f"--runs {runs} --sample --device {device} --progress none --data-root {data} -l {logs} -g g -n n"
            ]
            options += ["--set inner.compile=on report.every=40 report.checkpoint_every=400"]
            if device == "cuda":
                options += [f"population.chunk={runs}"]
            command = [sys.executable, str(ROOT / "train.py"), "-c"]
            command += [str(ROOT / "configs" / name) for name in ("uci_energy.yaml", "Ours_HDLR.yaml")]
            command += " ".join(options).split()
            began = time.perf_counter()
            subprocess.run(command, check=True)
            seconds = time.perf_counter() - began
            summary = json.loads((Path(logs) / "g" / "n" / "summary.json").read_text())
        spent = summary["seconds"]
        rows.append(
            {
                "runs": runs,
                "seconds": seconds,
                "of it compiling": spent["compile"],
                "x the published code": SECONDS_PUBLISHED * runs / seconds,
                "mean test MSE": statistics.fmean(
                    x for x in summary["final"]["unnormalized_loss/test"] if x is not None
                ),
                "diverged": sum(summary["diverged"]),
            }
        )
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
        command = [sys.executable, __file__, "--peak", contestant, str(period), str(updates), "--device", device]
        # Without a heap of its own, malloc returns what is freed, so that the resident memory is what tensors hold.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384"}
        printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        rows.append({"contestant": contestant, "MiB": float(printed)})
    for row in rows:
        row["ratio"] = row["MiB"] / rows[0]["MiB"]
    return rows


def peak(contestant: str, period: int, updates: int, device: str) -> float:
    """MiB that training needs at most, measured in this process."""
    tuned = space("lr", "weight_decay", "momentum")
    small = Workload(lambda: models.mlp([784, 10]), (784,), 400, device)
    for loop in (small.plain(), small.ours(hypergrad.neumann(5), tuned)):
        loop(10)  # libraries allocate their own buffers at first use
    work = Workload(lambda: models.mlp([784, 1000, 1000, 10]), (784,), 4_000, device, batch=500)
    before = forget_peak(device)
    plain = contestant.startswith("plain")
    loop = work.plain() if plain else work.ours(hypergrad.neumann(5), tuned, period)
    loop(period * updates)
    return (peak_bytes(device) - before) / 2**20


TABLES = {"step": step_table, "models": models_table, "population": population_table, "memory": memory_table}


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
