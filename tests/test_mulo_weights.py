"""Every form that weights of the learned optimizer come in gives the same θ; what does not fit says what was needed."""

import logging
import os
import pickle
import sys
import types
import zipfile

import pytest
import torch
from laws import assert_identical
from mulo_cases import random_theta
from short_runs import ENGINES, state, train

from hyperopt_id import checkpoint, mulo
from hyperopt_id.optim import mulo_weights
from hyperopt_id.optim.mulo_weights import NAMES, PUBLISHED_DECAYS, load_weights, save_weights

THETA = random_theta()
PARTS = mulo.unpack(THETA)
NETWORK = {  # as `state_dict` of three linear modules has it
    name: getattr(PARTS, part).mT.contiguous() if part.startswith("w") else getattr(PARTS, part)
    for part, name in NAMES.items()
    if name.startswith("network.")
}
OFFSETS = {"momentum": PARTS.momentum.tolist(), "rms": PARTS.square.tolist(), "adafactor": PARTS.factored.tolist()}


@pytest.mark.parametrize(
    "given",
    [
        THETA,
        THETA.numpy(),
        THETA.double().requires_grad_(),
        PARTS,
        PARTS._asdict(),
        {name: part.numpy() for name, part in PARTS._asdict().items()},
        NETWORK | {f"decays.{name}": torch.tensor(offset) for name, offset in OFFSETS.items()},
        {"state_dict": NETWORK, "decays": OFFSETS},
        {"state_dict": NETWORK, "decays": {f"{name}_decays": torch.tensor(x) for name, x in OFFSETS.items()}},
        {"state_dict": {n.removeprefix("network."): x for n, x in NETWORK.items()}, "decays": OFFSETS},
    ],
    ids=[
        "vector",
        "array",
        "double",
        "Theta",
        "parts",
        "arrays",
        "names of files",
        "pickled",
        "pickled, long names",
        "module",
    ],
)
def test_forms_in_memory(given):
    found = load_weights(given)
    torch.testing.assert_close(found, THETA, rtol=1e-7, atol=0.0)
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_what_is_loaded_is_a_copy():
    given = THETA.clone()
    found = load_weights(given)
    given += 1.0
    assert_identical(found, THETA)


@pytest.mark.parametrize("content", [THETA, PARTS._asdict(), {"state_dict": NETWORK, "decays": OFFSETS}])
@pytest.mark.parametrize("as_text", [False, True], ids=["path", "string"])
def test_files_of_torch_save(content, as_text, tmp_path):
    path = tmp_path / "theta.pt"
    torch.save(content, path)
    torch.testing.assert_close(load_weights(str(path) if as_text else path), THETA, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("which", ["run", "checkpoints", "file"])
def test_checkpoints_of_a_run_that_has_learned_theta(which, tmp_path):
    run = train(tmp_path / "run", *ENGINES["mulo"])
    place = {"run": run, "checkpoints": run / "checkpoints", "file": max((run / "checkpoints").glob("step_*.pt"))}
    (learned,) = state(run)["run"]["raw"]["theta/global"]
    assert_identical(load_weights(place[which]), learned)
    assert not torch.equal(learned, mulo.untrained())


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"theta/global": torch.stack([THETA] * 3)}, "a run with 3 θ; needed: one run whose rule is mulo"),
        ({}, "a run with 0 θ"),
        ({"theta/global": THETA[None], "theta/tensor/bias": THETA[None]}, "has learned a θ for every tensor; needed"),
    ],
    ids=["population", "another rule", "per tensor"],
)
def test_checkpoints_without_one_theta(raw, message, tmp_path):
    checkpoint.save(tmp_path, {"run": {"raw": raw}}, 1, keep=1)
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path)


def test_safetensors_round_trip(tmp_path):
    pytest.importorskip("safetensors", reason="needs the package safetensors (extra: hub)")
    save_weights(THETA.clone().requires_grad_(), tmp_path / "model.safetensors")
    for place in (tmp_path / "model.safetensors", str(tmp_path / "model.safetensors"), tmp_path):
        assert_identical(load_weights(place), THETA)
    from safetensors.torch import load_file, save_file

    found = load_file(tmp_path / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "network.input.weight": (32, 39),
        "network.input.bias": (32,),
        "network.linear_0.weight": (32, 32),
        "network.linear_0.bias": (32,),
        "network.output.weight": (2, 32),
        "network.output.bias": (2,),
        "decays.momentum": (3,),
        "decays.rms": (1,),
        "decays.adafactor": (3,),
    }
    save_file({name: value for name, value in found.items() if "network" in name}, tmp_path / "network.safetensors")
    assert_published(load_weights(tmp_path / "network.safetensors"))


def assert_published(theta):
    """The network of here, with the decays that the published one has."""
    found = mulo.unpack(theta)
    assert_identical(found[:6], PARTS[:6])
    assert_identical(list(found[6:]), [torch.tensor(value) for value in PUBLISHED_DECAYS.values()])


