"""Layers with a second derivative of their own: a table of rules, each equal to finite differences, and a table of
layers, each equal to torch's in everything but the time it takes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from hyperopt_id import derivatives
from hyperopt_id.tasks.models import cnn, mlp, resnet18, transformer, twice
from hyperopt_id.tasks.models import twice_rules as rules

pytestmark = pytest.mark.usefixtures("double")


def batch_norm() -> rules.BatchNorm:
    return rules.BatchNorm(torch.zeros(3), torch.ones(3), 0.1, 0.05)


RULES: dict[str, tuple[Callable[[], rules.Rule], list[tuple[int, ...]]]] = {  # with the shapes of the inputs
    "relu": (rules.Relu, [(4, 5)]),
    "convolution": (lambda: rules.Convolution((2, 2), (1, 1), (1, 1), 1), [(3, 2, 6, 5), (4, 2, 3, 3)]),
    "convolution, groups": (lambda: rules.Convolution((1, 2), (2, 0), (2, 1), 2), [(2, 4, 6, 5), (2, 2, 3, 3)]),
    "batch norm, rows": (batch_norm, [(6, 3), (3,), (3,)]),
    "batch norm, series": (batch_norm, [(4, 3, 5), (3,), (3,)]),
    "batch norm, images": (batch_norm, [(4, 3, 2, 3), (3,), (3,)]),
}


CASES = [(name, data) for name, (_, shapes) in RULES.items() for data in (False, True) if len(shapes) > 1 or not data]


@pytest.mark.parametrize("name, data", CASES)
def test_derivatives_equal_finite_differences(name: str, data: bool):
    make, shapes = RULES[name]
    inputs = [torch.randn(shape, requires_grad=not data) for shape in shapes]
    for weight in inputs[1:]:
        weight.requires_grad_()

    def layer(*inputs: Tensor) -> Tensor:
        return twice.apply(make(), *inputs)

    assert gradcheck(layer, inputs)
    assert gradgradcheck(layer, inputs)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...], bool]] = {
    # ours, torch's, the shape of the input, whether a rule serves it
    "convolution": (
        lambda: twice.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        (3, 2, 6, 6),
        True,
    ),
    "convolution with bias": (lambda: twice.Conv2d(2, 4, 3), lambda: nn.Conv2d(2, 4, 3), (3, 2, 6, 6), False),
    "batch norm 1d": (lambda: twice.BatchNorm1d(3), lambda: nn.BatchNorm1d(3), (6, 3), True),
    "batch norm 2d": (lambda: twice.BatchNorm2d(3), lambda: nn.BatchNorm2d(3), (4, 3, 2, 3), True),
    "batch norm, evaluation": (
        lambda: twice.BatchNorm2d(3).eval(),
        lambda: nn.BatchNorm2d(3).eval(),
        (4, 3, 2, 3),
        False,
    ),
    "batch norm, cumulative": (
        lambda: twice.BatchNorm2d(3, momentum=None),
        lambda: nn.BatchNorm2d(3, momentum=None),
        (4, 3, 2, 3),
        False,
    ),
}


def weighted(module: nn.Module, inputs: Tensor) -> derivatives.Loss:
    """A loss of the module's parameters with all its third derivatives."""

    def loss(params: dict[str, Tensor]) -> tuple[Tensor, Any]:
        outputs = torch.func.functional_call(module, params, (inputs,))
        return (outputs.sin() * torch.linspace(-1.0, 2.0, outputs.numel()).view_as(outputs)).sum(), outputs.grad_fn

    return loss


