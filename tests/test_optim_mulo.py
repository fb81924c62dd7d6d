"""`MuLO` in anybody's training loop: the rule's trajectory, whatever the loop, the model, and the interruptions."""

import copy
import io
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from laws import assert_identical
from mulo_cases import RECORDED, STEPS, TENSORS, error, random_theta, recorded_theta
from mulo_training import IMPLEMENTATIONS, THETA, assert_same, network, train
from torch import nn

from hyperopt_id import mulo
from hyperopt_id.kernels import compiler
from hyperopt_id.kernels import mulo as kernels
from hyperopt_id.optim import mulo as facade
from hyperopt_id.optim.mulo import MuLO, MuLO_CUDA, MuLO_naive


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    return request.param


# Values


@pytest.mark.parametrize("name", TENSORS)
def test_updates_are_the_recorded_ones(name, impl):
    before = RECORDED[f"params0/{name}"]
    param = nn.Parameter(before.clone())
    optimizer = MuLO([param], recorded_theta(), impl, lr=RECORDED[f"lr_mult/{name}"].item())
    for step in range(STEPS):
        param.data.copy_(before)
        param.grad = RECORDED[f"grads/{name}"][step].clone()
        optimizer.step()
        assert error(param.detach(), RECORDED[f"params/{name}"][step], before) <= 1e-4
        before = RECORDED[f"params/{name}"][step]


@pytest.mark.parametrize("options", [{}, {"lr": 3.0, "weight_decay": 0.1}, {"step_multiplier": 0.002}], ids=str)
def test_the_trajectory_is_that_of_the_rule(options, impl):
    model = network()
    optimizer = MuLO(model.parameters(), THETA, impl, **options)
    rule = mulo.mulo(step_multiplier=options.get("step_multiplier", 0.01))
    params = {k: p.detach().clone() for k, p in model.named_parameters() if k != "unused"}
    state, values = rule.init(params), {"lr": options.get("lr", 1.0), "weight_decay": options.get("weight_decay", 0.0)}
    hyper = {name: dict.fromkeys(params, torch.tensor(x)) for name, x in values.items()}
    for step in range(5):
        train(model, optimizer, 1, step)
        slopes = {k: p.grad for k, p in model.named_parameters() if k in params}
        params, state = rule.update(params, slopes, state, hyper | {"theta": dict.fromkeys(params, THETA)})
    for name, expected in params.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].detach(), expected, rtol=1e-5, atol=1e-6)


def test_half_precision_keeps_accumulators_of_single_precision(impl):
    model, optimizer = network().bfloat16(), None
    exact = copy.deepcopy(model).float()
    optimizer = MuLO(model.parameters(), THETA, impl)
    twin = MuLO(exact.parameters(), THETA, impl)
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.float()
    optimizer.step()
    twin.step()
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        assert_identical(p, q.bfloat16())
        assert {x.dtype for x in optimizer.state[p].values()} == {torch.float32}
        assert_identical(optimizer.state[p], twin.state[q])


def test_double_precision_is_trained_by_the_rule():
    param = nn.Parameter(torch.randn(4, 5, dtype=torch.float64))
    optimizer = MuLO([param], THETA)
    param.grad = torch.randn_like(param)
    optimizer.step()
    assert optimizer.state[param]["momentum"].dtype == torch.float64


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.permute(3, 2, 1, 0),
        lambda x: x[:, :, ::2],
        lambda x: torch.as_strided(x, (7, 5), (20, 3)),
        lambda x: x.flatten()[3:50],
    ],
    ids=["channels last", "transposed", "with holes", "strided", "unaligned"],
)
@pytest.mark.parametrize("slope", ["like the parameter", "contiguous", "expanded"])
def test_the_order_of_memory_does_not_matter(make, slope, impl):
    storage = torch.randn(8, 6, 5, 3)
    untouched = storage.clone()
    param = nn.Parameter(make(storage))
    plain = nn.Parameter(param.detach().clone(memory_format=torch.contiguous_format))
    ours, theirs = MuLO([param], THETA, impl), MuLO([plain], THETA, "torch")
    for seed in range(3):
        gradient = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))
        if slope == "expanded":
            gradient = gradient.flatten()[0].expand(param.shape)
        param.grad = torch.empty_like(param).copy_(gradient) if slope.startswith("like") else gradient
        plain.grad = gradient.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(param, plain, rtol=1e-5, atol=1e-6)
    make(untouched).copy_(param.detach())
    assert_identical(storage, untouched)  # what is not the parameter has not changed


