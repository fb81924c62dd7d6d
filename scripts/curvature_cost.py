"""What the choice of Hessian-vector products costs at the start of a run, in gradients of the training batch.

    python scripts/curvature_cost.py

Seconds of the CPU (`time.process_time`) in one thread, the least of three.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from workloads import Workload

from hyperopt_id import hypergrad, trees
from hyperopt_id.build.products import Products, first_batch, pick_products
from hyperopt_id.derivatives import gradient
from hyperopt_id.tasks import models
from hyperopt_id.tasks.task import Task

WORKLOADS: dict[str, Callable[[], Workload]] = {
    "MLP 784-50-10, batch of 50": lambda: Workload(lambda: models.mlp((784, 50, 10), "relu"), (784,), 500, "cpu"),
    "transformer of 2 layers, width 64, batch of 50": lambda: Workload(
        lambda: models.transformer(features=28, outputs=10, length=28), (784,), 500, "cpu"
    ),
    "ResNet-18, 3 x 32 x 32, batch of 100": lambda: Workload(models.resnet18, (3, 32, 32), 400, "cpu", 100),
}


def seconds(function: Callable[[], Any], times: int = 3) -> float:
    found = []
    for _ in range(times):
        began = time.process_time()
        function()
        found.append(time.process_time() - began)
    return min(found)


def report(name: str, task: Task) -> None:
    batch, (params, buffers) = first_batch(task, 0), task.init(0)

    def loss(w: trees.Params) -> Any:
        return task.loss(w, buffers, batch)

    def check() -> Products:
        return pick_products(None, hypergrad.neumann(5), task, 0, batch)

    one, whole = seconds(lambda: gradient(loss, trees.variables(params))), seconds(check)
    print(f"{name}: gradient {1e3 * one:.3g} ms, check {1e3 * whole:.4g} ms, {whole / one:.3g} gradients")
    print(f"    {check().notes[0][0]}")


def main() -> None:
    torch.set_num_threads(1)
    for name, make in WORKLOADS.items():
        report(name, make().task)


if __name__ == "__main__":
    main()
