"""Each model equals the composition of torch's own modules with the same weights; layouts are as promised."""

from typing import Any

import pytest
import torch
from torch import nn

from hyperopt_id.tasks.models import cnn, lstm, mlp, pieces, resnet18, transformer

pytestmark = pytest.mark.usefixtures("double")


def test_mlp_equals_a_sequence_of_modules():
    model: Any = mlp([4, 6, 5, 3], "gelu", batch_norm=True)
    twin: Any = nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.GELU(),
        nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.GELU(), nn.Linear(5, 3),
    )  # fmt: skip
    twin[0].weight, twin[3].weight = model.layers[0].weight, model.layers[1].weight
    twin[6].weight, twin[6].bias = model.layers[2].weight, model.layers[2].bias
    inputs = torch.randn(7, 4)
    torch.testing.assert_close(model(inputs), twin(inputs))
    torch.testing.assert_close(model(inputs.reshape(7, 2, 2)), twin(inputs))


def test_mlp_names_and_roles():
    assert mlp([4, 5, 3]).roles == {
        "layers.0.weight": "input",
        "layers.0.bias": "bias",
        "layers.1.weight": "output",
        "layers.1.bias": "bias",
    }
    normalized = mlp([4, 5, 6, 3], batch_norm=True, dropout=0.1)
    assert normalized.roles == {
        "layers.0.weight": "input",
        "layers.1.weight": "hidden",
        "layers.2.weight": "output",
        "layers.2.bias": "bias",
        "norms.0.weight": "norm",
        "norms.0.bias": "norm",
        "norms.1.weight": "norm",
        "norms.1.bias": "norm",
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"sizes": [4]}, "at least two positive widths"),
        ({"sizes": [4, 0, 3]}, "at least two positive widths"),
        ({"sizes": [4, 3], "activation": "swish"}, "unknown activation 'swish': use one of relu, tanh, gelu"),
        ({"sizes": [4, 5, 3], "dropout": 1.0}, r"must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_mlp_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        mlp(**arguments)


def test_lstm_equals_the_fused_one():
    model = lstm(vocabulary=11, embedding=4, hidden=6, layers=2)
    twin = nn.LSTM(4, 6, num_layers=2, batch_first=True)
    model.lstm.load_state_dict(twin.state_dict())  # same names and shapes
    tokens = torch.randint(11, (3, 9))
    state = {name: torch.randn(2, 3, 6) for name in ("h", "c")}
    expected, (h, c) = twin(model.embedding(tokens), (state["h"], state["c"]))
    logits, after = model(tokens, state)
    torch.testing.assert_close(logits, model.output(expected))
    torch.testing.assert_close(after, {"h": h, "c": c})


def test_lstm_of_the_study_has_its_size():
    with torch.device("meta"):
        model = lstm(vocabulary=10_000)
    assert (
        sum(value.numel() for value in model.parameters())
        == 10_000 * 650 + 4 * 650 * 2 * (650 + 650 + 2) + 10_000 * 651
    )
    assert set(model.roles.values()) == {"embedding", "hidden", "bias", "output"}


@pytest.mark.parametrize("causal, activation", [(True, "relu"), (False, "gelu")])
def test_transformer_equals_the_encoder_of_torch(causal: bool, activation: str):
    options: Any = {"layers": 2, "heads": 2, "hidden": 12, "activation": activation, "causal": causal}
    model: Any = transformer(vocabulary=11, length=9, embedding=8, **options)
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, activation, batch_first=True, norm_first=True)
    twin: Any = nn.TransformerEncoder(layer, 2, norm=model.norm, enable_nested_tensor=False)
    for ours, theirs in zip(model.blocks, twin.layers):
        theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias = ours.qkv.weight, ours.qkv.bias
        theirs.self_attn.out_proj.weight, theirs.self_attn.out_proj.bias = (
            ours.projection.weight,
            ours.projection.bias,
        )
        theirs.norm1, theirs.norm2, theirs.linear1, theirs.linear2 = (
            ours.norm1,
            ours.norm2,
            ours.linear1,
            ours.linear2,
        )
    tokens = torch.randint(11, (3, 7))
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64) if causal else None
    expected = model.output(twin(model.embedding(tokens) + model.positions[:7], mask=mask))
    torch.testing.assert_close(model(tokens), expected)


def test_a_causal_transformer_does_not_see_the_future():
    model = transformer(vocabulary=11, length=9, embedding=8, heads=2)
    tokens = torch.randint(11, (2, 9))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "exactly one of vocabulary"),
        ({"vocabulary": 5, "features": 4}, "exactly one of vocabulary"),
        ({"features": 4}, "needs outputs"),
        ({"vocabulary": 5, "embedding": 10, "heads": 4}, "embedding 10 must be a multiple of heads 4"),
        ({"vocabulary": 5, "activation": "swish"}, "unknown activation 'swish': use one of relu, tanh, gelu"),
    ],
)
def test_wrong_transformer_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        transformer(**arguments)


def test_resnet18_has_the_layout_of_torchvision():
    with torch.device("meta"):
        model, large = resnet18(10), resnet18(1000)
    assert sum(value.numel() for value in model.parameters()) == 11_181_642
    assert sum(value.numel() for value in large.parameters()) == 11_689_512
    state = model.state_dict()
    assert len(state) == 122
    shapes = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_mean": (64,),
        "layer1.1.conv2.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer4.0.downsample.1.num_batches_tracked": (),
        "layer4.1.bn2.bias": (512,),
        "fc.weight": (10, 512),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert "layer1.0.downsample.0.weight" not in state
    assert model.roles["conv1.weight"] == "input"
    assert model.roles["layer2.0.downsample.1.weight"] == "norm"


def test_resnet18_computes_a_residual_network():
    model: Any = resnet18(10).eval()
    inputs = torch.randn(2, 3, 32, 32)
    values = model.bn1(model.conv1(inputs)).relu()
    assert values.shape == (2, 64, 16, 16)
    values = nn.MaxPool2d(3, 2, 1)(values)
    for block in (*model.layer1, *model.layer2, *model.layer3, *model.layer4):
        shortcut = block.downsample(values) if block.downsample is not None else values
        branch = nn.Sequential(block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2)
        values = (branch(values) + shortcut).relu()
    assert values.shape == (2, 512, 1, 1)
    torch.testing.assert_close(model(inputs), model.fc(values.flatten(1)))


def test_cnn_takes_rows_and_images():
    model = cnn((3, 8, 8), (4, 6), 5).eval()
    images = torch.randn(2, 3, 8, 8)
    assert model(images).shape == (2, 5)
    torch.testing.assert_close(model(images), model(images.flatten(1)))
    assert model.roles["convolutions.0.weight"] == "input"
    assert model.roles["norms.1.bias"] == "norm"
    assert cnn([64], [4], 5).image == (1, 8, 8)
    with pytest.raises(ValueError, match=r"shape \[8, 8\] are no images"):
        cnn((8, 8))
    with pytest.raises(ValueError, match="cnn needs channels"):
        cnn((1, 8, 8), [])


@pytest.mark.parametrize(
    "shape, expected", [((64,), (8, 8)), ((13,), (13, 1)), ((3, 32, 16), (96, 16)), ((5, 2), (10, 1))]
)
def test_pieces_of_inputs(shape: tuple[int, ...], expected: tuple[int, int]):
    assert pieces(shape) == expected
