"""The law of the functional view: loss, gradient, buffers and training of a task are those of the live module."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from live_modules import FAITHFUL, Tokens
from torch import Tensor, nn

from hyperopt_id import population, trees
from hyperopt_id.build.vectorized import check_vectorized, obstacle
from hyperopt_id.compilation_graph import Untraceable, read, trace
from hyperopt_id.derivatives import gradient
from hyperopt_id.tasks.data import Dataset
from hyperopt_id.tasks.dropout import begin_pass, dropouts_of
from hyperopt_id.tasks.substitutes import substituted
from hyperopt_id.tasks.task import Batch, Task, Tensors, supervised

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # torch's layers under vmap
    pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning"),
]
SPLITS = {"train": (0, 20), "validation": (20, 25), "test": (25, 30)}
STEPS, RATE = 3, 0.1
EAGER_ONLY = {
    "tied in a list",
    "closure",
    "closure of a tensor",
    "in a dataclass",
    "buffer in a list",
    "layers in a plain list",
    "frozen rows",
    "masked by a hook",
    "batch norm, cumulative",
    "permuted",
    "scripted",
    "data parallel",
    "old weight norm",
    "old spectral norm",
    "pruned",
}
UNTRACEABLE = {  # torch's fused kernels, and Python that depends on numbers
    "attention",
    "decoder",
    "decoder, checkpointed",
    "experts",
    "queue",
}
LOOP_ONLY = {
    "checkpointed",
    "checkpointed dropout",
    "reads in backward",
    "tied in a list",
    "closure of a tensor",
    "in a dataclass",
    "buffer in a list",
    "frozen rows",
    "masked by a hook",
    "batch norm, cumulative",
    "decoder, checkpointed",
    "checkpoints, nested",
    "checkpointed pieces",
    "queue",
    "experts",
    "backward hooks",
    "physics",
    "own function",
    "lstm",
    "gru",
    "spectral norm",
    "old spectral norm",
}


def data_for(factory: Callable[[], nn.Module]) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    tokens = isinstance(factory(), Tokens)
    inputs = torch.randint(7, (30, 3), generator=generator) if tokens else torch.randn(30, 4, generator=generator)
    return Dataset(inputs, torch.randn(30, generator=generator), SPLITS)


def batch_at(step: int) -> Batch:
    return Batch((torch.arange(6) + 5 * step) % 20, torch.tensor(1000 + step), "train")


def live_module(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module itself, its dropout drawing from the batch's seed."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    module = substituted(factory())
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # noqa: NPY002
    return module.train()


def live_step(module: nn.Module, data: Dataset, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradient of a training step, which it takes."""
    begin_pass(dropouts_of(module), batch.seed)
    module.zero_grad()
    outputs = module(data.inputs[batch.index])
    loss = F.mse_loss(outputs.reshape(-1), data.targets[batch.index])
    loss.backward()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    slopes = {name: torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for name, p in trained.items()}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter -= RATE * slopes[name]
    return loss.detach(), slopes


