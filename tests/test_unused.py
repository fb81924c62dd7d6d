"""Laws of parameters that a loss does not use, never or in some steps: as in `torch.optim` where `grad` is None, they
and their part of the optimizer's state stay as they are."""

from typing import Any

import pytest
import torch
from laws import assert_close, random
from test_rules import TWINS
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

import hyperopt_id as hid
from hyperopt_id import curvature, mulo, population, rules, rules_unused, trees
from hyperopt_id.dynamics import make_dynamics
from hyperopt_id.experiment import Parts
from hyperopt_id.optim.plain import plain_parts

STEPS = 12
USED = {"always": lambda t: True, "often": lambda t: t % 3 != 1, "late": lambda t: t >= 5, "never": lambda t: False}
INPUTS = random(30, 4, seed=5)
DATA = hid.Dataset(INPUTS, INPUTS.sum(1).sin(), {"train": (0, 15), "validation": (15, 22), "test": (22, 30)})


def loss(params: Any, step: int) -> Tensor:
    used = [name for name in params if USED[name](step)]
    return torch.stack([(params[name].sin() * random(3, seed=step)).sum() for name in used]).square().sum()


def natural(values: dict[str, float]) -> hid.Space:
    defaults = {"lr": 0.0, "weight_decay": 0.0, "momentum": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, **values}
    return hid.Space({name: hid.Hyper(value) for name, value in defaults.items()})


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("how", ["step", "linearize"])
def test_steps_are_those_of_torch_optim(name, how):
    rule, values, optimizer, options, clip = TWINS[name]
    rule = rules_unused.counting_apart(rule)
    params = {key: random(3, seed=i) for i, key in enumerate(USED)}
    theirs = {key: nn.Parameter(p.clone()) for key, p in params.items()}
    twin = optimizer(theirs.values(), **options)
    space = natural(values)
    space = hid.Space({key: space.hypers[key] for key in rule.hyperparameters})
    functions = (lambda w, b, step: (loss(w, step), (b, {}))), rule, space.constrain, space.tuned, curvature.exact
    dynamics = make_dynamics(*functions, optional=frozenset(USED))
    z, raw = population.TrainState(params, {}, rule.init(params)), space.init(params)
    for step in range(STEPS):
        if how == "step":
            z, _ = dynamics.step(z, space.constrain(raw, z.params), step)
        else:
            z = dynamics.linearize(z, raw, step, constant_state=True).z_next
        twin.zero_grad()
        loss(theirs, step).backward()
        if clip is not None:
            clip_grad_norm_(theirs.values(), clip)
        twin.step()
        assert_close(z.params, {key: p.detach() for key, p in theirs.items()}, 1e-12)


@pytest.mark.usefixtures("double")
def test_mulo_takes_the_steps_that_it_would_take_without_the_others():
    rule = rules_unused.counting_apart(mulo.mulo())
    theta = 0.1 * random(mulo.SIZE, seed=3)

    def trained(names: list[str]) -> Any:
        space = {"lr": torch.tensor(0.5), "weight_decay": torch.tensor(0.01), "theta": theta}
        constrain = lambda raw, params: {key: dict.fromkeys(params, value) for key, value in space.items()}  # noqa: E731
        params = {key: random(3, seed=list(USED).index(key)) for key in names}

        def own(w: Any, b: Any, step: int) -> Any:
            used = [w[key] for key in names if USED[key](step)]
            return torch.stack([(x.sin() * random(3, seed=step)).sum() for x in used]).sum(), (b, {})

        steps = [t for t in range(STEPS) if any(USED[key](t) for key in names)]
        dynamics = make_dynamics(own, rule, constrain, lambda raw: {}, curvature.exact, optional=frozenset(USED))
        z = population.TrainState(params, {}, rule.init(params))
        for step in steps:
            z, _ = dynamics.step(z, constrain({}, params), step)
        return z.params

    together = trained(list(USED))
    for key in ("always", "often", "late"):
        assert_close({key: together[key]}, trained([key]), 1e-12)
    assert torch.equal(together["never"], random(3, seed=list(USED).index("never")))


