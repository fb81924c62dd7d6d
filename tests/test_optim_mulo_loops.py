"""`MuLO` in training loops of all kinds: groups, closures, schedules, mixed precision, bad gradients, more devices."""

import gc
import io
import weakref

import pytest
import torch
from laws import assert_identical
from mulo_cases import random_theta
from mulo_training import IMPLEMENTATIONS, THETA, assert_same, loss_of, network, train
from torch import nn
from torch.optim import lr_scheduler as schedules

from hyperopt_id import mulo
from hyperopt_id.kernels import mulo as kernels
from hyperopt_id.optim.mulo import MuLO


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    return request.param


def test_groups_have_their_own_settings(impl):
    first, second = (nn.Parameter(torch.randn(4, 5, generator=torch.Generator().manual_seed(0))) for _ in range(2))
    other = random_theta(1)
    optimizer = MuLO(
        [{"params": [first]}, {"params": [second], "lr": 0.5, "weight_decay": 0.2, "theta": other}], THETA, impl
    )
    alone = [nn.Parameter(p.detach().clone()) for p in (first, second)]
    apart = [MuLO(alone[:1], THETA, impl), MuLO(alone[1:], other, impl, lr=0.5, weight_decay=0.2)]
    for p, q in zip((first, second), alone, strict=True):
        p.grad = q.grad = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    for each in (optimizer, *apart):
        each.step()
    assert_identical([first, second], alone)
    assert not torch.equal(first, second)


def test_parameters_of_one_age_and_theta_take_one_call(monkeypatch):
    calls = []
    monkeypatch.setattr(kernels, "mulo_step", lambda params, *rest: calls.append(len(params)))
    if "cpu" not in IMPLEMENTATIONS:
        pytest.skip("needs a C++ compiler")
    model = network()
    params = list(model.parameters())
    optimizer = MuLO([{"params": params[:3]}, {"params": params[3:], "lr": 0.1}], THETA, "cpu")
    train(model, optimizer, 1)
    assert calls == [len(params) - 1]  # one has no gradient
    late = nn.Parameter(torch.randn(3))
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones(3)
    train(model, optimizer, 1)
    late.grad = torch.ones(3)
    optimizer.step()
    assert sorted(calls[1:]) == [1, len(params) - 1, len(params) - 1]


def test_parameters_that_rest_in_turns_take_one_call_for_each_age(monkeypatch):
    calls = []
    monkeypatch.setattr(kernels, "mulo_step", lambda params, *rest: calls.append(len(params)))
    if "cpu" not in IMPLEMENTATIONS:
        pytest.skip("needs a C++ compiler")
    params = [nn.Parameter(torch.randn(3)) for _ in range(8)]
    optimizer = MuLO(params, THETA, "cpu")
    for step in range(8):  # all have taken four steps then
        for n, param in enumerate(params):
            param.grad = torch.ones(3) if (step ^ n).bit_count() % 2 else None
        optimizer.step()
    calls.clear()
    for param in params:
        param.grad = torch.ones(3)
    optimizer.step()
    assert calls == [8]


def test_parameters_that_a_wrapper_has_put_in_the_place_of_others(impl):
    first, second = (nn.Parameter(torch.full((3, 4), 0.5)) for _ in range(2))
    optimizer, alone = MuLO([first], THETA, impl), MuLO([second], THETA, impl)
    other = nn.Parameter(first.detach().clone())
    optimizer.param_groups[0]["params"] = [other]
    other.grad, second.grad = torch.ones(3, 4), torch.ones(3, 4)
    optimizer.step()
    alone.step()
    assert_identical(other, second)


def test_a_parameter_counts_its_steps_from_its_first_gradient_on(impl):
    early, late, twin = (nn.Parameter(torch.full((3,), 0.5)) for _ in range(3))
    optimizer = MuLO([early, late], THETA, impl)
    reference = MuLO([twin], THETA, impl)
    for step in range(4):
        early.grad = torch.ones(3)
        if step >= 2:
            late.grad, twin.grad = torch.full((3,), 0.1 * step), torch.full((3,), 0.1 * step)
            reference.step()
        optimizer.step()
    assert_identical(late, twin)
    assert [optimizer.state[p]["step"].item() for p in (early, late)] == [4.0, 2.0]
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file))
    assert [optimizer.state[p]["step"].item() for p in (early, late)] == [4.0, 2.0]


