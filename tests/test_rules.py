"""Laws of update rules: rules x {twin of torch.optim, purity, vmap = loop, derivatives at every granularity}."""

import math

import pytest
import torch
from laws import (
    GRANULARITIES,
    HYPERS,
    RULES,
    assert_close,
    assert_identical,
    copied,
    initial,
    random,
    raw_values,
    space,
    trained,
)
from torch.nn.utils import clip_grad_norm_

from hyperopt_id import rules, trees

SMALL = {"a": random(2, seed=1), "b": random(1, 2, seed=2)}  # gradcheck evaluates once a number
SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
TWINS = {  # name: (rule, natural values, torch optimizer, its options, clipping)
    "plain": (rules.sgd(), {"lr": 0.1}, SGD, {"lr": 0.1}, None),
    "momentum": (rules.sgd(), {"lr": 0.1, "momentum": 0.9}, SGD, {"lr": 0.1, "momentum": 0.9}, None),
    "weight decay": (
        rules.sgd(),
        {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.3},
        SGD,
        {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.3},
        None,
    ),
    "dampening": (
        rules.sgd(dampening=0.3),
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "dampening": 0.3},
        None,
    ),
    "nesterov": (
        rules.sgd(nesterov=True),
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
        None,
    ),
    "adam": (rules.adam(), {"lr": 0.01}, ADAM, {"lr": 0.01}, None),
    "adam with all": (
        rules.adam(),
        {"lr": 0.01, "weight_decay": 0.1, "beta1": 0.7, "beta2": 0.9, "eps": 1e-3},
        ADAM,
        {"lr": 0.01, "weight_decay": 0.1, "betas": (0.7, 0.9), "eps": 1e-3},
        None,
    ),
    "adam with betas 0": (
        rules.adam(),
        {"lr": 0.01, "beta1": 0.0, "beta2": 0.0},
        ADAM,
        {"lr": 0.01, "betas": (0.0, 0.0)},
        None,
    ),
    "adamw": (rules.adamw(), {"lr": 0.01, "weight_decay": 0.1}, ADAMW, {"lr": 0.01, "weight_decay": 0.1}, None),
    "clipped sgd": (
        rules.clipped(rules.sgd(), 0.7),
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        0.7,
    ),
    "clipped adam": (rules.clipped(rules.adam(), 0.7), {"lr": 0.01}, ADAM, {"lr": 0.01}, 0.7),
    "clipped adamw, rarely": (
        rules.clipped(rules.adamw(), 3.5),
        {"lr": 0.01},
        ADAMW,
        {"lr": 0.01, "weight_decay": 0.0},
        3.5,
    ),
}
DEFAULTS = {"lr": 0.0, "weight_decay": 0.0, "momentum": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


def hyperparameters(rule, params, natural=None):
    values = {**DEFAULTS, **(natural or {k: v for k, (v, _) in HYPERS.items()})}
    return {
        name: dict.fromkeys(params, torch.tensor(values[name], dtype=torch.float64)) for name in rule.hyperparameters
    }


@pytest.mark.parametrize("name", TWINS)
def test_equals_its_twin_in_torch_optim_over_50_steps(name):
    rule, natural, optimizer, options, clip = TWINS[name]
    params = initial()
    theirs = {k: torch.nn.Parameter(p.clone()) for k, p in params.items()}
    twin = optimizer(theirs.values(), **options)
    hyper, state = hyperparameters(rule, params, natural), rule.init(params)
    for k in range(50):
        noise = {key: random(*p.shape, seed=100 * k + i) for i, (key, p) in enumerate(params.items())}
        for key, p in theirs.items():
            p.grad = noise[key] + p.detach()
        if clip is not None:
            clip_grad_norm_(theirs.values(), clip)
        twin.step()
        slopes = {key: noise[key] + params[key] for key in params}
        params, state = rule.update(params, slopes, state, hyper)
        assert_close(params, {key: p.detach() for key, p in theirs.items()}, 1e-12)


@pytest.mark.parametrize("name", RULES)
def test_arguments_are_left_as_they_were(name):
    rule, z = RULES[name], trained(RULES[name])
    arguments = (z.params, initial(7), z.state, hyperparameters(rule, z.params))
    before = copied(arguments)
    rule.update(*arguments)
    assert_identical(arguments, before)
    state = rule.init(z.params)
    shared = {leaf.data_ptr() for leaf in trees.leaves(state)} & {leaf.data_ptr() for leaf in trees.leaves(z.params)}
    assert not shared


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", RULES)
def test_vmap_equals_loop(name, granularity):
    rule = RULES[name]
    members = [trained(rule, seed=3 + r, steps=3 + r) for r in range(3)]
    own = space(rule, GRANULARITIES[granularity])
    arguments = [
        (z.params, initial(50 + r), z.state, own.constrain(raw_values(own, z.params, 60 + r), z.params))
        for r, z in enumerate(members)
    ]
    stacked = trees.stack(arguments)
    together = torch.vmap(rule.update, in_dims=tuple(trees.axes(a) for a in stacked))(*stacked)
    assert_close(together, trees.stack([rule.update(*a) for a in arguments]), 1e-14)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", RULES)
def test_derivatives_in_everything(name, granularity):
    """gradcheck in params, gradients, state and the raw values of every hyperparameter."""
    rule = RULES[name]
    own = space(rule, GRANULARITIES[granularity])
    state = rule.init(SMALL)
    frozen = hyperparameters(rule, SMALL)
    params = SMALL
    for k in range(2):
        params, state = rule.update(params, {n: random(*p.shape, seed=9 + k) for n, p in params.items()}, state, frozen)
    slopes = {n: random(*p.shape, seed=20) for n, p in params.items()}
    raw = raw_values(own, params)
    tuned = own.tuned(raw)

    def update(*numbers):
        point = trees.like((params, slopes, state, tuned), numbers)
        hyper = own.constrain({**raw, **point[3]}, point[0])
        return tuple(trees.leaves(rule.update(point[0], point[1], point[2], hyper)))

    numbers = trees.leaves(trees.variables((params, slopes, state, tuned)))
    assert torch.autograd.gradcheck(update, numbers)


@pytest.mark.parametrize("name", ["adam", "adamw", "clipped adam"])
def test_adam_has_a_derivative_where_gradients_have_always_been_zero(name):
    rule = RULES[name]
    own = space(rule, ("element",))
    params = trees.variables(initial())
    raw = trees.variables(own.init(params))
    zero = trees.variables(trees.zeros(params))
    moved, state = rule.update(params, zero, rule.init(params), own.constrain(raw, params))
    total = sum(leaf.sum() for leaf in trees.leaves((moved, state)))
    numbers = trees.leaves((params, zero, raw))
    slopes = torch.autograd.grad(total, numbers, allow_unused=True, materialize_grads=True)  # type: ignore
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("factor", [0.95, 1.0, 1.01])
def test_geometric_multiplies_ten_to_the_value_by_its_factor(factor):
    rule = rules.geometric()
    params = {"lr/global": torch.tensor(math.log10(0.02), dtype=torch.float64)}
    hyper = {"factor": dict.fromkeys(params, torch.tensor(factor, dtype=torch.float64))}
    state = rule.init(params)
    for _ in range(10):
        params, state = rule.update(params, {"lr/global": torch.tensor(math.nan)}, state, hyper)
    assert state == {}
    assert 10.0 ** params["lr/global"].item() == pytest.approx(0.02 * factor**10, rel=1e-13)


def test_nesterov_with_dampening_is_refused():
    with pytest.raises(ValueError, match=r"dampening is 0\.1"):
        rules.sgd(nesterov=True, dampening=0.1)


def test_clipping_by_a_norm_that_is_never_reached_changes_nothing():
    rule, z = rules.adam(), trained(rules.adam())
    hyper, slopes = hyperparameters(rule, z.params), initial(8)
    clipped = rules.clipped(rule, 1e6).update(z.params, slopes, z.state, hyper)
    assert_identical(clipped, rule.update(z.params, slopes, z.state, hyper))


@pytest.mark.parametrize("limit", [1e6, 1e38, 1e300])
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e3])
def test_the_derivative_of_clipping_by_a_norm_that_is_never_reached_is_that_without(limit, size):
    """In float32, where the limit over the norm is infinite."""
    gradient = torch.tensor([3.0, -4.0]) * size

    def moved(rule, slopes):
        hyper = {name: {"w": torch.tensor(0.5)} for name in ("lr", "weight_decay", "momentum")}
        state = {name: {"w": leaf["w"].float()} for name, leaf in rule.init({"w": torch.ones(2)}).items()}
        return rule.update({"w": torch.ones(2)}, {"w": slopes}, state, hyper)[0]["w"]

    for rule in (rules.sgd(), rules.clipped(rules.sgd(), limit)):
        _, pulled = torch.autograd.functional.vjp(lambda g, rule=rule: moved(rule, g), gradient, torch.ones(2))
        assert_identical(pulled, torch.full((2,), -0.5))


@pytest.mark.parametrize("started", [False, True], ids=["first step", "later"])
@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.derivative is not None])
def test_a_derivative_in_closed_form_is_that_of_the_update(name, started):
    """Also where a parameter is a single number."""
    rule, params = RULES[name], {"matrix": random(2, 3, seed=1), "number": random(seed=2)}
    slopes = {k: random(*p.shape, seed=9) for k, p in params.items()}
    state = rule.init(params)
    if started:
        state = trees.map(lambda x: torch.ones_like(x) if x.ndim == 0 else x + 0.3, state)
    hyper = {
        h: {k: random(*p.shape, seed=20 + i).abs() for k, p in params.items()}
        for i, h in enumerate(rule.hyperparameters)
    }
    new, pull = torch.func.vjp(lambda p, g, h: rule.update(p, g, state, h)[0], params, slopes, hyper)
    along, across, by_hyper = pull(trees.map(torch.ones_like, new))
    assert rule.derivative is not None
    point = (params, slopes, state, hyper)
    assert_close(rule.derivative.diagonals(*point), (along, across), 1e-14)
    assert_close(rule.derivative.hyper(*point), by_hyper, 1e-14)
