"""A small regression, and a module for users' modules to derive from."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hyperopt_id.tasks.data import Dataset
from hyperopt_id.tasks.task import Task, supervised

GENERATOR = torch.Generator().manual_seed(0)
DATA = Dataset(
    torch.randn(20, 4, generator=GENERATOR),
    torch.randn(20, generator=GENERATOR),
    {"train": (0, 10), "validation": (10, 15), "test": (15, 20)},
)


def regression(factory: Callable[[], nn.Module]) -> Task:
    return supervised(DATA, factory, "mse", 5)


class Net(nn.Module):
    """A linear map of 4 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs)
