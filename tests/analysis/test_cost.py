"""What a hyper-update costs, by hand and against the evaluations of the loss that the engines really make."""

import dataclasses

import pytest

from hyperopt_id import trees
from hyperopt_id.analysis.cost import gradients_per_update
from hyperopt_id.build import names
from hyperopt_id.build.tasks import build_task
from hyperopt_id.config import from_dict, to_dict
from hyperopt_id.experiment import hyper_update

SHORT = {"steps_per_update": 10, "updates": 1, "compile": "off"}
TUNE = {"lr": {"tune": ["global"]}, "momentum": {"tune": ["global"]}}
ENGINES = {  # settings, gradients by hand: 10 steps, the objective's one, and the engine's own
    "none": ({"engine": "none"}, 10),
    "neumann": ({"engine": "neumann", "terms": 5}, 10 + 1 + 4 * 2),
    "neumann, 1 term": ({"engine": "neumann", "terms": 1}, 10 + 1),
    "differences": (
        {"engine": "neumann", "terms": 5, "curvature": {"name": "finite_difference"}},
        10 + 1 + 4,
    ),
    "two-sided differences on a quarter": (
        {"engine": "neumann", "terms": 5, "curvature": {"name": "finite_difference", "sides": 2, "sub_batch": 0.25}},
        10 + 1 + 4 * 2 / 4,
    ),
    "one_step": ({"engine": "one_step"}, 10 + 1),
    "unroll": ({"engine": "unroll", "window": 5}, 10 + 1 + 5 + 4 * 2),
    "unroll, whole": ({"engine": "unroll"}, 10 + 1 + 10 + 9 * 2),
    "forward": ({"engine": "forward", "window": 3}, 10 + 1 + 3 * 2 * 2),
}


def config(settings):
    space = {} if settings["engine"] == "none" else TUNE
    return from_dict({"task": {"name": "toy_ridge"}, "inner": SHORT, "space": space, "hypergradient": settings})


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_by_hand(engine):
    settings, gradients = ENGINES[engine]
    assert gradients_per_update(to_dict(config(settings))) == gradients


@pytest.mark.parametrize("engine", [name for name in ENGINES if "quarter" not in name])
def test_the_loss_is_evaluated_once_for_every_gradient_that_is_no_exact_product(engine, monkeypatch):
    settings, gradients = ENGINES[engine]
    calls = []

    def counted(config, device):
        task = build_task(config, device)

        def loss(params, buffers, batch):
            calls.append(batch)
            return task.loss(params, buffers, batch)

        return dataclasses.replace(task, loss=loss)

    monkeypatch.setattr(names, "build_task", counted)
    parts, plan = names.from_config(config(settings))
    calls.clear()  # those that chose the curvature
    hyper_update(parts, plan, 0, trees.take(parts.start(), 0), [0])
    exact = settings.get("curvature", {}).get("name") != "finite_difference"
    products = {"neumann": settings.get("terms", 1) - 1, "unroll": settings.get("window", 10) - 1, "forward": 3 * 2}
    assert len(calls) == gradients - 2 * exact * products.get(settings["engine"], 0)
