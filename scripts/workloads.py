"""What benchmarks work on: models on random data, for a plain PyTorch loop and for ours, and logs of many runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import Loop
from torch import nn

from hyperopt_id import LOG10, LOGIT, Dataset, Hyper, Plan, Space, assemble, population, rules, supervised
from hyperopt_id.config import dump, load, to_dict
from hyperopt_id.experiment import Parts, hyper_update
from hyperopt_id.hypergrad import Engine
from hyperopt_id.optim.plain import plain_parts
from hyperopt_id.optim.traced import Schedule, follow
from hyperopt_id.telemetry import Telemetry

SPLITS = ("train", "validation", "test")


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

    def replay(self, granularity: str) -> Loop:
        """`torch.optim.SGD` on a trace with a row every 10 steps, of "global" learning rates or one per "element"."""
        shapes = {k: tuple(p.shape) for k, p in self.task.init(0)[0].items()} if granularity == "element" else {}
        rows = 100
        rate = {k: np.full((rows, *shape), 1e-3, np.float32) for k, shape in shapes.items()}
        values = {"lr": rate or np.full(rows, 1e-3, np.float32)}
        values |= {"weight_decay": np.full(rows, 1e-6, np.float32), "momentum": np.full(rows, 0.5, np.float32)}
        parts = plain_parts(self.task, follow("sgd", Schedule(values, 10)), [0], lambda state: {})
        return stepper(parts, Plan(updates=1, steps_per_update=100, objective="training"))


def stepper(parts: Parts, plan: Plan) -> Loop:
    """Hyper-updates of the first chunk, without evaluation and logging."""
    members = parts.members[0]
    state = {"chunk": population.split(parts.start(), parts.members[:1], parts.lift)[0], "update": 0}

    def loop(steps: int) -> None:
        for _ in range(steps // plan.steps_per_update):
            state["chunk"], _ = hyper_update(parts, plan, state["update"], state["chunk"], members)
            state["update"] += 1

    return loop


def write_logs(folder: Path, configs: Path, algorithms: Sequence[str], starts: int, reports: int) -> None:
    """What runs of UCI Energy leave, each in a directory of its own, with made-up losses that fall."""
    generator = np.random.default_rng(0)
    for algorithm in algorithms:
        config = load([configs / "uci_energy.yaml", configs / f"{algorithm}.yaml"], ["report.trace_every=0"])
        for start in range(starts):
            own = replace(config, seed=start)
            losses = np.exp(-np.cumsum(generator.random((reports, 6)) * 4 / reports, 0)).tolist()
            directory = folder / f"{algorithm}_{start:03d}"
            with Telemetry(directory, to_dict(own), config_text=dump(own), progress="none") as telemetry:
                report: dict[str, Any] = {}
                for number, values in enumerate(losses, 1):
                    names = [f"{kind}/{split}" for kind in ("loss", "unnormalized_loss") for split in SPLITS]
                    report = {**dict(zip(names, values)), "hyper/lr": values[0], "hyper/weight_decay": 1e-6}
                    telemetry.report(number, 10 * number, {**report, "hyper/momentum": values[1]})
                final = {name: [value] for name, value in report.items() if not name.startswith("hyper")}
                seconds = dict.fromkeys(("total", "compile", "inner", "hypergradient", "evaluation", "logging"), 1.0)
                summary = {"final": final, "best_validation": {}, "diverged": [False], "seconds": seconds}
                telemetry.close(summary)
