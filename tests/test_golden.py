"""Agreement with recordings of the published implementation: every hypergradient, raw value, weight and loss."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hyperopt_id import curvature, hypergrad, population, rules
from hyperopt_id.dynamics import TrainState, make_dynamics
from hyperopt_id.space import LOG10, LOGIT, Hyper, Space

GOLDEN = json.loads((Path(__file__).parent / "golden" / "ift_reference.json").read_text())
NAMES = ("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias")
DATA = GOLDEN["data"]
N_TRAIN, N_VALIDATION = DATA["n_train"], DATA["n_validation"]
INPUTS, TARGETS = (torch.tensor(DATA[k], dtype=torch.float64) for k in ("X", "Y"))


def loss(params, buffers, batch):
    start, stop = batch
    x = torch.tanh(F.linear(INPUTS[start:stop], params[NAMES[0]], params[NAMES[1]]))
    prediction = F.linear(x, params[NAMES[2]], params[NAMES[3]])
    return F.mse_loss(prediction, TARGETS[start:stop].reshape(prediction.shape)), (buffers, {})


def space_of(config):
    tuned, elementwise = config["optimised_hyperparameters"], config["high_dimensional_hyperparameters"]
    initial = config["config_dicts"]["network_weight"]
    transforms = {"lr": LOG10, "weight_decay": LOG10, "momentum": LOGIT}
    hypers = {}
    for name, transform in transforms.items():
        raw = initial[name]
        natural = 10.0**raw if transform is LOG10 else 1.0 / (1.0 + math.exp(-raw))
        bounds = (1e-10, 1.0) if name in config["hyperparameter_clipping"] else None
        tune = () if name not in tuned else ("element",) if name in elementwise else ("global",)
        hypers[name] = Hyper(natural, transform, bounds, tune=tune)
    return Space(hypers)


def engine_of(name, config):
    if not config["optimised_hyperparameters"]:
        return hypergrad.no_gradient()
    return hypergrad.unroll(5) if name == "DiffThroughOpt" else hypergrad.neumann(terms_of(name))


def terms_of(name):
    return int(name[-1]) if "_terms" in name else 5


def raw_values(space, raw, name):
    """The total raw value of one hyperparameter as the recording writes it."""
    common = raw[f"{name}/global"]
    if "element" in space.hypers[name].tune:
        return [(common + raw[f"{name}/element/{k}"]) for k in NAMES]
    return [common]


def gradients(space, hypergradient, name):
    if "element" in space.hypers[name].tune:
        return [hypergradient[f"{name}/element/{k}"] for k in NAMES]
    return [hypergradient[f"{name}/global"]]


def assert_recorded(ours, recorded):
    recorded = torch.tensor(recorded, dtype=torch.float64)
    torch.testing.assert_close(ours.reshape(recorded.shape), recorded, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", GOLDEN["cases"])
@pytest.mark.parametrize("how", ["loop", "vmap"])
def test_published_recordings(name, how):
    case = GOLDEN["cases"][name]
    config = case["config"]
    space = space_of(config)
    rule = rules.sgd()
    if config["network_weight_grad_clipping"]:
        rule = rules.clipped(rule, config["network_weight_grad_clipping"]["norm"])
    meta = rules.adam()
    params = {k: torch.tensor(w, dtype=torch.float64) for k, w in zip(NAMES, case["initial_weights"], strict=True)}
    raw = space.init(params)
    tuned = space.tuned(raw)
    meta_hyper = {"lr": 0.05, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    one = population.Run(
        TrainState(params, {}, rule.init(params)),
        raw,
        meta.init(tuned) if tuned else {},
        {k: torch.tensor(v, dtype=torch.float64) for k, v in meta_hyper.items()},
        torch.tensor(-1),
        torch.tensor(0),
    )
    lifted = lambda function: population.lift(function, how)  # noqa: E731
    run = one if how == "loop" else population.trees.stack([one, one])
    dynamics = make_dynamics(
        lifted(loss), population.lift_rule(rule, how), lifted(space.constrain), space.tuned, curvature.exact
    )
    update = population.make_update(
        dynamics,
        engine_of(name, config),
        lambda w, b, raw, batch: lifted(loss)(w, b, batch)[0],
        population.lift_rule(meta, how),
        space.project,
        run_axes=int(how == "vmap"),
    )
    stop = N_TRAIN if tuned else N_TRAIN + N_VALIDATION
    member = (lambda tree: tree) if how == "loop" else (lambda tree: population.trees.take(tree, 1))
    for k in range(config["hyperparameter_steps"]):
        run, record = update(run, [(0, stop)] * 10, (N_TRAIN, N_TRAIN + N_VALIDATION), 10 * k)
        order = case["optimised_order"]
        found = [x for hyper in order for x in gradients(space, member(record.hypergradient), hyper)]
        moved = [x for hyper in order for x in raw_values(space, member(run.raw), hyper)]
        for ours, theirs in ((found, case["hypergradients"]), (moved, case["raw_after"])):
            for mine, recorded in zip(ours, theirs[k] if order else [], strict=True):
                assert_recorded(mine, recorded)
    final = member(run.z.params)
    for key, weight in zip(NAMES, case["final_weights"], strict=True):
        assert_recorded(final[key], weight)
    n = N_TRAIN + N_VALIDATION
    assert_recorded(loss(final, {}, (n, n + DATA["n_test"]))[0], case["final_test_loss"])
    if tuned:
        assert_recorded(loss(final, {}, (N_TRAIN, n))[0], case["final_validation_loss"])
