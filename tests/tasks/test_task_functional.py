"""Modules as pure functions: dropout without state, tied weights, intact templates, weights from files."""

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from hyperopt_id.tasks.data import Dataset, split_by_position
from hyperopt_id.tasks.dropout import begin_pass, dropouts_of
from hyperopt_id.tasks.functional import FunctionalModule
from hyperopt_id.tasks.models import Dropout, load_weights, mlp
from hyperopt_id.tasks.substitutes import substituted
from hyperopt_id.tasks.task import Batch, supervised

pytestmark = pytest.mark.usefixtures("double")


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


def test_dropout_of_a_recurrent_layer_is_refused():
    with pytest.raises(
        ValueError, match=r"0 \(LSTM\) draws dropout .*make a LSTM for each of its 2 layers, with nn\.Drop"
    ):
        FunctionalModule(lambda: nn.Sequential(nn.LSTM(3, 3, 2, dropout=0.1)), torch.device("cpu"), torch.float64)


def drawn(layer: nn.Module, inputs: Tensor, seed: int = 3) -> Tensor:
    module = substituted(nn.Sequential(layer)).train()
    begin_pass(dropouts_of(module), torch.tensor(seed))
    return module(inputs)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dropout1d, (40, 50, 3)),
        (nn.Dropout1d, (2000, 3)),
        (nn.Dropout2d, (40, 50, 2, 2)),
        (nn.Dropout3d, (9, 200, 2, 1, 2)),
    ],
)
def test_channel_dropout_drops_whole_channels(layer: type[nn.Module], shape: tuple[int, ...]):
    values = drawn(layer(0.4), torch.ones(shape)).flatten(1 if len(shape) == 2 else 2)
    assert torch.equal(values, values[..., :1].expand_as(values))
    assert (values != 0).double().mean().item() == pytest.approx(0.6, abs=0.05)
    torch.testing.assert_close(values[values != 0].mean(), torch.tensor(1 / 0.6))


@pytest.mark.parametrize("layer", [nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_alpha_dropout_takes_the_values_that_torch_takes_and_keeps_the_moments(layer: type[nn.Module]):
    ours, torchs = (torch.unique(y.round(decimals=9)) for y in (drawn(layer(0.3), X2), layer(0.3).train()(X2)))
    torch.testing.assert_close(ours, torchs)
    normal = drawn(layer(0.3), torch.randn(300, 300, generator=torch.Generator().manual_seed(1)))
    assert normal.mean().abs() < 0.02
    assert normal.var().item() == pytest.approx(1.0, abs=0.03)


X2 = torch.tensor([-1.0, 2.0], dtype=torch.float64).repeat(200, 1)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"kdim": 3, "vdim": 5}, {"bias": False}], ids=str)
def test_attention_with_dropout_is_torchs_where_nothing_is_dropped(options: dict[str, Any], batched: bool):
    rare = 1e-13  # never drawn
    layer = nn.MultiheadAttention(4, 2, dropout=rare, **options)
    front = (2,) if batched else ()
    query, key, value = (
        torch.randn(*front, rows, columns) for rows, columns in ((3, 4), (6, layer.kdim), (6, layer.vdim))
    )
    if batched and not layer.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    masks = {"attn_mask": torch.ones(3, 6).triu(2).bool(), "key_padding_mask": torch.arange(6).expand(*front, 6) > 4}
    expected = layer.eval()(query, key, value, **masks)
    begin_pass(dropouts_of(substituted(layer).train()), torch.tensor(0))
    for one, other in zip(layer(query, key, value, **masks), expected, strict=True):
        torch.testing.assert_close(one, other)


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


