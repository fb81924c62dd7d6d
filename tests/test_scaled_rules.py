"""Laws of scaled rules, which every engine differentiates at every granularity."""

import pytest
import torch
from laws import (
    BATCHES,
    ENGINES,
    GRANULARITIES,
    LIFTS,
    RULES,
    TARGET,
    assert_close,
    assert_identical,
    differences,
    directions,
    dynamics,
    initial,
    penalized,
    random,
    raw_values,
    space,
    step,
    trained,
)
from torch._dynamo.testing import CompileCounter

from hyperopt_id import hypergrad, mup, population, trees
from hyperopt_id.rules import Hyperparameters, State, UpdateRule
from hyperopt_id.trees import Params

FACTORS = {"layer.weight": 0.25, "layer.bias": 3.0, "unused": 1.0}
MULTIPLIERS = {"lr": FACTORS, "weight_decay": {k: 1.0 / c for k, c in FACTORS.items()}}
SOME = ("sgd", "nesterov", "adam", "adamw", "clipped adam")  # of the rules


def scaled(name: str) -> UpdateRule:
    return mup.scaled(RULES[name], MULTIPLIERS)


def written_out(name: str) -> UpdateRule:
    rule, ones = RULES[name], dict.fromkeys(FACTORS, 1.0)

    def update(params: Params, gradients: Params, state: State, hyper: Hyperparameters) -> tuple[Params, State]:
        factors = {h: MULTIPLIERS.get(h, ones) for h in hyper}
        times = {h: {k: x * factors[h][k] for k, x in values.items()} for h, values in hyper.items()}
        return rule.update(params, gradients, state, times)

    return rule._replace(update=update, derivative=None)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", RULES)
def test_a_scaled_rule_is_the_rule_at_scaled_values(name, granularity):
    rule, z = RULES[name], trained(RULES[name])
    own = space(rule, GRANULARITIES[granularity])
    hyper = own.constrain(raw_values(own, z.params), z.params)
    point = (z.params, initial(7), z.state, hyper)
    assert_close(scaled(name).update(*point), written_out(name).update(*point), 1e-15)
    ones = {h: dict.fromkeys(FACTORS, 1.0) for h in MULTIPLIERS}
    assert_identical(mup.scaled(rule, ones).update(*point), rule.update(*point))


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.derivative is not None])
def test_a_scaled_closed_form_is_that_of_the_scaled_update(name):
    rule, z = scaled(name), trained(RULES[name])
    hyper = {
        h: {k: random(*p.shape, seed=20 + i).abs() for k, p in z.params.items()}
        for i, h in enumerate(rule.hyperparameters)
    }
    new, pull = torch.func.vjp(lambda p, g, h: rule.update(p, g, z.state, h)[0], z.params, initial(9), hyper)
    along, across, by_hyper = pull(trees.map(torch.ones_like, new))
    assert rule.derivative is not None
    point = (z.params, initial(9), z.state, hyper)
    assert_close(rule.derivative.diagonals(*point), (along, across), 1e-14)
    assert_close(rule.derivative.hyper(*point), by_hyper, 1e-14)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", SOME)
def test_engines_differentiate_scaled_rules(name, granularity):
    """Unrolled and forward against autograd and differences through the loop."""
    rule = scaled(name)
    own = space(rule, GRANULARITIES[granularity])
    z = trained(RULES[name])
    raw = raw_values(own, z.params)
    tuned = own.tuned(raw)

    def value(learned):
        after, everything = z, {**raw, **learned}
        for batch in BATCHES[:3]:
            after = step(rule, own, after, everything, batch)
        return penalized(after.params, {}, everything, TARGET)

    expected = torch.func.grad(value)(tuned)
    for engine in (hypergrad.unroll(3), hypergrad.forward(3)):
        found = engine.call(dynamics(rule, own), penalized, z, raw, BATCHES[:3], TARGET)
        assert_close(found.hypergradient, expected)
    direction = directions(tuned)
    assert_close(trees.inner(expected, direction), differences(value, tuned, direction), 1e-7)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("engine", ["neumann", "neumann, carried", "one_step"])
def test_series_are_those_of_the_update_written_out(engine, name, granularity):
    """Without the closed form of its derivative, and without products that parameters share."""
    own, z, call = space(RULES[name], GRANULARITIES[granularity]), trained(RULES[name]), ENGINES[engine].call
    raw, batches = raw_values(own, z.params), BATCHES[: ENGINES[engine].window]
    found, expected = (
        call(dynamics(rule, own), penalized, z, raw, batches, TARGET) for rule in (scaled(name), written_out(name))
    )
    assert_close(tuple(found), tuple(expected), 1e-11)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("engine", ENGINES)
def test_vmap_equals_loop(engine, name):
    rule, call = scaled(name), ENGINES[engine].call
    own = space(rule, GRANULARITIES["tensor" if engine == "forward" else "sum of all"])
    members = [trained(RULES[name], seed=seed) for seed in (3, 30)]
    raws = [raw_values(own, z.params, 11 * r) for r, z in enumerate(members)]
    batches = BATCHES[: ENGINES[engine].window]
    alone, together = (dynamics(rule, own, how) for how in LIFTS)
    expected = [call(alone, penalized, z, raw, batches, TARGET) for z, raw in zip(members, raws)]
    lifted = lambda *arguments: population.lift(penalized, "vmap")(*arguments)  # noqa: E731
    stacked = (trees.stack(members), trees.stack(raws), [torch.stack([b] * 2) for b in batches])
    found = call(together, lifted, *stacked, torch.stack([TARGET] * 2))
    assert_close(tuple(found), tuple(trees.stack(expected)), 1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_compiled_step_holds_for_the_values_of_every_step(name):
    """One program, which is not compiled anew when hyperparameters are other tensors."""
    counter = CompileCounter()
    rule, z, own = scaled(name), trained(RULES[name]), space(RULES[name], ("global",))
    compiled = torch.compile(rule.update, backend=counter, fullgraph=True)
    for seed in range(3):
        hyper = own.constrain(raw_values(own, z.params, seed), z.params)
        found = compiled(z.params, initial(7), z.state, hyper)
        assert_close(found, rule.update(z.params, initial(7), z.state, hyper), 1e-13)
    assert counter.frame_count == 1