SCHEDULES = {
    "step": lambda o: schedules.StepLR(o, 2),
    "several steps": lambda o: schedules.MultiStepLR(o, [2]),
    "constant": schedules.ConstantLR,
    "linear": schedules.LinearLR,
    "exponential": lambda o: schedules.ExponentialLR(o, 0.9),
    "polynomial": schedules.PolynomialLR,
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 3),
    "restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 2),
    "function": lambda o: schedules.LambdaLR(o, lambda step: 0.5**step),
    "factor": lambda o: schedules.MultiplicativeLR(o, lambda step: 0.9),
    "one cycle": lambda o: schedules.OneCycleLR(o, 1.0, total_steps=9, cycle_momentum=False),
    "cycles": lambda o: schedules.CyclicLR(o, 0.1, 1.0, cycle_momentum=False),
    "in turn": lambda o: schedules.SequentialLR(o, [schedules.ConstantLR(o), schedules.ExponentialLR(o, 0.9)], [2]),
    "averages": lambda o: torch.optim.swa_utils.SWALR(o, 0.05),
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(make):
    """Rates are those that any other optimizer gets, and each step is one of its rate."""
    model, other = network(), network()
    ours, theirs = MuLO(model.parameters(), THETA, lr=0.7), MuLO(other.parameters(), THETA, lr=0.7)
    plain = torch.optim.SGD(network().parameters(), lr=0.7)
    ahead, reference = make(ours), make(plain)
    for step in range(4):
        theirs.param_groups[0]["lr"] = plain.param_groups[0]["lr"]
        for m, optimizer in ((model, ours), (other, theirs)):
            train(m, optimizer, 1, step)
        plain.step()
        ahead.step()
        reference.step()
    assert_same(model, other)


def test_closures_schedules_and_accumulated_gradients(impl):
    model, other = network(), network()
    ours, theirs = (MuLO(m.parameters(), THETA, impl, lr=2.0) for m in (model, other))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(ours, 4)
    for step in range(4):
        theirs.param_groups[0]["lr"] = schedule.get_last_lr()[0]

        def closure():
            ours.zero_grad()
            (loss_of(model, slice(0, 10)) / 2).backward()
            (loss_of(model, slice(10, 20)) / 2).backward()
            return loss_of(model)

        expected = loss_of(model).item()
        assert ours.step(closure).item() == expected
        schedule.step()
        theirs.zero_grad()
        for rows in (slice(0, 10), slice(10, 20)):
            (loss_of(other, rows) / 2).backward()
        theirs.step()
        assert step or ours.param_groups[0]["lr"] < 2.0
    assert_same(model, other)


def test_a_compiled_model(impl):
    model, other = network(), network()
    optimizer, plain = MuLO(model.parameters(), THETA, impl), MuLO(other.parameters(), THETA, impl)
    train_one = torch.compile(lambda: loss_of(model, slice(0, 10)), backend="aot_eager")
    for _ in range(2):
        optimizer.zero_grad()
        train_one().backward()
        optimizer.step()
        plain.zero_grad()
        loss_of(other, slice(0, 10)).backward()
        plain.step()
    assert_same(model, other, 1e-6)


def test_a_step_in_a_compiled_loop(impl):
    """It is called as it is, with no warning."""
    model, other = network(), network()
    optimizer, plain = MuLO(model.parameters(), THETA, impl), MuLO(other.parameters(), THETA, impl)

    @torch.compile(backend="eager")
    def compiled():
        loss = loss_of(model, slice(0, 10))
        loss.backward()
        optimizer.step()

    for _ in range(2):
        optimizer.zero_grad()
        compiled()
        train(other, plain, 1)
    assert_same(model, other, 1e-6)


def test_empty_parameters_and_parameters_that_are_added_later(impl):
    model = network()
    empty = nn.Parameter(torch.empty(0, 5))
    empty.grad = torch.empty(0, 5)
    optimizer = MuLO([empty, *model[0].parameters()], THETA, impl)
    train(model, optimizer, 1)
    optimizer.add_param_group({"params": model[3].parameters(), "lr": 0.1, "theta": mulo.unpack(THETA)})
    before = model[3].weight.detach().clone()
    train(model, optimizer, 1)
    assert not torch.equal(model[3].weight, before)


def test_several_devices():
    """A device without a kernel, here one without memory, does not hinder another."""
    here, twin = (nn.Parameter(torch.ones(4, 5)) for _ in range(2))
    there = nn.Parameter(torch.ones(3, device="meta"))
    optimizer, alone = MuLO([here, there], THETA), MuLO([twin], THETA)
    for p in (here, twin, there):
        p.grad = torch.ones_like(p)
    for each in (optimizer, alone) * 2:
        each.step()
    assert_identical(here, twin)
    assert optimizer.state[there]["momentum"].device.type == "meta"


@pytest.mark.gpu
def test_a_parameter_on_a_gpu_and_one_beside_it():
    here, there = nn.Parameter(torch.ones(4, 5)), nn.Parameter(torch.ones(4, 5, device="cuda"))
    optimizer = MuLO([here, there], THETA)
    for _ in range(3):
        here.grad = torch.randn(4, 5)
        there.grad = here.grad.cuda()
        optimizer.step()
    torch.testing.assert_close(here, there.cpu(), rtol=1e-3, atol=1e-4)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[there]["momentum"].device.type == "cuda"


def test_nothing_is_kept_alive():
    model = network()
    optimizer = MuLO(model.parameters(), THETA)
    train(model, optimizer, 2)
    kept = weakref.ref(model[0].weight)
    del model, optimizer
    gc.collect()
    assert kept() is None