def test_a_module_may_be_laid_out_anew(impl):
    model = network()
    other = copy.deepcopy(model)
    ours, theirs = (MuLO(m.parameters(), THETA, impl) for m in (model, other))
    for step in range(4):
        train(model, ours, 1, step)
        train(other, theirs, 1, step)
        model.to(memory_format=torch.channels_last if step % 2 == 0 else torch.contiguous_format)
    assert_same(model, other, 1e-6)


# Interruptions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_interrupted_and_resumed_is_uninterrupted(dtype, layout, impl):
    def begin(seed):
        model = network(seed).to(dtype).to(memory_format=layout)
        groups = [{"params": [model.temperature], "lr": 0.5}, {"params": [p for p in model.parameters() if p.ndim]}]
        return model, MuLO(groups, random_theta(seed), impl, weight_decay=0.01)

    model, optimizer = begin(0)
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, 3, 3)

    again, resumed = begin(1)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(again, resumed, 3, 3)
    assert_same(again, model)
    assert_identical(resumed.state_dict()["state"], optimizer.state_dict()["state"])


def test_a_state_may_be_loaded_into_another_layout(impl):
    model = network()
    optimizer = MuLO(model.parameters(), THETA, impl)
    train(model, optimizer, 2)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    resumed = MuLO(other.parameters(), THETA, impl)
    resumed.load_state_dict(optimizer.state_dict())
    before = copy.deepcopy(optimizer.state_dict()["state"])
    train(other, resumed, 2, 2)
    assert_identical(optimizer.state_dict()["state"], before)  # it is copied
    train(model, optimizer, 2, 2)
    assert_same(other, model, 1e-6)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alike(how, impl):
    model = network()
    optimizer = MuLO(model.parameters(), THETA, impl, max_grad_norm=0.1)
    train(model, optimizer, 2)
    other, copied = how((model, optimizer))
    for m, o in ((model, optimizer), (other, copied)):
        train(m, o, 2, 2)
    assert (copied.impl, copied.max_grad_norm) == (impl, 0.1)
    assert_same(other, model)


# Names, parametrizations


def test_pylo_names():
    param = nn.Parameter(torch.randn(3))
    assert MuLO_naive([param], hf_key=THETA).impl == "torch"
    with pytest.raises(ValueError, match="MuLO: impl='cuda'"):
        MuLO_CUDA([param], hf_key=THETA).step()


class Dimension:
    """As the package mup has it."""

    def __init__(self, dim, infinite):
        self.dim, self.infinite = dim, infinite

    def isinf(self):
        return self.infinite

    def width_mult(self):
        return self.dim / 8


@pytest.mark.parametrize(
    ("growing", "expected"), [((True, True), 1 / 20), ((True, False), 1.0), ((False, True), 1.0), ((False, False), 1.0)]
)
def test_hidden_matrices_divide_the_learning_rate_by_their_fan_in(growing, expected, impl):
    """Whatever the base width; weight decay, as under every parametrization, is that of the learning rate."""
    values = torch.randn(10, 20)
    tagged, plain, other = (nn.Parameter(values.clone()) for _ in range(3))
    tagged.infshape = other.infshape = tuple(Dimension(*each) for each in zip(values.shape, growing))
    optimizers = {
        tagged: MuLO([tagged], THETA, impl, weight_decay=0.1),
        plain: MuLO([plain], THETA, impl, lr=expected, weight_decay=0.1 / expected),
        other: MuLO([other], THETA, impl, weight_decay=0.1, parametrization="standard"),
    }
    for param, optimizer in optimizers.items():
        param.grad = 0.1 * values.flip(0)
        optimizer.step()
    assert_identical(tagged, plain)
    assert torch.equal(tagged, other) == (expected == 1.0)


def test_a_model_prepared_by_the_package_mup(impl):
    mup = pytest.importorskip("mup", reason="the package `mup` is not installed (extra: test)")

    def make(width):
        return nn.Sequential(nn.Linear(6, width), nn.Linear(width, width), mup.MuReadout(width, 3))

    model = make(32)
    mup.set_base_shapes(model, make(1), delta=make(2))
    optimizer = MuLO(model.parameters(), THETA, impl, parametrization="mup")
    assert list(optimizer.factors.values()) == [1.0, 1.0, 1 / 32, 1.0, 1.0, 1.0]


def test_a_model_prepared_here():
    from hyperopt_id.optim import tag_parameters

    model = nn.Sequential(nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 3))
    tag_parameters(model, nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 3)))
    assert list(MuLO(model.parameters(), THETA).factors.values()) == [1.0, 1.0, 1 / 32, 1.0, 1.0, 1.0]


# Mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: MuLO([p], THETA, impl="gpu"), "MuLO: impl='gpu'; allowed: auto, torch, cpu, cuda"),
        (lambda p: MuLO([p], THETA, parametrization="umup"), "parametrization='umup'; allowed: auto, standard, mup"),
        (lambda p: MuLO([p], THETA, lr=-1.0), r"MuLO: lr=-1.0; needed: a number of 0 or more"),
        (lambda p: MuLO([p], THETA, weight_decay=float("nan")), "MuLO: weight_decay=nan; needed"),
        (lambda p: MuLO([p], THETA, max_grad_norm=-2.0), "MuLO: max_grad_norm=-2.0; needed"),
        (lambda p: MuLO([p], THETA, parametrization="mup"), r"a parameter \[3, 4\] that does not say which of its dim"),
        (
            lambda p: MuLO([nn.Parameter(torch.ones(3, dtype=torch.complex64))], THETA),
            r"parameter \[3\] torch.complex64",
        ),
        (lambda p: MuLO([p], torch.zeros(7)), r"shape \[7\], needed: \[2409\]"),
        (lambda p: MuLO([{"params": [p], "theta": torch.zeros(7)}], THETA), r"shape \[7\], needed: \[2409\]"),
    ],
)
def test_mistakes_say_what_was_needed(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make(nn.Parameter(torch.randn(3, 4)))
    assert "\n" not in str(raised.value)


def test_a_group_that_is_refused_is_not_added():
    optimizer = MuLO([nn.Parameter(torch.randn(3))], THETA)
    with pytest.raises(ValueError, match=r"torch\.complex64"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_sparse_gradients_are_refused(max_grad_norm):
    table = nn.Embedding(10, 3, sparse=True)
    optimizer = MuLO(table.parameters(), THETA, max_grad_norm=max_grad_norm)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"a parameter \[10, 3\] is sparse; make the embedding with sparse=False"):
        optimizer.step()


@pytest.mark.skipif("cpu" not in IMPLEMENTATIONS, reason="needs a C++ compiler")
def test_a_kernel_that_was_asked_for_refuses_what_it_cannot():
    optimizer = MuLO([nn.Parameter(torch.ones(3, dtype=torch.float64))], THETA, impl="cpu")
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"of float32, bfloat16 or float16 on cpu, given torch\.float64"):
        optimizer.step()


WITHOUT_A_COMPILER = """
import logging, sys, torch
sys.path.insert(0, sys.argv[1])
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
from hyperopt_id.optim.mulo import MuLO
from mulo_cases import random_theta
def trained(impl):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    optimizer = MuLO(model.parameters(), random_theta(), impl)
    for _ in range(2):
        model(torch.ones(5, 4)).square().mean().backward()
        optimizer.step()
    return [p.tolist() for p in model.parameters()]
assert trained("auto") == trained("auto") == trained("torch")
try:
    trained("cpu")
except ValueError as error:
    print(error)
"""


def test_without_a_compiler_there_is_one_warning_and_the_same_result(tmp_path):
    here = Path(__file__).parent
    environment = {**os.environ, "CXX": "nowhere", "HYPEROPT_ID_CACHE": str(tmp_path), "PYTHONPATH": str(here.parent)}
    command = [sys.executable, "-c", WITHOUT_A_COMPILER, str(here)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    warning, error = done.stdout.splitlines()
    cause = "no compiler found: CXX=nowhere"
    assert warning == f"WARNING MuLO: no kernel for cpu, so steps are taken by PyTorch, which is slower: {cause}"
    assert error == f"MuLO: impl='cpu' cannot be had here: {cause}; or take impl='auto'"


def test_untrained_weights_are_said_to_be(caplog):
    with caplog.at_level(logging.WARNING):
        optimizer = MuLO([nn.Parameter(torch.randn(3))])
    assert "untrained" in caplog.text
    assert_identical(optimizer.param_groups[0]["theta"], mulo.untrained())


def test_a_kernel_that_cannot_be_had_is_tried_once(monkeypatch, caplog):
    def prepare(device):
        calls.append(device)
        raise compiler.NoCompiler("none here")

    calls = []
    monkeypatch.setattr(kernels, "prepare", prepare)
    facade.kernel_is_there.cache_clear()
    try:
        for _ in range(2):
            model = network()
            train(model, MuLO(model.parameters(), THETA), 2)
    finally:
        facade.kernel_is_there.cache_clear()
    assert calls == ["cpu"]
    assert caplog.text.count("none here") == 1
