"""A small model and training loop for tests of `MuLO`, and the implementations that there are here."""

import torch
import torch.nn.functional as F
from mulo_cases import random_theta
from torch import nn

from hyperopt_id.kernels import compiler
from hyperopt_id.kernels import mulo as kernels

THETA = random_theta()
INPUTS, TARGETS = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 5
try:
    kernels.prepare("cpu")
    IMPLEMENTATIONS = ["torch", "cpu"]
except compiler.NoCompiler:
    IMPLEMENTATIONS = ["torch"]


def network(seed=0):
    """Tensors of 0 to 4 axes; one without a gradient."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.Tanh(), nn.Linear(16, 5))
    model.register_parameter("temperature", nn.Parameter(torch.tensor(1.3)))
    model.register_parameter("unused", nn.Parameter(torch.randn(4)))
    return model


def loss_of(model, rows=slice(None)):
    dtype = model.temperature.dtype
    return F.cross_entropy((model(INPUTS[rows].to(dtype)) * model.temperature).float(), TARGETS[rows])


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(model, slice(step % 4 * 10, step % 4 * 10 + 10)).backward()
        optimizer.step()


def assert_same(model, other, tolerance=0.0):
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
