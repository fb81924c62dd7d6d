"""Modules that no task can train as themselves are refused in one line that names the part and the cure."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from live_modules import FAITHFUL, Net
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from user_modules import regression

from hyperopt_id import trees
from hyperopt_id.derivatives import gradient
from hyperopt_id.tasks.functional import FunctionalModule


class Counter(Net):
    """A warm-up by a number in Python."""

    steps = 0

    def hidden(self, inputs: Tensor) -> Tensor:
        self.steps += 1
        return super().hidden(inputs) * min(1.0, self.steps / 1000)


class RareCounter(Net):
    """One whose first thousand calls look alike."""

    steps = 0

    def hidden(self, inputs: Tensor) -> Tensor:
        self.steps += 1
        return super().hidden(inputs) * (2.0 if self.steps % 1000 == 0 else 1.0)


class EvaluationCounter(Net):
    """One that counts evaluations."""

    evaluations = 0

    def hidden(self, inputs: Tensor) -> Tensor:
        self.evaluations += not self.training
        return super().hidden(inputs) * (1.0 + 1e-3 * self.evaluations)


class RareEvaluationCounter(EvaluationCounter):
    def hidden(self, inputs: Tensor) -> Tensor:
        self.evaluations += not self.training
        return Net.hidden(self, inputs)


class Average(Net):
    """A moving average that is no buffer, and that only reports read."""

    def __init__(self) -> None:
        super().__init__()
        self.average = torch.zeros(6)

    def hidden(self, inputs: Tensor) -> Tensor:
        outputs = super().hidden(inputs)
        self.average = 0.9 * self.average + outputs.detach().mean(0)
        return outputs


class FirstBatch(Net):
    """Normalized by what the first call sees."""

    scale: Tensor | None = None

    def hidden(self, inputs: Tensor) -> Tensor:
        outputs = self.first(inputs)
        if self.scale is None:
            self.scale = outputs.detach().std()
        return outputs / self.scale


class FirstEvaluation(FirstBatch):
    """The same in evaluation mode alone."""

    def hidden(self, inputs: Tensor) -> Tensor:
        return Net.hidden(self, inputs) if self.training else super().hidden(inputs)


class KeepsList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norms: list[float] = []

    def hidden(self, inputs: Tensor) -> Tensor:
        self.norms.append(inputs.norm().item())
        return super().hidden(inputs)


class WritesInputs(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.mul_(0.5))


class Reentrant(Net):
    def hidden(self, inputs: Tensor) -> Tensor:
        return checkpoint(super().hidden, inputs.requires_grad_(), use_reentrant=True)


class DropsTwiceRecomputed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def body(self, inputs: Tensor) -> Tensor:
        return self.drop(torch.tanh(self.first(self.drop(inputs))))

    def hidden(self, inputs: Tensor) -> Tensor:
        return checkpoint(self.body, inputs, use_reentrant=False)


class LargestNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 6, max_norm=0.1)

    def hidden(self, inputs: Tensor) -> Tensor:
        return super().hidden(inputs) + self.table((inputs[:, 0] > 0).long())


class CountingHook(Net):
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.first.weight.register_hook(self.divided)

    def divided(self, gradient: Tensor) -> Tensor:
        self.calls += 1
        return gradient / self.calls


class Unfreezes(Net):
    """A layer that is frozen in even steps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0))

    def hidden(self, inputs: Tensor) -> Tensor:
        self.first.requires_grad_(bool(self.steps % 2))
        self.steps += 1
        return super().hidden(inputs)


class OddRows(Net):
    def hidden(self, inputs: Tensor) -> Tensor:
        assert len(inputs) == 77, "77 rows are needed"
        return super().hidden(inputs)


class Silent(Net):
    """An error without a message."""

    def hidden(self, inputs: Tensor) -> Tensor:
        raise RuntimeError


class SilentCopy(Net):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        raise RuntimeError


class AfterAccumulation(Net):
    def __init__(self) -> None:
        super().__init__()
        self.first.weight.register_post_accumulate_grad_hook(lambda parameter: None)


class DrawnOrder(Net):
    def __init__(self) -> None:
        super().__init__()
        self.order = random.sample(range(4), 4)

    def hidden(self, inputs: Tensor) -> Tensor:
        return super().hidden(inputs[:, self.order])


class DrawnClosure(Net):
    def __init__(self) -> None:
        super().__init__()
        shift = torch.randn(6)
        self.function = lambda hidden: hidden + shift

    def hidden(self, inputs: Tensor) -> Tensor:
        return self.function(super().hidden(inputs))


class OwnGenerator(Net):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator()
        generator.seed()
        nn.init.normal_(self.first.weight, generator=generator)


class RemovesBuffer(Net):
    mean: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def hidden(self, inputs: Tensor) -> Tensor:
        self.mean = None
        return super().hidden(inputs)


class Sparse(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, 6))

    def hidden(self, inputs: Tensor) -> Tensor:
        return F.embedding((inputs[:, 0] > 0).long(), self.table, sparse=True)


class Constant(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).detach()


class SubclassOfChannelDropout(nn.Dropout1d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        return nn.functional.dropout1d(input.unsqueeze(-1), self.p).squeeze(-1)


def random_width() -> nn.Module:
    width = random.randrange(2, 1000)
    return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 1))


