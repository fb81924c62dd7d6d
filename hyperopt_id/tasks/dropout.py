"""Dropout without state: a mask is a hash of where it is drawn, so that a step can be repeated and runs be stacked."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from hyperopt_id.tasks.hashing import random_bits

CALL = 1 << 16  # streams of the second call of a layer begin there


class Dropout(nn.Dropout):
    """y = x · keep / (1 - p), keep ~ Bernoulli(1 - p) drawn from a hash of (seed, stream, call, element).

    The seed is a buffer that the functional call replaces by `batch.seed`, so no module between has to pass
    it on; `stream` numbers the dropout layers of a model, and `calls` counts the calls of this one within a pass
    (`begin_pass`). No generator is touched, so the layer works under vmap (each run its own mask), torch.compile and
    double backward, and a step can be evaluated again with the same mask.
    """

    seed: Tensor
    stream: int
    calls: int
    repeated: bool

    def __init__(self, probability: float, stream: int = 0) -> None:
        if not 0.0 <= probability < 1.0:
            raise ValueError(f"a dropout probability must be in [0, 1), got {probability}")
        super().__init__(probability)
        _make_stateless(self, stream)

    @property
    def probability(self) -> float:
        return self.p

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        if not self.training or self.p == 0.0:
            return input
        if self.p == 1.0:
            return input * 0.0
        bits = random_bits(self.seed, self.stream + self._call() * CALL, input.numel()).reshape(input.shape)
        keep = bits >= round(self.p * 2.0**32)
        return torch.where(keep, input / (1.0 - self.p), 0.0)

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

    def extra_repr(self) -> str:
        return f"probability={self.p}, stream={self.stream}"


def _make_stateless(layer: nn.Dropout, stream: int) -> None:
    vars(layer).update(stream=stream, calls=0, repeated=False)
    layer.register_buffer("seed", torch.zeros((), dtype=torch.int64), persistent=False)


def dropouts_of(module: nn.Module) -> list[Dropout]:
    return [part for part in module.modules() if isinstance(part, Dropout)]


def begin_pass(layers: Sequence[Dropout], seed: Tensor | None) -> None:
    """Start the random streams of a forward pass; without a seed, as in evaluation mode, they keep that of the last."""
    for layer in layers:
        layer.__dict__["calls"] = 0
        if seed is not None:
            layer._buffers["seed"] = seed


def stateless_dropout(module: nn.Module) -> nn.Module:
    """Let every `nn.Dropout`, which draws from a global generator, draw from the batch's seed, and number the dropout
    layers so that each has its own random stream. The layers remain the objects that they are, whoever refers to them.

    Raises ValueError if other parts draw dropout from a global generator.
    """
    for part in module.modules():
        if type(part) is nn.Dropout:
            part.__class__ = Dropout
            _make_stateless(part, 0)
    for number, part in enumerate(dropouts_of(module)):
        part.stream = number
    for name, part in module.named_modules():
        hidden = isinstance(part, nn.MultiheadAttention | nn.RNNBase) and part.dropout > 0
        if hidden or (isinstance(part, _DropoutNd) and not isinstance(part, nn.Dropout) and part.p > 0):
            raise ValueError(
                f"{name or 'the model'} ({type(part).__name__}) draws dropout from a global generator, "
                "so no step could be repeated: use nn.Dropout layers, which are replaced by a stateless one"
            )
    return module
