"""What is handed to `plain_parts` is used as it is, or refused in one line before anything is trained."""

import pytest
import torch
from torch import nn

import hyperopt_id as hid
from hyperopt_id.optim.plain import plain_parts

ROWS = torch.linspace(-1.0, 1.0, 40, dtype=torch.float64).reshape(20, 2)
DATA = hid.Dataset(ROWS, ROWS.sum(1), {"train": (0, 10), "validation": (10, 15), "test": (15, 20)})
SGD = torch.optim.SGD


def task() -> hid.Task:
    return hid.supervised(DATA, lambda: nn.Linear(2, 1), "mse", 5)


def groups(params, taken):
    return SGD([{"params": [params["weight"]], "lr": 0.1}, {"params": [params["bias"]], "lr": 0.2}])


def nothing(state):
    return {}


ANOTHER = SGD(nn.Linear(2, 1).parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda params, taken: SGD([p.detach().clone() for p in params.values()], lr=0.1), r"SGD would train 2 tensor"),
        (
            lambda params, taken: SGD(nn.Linear(2, 1).parameters(), lr=0.1),
            r"none of the parameters that make was given",
        ),
        (lambda params, taken: ANOTHER, r"SGD would train 2 tensor\(s\)"),
        (lambda params, taken: SGD([*params.values(), torch.zeros(1)], lr=0.1), r"SGD would train 1 tensor\(s\)"),
        (torch.optim.Adam, r"make\(params, taken\), as lambda .* can only optimize Tensors"),
        (lambda params: SGD(params.values(), lr=0.1), r"has failed .* takes 1 positional argument but 2 were given"),
        (lambda params, taken: None, r"make\(params, taken\), as .* has given NoneType, which is no optimizer"),
        (lambda params, taken: SGD(params.values(), lr=-1.0), r"Invalid learning rate: -1.0"),
    ],
)
def test_an_optimizer_is_one_of_the_parameters_that_are_given(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        plain_parts(task(), make, [0], nothing)
    assert "\n" not in str(raised.value)


def test_some_of_the_parameters_may_be_left_alone():
    parts = plain_parts(task(), lambda params, taken: SGD([params["weight"]], lr=0.1), [0], nothing)
    before = parts.start().z.params["bias"]
    hid.run(parts, hid.Plan(updates=1))
    assert torch.equal(before, parts.start().z.params["bias"])


@pytest.mark.parametrize("seeds", [[], 3, [-1], [1.5], "12"])
def test_seeds_are_those_that_assemble_takes(seeds):
    with pytest.raises(ValueError, match="seeds must be whole numbers from 0 to"):
        plain_parts(task(), groups, seeds, nothing)


@pytest.mark.parametrize(
    ("hyper", "why"),
    [
        (lambda state: {"lr": state["groups"][0]["lr"]}, "KeyError: 0"),
        (lambda state: {"lr": state["groups"]["lr"][:, 0]}, "IndexError: too many indices"),
        (lambda state: {"lr": "0.1"}, "TypeError"),
        (lambda state: 0.1, "TypeError: given float"),
        (None, "TypeError: 'NoneType' object is not callable"),
    ],
)
def test_what_is_reported_is_tried_when_the_parts_are_made(hyper, why):
    with pytest.raises(ValueError, match=rf"^hyper must give .* groups has lr, momentum.*\({why}") as raised:
        plain_parts(task(), groups, [0], hyper)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("hyper", "expected"),
    [
        (lambda state: {"lr": state["groups"]["lr"][1]}, [0.2, 0.2]),
        (lambda state: {"lr": float(state["groups"]["lr"][0])}, [0.1, 0.1]),
        (lambda state: {"lr": dict(zip(["weight", "bias"], state["groups"]["lr"].tolist()))}, {"weight": [0.1, 0.1]}),
    ],
)
def test_numbers_and_tensors_are_reported_of_each_run(hyper, expected):
    parts = plain_parts(task(), groups, [0, 1], hyper)
    found = hid.run(parts, hid.Plan(updates=1))["hyper"]["lr"]
    if isinstance(expected, dict):
        found, expected = found["weight"], expected["weight"]
    assert found == pytest.approx(expected)
