"""Small modules, each of one way to train that people write into `forward`: teachers, queues, codebooks, experts,
adapters, stopped gradients, quantized weights, states with a row for each example."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from live_modules_base import Net, Tokens
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint, checkpoint_sequential


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mixed, self.back = nn.LayerNorm(8), nn.Linear(8, 24, bias=False), nn.Linear(8, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        rows, length, _ = inputs.shape
        q, k, v = self.mixed(self.norm(inputs)).view(rows, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return inputs + self.back(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Decoder(Tokens):
    """A language model whose output layer is its table of tokens."""

    def __init__(self, saving: bool = False) -> None:
        nn.Module.__init__(self)
        self.saving, self.tokens, self.places = saving, nn.Embedding(7, 8), nn.Embedding(3, 8)
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(8, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            hidden = checkpoint(block, hidden, use_reentrant=False) if self.saving else block(hidden)  # type: ignore
        return self.head(hidden)[:, -1, 0]


class LowRank(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.left, self.right = nn.Parameter(torch.zeros(rows, 2)), nn.Parameter(torch.randn(2, columns))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.left @ self.right


def adapted() -> nn.Module:
    module = Net().requires_grad_(False)
    for layer in (module.first, module.last):
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))
    return module


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, weight: Tensor) -> Tensor:
        return self.scale * weight


def one_parametrization(cached: bool) -> nn.Module:
    class Scaled(Net):
        def forward(self, inputs: Tensor) -> Tensor:
            if not cached:
                return super().forward(inputs)
            with parametrize.cached():
                return super().forward(inputs) + super().forward(2.0 * inputs)

    module, scale = Scaled(), Scale()
    for layer in (module.first, module.last):
        parametrize.register_parametrization(layer, "weight", scale)
    return module


class Teacher(Net):
    """A moving average of the layers, as a second module."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.first).requires_grad_(False)

    def hidden(self, inputs: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                for old, new in zip(self.teacher.parameters(), self.first.parameters(), strict=True):
                    old.mul_(0.9).add_(new, alpha=0.1)
        return super().hidden(inputs) + 0.1 * self.teacher(inputs)


class Queue(Net):
    """Keys of the last batches, written at a place that moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.randn(12, 6))
        self.register_buffer("place", torch.zeros(1, dtype=torch.int64))

    def hidden(self, inputs: Tensor) -> Tensor:
        assert not self.training or 12 % len(inputs) == 0, "the queue holds whole batches"
        hidden = super().hidden(inputs)
        scores = hidden @ self.queue.clone().T
        if self.training:
            start = int(self.place)
            self.queue[start : start + len(inputs)] = hidden.detach()
            self.place[0] = (start + len(inputs)) % 12
        return scores.softmax(1)[:, :6]


class Codebook(Net):
    """Vector quantization by moving averages, its gradient passed straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(5, 6))
        self.register_buffer("counts", torch.ones(5))

    def hidden(self, inputs: Tensor) -> Tensor:
        hidden = super().hidden(inputs)
        nearest = torch.cdist(hidden.detach(), self.codes).argmin(1)
        quantized = self.codes[nearest]
        if self.training:
            with torch.no_grad():
                chosen = F.one_hot(nearest, 5).to(hidden.dtype)
                self.counts.mul_(0.9).add_(chosen.sum(0), alpha=0.1)
                self.codes.mul_(0.9).add_(chosen.T @ hidden / self.counts.clamp(min=1e-3).unsqueeze(1), alpha=0.1)
        return hidden + (quantized - hidden).detach()


class Quantized(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        rounded = (self.weight * 4).round() / 4
        return F.linear(input, self.weight + (rounded - self.weight).detach(), self.bias)


class Standardized(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(input, weight / (weight.std(1, keepdim=True) + 1e-5), self.bias)


class Carried(Net):
    """A recurrent state with a row for every example of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 6)
        self.register_buffer("state", torch.zeros(6, 6))

    def hidden(self, inputs: Tensor) -> Tensor:
        hidden = super().hidden(inputs)
        state = self.cell(hidden, self.state if self.training else torch.zeros_like(hidden))
        if self.training:
            self.state = state.detach()
        return state


class Stopped(Net):
    def hidden(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            weight = torch.sigmoid(super().hidden(2.0 * inputs))
        hidden = super().hidden(inputs)
        return hidden * weight + hidden.detach() * self.first(inputs)


class Experts(nn.Module):
    """Rows go to the expert with the largest score; an expert without rows is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 1) for _ in range(3))
        self.unused = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        scores = self.gate(inputs).softmax(1)
        chosen, outputs = scores.argmax(1), inputs.new_zeros(len(inputs), 1)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                outputs = outputs.index_add(0, rows, expert(inputs[rows]) * scores[rows, number, None])
        return outputs


class Nested(Net):
    def inner(self, inputs: Tensor) -> Tensor:
        return 2.0 * checkpoint(super().hidden, inputs, use_reentrant=False)  # type: ignore[operator]

    def hidden(self, inputs: Tensor) -> Tensor:
        return checkpoint(self.inner, inputs, use_reentrant=False)  # type: ignore[return-value]


class Pieces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return checkpoint_sequential(self.layers, 2, inputs, use_reentrant=False)


class FrozenStatistics(Net):
    """BatchNorm that stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        nn.init.normal_(self.norm.running_mean)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> FrozenStatistics:
        super().train(mode)
        self.norm.eval()
        return self

    def hidden(self, inputs: Tensor) -> Tensor:
        return self.norm(super().hidden(inputs))


class Masked(Net):
    """A hook on a parameter that reads a buffer drawn by the factory."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.rand(6, 4) > 0.5)
        self.first.weight.register_hook(lambda gradient: gradient * self.mask)


class Reverse(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return -0.5 * gradient


class Adversarial(Net):
    def hidden(self, inputs: Tensor) -> Tensor:
        return super().hidden(inputs) + Reverse.apply(self.first(inputs))  # type: ignore[operator]


class Spectrum(Net):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, dtype=torch.complex128))

    def hidden(self, inputs: Tensor) -> Tensor:
        return super().hidden(torch.fft.irfft(torch.fft.rfft(inputs) * self.filter, n=4))


TRAINING: dict[str, Callable[[], nn.Module]] = {
    "decoder": Decoder,
    "decoder, checkpointed": lambda: Decoder(saving=True),
    "adapters": adapted,
    "one parametrization twice": lambda: one_parametrization(cached=False),
    "parametrizations, cached": lambda: one_parametrization(cached=True),
    "teacher": Teacher,
    "queue": Queue,
    "codebook": Codebook,
    "quantized weights": lambda: nn.Sequential(Quantized(4, 6), nn.ReLU(), Quantized(6, 1)),
    "standardized weights": lambda: nn.Sequential(Standardized(4, 6), nn.GroupNorm(2, 6), nn.Linear(6, 1)),
    "orthogonal, square": lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 1)),
    "carried state": Carried,
    "stopped gradients": Stopped,
    "experts": Experts,
    "checkpoints, nested": Nested,
    "checkpointed pieces": Pieces,
    "frozen statistics": FrozenStatistics,
    "masked by a hook": Masked,
    "reversed gradient": Adversarial,
    "spectrum": Spectrum,
}
