"""μP and u-μP as factors: the table of the schemes, tags, and what the factors are for."""

import pytest
import torch
import torch.nn.functional as F
from laws import assert_close, initial, random
from torch import Tensor

from hyperopt_id import mup, rules
from hyperopt_id.mup import Tag
from hyperopt_id.tasks import models
from hyperopt_id.tasks.models import STANDARD
from hyperopt_id.trees import Params

# Schemes

M, N = 16.0, 4.0  # width multipliers, fan-out and fan-in
SCHEMES = {"adam": mup.adam, "sgd": mup.sgd, "unit_adam": mup.unit_adam, "unit_sgd": mup.unit_sgd}
TABLE = {  # tag -> factors by the schemes above
    "hidden": (Tag("hidden", (32, 8), (M, N)), (1 / N, M / N, 8**-0.5, 8**0.5)),
    "hidden, convolution": (Tag("hidden", (32, 8, 3), (M, N, None)), (1 / N, M / N, 24**-0.5, 24**0.5)),
    "hidden, in a stack": (Tag("hidden", (32, 8), (M, N), 9), (1 / N, M / N, 8**-0.5 / 3, 8**0.5 / 3)),
    "input": (Tag("input", (32, 5), (M, None)), (1, M, 5**-0.5, 5**0.5)),
    "embedding": (Tag("embedding", (5, 32), (None, M)), (1, M, 32**-0.5, 32**0.5)),
    "output": (Tag("output", (5, 32), (None, N)), (1, N, 1, 1)),
    "output, in a stack": (Tag("output", (5, 32), (None, N), 4), (1, N, 0.5, 0.5)),
    "bias": (Tag("bias", (32,), (M,)), (1, M, 1, 32)),
    "bias of an output": (Tag("bias", (5,), (None,)), (1, 1, 1, 5)),
    "norm": (Tag("norm", (32,), (M,), 4), (1, M, 0.5, 16)),
    "vector of weights": (Tag("hidden", (32,), (M,)), (1, M, 32**-0.5, 32**0.5)),
    "nothing that grows": (Tag("hidden", (5, 7), (None, None)), (1, 1, 7**-0.5, 7**0.5)),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", TABLE)
def test_the_table_of_factors(case, scheme):
    tag, factors = TABLE[case]
    assert SCHEMES[scheme](tag) == pytest.approx(dict(zip(SCHEMES, factors))[scheme], rel=1e-15)


def test_the_decay_of_a_step_is_the_same_for_all_parameters():
    tags = {case: tag for case, (tag, _) in TABLE.items()}
    for scheme in SCHEMES.values():
        found = mup.multipliers(tags, scheme)
        assert {k: found["lr"][k] * found["weight_decay"][k] for k in tags} == pytest.approx(dict.fromkeys(tags, 1.0))
        assert mup.multipliers(tags, scheme, decoupled=True) == {"lr": found["lr"]}


# Tags

MODELS = {
    "mlp": lambda n: models.mlp([5, n, 2 * n, 3], batch_norm=n > 0),
    "cnn": lambda n: models.cnn((1, 6, 6), (n, 2 * n), 3),
    "transformer": lambda n: models.transformer(features=5, outputs=3, length=6, embedding=n, hidden=2 * n, heads=1),
    "language": lambda n: models.transformer(vocabulary=11, length=6, embedding=n, hidden=2 * n, heads=1),
    "lstm": lambda n: models.lstm(11, n, 2 * n),
}


def shapes(model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_what_grows_by_role_is_what_grows_from_model_to_model(name):
    small, large = MODELS[name](7), MODELS[name](14)
    by_role = mup.tags(shapes(large), large.roles, 1)
    by_model = mup.tags(shapes(large), large.roles, shapes(small))
    for k in by_role:
        grows = [width is not None for width in by_role[k].widths]
        assert grows == [width is not None for width in by_model[k].widths], k
        assert [w for w in by_model[k].widths if w is not None] == [2.0] * sum(grows)
        assert [w for w in by_role[k].widths if w is not None] == [s for s, g in zip(by_role[k].shape, grows) if g]


def test_of_base_width_1_the_factor_is_one_over_fan_in():
    """As the learned optimizer has been trained."""
    model = models.mlp([5, 8, 16, 3])
    found = mup.multipliers(mup.tags(shapes(model), model.roles, 1), mup.adam)["lr"]
    assert found == dict.fromkeys(found, 1.0) | {"layers.1.weight": 1 / 8}


@pytest.mark.parametrize(
    ("shape", "role", "base", "message"),
    [
        ((3, 2), "weight", 1, "parameter a has the role weight; give it one of input, hidden, output"),
        ((3, 2), None, 1, "parameter a has no role; give it one of"),
        ((3,), "hidden", 1, r"shape \[3\] has too few dimensions for the role hidden"),
        ((3, 2), "hidden", 0, "base width 0: needed is a width of 1 or more"),
        ((3, 2), "hidden", {"b": (1, 2)}, "the base model lacks it"),
        ((3, 2), "hidden", {"a": (1, 2, 3)}, r"the base model has \[1, 2, 3\]; make both alike"),
        ((), "bias", {"b": ()}, "the base model lacks it"),
    ],
)
def test_tags_that_cannot_be(shape, role, base, message):
    with pytest.raises(ValueError, match=message):
        mup.tags({"a": shape}, {} if role is None else {"a": role}, base)


@pytest.mark.parametrize(
    ("base", "delta", "message"),
    [
        (1, {"a": (6, 2)}, "base is a width, 1; leave it out"),
        ({"a": (3, 2)}, {"b": (6, 2)}, "the delta model lacks it"),
        ({"a": (3, 2)}, {"a": (6,)}, r"the delta model has \[6\]; make both alike"),
    ],
)
def test_a_delta_model_that_does_not_fit(base, delta, message):
    with pytest.raises(ValueError, match=message):
        mup.tags({"a": (3, 2)}, {}, base, delta)


def test_factors_that_cannot_be():
    with pytest.raises(ValueError, match="3 dimensions of a parameter"):
        mup.adam(Tag("hidden", (4, 4, 4), (2.0, 2.0, 2.0)))
    with pytest.raises(ValueError, match=r"no fan-in for a weight of shape \[\]"):
        mup.unit_adam(Tag("hidden", (), ()))
    with pytest.raises(ValueError, match="multipliers of momentum, but the rule has lr, weight_decay, beta1"):
        mup.scaled(rules.adam(), {"momentum": {}})
    with pytest.raises(ValueError, match=r"multipliers of lr lack the parameter layer\.bias"):
        mup.scaled(rules.adam(), {"lr": {"layer.weight": 1.0}}).init(initial())


# What the factors are for


def losses(model, rule: rules.UpdateRule, params: Params, natural: dict[str, float], steps: int) -> list[Tensor]:
    """Of training from `params`, without a batch's randomness."""
    hyper = {h: dict.fromkeys(params, torch.tensor(x, dtype=torch.float64)) for h, x in natural.items()}
    inputs, targets, state, found = random(10, 6, seed=1), torch.arange(10) % 3, rule.init(params), []
    for _ in range(steps):
        loss = lambda w: F.cross_entropy(torch.func.functional_call(model, w, (inputs,)), targets)  # noqa: E731
        slopes, value = torch.func.grad_and_value(loss)(params)
        params, state = rule.update(params, slopes, state, hyper)
        found.append(value)
    return found


@pytest.mark.parametrize(("rule", "decay"), [(rules.adam(), 0.0), (rules.adamw(), 0.1)], ids=["adam", "adamw"])
def test_unit_variance_and_its_rates_are_a_change_of_units(rule, decay):
    """With w = a W of another model, and rates a c where that has c (Adam's steps do not know the size of gradients),
    both compute the same functions forever."""
    torch.manual_seed(0)
    unit, plain = (models.mlp([6, 8, 16, 3], parametrization=how).double() for how in (models.UNIT_SCALED, STANDARD))
    rates = mup.multipliers(mup.tags(shapes(unit), unit.roles, 1), mup.unit_adam)["lr"]
    sizes = {k: unit.get_submodule(k.rpartition(".")[0]).multiplier for k in rates if "weight" in k}
    natural = {"lr": 0.1, "weight_decay": decay, "beta1": 0.9, "beta2": 0.99, "eps": 1e-30}
    found = []
    for model, size in ((unit, {}), (plain, sizes)):
        factors = {k: c * size.get(k, 1.0) for k, c in rates.items()}
        multipliers = {"lr": factors, "weight_decay": {k: 1.0 / c for k, c in factors.items()}}
        params = {k: p.detach() * size.get(k, 1.0) for k, p in unit.named_parameters()}
        found.append(losses(model, mup.scaled(rule, multipliers), params, natural, 6))
    assert_close(*found, 1e-12)
    assert found[0][-1] < 0.9 * found[0][0]
