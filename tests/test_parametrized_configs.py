"""Parametrizations in configs: what is possible, what a run then trains, and its replay."""

from typing import Any

import pytest
import torch
from laws import assert_close, random
from mulo_cases import random_theta
from short_runs import CONFIGS, state, train

from hyperopt_id import cli, mup, optim
from hyperopt_id.build.names import SCHEMES, build_multipliers, build_rule, from_config
from hyperopt_id.build.tasks import PARAMETRIZATIONS, build_task
from hyperopt_id.config import load
from hyperopt_id.config_task_checks import PARAMETRIZED
from hyperopt_id.experiment import run
from hyperopt_id.tasks import models

THETA = random_theta()
MUP, UMUP = ("parametrization=mup", "base_width=16"), ("parametrization=umup",)


def config(*overrides: str, data: str = "digits", algorithm: str = "Ours_LR") -> Any:
    return load([CONFIGS / f"{data}.yaml", CONFIGS / f"{algorithm}.yaml"], overrides)


def test_every_combination_that_configs_allow_has_its_parts():
    pairs = {(name, rule) for name, (_, taken) in PARAMETRIZED.items() for rule in taken}
    assert pairs == set(SCHEMES)
    assert set(PARAMETRIZED) == set(PARAMETRIZATIONS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("parametrization=muP",),
            "given 'muP' (text); allowed: standard, mup, umup; did you mean mup",
        ),
        (("parametrization=mup",), "base_width: missing; mup needs the width at which"),
        (("base_width=8",), "base_width: only parametrization = mup has it, but it is standard; set it to null"),
        ((*MUP, "inner.rule=mulo"), "base_width: given 16, but inner.rule = mulo divides the rate of a hidden matrix"),
        ((*MUP, "base_width=0"), "base_width: given 0; allowed: 1 or more"),
        (
            (*MUP, "task.model.name=resnet18"),
            "which task.model.name = resnet18 does not have; take standard, or ",
        ),
        ((*MUP, "task.model.sizes=[64, 10]"), "task.model.sizes = [64, 10] has no hidden layer; insert a width"),
        (
            ("parametrization=umup",),
            "given umup, which inner.rule = sgd does not have; take standard or mup, or one of the rules adam, adamw",
        ),
        (
            ("parametrization=umup", "inner.rule=adamw", "task.model.name=cnn"),
            "which task.model.name = cnn does not have; take standard or mup, or one of the models mlp, transformer",
        ),
    ],
)
def test_combinations_that_cannot_be(overrides, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        config(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_toys_have_no_width():
    with pytest.raises(ValueError, match=r"which task\.name = toy_ridge does not have"):
        config(*MUP, data="toy_ridge")


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
def test_a_config_s_factors_are_of_its_model_and_rule(model):
    for rule, scheme in (("sgd", mup.sgd), ("adamw", mup.adam)):
        found = config(*MUP, f"inner.rule={rule}", f"task.model.name={model}")
        task = build_task(found, torch.device("cpu"))
        shapes = {k: tuple(p.shape) for k, p in task.init(0)[0].items()}
        assert build_multipliers(found, task) == mup.multipliers(mup.tags(shapes, task.roles, 16), scheme)
        assert build_multipliers(config(), task) == {}


@pytest.mark.parametrize("name", ["mup", "umup"])
@pytest.mark.parametrize("lift", ["loop", "vmap"])
def test_runs_under_a_parametrization_learn(name, lift):
    base = ["base_width=16"] if name == "mup" else []
    short = ["inner={rule: adamw, updates: 30, compile: off}", f"population={{runs: 2, sample: false, lift: {lift}}}"]
    model = "task.model.sizes=[64, 32, 32, 10]"
    found = config(f"parametrization={name}", *base, *short, model, "space.lr.init=1e-2", "space.momentum=null")
    parts, plan = from_config(found)
    summary = run(parts, plan)
    assert (summary["final"]["loss/validation"] < 1.5).all()
    assert not summary["diverged"].any()
    assert all(rate != 1e-2 for rate in summary["hyper"]["lr"])


def test_mulo_in_a_config_takes_the_steps_of_the_optimizer():
    """Under μP of base width 1, for which its weights are trained."""
    found = config("parametrization=mup", "base_width=1", "task.model.sizes=[64, 8, 8, 10]", algorithm="MuLO")
    task = build_task(found, torch.device("cpu"))
    rule, params = build_rule(found, task), task.init(0)[0]
    model = optim.tag_parameters(models.mlp([64, 8, 8, 10]), base=1)
    model.load_state_dict(params)
    twin = optim.MuLO(model.parameters(), THETA, impl="torch", lr=0.5, weight_decay=0.1)
    natural = {"lr": torch.tensor(0.5), "weight_decay": torch.tensor(0.1), "theta": THETA}
    hyper, kept = {name: dict.fromkeys(params, value) for name, value in natural.items()}, rule.init(params)
    for step in range(3):
        slopes = {k: random(*p.shape, seed=10 * step + i).float() for i, (k, p) in enumerate(params.items())}
        params, kept = rule.update(params, slopes, kept, hyper)
        for name, parameter in model.named_parameters():
            parameter.grad = slopes[name]
        twin.step()
    assert_close(params, {name: p.detach() for name, p in model.named_parameters()}, 1e-6)


REPLAYS = [("sgd", "global", MUP), ("adam", "tensor", MUP), ("adamw", "element", MUP), ("adamw", "tensor", UMUP)]


@pytest.mark.parametrize(("rule", "granularity", "how"), REPLAYS)
def test_a_replay_repeats_a_run_under_a_parametrization(tmp_path, rule, granularity, how):
    tuned = [f"space.{name}.tune=[{granularity}]" for name in ("lr", "weight_decay")]
    options = [*how, *tuned, f"inner.rule={rule}", "hypergradient={engine: neumann, terms: 2}", "dtype=float64"]
    directory = train(tmp_path / "run", *options)
    assert cli.main(["replay", str(directory)]) == 0
    found, expected = (state(tmp_path / name)["run"]["z"]["params"] for name in ("run_replay", "run"))
    assert_close(found, expected, 1e-10)


def test_a_wider_replay_has_the_factors_of_the_wide_model(tmp_path):
    directory, found = train(tmp_path / "run", *MUP, "task.model.sizes=[64, 8, 8, 10]"), {}
    for width in (8, 32):
        place = ["-n", str(width), "-s", f"task.model.sizes=[64, {width}, {width}, 10]"]
        assert cli.main(["replay", str(directory), *place]) == 0
        found[width] = state(tmp_path / str(width))["run"]["z"]["state"]["groups"]["lr"][
            0
        ]  # a group for each parameter
    factors = []
    for width in found:
        model = models.mlp([64, width, width, 10])
        shapes = {k: tuple(p.shape) for k, p in model.named_parameters()}
        factors.append(torch.tensor(list(mup.multipliers(mup.tags(shapes, model.roles, 16), mup.sgd)["lr"].values())))
    assert len(factors[1].unique()) > 1
    torch.testing.assert_close(found[32] / found[8], (factors[1] / factors[0]).double(), rtol=1e-6, atol=0.0)