@pytest.mark.parametrize("given", [NETWORK, {"state_dict": NETWORK}, "file.pt"], ids=["network", "pickled", "file"])
def test_a_network_without_decays_has_the_published_ones_and_a_warning(given, tmp_path, caplog):
    if given == "file.pt":
        given = tmp_path / given
        torch.save(NETWORK, given)
    assert_published(load_weights(given))
    (record,) = caplog.records
    assert "is a network without decays, so those of btherien/mulo are taken; give others as" in record.getMessage()


def fake_hub(monkeypatch, download):
    """The two packages that the hub needs, without a network."""
    hub, package, module = (types.ModuleType(n) for n in ("huggingface_hub", "safetensors", "safetensors.torch"))
    hub.hf_hub_download = download
    module.load_file = lambda path: NETWORK
    for found in (hub, package, module):
        monkeypatch.setitem(sys.modules, found.__name__, found)


@pytest.mark.parametrize("repository", ["btherien/mulo", "some.one/mulo-v1.5"])
def test_repositories_of_the_hub(repository, monkeypatch, caplog):
    def download(*wanted):
        assert wanted == (repository, "model.safetensors")
        return "where it is kept"

    fake_hub(monkeypatch, download)
    assert_published(load_weights(repository))
    assert len(caplog.records) == (repository != "btherien/mulo")


def test_offline_the_hub_says_what_to_do(monkeypatch):
    def download(repository, name):
        raise OSError("We couldn't connect\nto the hub")

    fake_hub(monkeypatch, download)
    with pytest.raises(
        ValueError, match=r"no file or folder here.*\(OSError\): download model\.safetensors from"
    ) as raised:
        load_weights("btherien/mulo")
    assert "\n" not in str(raised.value)


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="python -m pip install huggingface_hub safetensors"):
        load_weights("btherien/mulo")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match="python -m pip install safetensors"):
        save_weights(THETA, tmp_path / "x.safetensors")


def test_no_weights_are_those_of_the_package_where_it_has_some(tmp_path, monkeypatch, caplog):
    theta = random_theta()
    torch.save(theta, tmp_path / "mulo.pt")
    monkeypatch.setattr(mulo_weights, "SHIPPED", tmp_path / "mulo.pt")
    assert_identical(load_weights(None), theta)
    assert not caplog.records


def test_no_weights_are_untrained_ones_and_say_so(caplog):
    with caplog.at_level(logging.WARNING), torch.device("meta"):
        found = load_weights(None)
    assert_identical(found, mulo.untrained())
    (record,) = caplog.records
    assert "untrained" in record.message
    assert "weights='btherien/mulo'" in record.message


def without(tree, name):
    return {key: value for key, value in tree.items() if key != name}


