"""Models under μP and u-μP are those of the packages mup and unit_scaling."""

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from laws import assert_close, assert_identical, random
from torch import Tensor, nn
from twins import TWINS, Kit, examples, trajectory

from hyperopt_id import mup, rules, trees
from hyperopt_id.tasks import models
from hyperopt_id.tasks.models import STANDARD, UNIT_SCALED
from hyperopt_id.trees import Params

BASE, WIDTH = 4, 12
OURS: dict[str, Any] = {
    "mlp": lambda how: models.mlp([6, WIDTH, WIDTH, 3], parametrization=how),
    "cnn": lambda how: models.cnn((1, 6, 6), (WIDTH, WIDTH), 3, how),
    "transformer": lambda how: models.transformer(
        7, length=5, embedding=WIDTH, heads=2, hidden=2 * WIDTH, parametrization=how
    ),
}
RULES: dict[str, tuple[rules.UpdateRule, str, dict[str, float]]] = {  # with the class's name, and natural values
    "adam": (rules.adam(), "MuAdam", {"weight_decay": 0.01}),
    "adamw": (rules.adamw(), "MuAdamW", {"weight_decay": 0.1}),
    "sgd": (rules.sgd(), "MuSGD", {"weight_decay": 0.01, "momentum": 0.9}),
}
COMMON = {"lr": 0.02, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}


pytestmark = pytest.mark.usefixtures("double")


def seeded(make: Any, *arguments: Any) -> Any:
    torch.manual_seed(0)
    return make(*arguments)


def our_trajectory(model: nn.Module, rule: rules.UpdateRule, natural: dict[str, float], name: str) -> list[Params]:
    """Parameters after each of 20 steps of the rule, on the batches that `twins.trajectory` takes."""
    params = {k: p.detach().clone() for k, p in model.named_parameters()}
    hyper = {h: dict.fromkeys(params, torch.tensor(natural[h])) for h in rule.hyperparameters}
    kept, found = rule.init(params), []
    for step in range(20):
        inputs, targets = examples(name, step)
        params = trees.variables(params)
        outputs = torch.func.functional_call(model, params, (inputs,)).flatten(0, -2)
        slopes = torch.autograd.grad(F.cross_entropy(outputs, targets), list(params.values()))
        slopes, params = dict(zip(params, slopes)), trees.detach(params)
        params, kept = rule.update(params, slopes, kept, hyper)
        found.append(params)
    return found


def assert_same_trajectory(found: list[Params], twin: nn.Module, expected: list[Tensor]) -> None:
    """But for biases of keys: their derivative is 0, since attention does not see them, and what Adam makes of rounding
    is any direction."""
    names = [name for name, _ in twin.named_parameters()]
    rows = [torch.cat([params[name].flatten() for name in names]) for params in found]
    seen = {name: torch.ones_like(value, dtype=torch.bool) for name, value in found[0].items()}
    for name in (name for name in names if name.endswith("qkv.bias")):
        seen[name][WIDTH : 2 * WIDTH] = False
    these = torch.cat([seen[name].flatten() for name in names])
    assert_close([row[these] for row in rows], [row[these] for row in expected], 1e-10)


def scheme_of(model: nn.Module, scheme: mup.Scheme, base: int = BASE) -> mup.Multipliers:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    roles: Any = model.roles
    return mup.multipliers(mup.tags(shapes, roles, base), scheme)


# Standard


@pytest.mark.parametrize("name", OURS)
def test_the_standard_parametrization_is_that_of_torch_s_layers(name):
    ours = dict(seeded(OURS[name], STANDARD).named_parameters())
    theirs = dict(seeded(TWINS[name], Kit(nn.Linear, nn.Linear), WIDTH).named_parameters())
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert_identical(ours[key].detach(), theirs[key].detach())


# μP


def package_twin(name: str, **options: Any) -> nn.Module:
    package = pytest.importorskip("mup", reason="the oracle is the package mup")
    kit = Kit(nn.Linear, lambda n, outputs: package.MuReadout(n, outputs, **options))
    twin = seeded(TWINS[name], kit, WIDTH)
    width = dict.fromkeys((WIDTH, 2 * WIDTH, 3 * WIDTH), BASE)  # one base for all, as one number says
    base = {k: [width.get(size, size) for size in p.shape] for k, p in twin.named_parameters()}
    return package.set_base_shapes(twin, base)


@pytest.mark.parametrize("name", OURS)
def test_weights_start_as_the_package_mup_rescales_them(name):
    ours = dict(seeded(OURS[name], models.mup(BASE)).named_parameters())
    theirs = dict(package_twin(name, readout_zero_init=True).named_parameters())
    for key in theirs:
        assert_close(ours[key].detach(), theirs[key].detach(), 1e-15)