def product(module: nn.Module, inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradient, and a Hessian-vector product."""
    variables = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}
    here = derivatives.gradient(weighted(module, inputs), variables, create_graph=True).value
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(value.shape, generator=generator) for value in variables.values()]
    return here, derivatives.pull(list(here.values()), direction, variables)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_equals_that_of_torch(name: str):
    make, make_twin, shape, served = LAYERS[name]
    layer, twin, inputs = make(), make_twin(), torch.randn(shape)
    for value in layer.parameters():
        nn.init.normal_(value)
    assert layer.state_dict().keys() == twin.state_dict().keys()
    twin.load_state_dict(layer.state_dict())
    torch.testing.assert_close(product(layer, inputs), product(twin, inputs))
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), twin.buffers()))
    assert torch.equal(layer(inputs), twin(inputs))

    def node(params: dict[str, Tensor]) -> tuple[Tensor, Any]:
        outputs = torch.func.functional_call(layer, params, (inputs,))
        names.append(type(outputs.grad_fn).__name__)
        return outputs.sum(), None

    names: list[str] = []
    for again in (False, True):
        derivatives.gradient(node, dict(layer.named_parameters()), create_graph=again)
    assert ["_LayerBackward" in name for name in names] == [False, served]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (lambda: cnn((1, 28, 28), (4, 6), 3), (30, 784)),  # large enough for the relu's rule
    "mlp": (lambda: mlp([5, 600, 3], batch_norm=True), (30, 5)),
    "resnet18": (lambda: resnet18(3), (2, 3, 32, 32)),
    "transformer": (lambda: transformer(features=4, outputs=3, length=5, embedding=32, heads=2), (30, 20)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_equals_itself_with_the_layers_of_torch(name: str, monkeypatch: pytest.MonkeyPatch):
    make, shape = MODELS[name]
    model, inputs = make(), torch.randn(shape)
    twin = copy.deepcopy(model)
    ours = product(model, inputs)
    monkeypatch.setattr(twice, "wanted", lambda x: False)
    torch.testing.assert_close(ours, product(twin, inputs), rtol=1e-6, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers()))


def test_vmap_is_left_to_torch():
    model, inputs = cnn((1, 6, 6), (3, 4), 3), torch.randn(2, 5, 36)
    weights = {name: torch.stack([value, 2 * value]).detach() for name, value in model.named_parameters()}
    buffers = {name: torch.stack([value, value]) for name, value in model.named_buffers()}

    def loss(params: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor) -> Tensor:
        buffers = {name: value.clone() for name, value in buffers.items()}
        return torch.func.functional_call(model, {**params, **buffers}, (inputs,)).square().sum()

    def pulled(function: Callable[..., Tensor], run: slice | int) -> dict[str, Tensor]:
        variables = {name: value[run].clone().requires_grad_() for name, value in weights.items()}
        still = {name: value[run] for name, value in buffers.items()}
        here = derivatives.gradient(lambda w: (function(w, still, inputs[run]), None), variables, create_graph=True)
        return derivatives.pull(list(here.value.values()), list(here.value.values()), variables)

    together = pulled(torch.vmap(loss), slice(None))
    for run in range(2):
        for name, value in pulled(loss, run).items():
            torch.testing.assert_close(together[name][run], value)


def test_mixed_precision_is_left_to_torch():
    layer = twice.Conv2d(2, 3, 3, bias=False).float()

    def loss(params: dict[str, Tensor]) -> tuple[Tensor, Any]:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = torch.func.functional_call(layer, params, (torch.ones(1, 2, 4, 4, dtype=torch.float32),))
        return outputs.float().square().sum(), outputs.dtype

    variables = dict(layer.named_parameters())
    here = derivatives.gradient(loss, variables, create_graph=True)
    assert here.auxiliary == torch.bfloat16
    assert derivatives.pull(list(here.value.values()), list(here.value.values()), variables)["weight"].isfinite().all()


def test_third_derivatives_are_refused():
    x = torch.randn(4, 5, requires_grad=True)
    y = twice.apply(rules.Relu(), x).pow(3).sum()
    (slope,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no third derivative of Relu\(\)"):
        torch.autograd.grad(slope.sum(), x, create_graph=True)


def test_a_loss_that_fails_leaves_no_trace():
    def loss(params: dict[str, Tensor]) -> tuple[Tensor, Any]:
        assert derivatives.differentiates_twice()
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        derivatives.gradient(loss, {}, create_graph=True)
    assert not derivatives.differentiates_twice()
