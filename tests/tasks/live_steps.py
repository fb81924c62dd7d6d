"""Training steps of a live module, the oracle of the functional view, on thirty rows of data."""

import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from live_modules import Tokens
from torch import Tensor, nn

from hyperopt_id.tasks.data import Dataset
from hyperopt_id.tasks.dropout import begin_pass, dropouts_of
from hyperopt_id.tasks.substitutes import substituted
from hyperopt_id.tasks.task import Batch

SPLITS = {"train": (0, 20), "validation": (20, 25), "test": (25, 30)}
STEPS, RATE = 3, 0.1


def data_for(factory: Callable[[], nn.Module]) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    tokens = isinstance(factory(), Tokens)
    inputs = torch.randint(7, (30, 3), generator=generator) if tokens else torch.randn(30, 4, generator=generator)
    return Dataset(inputs, torch.randn(30, generator=generator), SPLITS)


def batch_at(step: int) -> Batch:
    return Batch((torch.arange(6) + 5 * step) % 20, torch.tensor(1000 + step), "train")


def live_module(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module itself, its dropout drawing from the batch's seed."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    module = substituted(factory())
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # noqa: NPY002
    return module.train()


def live_step(module: nn.Module, data: Dataset, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradient of a training step, which it takes."""
    begin_pass(dropouts_of(module), batch.seed)
    module.zero_grad()
    outputs = module(data.inputs[batch.index])
    loss = F.mse_loss(outputs.reshape(-1), data.targets[batch.index])
    loss.backward()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    slopes = {name: torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for name, p in trained.items()}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter -= RATE * slopes[name]
    return loss.detach(), slopes


def assert_alike(first: dict[str, Tensor], second: dict[str, Tensor], rtol: float = 1e-10) -> None:
    for name, value in first.items():
        torch.testing.assert_close(value, second[name].detach(), rtol=rtol, atol=1e-2 * rtol, check_dtype=False)


def tied(module: nn.Module, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values by the further names of what is shared."""
    first = {id(value): name for name, value in [*module.named_parameters(), *module.named_buffers()]}
    names = module.named_parameters(remove_duplicate=False)
    return {name: params[first[id(value)]] for name, value in names if first[id(value)] in params}