@pytest.mark.parametrize("zero", [True, False], ids=["outputs of zero", "random outputs"])
@pytest.mark.parametrize("case", RULES)
@pytest.mark.parametrize("name", OURS)
def test_models_and_scaled_rules_train_as_those_of_the_package_mup(name, case, zero):
    package = pytest.importorskip("mup", reason="the oracle is the package mup")
    rule, method, natural = RULES[case]
    twin, ours = package_twin(name, readout_zero_init=zero), OURS[name](models.mup(BASE))
    ours.load_state_dict(twin.state_dict())
    natural = COMMON | natural
    options = {"betas": (0.9, 0.99)} if case != "sgd" else {"momentum": natural["momentum"]}
    optimizer = getattr(package, method)(
        twin.parameters(), lr=natural["lr"], weight_decay=natural["weight_decay"], **options
    )
    scaled = mup.scaled(rule, scheme_of(ours, mup.sgd if case == "sgd" else mup.adam))
    assert_same_trajectory(our_trajectory(ours, scaled, natural, name), twin, trajectory(twin, optimizer, name))


def test_at_the_base_width_only_the_output_and_attention_are_not_standard():
    for name in ("mlp", "cnn"):
        model, plain = seeded(OURS[name], models.mup(WIDTH)), seeded(OURS[name], STANDARD)
        inputs = examples(name, 0)[0]
        assert not model(inputs).any()
        last = [k for k in plain.state_dict() if k.startswith(("output", "layers.2"))]
        model.load_state_dict({k: plain.state_dict()[k] for k in last}, strict=False)
        assert_close(model(inputs), plain(inputs), 1e-14)
        assert set(scheme_of(model, mup.adam, WIDTH)["lr"].values()) == {1.0}


# u-μP


class UnitLinear(nn.Module):
    """A layer of the package, its bias behind the multiplier."""

    def __init__(self, layer: nn.Module, outputs: int):
        super().__init__()
        unit = sys.modules["unit_scaling"]
        self.weight, self.bias = layer.weight, unit.Parameter(torch.zeros(outputs), "bias")
        self.product = [layer]  # no part of this module: its weight is

    def forward(self, inputs: Tensor) -> Tensor:
        return self.product[0](inputs) + self.bias


def unit_twin(name: str) -> nn.Module:
    """The twin of layers of the package unit_scaling; parameters outside of them get the type that they are of."""
    unit = pytest.importorskip("unit_scaling", reason="the oracle is the package unit_scaling")

    def linear(n: int, outputs: int) -> nn.Module:
        return UnitLinear(unit.Linear(n, outputs), outputs)

    def output(n: int, outputs: int) -> nn.Module:
        return UnitLinear(unit.LinearReadout(n, outputs), outputs)

    twin = TWINS[name](Kit(linear, output, unit.Embedding), WIDTH)
    for key, parameter in twin.named_parameters():
        if not hasattr(parameter, "mup_type"):
            kind = "weight" if key == "positions" else "bias" if key.endswith("bias") else "norm"
            parameter.mup_type, parameter.mup_scaling_depth = kind, None
    return twin


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_models_and_scaled_rules_train_as_those_of_the_package_unit_scaling(name):
    """Its backward pass scales gradients by constants, which Adam does not see (without eps). Its decay of a step does
    not know the learning rate, ours is a share of it, as that is learned."""
    twin, ours = unit_twin(name), seeded(OURS[name], UNIT_SCALED)
    twin.load_state_dict(ours.state_dict())
    natural = COMMON | {"eps": 1e-30, "weight_decay": 0.1}
    unit = sys.modules["unit_scaling"]
    decay = natural["lr"] * natural["weight_decay"]
    optimizer = unit.optim.AdamW(twin.parameters(), lr=natural["lr"], betas=(0.9, 0.99), eps=1e-30, weight_decay=decay)
    scaled = mup.scaled(rules.adamw(), scheme_of(ours, mup.unit_adam, 1))
    assert_same_trajectory(our_trajectory(ours, scaled, natural, name), twin, trajectory(twin, optimizer, name))


def test_unit_scaled_activations_are_of_size_one_at_any_width():
    for width in (64, 1024):
        torch.manual_seed(0)
        model: Any = models.mlp([64, width, width, 10], "tanh", parametrization=UNIT_SCALED)
        inputs = random(200, 64, seed=1)
        hidden = model.layers[0](inputs.t())
        assert hidden.std().item() == pytest.approx(1.0, rel=0.1)
        assert model.layers[1](hidden).std().item() == pytest.approx(1.0, rel=0.15)
        assert model(inputs).std().item() < 1.5 * width**-0.5
        assert not any(p.any() for k, p in model.named_parameters() if k.endswith("bias"))


def test_convolutions_of_images_cannot_be_unit_scaled():
    with pytest.raises(ValueError, match=r"convolutions\.0\.weight: Conv2d has no multiplier"):
        models.cnn((1, 6, 6), (4,), 3, UNIT_SCALED)
