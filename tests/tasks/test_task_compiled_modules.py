"""A module that `torch.compile` has wrapped trains as the module in it; a wrapped part is refused in one line."""

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


def test_a_compiled_part_is_refused():
    with pytest.raises(ValueError, match=r"^0 is the result of torch\.compile: let the module have") as raised:
        hid.supervised(DATA, lambda: nn.Sequential(compiled(nn.Linear(2, 3)), nn.Linear(3, 1)), "mse", 5)
    assert "\n" not in str(raised.value)