def counted() -> Callable[[], nn.Module]:
    numbers = itertools.count()

    def make() -> nn.Module:
        module = Net()
        module.number = next(numbers)  # type: ignore[assignment]
        return module

    return make


class Closure(Net):
    def __init__(self) -> None:
        super().__init__()
        self.function: Any = lambda inputs: torch.tanh(self.first(inputs))

    def hidden(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


def handed_out(module: nn.Module) -> Callable[[], nn.Module]:
    return lambda: module


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "counter": (Counter, "other outputs when a training step is repeated.*keep what it remembers in buffers"),
    "rare counter": (RareCounter, "forward changes the attribute steps at every call.*make it a buffer"),
    "evaluations": (
        EvaluationCounter,
        "other outputs when an evaluation is repeated.*in buffers",
    ),
    "rare evaluations": (RareEvaluationCounter, "forward changes the attribute evaluations at every call"),
    "average": (Average, "forward changes the attribute average at every call.*make it a buffer"),
    "list": (KeepsList, r"forward changes the attribute norms\.\d at every call"),
    "first batch": (FirstBatch, "outputs of the model differ from that of the module itself.*what a first call keeps"),
    "first evaluation": (
        FirstEvaluation,
        "outputs of the model in evaluation mode differ from that of the module itself",
    ),
    "writes to inputs": (WritesInputs, r"forward writes to its inputs, which are the data.*inputs\.clone\(\)"),
    "reentrant": (Reentrant, "use_reentrant=False"),
    "dropout twice, recomputed": (
        DropsTwiceRecomputed,
        "recomputes a dropout layer.*give each call an nn.Dropout",
    ),
    "after accumulation": (
        AfterAccumulation,
        "hook of register_post_accumulate_grad_hook.*use register_hook",
    ),
    "drawn order": (DrawnOrder, r"order\.\d differs from seed to seed.*make it a tensor and a buffer"),
    "drawn closure": (DrawnClosure, "differ.* from that of the module itself.*a closure.*make it a buffer"),
    "own generator": (OwnGenerator, "called twice at one seed.*differ in first.weight: let it draw from the global"),
    "counted": (counted(), "called twice at one seed.*differ in number: .*count nothing"),
    "random width": (random_width, r"called at seeds 0 and 1.*another structure \(0.weight: .*\)"),
    "removes a buffer": (RemovesBuffer, "forward removes the buffer mean"),
    "sparse": (Sparse, "the gradient of table is a sparse tensor.*set sparse=False"),
    "constant": (Constant, "the outputs of the model do not depend on any parameter that is trained"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 1)),
        "0.weight has no shape yet.*give the layer",
    ),
    "recurrent dropout": (
        lambda: nn.GRU(4, 1, 2, dropout=0.5),
        r"the model \(GRU\) draws dropout.*make a GRU for each",
    ),
    "subclass of channel dropout": (
        lambda: nn.Sequential(nn.Linear(4, 6), SubclassOfChannelDropout(0.5), nn.Linear(6, 1)),
        "draws from a global generator",
    ),
    "counting hook": (CountingHook, "changes the attribute calls at every call, or a hook does.*make it a buffer"),
    "unfreezes": (Unfreezes, r"forward may not change requires_grad: let it use weight\.detach\(\)"),
    "table with a largest norm": (
        LargestNorm,
        r"writes to the parameter table\.weight, .*max_norm.*use a buffer",
    ),
    "other number of rows": (OddRows, r"does not take the data's inputs, of shape \[4\] each: 77 rows are needed"),
    "an error without a message": (Silent, r"does not take the data's inputs, of shape \[4\] each: RuntimeError"),
    "a copy without a message": (handed_out(SilentCopy()), r"which cannot be copied \(RuntimeError\)"),
    "a class that needs arguments": (nn.Linear, r"nn.Linear\(4, 1\); given one that fails \(.*missing 2"),
    "closure of what is handed out": (
        handed_out(Closure()),
        "reads first.weight of the module that",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_module_that_cannot_be_trained_as_itself_is_refused_in_one_line(name: str):
    factory, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        regression(factory)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["mlp", "frozen rows", "keeps activations", "checkpointed", "tied in a list"])
def test_instances_are_used_again_and_no_graph_is_kept(name: str):
    """One instance for plain steps, and another while the graph of an earlier gradient is there."""
    module = FunctionalModule(FAITHFUL[name], torch.device("cpu"), torch.float64)
    module.check(torch.ones(3, 4))
    params, _ = module.init(0)

    def loss(variables: dict[str, Tensor]) -> tuple[Tensor, None]:
        return module.train(variables, {}, torch.tensor(0), torch.ones(3, 4))[0].square().sum(), None

    for _ in range(5):
        gradient(loss, trees.variables(params))
    before = len(module.training.own_instances())
    assert before <= 2  # the check itself takes two gradients at a time
    kept = [gradient(loss, trees.variables(params), create_graph=True) for _ in range(2)]
    for _ in range(5):
        gradient(loss, trees.variables(params))
    assert len(module.training.own_instances()) == 3
    del kept
    gradient(loss, trees.variables(params))
    assert len(module.training.own_instances()) == 3
