"""Small modules, each of one kind that people write: usual layers, wrappers, sharing, references, hooks, state."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from live_modules_base import Net, Tokens
from live_modules_training import TRAINING
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint


def between(*layers: nn.Module, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), *layers, nn.Linear(width, 1))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


# what a backward pass reads again


class Checkpointed(Net):
    def hidden(self, inputs: Tensor) -> Tensor:
        return checkpoint(super().hidden, inputs, use_reentrant=False)


class CheckpointedDropout(Net):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def body(self, inputs: Tensor) -> Tensor:
        return self.drop(torch.tanh(self.first(inputs)))

    def hidden(self, inputs: Tensor) -> Tensor:
        return checkpoint(self.body, inputs, use_reentrant=False)


class ReadsInBackward(Net):
    """A hook on an activation that reads a parameter when the gradient comes."""

    def hidden(self, inputs: Tensor) -> Tensor:
        outputs = super().hidden(inputs)
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: gradient * self.first.weight.detach()[:, 0].abs())
        return outputs


# references that are no attributes of a module


class TiedList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.out = nn.Linear(4, 6, bias=False), nn.Linear(4, 1)
        self.tied = [self.encode.weight]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(torch.tanh(self.encode(inputs)) @ self.tied[0])


class Closure(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6) * 1.5)
        self.function = lambda hidden: hidden * self.scale

    def hidden(self, inputs: Tensor) -> Tensor:
        return self.function(super().hidden(inputs))


class ClosureOfTensor(Net):
    def __init__(self) -> None:
        super().__init__()
        weight = self.first.weight
        self.function = lambda inputs: torch.tanh(inputs @ weight.T)

    def hidden(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


class BoundMethod(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = {"linear": self.first.forward}

    def hidden(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.table["linear"](inputs))


@dataclass
class Holder:
    weight: Tensor


class InDataclass(Net):
    def __init__(self) -> None:
        super().__init__()
        self.holder = Holder(self.first.weight)

    def hidden(self, inputs: Tensor) -> Tensor:
        return torch.tanh(F.linear(inputs, self.holder.weight))


class BufferList(Net):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.kept = [self.mean]

    def hidden(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.kept[0].mul_(0.9).add_(0.1 * inputs.detach().mean(0))
        return super().hidden(inputs - self.mean)


class PlainList(Net):
    """Layers in a plain list: no parameters of the module, so never trained, but drawn for each seed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(6, 6)]

    def hidden(self, inputs: Tensor) -> Tensor:
        return self.layers[0](super().hidden(inputs))


# hooks


class FrozenRows(Net):
    def __init__(self) -> None:
        super().__init__()
        mask = torch.ones(6, 1)
        mask[:3] = 0.0
        self.first.weight.register_hook(lambda gradient: gradient * mask)


class ForwardHooks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.first.register_forward_pre_hook(lambda part, arguments: (2.0 * arguments[0],))
        self.first.register_forward_hook(self.shifted)

    def shifted(self, part: nn.Module, arguments: tuple[Any, ...], outputs: Any) -> Tensor:
        return outputs + self.last.weight[0]


class BackwardHooks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.last.register_full_backward_hook(lambda part, inputs, outputs: (0.5 * inputs[0],))


# complex numbers


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6, dtype=torch.complex128), nn.Linear(6, 1)
        self.phase: Tensor
        self.register_buffer("phase", torch.exp(1j * torch.arange(6)))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last((self.first(inputs + 0j) * self.phase).abs().square().sqrt())


# dropout


class DropoutTwice(Net):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def hidden(self, inputs: Tensor) -> Tensor:
        return self.drop(torch.tanh(self.first(self.drop(inputs))))


class DropoutInList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.steps = [self.drop]

    def hidden(self, inputs: Tensor) -> Tensor:
        return self.steps[0](super().hidden(inputs))