class Experts(nn.Module):
    """Rows go to the expert with the largest score, an expert without rows is not called, and one is never."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.unused = nn.Linear(4, 3), nn.Linear(2, 2)
        self.experts = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        scores = self.gate(inputs).softmax(1)
        chosen, outputs = scores.argmax(1), inputs.new_zeros(len(inputs), 1)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                outputs = outputs.index_add(0, rows, expert(inputs[rows]) * scores[rows, number, None])
        return outputs


class Turns(nn.Module):
    """One layer in even steps, the other in odd ones."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.odd = nn.Linear(4, 1), nn.Linear(4, 1)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, inputs: Tensor) -> Tensor:
        layer = self.odd if int(self.steps) % 2 else self.even
        if self.training:
            self.steps += 1
        return layer(inputs)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(4, 1), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


def trained(parts: Parts) -> list[population.Run]:
    runs = population.split(parts.start(), parts.members, parts.lift)
    for number, members in enumerate(parts.members):
        seeds = [parts.seeds[member] for member in members]
        for update in range(2):
            step = update * STEPS // 2
            batches = parts.batches("train", seeds, step, STEPS // 2)
            target = parts.batches("validation", seeds, update, 1)[0]
            runs[number], _ = parts.update(runs[number], batches, target, step)
    whole = population.join(runs, len(parts.seeds), parts.lift)
    return [trees.take(whole, run) for run in range(len(parts.seeds))]


def live(factory: Any, task: hid.Task, make: Any, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    module = factory()
    optimizer = make(module.parameters())
    rows = task.batches("train", [seed], 0, STEPS).index
    assert rows is not None
    for index in rows[:, 0]:
        optimizer.zero_grad()
        outputs = module(DATA.inputs[index])
        nn.functional.mse_loss(outputs[:, 0], DATA.targets[index]).backward()
        optimizer.step()
    return {name: p.detach() for name, p in module.named_parameters()}


OPTIMIZERS = {
    "sgd": (rules.sgd(), torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "adam": (rules.adam(), torch.optim.Adam, {"lr": 0.05, "weight_decay": 0.1}),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("factory", [Experts, Turns, Unused])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("entrance", ["loop", "vmap", "plain"])
def test_modules_are_trained_as_by_torch(factory, name, entrance):
    rule, optimizer, options = OPTIMIZERS[name]
    task = hid.supervised(DATA, factory, "mse", 4)
    if entrance == "plain":
        parts = plain_parts(task, lambda params, taken: optimizer(params.values(), **options), [0, 1], lambda state: {})
    else:
        space = natural({key: value for key, value in options.items() if isinstance(value, float)})
        space = hid.Space({key: space.hypers[key] for key in rule.hyperparameters})
        execution = hid.Execution(lift=entrance, chunk=2)  # type: ignore[arg-type]
        arguments = {"rule": rule, "space": space, "engine": hid.hypergrad.no_gradient(), "seeds": [0, 1]}
        if entrance == "vmap" and factory is not Unused:
            with pytest.raises(ValueError, match='take lift="loop"'):
                hid.assemble(task, **arguments, execution=execution)
            return
        parts = hid.assemble(task, **arguments, execution=execution)
    for seed, run in enumerate(trained(parts)):
        expected = live(factory, task, lambda params: optimizer(params, **options), seed)
        assert_close(run.z.params, expected, 1e-10)


@pytest.mark.usefixtures("double")
def test_a_branch_that_was_not_foreseen_is_refused_where_steps_are_counted_for_all():
    class Rarely(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.other = nn.Linear(4, 1), nn.Linear(4, 1)
            self.register_buffer("steps", torch.tensor(0))

        def forward(self, inputs: Tensor) -> Tensor:
            self.steps += 1
            outputs = self.layer(inputs)
            return outputs if int(self.steps) == 6 else outputs + self.other(inputs)

    task = hid.supervised(DATA, Rarely, "mse", 4)
    for rule in (rules.sgd(), rules.adam()):
        space = hid.Space({key: natural({"lr": 0.01}).hypers[key] for key in rule.hyperparameters})
        parts = hid.assemble(task, rule=rule, space=space, engine=hid.hypergrad.no_gradient())
        if "step" not in rule.init({"w": torch.ones(1)}):
            trained(parts)
            continue
        with pytest.raises(ValueError, match=r"other\.weight has no gradient in this step"):
            trained(parts)
