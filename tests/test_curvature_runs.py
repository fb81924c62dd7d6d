"""Laws of hypergradients of whole runs: they are derivatives of what is trained, whatever the second derivative is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from curvature_tasks import (
    PULLS,
    PUSHES,
    SPACE,
    Zeros,
    kept,
    padded,
    picked,
    plain,
    regression,
    spectral,
    stopped,
    straight_through,
    ungraphed,
    with_hook,
    with_layer,
)
from torch import Tensor, nn

import hyperopt_id as hid
from hyperopt_id import curvature, population, trees
from hyperopt_id.build.products import first_batch
from hyperopt_id.derivatives import gradient
from hyperopt_id.telemetry import Telemetry

STEP = 1e-5
IN_A_LOOP = (kept, ungraphed, with_hook, spectral)


def trained(task: hid.Task, given: Any, shift: float = 0.0, engine: Any = PULLS, lift: Any = "loop") -> Any:
    """A run after 4 steps, its record, and the batch of its objective; the learning rate times 10^shift."""
    space = hid.Space(
        dict(SPACE.hypers)
        | {"lr": hid.Hyper(0.05 * 10.0**shift, hid.LOG10, tune=("global",)), "weight_decay": hid.Hyper(0.01)}
    )
    seeds = [0, 1] if lift == "vmap" else [0]
    parts = hid.assemble(
        task,
        rule=hid.rules.sgd(),
        space=space,
        engine=engine,
        curvature=given,
        seeds=seeds,
        execution=hid.Execution(lift, len(seeds)),
    )
    run = population.split(parts.start(), parts.members, parts.lift)[0]
    target = parts.batches("validation", seeds, 0, 1)[0]
    return *parts.update(run, parts.batches("train", seeds, 0, 4), target, 0), target


def by_differences(task: hid.Task) -> float:
    """Gradient of the objective at the weights that are trained, times their derivative in log10 of the rate."""
    run, _, target = trained(task, curvature.none)
    ahead, behind = (trained(task, curvature.none, step)[0].z.params for step in (STEP, -STEP))
    v = gradient(lambda w: task.loss(w, run.z.buffers, target), trees.variables(run.z.params)).value
    return float(sum((v[k] * (ahead[k] - behind[k])).sum() for k in v)) / (2.0 * STEP)


@pytest.mark.parametrize(
    "factory",
    [kept, ungraphed, plain, straight_through, stopped, with_hook, spectral, padded],
    ids=lambda factory: factory.__name__,
)
def test_the_hypergradient_is_the_derivative_of_what_is_trained(factory: Any):
    """Of `spectral`, the statistics that go from step to step are constants."""
    task = regression(factory, torch.float64)
    expected = torch.tensor(by_differences(task), dtype=torch.float64)
    ways = [(PULLS, "loop"), (PUSHES, "loop"), (PULLS, "vmap"), (PUSHES, "vmap")]
    for engine, lift in ways[: 2 if factory in IN_A_LOOP else 4]:
        found = trained(task, None, engine=engine, lift=lift)[1].hypergradient["lr/global"].reshape(-1)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4 if factory is spectral else 1e-5, atol=0)


class ByFrequency(nn.Module):
    """Under vmap, its gradient is right, and the derivative of that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(5, 4, scale_grad_by_freq=True), nn.Linear(24, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(self.table((2.0 * inputs.abs()).long().clamp_max(4)).flatten(1).tanh())


def test_second_derivatives_that_vmap_has_wrong_are_refused_in_a_line():
    task = regression(ByFrequency)
    with pytest.raises(ValueError, match=r'lift="vmap" cannot .* the Hessian-vector product of run 0') as caught:
        trained(task, None, lift="vmap")
    assert "\n" not in str(caught.value)
    trained(task, curvature.none, lift="vmap")
    trained(task, None)


class Assigning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 1)
        self.register_buffer("size", torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.linear(inputs)
        self.size = 0.9 * self.size + 0.1 * outputs.abs().mean().detach()
        return outputs / self.size


@pytest.mark.parametrize("factory", [spectral, Assigning])
def test_rewritten_operations_leave_no_graph_in_a_module(factory: Any):
    """Or it would be made anew for each product."""
    made = []
    task = regression(lambda: made.append(1) or factory())
    batch, (params, buffers) = first_batch(task, 0), task.init(0)
    loss = lambda w: task.loss(w, buffers, batch)  # noqa: E731
    counts = []
    with torch.enable_grad():
        for _ in range(5):
            curvature.rewritten(loss, loss, params)[1](params)
            counts.append(len(made))
    assert counts[1:] == counts[1:2] * 4


@pytest.mark.parametrize("way", [curvature.rewritten, curvature.rewritten_forward])
def test_dynamo_does_not_compile_what_it_would_not_rewrite(way: Any):
    """`compilation_cuda.compiled` then runs it eagerly; without the refusal, it gives exact products."""
    task = regression(stopped, torch.float64)
    batch, (params, buffers) = first_batch(task, 0), task.init(0)

    def product(w: trees.Params) -> trees.Params:
        loss = lambda q: task.loss(q, buffers, batch)  # noqa: E731
        return way(loss, loss, w)[1](params)

    allowed = torch._dynamo.config.patch(trace_autograd_ops=True)
    with allowed, pytest.raises(Exception, match="does not rewrite operations"):
        torch.compile(product, fullgraph=True, dynamic=False, backend="eager")(params)


def test_second_derivatives_that_are_not_finite_skip_nothing():
    parts = hid.assemble(regression(Zeros), rule=hid.rules.sgd(), space=SPACE, engine=PULLS)
    assert not hid.run(parts, hid.Plan(updates=5))["skipped_updates"].any()


@pytest.mark.parametrize("factory", [kept, ungraphed])
def test_a_run_under_autocast_takes_these_products(factory: Any):
    """Its hypergradient is that of a run in float32, as far as bfloat16 gradients are."""
    found = []
    for low in (False, True):
        execution = hid.Execution(autocast=low)
        engine = hid.hypergrad.neumann(5)
        parts = hid.assemble(regression(factory), rule=hid.rules.sgd(), space=SPACE, engine=engine, execution=execution)
        run = population.split(parts.start(), parts.members, parts.lift)[0]
        batches, targets = parts.batches("train", [0], 0, 5), parts.batches("validation", [0], 0, 1)
        found.append(parts.update(run, batches, targets[0], 0)[1].hypergradient["lr/global"])
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0)


def test_a_loss_that_does_not_run_under_autocast_is_refused_in_a_line():
    def arrays(h: Tensor) -> Tensor:
        return h / float(h.detach().numpy().std())

    task = regression(lambda: with_layer(arrays))
    with pytest.raises(
        ValueError, match=r"under autocast to bfloat16 the loss has no gradient \(TypeError: .*float32"
    ) as error:
        picked(task, under_autocast=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("opened_first", [True, False])
def test_the_log_of_a_library_run_says_once_what_was_chosen(tmp_path: Path, opened_first: bool):
    def assemble() -> Any:
        return hid.assemble(regression(plain), rule=hid.rules.sgd(), space=SPACE, engine=PULLS)

    parts = None if opened_first else assemble()
    with Telemetry(tmp_path / "run", {}, total=2, progress="none") as telemetry:
        telemetry.close(hid.run(parts or assemble(), hid.Plan(updates=2), telemetry))
    assert (tmp_path / "run" / "log.txt").read_text().count("curvature: exact, off by") == 1
