"""Modules that are refused when a task is built: lost state, randomness, outputs that do not fit."""

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from user_modules import DATA, Net, regression

from hyperopt_id.tasks.data import Dataset
from hyperopt_id.tasks.penn_treebank import Streams, language_task
from hyperopt_id.tasks.task import supervised


class Transient(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.mean += inputs.mean(0)
        return self.linear(inputs)


class Grows(Net):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, inputs: Tensor) -> Tensor:
        self.mean = torch.cat([self.mean, inputs[0]])
        return self.linear(inputs)


class Lazy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, inputs: Tensor) -> Tensor:
        self.mean = inputs.mean(0)
        return self.linear(inputs)


class Clips(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        self.linear.weight.data.clamp_(-0.01, 0.01)
        return self.linear(inputs)


class Remembers(Net):
    last: Tensor | float = 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.linear(inputs) + self.last
        self.last = outputs.detach()
        return outputs


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (Transient, "forward changes the buffer mean, which is registered with persistent=False"),
        (Grows, r"forward changes the shape of the buffer mean from \[4\] to \[8\]"),
        (Lazy, "forward makes the buffer mean: register it in __init__ as a tensor"),
        (Clips, "forward writes to the parameter linear.weight"),
        (Remembers, "other outputs when a training step is repeated"),
    ],
)
def test_state_that_would_be_lost_is_refused(factory: Callable[[], nn.Module], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        regression(factory)
    assert "\n" not in str(caught.value)


# randomness


class Drops(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(F.dropout(inputs, 0.01, self.training))  # two rows are most often kept whole


class Samples(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs if self.training else inputs + torch.randn_like(inputs))


class Skips(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs if random.random() < 0.99 else 2.0 * inputs)


@pytest.mark.parametrize("factory", [Drops, Samples, Skips, lambda: nn.Sequential(Net(), nn.RReLU())])
def test_random_numbers_of_a_global_generator_are_refused(factory: Callable[[], nn.Module]):
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(ValueError, match=r"draws from a global generator .* use nn\.Dropout"):
        regression(factory)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_random_numbers_in_a_language_model_are_refused():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 7)

        def forward(self, tokens: Tensor) -> Tensor:
            return F.dropout(self.table(tokens), 0.5, self.training)

    words = torch.arange(200) % 7
    with pytest.raises(ValueError, match="draws from a global generator"):
        language_task(Streams.create(words, words, 1, 5, 0.3, "cpu"), Words, torch.float32)


def test_building_a_task_leaves_the_generators_alone():
    before = torch.get_rng_state(), random.getstate()
    regression(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1), nn.BatchNorm1d(1)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


# factories, layers and outputs


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (nn.Linear(4, 1), "a function that makes the model is needed, such as .*; given Linear itself"),
        ("mlp", "a function that makes the model is needed, .*; given str itself"),
        (lambda: 3, "a function that makes the model is needed, .*; it returned int, which is no nn.Module"),
        (lambda: nn.LSTM(4, 1), "the model returns tuple: its forward must return one tensor"),
        (lambda: nn.Bilinear(4, 4, 1), r"does not take the data's inputs, of shape \[4\] each: .* missing 1 required"),
    ],
)
def test_models_that_cannot_be_trained_are_refused(factory: Callable[[], nn.Module], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        regression(factory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "criterion", "message"),
    [
        (torch.arange(20), "mse", "mse needs targets that are real numbers, these are torch.int64"),
        (
            torch.arange(20, dtype=torch.int32),
            "cross_entropy",
            r"int64, these are torch.int32: use targets.long\(\)",
        ),
        (torch.zeros(20, 3, dtype=torch.int64), "cross_entropy", r"shape \[.*\] each, 1 classes need \[1, 3\]"),
        (
            torch.rand(20, 7),
            "cross_entropy",
            r"or probabilities of the outputs' shape, .* \[7\] each: use",
        ),
    ],
)
def test_targets_that_do_not_suit_the_criterion_are_refused(targets: Tensor, criterion: str, message: str):
    with pytest.raises(ValueError, match=message):
        supervised(Dataset(DATA.inputs, targets, DATA.splits), Net, criterion, 5)


def test_a_module_that_needs_batches_of_one_size_is_named_when_a_split_has_another():
    class Rows(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("state", torch.zeros(5, 1))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.linear(inputs) + self.state[: len(inputs)]

    task = regression(Rows)
    with pytest.raises(ValueError, match=r"does not take \d+ rows of the train split at once in evaluation mode: The"):
        task.evaluate(*task.init(0), "train")
