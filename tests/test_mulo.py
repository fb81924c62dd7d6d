"""The learned optimizer as a rule: the recording, invariants of its features, derivatives, and hypergradients of θ."""

import math

import pytest
import torch
from laws import assert_close, assert_identical, copied, differences, random
from mulo_cases import RECORDED, STEPS, TENSORS, error, random_theta, recorded_theta

from hyperopt_id import curvature, hypergrad, mulo, population, trees
from hyperopt_id.dynamics import TrainState, make_dynamics
from hyperopt_id.mulo import Accumulators
from hyperopt_id.space import IDENTITY, Hyper, Space

RULE = mulo.mulo()
SHAPES = {"matrix": (3, 4), "bias": (4,), "number": (), "images": (2, 3, 2, 2)}
THETA = random_theta(1, torch.float64)


def params(seed=3):
    return {k: 0.3 * random(*shape, seed=seed + i) for i, (k, shape) in enumerate(SHAPES.items())}


def gradients(seed=5):
    return params(10 * seed)


def hyper(theta=THETA, lr=2.0, weight_decay=0.1, like=SHAPES):
    values = {"lr": theta.new_tensor(lr), "weight_decay": theta.new_tensor(weight_decay), "theta": theta}
    return {name: dict.fromkeys(like, value) for name, value in values.items()}


def started(steps=2):
    """Parameters and state after some steps, where no accumulator is zero."""
    now, state = params(), RULE.init(params())
    for n in range(steps):
        now, state = RULE.update(now, gradients(n), state, hyper())
    return now, state


# Values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TENSORS)
def test_updates_are_the_recorded_ones(name, dtype):
    """Every step from the recorded parameters; what remains is the rounding of the recording."""
    theta, rate = recorded_theta().to(dtype), RECORDED[f"lr_mult/{name}"].item()
    before = {"": RECORDED[f"params0/{name}"].to(dtype)}
    state = RULE.init(before)
    for step in range(STEPS):
        gradient = {"": RECORDED[f"grads/{name}"][step].to(dtype)}
        after, state = RULE.update(before, gradient, state, hyper(theta, rate, 0.0, [""]))
        recorded = RECORDED[f"params/{name}"][step]
        assert error(after[""], recorded, before[""]) <= 1e-4
        before = {"": recorded.to(dtype)}


def test_theta_has_2409_numbers_and_packs_and_unpacks():
    assert mulo.SIZE == 2409
    vector = torch.arange(2409.0)
    assert_identical(mulo.pack(mulo.unpack(vector)), vector)
    assert [tuple(part.shape) for part in mulo.unpack(vector)] == list(mulo.LAYOUT.values())


def test_decays_start_at_their_initial_values_and_are_clipped():
    assert_close(mulo.decays(mulo.unpack(torch.zeros(2409)))["momentum"], torch.tensor([0.9, 0.99, 0.999]), 1e-6)
    far = mulo.unpack(torch.full((2409,), 1.0, dtype=torch.float64))
    found = mulo.decays(far)
    initial = torch.tensor([0.9, 0.99, 0.999], dtype=torch.float64)
    assert_close(found["momentum"], 1.0 - (1.0 - initial) * math.exp(10.0), 1e-12)
    assert_identical(found["square"], torch.zeros(1, dtype=torch.float64))
    assert_identical(found["factored"], torch.zeros(3, dtype=torch.float64))


def test_untrained_weights_have_the_variance_of_their_fan_in():
    """A normal distribution cut at 2σ keeps the variance 0.774 σ²."""
    parts = mulo.unpack(mulo.untrained())._asdict()
    for name, part in parts.items():
        if name.startswith("w"):
            sigma = len(part) ** -0.5
            assert part.abs().max() <= 2.0 * sigma
            assert_close(part.square().mean(), torch.tensor(0.774 * sigma**2), 0.3 * sigma**2)
        else:
            assert_identical(part, torch.zeros_like(part))
    assert_identical(mulo.untrained(4), mulo.untrained(4))
    assert not torch.equal(mulo.untrained(4), mulo.untrained(5))


