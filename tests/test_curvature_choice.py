"""Laws of the choice of products in a run: what is logged, what is refused, and which engine needs which side."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperopt_id as hid
from hyperopt_id import curvature, curvature_choice, population
from hyperopt_id.build.products import Products, autocast, first_batch, pick_products
from hyperopt_id.curvature_reference import make_reference
from hyperopt_id.tasks import models
from hyperopt_id.telemetry import Telemetry

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 6, generator=GENERATOR)
DATA = hid.Dataset(X, X.sum(1).sin(), {"train": (0, 30), "validation": (30, 50), "test": (50, 60)})
IMAGES = hid.Dataset(torch.randn(60, 1, 8, 8, generator=GENERATOR), torch.arange(60) % 3, DATA.splits)
SPACE = hid.Space(
    {"lr": hid.Hyper(0.05, hid.LOG10, tune=("global",)), "weight_decay": hid.Hyper(0.0), "momentum": hid.Hyper(0.8)}
)
PULLS, PUSHES = hid.hypergrad.unroll(4), hid.hypergrad.forward(4)


class Swish(torch.autograd.Function):
    """Its derivative is kept, as a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        s = torch.sigmoid(x)
        ctx.save_for_backward(s + x * s * (1 - s))
        return x * s

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g * ctx.saved_tensors[0]


class Kept(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return Swish.apply(inputs)  # type: ignore[return-value]


def kept() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), Kept(), nn.Linear(8, 1))


class Rounding(nn.Linear):
    """A straight-through estimator."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear gives it
        weight = self.weight + ((8.0 * self.weight).round() / 8.0 - self.weight).detach()
        return nn.functional.linear(input, weight, self.bias)


def straight_through() -> nn.Module:
    return nn.Sequential(Rounding(6, 8), nn.Tanh(), nn.Linear(8, 1))


class Scaled(nn.Module):
    """A gradient that is stopped, of a Hessian that is symmetric but for a thousandth."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs / inputs.detach().norm()


def stopped() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), Scaled(), nn.Linear(8, 1))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


