"""Laws of the raw space: constrain inverts init, bounds hold after projection, draws depend on seed and name only."""

import math
from dataclasses import replace

import pytest
import torch
from laws import GRANULARITIES, assert_close, assert_identical, copied, initial, random

from hyperopt_id import trees
from hyperopt_id.space import IDENTITY, LOG10, LOGIT, Hyper, Space

TRANSFORMS = {"log10": LOG10, "logit": LOGIT, "identity": IDENTITY}
NATURAL = {
    "log10": (1e-10, 3e-4, 1.0, 20.0),
    "logit": (1e-9, 0.1, 0.5, 0.999),
    "identity": (-3.0, 0.0, 0.25, 7.0),
}
BOUNDS = {"log10": (1e-5, 1e-1), "logit": (0.1, 0.9), "identity": (-0.5, 0.5)}
CASES = [(transform, value) for transform, values in NATURAL.items() for value in values]
PARAMS = initial()


def totals(space: Space, raw: dict) -> torch.Tensor:
    """Every natural value of the hyperparameter "x", in one vector."""
    values = space.constrain(raw, PARAMS)["x"]
    return torch.cat([value.expand_as(PARAMS[k]).flatten() for k, value in values.items()])


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("transform, value", CASES)
def test_constrain_inverts_init(transform, value, granularity):
    space = Space({"x": Hyper(value, TRANSFORMS[transform], tune=GRANULARITIES[granularity])})
    values = space.constrain(space.init(PARAMS), PARAMS)["x"]
    assert list(values) == list(PARAMS)
    assert_close(totals(space, space.init(PARAMS)), torch.full((10,), value, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_init_has_one_raw_value_for_each_tuned_number(granularity):
    tune = GRANULARITIES[granularity]
    space = Space({"x": Hyper(0.1, LOG10, tune=tune), "fixed": Hyper(0.2)})
    raw = space.init(PARAMS)
    shapes = {"x/global": (), "fixed/global": ()}
    shapes |= {f"x/tensor/{k}": () for k in PARAMS if "tensor" in tune}
    shapes |= {f"x/element/{k}": tuple(p.shape) for k, p in PARAMS.items() if "element" in tune}
    assert {k: tuple(x.shape) for k, x in raw.items()} == shapes
    assert all(x.dtype == torch.float64 for x in raw.values())
    tuned = {k for k in shapes if k.startswith("x/") and k.split("/")[1] in tune}
    assert set(space.tuned(raw)) == tuned


def test_granularities_add_in_raw_space_and_multiply_under_log10():
    space = Space({"x": Hyper(0.1, LOG10, tune=("global", "tensor", "element"))})
    raw = {k: x + 0.3 * random(*x.shape, seed=i) for i, (k, x) in enumerate(space.init(PARAMS).items())}
    for k, value in space.constrain(raw, PARAMS)["x"].items():
        parts = [raw["x/global"], raw[f"x/tensor/{k}"], raw[f"x/element/{k}"]]
        assert_close(value, 10.0 ** parts[0] * 10.0 ** parts[1] * 10.0 ** parts[2], 1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_bounds_hold_after_projection(transform, granularity, spread, seed):
    low, high = BOUNDS[transform]
    middle = math.sqrt(low * high) if transform == "log10" else (low + high) / 2
    space = Space({"x": Hyper(middle, TRANSFORMS[transform], (low, high), tune=GRANULARITIES[granularity])})
    start = space.init(PARAMS)
    raw = {k: x + spread * random(*x.shape, seed=50 * seed + i) for i, (k, x) in enumerate(start.items())}
    if "global" not in GRANULARITIES[granularity]:
        raw["x/global"] = start["x/global"]
    before = copied(raw)
    projected = space.project(raw)
    values = totals(space, projected)
    assert (values >= low - 1e-12).all()
    assert (values <= high + 1e-12).all()
    assert_identical(raw, before)
    assert_close(space.project(projected), projected, 1e-12)
    inside = (totals(space, raw) > low) & (totals(space, raw) < high)
    if len(GRANULARITIES[granularity]) == 1:  # a single granularity is clipped, and nothing else happens to it
        torch.testing.assert_close(values[inside], totals(space, raw)[inside], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_projection_with_a_run_axis_is_that_of_the_members(granularity):
    space = Space({"x": Hyper(1e-3, LOG10, (1e-5, 1e-1), tune=GRANULARITIES[granularity])})
    members = [
        {k: x + 3.0 * random(*x.shape, seed=50 * r + i) for i, (k, x) in enumerate(space.init(PARAMS).items())}
        for r in range(3)
    ]
    assert_identical(space.project(trees.stack(members)), trees.stack([space.project(m) for m in members]))


def test_projection_leaves_alone_what_is_not_tuned_or_has_no_bounds():
    space = Space({"fixed": Hyper(0.5, IDENTITY, (0.0, 1.0)), "free": Hyper(9.0, IDENTITY, tune=("global",))})
    raw = space.init(PARAMS, {"fixed": 9.0})
    assert_identical(space.project(raw), raw)


@pytest.mark.parametrize("tune", [(), ("global",), ("element",)])
def test_weight_decay_that_starts_at_zero_stays_off(tune):
    space = Space({"weight_decay": Hyper(1e-6, LOG10, tune=tune)})
    raw = {k: x + 1.0 for k, x in space.init(PARAMS, {"weight_decay": 0.0}).items()}
    learned = trees.variables(raw)
    values = space.constrain(learned, PARAMS)["weight_decay"]
    assert all((value == 0.0).all() for value in values.values())
    slopes = torch.autograd.grad(sum(v.sum() for v in values.values()), list(learned.values()))  # type: ignore
    assert all((slope == 0.0).all() for slope in slopes)
    assert_identical(space.project(raw), raw)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_logit_of_the_ends_is_finite(value):
    raw = Space({"momentum": Hyper(value, LOGIT)}).init(PARAMS)["momentum/global"]
    assert raw.isfinite()
    assert torch.sigmoid(raw).item() == pytest.approx(value, abs=1e-11)


def test_what_is_not_learned_may_be_off():
    assert Hyper(0.0, LOG10, bounds=(0.0, math.inf)).init == 0.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tune": ("elementwise",)}, r"tune=\('elementwise',\); allowed: any of global, tensor, element, as in"),
        ({"tune": "element"}, r"tune='element'; allowed: any of .*, as in tune=\(\"element\",\)"),
        ({"init": -0.1}, "init=-0.1; allowed: natural values from 0 to inf"),
        ({"init": math.nan}, "init=nan; allowed"),
        ({"init": math.inf}, "init=inf; a value to be tuned is finite"),
        ({"init": 0.0}, "init=0.0; a value to be tuned is finite, and above 0 under LOG10"),
        ({"init": 1.5, "transform": LOGIT}, "init=1.5; allowed: natural values from 0 to 1"),
        ({"bounds": (1.0, 1e-3)}, r"bounds=\(1.0, 0.001\); allowed: .*, the lower first"),
        ({"bounds": (-1.0, 1.0)}, r"bounds=\(-1.0, 1.0\); allowed: natural values from 0"),
        ({"bounds": (0.2, 0.5)}, r"init=0.1 is outside bounds=\(0.2, 0.5\); change one of them"),
        ({"sample": (0.1, 0.01)}, r"sample=\(0.1, 0.01\); allowed: .*, the lower first"),
        ({"sample": (0.0, 0.1)}, "a range to draw from is finite, and above 0 under LOG10"),
        ({"sample": (0.0, 2.0), "transform": LOGIT}, "allowed: natural values from 0 to 1"),
    ],
)
def test_impossible_hyperparameters_are_refused(given: dict, message: str):
    with pytest.raises(ValueError, match=f"^Hyper: .*{message}"):
        Hyper(**{"init": 0.1, "transform": LOG10, "tune": ("global",)} | given)


# Draws

SAMPLED = {
    "lr": Hyper(1e-3, LOG10, sample=(1e-6, 1e-1)),
    "momentum": Hyper(0.5, LOGIT, sample=(0.0, 1.0)),
    "shift": Hyper(0.0, IDENTITY, sample=(-2.0, 3.0)),
}
DRAWS = [Space(SAMPLED).draw(seed) for seed in range(2000)]


@pytest.mark.parametrize("name", SAMPLED)
def test_draws_have_the_right_distribution(name):
    """Kolmogorov and Smirnov: with 2000 draws, a distance of 0.0364 is exceeded once in a hundred times."""
    low, high = SAMPLED[name].sample or (0.0, 1.0)
    values = torch.tensor([draw[name] for draw in DRAWS], dtype=torch.float64)
    assert low <= values.min()
    assert values.max() <= high
    if name == "lr":
        values, low, high = values.log10(), math.log10(low), math.log10(high)
    shares = ((values - low) / (high - low)).sort().values
    steps = torch.arange(2001, dtype=torch.float64) / 2000
    assert max((shares - steps[:-1]).abs().max(), (shares - steps[1:]).abs().max()) < 0.0364


def test_draws_of_two_hyperparameters_are_independent():
    pairs = torch.tensor([[math.log10(draw["lr"]), draw["momentum"], draw["shift"]] for draw in DRAWS])
    correlation = torch.corrcoef(pairs.T) - torch.eye(3)
    assert correlation.abs().max() < 0.06


@pytest.mark.parametrize(
    "change",
    {
        "tuned": lambda hypers: {k: replace(h, tune=("element",)) for k, h in hypers.items()},
        "other init": lambda hypers: {k: replace(h, init=0.7) for k, h in hypers.items()},
        "other order": lambda hypers: dict(reversed(hypers.items())),
        "more of them": lambda hypers: {"eps": Hyper(1e-8, LOG10, sample=(1e-10, 1e-6)), **hypers},
    }.items(),
    ids=lambda change: change[0],
)
def test_draws_are_a_function_of_seed_and_name(change):
    other = Space(change[1](SAMPLED))
    for seed in range(5):
        drawn = other.draw(seed)
        assert {name: drawn[name] for name in SAMPLED} == DRAWS[seed]


def test_draws_know_no_global_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert Space(SAMPLED).draw(3) == DRAWS[3]
    assert torch.equal(torch.get_rng_state(), before)


def test_what_has_no_range_is_drawn_as_its_init():
    assert Space({"lr": Hyper(0.3, LOG10)}).draw(4) == {"lr": 0.3}


def test_init_starts_at_the_drawn_values():
    space = Space(SAMPLED)
    values = space.constrain(space.init(PARAMS, DRAWS[7]), PARAMS)
    for name, value in DRAWS[7].items():
        assert values[name]["unused"].item() == pytest.approx(value, rel=1e-10, abs=1e-10)