def assert_alike(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, value in first.items():
        torch.testing.assert_close(value, second[name].detach(), rtol=1e-10, atol=1e-12, check_dtype=False)


def check_loop(task: Task, factory: Callable[[], nn.Module], data: Dataset, seed: int) -> None:
    module = live_module(factory, seed)
    params, buffers = task.init(seed)
    assert_alike(params, dict(module.named_parameters()))
    for step in range(STEPS):
        batch = batch_at(step)
        expected, slopes = live_step(module, data, batch)
        here = gradient(lambda w, b=buffers, batch=batch: task.loss(w, b, batch), trees.variables(params))
        torch.testing.assert_close(here.loss, expected, rtol=1e-10, atol=1e-12)
        assert_alike(slopes, here.value)
        buffers = here.auxiliary[0]
        params = {name: value - RATE * here.value[name] for name, value in params.items()}
        assert_alike(dict(module.state_dict()), {**params, **buffers, **tied(module, params)})
    module.eval()
    outputs = module(data.inputs[25:]).detach()
    torch.testing.assert_close(
        task.evaluate(params, buffers, "test")["loss"], F.mse_loss(outputs.reshape(-1), data.targets[25:])
    )


def tied(module: nn.Module, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values by the further names of what is shared."""
    first = {id(value): name for name, value in [*module.named_parameters(), *module.named_buffers()]}
    names = module.named_parameters(remove_duplicate=False)
    return {name: params[first[id(value)]] for name, value in names if first[id(value)] in params}


def check_vectorized_runs(task: Task, factory: Callable[[], nn.Module], data: Dataset) -> None:
    modules = [live_module(factory, seed) for seed in (0, 1)]
    params, buffers = trees.stack([task.init(seed) for seed in (0, 1)])
    lifted = population.lift(task.loss, "vmap")
    for step in range(STEPS):
        batch = batch_at(step)
        expected = [live_step(module, data, batch) for module in modules]
        both = trees.stack([batch, batch])
        here = gradient(lambda w, b=buffers, both=both: lifted(w, b, both), trees.variables(params))
        buffers = here.auxiliary[0]
        params = {name: value - RATE * here.value[name] for name, value in params.items()}
        for run, (module, (loss, slopes)) in enumerate(zip(modules, expected, strict=True)):
            torch.testing.assert_close(here.loss[run], loss, rtol=1e-9, atol=1e-11)
            assert_alike(slopes, trees.take(here.value, run))
            mine = trees.take({**params, **buffers}, run)
            assert_alike(dict(module.state_dict()), {**mine, **tied(module, mine)})


@pytest.mark.parametrize("name", FAITHFUL)
def test_runs_at_once_train_as_the_modules_themselves_or_are_refused(name: str):
    factory = FAITHFUL[name]
    data = data_for(factory)
    task = supervised(data, factory, "mse", 6)
    why = obstacle(task, batch_at(0), 0)
    assert (why is not None) == (name in LOOP_ONLY), why
    if why is None:
        check_vectorized_runs(task, factory, data)
    else:
        with pytest.raises(ValueError, match=r'lift="vmap" cannot .*take lift="loop"') as caught:
            check_vectorized(task, batch_at(0), 0)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FAITHFUL)
def test_the_program_of_a_step_is_the_step_of_the_module_or_there_is_none(name: str):
    """What is compiled is the graph of a step, recorded at one point; here torch executes it, at another one."""
    factory = FAITHFUL[name]
    data = data_for(factory)
    task = supervised(data, factory, "mse", 6)
    assert ("compile" in task.limits) == (name in EAGER_ONLY), task.limits
    if name in EAGER_ONLY:
        assert "\n" not in task.limits["compile"]
        return

    def step(params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensors, Tensor, Tensors]:
        here = gradient(lambda w: task.loss(w, buffers, batch), trees.variables(params))
        return here.value, here.loss, here.auxiliary[0]

    if name in UNTRACEABLE:
        with pytest.raises(Untraceable):
            trace(step, [*task.init(0), batch_at(0)])
        return
    graph = trace(step, [*task.init(0), batch_at(0)])
    program, _ = read(graph.text)
    arguments = [*task.init(1), batch_at(1)]
    results = program(*trees.leaves(arguments), *graph.constants)
    slopes, loss, buffers = trees.like(step(*arguments), results)
    module = live_module(factory, 1)
    expected, live_slopes = live_step(module, data, batch_at(1))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-11)
    assert_alike(slopes, live_slopes)
    assert_alike(buffers, dict(module.state_dict()))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FAITHFUL)
def test_a_task_trains_as_the_module_itself(name: str, seed: int):
    factory = FAITHFUL[name]
    data = data_for(factory)
    check_loop(supervised(data, factory, "mse", 6), factory, data, seed)
