"""μP for `torch.optim`: parameter groups, trajectories and saved states are those of the package mup."""

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import assert_close, assert_identical
from torch import nn
from twins import TWINS, Kit, in_order, trajectory

from hyperopt_id import mup, optim
from hyperopt_id.optim.tags import width_tag
from hyperopt_id.tasks import models

BASE, WIDTH = 4, 12
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {  # of the package mup
    "adam": ("MuAdam", {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": ("MuAdamW", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.9)}),
    "adamw, decay of 0": ("MuAdamW", {"lr": 0.01}),
    "sgd": ("MuSGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": ("MuSGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "another optimizer": ("MuAdam", {"impl": torch.optim.RMSprop, "lr": 0.01, "alpha": 0.9}),
}


pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def package() -> ModuleType:
    return pytest.importorskip("mup", reason="the oracle is the package mup")


def prepared(package: ModuleType, name: str, width: int = WIDTH) -> nn.Module:
    torch.manual_seed(0)
    kit = Kit(nn.Linear, package.MuReadout)
    base, delta = TWINS[name](kit, BASE), TWINS[name](kit, 2 * BASE)
    return package.set_base_shapes(TWINS[name](kit, width), base, delta=delta)


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("name", TWINS)
def test_a_model_of_the_package_mup_trains_as_by_its_optimizers(package, name, case):
    method, options = SETTINGS[case]
    ours, theirs = (prepared(package, name) for _ in range(2))
    optimizer = getattr(optim, method)(ours.parameters(), **options)
    twin = getattr(package, method)(theirs.parameters(), **options)
    assert type(optimizer) is type(twin)
    assert_close(in_order(ours, optimizer), in_order(theirs, twin), 1e-14)
    assert_close(trajectory(ours, optimizer, name), trajectory(theirs, twin, name), 1e-11)


DIMENSIONS = st.tuples(st.sampled_from([None, 2, 5]), st.integers(1, 12))  # base size, size
SHAPES = st.lists(DIMENSIONS, max_size=5).filter(lambda shape: sum(base is not None for base, _ in shape) <= 2)


@pytest.mark.parametrize("method", ["MuAdam", "MuSGD"])
@given(shapes=st.lists(SHAPES, min_size=1, max_size=6))
def test_groups_are_those_of_the_package_for_all_shapes(package, method, shapes):
    parameters = [nn.Parameter(torch.zeros([size for _, size in shape])) for shape in shapes]
    for parameter, shape in zip(parameters, shapes):
        infinite = [package.infshape.InfDim(*dimension) for dimension in shape]
        parameter.infshape = package.infshape.InfShape(infinite)  # type: ignore[attr-defined]
    ours, theirs = (
        [
            (*map(id, group["params"]), f"{group['lr']:.12g}", f"{group['weight_decay']:.12g}")
            for group in getattr(source, method)(parameters, lr=0.1, weight_decay=0.01).param_groups
        ]
        for source in (optim, package)
    )
    assert ours == theirs


@pytest.mark.parametrize("width", [BASE, WIDTH])
@pytest.mark.parametrize("case", ["adam", "nesterov"])
@pytest.mark.parametrize("name", TWINS)
def test_what_the_package_has_saved_is_continued_and_the_other_way_round(package, name, case, width):
    method, options = SETTINGS[case]
    for before, after in ((package, optim), (optim, package)):
        models = [prepared(package, name, width) for _ in range(2)]
        optimizer = getattr(before, method)(models[0].parameters(), **options)
        trajectory(models[0], optimizer, name, 2)
        models[1].load_state_dict(models[0].state_dict())
        other = getattr(after, method)(models[1].parameters(), **options)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        continued = [trajectory(m, o, name, 2, first=2) for m, o in zip(models, (optimizer, other))]
        assert_identical(*continued)


@pytest.mark.parametrize("method", ["MuAdam", "MuSGD"])
def test_groups_with_settings_of_their_own(package, method):
    rates = []
    for source in (optim, package):
        model: Any = prepared(package, "mlp")
        first, *rest = model.layers
        groups = [
            {"params": first.parameters(), "lr": 0.3},
            {"params": [p for layer in rest for p in layer.parameters()], "weight_decay": 0.2},
        ]
        before = [set(group) for group in groups]
        rates.append(in_order(model, getattr(source, method)(groups, lr=0.1, weight_decay=0.01)))
        assert source is package or before == [set(group) for group in groups]  # ours does not write to them
    assert_close(*rates, 1e-14)


@pytest.mark.parametrize("name", TWINS)
def test_a_tagged_model_scales_as_that_of_the_package(package, name):
    theirs = prepared(package, name)
    kit = Kit(nn.Linear, nn.Linear)
    ours = optim.tag_parameters(TWINS[name](kit, WIDTH), TWINS[name](kit, BASE))
    for method in ("MuAdam", "MuSGD"):
        options = {"lr": 0.1, "weight_decay": 0.01}
        found = in_order(ours, getattr(optim, method)(ours.parameters(), **options))
        assert_close(found, in_order(theirs, getattr(package, method)(theirs.parameters(), **options)), 1e-14)


def test_decay_that_the_rate_does_not_multiply_stays_what_it_is(package):
    model = prepared(package, "mlp")
    for method in (optim.MuAdam, optim.MuSGD):
        groups = method(model.parameters(), lr=0.1, weight_decay=0.2, decoupled_wd=True).param_groups
        assert {group["weight_decay"] for group in groups} == {0.2}
        assert len({group["lr"] for group in groups}) > 1


@pytest.mark.parametrize("method", ["MuAdamW", "MuSGD"])
def test_parameters_with_names(package, method):
    named = list(prepared(package, "mlp").named_parameters())
    for members in (named, [{"params": [member]} for member in named]):
        groups = getattr(optim, method)(members).param_groups
        assert {name for group in groups for name in group["param_names"]} == {name for name, _ in named}


def test_the_rate_by_default_is_that_of_the_optimizer(package):
    optimizer = optim.MuAdamW(prepared(package, "mlp").parameters())
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 1e-3 * BASE / WIDTH}


def test_a_rate_that_is_a_tensor_is_left_alone(package):
    rate = torch.tensor(0.1)
    groups = optim.MuAdam(prepared(package, "mlp").parameters(), lr=rate).param_groups
    assert rate.item() == 0.1
    assert sorted(float(group["lr"]) for group in groups) == pytest.approx([0.1 * BASE / WIDTH, 0.1])
    assert all(group["lr"] is not rate for group in groups)


def test_our_own_models_say_their_widths():
    model = optim.tag_parameters(models.mlp([6, 8, 16, 3], parametrization=models.mup(4)), base=4)
    rates = {name: 0.1 * mup.adam(width_tag(p)) for name, p in model.named_parameters()}  # type: ignore[arg-type]
    assert rates == pytest.approx(dict.fromkeys(rates, 0.1) | {"layers.1.weight": 0.05})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: optim.MuAdam(m.parameters()), r"parameter number 0 of shape \[3, 2\] has no tag .*set_base_shapes"),
        (lambda m: optim.MuSGD(m.named_parameters()), r"parameter weight of shape \[3, 2\] has no tag: call"),
        (lambda m: optim.MuAdam([]), "an optimizer needs parameters"),
        (lambda m: optim.MuAdam(m.parameters(), impl=lambda params, lr: None), "has no learning rate by default"),
        (lambda m: optim.tag_parameters(m, 4), "parameter weight has no role; give it one of input, hidden"),
        (lambda m: optim.tag_parameters(m, nn.Linear(2, 3, bias=False)), r"bias has shape \[3\].*lacks it"),
        (lambda m: optim.tag_parameters(m, nn.Bilinear(1, 2, 3)), r"\[3, 2\], the base model has \[3, 1, 2\]"),
    ],
)
def test_what_has_no_tag_is_named(make: Callable[[nn.Module], Any], message: str):
    with pytest.raises(ValueError, match=message):
        make(nn.Linear(2, 3))
