"""u-μP for `torch.optim`: parameter groups and trajectories are those of the package unit_scaling."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import assert_close, assert_identical
from torch import Tensor, nn
from twins import in_order, trajectory

from hyperopt_id import optim
from hyperopt_id.optim.tags import TYPES

WIDTH = 12
DEPTHS = st.none() | st.integers(1, 20)
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("Adam", {"lr": 0.1, "weight_decay": 0.001}),
    "adamw": ("AdamW", {"lr": 0.1, "weight_decay": 0.01, "betas": (0.8, 0.9)}),
    "adamw, decay of the rate": ("AdamW", {"lr": 0.1, "weight_decay": 0.1, "independent_weight_decay": False}),
    "sgd": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.001}),
    "sgd, to_output_scale": ("SGD", {"lr": 0.01, "readout_constraint": "to_output_scale"}),
}


pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def unit() -> ModuleType:
    return pytest.importorskip("unit_scaling", reason="the oracle is the package unit_scaling")


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


MODELS = {"mlp": Perceptron, "convolutional": Convolutional, "transformer": Decoder}


def unit_model(unit: ModuleType, name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name](unit)


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_the_package_unit_scaling_trains_as_by_its_optimizers(unit, name, case):
    method, options = SETTINGS[case]
    ours, theirs = (unit_model(unit, name) for _ in range(2))
    optimizer = getattr(optim, method)(ours.parameters(), **options)
    twin = getattr(unit.optim, method)(theirs.parameters(), **options)
    assert isinstance(optimizer, getattr(torch.optim, method))
    assert_close(in_order(ours, optimizer), in_order(theirs, twin), 1e-14)
    kind = "mlp" if name == "mlp" else "transformer"
    assert_close(trajectory(ours, optimizer, kind), trajectory(theirs, twin, kind), 1e-9)


@pytest.mark.parametrize("name", MODELS)
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
        for members in (list(model.parameters()), groups):
            for independent in (True, False):
                made = [
                    source.scaled_parameters(members, function, 0.1, 0.2, independent)
                    for source, function in ((optim, ours), (optim_of_package, theirs))
                ]
                for mine, its in zip(*made, strict=True):
                    assert mine.keys() == its.keys()
                    assert mine["params"][0] is its["params"][0]
                    assert_close([mine["lr"], mine["weight_decay"]], [its["lr"], its["weight_decay"]], 1e-14)
                    assert mine.get("betas") == its.get("betas")


@pytest.mark.parametrize("constraint", [None, "to_output_scale"])
@given(kind=st.sampled_from(TYPES), shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), depth=DEPTHS)
def test_factors_are_those_of_the_package_for_all_shapes(unit, constraint, kind, shape, depth):
    parameter = unit.Parameter(torch.zeros(shape), kind, depth)
    for name in ("lr_scale_for_depth", "lr_scale_func_adam"):
        assert getattr(optim, name)(parameter) == pytest.approx(getattr(unit.optim, name)(parameter), rel=1e-14)
    ours, theirs = (source.lr_scale_func_sgd(constraint)(parameter) for source in (optim, unit.optim))
    assert ours == pytest.approx(theirs, rel=1e-14)


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


def test_a_resumed_optimizer_continues_also_that_of_the_package(unit):
    model = unit_model(unit, "mlp")
    whole = trajectory(model, optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.01), "mlp", 4)
    for before in (optim, unit.optim):
        twin = unit_model(unit, "mlp")
        optimizer = before.AdamW(twin.parameters(), lr=0.1, weight_decay=0.01)
        trajectory(twin, optimizer, "mlp", 2)
        later = optim.AdamW(twin.parameters(), lr=0.7)
        later.load_state_dict(optimizer.state_dict())
        assert in_order(twin, later) == in_order(twin, optimizer)
        assert_identical(trajectory(twin, later, "mlp", 2, first=2), whole[2:])


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
