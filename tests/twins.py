"""Models of torch's own modules, by the names of ours, that the packages mup and unit_scaling can take for theirs.

`kit` has the constructors of their layers: (linear, output layer, embedding); a package's or torch's.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Kit(NamedTuple):
    linear: Callable[[int, int], nn.Module]
    output: Callable[[int, int], nn.Module]
    embedding: Callable[[int, int], nn.Module] = nn.Embedding


class TwinMLP(nn.Module):
    def __init__(self, kit: Kit, width: int):
        super().__init__()
        self.layers = nn.ModuleList([kit.linear(6, width), kit.linear(width, width), kit.output(width, 3)])

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in list(self.layers)[:-1]:
            inputs = layer(inputs).relu()
        return self.layers[-1](inputs)


class TwinCNN(nn.Module):
    def __init__(self, kit: Kit, width: int):
        super().__init__()
        sizes = [1, width, width]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes[1:])
        self.output = kit.output(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms):
            images = norm(convolution(images)).relu()
        return self.output(images.mean((2, 3)))


class TwinBlock(nn.Module):
    def __init__(self, kit: Kit, width: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = kit.linear(width, 3 * width), kit.linear(width, width)
        self.linear1, self.linear2 = kit.linear(width, hidden), kit.linear(hidden, width)

    def forward(self, values: Tensor) -> Tensor:
        heads = 2
        parts = self.qkv(self.norm1(values)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / q.shape[-1])
        values = values + self.projection(mixed.transpose(1, 2).flatten(2))
        return values + self.linear2(self.linear1(self.norm2(values)).relu())


class TwinTransformer(nn.Module):
    def __init__(self, kit: Kit, width: int):
        super().__init__()
        self.embedding, self.positions = kit.embedding(7, width), nn.Parameter(0.02 * torch.randn(5, width))
        self.blocks = nn.ModuleList(TwinBlock(kit, width, 2 * width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.output = kit.output(width, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        values = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            values = block(values)
        return self.output(self.norm(values)).flatten(0, 1)


TWINS: dict[str, Any] = {"mlp": TwinMLP, "cnn": TwinCNN, "transformer": TwinTransformer}


def examples(name: str, batch: int) -> tuple[Tensor, Tensor]:
    """Inputs of the model and targets of its outputs, in the default dtype."""
    generator = torch.Generator().manual_seed(batch)
    if name == "transformer":
        tokens = torch.randint(7, (4, 6), generator=generator)
        return tokens[:, :-1], tokens[:, 1:].flatten()
    shape = (8, 6) if name == "mlp" else (8, 1, 6, 6)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    return inputs.to(torch.get_default_dtype()), torch.randint(3, (8,), generator=generator)


def trajectory(
    model: nn.Module, optimizer: torch.optim.Optimizer, name: str, steps: int = 20, first: int = 0
) -> list[Tensor]:
    """All parameters in a row, after each step on cross-entropy; step number `first` and after."""
    found = []
    for step in range(first, first + steps):
        inputs, targets = examples(name, step)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return found


def in_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[float, float]]:
    """(learning rate, weight decay) of every parameter of the model."""
    found = {
        id(p): (float(group["lr"]), float(group["weight_decay"]))
        for group in optimizer.param_groups
        for p in group["params"]
    }
    return [found[id(p)] for p in model.parameters()]