def test_untrained_weights_are_the_same_under_another_default_precision(default_dtype):
    expected = mulo.untrained(4)
    default_dtype(torch.bfloat16)
    assert_identical(mulo.untrained(4), expected)


@pytest.mark.parametrize("name", ["matrix", "bias", "images"])
def test_features_have_mean_square_one(name):
    """Or less, where they are so small that 1e-5 counts."""
    now, state = started()
    accumulators = Accumulators(*(state[part][name] for part in Accumulators._fields))
    found, scale = mulo.features(now[name], gradients()[name], accumulators)
    power = (scale[:, None] * found).square().mean(1)
    assert found.shape == (28, now[name].numel())
    assert (power <= 1.0).all()
    large = [0, 1, 2, 6, 7, 8, 9, 10, 11, 12, *range(19, 28)]
    assert_close(power[large], torch.ones(len(large), dtype=torch.float64), 1e-2)


@pytest.mark.parametrize(("shape", "axes"), [((3, 4), (1, 0)), ((2, 5, 3), (2, 0, 1)), ((2, 3, 4, 5), (3, 1, 0, 2))])
def test_the_order_of_axes_of_different_length_does_not_matter(shape, axes):
    before, gradient = {"": random(*shape, seed=1)}, {"": random(*shape, seed=2)}
    turned = [{"": x[""].permute(axes)} for x in (before, gradient)]
    now, _ = RULE.update(before, gradient, RULE.init(before), hyper(like=[""]))
    other, _ = RULE.update(*turned, RULE.init(turned[0]), hyper(like=[""]))
    assert_close(other[""], now[""].permute(axes), 1e-12)


def test_a_number_is_a_vector_of_one():
    number, vector = ({"": x} for x in (torch.tensor(0.3), torch.tensor([0.3])))
    slope = torch.tensor([0.2])
    now, state = RULE.update(number, {"": slope[0]}, RULE.init(number), hyper(THETA.float(), like=[""]))
    other, same = RULE.update(vector, {"": slope}, RULE.init(vector), hyper(THETA.float(), like=[""]))
    assert now[""].shape == ()
    assert_identical(now[""], other[""][0])
    assert_identical(state, same)


def test_weight_decay_is_decoupled_and_the_rate_scales_the_step():
    now, state = started()
    plain, _ = RULE.update(now, gradients(), state, hyper(lr=1.0, weight_decay=0.0))
    found, _ = RULE.update(now, gradients(), state, hyper(lr=0.5, weight_decay=0.2))
    small, _ = mulo.mulo(step_multiplier=0.001).update(now, gradients(), state, hyper(lr=1.0, weight_decay=0.0))
    for k, before in now.items():
        assert_close(found[k], 0.9 * before + 0.5 * (plain[k] - before), 1e-12)
        assert_close(small[k] - before, 0.1 * (plain[k] - before), 1e-12)


def test_nothing_is_mutated_and_empty_tensors_stay():
    here = (*started(), gradients(), hyper())
    before = copied(here)
    RULE.update(here[0], here[2], here[1], here[3])
    assert_identical(here, before)
    empty = {"": torch.empty(3, 0)}
    now, state = RULE.update(empty, empty, RULE.init(empty), hyper(like=[""]))
    assert now[""].shape == (3, 0)
    assert not any(leaf.isnan().any() for leaf in trees.leaves(state))


def test_gradients_that_are_no_use_count_as_zero():
    now, state = started()
    slopes = gradients()
    for bad in (float("nan"), float("inf"), -float("inf"), 1.1e15):
        spoiled, zeroed = copied(slopes), copied(slopes)
        for value, tree in ((bad, spoiled), (0.0, zeroed)):
            for leaf in tree.values():
                leaf.view(-1)[::2] = value
        assert_identical(RULE.update(now, spoiled, state, hyper()), RULE.update(now, zeroed, state, hyper()))


# Derivatives


