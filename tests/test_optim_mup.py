"""μP and u-μP for `torch.optim`: parameter groups and trajectories are those of the packages mup and unit_scaling."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from laws import assert_close, assert_identical
from torch import Tensor, nn
from twins import TWINS, Kit, examples, trajectory

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
UNIT_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {  # of the package unit_scaling
    "adam": ("Adam", {"lr": 0.1, "weight_decay": 0.001}),
    "adamw": ("AdamW", {"lr": 0.1, "weight_decay": 0.01, "betas": (0.8, 0.9)}),
    "adamw, decay of the rate": ("AdamW", {"lr": 0.1, "weight_decay": 0.1, "independent_weight_decay": False}),
    "sgd": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.001}),
    "sgd, to_output_scale": ("SGD", {"lr": 0.01, "readout_constraint": "to_output_scale"}),
}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def package() -> ModuleType:
    return pytest.importorskip("mup", reason="the oracle is the package mup")


@pytest.fixture(scope="module")
def unit() -> ModuleType:
    return pytest.importorskip("unit_scaling", reason="the oracle is the package unit_scaling")


def settings(optimizer: torch.optim.Optimizer) -> dict[int, tuple[float, float]]:
    """(learning rate, weight decay) of every parameter, by its identity."""
    return {
        id(p): (float(group["lr"]), float(group["weight_decay"]))
        for group in optimizer.param_groups
        for p in group["params"]
    }


def in_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[float, float]]:
    found = settings(optimizer)
    return [found[id(p)] for p in model.parameters()]


# μP


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


def test_parameters_with_names_and_a_rate_by_default(package):
    model = prepared(package, "mlp")
    optimizer = optim.MuAdamW(model.named_parameters())
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 1e-3 * BASE / WIDTH}
    assert {name for group in optimizer.param_groups for name in group["param_names"]} == {
        name for name, _ in model.named_parameters()
    }


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


# u-μP


class Convolutional(nn.Module):
    """Of layers of the package: sequences of tokens -> logits of the next token."""

    def __init__(self, unit: Any):
        super().__init__()
        self.embedding = unit.Embedding(7, 8)
        self.stack = unit.DepthModuleList(unit.Conv1d(8, 8, 3, padding=1, bias=True) for _ in range(3))
        self.norm, self.output = unit.LayerNorm(8, elementwise_affine=True), unit.LinearReadout(8, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        values = self.embedding(tokens).transpose(1, 2)
        for layer in self.stack:
            values = layer(values).tanh()
        return self.output(self.norm(values.transpose(1, 2))).flatten(0, 1)


class Perceptron(nn.Module):
    def __init__(self, unit: Any):
        super().__init__()
        parts = [unit.Linear(6, WIDTH, bias=True), unit.GELU(), unit.Linear(WIDTH, WIDTH), unit.GELU()]
        self.layers = nn.Sequential(*parts, unit.LinearReadout(WIDTH, 3, bias=True))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


class Decoder(nn.Module):
    def __init__(self, unit: Any):
        super().__init__()
        self.whole = unit.TransformerDecoder(hidden_size=8, vocab_size=7, layers=2, heads=2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.whole(tokens).flatten(0, 1)


UNIT_MODELS = {"mlp": Perceptron, "convolutional": Convolutional, "transformer": Decoder}


def unit_model(unit: ModuleType, name: str) -> nn.Module:
    torch.manual_seed(0)
    return UNIT_MODELS[name](unit)


@pytest.mark.parametrize("case", UNIT_SETTINGS)
@pytest.mark.parametrize("name", UNIT_MODELS)
def test_a_model_of_the_package_unit_scaling_trains_as_by_its_optimizers(unit, name, case):
    method, options = UNIT_SETTINGS[case]
    ours, theirs = (unit_model(unit, name) for _ in range(2))
    optimizer = getattr(optim, method)(ours.parameters(), **options)
    twin = getattr(unit.optim, method)(theirs.parameters(), **options)
    assert isinstance(optimizer, getattr(torch.optim, method))
    assert_close(in_order(ours, optimizer), in_order(theirs, twin), 1e-14)
    kind = "mlp" if name == "mlp" else "transformer"
    assert_close(trajectory(ours, optimizer, kind), trajectory(theirs, twin, kind), 1e-9)


@pytest.mark.parametrize("name", UNIT_MODELS)
def test_scaled_parameters_are_the_groups_of_the_package(unit, name):
    model = unit_model(unit, name)
    optim_of_package = unit.optim
    functions = [
        (optim.lr_scale_for_depth, optim_of_package.lr_scale_for_depth),
        (optim.lr_scale_func_adam, optim_of_package.lr_scale_func_adam),
        *((optim.lr_scale_func_sgd(c), optim_of_package.lr_scale_func_sgd(c)) for c in (None, "to_output_scale")),
    ]
    groups = [{"params": list(model.parameters()), "lr": 0.5, "betas": (0.5, 0.5)}]
    for ours, theirs in functions:
        assert [ours(p) for p in model.parameters()] == pytest.approx([theirs(p) for p in model.parameters()])
        for given in (list(model.parameters()), groups):
            for independent in (True, False):
                made = [
                    source.scaled_parameters(given, function, 0.1, 0.2, independent)
                    for source, function in ((optim, ours), (optim_of_package, theirs))
                ]
                for mine, its in zip(*made, strict=True):
                    assert mine.keys() == its.keys()
                    assert mine["params"][0] is its["params"][0]
                    assert_close([mine["lr"], mine["weight_decay"]], [its["lr"], its["weight_decay"]], 1e-14)
                    assert mine.get("betas") == its.get("betas")


def test_independent_decay_is_the_same_for_all_and_at_any_rate(unit):
    """After a step of AdamW without gradients, all weights are smaller by the share that the decay says."""
    for rate in (0.01, 1.0):
        model = unit_model(unit, "transformer")
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = optim.AdamW(model.parameters(), lr=rate, weight_decay=0.25)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert_close([p.detach() for p in model.parameters()], [0.75 * p for p in before], 1e-14)


def test_parameters_without_a_type_are_refused_or_left_alone():
    tagged, plain = nn.Linear(16, 3, bias=False), nn.Linear(3, 2)
    optim.tag_parameters(tagged, base=4, roles={"weight": "hidden"}, depth=4)
    both = nn.ModuleDict({"tagged": tagged, "plain": plain})
    with pytest.raises(ValueError, match=r"plain\.weight of shape \[2, 3\] has no tag: make it by unit_scaling"):
        optim.Adam(both.named_parameters())
    optimizer = optim.AdamW(both.parameters(), lr=0.1, weight_decay=0.2, allow_non_unit_scaling_params=True)
    eighth = 0.1 / 8  # (16 · 4)^-1/2
    assert_close(in_order(both, optimizer), [(eighth, 0.2 / eighth), (0.1, 2.0), (0.1, 2.0)], 1e-14)


def test_a_rate_that_is_a_tensor_is_not_shared(unit):
    rate, model = torch.tensor(0.1), unit_model(unit, "mlp")
    groups = optim.scaled_parameters(model.parameters(), optim.lr_scale_func_adam, lr=rate)
    theirs = unit.optim.scaled_parameters(model.parameters(), unit.optim.lr_scale_func_adam, lr=rate)
    assert_identical([group["lr"] for group in groups], [group["lr"] for group in theirs])
    assert len({id(group["lr"]) for group in groups}) == len(groups)


def test_a_resumed_optimizer_continues(unit):
    model, twin = unit_model(unit, "mlp"), unit_model(unit, "mlp")
    whole = trajectory(model, optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.01), "mlp", 4)
    optimizer = optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.01)
    trajectory(twin, optimizer, "mlp", 2)
    later = optim.AdamW(twin.parameters(), lr=0.7)
    later.load_state_dict(optimizer.state_dict())
    assert in_order(twin, later) == in_order(twin, optimizer)
    for step in (2, 3):  # the batches that the second half has
        inputs, targets = examples("mlp", step)
        later.zero_grad()
        F.cross_entropy(twin(inputs), targets).backward()
        later.step()
    assert_identical(torch.cat([p.detach().flatten() for p in twin.parameters()]), whole[-1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: optim.lr_scale_func_sgd("to_input_scale"), "readout_constraint='to_input_scale'; allowed: None, "),
        (lambda p: optim.scaled_parameters([p], optim.lr_scale_func_adam), "has no learning rate: give lr"),
        (lambda p: optim.Adam([p], lr=0.0, weight_decay=0.1), "give a learning rate above 0"),
        (lambda p: optim.lr_scale_func_adam(nn.Parameter(p)), "has no tag"),
    ],
)
def test_mistakes(make: Callable[[Tensor], Any], message: str):
    layer = nn.Linear(2, 3, bias=False)
    optim.tag_parameters(layer, base=1, roles={"weight": "hidden"})
    with pytest.raises(ValueError, match=message):
        make(layer.weight)


def test_images_have_no_fan_in_under_u_mup():
    layer = optim.tag_parameters(nn.Conv2d(2, 3, 3, bias=False), base=1, roles={"weight": "hidden"})
    with pytest.raises(ValueError, match=r"no fan-in for a weight of shape \[3, 2, 3, 3\]"):
        optim.Adam(layer.parameters())
