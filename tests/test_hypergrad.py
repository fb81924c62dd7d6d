"""Laws of the engines: engines x rules x granularities against autograd, finite differences, dense Jacobians and closed
forms."""

import math

import pytest
import torch
from laws import (
    BATCHES,
    ENGINES,
    GRANULARITIES,
    HYPERS,
    LIFTS,
    RULES,
    TARGET,
    assert_close,
    assert_identical,
    copied,
    differences,
    directions,
    dynamics,
    initial,
    loss,
    objective,
    penalized,
    raw_values,
    space,
    step,
    trained,
)

from hyperopt_id import curvature, hypergrad, population, rules, trees
from hyperopt_id.dynamics import TrainState
from hyperopt_id.space import LOG10, Hyper, Space

TABLE = pytest.mark.parametrize(
    ("rule_name", "granularity"), [(rule, granularity) for rule in RULES for granularity in GRANULARITIES]
)


def batches_of(engine):
    return BATCHES[: engine.window]


def through_the_loop(rule, own, z, raw, batches, target_function):
    """The slow, obvious reference: the objective after the steps, as a function of the tuned raw values."""

    def value(tuned):
        after, everything = z, {**raw, **tuned}
        for batch in batches:
            after = step(rule, own, after, everything, batch)
        return target_function(after.params, {}, everything, TARGET)

    return value


@pytest.mark.parametrize("target_function", [objective, penalized], ids=["validation", "with a direct term"])
@TABLE
def test_unroll_and_forward_are_autograd_through_the_loop_and_finite_differences(
    rule_name, granularity, target_function
):
    rule = RULES[rule_name]
    own = space(rule, GRANULARITIES[granularity])
    z = trained(rule)
    raw = raw_values(own, z.params)
    value = through_the_loop(rule, own, z, raw, BATCHES[:3], target_function)
    tuned = own.tuned(raw)
    expected = torch.func.grad(value)(tuned)
    for engine in (hypergrad.unroll(3), hypergrad.forward(3)):
        outcome = engine.call(dynamics(rule, own), target_function, z, raw, BATCHES[:3], TARGET)
        assert_close(outcome.hypergradient, expected)
        assert_close(outcome.objective, value(tuned), 1e-13)
    direction = directions(tuned)
    assert_close(trees.inner(expected, direction), differences(value, tuned, direction), 1e-7)


@pytest.mark.parametrize("carry_state", [False, True], ids=["frozen", "carried"])
@pytest.mark.parametrize("terms", [1, 2, 5])
@pytest.mark.parametrize("granularity", ["global", "sum of all"])
@pytest.mark.parametrize("rule_name", RULES)
def test_neumann_is_the_recursion_with_dense_jacobians(rule_name, granularity, terms, carry_state):
    """direct + Σ_k v J^k ∂Φ/∂raw, J = ∂(params, state)'/∂(params, state); its params block where state is frozen."""
    rule = RULES[rule_name]
    own = space(rule, GRANULARITIES[granularity])
    z = trained(rule)
    raw = raw_values(own, z.params)
    tuned = own.tuned(raw)
    state = z.state if carry_state else {}

    def flat(tree):
        return torch.cat([leaf.flatten() for leaf in trees.leaves(tree)])

    def unflat(vector, tree):
        parts = vector.split([leaf.numel() for leaf in trees.leaves(tree)])
        return trees.like(
            tree, [part.reshape(leaf.shape) for part, leaf in zip(parts, trees.leaves(tree), strict=True)]
        )

    def phi(vector, raw_vector):
        params, own_state = unflat(vector, (z.params, state))
        moving = z.state if not carry_state else own_state
        after = step(rule, own, TrainState(params, {}, moving), {**raw, **unflat(raw_vector, tuned)}, BATCHES[0])
        return flat((after.params, after.state if carry_state else {}))

    here = flat((z.params, state)), flat(tuned)
    jacobian, into_raw = torch.func.jacrev(phi, argnums=(0, 1))(*here)
    z_next = step(rule, own, z, raw, BATCHES[0])
    v, direct = torch.func.grad(lambda w, r: penalized(w, {}, {**raw, **r}, TARGET), argnums=(0, 1))(
        z_next.params, tuned
    )
    v = torch.cat([flat(v), torch.zeros(len(jacobian) - len(flat(v)), dtype=torch.float64)])
    total = torch.zeros_like(v)
    for _ in range(terms):
        total, v = total + v, v @ jacobian
    engine = hypergrad.neumann(terms, carry_state=carry_state)
    outcome = engine.call(dynamics(rule, own), penalized, z, raw, BATCHES[:1], TARGET)
    assert_close(flat(outcome.hypergradient), total @ into_raw + flat(direct))