class Zeros(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.out = nn.Linear(6, 8, bias=False), nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(nn.functional.normalize(self.linear(inputs * (inputs[:, :1] > 0)), dim=1))


def regression(factory: Any, dtype: torch.dtype = torch.float32) -> hid.Task:
    return hid.supervised(DATA.to("cpu", dtype), factory, "mse", 20)


def picked(task: hid.Task, engine: hid.hypergrad.Engine = PULLS, given: Any = None, **options: Any) -> Products:
    return pick_products(given, engine, task, 0, first_batch(task, 0), **options)


MODELS = {
    "mlp, tanh": (IMAGES, lambda: nn.Sequential(nn.Flatten(), models.mlp((64, 16, 3), "tanh"))),
    "mlp, relu": (IMAGES, lambda: nn.Sequential(nn.Flatten(), models.mlp((64, 32, 32, 3), "relu"))),
    "mlp, batch norm": (
        IMAGES,
        lambda: nn.Sequential(nn.Flatten(), models.mlp((64, 16, 3), "relu", batch_norm=True, dropout=0.3)),
    ),
    "cnn": (IMAGES, lambda: models.cnn((1, 8, 8), classes=3)),
    "transformer": (IMAGES, lambda: models.transformer(features=8, outputs=3, length=8)),
    "pooling": (
        IMAGES,
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.MaxPool2d(2), nn.ReLU(), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 3)
        ),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_kinks_dropout_and_batch_norm_raise_no_false_alarm(name: str, dtype: torch.dtype):
    data, factory = MODELS[name]
    task = hid.supervised(data.to("cpu", dtype), factory, "cross_entropy", 20)
    for seed in range(3):
        assert pick_products(None, PULLS, task, seed, first_batch(task, seed)).curvature is curvature.exact


def hypergradient(task: hid.Task, given: Any, lr: float) -> tuple[Tensor, Tensor]:
    """(the objective after 4 steps, its derivative in log10 of the learning rate)."""
    space = hid.Space(dict(SPACE.hypers) | {"lr": hid.Hyper(lr, hid.LOG10, tune=("global",))})
    parts = hid.assemble(task, rule=hid.rules.sgd(), space=space, engine=PULLS, curvature=given)
    run = population.split(parts.start(), parts.members, parts.lift)[0]
    targets = parts.batches("validation", [0], 0, 1)
    record = parts.update(run, parts.batches("train", [0], 0, 4), targets[0], 0)[1]
    assert record.objective is not None
    return record.objective, record.hypergradient["lr/global"]


@pytest.mark.parametrize("factory", [kept, plain])
def test_the_hypergradient_of_a_wrong_second_derivative_is_right(factory: Any):
    task = regression(factory, torch.float64)
    _, found = hypergradient(task, None, 0.05)
    ahead, behind = (hypergradient(task, curvature.none, 0.05 * 10.0**step)[0] for step in (1e-5, -1e-5))
    torch.testing.assert_close(found, (ahead - behind) / 2e-5, rtol=1e-5, atol=0)


def test_second_derivatives_that_are_not_finite_skip_nothing():
    parts = hid.assemble(regression(Zeros), rule=hid.rules.sgd(), space=SPACE, engine=PULLS)
    assert not hid.run(parts, hid.Plan(updates=5))["skipped_updates"].any()


GIVEN = {
    "right": (plain, curvature.exact, PULLS, logging.INFO, "exact, off by"),
    "wrong": (kept, curvature.exact, PULLS, logging.WARNING, "exact, though the recorded second derivative is off by"),
    "not finite": (Zeros, curvature.exact, PULLS, logging.WARNING, "exact, though .* is not finite"),
    "right differences": (kept, curvature.finite_difference(), PULLS, logging.INFO, "products as given, off by"),
    "noise": (plain, curvature.finite_difference(1e-9), PULLS, logging.WARNING, "though .* off by"),
    "one side of two": (
        straight_through,
        curvature.finite_difference(),
        PULLS,
        logging.WARNING,
        "not symmetric .* this engine needs u J",
    ),
    "not symmetric": (straight_through, curvature.exact, PULLS, logging.WARNING, "exact, though .* not symmetric"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_products_that_are_asked_for_are_kept_and_judged(name: str, caplog: pytest.LogCaptureFixture):
    factory, given, engine, level, message = GIVEN[name]
    with caplog.at_level(logging.INFO, "hyperopt_id"):
        assert picked(regression(factory), engine, given).curvature is given
    (record,) = caplog.records
    assert record.levelno == level
    assert record.getMessage().startswith("curvature: ")
    assert re.search(message, record.getMessage()), record.getMessage()
    assert "\n" not in record.getMessage()


def test_each_engine_takes_its_side_where_the_hessian_is_not_symmetric(caplog: pytest.LogCaptureFixture):
    task = regression(straight_through, torch.float64)
    for factory in (straight_through, stopped):
        with pytest.raises(ValueError, match=r"not symmetric .* this engine needs the products u J"):
            picked(regression(factory, torch.float64), PULLS)
    with caplog.at_level(logging.WARNING, "hyperopt_id"):
        chosen = picked(task, PUSHES).curvature
    assert "the Hessian is not symmetric" in caplog.text
    params, buffers = task.init(0)
    batch = first_batch(task, 0)
    loss = lambda w: task.loss(w, buffers, batch)  # noqa: E731
    reference = make_reference(loss, params)
    assert reference is not None
    for probe in reference.start:
        with torch.enable_grad():
            product = chosen(loss, loss, params)[1](probe.direction)
        torch.testing.assert_close(product, probe.best()[0], rtol=1e-4, atol=1e-6)


def test_without_any_second_derivative_exact_products_are_refused():
    attention = lambda: nn.Sequential(  # noqa: E731
        nn.Unflatten(1, (3, 2)),
        nn.TransformerEncoderLayer(2, 1, 8, 0.0, batch_first=True),
        nn.Flatten(),
        nn.Linear(6, 1),
    )
    with pytest.raises(ValueError, match="exact cannot be taken, for the loss has no second derivative"):
        picked(regression(attention), given=curvature.exact)
    assert picked(regression(attention)).curvature is not curvature.exact


class Coarse(nn.Module):
    """Computes in bfloat16, where differences of any length are noise or bent."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 64), nn.Linear(64, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = Swish.apply(8.0 * self.first(inputs).bfloat16())
        return 8.0 * self.second(hidden.to(self.second.weight.dtype)).sin()  # type: ignore[union-attr]


def test_the_best_of_bad_products_are_taken_with_a_warning_and_worse_are_refused(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    with caplog.at_level(logging.WARNING, "hyperopt_id"):
        picked(regression(Coarse))
    assert re.search(r"finite differences .* off by \d\d %", caplog.text)
    monkeypatch.setattr(curvature_choice, "DOUBTFUL", 0.01)
    with pytest.raises(ValueError, match=r"no products are right: .*take float64") as caught:
        picked(regression(Coarse))
    assert "\n" not in str(caught.value)


def test_under_autocast_products_are_right_or_taken_outside_of_it():
    """Differences of bfloat16 gradients are noise; those of float32 gradients are not."""
    task = regression(kept)
    products = picked(task, under_autocast=True)
    assert products.outside_autocast
    params, buffers = task.init(0)
    batch = first_batch(task, 0)
    loss = lambda w: task.loss(w, buffers, batch)  # noqa: E731
    low = lambda w: autocast(task.loss)(w, buffers, batch)  # noqa: E731
    reference = make_reference(loss, params)
    assert reference is not None
    probe = reference.start[0]
    direction = {key: value.float() for key, value in probe.direction.items()}
    with torch.enable_grad():
        assert probe.error(products.curvature(low, loss, params)[1](direction), 1e-2) < 1e-2
        assert probe.error(products.curvature(low, low, params)[1](direction), 1e-2) > 0.1
    assert not picked(regression(plain), under_autocast=True).outside_autocast


def test_a_run_under_autocast_takes_these_products():
    """Its hypergradient is that of a run in float32, as far as bfloat16 gradients are."""
    found = []
    for low in (False, True):
        execution = hid.Execution(autocast=low)
        engine = hid.hypergrad.neumann(5)
        parts = hid.assemble(regression(kept), rule=hid.rules.sgd(), space=SPACE, engine=engine, execution=execution)
        run = population.split(parts.start(), parts.members, parts.lift)[0]
        batches, targets = parts.batches("train", [0], 0, 5), parts.batches("validation", [0], 0, 1)
        found.append(parts.update(run, batches, targets[0], 0)[1].hypergradient["lr/global"])
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0)


def test_the_choice_draws_from_no_generator_and_is_the_same_each_time():
    task, before = regression(kept), torch.get_rng_state()
    notes = [picked(task).notes[0][0].split(";")[0] for _ in range(2)]
    assert notes[0] == notes[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_engines_without_products_are_not_examined(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "hyperopt_id"):
        assert picked(regression(kept), hid.hypergrad.one_step()).curvature is curvature.none
        assert picked(regression(kept), PULLS, curvature.none).curvature is curvature.none
    assert not caplog.records


@pytest.mark.parametrize("opened_first", [True, False])
def test_the_log_of_a_library_run_says_once_what_was_chosen(tmp_path: Path, opened_first: bool):
    def assemble() -> Any:
        return hid.assemble(regression(plain), rule=hid.rules.sgd(), space=SPACE, engine=PULLS)

    parts = None if opened_first else assemble()
    with Telemetry(tmp_path / "run", {}, total=2, progress="none") as telemetry:
        telemetry.close(hid.run(parts or assemble(), hid.Plan(updates=2), telemetry))
    assert (tmp_path / "run" / "log.txt").read_text().count("curvature: exact, off by") == 1
