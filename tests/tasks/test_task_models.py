"""Each model equals the composition of torch's own modules with the same weights; layouts and names are as promised."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from hyperopt_id.tasks.data import Dataset, split_by_position
from hyperopt_id.tasks.functional import FunctionalModule
from hyperopt_id.tasks.models import Dropout, cnn, load_weights, lstm, mlp, resnet18, transformer
from hyperopt_id.tasks.task import Batch, supervised


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def test_mlp_equals_a_sequence_of_modules():
    model = mlp([4, 6, 5, 3], "gelu", batch_norm=True)
    twin = nn.Sequential(
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
    assert sum(value.numel() for value in model.parameters()) == 10_000 * 650 + 4 * 650 * 2 * (650 + 650 + 2) + 10_000 * 651
    assert set(model.roles.values()) == {"embedding", "hidden", "bias", "output"}


@pytest.mark.parametrize("causal", [True, False])
def test_transformer_equals_the_encoder_of_torch(causal: bool):
    model = transformer(vocabulary=11, length=9, embedding=8, layers=2, heads=2, hidden=12, causal=causal)
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True, norm_first=True)
    twin = nn.TransformerEncoder(layer, 2, norm=model.norm, enable_nested_tensor=False)
    for ours, theirs in zip(model.blocks, twin.layers):
        theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias = ours.qkv.weight, ours.qkv.bias
        theirs.self_attn.out_proj.weight, theirs.self_attn.out_proj.bias = ours.projection.weight, ours.projection.bias
        theirs.norm1, theirs.norm2, theirs.linear1, theirs.linear2 = ours.norm1, ours.norm2, ours.linear1, ours.linear2
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
    model = resnet18(10).eval()
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
    with pytest.raises(ValueError, match="cnn needs image"):
        cnn((8, 8))


def masked(probability: float, seeds: Tensor, stream: int = 0, shape: tuple[int, ...] = (20, 50)) -> Tensor:
    layer = Dropout(probability, stream).train()

    def one(seed: Tensor) -> Tensor:
        layer.seed = seed
        return layer(torch.ones(shape))

    return vmap(one)(seeds)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(probability: float):
    values = masked(probability, torch.arange(50) * 1_000_003)
    kept = values != 0
    assert kept.double().mean().item() == pytest.approx(1 - probability, abs=6e-3)
    torch.testing.assert_close(values[kept], torch.full_like(values[kept], 1 / (1 - probability)))


def test_dropout_masks_of_seeds_streams_and_elements_are_independent():
    seeds = torch.arange(30)
    masks = torch.stack([masked(0.5, seeds, stream) for stream in (0, 1)]).flatten(2) != 0
    pairs = torch.stack([masks[0], masks[1], masks[0].roll(1, 0), masks[0].roll(1, 1)]).double().flatten(1)
    assert (torch.corrcoef(pairs) - torch.eye(4)).abs().max() < 0.03
    assert torch.equal(masks[0], masked(0.5, seeds).flatten(1) != 0)


def test_dropout_of_torch_is_replaced_in_any_module():
    factory = lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(50, 50), nn.Sequential(nn.Dropout(0.2)))  # noqa: E731
    module = FunctionalModule(factory, torch.device("cpu"), torch.float64)
    parts = [part for part in module.training.module.modules() if isinstance(part, Dropout)]
    assert [(part.probability, part.stream) for part in parts] == [(0.5, 0), (0.2, 1)]
    params, buffers = module.init(0)
    assert buffers == {}
    inputs = torch.ones(8, 50)
    first, again = (module.train(params, buffers, torch.tensor(3), inputs)[0] for _ in range(2))
    other, _ = module.train(params, buffers, torch.tensor(4), inputs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (module.evaluate(params, buffers, inputs) != 0).all()


def test_a_module_with_tied_weights_has_one_parameter():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, inputs: Tensor) -> Tensor:
            return self.second(self.first(inputs))

    module = FunctionalModule(Tied, torch.device("cpu"), torch.float64)
    params, _ = module.init(0)
    assert set(params) == {"first.weight", "first.bias", "second.bias"}
    inputs = torch.randn(2, 3)
    params = {name: torch.randn_like(value) for name, value in params.items()}
    expected = inputs @ params["first.weight"].T + params["first.bias"]
    expected = expected @ params["first.weight"].T + params["second.bias"]
    torch.testing.assert_close(module.train(params, {}, torch.tensor(0), inputs)[0], expected)


def test_an_error_in_a_module_leaves_the_template_as_it_was():
    module = FunctionalModule(lambda: nn.Linear(3, 2), torch.device("cpu"), torch.float64)
    params, _ = module.init(0)
    with pytest.raises(RuntimeError):
        module.train(params, {}, torch.tensor(0), torch.ones(1, 4))
    assert all(isinstance(value, nn.Parameter) for value in module.training.module.parameters())


def test_weights_of_a_module_that_is_made_once_can_still_be_trained():
    shared = nn.Linear(3, 2)
    before = shared.weight.clone()
    data = Dataset(torch.randn(9, 3), torch.randint(2, (9,)), split_by_position((3, 3, 3), 9, "table"))
    task = supervised(data, lambda: shared, "cross_entropy", None)
    params, buffers = task.init(0)
    params["weight"] += 1.0
    task.loss(params, buffers, Batch(None, torch.tensor(0), "train"))
    assert torch.equal(shared.weight, before)


def test_weights_from_a_file(tmp_path: Path):
    model = mlp([4, 5, 3], batch_norm=True)
    arrays = {name: value.numpy() for name, value in model.state_dict().items() if name != "norms.0.running_var"}
    np.savez(tmp_path / "weights.npz", **arrays)
    module = FunctionalModule(lambda: mlp([4, 5, 3], batch_norm=True), torch.device("cpu"), torch.float32)
    params, buffers = load_weights(tmp_path / "weights.npz", *module.init(1))
    for name, value in {**params, **buffers}.items():
        assert value.dtype == (torch.int64 if name.endswith("tracked") else torch.float32)
        torch.testing.assert_close(value, model.state_dict()[name].to(value.dtype))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda arrays: arrays.pop("layers.1.bias"), r"missing \['layers.1.bias'\]"),
        (lambda arrays: arrays.update(extra=np.zeros(2)), r"unknown \['extra'\]"),
        (lambda arrays: arrays.update({"layers.0.bias": np.zeros(4)}), r"layers.0.bias has shape \(4,\), the model needs \(5,\)"),
    ],
)
def test_wrong_weights_are_refused(tmp_path: Path, change, message: str):
    params = dict(mlp([4, 5, 3]).named_parameters())
    arrays = {name: value.detach().numpy() for name, value in params.items()}
    change(arrays)
    np.savez(tmp_path / "weights.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path / "weights.npz", params, {})


def test_unreadable_weights_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no file"):
        load_weights(tmp_path / "weights.npz", {}, {})
    (tmp_path / "weights.npz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="not a readable npz archive"):
        load_weights(tmp_path / "weights.npz", {}, {})
