r"""Dropout without state: a mask is a hash of where it is drawn, so that a step can be repeated and runs be stacked.

.. math:: y = x \cdot \mathrm{keep} / (1 - p), \qquad \mathrm{keep} \sim \mathrm{Bernoulli}(1 - p)

with keep drawn from a hash of (seed, stream, call, element). The seed is a buffer that the functional call replaces by
`batch.seed`, so no module between has to pass it on; `stream` numbers the layers of a model that draw, and `calls`
counts the calls of one within a pass (`begin_pass`). No generator is touched, so these layers work under vmap (each run
its own mask), torch.compile and double backward.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from hyperopt_id.tasks.hashing import random_bits

CALL = 1 << 16  # streams of the second call of a layer begin there
ALPHA = 1.7580993408473766  # minus the value that SELU saturates at: arXiv 1706.02515


class Stateless(nn.Module):
    """A layer that draws from the batch's seed."""

    seed: Tensor
    stream: int
    calls: int
    repeated: bool

    def keep(self, shape: Sequence[int], probability: float) -> Tensor:
        """Which of these entries are kept."""
        bits = random_bits(self.seed, self.stream + self._call() * CALL, math.prod(shape)).reshape(shape)
        return bits >= round(probability * 2.0**32)

    def _call(self) -> int:
        """The number of this call within the pass. A call inside a backward pass is that of activation checkpointing,
        which repeats one of the forward pass: nothing says which, if there were several.

        Raises ValueError if there were.
        """
        if torch.compiler.is_compiling():
            if not self.repeated:  # no attribute is written to: a compiler would have to replay that
                return 0
        elif torch._C._current_graph_task_id() != -1:
            if self.calls > 1:
                raise ValueError(
                    "activation checkpointing recomputes a dropout layer that is called several times in one forward "
                    "pass: give each call an nn.Dropout of its own"
                )
            return 0
        number = self.calls
        self.__dict__["calls"] = number + 1  # nn.Module's own way takes microseconds
        return number


class Dropout(nn.Dropout, Stateless):
    """`nn.Dropout` that draws from the batch's seed."""

    def __init__(self, probability: float, stream: int = 0) -> None:
        if not 0.0 <= probability < 1.0:
            raise ValueError(f"a dropout probability must be in [0, 1), got {probability}")
        super().__init__(probability)
        make_stateless(self, stream)

    @property
    def probability(self) -> float:
        return self.p

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        return dropped(self, input, self.p, input.shape) if self.training else input

    def extra_repr(self) -> str:
        return f"probability={self.p}, stream={self.stream}"


def dropped(layer: Stateless, x: Tensor, probability: float, shape: Sequence[int]) -> Tensor:
    """x with entries dropped by a mask of that shape, and the others scaled."""
    if probability == 0.0:
        return x
    if probability == 1.0:
        return x * 0.0
    return torch.where(layer.keep(shape, probability), x / (1.0 - probability), 0.0)


class _Channels(_DropoutNd, Stateless):
    """`nn.Dropout1d`, `2d` and `3d`: whole channels of [N, C, ...] are dropped, or of [C, ...] with `axes` axes."""

    axes = 0

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        if not self.training:
            return input
        leading = 1 if input.ndim == self.axes else 2
        return dropped(self, input, self.p, [*input.shape[:leading], *[1] * (input.ndim - leading)])


class Dropout1d(_Channels, nn.Dropout1d):
    axes = 2


class Dropout2d(_Channels, nn.Dropout2d):
    """Three axes are [N, C, L] here."""


class Dropout3d(_Channels, nn.Dropout3d):
    axes = 4


class AlphaDropout(nn.AlphaDropout, Stateless):
    r"""\(y = a (x \cdot \mathrm{keep} - \alpha (1 - \mathrm{keep}) + \alpha p)\), which keeps mean 0 and variance 1."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        return _alpha_dropped(self, input, self.p, input.shape) if self.training else input


class FeatureAlphaDropout(nn.FeatureAlphaDropout, Stateless):
    """The same for whole channels of [N, C, ...]."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        shape = [*input.shape[:2], *[1] * (input.ndim - 2)]
        return _alpha_dropped(self, input, self.p, shape) if self.training else input


def _alpha_dropped(layer: Stateless, x: Tensor, p: float, shape: Sequence[int]) -> Tensor:
    if p == 0.0:
        return x
    if p == 1.0:
        return x * 0.0
    scale = 1.0 / math.sqrt((ALPHA**2 * p + 1.0) * (1.0 - p))
    return scale * torch.where(layer.keep(shape, p), x, -ALPHA) + scale * ALPHA * p


def make_stateless(layer: nn.Module, stream: int = 0) -> None:
    vars(layer).update(stream=stream, calls=0, repeated=False)
    layer.register_buffer("seed", torch.zeros((), dtype=torch.int64), persistent=False)


def dropouts_of(module: nn.Module) -> list[Stateless]:
    return [part for part in module.modules() if isinstance(part, Stateless)]


def begin_pass(layers: Sequence[Stateless], seed: Tensor | None) -> None:
    """Start the random streams of a forward pass; without a seed, as in evaluation mode, they keep that of the last."""
    for layer in layers:
        layer.__dict__["calls"] = 0
        if seed is not None:
            layer._buffers["seed"] = seed
