"""Engines at a fixed point of training, where ridge regression has its hypergradient in closed form."""

import itertools
import math

import pytest
import torch
from laws import assert_close

from hyperopt_id import curvature, hypergrad, rules, trees
from hyperopt_id.dynamics import TrainState, make_dynamics
from hyperopt_id.space import LOG10, Hyper, Space
from hyperopt_id.tasks.toys import ridge

RIDGE = ridge(rows=(20, 10, 10), dimension=3, dtype=torch.float64)
DECAY = 0.3


def at_the_fixed_point(momentum, lr=0.1):
    """SGD on ridge regression at w*(ξ), where nothing moves any more; ξ is tuned."""
    rule = rules.sgd()
    own = Space(
        {
            "lr": Hyper(lr),
            "weight_decay": Hyper(DECAY, LOG10, tune=("global",)),
            "momentum": Hyper(momentum),
        }
    )
    task = RIDGE.task
    params = {"weight": RIDGE.solution(DECAY)[None]}
    z = TrainState(params, {}, rule.init(params))
    phi = make_dynamics(task.loss, rule, own.constrain, own.tuned, curvature.exact)
    train, validation = (trees.take(task.batches(split, [0], 0, 1), (0, 0)) for split in ("train", "validation"))
    target = lambda w, b, raw, batch: task.loss(w, b, batch)[0]  # noqa: E731

    def hypergradient(engine):
        batches = [train] * engine.window
        outcome = engine.call(phi, target, z, own.init(params), batches, validation)
        assert_close(outcome.z.params, params, 1e-12)
        return outcome.hypergradient["weight_decay/global"]

    return hypergradient


def test_a_long_series_is_the_closed_form_of_ridge_regression():
    """dL_V/dξ = -∇L_V (H + ξI)⁻¹ w*, times ξ ln 10 for the raw value."""
    expected = RIDGE.hypergradient(DECAY) * DECAY * math.log(10.0)
    find = at_the_fixed_point(momentum=0.0)
    assert_close(find(hypergrad.neumann(800)), expected, 1e-9)
    error = [(find(hypergrad.neumann(terms)) - expected).abs() for terms in (1, 5, 25, 125)]
    assert all(later < earlier for earlier, later in itertools.pairwise(error))


@pytest.mark.parametrize("terms", [1, 2, 7])
@pytest.mark.parametrize(("momentum", "carry_state"), [(0.0, False), (0.0, True), (0.8, True)])
def test_neumann_is_unroll_at_a_fixed_point(terms, momentum, carry_state):
    """With momentum, only the series through the optimizer's state is."""
    find = at_the_fixed_point(momentum)
    series, unrolled = find(hypergrad.neumann(terms, carry_state=carry_state)), find(hypergrad.unroll(terms))
    assert_close(series, unrolled, 1e-12)
    assert_close(find(hypergrad.forward(terms)), unrolled, 1e-12)


def test_with_momentum_the_frozen_series_is_another_one():
    find = at_the_fixed_point(0.8)
    assert (find(hypergrad.neumann(4)) - find(hypergrad.unroll(4))).abs() > 1e-3