@pytest.mark.parametrize("columns", [3, 4], ids=["a call", "an error"])
def test_a_module_does_not_keep_what_it_was_given(columns: int):
    module = FunctionalModule(lambda: nn.Linear(3, 2), torch.device("cpu"), torch.float64)
    params, _ = module.init(0)
    with contextlib.suppress(RuntimeError):
        module.train(params, {}, torch.tensor(0), torch.ones(1, columns).double())
    copies = [instance.module for instance in module.training.own_instances()]
    assert len(copies) == 1
    for template in (module.training.module, *copies):
        assert all(isinstance(value, nn.Parameter) for value in template.parameters())


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
        (
            lambda arrays: arrays.update({"layers.0.bias": np.zeros(4)}),
            r"layers.0.bias has shape \(4,\), the model needs \(5,\)",
        ),
    ],
)
def test_wrong_weights_are_refused(tmp_path: Path, change, message: str):
    params = {name: value.detach() for name, value in mlp([4, 5, 3]).named_parameters()}
    arrays = {name: value.numpy() for name, value in params.items()}
    change(arrays)
    np.savez(tmp_path / "weights.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path / "weights.npz", params, {})


def test_unreadable_weights_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no file"):
        load_weights(tmp_path / "weights.npz", {}, {})
    np.save(tmp_path / "single.npy", np.zeros(3))
    np.savez(tmp_path / "whole.npz", bias=np.zeros(3))
    contents = (
        b"not an archive",
        b"",
        (tmp_path / "single.npy").read_bytes(),
        (tmp_path / "whole.npz").read_bytes()[:-9],
    )
    for content in contents:
        (tmp_path / "weights.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"weights\.npz is not a readable npz archive"):
            load_weights(tmp_path / "weights.npz", {}, {})


@pytest.mark.parametrize("array", [np.array(["a", "b"]), np.array([1j, 2.0]), np.array([b"a", b"b"])], ids=str)
def test_weights_that_are_no_real_numbers_are_refused(tmp_path: Path, array: np.ndarray):
    np.savez(tmp_path / "weights.npz", bias=array)
    with pytest.raises(ValueError, match=r"weights\.npz: bias holds .*, real numbers are needed"):
        load_weights(tmp_path / "weights.npz", {"bias": torch.zeros(2)}, {})


def header(shape: str, kind: str = "<f4") -> bytes:
    """The beginning of an npy file that claims a shape and a type."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("(1000000000000,)"), r"bias has shape \(1000000000000,\), the model needs \(2,\)"),
        (header("(-2,)") + bytes(8), r"bias has shape \(-2,\), the model needs"),
        (header("(2,)") + bytes(2**26), "bias has more bytes than its header says"),
        (header("(2,)") + bytes(4), "is not a readable npz archive of arrays"),
        (header("(2,)", "|O") + b"cos\nsystem\n", "bias holds object, real numbers are needed"),
        (header("(((((((((((((((((((((((((((2,)"), "is not a readable npz archive of arrays"),
        (header("(2,)")[:20], "is not a readable npz archive of arrays"),
        (b"\x93NUMPY\x07\x00" + bytes(100), "bias holds something else than numbers"),
        (header("(2,)", "<f8") + np.array([1e300, 0.0]).tobytes(), "bias has numbers that float32 does not hold"),
        (header("(2,)", "<f4") + np.array([np.nan, 0.0], "f").tobytes(), "bias has numbers that are not finite"),
    ],
)
def test_archives_take_no_more_memory_than_the_model(tmp_path: Path, content: bytes, message: str):
    path = archive(tmp_path / "weights.npz", {"bias.npy": content})
    with pytest.raises(ValueError, match=rf"^init_from: .*weights\.npz.*{message}") as caught:
        load_weights(path, {"bias": torch.zeros(2, dtype=torch.float32)}, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8", ">i8", "<u2", "|b1"])
def test_numbers_of_any_real_type_are_weights(tmp_path: Path, kind: str):
    values = np.array([0, 1]).astype(kind)
    np.savez_compressed(tmp_path / "weights.npz", bias=values)
    params, _ = load_weights(tmp_path / "weights.npz", {"bias": torch.full((2,), 7.0)}, {})
    assert torch.equal(params["bias"], torch.tensor([0.0, 1.0]))


def test_a_buffer_of_integers_takes_no_fraction(tmp_path: Path):
    np.savez(tmp_path / "weights.npz", count=np.array(2.5))
    with pytest.raises(ValueError, match="count has numbers that int64 does not hold"):
        load_weights(tmp_path / "weights.npz", {}, {"count": torch.tensor(0)})
    np.savez(tmp_path / "weights.npz", count=np.array(2.0))
    assert load_weights(tmp_path / "weights.npz", {}, {"count": torch.tensor(0)})[1]["count"] == 2


def test_complex_parameters_take_complex_weights(tmp_path: Path):
    np.savez(tmp_path / "weights.npz", phase=np.array([1j, 2.0]))
    params, _ = load_weights(tmp_path / "weights.npz", {"phase": torch.zeros(2, dtype=torch.complex64)}, {})
    assert params["phase"].tolist() == [1j, 2]


def test_only_regular_files_hold_weights(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(2**21))
    for name, said in (("pipe", "no regular file"), ("", "no regular file"), ("large", "at most 1052736 are expected")):
        with pytest.raises(ValueError, match=f"^init_from: .*{said}"):
            load_weights(tmp_path / name, {"bias": torch.zeros(2)}, {})


def test_a_file_of_torch_save_is_named(tmp_path: Path):
    torch.save({"bias": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt is a file of torch\.save; an npz archive is needed"):
        load_weights(tmp_path / "weights.pt", {"bias": torch.zeros(2)}, {})
