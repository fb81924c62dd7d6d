"""Laws of Φ: rules x granularities against autograd through the whole map, and what is constant in its derivative."""

import pytest
import torch
from laws import (
    BATCHES,
    GRANULARITIES,
    LIFTS,
    RULES,
    assert_close,
    assert_identical,
    copied,
    cotangent,
    directions,
    dynamics,
    initial,
    loss,
    raw_values,
    space,
    step,
    trained,
)

from hyperopt_id import curvature, rules, trees
from hyperopt_id.dynamics import Cotangent, TrainState, make_dynamics, objective_cotangent

TABLE = pytest.mark.parametrize(
    ("rule_name", "granularity"), [(rule, granularity) for rule in RULES for granularity in GRANULARITIES]
)
BATCH = BATCHES[1]


class Case:
    """A rule and a granularity at a point of a training run: Φ, its linearization, its reference."""

    def __init__(self, rule_name: str, granularity: str, seed: int = 3, steps: int = 3):
        self.rule = RULES[rule_name]
        self.space = space(self.rule, GRANULARITIES[granularity])
        self.z = trained(self.rule, steps, seed)
        self.raw = raw_values(self.space, self.z.params, seed)
        self.tuned = self.space.tuned(self.raw)
        self.dynamics = dynamics(self.rule, self.space)
        self.here = self.dynamics.linearize(self.z, self.raw, BATCH)

    def reference(self, params, state, tuned):
        after = step(self.rule, self.space, TrainState(params, {}, state), {**self.raw, **tuned}, BATCH)
        return after.params, after.state

    @property
    def point(self):
        return self.z.params, self.z.state, self.tuned


@TABLE
def test_linearize_takes_the_step(rule_name, granularity):
    case = Case(rule_name, granularity)
    hyper = case.dynamics.constrain(case.raw, case.z.params)
    after, metrics = case.dynamics.step(case.z, hyper, BATCH)
    assert_close(case.here.z_next, after, 1e-14)
    assert_close(after, TrainState(*map_pair(case.reference(*case.point))), 1e-14)
    assert_identical(case.here.metrics["loss"], metrics["loss"])
    assert_close(metrics["loss"], loss(case.z.params, {}, BATCH)[0], 1e-14)
    assert not any(leaf.requires_grad for leaf in trees.leaves((case.here.z_next, case.here.metrics, after)))


def map_pair(pair):
    return pair[0], {}, pair[1]


@TABLE
def test_pull_backs_are_those_of_autograd_through_all_of_it(rule_name, granularity):
    case = Case(rule_name, granularity)
    v = cotangent(case.z)
    pull = torch.func.vjp(case.reference, *case.point)[1]
    params, state, tuned = pull((v.params, v.state))
    assert_close(case.here.pull_state(v), Cotangent(params, state))
    assert_close(case.here.pull_raw(v), tuned)
    both = case.dynamics.pull(case.z, case.raw, BATCH, v)
    assert_close(both, (Cotangent(params, state), tuned))


@TABLE
@pytest.mark.parametrize("steps", [0, 3], ids=["first step", "later"])
def test_without_a_state_the_form_is_zero_on_it_and_stays_so(rule_name, granularity, steps):
    case = Case(rule_name, granularity, steps=steps)
    v = cotangent(case.z)
    pull = torch.func.vjp(case.reference, *case.point)[1]
    params, _, tuned = pull((v.params, trees.zeros(v.state)))
    for here in (case.here, case.dynamics.linearize(case.z, case.raw, BATCH, constant_state=True)):
        pulled = here.pull_state(Cotangent(v.params, None))
        assert pulled.state is None
        assert_close(pulled.params, params)
        assert_close(here.pull_raw(Cotangent(v.params, None)), tuned)
        assert_close(here.z_next, case.here.z_next)


@TABLE
def test_push_is_the_directional_derivative(rule_name, granularity):
    case = Case(rule_name, granularity)
    dz, draw = cotangent(case.z, 40), directions(case.tuned, 50)
    tangent = torch.func.jvp(case.reference, case.point, (dz.params, dz.state, draw))[1]
    assert_close(case.here.push(dz, draw), Cotangent(*tangent))


@TABLE
def test_push_and_pull_are_adjoint(rule_name, granularity):
    """<v, ∂Φ (dz, draw)> = <v ∂Φ, (dz, draw)>."""
    case = Case(rule_name, granularity)
    v, dz, draw = cotangent(case.z), cotangent(case.z, 40), directions(case.tuned, 50)
    pushed, pulled = case.here.push(dz, draw), case.here.pull_state(v)
    left = trees.inner(tuple(v), tuple(pushed))
    right = trees.inner(tuple(pulled), tuple(dz)) + trees.inner(case.here.pull_raw(v), draw)
    assert_close(left, right, 1e-12)


