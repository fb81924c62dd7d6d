"""What the modules of the tables are made of."""

from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two layers of 4 inputs; what is in between is a subclass's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.hidden(inputs))

    def hidden(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.first(inputs))


class Tokens(nn.Module):
    """For whole numbers as inputs."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(7, 3, **options), nn.Linear(9, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.table(tokens).flatten(1))
