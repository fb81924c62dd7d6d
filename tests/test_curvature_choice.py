"""Laws of the choice of products in a run: what is logged, what is refused, and which engine needs which side."""

import dataclasses
import logging
import re
from typing import Any

import pytest
import torch
from curvature_tasks import (
    DATA,
    GENERATOR,
    PULLS,
    PUSHES,
    Zeros,
    kept,
    picked,
    plain,
    regression,
    spectral,
    stopped,
    straight_through,
    ungraphed,
    with_layer,
)
from second_derivatives import Once, Scaled
from torch import Tensor, nn

import hyperopt_id as hid
from hyperopt_id import curvature, curvature_choice
from hyperopt_id.build import products
from hyperopt_id.build.products import autocast, first_batch, pick_products
from hyperopt_id.curvature_reference import make_reference
from hyperopt_id.tasks import models

IMAGES = hid.Dataset(torch.randn(60, 1, 8, 8, generator=GENERATOR), torch.arange(60) % 3, DATA.splits)


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
    "the right side": (straight_through, curvature.rewritten, PULLS, logging.INFO, "given, off by .* in u J, for"),
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


@pytest.mark.parametrize("factory", [straight_through, stopped, spectral])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_engine_takes_its_side_where_the_hessian_is_not_symmetric(
    factory: Any, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
):
    """(u J) v = u (J v), also where differences jump."""
    task, found = regression(factory, dtype), {}
    with caplog.at_level(logging.INFO, "hyperopt_id"):
        found = {engine.pushes: picked(task, engine).curvature for engine in (PULLS, PUSHES)}
    assert found == {False: curvature.rewritten, True: curvature.rewritten_forward}
    assert caplog.text.count("the Hessian is not symmetric") == 2
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    params, buffers = task.init(0)
    batch = first_batch(task, 0)
    loss = lambda w: task.loss(w, buffers, batch)  # noqa: E731
    reference = make_reference(loss, params)
    assert reference is not None
    u, v = ({k: x.to(dtype) for k, x in probe.direction.items()} for probe in reference.start[1:])
    with torch.enable_grad():
        pulled, pushed = found[False](loss, loss, params)[1](u), found[True](loss, loss, params)[1](v)
    form = sum((u[k] * pushed[k]).sum() for k in u)
    torch.testing.assert_close(sum((pulled[k] * v[k]).sum() for k in u), form, rtol=1e-4, atol=1e-6)


def test_functions_whose_backward_is_another_derivative_are_refused_with_a_way_out():
    def reversal() -> nn.Module:
        return with_layer(lambda h: torch.sin(Scaled.apply(h.tanh(), -1.0)))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"not symmetric .* needs the products u J.*by detach\(\)") as caught:
        picked(regression(reversal), PULLS)
    assert "\n" not in str(caught.value)


def zero_at(row: int) -> hid.Task:
    """Norms of rows of which one is zero."""
    inputs = DATA.inputs + 3.0
    inputs[row] = 0.0
    data = hid.Dataset(inputs, DATA.targets, DATA.splits)
    return hid.supervised(data, Zeros, "mse", None)


CHOSEN_ON_FEW = {
    "right": (lambda: regression(plain), "exact, off by"),
    "wrong": (lambda: regression(kept), "exact, rewritten, off by"),
    "without a graph": (lambda: regression(ungraphed), "finite differences"),
    "stopped": (lambda: regression(stopped), "exact, rewritten"),
    "not finite": (lambda: zero_at(0), "exact, rewritten, off by .* is not finite"),
    "not finite elsewhere": (lambda: zero_at(29), "exact, rewritten, off by .* is not finite"),
    "a row is not enough": (
        lambda: hid.supervised(DATA, lambda: with_layer(nn.BatchNorm1d(8)), "mse", 8),
        "exact, off by",
    ),
}


@pytest.mark.parametrize("name", CHOSEN_ON_FEW)
def test_few_rows_choose_what_all_of_them_choose(name: str, monkeypatch: pytest.MonkeyPatch):
    make, start = CHOSEN_ON_FEW[name]
    task = make()
    expected = picked(task)
    rows = []
    thin = lambda batch, share: rows.append(share) or task.thin(batch, share)  # noqa: E731
    monkeypatch.setattr(products, "FEW", 1)
    found = picked(dataclasses.replace(task, thin=thin))
    assert rows == [products.LEAST_SHARE]
    assert re.match(f"curvature: {start}", found.notes[0][0]), found.notes
    assert re.match(f"curvature: {start}", expected.notes[0][0])


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
        hidden = Once.apply(8.0 * self.first(inputs).bfloat16())
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
    task = regression(ungraphed)
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


def test_a_number_that_is_taken_out_and_put_back_is_no_constant():
    """In float32 a difference of length 1e-7 does not show it."""

    def scaled(h: Tensor) -> Tensor:
        return h * torch.tensor(h.detach().square().mean().item())

    for dtype in (torch.float32, torch.float64):
        with pytest.raises(ValueError, match=r"the Hessian is not symmetric"):
            picked(regression(lambda: with_layer(scaled), dtype))
        assert picked(regression(lambda: with_layer(scaled), dtype), PUSHES).curvature is not curvature.exact


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