@pytest.mark.parametrize("argument", ["theta", "params", "gradients", "state", "lr", "weight_decay"])
def test_derivatives_are_differences(argument):
    """Of parameters and accumulators after a step, in every argument, by reverse and forward differentiation."""
    now, state = started()
    slopes, values = gradients(), hyper()
    at = {"theta": {"": THETA}, "params": now, "gradients": slopes, "state": dict(enumerate(trees.leaves(state)))}
    at |= {
        name: {"": torch.tensor(2.0 if name == "lr" else 0.1, dtype=torch.float64)} for name in ("lr", "weight_decay")
    }
    form = [random(*x.shape, seed=40 + i) for i, x in enumerate(trees.leaves(RULE.update(now, slopes, state, values)))]

    def value(tree):
        arguments = {"params": now, "gradients": slopes, "state": state}
        own = values
        if argument in values:
            own = values | {argument: dict.fromkeys(SHAPES, tree[""])}
        else:
            arguments[argument] = trees.like(state, tree.values()) if argument == "state" else tree
        after = RULE.update(arguments["params"], arguments["gradients"], arguments["state"], own)
        return sum((a * b).sum() for a, b in zip(form, trees.leaves(after), strict=True))

    point = at[argument]
    direction = {k: 0.1 * x * random(*x.shape, seed=70 + i) for i, (k, x) in enumerate(point.items())}
    expected = differences(value, point, direction)
    assert_close(trees.inner(torch.func.grad(value)(point), direction), expected, 1e-7)
    assert_close(torch.func.jvp(value, (point,), (direction,))[1], expected, 1e-7)


def test_gradcheck():
    """Of every number of a small parameter and its gradient, and of θ along random directions."""
    before, slope = (0.3 * random(2, 3, seed=n) for n in (1, 2))
    state = RULE.update({"": before}, {"": 0.5 * slope}, RULE.init({"": before}), hyper(like=[""]))[1]

    def moved(param, gradient, theta):
        return RULE.update({"": param}, {"": gradient}, state, hyper(theta, like=[""]))[0][""]

    leaves = [x.clone().requires_grad_() for x in (before, slope, THETA)]
    assert torch.autograd.gradcheck(moved, (*leaves[:2], THETA))
    assert torch.autograd.gradcheck(moved, (before, slope, leaves[2]), fast_mode=True)


def test_vmap_is_the_loop():
    members = [(params(r), gradients(r), RULE.init(params(r)), hyper(random_theta(r, torch.float64))) for r in range(3)]
    members = [(p, g, RULE.update(p, g, s, h)[1], h) for p, g, s, h in members]
    alone = [RULE.update(*member) for member in members]
    together = population.lift_rule(RULE, "vmap").update(*trees.stack(members))
    assert_close(together, trees.stack(alone), 1e-12)


# Hypergradients

TARGETS = params(100)
SPACE = Space(
    {
        "lr": Hyper(2.0, IDENTITY, tune=("global",)),
        "weight_decay": Hyper(0.0, IDENTITY),
        "theta": Hyper(THETA, IDENTITY, tune=("global",)),
    }
)


def loss(now, buffers, sharpness):
    """Zero at the targets; by more than its square beside them."""
    distance = sum((sharpness * (p - TARGETS[k]).square() + (p - TARGETS[k]).pow(4)).sum() for k, p in now.items())
    return distance, (buffers, {})


def objective(now, buffers, raw, sharpness):
    return sum((sharpness * p * (1.0 + p)).sum() for p in now.values())


def dynamics(own=SPACE):
    return make_dynamics(loss, RULE, own.constrain, own.tuned, curvature.exact)


