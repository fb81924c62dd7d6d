"""BatchNorm statistics are constants of the derivative, and dropout is a function of the batch's seed alone."""

import pytest
import torch
from laws import LIFTS, assert_close, assert_identical, copied, cotangent, directions, random, space
from torch import nn

from hyperopt_id import Dataset, curvature, population, rules, supervised, trees
from hyperopt_id.dynamics import Cotangent, TrainState, make_dynamics
from hyperopt_id.hypergrad import neumann
from hyperopt_id.tasks.models import mlp
from hyperopt_id.tasks.task import Batch

DATA = Dataset(
    random(30, 4, seed=1), torch.arange(30) % 3, {"train": (0, 20), "validation": (20, 25), "test": (25, 30)}
)
NORMALIZED = supervised(DATA, lambda: mlp((4, 5, 3), "tanh", True), "cross_entropy", 10)
DROPPED = supervised(DATA, lambda: mlp((4, 8, 3), "tanh", False, 0.5), "cross_entropy", 10)


def rows(seed=0):
    return Batch(torch.arange(10), torch.tensor(seed), "train")


def of_task(task, rule, own):
    return make_dynamics(task.loss, rule, own.constrain, own.tuned, curvature.exact)


def start(task, rule, own):
    params, buffers = task.init(0)
    return TrainState(params, buffers, rule.init(params)), own.init(params)


def test_batch_norm_statistics_move_and_are_constants_of_the_derivative():
    rule, own = rules.sgd(), space(rules.sgd(), ("global",))
    phi = of_task(NORMALIZED, rule, own)
    z, raw = start(NORMALIZED, rule, own)
    before = copied(z)
    here = phi.linearize(z, raw, rows())
    assert_identical(z, before)
    twin = nn.BatchNorm1d(5).double()
    twin(DATA.inputs[:10] @ z.params["layers.0.weight"].T)
    statistics = [name for name in z.buffers if name.endswith(("running_mean", "running_var"))]
    assert len(statistics) == 2
    for name in statistics:
        assert_close(here.z_next.buffers[name], getattr(twin, name.rpartition(".")[2]), 1e-12)
        assert not here.z_next.buffers[name].requires_grad
    v = cotangent(TrainState(z.params, {}, z.state))
    moved = z._replace(buffers=trees.map(lambda x: x + 1, z.buffers))
    there = phi.linearize(moved, raw, rows())
    assert_identical(there.pull_state(v), here.pull_state(v))
    assert_identical(there.pull_raw(v), here.pull_raw(v))


def test_batch_norm_derivative_goes_through_the_batch_statistics():
    rule, own = rules.sgd(), space(rules.sgd(), ("global",))
    phi = of_task(NORMALIZED, rule, own)
    z, raw = start(NORMALIZED, rule, own)
    v, shift = cotangent(TrainState(z.params, {}, z.state)), directions(z.params)
    hyper = phi.constrain(raw, z.params)

    def along(scale):
        moved = z._replace(params={k: w + scale * shift[k] for k, w in z.params.items()})
        return trees.inner(v.params, phi.step(moved, hyper, rows())[0].params)

    pulled = phi.linearize(z, raw, rows()).pull_state(Cotangent(v.params, None))
    assert_close(trees.inner(pulled.params, shift), (along(1e-5) - along(-1e-5)) / 2e-5, 1e-7)


@pytest.mark.parametrize("how", LIFTS)
def test_batch_norm_through_an_engine(how):
    """The series of a network with BatchNorm, one run or several, leaves finite numbers and moved statistics."""
    rule, own = rules.sgd(), space(rules.sgd(), ("global",))
    lifted = lambda function: population.lift(function, how)  # noqa: E731
    phi = make_dynamics(
        lifted(NORMALIZED.loss), population.lift_rule(rule, how), lifted(own.constrain), own.tuned, curvature.exact
    )
    z, raw = start(NORMALIZED, rule, own)
    batch, target = rows(), rows(1)
    if how == "vmap":
        z, raw, batch, target = (trees.stack([part, part]) for part in (z, raw, batch, target))
    objective = lambda w, b, r, rows: lifted(NORMALIZED.loss)(w, b, rows)[0]  # noqa: E731
    outcome = neumann(3).call(phi, objective, z, raw, [batch], target)
    assert trees.total(outcome.hypergradient).isfinite()
    assert not torch.equal(outcome.z.buffers["norms.0.running_mean"], z.buffers["norms.0.running_mean"])


def test_dropout_follows_the_seed_of_the_batch_and_nothing_else():
    rule, own = rules.sgd(), space(rules.sgd(), ("global",))
    phi = of_task(DROPPED, rule, own)
    z, raw = start(DROPPED, rule, own)
    hyper = phi.constrain(raw, z.params)
    state = torch.get_rng_state()
    once, _ = phi.step(z, hyper, rows(5))
    torch.rand(3)
    again, _ = phi.step(z, hyper, rows(5))
    other, _ = phi.step(z, hyper, rows(6))
    assert_identical(once, again)
    assert not torch.equal(once.params["layers.1.weight"], other.params["layers.1.weight"])
    torch.set_rng_state(state)
    phi.linearize(z, raw, rows(5))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_derivative_sees_the_same_dropout_as_the_step():
    rule, own = rules.sgd(), space(rules.sgd(), ("global",))
    phi = of_task(DROPPED, rule, own)
    z, raw = start(DROPPED, rule, own)
    v, shift = cotangent(TrainState(z.params, {}, z.state)), directions(z.params)
    hyper = phi.constrain(raw, z.params)

    def along(scale):
        moved = z._replace(params={k: w + scale * shift[k] for k, w in z.params.items()})
        return trees.inner(v.params, phi.step(moved, hyper, rows(5))[0].params)

    pulled = phi.linearize(z, raw, rows(5)).pull_state(Cotangent(v.params, None))
    assert_close(trees.inner(pulled.params, shift), (along(1e-5) - along(-1e-5)) / 2e-5, 1e-7)
