"""Laws of what `assemble` is given: seeds of any kind of sequence mean the same, each starting value is one that its
hyperparameter may have, a loss is one number, and a stream of batches is read once."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hyperopt_id as hid
from hyperopt_id import population
from hyperopt_id.experiment import Parts, hyper_update

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
DATA = hid.Dataset(X, X.sum(1).sin(), {"train": (0, 15), "validation": (15, 22), "test": (22, 30)})
TASK = hid.supervised(DATA, lambda: nn.Linear(4, 1), "mse", 5)
SPACE = hid.Space(
    {
        "lr": hid.Hyper(0.01, hid.LOG10, bounds=(1e-3, 0.1), tune=("global",)),
        "weight_decay": hid.Hyper(0.0, hid.LOG10),
        "momentum": hid.Hyper(0.5, hid.LOGIT, bounds=(0.1, 0.9)),
    }
)


def assemble(task: hid.Task = TASK, **changed: Any) -> Parts:
    return hid.assemble(task, rule=hid.rules.sgd(), space=SPACE, engine=hid.hypergrad.one_step(), **changed)


SEQUENCES = {
    "array": np.arange(2, 4),
    "array of another type": np.array([2, 3], dtype=np.uint8),
    "range": range(2, 4),
    "tensor": torch.tensor([2, 3]),
    "numpy scalars": [np.int64(2), np.uint32(3)],
    "tuple": (2, 3),
    "generator": (seed for seed in (2, 3)),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_seeds_of_any_sequence_mean_the_same(name: str):
    parts = assemble(seeds=SEQUENCES[name])
    assert parts.seeds == [2, 3]
    assert all(type(seed) is int for seed in parts.seeds)
    assert torch.equal(parts.start().z.params["weight"], assemble(seeds=[2, 3]).start().z.params["weight"])


def test_the_highest_seed_can_be_trained():
    summary = hid.run(assemble(seeds=[2**63 - 1]), hid.Plan(updates=1))
    assert summary["final"]["loss/test"].isfinite().all()


SEEDS = {
    "one number": (3, "one for each run, such as .* not 3"),
    "one number of numpy": (np.int64(3), "not "),
    "one tensor": (torch.tensor(3), "0-d"),
    "text": ("12", "not '12'"),
    "none": (None, "not None"),
    "nothing": ([], "given none"),
    "negative": ([0, -1], "given -1"),
    "huge": ([2**63], f"from 0 to {2**63 - 1}.*given {2**63}"),
    "real": ([1.0], "float"),
    "truth": ([True], "given True, which is a truth value"),
    "truth of numpy": (np.array([True]), "which is a truth value"),
    "truth of torch": (torch.tensor([True]), "which is a truth value"),
    "real tensor": (torch.tensor([1.0]), "whole numbers"),
    "two axes": (np.zeros((1, 2), int), "whole numbers"),
}


@pytest.mark.parametrize("name", SEEDS)
def test_other_seeds_are_refused(name: str):
    seeds, message = SEEDS[name]
    with pytest.raises(ValueError, match=f"seeds must be .*{message}") as caught:
        assemble(seeds=seeds)
    assert "\n" not in str(caught.value)


STARTS = {
    "unknown": ([{"learning_rate": 1e-3}], "names learning_rate; the space holds lr, weight_decay, momentum"),
    "number of another": ([{"lr": 0.01}, {}], "for each of the 1 seeds, but it holds 2"),
    "one mapping": ({"lr": 0.01}, "starts must be a list of mappings"),
    "no mapping": ([0.01], r"starts\[0\] must be a mapping"),
    "above": ([{"lr": 5.0}], r"starts\[0\]: lr=5 .*outside bounds=\(0.001, 0.1\)"),
    "below": ([{"lr": 1e-4}], "outside bounds"),
    "above, not tuned": ([{"momentum": 0.95}], r"momentum=0.95 .*outside bounds=\(0.1, 0.9\)"),
    "not of the transform": ([{"weight_decay": -1.0}], "weight_decay=-1"),
    "nan": ([{"lr": float("nan")}], "lr must be a finite number, not nan"),
    "infinite": ([{"weight_decay": float("inf")}], "must be a finite number"),
    "text": ([{"lr": "0.01"}], "lr must be a finite number, not '0.01'"),
    "truth": ([{"lr": True}], "must be a finite number"),
    "several": ([{"lr": torch.tensor([0.01, 0.02])}], "must be a finite number"),
}


@pytest.mark.parametrize("name", STARTS)
def test_starts_that_no_run_could_have_are_refused(name: str):
    starts, message = STARTS[name]
    with pytest.raises(ValueError, match=message) as caught:
        assemble(starts=starts)
    assert "\n" not in str(caught.value)


def test_starts_of_any_number_type_are_taken():
    for value in (0.02, np.float32(0.02), torch.tensor(0.02), np.array(0.02)):
        hyper = assemble(seeds=[0, 1], starts=[{}, {"lr": value, "weight_decay": 0}]).start().raw
        torch.testing.assert_close(10.0 ** hyper["lr/global"], torch.tensor([0.01, 0.02]))


def of_rows(params: Any, buffers: Any, batch: Any) -> Any:
    return TASK.loss(params, buffers, batch)[0].expand(5), (buffers, {})


LOSSES = {
    "rows": (of_rows, r"gives values of shape \[5\].*mean"),
    "float": (lambda w, buffers, batch: (1.0, (buffers, {})), "gives float"),
    "complex": (lambda w, buffers, batch: (w["weight"].sum() * 1j, (buffers, {})), "complex64"),
    "detached": (lambda w, buffers, batch: (w["weight"].detach().sum(), (buffers, {})), "depends on no parameter"),
    "bare": (lambda w, buffers, batch: w["weight"].sum(), r"must return \(loss, \(buffers, metrics\)\)"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_is_not_one_number_is_refused(name: str):
    loss, message = LOSSES[name]
    with pytest.raises(ValueError, match=message):
        assemble(replace(TASK, loss=loss))


def test_a_loss_that_vmap_cannot_lift_is_refused_in_one_line():
    def choosing(params: Any, buffers: Any, batch: Any) -> Any:
        value, rest = TASK.loss(params, buffers, batch)
        return (value if value > 0 else -value), rest

    task = replace(TASK, loss=choosing)
    with pytest.raises(ValueError, match=r"cannot train several runs of this model as one") as caught:
        assemble(task, seeds=[0, 1], execution=hid.Execution("vmap", 2))
    assert "\n" not in str(caught.value)
    assemble(task, seeds=[0, 1])


@pytest.mark.parametrize("steps", [1, 7, 64, 100])
@pytest.mark.parametrize("objective", ["validation", "training"])
@pytest.mark.parametrize("how", ["loop", "vmap"])
def test_each_batch_is_drawn_once(steps: int, objective: str, how: Any):
    """So that a task whose batches come from a stream trains on all of them, the first ones included."""
    asked: dict[str, list[int]] = {"train": [], "validation": []}

    def batches(split: str, seeds: Any, start: int, count: int) -> Any:
        asked[split] += range(start, start + count)
        return TASK.batches(split, seeds, start, count)

    execution = hid.Execution(how, 1)
    parts = assemble(replace(TASK, batches=batches), execution=execution)
    plan = hid.Plan(updates=12, steps_per_update=steps, objective=objective)
    hid.run(parts, plan)
    for positions in asked.values():
        assert positions == list(range(len(positions)))


def test_updates_out_of_order_see_the_batches_of_their_place():
    parts, plan = assemble(), hid.Plan(updates=3, steps_per_update=40)
    run = population.split(parts.start(), parts.members, parts.lift)[0]
    forward = [hyper_update(parts, plan, update, run, [0])[1].losses for update in (0, 1, 2)]
    again = [hyper_update(parts, plan, update, run, [0])[1].losses for update in (2, 0, 1)]
    for update, losses in zip((2, 0, 1), again, strict=True):
        assert torch.equal(losses, forward[update])
