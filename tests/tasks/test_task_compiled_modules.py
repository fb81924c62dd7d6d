"""A module that `torch.compile` has wrapped trains as the module in it, and so do wrapped parts."""

import pytest
import torch
from torch import nn

import hyperopt_id as hid

ROWS = torch.linspace(-1.0, 1.0, 40, dtype=torch.float64).reshape(20, 2)
DATA = hid.Dataset(ROWS, ROWS.sum(1), {"train": (0, 10), "validation": (10, 15), "test": (15, 20)})


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("same", [False, True], ids=["made anew", "handed out again"])
def test_a_compiled_module_is_the_module_in_it(same):
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))

    plain = make() if same else None
    wrapped = None if plain is None else compiled(plain)
    expected = hid.supervised(DATA, lambda: plain or make(), "mse", 5)
    found = hid.supervised(DATA, lambda: wrapped or compiled(make()), "mse", 5)
    (params, buffers), (others, _) = expected.init(3), found.init(3)
    assert list(others) == list(params)
    assert all(torch.equal(others[name], value) for name, value in params.items())
    losses = [task.evaluate(params, buffers, "train")["loss"] for task in (expected, found)]
    assert torch.equal(*losses)


def test_compiled_parts_are_the_parts():
    def make(whole: bool) -> nn.Module:
        module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        if not whole:
            module[0] = compiled(module[0])
            module[2].compile(backend="eager")
        return module

    expected, found = (hid.supervised(DATA, lambda whole=whole: make(whole), "mse", 5) for whole in (True, False))
    (params, buffers), (others, _) = expected.init(3), found.init(3)
    assert list(others) == list(params)
    batch = hid.tasks.task.Batch(torch.arange(5), torch.tensor(0), "train")
    losses = [task.loss(params, buffers, batch)[0] for task in (expected, found)]
    assert torch.equal(*losses)