@TABLE
def test_arguments_are_left_as_they_were(rule_name, granularity):
    case = Case(rule_name, granularity)
    v, draw = cotangent(case.z), directions(case.tuned)
    arguments = (case.z, case.raw, BATCH, v, draw)
    before = copied(arguments)
    here = case.dynamics.linearize(case.z, case.raw, BATCH)
    once = here.pull_state(v), here.pull_raw(v), here.push(v, draw)
    again = here.pull_state(v), here.pull_raw(v), here.push(v, draw)
    case.dynamics.step(case.z, case.dynamics.constrain(case.raw, case.z.params), BATCH)
    assert_identical(arguments, before)
    assert_identical(once, again)


@pytest.mark.parametrize("rule_name", RULES)
def test_vmap_equals_loop(rule_name):
    cases = [Case(rule_name, "sum of all", seed) for seed in (3, 30, 300)]
    own = cases[0].space
    lifted = dynamics(RULES[rule_name], own, "vmap")
    forms = [cotangent(case.z, 20 + r) for r, case in enumerate(cases)]
    z, raw, v = (trees.stack(part) for part in ([c.z for c in cases], [c.raw for c in cases], forms))
    here = lifted.linearize(z, raw, torch.stack([BATCH] * 3))
    draw = own.tuned(raw)
    found = here.z_next, here.metrics, here.pull_state(v), here.pull_raw(v), here.push(v, draw)
    expected = [
        (c.here.z_next, c.here.metrics, c.here.pull_state(form), c.here.pull_raw(form), c.here.push(form, c.tuned))
        for c, form in zip(cases, forms, strict=True)
    ]
    assert_close(found, trees.stack(expected), 1e-12)


@pytest.mark.parametrize("max_norm", [1e-3, 0.05, 1e3])
@pytest.mark.parametrize("how", LIFTS)
def test_clipping_inside_the_update_is_differentiated_through(max_norm, how):
    """v ∂Φ/∂w = v (1 - η ∂/∂w (c g / |g|)), by finite differences; a norm that is not reached changes nothing."""
    rule = rules.clipped(rules.sgd(), max_norm)
    own = space(rule, ("global",))
    z = trained(rule)
    raw, v = own.init(z.params), cotangent(z)
    shift = directions(z.params)

    def along(scale):
        moved = z._replace(params={k: w + scale * shift[k] for k, w in z.params.items()})
        return trees.inner(v.params, step(rule, own, moved, raw, BATCH).params)

    slope = (along(1e-5) - along(-1e-5)) / 2e-5
    if how == "vmap":
        z, raw, v, shift = (trees.stack([part, part]) for part in (z, raw, v, shift))
    here = dynamics(rule, own, how).linearize(z, raw, BATCH if how == "loop" else torch.stack([BATCH] * 2))
    found = trees.inner(here.pull_state(Cotangent(v.params, None)).params, shift, int(how == "vmap"))
    assert_close(found, slope.expand(found.shape), 1e-8)
    plain = dynamics(rules.sgd(), own, how).linearize(z, raw, BATCH if how == "loop" else torch.stack([BATCH] * 2))
    assert torch.equal(plain.z_next.params["layer.bias"], here.z_next.params["layer.bias"]) == (max_norm == 1e3)


def test_products_are_taken_on_the_thinned_batch_and_the_step_on_the_whole_one():
    rule = rules.sgd()
    own = space(rule, ("global",))
    z, v = trained(rule), cotangent(trained(rule))
    raw = own.init(z.params)
    thin = make_dynamics(loss, rule, own.constrain, own.tuned, curvature.exact, lambda rows: rows[:2])
    here, whole = thin.linearize(z, raw, BATCH), dynamics(rule, own).linearize(z, raw, BATCH)
    few = dynamics(rule, own).linearize(z, raw, BATCH[:2])
    assert_close(here.z_next, whole.z_next, 1e-14)
    assert_close(here.pull_raw(v), whole.pull_raw(v), 1e-14)
    assert_close(here.pull_state(v), few.pull_state(v), 1e-14)


# The objective

DIRECT = {
    "no direct term": lambda params, buffers, raw: loss(params, {}, BATCH)[0],
    "raw and params": lambda params, buffers, raw: loss(params, {}, BATCH)[0] * raw["lr/global"].exp(),
    "raw only": lambda params, buffers, raw: raw["lr/global"] ** 2 + raw["momentum/global"].sin(),
}


@pytest.mark.parametrize("name", DIRECT)
def test_objective_is_differentiated_in_state_and_raw(name):
    own = space(rules.sgd(), ("global",), only=("lr", "momentum"))
    z = trained(rules.sgd())
    raw = own.init(initial())
    value, v, direct = objective_cotangent(DIRECT[name], z, raw, own.tuned(raw))
    function = lambda w, r: DIRECT[name](w, {}, {**raw, **r})  # noqa: E731
    expected = torch.func.grad(function, argnums=(0, 1))(z.params, own.tuned(raw))
    assert_close((value, v.params), (function(z.params, {}), expected[0]), 1e-14)
    assert_close({**trees.zeros(expected[1]), **direct}, expected[1], 1e-14)
    assert (not direct) == (name == "no direct term")
    assert v.state is None