@pytest.mark.parametrize("rule_name", RULES)
@pytest.mark.parametrize("engine_name", ENGINES)
def test_vmap_equals_loop(engine_name, rule_name):
    rule, engine = RULES[rule_name], ENGINES[engine_name]
    own = space(rule, GRANULARITIES["tensor" if engine_name == "forward" else "sum of all"])
    members = [trained(rule, seed=seed) for seed in (3, 30, 300)]
    raws = [raw_values(own, z.params, 11 * r) for r, z in enumerate(members)]
    alone = [
        engine.call(dynamics(rule, own), penalized, z, raw, batches_of(engine), TARGET)
        for z, raw in zip(members, raws, strict=True)
    ]
    lifted = lambda *arguments: population.lift(penalized, "vmap")(*arguments)  # noqa: E731
    together = engine.call(
        dynamics(rule, own, "vmap"),
        lifted,
        trees.stack(members),
        trees.stack(raws),
        [torch.stack([batch] * 3) for batch in batches_of(engine)],
        torch.stack([TARGET] * 3),
    )
    assert_close(tuple(together), tuple(trees.stack(alone)), 1e-12)


@pytest.mark.parametrize("rule_name", RULES)
@pytest.mark.parametrize("engine_name", ENGINES)
def test_an_engine_takes_the_plain_steps_and_mutates_nothing(engine_name, rule_name):
    rule, engine = RULES[rule_name], ENGINES[engine_name]
    own = space(rule, ("global",))
    z = trained(rule)
    raw, phi = raw_values(own, z.params), dynamics(rule, own)
    before = copied((z, raw))
    outcome = engine.call(phi, objective, z, raw, batches_of(engine), TARGET)
    assert_identical((z, raw), before)
    hyper, after, losses = phi.constrain(raw, z.params), z, []
    for batch in batches_of(engine):
        after, metrics = phi.step(after, hyper, batch)
        losses.append(metrics["loss"])
    assert_close(outcome.z, after, 1e-13)
    assert_close([metrics["loss"] for metrics in outcome.metrics], losses, 1e-13)
    assert_close(outcome.objective, loss(after.params, {}, TARGET)[0], 1e-13)
    assert not any(leaf.requires_grad for leaf in trees.leaves(tuple(outcome)))


@pytest.mark.parametrize("rule_name", RULES)
@pytest.mark.parametrize("engine_name", ENGINES)
def test_granularities_are_sums_of_the_elementwise_gradient(engine_name, rule_name):
    """Raw values add, so dℓ/d(tensor) = Σ over its elements, dℓ/d(global) = Σ over all of them."""
    rule, engine = RULES[rule_name], ENGINES[engine_name]
    own = space(rule, GRANULARITIES["sum of all"])
    z = trained(rule)
    raw = raw_values(own, z.params)
    found = engine.call(dynamics(rule, own), objective, z, raw, batches_of(engine), TARGET).hypergradient
    for name in rule.hyperparameters:
        sums = {k: found[f"{name}/element/{k}"].sum() for k in z.params}
        assert_close({k: found[f"{name}/tensor/{k}"] for k in z.params}, sums, 1e-12)
        assert_close(found[f"{name}/global"], torch.stack(list(sums.values())).sum(), 1e-12)


@TABLE
def test_one_step_is_neumann_1_is_unroll_1(rule_name, granularity):
    rule = RULES[rule_name]
    own = space(rule, GRANULARITIES[granularity])
    z = trained(rule)
    raw = raw_values(own, z.params)
    for curve in (curvature.none, curvature.exact):
        one, series, unrolled = (
            engine.call(dynamics(rule, own, curve=curve), penalized, z, raw, BATCHES[:1], TARGET).hypergradient
            for engine in (hypergrad.one_step(), hypergrad.neumann(1), hypergrad.unroll(1))
        )
        assert_identical(one, series)
        assert_close(one, unrolled, 1e-13)


def test_one_step_is_the_closed_form_of_baydin():
    """Without momentum, d L(w')/d log10 η = -η ln 10 ∇L(w')·∇L(w): the factor η ln 10 belongs to the chain rule."""
    rule = rules.sgd()
    own = Space({"lr": Hyper(0.3, LOG10, tune=("global",)), "weight_decay": Hyper(0.0, LOG10), "momentum": Hyper(0.0)})
    z = TrainState(initial(), {}, rule.init(initial()))
    raw = own.init(z.params)
    outcome = hypergrad.one_step().call(dynamics(rule, own), objective, z, raw, BATCHES[:1], BATCHES[1])
    slope = torch.func.grad(lambda w: loss(w, {}, BATCHES[0])[0])
    next_slope = torch.func.grad(lambda w: loss(w, {}, BATCHES[1])[0])
    expected = -0.3 * math.log(10.0) * trees.inner(next_slope(outcome.z.params), slope(z.params))
    assert_close(outcome.hypergradient["lr/global"], expected, 1e-12)


