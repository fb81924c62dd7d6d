"""Small regressions whose Hessian-vector products are examined, and models for them."""

from typing import Any

import torch
from second_derivatives import Layer, Saved, WithoutGraph, hooked, rounded
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import hyperopt_id as hid
from hyperopt_id.build.products import Products, first_batch, pick_products

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 6, generator=GENERATOR)
DATA = hid.Dataset(X, X.sum(1).sin(), {"train": (0, 30), "validation": (30, 50), "test": (50, 60)})
SPACE = hid.Space(
    {"lr": hid.Hyper(0.05, hid.LOG10, tune=("global",)), "weight_decay": hid.Hyper(0.0), "momentum": hid.Hyper(0.8)}
)
PULLS, PUSHES = hid.hypergrad.unroll(4), hid.hypergrad.forward(4)


def with_layer(function: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), Layer(function), nn.Linear(8, 1))


def plain() -> nn.Module:
    return with_layer(torch.tanh)


def kept() -> nn.Module:
    return with_layer(Saved.apply)


def ungraphed() -> nn.Module:
    """Of no second derivative that could be written otherwise."""
    return with_layer(WithoutGraph.apply)


class Rounding(nn.Linear):
    """A straight-through estimator."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear gives it
        return nn.functional.linear(input, rounded(2.0 * self.weight) / 2.0, self.bias)


def straight_through() -> nn.Module:
    return nn.Sequential(Rounding(6, 8), nn.Tanh(), nn.Linear(8, 1))


def stopped() -> nn.Module:
    """A gradient that is stopped, of a Hessian that is symmetric but for a thousandth."""
    return with_layer(lambda h: h / h.detach().norm())


def with_hook() -> nn.Module:
    return with_layer(lambda h: hooked(h.tanh()).sin())


def spectral() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 1))


def padded() -> nn.Module:
    return nn.Sequential(
        Layer(lambda x: (2.0 * x.abs()).long().clamp_max(4)),
        nn.Embedding(5, 4, padding_idx=1),
        nn.Flatten(),
        nn.Tanh(),
        nn.Linear(24, 1),
    )


class Zeros(nn.Module):
    """The norm of rows of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.out = nn.Linear(6, 8, bias=False), nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(nn.functional.normalize(self.linear(inputs * (inputs[:, :1] > 0)), dim=1))


def regression(factory: Any, dtype: torch.dtype = torch.float32, batch_size: int | None = 20) -> hid.Task:
    return hid.supervised(DATA.to("cpu", dtype), factory, "mse", batch_size)


def picked(task: hid.Task, engine: hid.hypergrad.Engine = PULLS, given: Any = None, **options: Any) -> Products:
    return pick_products(given, engine, task, 0, first_batch(task, 0), **options)
