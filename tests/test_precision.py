"""Models of half precision, or of several types: what decides is float32, and training is that of `torch.optim`."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from laws import GRANULARITIES, LIFTS, assert_close
from torch import Tensor, nn

from hyperopt_id import (
    LOG10,
    LOGIT,
    Dataset,
    Execution,
    Hyper,
    Plan,
    Space,
    assemble,
    hypergrad,
    population,
    rules,
    run,
    supervised,
    trees,
)
from hyperopt_id.experiment import hyper_update
from hyperopt_id.tasks.task import Batch, Task

HALVES = [torch.bfloat16, torch.float16]
RATE = 0.05


class Case(NamedTuple):
    rule: Any
    hyper: dict[str, float]
    twin: Any
    options: dict[str, Any]


CASES = {
    "sgd": Case(
        rules.sgd(), {"momentum": 0.9, "weight_decay": 0.01}, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}
    ),
    "adam": Case(
        rules.adam(),
        {"beta1": 0.9, "beta2": 0.999, "eps": 1e-2, "weight_decay": 0.01},
        torch.optim.Adam,
        {"eps": 1e-2, "weight_decay": 0.01},
    ),
    "adamw": Case(
        rules.adamw(),
        {"beta1": 0.9, "beta2": 0.999, "eps": 1e-2, "weight_decay": 0.01},
        torch.optim.AdamW,
        {"eps": 1e-2, "weight_decay": 0.01},
    ),
}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))


def data(dtype: torch.dtype) -> Dataset:
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    splits = {"train": (0, 30), "validation": (30, 45), "test": (45, 60)}
    return Dataset(inputs, inputs[:, :3].argmax(1), splits).to("cpu", dtype)


def task_in(dtype: torch.dtype) -> Task:
    return supervised(data(dtype), net, "cross_entropy", None)


def after(parts, plan: Plan, updates: int | None = None) -> list[Any]:
    chunks = population.split(parts.start(), parts.members, parts.lift)
    for update in range(plan.updates if updates is None else updates):
        chunks = [hyper_update(parts, plan, update, *each)[0] for each in zip(chunks, parts.members)]
    return chunks


def space_of(case: Case, tune: tuple[str, ...] = ()) -> Space:
    return Space({"lr": Hyper(RATE, LOG10, tune=tune), **{name: Hyper(value) for name, value in case.hyper.items()}})


def by_torch(case: Case, start: dict[str, Tensor], half: torch.dtype, dtype: torch.dtype, steps: int) -> list[Tensor]:
    """Weights after so many steps in `dtype`, from `start` and on data that are of half precision."""
    module = net().to(dtype)
    module.load_state_dict(start)
    optimizer = case.twin(module.parameters(), lr=RATE, foreach=False, **case.options)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(module(data(half).inputs[:30].to(dtype)), data(half).targets[:30]).backward()
        optimizer.step()
    return [p.detach().double() for p in module.parameters()]


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", HALVES)
def test_training_is_that_of_torch_optim_to_rounding(dtype, name, lift):
    """It differs from `torch.optim` in that type by no more than that does from float32, and is as near to float32."""
    case, task = CASES[name], task_in(dtype)
    parts = assemble(
        task,
        rule=case.rule,
        space=space_of(case),
        engine=hypergrad.no_gradient(),
        seeds=[0, 1],
        execution=Execution(lift, 2),
    )
    whole = population.join(after(parts, Plan(4)), 2, lift)
    for seed in (0, 1):
        ours = [value[seed].double() for value in whole.z.params.values()]
        half, single = (by_torch(case, task.init(seed)[0], dtype, kind, 40) for kind in (dtype, torch.float32))
        slack = 2.0 * torch.finfo(dtype).eps
        rounding, ours_from_half, ours_from_single, moved = (
            max((a - b).abs().max().item() for a, b in zip(left, right))
            for left, right in (
                (half, single),
                (ours, half),
                (ours, single),
                (single, [w.double() for w in task.init(seed)[0].values()]),
            )
        )
        assert ours_from_half <= 2.0 * rounding + slack
        assert ours_from_single <= rounding + slack
        assert moved > 5.0 * max(ours_from_half, ours_from_single)
    assert all(value.dtype == dtype for value in whole.z.params.values())


def test_counts_of_steps_go_beyond_256_and_betas_are_not_rounded_to_1():
    case = CASES["adam"]
    parts = assemble(task_in(torch.bfloat16), rule=case.rule, space=space_of(case), engine=hypergrad.no_gradient())
    (member,) = after(parts, Plan(30))
    assert member.z.state["step"].item() == 300
    summary = run(parts, Plan(300, 1))
    assert summary["best_validation"]["update"].item() in range(1, 301)
    assert summary["best_validation"]["update"].dtype == torch.float32
    hyper = parts.hyper(member)
    assert {name: value.dtype for name, value in hyper.items()} == dict.fromkeys(hyper, torch.float32)
    assert hyper["beta2"].item() == pytest.approx(0.999, rel=1e-6)
    assert {k: v.dtype for k, v in member.z.state["mean"].items()} == dict.fromkeys(member.z.params, torch.bfloat16)


ENGINES = {
    "neumann": hypergrad.neumann(3),
    "neumann, carried": hypergrad.neumann(3, carry_state=True),
    "unroll": hypergrad.unroll(3),
    "forward": hypergrad.forward(3),
}
REVERSE = [name for name in ENGINES if name != "forward"]  # which takes long for many hyperparameters
TUNED = Space(
    {
        "lr": Hyper(0.05, LOG10, tune=("global",)),
        "weight_decay": Hyper(0.05, LOG10, tune=("global",)),
        "momentum": Hyper(0.7, LOGIT, tune=("global",)),
    }
)


def tuned_at(tune: tuple[str, ...]) -> Space:
    return Space({name: Hyper(h.init, h.transform, tune=tune) for name, h in TUNED.hypers.items()})


def first_hypergradient(task: Task, engine, space: Space, lift: population.Lift, rule=None) -> dict[str, Tensor]:
    parts = assemble(task, rule=rule or rules.sgd(), space=space, engine=engine, execution=Execution(lift, 1))
    chunk = population.split(parts.start(), parts.members, parts.lift)[0]
    record = hyper_update(parts, Plan(1, 5), 0, chunk, parts.members[0])[1]
    return {key: value.reshape(value.shape[int(lift == "vmap") :]) for key, value in record.hypergradient.items()}


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize(
    ("engine", "granularity"),
    [("forward", "global"), *((engine, tuned) for engine in REVERSE for tuned in ("global", "sum of all"))],
)
@pytest.mark.parametrize("dtype", HALVES)
def test_hypergradients_are_those_of_float32_to_the_rounding_of_the_model(dtype, engine, granularity, lift):
    """The oracle starts from the same weights and data, rounded to half precision, and goes on in float32."""
    task = task_in(dtype)
    rounded = data(dtype)
    exact = supervised(Dataset(rounded.inputs.float(), rounded.targets, rounded.splits), net, "cross_entropy", None)
    exact = replace(exact, init=lambda seed: trees.cast(task.init(seed), torch.float32))
    space = tuned_at(GRANULARITIES[granularity])
    found, expected = (first_hypergradient(t, ENGINES[engine], space, lift) for t in (task, exact))
    assert {value.dtype for value in found.values()} == {torch.float32}
    error = trees.norm({k: found[k] - expected[k] for k in expected}) / trees.norm(expected)
    assert error < 16.0 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_learned_moves(dtype):
    """A step of the meta-optimizer is 0.05 in the logarithm of the rate, which bfloat16 does not resolve at 3."""
    parts = assemble(
        task_in(dtype), rule=rules.sgd(), space=TUNED, engine=hypergrad.neumann(3), execution=Execution("vmap", 1)
    )
    before, afterwards = (after(parts, Plan(1), updates)[0] for updates in (0, 1))
    for key, value in before.raw.items():
        assert value.dtype == afterwards.raw[key].dtype == torch.float32
        assert (afterwards.raw[key] - value).abs().item() == pytest.approx(0.05, rel=1e-3), key
    assert {leaf.dtype for leaf in trees.leaves(afterwards.meta_state)} == {torch.float32}
    assert {leaf.dtype for leaf in trees.leaves(afterwards.meta_hyper)} == {torch.float32}


def mixed(types: dict[str, torch.dtype]) -> Task:
    """Regression by a network whose tensors have these types."""
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    targets = inputs.sum(1).sin()

    def init(seed):
        generator = torch.Generator().manual_seed(seed)
        shapes = {"w": (8, 3), "b": (8,), "v": (8,), "scale": ()}
        return {k: torch.randn(s, generator=generator).to(types[k]) for k, s in shapes.items()}, {}

    def loss(params, buffers, batch):
        hidden = torch.tanh(inputs.to(types["w"]) @ params["w"].T + params["b"].to(types["w"]))
        outputs = params["scale"].to(types["v"]) * (hidden.to(types["v"]) @ params["v"])
        return F.mse_loss(outputs.float(), targets.float()), (buffers, {})

    return Task(
        init=init,
        loss=loss,
        evaluate=lambda params, buffers, split: {"loss": loss(params, buffers, None)[0].detach()},
        batches=lambda split, seeds, start, steps: Batch(
            None, torch.zeros(steps, len(seeds), dtype=torch.int64), split
        ),
        thin=lambda batch, fraction: batch,
    )


MIXED = {
    "one bfloat16 layer": {"w": torch.float32, "b": torch.float32, "v": torch.bfloat16, "scale": torch.float32},
    "a bfloat16 number": {"w": torch.float32, "b": torch.float32, "v": torch.float32, "scale": torch.bfloat16},
    "bfloat16 first": {"w": torch.bfloat16, "b": torch.float32, "v": torch.float16, "scale": torch.float16},
    "one float64 layer": {"w": torch.float32, "b": torch.float64, "v": torch.float64, "scale": torch.float32},
}


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("types", MIXED)
def test_tensors_of_several_types_are_trained_as_by_torch_optim_and_keep_them(types, name, lift):
    case, task = CASES[name], mixed(MIXED[types])
    parts = assemble(
        task,
        rule=case.rule,
        space=space_of(case),
        engine=hypergrad.no_gradient(),
        seeds=[0, 1],
        execution=Execution(lift, 2),
    )
    whole = population.join(after(parts, Plan(2)), 2, lift)
    for seed in (0, 1):
        params = trees.variables(task.init(seed)[0])
        optimizer = case.twin(params.values(), lr=RATE, foreach=False, **case.options)
        for _ in range(20):
            optimizer.zero_grad()
            task.loss(params, {}, Batch(None, torch.tensor(0), "train"))[0].backward()
            optimizer.step()
        for key, value in params.items():
            ours = whole.z.params[key][seed]
            assert ours.dtype == value.dtype == MIXED[types][key]
            coarsest = max(torch.finfo(dtype).eps for dtype in MIXED[types].values())
            torch.testing.assert_close(ours, value.detach(), rtol=0.0, atol=20.0 * coarsest)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("types", MIXED)
def test_hypergradients_of_tensors_of_several_types(types, engine):
    task, wide = mixed(MIXED[types]), mixed(dict.fromkeys(("w", "b", "v", "scale"), torch.float64))
    wide = replace(wide, init=lambda seed: trees.cast(task.init(seed), torch.float64))
    space = tuned_at(("global",) if engine == "forward" else ("global", "tensor", "element"))
    found, expected = (first_hypergradient(t, ENGINES[engine], space, "loop") for t in (task, wide))
    error = trees.norm({k: found[k].double() - expected[k] for k in expected}) / trees.norm(expected)
    assert error < 16.0 * max(torch.finfo(dtype).eps for dtype in MIXED[types].values())


@pytest.mark.parametrize("value", [1.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("lift", LIFTS)
def test_a_model_whose_weights_add_up_to_more_than_float16_holds_has_not_diverged(lift, value):
    """70,000 weights of 1; one that is not finite is found."""

    def init(seed):
        w = torch.ones(70_000, dtype=torch.float16)
        return {"w": w.index_fill(0, torch.tensor(5), value), "v": torch.ones(3)}, {}

    task = mixed(MIXED["one float64 layer"])
    task = replace(task, init=init, loss=lambda w, buffers, batch: (w["v"].square().sum(), (buffers, {})))
    parts = assemble(
        task,
        rule=rules.sgd(),
        space=space_of(CASES["sgd"]),
        engine=hypergrad.no_gradient(),
        execution=Execution(lift, 1),
    )
    (member,) = after(parts, Plan(1))
    assert (member.diverged_at >= 0).item() == (not math.isfinite(value))


@pytest.mark.parametrize("axes", [0, 1])
@pytest.mark.parametrize("dtype", HALVES)
def test_sums_are_those_of_float64(dtype, axes):
    tree = {"a": 30.0 * torch.rand(3, 5000).to(dtype), "b": [torch.rand(3).to(dtype)], "c": torch.arange(3)}
    numbers = {"a": tree["a"].double(), "b": [tree["b"][0].double()]}
    assert_close(trees.total(tree, axes).double(), trees.total(numbers, axes), 1e-5)
    assert_close(trees.norm(numbers, axes), trees.norm({k: tree[k] for k in "ab"}, axes).double(), 1e-5)
    products = trees.inner({k: tree[k] for k in "ab"}, {k: tree[k] for k in "ab"}, axes)
    assert products.dtype == torch.float32
    assert_close(products.double(), trees.inner(numbers, numbers, axes), 1e-5)


def test_a_complex_weight_that_is_not_finite_is_found():
    assert trees.total({"a": torch.tensor([1.0 + 2.0j])}).item() == 3.0
    assert trees.total({"a": torch.tensor([complex(0.0, math.nan)])}).isnan().item()


def complex_task(dtype: torch.dtype = torch.complex128) -> Task:
    """Regression by a module with a complex weight."""
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    targets = inputs.sum(1).sin()

    def init(seed):
        generator = torch.Generator().manual_seed(seed)
        return {
            "w": torch.randn(3, 4, generator=generator, dtype=torch.complex128).to(dtype),
            "v": torch.randn(4, generator=generator, dtype=torch.float64),
        }, {}

    def loss(params, buffers, batch):
        return F.mse_loss((inputs.to(dtype) @ params["w"]).abs().double() @ params["v"], targets), (buffers, {})

    return replace(mixed(MIXED["one float64 layer"]), init=init, loss=loss)


def in_pairs() -> Task:
    """The same with a real weight of both parts."""
    task = complex_task()

    def init(seed):
        params, buffers = task.init(seed)
        return {**params, "w": torch.view_as_real(params["w"])}, buffers

    def loss(params, buffers, batch):
        return task.loss({**params, "w": torch.view_as_complex(params["w"])}, buffers, batch)

    return replace(task, init=init, loss=loss)


@pytest.mark.parametrize("name", CASES)
def test_complex_weights_are_trained_as_by_torch_optim(name):
    case, task = CASES[name], complex_task()
    parts = assemble(task, rule=case.rule, space=space_of(case), engine=hypergrad.no_gradient())
    (member,) = after(parts, Plan(1))
    params = trees.variables(task.init(0)[0])
    optimizer = case.twin(params.values(), lr=RATE, foreach=False, **case.options)
    for _ in range(10):
        optimizer.zero_grad()
        task.loss(params, {}, Batch(None, torch.tensor(0), "train"))[0].backward()
        optimizer.step()
    torch.testing.assert_close(member.z.params, trees.detach(params), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
def test_hypergradients_of_complex_weights_are_those_of_their_parts(engine):
    space = tuned_at(("global", "tensor"))
    found, expected = (first_hypergradient(t, ENGINES[engine], space, "loop") for t in (complex_task(), in_pairs()))
    assert_close(found, expected, 1e-9)


def test_values_by_element_of_complex_weights_are_refused():
    with pytest.raises(ValueError, match="lr is tuned by element, but the parameter w is complex; tune it by tensor"):
        tuned_at(("element",)).init(complex_task().init(0)[0])