@pytest.mark.parametrize("granularity", ["global", "element"])
@pytest.mark.parametrize("terms", [1, 4])
def test_neumann_has_the_closed_form_of_sgd(terms, granularity):
    """v' = v - v η(H + ξI), p = Σ v; dL/dη = -p·buf', dL/dm = -η p·buf, dL/dξ = -η p·w, times d natural / d raw."""
    rule = rules.sgd()
    own = space(rule, GRANULARITIES[granularity])
    z = trained(rule)
    raw = own.init(z.params)
    eta, xi, m = (HYPERS[name][0] for name in ("lr", "weight_decay", "momentum"))
    outcome = hypergrad.neumann(terms).call(dynamics(rule, own), objective, z, raw, BATCHES[:1], TARGET)

    def flat(tree):
        return torch.cat([leaf.flatten() for leaf in tree.values()])

    hessian = torch.func.hessian(lambda w: loss(w, {}, BATCHES[0])[0])(z.params)
    hessian = torch.cat(
        [torch.cat([hessian[a][b].reshape(x.numel(), -1) for b in z.params], 1) for a, x in z.params.items()]
    )
    v = flat(torch.func.grad(lambda w: loss(w, {}, TARGET)[0])(outcome.z.params))
    p = torch.zeros_like(v)
    for _ in range(terms):
        p, v = p + v, v - eta * (v @ hessian + xi * v)
    old, new = flat(z.state["momentum"]), flat(outcome.z.state["momentum"])
    expected = {
        "lr": -p * new * eta * math.log(10.0),
        "momentum": -eta * p * old * m * (1.0 - m),
        "weight_decay": -eta * p * flat(z.params) * xi * math.log(10.0),
    }
    for name, form in expected.items():
        if granularity == "element":
            found = torch.cat([outcome.hypergradient[f"{name}/element/{k}"].flatten() for k in z.params])
            assert_close(found, form, 1e-12)
        else:
            assert_close(outcome.hypergradient[f"{name}/global"], form.sum(), 1e-12)


# Curvatures, lengths, peers


@pytest.mark.parametrize("how", LIFTS)
@pytest.mark.parametrize("engine_name", ENGINES)
@pytest.mark.parametrize(("sides", "epsilon", "tolerance"), [(1, 1e-6, 1e-5), (2, 1e-4, 1e-7)])
def test_finite_differences_give_the_exact_hypergradient(sides, epsilon, tolerance, engine_name, how):
    rule, engine = rules.adam(), ENGINES[engine_name]
    own = space(rule, ("global",))
    z = trained(rule)
    raw, batches, target, function = own.init(z.params), batches_of(engine), TARGET, objective
    if how == "vmap":
        z, raw, target = (trees.stack([part, part]) for part in (z, raw, target))
        batches = [torch.stack([batch, batch]) for batch in batches]
        function = lambda *arguments: population.lift(objective, "vmap")(*arguments)  # noqa: E731
    exact, approximate = (
        engine.call(dynamics(rule, own, how, curve), function, z, raw, batches, target).hypergradient
        for curve in (curvature.exact, curvature.finite_difference(epsilon, sides))
    )
    assert_close(approximate, exact, tolerance)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hypergrad.neumann(0), "terms is 0"),
        (lambda: hypergrad.unroll(0), "window is 0"),
        (lambda: hypergrad.forward(-1), "window is -1"),
    ],
)
def test_lengths_are_positive(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_gradient_takes_no_steps_and_finds_zero():
    own = space(rules.sgd(), ("global",))
    z = trained(rules.sgd())
    raw = own.init(z.params)
    engine = hypergrad.no_gradient()
    outcome = engine.call(dynamics(rules.sgd(), own), objective, z, raw, [], TARGET)
    assert engine.window == 0
    assert outcome.z is z
    assert_identical(outcome.hypergradient, trees.zeros(own.tuned(raw)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_unroll_is_the_peer_higher_on_sgd_with_momentum():
    higher = pytest.importorskip("higher", reason="the peer package `higher` is not installed (extra: test)")
    rule = rules.sgd()
    own = space(rule, ("global",))
    params = {k: p for k, p in initial().items() if k != "unused"}
    z = TrainState(params, {}, rule.init(params))
    raw = own.init(params)
    module = torch.nn.ParameterDict({k.replace(".", "_"): torch.nn.Parameter(p.clone()) for k, p in params.items()})
    learned = trees.variables(own.tuned(raw))
    natural = {name: values["layer.bias"] for name, values in own.constrain({**raw, **learned}, params).items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9, weight_decay=1.0)

    def of_module(patched, rows):
        return loss({k: patched[k.replace(".", "_")] for k in params}, {}, rows)[0]

    override = {name: [value] for name, value in natural.items()}
    with higher.innerloop_ctx(module, optimizer, override=override) as (patched, inner):
        for batch in BATCHES:
            inner.step(of_module(patched, batch))
        value = of_module(patched, TARGET)
        expected = dict(zip(learned, torch.autograd.grad(value, list(learned.values())), strict=True))
    engine = hypergrad.unroll(len(BATCHES))
    outcome = engine.call(dynamics(rule, own), objective, z, raw, BATCHES, TARGET)
    assert_close(outcome.objective, value.detach(), 1e-12)
    assert_close(outcome.hypergradient, expected, 1e-12)
