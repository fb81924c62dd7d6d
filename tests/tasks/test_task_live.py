"""The law of the functional view: loss, gradient, buffers and training of a task are those of the live module."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from live_modules import FAITHFUL
from live_steps import RATE, STEPS, assert_alike, batch_at, data_for, live_module, live_step, tied
from torch import nn

from hyperopt_id import population, trees
from hyperopt_id.build.vectorized import check_vectorized, obstacle
from hyperopt_id.derivatives import gradient
from hyperopt_id.tasks.data import Dataset
from hyperopt_id.tasks.task import Task, supervised

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # torch's layers under vmap
    pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning"),
]
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


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FAITHFUL)
def test_a_task_trains_as_the_module_itself(name: str, seed: int):
    factory = FAITHFUL[name]
    data = data_for(factory)
    check_loop(supervised(data, factory, "mse", 6), factory, data, seed)
