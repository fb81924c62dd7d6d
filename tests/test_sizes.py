"""Sizes that no machine has room for are refused before any memory is taken, in one line that says what to change."""

import re
import resource

import pytest
import torch
from short_runs import CONFIGS

from hyperopt_id import memory
from hyperopt_id.build import size, tasks
from hyperopt_id.build.names import from_config
from hyperopt_id.build.tasks import build_task
from hyperopt_id.config import load

CPU = torch.device("cpu")


def digits(*overrides: str):
    files = [CONFIGS / f"{name}.yaml" for name in ("digits", "Ours_HDLR")]
    return load(files, ["inner.steps=null", "inner.updates=2", "inner.compile=off", *overrides])


TOO_LARGE = {
    "task.model.sizes=[64, 1000000000, 10]": "task.model.name = mlp with 75000000010 parameters, for population.runs",
    "task.model.sizes=[64, 1000000000000000000, 10]": "task.model.name = mlp has tensors that are too large for any",
    "task.model={name: cnn, channels: [9000000, 9000000]}": "task.model.name = cnn with",
    "task.model={name: transformer, embedding: 4000000, layers: 1000}": "task.model.name = transformer with",
    "inner.steps_per_update=1000000000": "inner.steps_per_update = 1000000000, for population.runs = 1, needs about",
}


@pytest.mark.parametrize("override", TOO_LARGE)
def test_sizes_are_bounded_before_memory_is_taken(override: str):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=re.escape(TOO_LARGE[override])) as caught:
        from_config(digits(override))
    assert "\n" not in str(caught.value)
    assert re.search("; take (a smaller model|fewer steps per update), or fewer", str(caught.value))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.parametrize("elements", [0, 1])
def test_what_is_kept_of_every_run_counts(elements: int, monkeypatch: pytest.MonkeyPatch):
    """R · P · (weights, momentum, and three for each hyperparameter by element), and the gradients of a chunk."""
    tune = f"space.lr.tune=[{'element' if elements else 'global'}]"
    config = digits("population.runs=50", "task.batch_size=all", tune)
    params, _ = build_task(config, CPU).init(0)
    needed = 4 * sum(value.numel() for value in params.values()) * (50 * (2 + 3 * elements) + 32)
    monkeypatch.setattr(memory, "total", lambda device: needed)
    build_task(config, CPU)
    monkeypatch.setattr(memory, "total", lambda device: needed - 1)
    with pytest.raises(ValueError, match=r"for population\.runs = 50, needs about .* this machine has"):
        build_task(config, CPU)


def test_asking_for_the_size_draws_nothing():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    config = digits()
    size.check_model(config, lambda: tasks.models.mlp([64, 5, 10]), CPU)
    assert torch.equal(torch.rand(3), expected)


def test_a_container_has_the_memory_of_its_limit(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "limit").write_text("1234\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(memory, "LIMITS", [str(tmp_path / name) for name in ("limit", "none", "missing")])
    assert memory.total() == 1234
    with pytest.raises(ValueError, match=r"^it needs about 2 GiB, this machine has 1\.15e-06; take less$"):
        memory.require(2 * memory.GIBIBYTE, "it", "take less")
