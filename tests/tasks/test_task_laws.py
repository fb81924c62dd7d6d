"""Laws of `Task`, as a table of models: pure losses, vmap = loop, two derivatives, compilable."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from hyperopt_id.tasks.data import Dataset, split_by_position
from hyperopt_id.tasks.models import cnn, lstm, mlp, resnet18, transformer
from hyperopt_id.tasks.penn_treebank import Streams, language_task
from hyperopt_id.tasks.task import Batch, Task, supervised

ROWS = (30, 12, 9)


def table(*shape: int, classes: int | None = 3) -> Dataset:
    """Random rows in float64; targets are classes or, with None, numbers."""
    generator = torch.Generator().manual_seed(0)
    rows = sum(ROWS)
    inputs = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    targets = torch.randn(rows, generator=generator, dtype=torch.float64)
    if classes:
        targets = torch.randint(classes, (rows,), generator=generator)
    return Dataset(inputs, targets, split_by_position(ROWS, rows, "table"), target_scale=2.0)


def classifier(factory: Callable[[], nn.Module], *shape: int) -> Callable[[str], Task]:
    return lambda device: supervised(table(*shape).to(device), factory, "cross_entropy", batch_size=6)


def regression(factory: Callable[[], nn.Module], *shape: int) -> Callable[[str], Task]:
    return lambda device: supervised(table(*shape, classes=None).to(device), factory, "mse", batch_size=6)


def language(factory: Callable[[], nn.Module]) -> Callable[[str], Task]:
    words = torch.randint(7, (200,), generator=torch.Generator().manual_seed(0))
    streams = functools.partial(Streams.create, words[:150], words[150:], 3, 5, 0.3)
    return lambda device: language_task(streams(device), factory, torch.float64)


TASKS: dict[str, Callable[[str], Task]] = {  # device -> task
    "mlp": classifier(lambda: mlp([4, 5, 3]), 4),
    "mlp, batch norm": classifier(lambda: mlp([4, 6, 5, 3], "tanh", batch_norm=True), 4),
    "mlp, dropout": classifier(lambda: mlp([4, 8, 8, 3], "gelu", dropout=0.5), 4),
    "mlp, regression": regression(lambda: mlp([4, 5, 1]), 4),
    "cnn": classifier(lambda: cnn((1, 6, 6), (3, 4), 3), 36),
    "resnet18": classifier(lambda: resnet18(3), 3, 8, 8),
    "transformer": classifier(lambda: transformer(features=4, outputs=3, length=3, embedding=8, heads=2), 12),
    "lstm": language(lambda: lstm(7, 4, 5, 2)),
    "language transformer": language(lambda: transformer(7, embedding=8, heads=2, dropout=0.1)),
}
LIGHT = [name for name in TASKS if name != "resnet18"]  # eleven million weights


def pick(batches: Batch, t: int, r: int) -> Batch:
    """Batch t of stream r."""
    index = None if batches.index is None else batches.index[t, r]
    return Batch(index, batches.seed[t, r], batches.split)


def stack(trees: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([tree[name] for tree in trees]) for name in trees[0]}


def first_batch(task: Task, seed: int = 0, split: str = "train") -> Batch:
    return pick(task.batches(split, [seed], 0, 1), 0, 0)


@pytest.mark.parametrize("name", TASKS)
def test_init_is_a_pure_function_of_the_seed(name: str):
    task = TASKS[name]("cpu")
    before = torch.get_rng_state()
    once, again, other = task.init(1), task.init(1), task.init(2)
    assert torch.equal(before, torch.get_rng_state())
    for tree, same in zip(once, again):
        assert all(torch.equal(tree[key], same[key]) for key in tree)
    assert any(not torch.equal(once[0][key], other[0][key]) for key in once[0])
    assert set(task.roles) == set(once[0])
    assert set(task.roles.values()) <= {"input", "hidden", "output", "bias", "norm", "embedding"}


@pytest.mark.parametrize("name", TASKS)
def test_loss_leaves_its_arguments_and_the_generators_alone(name: str):
    task = TASKS[name]("cpu")
    params, buffers = task.init(0)
    copies = [{key: value.clone() for key, value in tree.items()} for tree in (params, buffers)]
    state = torch.get_rng_state()
    batch = first_batch(task)
    loss, (after, _) = task.loss(params, buffers, batch)
    again, _ = task.loss(params, buffers, batch)
    assert torch.equal(loss, again)
    assert torch.equal(state, torch.get_rng_state())
    assert loss.ndim == 0
    assert set(after) == set(buffers)
    for tree, copy in zip((params, buffers), copies):
        assert all(torch.equal(tree[key], copy[key]) for key in tree)
    assert not any(value.requires_grad for value in after.values())


@pytest.mark.parametrize("name", TASKS)
def test_vmap_equals_loop(name: str):
    task = TASKS[name]("cpu")
    runs = 2
    inits = [task.init(seed) for seed in range(runs)]
    batches = task.batches("train", range(runs), 3, 1)

    def gradient(params: dict, buffers: dict, index: Tensor, seed: Tensor) -> tuple:
        return grad(task.loss, has_aux=True)(params, buffers, Batch(index, seed, "train"))

    assert batches.index is not None
    params, buffers = (stack(list(trees)) for trees in zip(*inits))
    grads, (after, _) = vmap(gradient)(params, buffers, batches.index[0], batches.seed[0])
    for run, (params, buffers) in enumerate(inits):
        one, (one_after, _) = gradient(params, buffers, batches.index[0, run], batches.seed[0, run])
        for key in one:
            torch.testing.assert_close(grads[key][run], one[key], rtol=1e-9, atol=1e-12)
        for key in one_after:
            torch.testing.assert_close(after[key][run], one_after[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TASKS)
def test_second_derivative_equals_finite_difference_of_first(name: str):
    task = TASKS[name]("cpu")
    params, buffers = task.init(0)
    batch = first_batch(task)
    generator = torch.Generator().manual_seed(1)
    direction = {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in params.items()}
    norm = torch.stack([value.square().sum() for value in direction.values()]).sum().sqrt()
    direction = {key: value / norm for key, value in direction.items()}

    def gradient(params: dict) -> dict:
        return grad(task.loss, has_aux=True)(params, buffers, batch)[0]

    def shifted(step: float) -> dict:
        return gradient({key: value + step * direction[key] for key, value in params.items()})

    def slope(params: dict) -> Tensor:
        return torch.stack([(value * direction[key]).sum() for key, value in gradient(params).items()]).sum()

    step = 1e-6
    plus, minus, product = shifted(step), shifted(-step), grad(slope)(params)
    exact = torch.cat([product[key].flatten() for key in params])
    numeric = torch.cat([(plus[key] - minus[key]).flatten() for key in params]) / (2 * step)
    assert (exact - numeric).norm() <= 1e-5 * exact.norm()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, on the first jvp
@pytest.mark.parametrize("name", LIGHT)
def test_forward_mode_equals_reverse_mode(name: str):
    task = TASKS[name]("cpu")
    params, buffers = task.init(0)
    batch = first_batch(task)
    direction = {key: torch.ones_like(value) for key, value in params.items()}
    slope = jvp(lambda p: task.loss(p, buffers, batch)[0], (params,), (direction,))[1]
    gradient = grad(lambda p: task.loss(p, buffers, batch)[0])(params)
    torch.testing.assert_close(slope, torch.stack([value.sum() for value in gradient.values()]).sum())


@pytest.mark.parametrize("name", ["mlp, batch norm", "mlp, dropout", "lstm", "language transformer"])
def test_compiled_loss_equals_eager(name: str):
    task = TASKS[name]("cpu")
    params, buffers = task.init(0)
    batch = first_batch(task)
    assert batch.index is not None

    def gradient(params: dict, buffers: dict, index: Tensor, seed: Tensor) -> tuple:
        return grad(task.loss, has_aux=True)(params, buffers, Batch(index, seed, "train"))

    compiled = torch.compile(gradient, backend="eager", fullgraph=True)  # traced whole, run by torch itself
    expected, actual = (f(params, buffers, batch.index, batch.seed) for f in (gradient, compiled))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", LIGHT)
def test_evaluate_is_finite_and_does_not_depend_on_the_mode_of_anything(name: str):
    task = TASKS[name]("cpu")
    params, buffers = task.init(0)
    once = task.evaluate(params, buffers, "validation")
    task.loss(params, buffers, first_batch(task))
    again = task.evaluate(params, buffers, "validation")
    assert once.keys() == again.keys() >= {"loss"}
    assert all(torch.equal(once[key], again[key]) for key in once)
    assert all(value.isfinite() for value in once.values())


def test_evaluate_equals_the_module_in_evaluation_mode(monkeypatch: pytest.MonkeyPatch):
    data = table(4)
    task = supervised(data, lambda: mlp([4, 6, 3], batch_norm=True, dropout=0.3), "cross_entropy", 6)
    params, buffers = task.init(0)
    _, (buffers, _) = task.loss(params, buffers, first_batch(task))
    module = mlp([4, 6, 3], batch_norm=True, dropout=0.3).double().eval()
    outputs = functional_call(module, {**params, **buffers}, (data.inputs[:42],))
    expected = {
        "loss": nn.functional.cross_entropy(outputs, data.targets[:42]),
        "accuracy": (outputs.argmax(1) == data.targets[:42]).double().mean(),
    }
    torch.testing.assert_close(task.evaluate(params, buffers, "train+validation"), expected)
    monkeypatch.setattr("hyperopt_id.tasks.task.EVALUATION_ROWS", 5)  # blocks of unequal size
    torch.testing.assert_close(task.evaluate(params, buffers, "train+validation"), expected)


def test_regression_reports_the_loss_in_the_unit_of_the_targets():
    task = TASKS["mlp, regression"]("cpu")
    metrics = task.evaluate(*task.init(0), "test")
    torch.testing.assert_close(metrics["unnormalized_loss"], 4.0 * metrics["loss"])


def test_batch_norm_buffers_equal_the_module_in_training_mode():
    data = table(4)
    task = supervised(data, lambda: mlp([4, 6, 3], batch_norm=True), "cross_entropy", 6)
    params, buffers = task.init(3)
    module = mlp([4, 6, 3], batch_norm=True).double()
    module.load_state_dict({**params, **buffers})
    for step in range(3):
        batch = pick(task.batches("train", [0], step, 1), 0, 0)
        _, (buffers, _) = task.loss(params, buffers, batch)
        module(data.inputs[batch.index])
    assert buffers["norms.0.num_batches_tracked"] == 3
    for name, value in module.named_buffers():
        torch.testing.assert_close(buffers[name], value)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LIGHT)
def test_device_equals_cpu(name: str):
    device_task = TASKS[name]("cuda")
    task = TASKS[name]("cpu")
    params, buffers = task.init(0)
    on_device = device_task.init(0)
    assert all(torch.equal(on_device[0][key].cpu(), params[key]) for key in params)
    expected, (after, _) = grad(task.loss, has_aux=True)(params, buffers, first_batch(task))
    actual, (device_after, _) = grad(device_task.loss, has_aux=True)(*on_device, first_batch(device_task))
    for mine, theirs in ((actual, expected), (device_after, after)):
        torch.testing.assert_close({key: value.cpu() for key, value in mine.items()}, theirs)
