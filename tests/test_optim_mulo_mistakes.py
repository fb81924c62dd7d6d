"""`MuLO` where something is missing or wrong: one line says what was needed, and nothing has changed."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from laws import assert_identical
from mulo_training import IMPLEMENTATIONS, THETA, network, train
from torch import nn

from hyperopt_id import mulo
from hyperopt_id.kernels import compiler
from hyperopt_id.kernels import mulo as kernels
from hyperopt_id.optim import MuLO
from hyperopt_id.optim import mulo as facade


def sharded(param):
    param.device_mesh = "as a DTensor has it"
    return param


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: MuLO([p], THETA, impl="gpu"), "MuLO: impl='gpu'; allowed: auto, torch, cpu, cuda"),
        (lambda p: MuLO([p], THETA, parametrization="umup"), "parametrization='umup'; allowed: auto, standard, mup"),
        (lambda p: MuLO([p], THETA, lr=-1.0), r"MuLO: lr=-1.0; needed: a number of 0 or more"),
        (lambda p: MuLO([p], THETA, weight_decay=float("nan")), "MuLO: weight_decay=nan; needed"),
        (lambda p: MuLO([p], THETA, max_grad_norm=-2.0), "MuLO: max_grad_norm=-2.0; needed"),
        (lambda p: MuLO([{"params": [p], "lr": -1.0}], THETA), "MuLO: lr=-1.0; needed"),
        (lambda p: MuLO([p], THETA, step_multiplier=-1.0), "MuLO: step_multiplier=-1.0; needed"),
        (
            lambda p: MuLO([p], THETA, parametrization="mup"),
            r"a parameter \[3, 4\] does not say which of its dimensions",
        ),
        (
            lambda p: MuLO([p.to(torch.complex64)], THETA),
            r"parameter \[3, 4\] is torch.complex64; needed: one of torch.f",
        ),
        (lambda p: MuLO([p.to(torch.float8_e4m3fn)], THETA), r"parameter \[3, 4\] is torch.float8_e4m3fn; needed"),
        (lambda p: MuLO([sharded(p)], THETA), r"parameter \[3, 4\] is a part of a sharded one"),
        (lambda p: MuLO([p], torch.zeros(7)), r"shape \[7\], needed: \[2409\]"),
        (lambda p: MuLO([{"params": [p], "theta": torch.zeros(7)}], THETA), r"shape \[7\], needed: \[2409\]"),
    ],
)
def test_mistakes_say_what_was_needed(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make(torch.randn(3, 4))
    assert "\n" not in str(raised.value)


def test_a_group_that_is_refused_is_not_added():
    optimizer = MuLO([nn.Parameter(torch.randn(3))], THETA)
    with pytest.raises(ValueError, match=r"torch\.complex64"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 1


def state_of(*shapes, optimizer=lambda params: MuLO(params, THETA)):
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    made = optimizer(params)
    for param in params:
        param.grad = torch.ones_like(param)
    made.step()
    return made.state_dict()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (
            state_of((3, 4), (6,), optimizer=torch.optim.Adam),
            "state of another optimizer: it has lr, betas,.* needed: theta",
        ),
        (state_of((3, 4), (7,)), r"of a parameter \[6\], momentum has shape \[3, 7\], needed: \[3, 6\]"),
        (state_of((4, 3), (6,)), r"of a parameter \[3, 4\], momentum has shape \[3, 4, 3\], needed: \[3, 3, 4\]"),
        (state_of((3, 4), (6, 1)), r"of a parameter \[6\], momentum has shape \[3, 6, 1\], needed: \[3, 6\]"),
        (state_of((3, 4)), "doesn't match the size"),
    ],
)
def test_states_of_others_are_refused(saved, message):
    params = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(6))]
    optimizer = MuLO(params, 2 * THETA)
    with pytest.raises(ValueError, match=message) as raised:
        optimizer.load_state_dict(saved)
    assert "\n" not in str(raised.value)
    assert not optimizer.state
    assert_identical(optimizer.param_groups[0]["theta"], 2 * THETA)


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