WHOLE = NETWORK | {f"decays.{name}": torch.tensor(offset) for name, offset in OFFSETS.items()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.full((2409,), torch.nan), "the tensor given has numbers that are not finite: give another"),
        (torch.zeros(2402), r"the tensor given has shape \[2402\], needed: \[2409\]"),
        (PARTS._replace(w1=torch.zeros(32, 16)), r"θ: w1 has shape \[32, 16\], needed: \[32, 32\]"),
        (
            PARTS._asdict() | {"w0": torch.zeros(32, 39)},
            r"dictionary given: w0 has shape \[32, 39\], needed: \[39, 32\]",
        ),
        (
            WHOLE | {"network.input.weight": torch.zeros(32, 40)},
            r"input.weight has shape \[32, 40\], needed: \[32, 39\]",
        ),
        (WHOLE | {"decays.rms": torch.zeros(2)}, r"decays.rms has shape \[2\], needed: \[1\]"),
        (without(WHOLE, "network.output.bias"), "the dictionary given has no network.output.bias"),
        ({"state_dict": NETWORK, "decays": without(OFFSETS, "rms")}, r"the dictionary given has no decays.rms$"),
        (WHOLE | {"network.linear_1.weight": torch.zeros(32, 32)}, "has network.linear_1.weight, too"),
        ({}, "has no network.input.weight, network.input.bias"),
        (THETA.to(torch.complex64), r"the tensor given is torch.complex64 .*; needed: floating-point numbers"),
        (torch.zeros(2409, dtype=torch.int64), r"the tensor given is torch.int64 .*; needed: floating-point numbers"),
        (THETA.to_sparse(), r"the tensor given is torch.float32 \(torch.sparse_coo.*needed: floating-point numbers"),
        (torch.empty(2409, device="meta"), r"the tensor given is .*meta\); needed: floating-point numbers"),
        (torch.full((2409,), 1e300, dtype=torch.float64), "the tensor given has numbers beyond 3.4e38"),
        ([1e300] * 2409, "the tensor given has numbers beyond 3.4e38"),
        (
            THETA.numpy().astype(complex),
            r"the tensor given is no tensor of floating-point numbers \(it holds complex128",
        ),
        (["x"] * 2409, r"the tensor given is no tensor of floating-point numbers \(it holds <U1\)"),
        ([[1.0], [1.0, 2.0]], "the tensor given is no tensor of floating-point numbers"),
        ([10**400] * 2409, "the tensor given is no tensor of floating-point numbers"),
        (object(), "the tensor given is no tensor of floating-point numbers"),
        (b"theta.pt", "the tensor given is no tensor of floating-point numbers"),
        (3.0, r"the tensor given has shape \[\], needed: \[2409\]"),
        (WHOLE | {"decays.rms": torch.tensor([1j])}, "decays.rms is torch.complex64"),
        (WHOLE | {"decays.rms": torch.tensor([1e300]).double() * 1e300}, "decays.rms has numbers that are not finite"),
        (WHOLE | {"decays.rms": torch.tensor([1e300], dtype=torch.float64)}, "decays.rms has numbers beyond 3.4e38"),
        (WHOLE | {"decays.rms": None}, "decays.rms is no tensor of floating-point numbers"),
        (WHOLE | {"decays.rms": "x"}, "decays.rms is no tensor of floating-point numbers"),
        (WHOLE | {3: torch.zeros(1)}, "the dictionary given is dict; needed: a dictionary from names to tensors"),
        ({"state_dict": [1]}, "state_dict is list; needed: a dictionary from names to tensors"),
        ({"state_dict": NETWORK, "decays": [1]}, "decays is list; needed: a dictionary from names to tensors"),
        ({"state_dict": NETWORK, "decays": {1: [1.0]}}, "decays is dict; needed: a dictionary from names"),
        (WHOLE | {"x" * 10_000: torch.zeros(1)}, r"has network\.xx.*\.\.\.x+, too, which"),
        ("x" * 10_000, "there is no such file"),
        ("a\0b", "there is no such file"),
        ("nowhere.safetensors", "weights='nowhere.safetensors': there is no such file"),
        ("a/b/c", "weights='a/b/c': there is no such file"),
        ("runs/theta.pth", "weights='runs/theta.pth': there is no such file"),
        ("../mulo", "weights='../mulo': there is no such file"),
    ],
)
def test_what_does_not_fit_says_what_was_needed(given, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_weights(given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "content"), [("a.pt", b"no archive"), ("a.safetensors", b"\0" * 40), ("b.pt", b"")])
def test_files_that_are_damaged_say_so(name, content, tmp_path):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors", reason="needs the package safetensors (extra: hub)")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read") as raised:
        load_weights(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_files_that_are_cut_say_so(tmp_path):
    path = tmp_path / "theta.pt"
    torch.save(THETA, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"theta.pt cannot be read \(\w+\); needed, undamaged: a safetensors"):
        load_weights(path)


@pytest.mark.parametrize(
    "tree", [None, 3, {}, {"run": 3}, {"run": {"raw": {"theta/global": [1.0]}}}, {"run": {"raw": {1: 2}}}]
)
def test_checkpoints_of_another_form_say_so(tree, tmp_path):
    torch.save({"tree": tree}, tmp_path / "step.pt")
    with pytest.raises(ValueError, match=r"step\.pt is (no checkpoint of a run|the checkpoint of a run with 0 θ)"):
        load_weights(tmp_path / "step.pt")


def compressed(path):
    """A zip bomb: the records of a larger file, packed."""
    torch.save(torch.zeros(2**22), path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def flipped(path):
    """A bit that no longer fits its checksum."""
    torch.save(THETA, path)
    content = bytearray(path.read_bytes())
    content[content.index(THETA.numpy().tobytes()[:64])] ^= 1
    path.write_bytes(bytes(content))


FILES = {
    "packed": (compressed, "its records are compressed"),
    "flipped": (flipped, "the checksum of .* is wrong"),
    "repeated": (
        lambda path: torch.save(torch.zeros(1).expand(10**12), path),
        r"a tensor of shape \[1000000000000\] repeats its memory",
    ),
    "sparse": (lambda path: torch.save(THETA.to_sparse(), path), "a tensor is torch.sparse_coo on cpu"),
    "pipe": (os.mkfifo, "is no regular file"),
    "loop": (lambda path: path.symlink_to(path), "there is no such file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    "deep": (lambda path: path.write_bytes(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."), "cannot be read"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_made_to_harm_are_refused(name, tmp_path):
    make, message = FILES[name]
    make(tmp_path / "theta.pt")
    with pytest.raises(ValueError, match=message) as raised:
        load_weights(tmp_path / "theta.pt")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


class Harmful:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_files_do_not_run_code(tmp_path):
    path, trace = tmp_path / "theta.pt", tmp_path / "trace"
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        save({"w0": Harmful(trace)}, path)
        with pytest.raises(ValueError, match="with tensors, numbers, lists and dictionaries alone"):
            load_weights(path)
    assert not trace.exists()


def test_files_of_something_else_say_what_they_hold(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"holds a list; needed: a tensor \[2409\] or a dictionary"):
        load_weights(tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"has neither model\.safetensors nor the checkpoints of a run: give another"):
        load_weights(tmp_path)
