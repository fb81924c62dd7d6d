"""Laws of criteria: the loss of a training step and of a split is the function given, on all rows at once; what is not
one number, or would be broadcast, is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, vmap
from torch.func import functional_call

from hyperopt_id.tasks.data import Dataset
from hyperopt_id.tasks.task import Batch, supervised

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(20, 4, generator=GENERATOR, dtype=torch.float64)
SPLITS = {"train": (0, 10), "validation": (10, 15), "test": (15, 20)}
REALS, CLASSES = INPUTS.sum(1).sin(), torch.arange(20) % 3
WEIGHTS = torch.tensor([0.2, 1.0, 5.0])
BATCH = Batch(torch.tensor([4, 1, 7, 2]), torch.tensor(0), "train")


def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


def of_pair(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """The Gaussian likelihood, which torch's own function cannot compute under vmap."""
    mean, variance = outputs
    return (variance.log() + (targets - mean).square() / variance).mean() / 2


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(inputs).squeeze(1), self.spread(inputs).squeeze(1).exp()


class Named(dict[str, Any]):
    """A dictionary whose entries are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@dataclass(frozen=True)
class Described:
    outputs: Tensor
    rows: int


class Within(nn.Linear):
    """Outputs inside of an object."""

    def __init__(self, kind: Callable[[Tensor], Any]) -> None:
        super().__init__(4, 1)
        self.kind = kind

    def forward(self, input: Tensor) -> Any:  # noqa: A002 - the name that nn.Linear gives it
        return self.kind(super().forward(input).squeeze(1))


def flat(width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, width), nn.Flatten(0) if width == 1 else nn.Identity())


CRITERIA: dict[str, tuple[Any, Callable[[], nn.Module], Tensor]] = {
    "l1": (F.l1_loss, flat(1), REALS),
    "huber": (nn.HuberLoss(delta=0.1), flat(1), REALS),
    "smooth l1": (partial(F.smooth_l1_loss, beta=0.3), flat(1), REALS),
    "several outputs": (F.l1_loss, flat(3), INPUTS[:, :3]),
    "binary": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), flat(1), (REALS > 0).double()),
    "label smoothing": (smoothed, flat(3), CLASSES),
    "class weights": (nn.CrossEntropyLoss(WEIGHTS), flat(3), CLASSES),
    "some rows": ("cross_entropy", flat(3), torch.where(CLASSES == 1, -100, CLASSES)),
    "summed": (partial(F.cross_entropy, reduction="sum"), flat(3), CLASSES),
    "two outputs": (of_pair, Pair, REALS),
    "dictionary with attributes": (
        lambda outputs, targets: F.l1_loss(outputs.mean, targets),
        lambda: Within(lambda x: Named(mean=x, hidden=None)),
        REALS,
    ),
    "dataclass": (
        lambda outputs, targets: F.l1_loss(outputs.outputs, targets) / outputs.rows * len(targets),
        lambda: Within(lambda x: Described(x, len(x))),
        REALS,
    ),
    "namespace": (
        lambda outputs, targets: F.l1_loss(outputs.all[0], targets),
        lambda: Within(lambda x: SimpleNamespace(all=[x, "mean"])),
        REALS,
    ),
    "distribution": (
        lambda outputs, targets: -outputs.log_prob(targets).mean(),
        lambda: Within(lambda x: torch.distributions.Laplace(x, torch.ones_like(x), validate_args=False)),
        REALS,
    ),
    "probabilities": ("cross_entropy", flat(3), INPUTS[:, :3].softmax(1)),
    "a class for each pixel": (
        "cross_entropy",
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (3, 2))),
        torch.stack([CLASSES, CLASSES.flip(0)], 1),
    ),
    "pixels that do not count": (
        "cross_entropy",
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (3, 2))),
        torch.stack([CLASSES, torch.where(CLASSES == 1, -100, CLASSES)], 1),
    ),
    "matrices": (
        F.mse_loss,
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))),
        INPUTS[:, None, :3] * WEIGHTS[:2, None],
    ),
}


def expected(criterion: Any, factory: Callable[[], nn.Module], tensors: Any, rows: Any, targets: Tensor) -> Tensor:
    module = factory().double()
    criterion = F.cross_entropy if criterion == "cross_entropy" else criterion
    criterion = criterion.double() if isinstance(criterion, nn.Module) else criterion
    return criterion(functional_call(module, tensors, (INPUTS[rows],)), targets[rows])


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("block", [10_000, 3])
def test_any_function_of_outputs_and_targets_is_a_criterion(name: str, block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hyperopt_id.tasks.task.EVALUATION_ROWS", block)
    criterion, factory, targets = CRITERIA[name]
    task = supervised(Dataset(INPUTS, targets, SPLITS), factory, criterion, 4)
    params, buffers = task.init(1)
    loss, _ = task.loss(params, buffers, BATCH)
    torch.testing.assert_close(loss, expected(criterion, factory, params, BATCH.index, targets), rtol=1e-12, atol=0)
    found = task.evaluate(params, buffers, "train+validation")
    torch.testing.assert_close(
        found["loss"], expected(criterion, factory, params, slice(15), targets), rtol=1e-12, atol=0
    )
    assert ("accuracy" in found) == (targets.dtype == torch.int64)
    if "accuracy" in found:
        outputs, known = functional_call(factory(), params, (INPUTS[:15],)).argmax(1), targets[:15] >= 0
        assert float(found["accuracy"]) == float((outputs == targets[:15])[known].double().mean())
    stacked = {key: torch.stack([value, 2 * value]) for key, value in params.items()}
    lifted = vmap(lambda w: task.loss(w, buffers, BATCH)[0])(stacked)
    torch.testing.assert_close(lifted[0], loss, rtol=1e-12, atol=0)


def test_reports_have_a_criterion_under_its_name():
    data = Dataset(INPUTS, REALS, SPLITS)
    for criterion, given, name in (
        (F.l1_loss, None, "l1_loss"),
        (nn.HuberLoss(), None, "HuberLoss"),
        (partial(F.smooth_l1_loss, beta=0.3), None, "smooth_l1_loss"),
        (lambda outputs, targets: F.l1_loss(outputs, targets), "mae", "mae"),
    ):
        found = supervised(data, flat(1), criterion, 4, name=given)
        metrics = found.evaluate(*found.init(0), "test")
        assert set(metrics) == {"loss", name}
        assert torch.equal(metrics["loss"], metrics[name])


COLUMNS = {  # a column of outputs and a row of targets: the mean over rows, whoever wrote the criterion
    "mse": ("mse", F.mse_loss),
    "l1": (F.l1_loss, F.l1_loss),
    "own": (lambda outputs, targets: (outputs - targets).abs().mean(), F.l1_loss),
    "own, with a column": (lambda outputs, targets: (outputs[:, 0] - targets).abs().mean(), F.l1_loss),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("outputs", ["column", "row"])
def test_a_column_meets_a_row_without_being_broadcast(name: str, outputs: str):
    if (name, outputs) == ("own, with a column", "row"):
        return
    criterion, oracle = COLUMNS[name]
    targets = REALS if outputs == "column" else REALS[:, None]
    factory = (lambda: nn.Linear(4, 1)) if outputs == "column" else flat(1)
    task = supervised(Dataset(INPUTS, targets, SPLITS), factory, criterion, 4)
    params, buffers = task.init(0)
    assert BATCH.index is not None
    weight, bias = params.values()
    rows = INPUTS[BATCH.index] @ weight[0] + bias
    torch.testing.assert_close(task.loss(params, buffers, BATCH)[0], oracle(rows, REALS[BATCH.index]))


@pytest.mark.parametrize("whole", [True, False])
def test_inputs_may_be_one_number_a_row(whole: bool):
    words = torch.arange(20) % 7
    task = supervised(Dataset(words, REALS, SPLITS), lambda: nn.Embedding(7, 1).double(), "mse", None if whole else 4)
    params, buffers = task.init(0)
    rows = torch.arange(10) if whole else BATCH.index
    loss = task.loss(params, buffers, BATCH._replace(index=None if whole else rows))[0]
    exact = (params["weight"][words[rows], 0].double() - REALS[rows]).square().mean()
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


class Turned(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs).T


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.mse_loss(outputs, targets)


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return F.mse_loss(outputs, targets) / self.calls


REFUSED: dict[str, tuple[Any, Callable[[], nn.Module], Tensor, str]] = {
    "turned": ("mse", lambda: Turned(3), INPUTS[:, :3], r"mse: outputs of the model have shape \[2\] each"),
    "same count": ("mse", flat(6), INPUTS[:, :, None].expand(20, 4, 2)[:, :3], r"have shape \[6\].*need \[3, 2\]"),
    "broadcast": ("mse", flat(1), INPUTS, r"the targets need \[4\]"),
    "rows": (partial(F.l1_loss, reduction="none"), flat(1), REALS, r"l1_loss gives values of shape \[2\].*mean"),
    "no tensor": (lambda outputs, targets: 1.0, flat(1), REALS, "custom gives float: a loss is a tensor"),
    "integer": (lambda outputs, targets: (outputs > 0).sum(), flat(1), REALS, "gives torch.int64.*real"),
    "complex": (lambda outputs, targets: (1j * outputs).sum(), flat(1), REALS, "gives torch.complex128.*real"),
    "sizes": (F.l1_loss, flat(3), REALS, r"l1_loss does not take outputs \[2, 3\] float64 and targets \[2\] float64"),
    "type": (nn.BCEWithLogitsLoss(), flat(3), CLASSES, r"BCEWithLogitsLoss does not take .* targets \[2\] int64"),
    "type of a column": (nn.BCEWithLogitsLoss(), flat(1), CLASSES, r"targets \[2\] int64: result type .* Long"),
    "weights": (lambda outputs, targets: F.cross_entropy(outputs, targets, WEIGHTS), flat(3), CLASSES, "does not take"),
    "parameters": (Learned(), flat(1), REALS, r"Learned has parameters of its own \(scale\)"),
    "memory": (Remembering(), flat(1), REALS, "neither remember"),
    "random": (lambda outputs, targets: (outputs * torch.rand(2)).mean(), flat(1), REALS, "nor draw random"),
    "detached": (
        lambda outputs, targets: outputs.detach().mean(),
        flat(1),
        REALS,
        "custom gives a loss without a gradient",
    ),
    "constant": (lambda outputs, targets: torch.tensor(1.0), flat(1), REALS, "custom gives a loss without a gradient"),
    "numpy": (lambda outputs, targets: outputs.numpy().mean(), flat(1), REALS, "custom does not take outputs"),
    "numpy number": (
        lambda outputs, targets: np.float64(1.0),
        flat(1),
        REALS,
        "custom gives float64: a loss is a tensor",
    ),
    "negative class": ("cross_entropy", flat(3), CLASSES - 1, "classes counted from 0, and targets hold -1"),
    "class": (nn.L1Loss, flat(1), REALS, r"not the class L1Loss: give L1Loss\(\)"),
    "number": (3, flat(1), REALS, "a criterion is one of cross_entropy, mse or a function"),
    "name": ("l1", flat(1), REALS, "unknown criterion 'l1': use one of cross_entropy, mse, or a function"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_loss_of_these_outputs_is_refused(name: str):
    criterion, factory, targets, message = REFUSED[name]
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as caught:
        supervised(Dataset(INPUTS, targets, SPLITS), factory, criterion, 4)
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), before)


def test_turned_outputs_are_refused_where_they_first_differ():
    """Two rows of two outputs look the same either way; a batch and a split do not."""
    task = supervised(Dataset(INPUTS, INPUTS[:, :2], SPLITS), lambda: Turned(2), "mse", 4)
    with pytest.raises(ValueError, match=r"mse: outputs have shape \[2, 4\], targets \[4, 2\]"):
        task.loss(*task.init(0), BATCH)


class Physics(nn.Module):
    """The derivative of a network by its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.detach().requires_grad_()
        return torch.autograd.grad(torch.tanh(self.linear(inputs)).sum(), inputs, create_graph=True)[0].sum(1)


def test_a_forward_may_differentiate_by_its_inputs():
    task = supervised(Dataset(INPUTS, REALS, SPLITS), Physics, "mse", 4)
    params, buffers = task.init(0)
    variables = {key: value.clone().requires_grad_() for key, value in params.items()}
    live = expected(F.mse_loss, Physics, variables, BATCH.index, REALS)
    loss, _ = task.loss(variables, buffers, BATCH)
    torch.testing.assert_close(loss, live, rtol=1e-12, atol=0)
    found, oracle = (torch.autograd.grad(value, list(variables.values())) for value in (loss, live))
    torch.testing.assert_close(found, oracle, rtol=1e-12, atol=0)
    with torch.no_grad():
        metrics = task.evaluate(variables, buffers, "test")
    torch.testing.assert_close(metrics["loss"], expected(F.mse_loss, Physics, params, slice(15, 20), REALS))
    assert not metrics["loss"].requires_grad
