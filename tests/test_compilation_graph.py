"""A graph computes what the function does, for all arguments of its shapes; other functions are refused."""

import json

import pytest
import torch
from laws import assert_close, random
from torch import nn
from torch.utils import checkpoint

from hyperopt_id import LOG10, Dataset, Hyper, Plan, Space, assemble, hypergrad, population, rules, supervised, trees
from hyperopt_id.compilation import Piece
from hyperopt_id.compilation_graph import Untraceable, read, trace
from hyperopt_id.experiment import hyper_update
from hyperopt_id.tasks.models import mlp


def interpreted(graph, *arguments):
    module, _ = read(graph.text)
    return trees.like(graph.result, module(*trees.leaves(arguments), *graph.constants))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.second(checkpoint.checkpoint(lambda y: torch.tanh(self.first(y)), x, use_reentrant=False))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.first(torch.relu(self.first(x))))


MODELS = {
    "mlp": lambda: mlp((4, 5, 3), "tanh"),
    "relu": lambda: mlp((4, 5, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ELU(), nn.Linear(6, 3)),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, 3)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    "checkpoint": Checkpointed,
    "shared layer": Tied,
}
SPACE = Space({"lr": Hyper(0.05, LOG10, tune=("global",)), "weight_decay": Hyper(0.01), "momentum": Hyper(0.9)})


def task(factory, seed=1, rows=30):
    splits = {"train": (0, rows - 10), "validation": (rows - 10, rows - 5), "test": (rows - 5, rows)}
    return supervised(Dataset(random(rows, 4, seed=seed), torch.arange(rows) % 3, splits), factory, "cross_entropy", 5)


def pieces(monkeypatch, parts_task, engine, space=SPACE):
    """(piece, arguments) of every piece of a hyper-update, by the order of their first calls."""
    calls = {}

    def call(piece, *arguments):
        calls.setdefault(piece, []).append(arguments)
        return piece.function(*arguments)

    monkeypatch.setattr(Piece, "__call__", call)
    execution = population_execution()
    parts = assemble(parts_task, rule=rules.sgd(), space=space, engine=engine, execution=execution)
    chunk = population.split(parts.start(), parts.members, parts.lift)[0]
    for update in range(2):
        chunk, _ = hyper_update(parts, Plan(updates=2, steps_per_update=3), update, chunk, parts.members[0])
    return calls


def population_execution():
    from hyperopt_id import Execution

    return Execution(compile=True)


@pytest.mark.parametrize("engine", [hypergrad.neumann(2), hypergrad.unroll(2)], ids=["neumann", "unroll"])
@pytest.mark.parametrize("name", MODELS)
def test_the_graph_of_a_piece_is_what_an_eager_call_executes(name, engine, monkeypatch):
    """Traced at the first call, it gives every later one, bit for bit."""
    torch.manual_seed(0)
    calls = pieces(monkeypatch, task(MODELS[name]), engine)
    assert len(calls) >= 2
    for piece, arguments in calls.items():
        graph = trace(piece.function, arguments[0])
        for given in (arguments[0], arguments[-1]):
            assert_close(interpreted(graph, *given), piece.function(*given), 0.0)


def texts(monkeypatch, *given, **changed):
    return [trace(p.function, a[0]).text for p, a in pieces(monkeypatch, *given, **changed).items()]


def test_data_are_no_part_of_a_graph_and_everything_else_is(monkeypatch):
    engine = hypergrad.neumann(2)
    own = texts(monkeypatch, task(MODELS["mlp"]), engine)
    assert texts(monkeypatch, task(MODELS["mlp"], seed=2), engine) == own  # other numbers of the same shape
    bounded = Space({**SPACE.hypers, "lr": Hyper(0.05, LOG10, (1e-4, 0.5), tune=("global",))})
    narrower = Space({**SPACE.hypers, "lr": Hyper(0.05, LOG10, (1e-4, 0.4), tune=("global",))})
    others = [
        texts(monkeypatch, task(MODELS["mlp"], rows=31), engine),
        texts(monkeypatch, task(MODELS["relu"]), engine),
        texts(monkeypatch, task(MODELS["mlp"]), hypergrad.neumann(3)),
        texts(monkeypatch, task(MODELS["mlp"]), engine, space=bounded),
        texts(monkeypatch, task(MODELS["mlp"]), engine, space=narrower),
    ]
    assert len({tuple(found) for found in [own, *others]}) == 1 + len(others)


def test_held_tensors_are_read_when_the_program_runs():
    held = random(3, seed=1)
    graph = trace(lambda x: x * held, [random(3, seed=2)])
    assert graph.constants[0] is held
    assert_close(interpreted(graph, random(3, seed=3)), random(3, seed=3) * held, 0.0)


def test_a_tensor_that_is_given_twice_is_two_inputs():
    x, y = random(3, seed=1), random(3, seed=2)
    assert_close(interpreted(trace(lambda a, b: a - 2 * b, [x, x]), x, y), x - 2 * y, 0.0)


def test_numbers_and_types_are_written_exactly():
    def function(x):
        return {"a": torch.clamp(x.to(torch.complex128).real, -float("inf"), 1 / 3), "b": x.int() + 1, "c": [None, "d"]}

    x = random(2, 3, seed=1).T
    found = interpreted(trace(function, [x]), x)
    assert found.pop("c") == [None, "d"]
    assert_close(found, {name: function(x)[name] for name in "ab"}, 0.0)
    assert found["a"].stride() == function(x)["a"].stride()
    assert json.loads(trace(function, [x]).text)["inputs"] == [[[3, 2], [1, 3], "torch.float64", "cpu"]]


@torch.library.custom_op("tests_compilation_graph::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


double.register_fake(torch.empty_like)

REFUSED = {
    "values decide": (lambda x: x if x.sum() > 0 else -x, "depends on the values of tensors"),
    "random numbers": (lambda x: x + torch.rand_like(x), "draws from a global generator"),
    "a shape depends on values": (lambda x: x[x > 0].sum(), "depends on the values of tensors"),
    "an operation of another library": (lambda x: double(x), "no operation of PyTorch's own"),
    "an error": (lambda x: x.missing, "AttributeError: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_graph_is_refused_in_one_line(name):
    function, message = REFUSED[name]
    with pytest.raises(Untraceable, match=message) as raised:
        trace(function, [random(3, seed=1)])
    assert "\n" not in str(raised.value)


def test_attention_without_dropout_draws_nothing_and_with_it_has_no_graph():
    attend = torch.nn.functional.scaled_dot_product_attention
    query = random(1, 2, 3, 4, seed=1)
    graph = trace(lambda q: attend(q, q, q), [query])
    assert_close(interpreted(graph, query), attend(query, query, query), 0.0)
    with pytest.raises(Untraceable, match="draws from a global generator"):
        trace(lambda q: attend(q, q, q, dropout_p=0.5), [query])
