"""Compiled training steps of a module are those of the live module, or they are not compiled, and a line says why."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from live_modules import FAITHFUL
from live_steps import RATE, STEPS, assert_alike, batch_at, data_for, live_module, live_step, tied
from torch import Tensor, nn

from hyperopt_id import compilation, compilation_program, trees
from hyperopt_id.compilation_graph import Graph, Untraceable, read, trace
from hyperopt_id.derivatives import gradient
from hyperopt_id.tasks.task import Batch, Tensors, supervised

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning"),
]
EAGER_ONLY = [
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
]
NO_INTERFACE = "one of its operations has no C interface"
WITHOUT_A_PROGRAM = {  # what the compiler says
    "complex": "torch's compiler ended in AssertionError, without a reason",
    "orthogonal": NO_INTERFACE,
    "orthogonal, square": NO_INTERFACE,
    "spectrum": NO_INTERFACE,
    "weight norm": NO_INTERFACE,
}
UNTRACEABLE = ["experts", "queue"]  # their course depends on numbers
COMPILED = [name for name in FAITHFUL if name not in {*EAGER_ONLY, *UNTRACEABLE, *WITHOUT_A_PROGRAM}]
ROUNDING = {"other type": 1e-5}  # it computes in float32
GROUPS = 3  # of modules that are compiled together, which takes less time than one by one
Step = Callable[[Tensors, Tensors, Batch], tuple[Tensors, Tensor, Tensors]]


def step_of(factory: Callable[[], nn.Module]) -> tuple[Step, list[tuple[Tensors, Tensors]]]:
    """(gradient, loss, buffers) of a training step, and the beginnings of seeds 0 and 1."""
    task = supervised(data_for(factory), factory, "mse", 6)

    def step(params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensors, Tensor, Tensors]:
        here = gradient(lambda w: task.loss(w, buffers, batch), trees.variables(params))
        return here.value, here.loss, here.auxiliary[0]

    return step, [task.init(seed) for seed in (0, 1)]


def compiled(graph: Graph) -> Callable[[list[Tensor]], Any]:
    program = compilation_program.program(graph, 1)
    reasons = compilation_program.compile_now([program], 1)
    assert not reasons, reasons
    return compilation_program.load(program, 1)


@pytest.mark.parametrize("name", EAGER_ONLY)
def test_what_is_not_compiled_says_why_in_one_line(name: str):
    task = supervised(data_for(FAITHFUL[name]), FAITHFUL[name], "mse", 6)
    assert "\n" not in task.limits["compile"]


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_has_no_graph_says_why(name: str):
    step, starts = step_of(FAITHFUL[name])
    with pytest.raises(Untraceable):
        trace(step, [*starts[0], batch_at(0)])


@pytest.mark.parametrize("group", range(GROUPS))
def test_compiled_steps_train_as_the_modules_themselves(group: int):
    """The library that the compiler makes of the steps of several modules at once, for two seeds in turn."""
    obstacle = compilation.obstacle(torch.device("cpu"))
    if obstacle:
        pytest.skip(f"needs a compiler: {obstacle}")
    names = COMPILED[group::GROUPS]
    steps, starts = zip(*(step_of(FAITHFUL[name]) for name in names), strict=True)

    def all_steps(*arguments: tuple[Tensors, Tensors, Batch]) -> list[tuple[Tensors, Tensor, Tensors]]:
        return [step(*given) for step, given in zip(steps, arguments, strict=True)]

    at = [[(*start[seed], batch_at(0)) for start in starts] for seed in (0, 1)]
    run = compiled(trace(all_steps, at[0]))
    for seed in (0, 1):
        modules = [live_module(FAITHFUL[name], seed) for name in names]
        for step in range(STEPS):
            found = run(trees.leaves(at[seed]))
            for place, (module, (slopes, loss, buffers)) in enumerate(zip(modules, found, strict=True)):
                params, _, batch = at[seed][place]
                expected, live_slopes = live_step(module, data_for(FAITHFUL[names[place]]), batch)
                moved = {name: value - RATE * slopes[name] for name, value in params.items()}
                alike = partial(assert_alike, rtol=ROUNDING.get(names[place], 1e-10))
                alike({names[place]: expected, **live_slopes}, {names[place]: loss, **slopes})
                alike(dict(module.state_dict()), {**moved, **buffers, **tied(module, moved)})
                at[seed][place] = (moved, buffers, batch_at(step + 1))


@pytest.mark.parametrize("name", WITHOUT_A_PROGRAM)
def test_what_the_compiler_cannot_do_runs_eagerly(name: str):
    step, starts = step_of(FAITHFUL[name])
    program = compilation_program.program(trace(step, [*starts[0], batch_at(0)]), 1)
    assert WITHOUT_A_PROGRAM[name] in compilation_program.compile_now([program], 1)[program.path]


@pytest.mark.parametrize("name", ["mlp", "keeps activations", "checkpointed"])
def test_a_module_can_be_traced_while_an_earlier_trace_is_kept(name: str):
    """Another instance of the module is made in the middle of a trace, or one is taken that holds tensors of it."""
    step, starts = step_of(FAITHFUL[name])

    def two_steps(params: Tensors, buffers: Tensors, batch: Batch) -> list[object]:
        first = step(params, buffers, batch)
        return [first, step(first[0], first[2], batch)]

    graphs = [trace(two_steps, [*starts[0], batch_at(0)]) for _ in range(2)]
    assert graphs[0].text == graphs[1].text
    module, _ = read(graphs[1].text)
    given = [*starts[1], batch_at(1)]
    found = trees.like(two_steps(*given), module(*trees.leaves(given), *graphs[1].constants))
    torch.testing.assert_close(trees.leaves(found), trees.leaves(two_steps(*given)), rtol=0, atol=0)