@pytest.mark.parametrize("window", [1, 3])
def test_unroll_of_theta_is_autograd_through_the_loop_and_finite_differences(window):
    z = TrainState(started()[0], {}, started()[1])
    raw, batches = SPACE.init(z.params), [0.2, 0.3, 0.4][:window]

    def value(tuned):
        now, state = z.params, z.state
        for batch in batches:
            slopes = torch.func.grad(lambda w: loss(w, {}, batch)[0])(now)  # noqa: B023
            now, state = RULE.update(now, slopes, state, SPACE.constrain({**raw, **tuned}, now))
        return objective(now, {}, raw, 0.5)

    tuned = SPACE.tuned(raw)
    found = hypergrad.unroll(window).call(dynamics(), objective, z, raw, batches, 0.5).hypergradient
    assert found["theta/global"].shape == (2409,)
    assert_close(found, torch.func.grad(value)(tuned), 1e-10)
    direction = {k: 0.1 * random(*x.shape, seed=90) for k, x in tuned.items()}
    step = 1e-6  # few units change sides within it
    assert_close(trees.inner(found, direction), differences(value, tuned, direction, step), 1e-6)
    if window == 1:
        for engine in (hypergrad.one_step(), hypergrad.neumann(1)):
            other = engine.call(dynamics(), objective, z, raw, batches, 0.5).hypergradient
            assert_close(other, found, 1e-12)


def at_rest():
    """A point where training has come to rest, and a space with which it returns there: without gradient and momentum
    all directions are zero, whatever the values of parameters and the time, and with them they lead downhill. Features
    with the factors of Adafactor are left out, of which a tiny gradient makes steps of 1e9."""
    parts = mulo.unpack(THETA.clone())
    for part in (parts.w0[1], parts.w0[10:13], parts.w0[25:], parts.w2[:, 1], parts.b2[1]):  # the last two: magnitude
        part[...] = 0.0
    z = TrainState(TARGETS, {}, RULE.init(TARGETS))
    z.state["step"] += 1e9  # where the features of time are constant
    for name in ("row", "column"):  # the fixed points of these means; that of the others is zero
        z.state[name] = {k: torch.full_like(x, 1e-30) for k, x in z.state[name].items()}
    zeros = trees.zeros(TARGETS)
    moved, _ = RULE.update(zeros, zeros, z.state, hyper(mulo.pack(parts), 1.0, 0.0))
    parts.b2[0] += moved["bias"][0] / 0.01
    theta = Hyper(mulo.pack(parts), IDENTITY, tune=("global",))
    return z, Space(dict(SPACE.hypers) | {"lr": Hyper(0.4, IDENTITY, tune=("global",)), "theta": theta})


@pytest.mark.parametrize("terms", [1, 2, 6])
def test_the_series_of_theta_with_the_state_carried_is_the_unrolled_hypergradient_at_rest(terms):
    z, own = at_rest()
    raw, batches = own.init(z.params), [0.2] * terms
    series, shorter, unrolled = (
        engine.call(dynamics(own), objective, z, raw, batches[: engine.window], 0.5)
        for engine in (
            hypergrad.neumann(terms, carry_state=True),
            hypergrad.neumann(max(1, terms - 1), carry_state=True),
            hypergrad.unroll(terms),
        )
    )
    assert_close(unrolled.z.params, z.params, 1e-12)
    assert_close(series.hypergradient, unrolled.hypergradient, 1e-9)
    if terms > 1:  # every term counts
        last = trees.norm(trees.add(series.hypergradient, trees.map(torch.neg, shorter.hypergradient)))
        assert last > 0.1 * trees.norm(unrolled.hypergradient)


def test_the_implicit_hypergradient_of_theta_is_that_of_the_point_where_training_comes_to_rest():
    """By autograd through all steps there, the optimizer's state being a constant of both."""
    z, own = at_rest()
    raw, steps = own.init(z.params), 40

    def rested(tuned):
        now = z.params
        for _ in range(steps):
            slopes = torch.func.grad(lambda w: loss(w, {}, 0.2)[0])(now)
            now, _ = RULE.update(now, slopes, z.state, own.constrain({**raw, **tuned}, now))
        return objective(now, {}, raw, 0.5)

    expected = torch.func.grad(rested)(own.tuned(raw))
    found = hypergrad.neumann(steps).call(dynamics(own), objective, z, raw, [0.2], 0.5).hypergradient
    more = hypergrad.neumann(2 * steps).call(dynamics(own), objective, z, raw, [0.2], 0.5).hypergradient
    assert_close(found, expected, 1e-9)
    assert_close(more, found, 1e-9)  # the series converges
