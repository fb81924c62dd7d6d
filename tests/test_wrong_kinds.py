"""What a program hands to the library is of the right kind, or refused in one line that names it."""

from typing import Any

import pytest
import torch
from torch import nn

import hyperopt_id as hid
from hyperopt_id.optim.plain import plain_parts

ROWS = torch.linspace(-1.0, 1.0, 40).reshape(20, 2)
DATA = hid.Dataset(ROWS, ROWS.sum(1), {"train": (0, 10), "validation": (10, 15), "test": (15, 20)})
HYPERS = {"lr": hid.Hyper(1e-2, hid.LOG10), "weight_decay": hid.Hyper(0.0), "momentum": hid.Hyper(0.5, hid.LOGIT)}
Anything: Any = hid  # the same functions, whose arguments pyright does not compare


def task() -> hid.Task:
    return hid.supervised(DATA, lambda: nn.Linear(2, 1), "mse", 5)


def assembled(**changed: Any) -> Any:
    parts: dict[str, Any] = {"rule": hid.rules.sgd(), "space": hid.Space(HYPERS), "engine": hid.hypergrad.neumann(2)}
    given = parts | changed
    made = given.pop("task") if "task" in given else task()
    return hid.assemble(made, **given)


@pytest.mark.parametrize("value", ["sgd", 3, [1], torch.ones(30, 2)])
@pytest.mark.parametrize("name", ["task", "rule", "space", "engine", "meta", "meta_space"])
def test_a_part_is_of_its_kind(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be an? .*, not ") as raised:
        assembled(**{name: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rule", hid.rules.sgd, r"rule must be an UpdateRule, such as rules\.sgd\(\), not <function sgd"),
        ("engine", hid.hypergrad.neumann, r"engine must be an Engine, .* not <function neumann"),
        ("space", HYPERS, r"space must be a Space, such as Space\("),
    ],
)
def test_what_was_not_called_is_told_how(name, value, message):
    with pytest.raises(ValueError, match=message):
        assembled(**{name: value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Anything.Space({"lr": 0.1}), r"^Space: lr must be a Hyper, such as Hyper\(0\.1, LOG10\), not 0\.1$"),
        (lambda: Anything.Space([1]), "^Space must be a mapping from name to Hyper, not "),
        (lambda: Anything.Hyper(1e-3, "log10"), "^Hyper: transform must be LOG10, LOGIT or IDENTITY, not 'log10'$"),
        (lambda: Anything.Hyper("1e-3"), "^Hyper: init must be a number, not '1e-3'$"),
        (lambda: Anything.Hyper(None), "^Hyper: init must be a number, not None$"),
        (
            lambda: Anything.Hyper(0.1, bounds=0.2),
            r"^Hyper: bounds must be two numbers, \(lowest, highest\), not 0\.2$",
        ),
        (lambda: Anything.Hyper(0.1, sample=(1, 2, 3)), "^Hyper: sample must be two numbers, .* not .1, 2, 3.$"),
        (lambda: Anything.hypergrad.neumann(2.5), "^neumann: terms is 2.5, and must be a whole number, 1 or more$"),
        (lambda: Anything.hypergrad.neumann(0), "^neumann: terms is 0, and must be a whole number, 1 or more$"),
        (lambda: Anything.hypergrad.unroll("5"), "^window is '5', and must be a whole number, 1 or more$"),
        (lambda: Anything.hypergrad.forward(0), "^window is 0, and must be a whole number, 1 or more$"),
        (lambda: Anything.Execution("vamp"), "^Execution: lift must be 'loop' or 'vmap', not 'vamp'$"),
        (lambda: Anything.Execution("vmap", 0), "^Execution: chunk is 0, and must be a whole number, 1 or more$"),
        (lambda: Anything.Plan(1, report_splits="test"), r"^Plan: report_splits must be a list, such as \('test',\)"),
    ],
)
def test_mistakes_in_numbers_and_names(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def plain() -> Any:
    return plain_parts(task(), lambda params, taken: torch.optim.SGD(params.values(), 0.1), [0], lambda state: {})


@pytest.mark.parametrize("entrance", ["supervised", "assemble", "plain_parts", "run"])
def test_autocast_around_training_is_refused(entrance):
    parts, made = plain(), task()
    calls = {
        "supervised": task,
        "assemble": lambda: assembled(task=made),
        "plain_parts": lambda: plain_parts(made, lambda params, taken: None, [0], lambda state: {}),
        "run": lambda: hid.run(parts, hid.Plan(updates=1)),
    }
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(
            ValueError, match=rf"^{entrance}: inside torch\.autocast, .* Execution\(autocast=True\)"
        ) as raised,
    ):
        calls[entrance]()
    assert "\n" not in str(raised.value)


def test_a_plain_loop_inside_autocast_does_not_see_its_steps():
    """The reason for the refusal."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(ROWS).detach()
        for _ in range(3):
            optimizer.zero_grad()
            model(ROWS).sum().backward()
            optimizer.step()
        assert torch.equal(model(ROWS), before)
    assert not torch.equal(model(ROWS).bfloat16(), before)