class Scaled(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        return input * (1.0 - self.p)


class Doubled(nn.Dropout1d):
    """A subclass that uses the forward of its base."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        return 2.0 * super().forward(input.unsqueeze(-1)).squeeze(-1)


class Renamed(nn.Dropout):
    pass


def one_dropout_at_two_places() -> nn.Module:
    drop = nn.Dropout(0.2)
    return nn.Sequential(drop, nn.Linear(4, 6), drop, nn.Linear(6, 1))


# what a factory draws


class Permuted(Net):
    """A permutation as a plain attribute, and a mask that state_dict does not hold."""

    mask: Tensor
    shifts: Holder

    def __init__(self) -> None:
        super().__init__()
        self.order = torch.randperm(4)
        self.register_buffer("mask", (torch.rand(6) < 0.5).double(), persistent=False)
        self.shifts = Holder(torch.randn(6))
        self.more: Any = [{"one": torch.randn(6)}]

    def hidden(self, inputs: Tensor) -> Tensor:
        return super().hidden(inputs[:, self.order]) * self.mask + self.shifts.weight + self.shift()

    def shift(self) -> Tensor:
        return vars(self)["more"][0]["one"]


class DrawsFromNumpy(Net):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.first.weight.copy_(torch.from_numpy(np.random.randn(6, 4)))  # noqa: NPY002 - what people write
            self.last.weight.mul_(random.uniform(0.5, 1.5))


# buffers


class MovingScale(Net):
    """A float assigned to a buffer that is registered as an integer."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1))

    def hidden(self, inputs: Tensor) -> Tensor:
        outputs = super().hidden(inputs)
        if self.training:
            self.scale = 0.9 * self.scale + 0.1 * outputs.detach().abs().mean()
        return outputs / self.scale


class InPlace(Net):
    mean: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("steps", torch.tensor(0))

    def hidden(self, inputs: Tensor) -> Tensor:
        outputs = super().hidden(inputs)
        if self.training:
            self.mean.lerp_(outputs.detach().mean(0), 0.1)
            self.steps += 1
        return outputs - self.mean


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(False)
        self.last.bias.requires_grad_(False)


# sharing


class Shared(Net):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(6, 6)
        self.again = nn.Sequential(self.middle, nn.Tanh())

    def hidden(self, inputs: Tensor) -> Tensor:
        return self.again(self.middle(super().hidden(inputs)))


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def hidden(self, inputs: Tensor) -> Tensor:
        return self.two(self.one(super().hidden(inputs)))


class Collections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([torch.randn(4, 6), torch.randn(6, 1)])
        self.others = nn.ParameterDict({"bias": torch.zeros(6)})

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(inputs @ self.matrices[0] + self.others["bias"]) @ self.matrices[1]


# what forward does


class InPlaceOps(Net):
    def hidden(self, inputs: Tensor) -> Tensor:
        return self.first(inputs).mul_(2.0).add_(1.0).tanh_()


class Physics(Net):
    """The derivative by the inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.detach().requires_grad_()
        return torch.autograd.grad(super().forward(inputs).sum(), inputs, create_graph=True)[0].sum(1)


class OtherType(Net):
    def hidden(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.first(inputs)).float().exp().to(inputs.dtype)


class KeepsActivations(Net):
    """Keeps its last activations for whoever wants to look at them."""

    last_hidden: Tensor | None = None

    def hidden(self, inputs: Tensor) -> Tensor:
        self.last_hidden = super().hidden(inputs)
        return self.last_hidden


class Modes(Net):
    def hidden(self, inputs: Tensor) -> Tensor:
        return super().hidden(inputs) * (2.0 if self.training else 1.0)


class Delegates(Net):
    """Attributes by a rule of its own, and a copy by its own way."""

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name.removeprefix("my_"))

    def __deepcopy__(self, memo: dict[int, Any]) -> Delegates:
        twin = Delegates()
        twin.load_state_dict(self.state_dict())
        return twin

    def hidden(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.my_first(inputs))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return 3.0 * x**2 * gradient


class OwnFunction(Net):
    def hidden(self, inputs: Tensor) -> Tensor:
        return Cube.apply(super().hidden(inputs))  # type: ignore[return-value] - torch's stub


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent, self.last = kind(1, 5, batch_first=True), nn.Linear(5, 1)  # type: ignore[call-arg]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.recurrent(inputs.unsqueeze(-1))[0][:, -1])


class Attention(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(1, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
        self.last = nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.block(self.first(inputs.unsqueeze(-1))).mean(1))


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)))


IMAGE = nn.Unflatten(1, (1, 2, 2))
FAITHFUL: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 1),
    "mlp": Net,
    "checkpointed": Checkpointed,
    "checkpointed dropout": CheckpointedDropout,
    "reads in backward": ReadsInBackward,
    "tied in a list": TiedList,
    "closure": Closure,
    "closure of a tensor": ClosureOfTensor,
    "bound method": BoundMethod,
    "in a dataclass": InDataclass,
    "buffer in a list": BufferList,
    "layers in a plain list": PlainList,
    "frozen rows": FrozenRows,
    "forward hooks": ForwardHooks,
    "backward hooks": BackwardHooks,
    "complex": Complex,
    "dropout": lambda: between(nn.Dropout(0.5)),
    "dropout twice": DropoutTwice,
    "dropout in a list": DropoutInList,
    "one dropout at two places": one_dropout_at_two_places,
    "subclass of dropout": lambda: between(Scaled(0.25)),
    "subclasses that draw": lambda: between(Doubled(0.25), nn.Tanh(), Renamed(0.25)),
    "dropout of everything": lambda: between(nn.Dropout(1.0)),
    "channel dropout": lambda: nn.Sequential(
        IMAGE, nn.Conv2d(1, 4, 1), nn.Dropout2d(0.5), nn.Flatten(2), nn.Dropout1d(0.3), nn.Flatten(), nn.Linear(16, 1)
    ),
    "alpha dropout": lambda: between(nn.SELU(), nn.AlphaDropout(0.2), nn.FeatureAlphaDropout(0.3)),
    "attention with dropout": lambda: Attention(0.3),
    "permuted": Permuted,
    "draws from numpy": DrawsFromNumpy,
    "moving scale": MovingScale,
    "in place": InPlace,
    "frozen": Frozen,
    "shared": Shared,
    "tied": Tied,
    "collections": Collections,
    "in-place operations": InPlaceOps,
    "physics": Physics,
    "other type": OtherType,
    "keeps activations": KeepsActivations,
    "modes": Modes,
    "delegates": Delegates,
    "own function": OwnFunction,
    "scripted": scripted,
    "data parallel": lambda: nn.DataParallel(Net()),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "attention": Attention,
    "embedding": Tokens,
    "padding": lambda: Tokens(padding_idx=0),
    "sparse gradient": lambda: Tokens(sparse=True, padding_idx=1),
    "scaled by frequency": lambda: Tokens(scale_grad_by_freq=True),
    "batch norm": lambda: between(nn.BatchNorm1d(6), nn.ReLU()),
    "batch norm, cumulative": lambda: between(nn.BatchNorm1d(6, momentum=None)),
    "batch norm, no statistics": lambda: between(nn.BatchNorm1d(6, track_running_stats=False)),
    "batch norm, not affine": lambda: between(nn.BatchNorm1d(6, affine=False)),
    "instance norm": lambda: nn.Sequential(
        IMAGE, nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2, track_running_stats=True), nn.Flatten(), nn.Linear(8, 1)
    ),
    "group norm": lambda: between(nn.GroupNorm(2, 6), nn.GELU()),
    "layer norm": lambda: between(nn.LayerNorm(6), nn.SiLU()),
    "convolution": lambda: nn.Sequential(
        IMAGE, nn.Conv2d(1, 3, 2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 1)
    ),
    "prelu": lambda: between(nn.PReLU(6)),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Linear(6, 1)),
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 1)),
    "orthogonal": lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 6)), nn.Linear(6, 1)),
    "old weight norm": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 1)),
    "old spectral norm": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 6)), nn.Linear(6, 1)),
    "pruned": lambda: nn.Sequential(prune.l1_unstructured(nn.Linear(4, 6), "weight", 0.5), nn.Tanh(), nn.Linear(6, 1)),
    **TRAINING,
}
