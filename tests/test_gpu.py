"""The laws of the engines on a CUDA device: run them with `pytest -m gpu`."""

import pytest
import torch
from short_runs import ENGINES, POPULATIONS, reports, train

pytestmark = pytest.mark.gpu
DOUBLE = ["dtype=float64", "report.every=1"]


def assert_same(ours, theirs, tolerance):
    for mine, other in zip(ours, theirs, strict=True):
        for name in mine.keys() & other.keys() - {"time"}:
            flat = [torch.tensor(numbers(record[name]), dtype=torch.float64) for record in (mine, other)]
            torch.testing.assert_close(*flat, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


def numbers(value):
    if isinstance(value, dict):
        return [number for leaf in value.values() for number in numbers(leaf)]
    return [number for leaf in value for number in numbers(leaf)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_on_cuda_is_the_run_on_the_cpu(engine, population, tmp_path):
    options = [*ENGINES[engine], *POPULATIONS[population], *DOUBLE]
    cpu = train(tmp_path / "cpu", *options, "device=cpu")
    cuda = train(tmp_path / "cuda", *options, "device=cuda")
    tolerance = 1e-4 if "differences" in engine else 1e-8
    assert_same(reports(cuda), reports(cpu), tolerance)


@pytest.mark.parametrize("population", ["single", "vmap"])
@pytest.mark.parametrize("engine", ["none", "neumann", "unroll"])
def test_compiled_and_captured_is_eager(engine, population, tmp_path):
    options = [*ENGINES[engine], *POPULATIONS[population], *DOUBLE, "device=cuda"]
    eager = train(tmp_path / "eager", *options)
    compiled = train(tmp_path / "compiled", *options, "inner.compile=on")
    assert_same(reports(compiled), reports(eager), 1e-8)


def test_data_live_on_the_device():
    from short_runs import CONFIGS

    from hyperopt_id.build.names import from_config
    from hyperopt_id.config import load

    parts, _ = from_config(load([CONFIGS / "digits.yaml"], ["device=cuda", "inner.compile=off"]))
    batches = parts.batches("train", parts.seeds, 0, 2)
    assert {batch.index.device.type for batch in batches} == {"cuda"}
    assert parts.start().skipped.device.type == "cuda"
