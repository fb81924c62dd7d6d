"""`MuLO` with gradients that are scaled, clipped, or no use."""

import copy

import pytest
import torch
from mulo_training import IMPLEMENTATIONS, THETA, assert_same, loss_of, network, train
from torch import nn

from hyperopt_id.optim import MuLO


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    return request.param


def test_scaled_gradients_of_mixed_precision(impl):
    model, other = network(), network()
    ours, theirs = (MuLO(m.parameters(), THETA, impl, max_grad_norm=1.0) for m in (model, other))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, 1.0, float("inf")):
        before = copy.deepcopy(model)
        for m, optimizer in ((model, ours), (other, theirs)):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = factor * loss_of(m)
            if m is model:
                scaler.scale(loss).backward()
                scaler.unscale_(ours)
                scaler.step(ours)
                scaler.update()
            elif factor == 1.0:
                loss.backward()
                theirs.step()
        assert_same(model, other, 1e-6)
        assert torch.equal(model.temperature, before.temperature) == (factor != 1.0)
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_gradients_that_are_no_use_leave_finite_parameters(bad, max_grad_norm, impl):
    model = network()
    optimizer = MuLO(model.parameters(), THETA, impl, max_grad_norm=max_grad_norm)
    for step in range(3):
        train(model, optimizer, 1, step)
        model[0].weight.grad[0, 0, 0] = bad
        model.temperature.grad.fill_(bad)
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(x.isfinite().all() for state in optimizer.state.values() for x in state.values())


@pytest.mark.parametrize("norm", [1e-3, 1e3])
def test_gradients_are_clipped_over_all_parameters(norm, impl):
    model, other = network(), network()
    ours, theirs = MuLO(model.parameters(), THETA, impl, max_grad_norm=norm), MuLO(other.parameters(), THETA, impl)
    for m in (model, other):
        loss_of(m).backward()
    nn.utils.clip_grad_norm_(other.parameters(), norm)
    ours.step()
    theirs.step()
    assert_same(model, other)


def test_an_entry_that_is_no_use_does_not_decide_the_norm(impl):
    models = [network() for _ in range(2)]
    for model, bad in zip(models, (float("nan"), 0.0), strict=True):
        optimizer = MuLO(model.parameters(), THETA, impl, max_grad_norm=0.1)
        loss_of(model).backward()
        model[0].weight.grad[0, 0, 0, 0] = model.temperature.grad = torch.tensor(bad)
        optimizer.step()
    assert_same(*models)
