"""Compiled = eager within rounding, for the step and for both kinds of engines; what cannot be compiled runs eagerly.

Ten small graphs are compiled here, five to twenty seconds each: hyper-updates of neumann, the step and the pull-back
of unroll. They are taken from the user's cache where an earlier run of the tests has left them.
"""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from laws import assert_close, random

from hyperopt_id import (
    LOG10,
    LOGIT,
    Dataset,
    Execution,
    Hyper,
    Plan,
    Space,
    assemble,
    checkpoint,
    compilation,
    compilation_cuda,
    compilation_graph,
    compilation_program,
    hypergrad,
    launch,
    population,
    rules,
    run,
    supervised,
    trees,
    user_cache,
)
from hyperopt_id.build import names
from hyperopt_id.config import load
from hyperopt_id.experiment import hyper_update
from hyperopt_id.tasks.digits import digits as digits_data
from hyperopt_id.tasks.models import mlp
from hyperopt_id.telemetry import Telemetry
from scripts import stress_compiled

CONFIGS = Path(__file__).parents[1] / "configs"
DATA = Dataset(
    random(40, 4, seed=1), torch.arange(40) % 3, {"train": (0, 24), "validation": (24, 32), "test": (32, 40)}
)
TASK = supervised(DATA, lambda: mlp((4, 5, 3), "tanh"), "cross_entropy", 6)
SPACE = Space(
    {
        "lr": Hyper(0.05, LOG10, (1e-10, 1.0), (1e-3, 0.5), ("element",)),
        "weight_decay": Hyper(1e-3, LOG10, None, (1e-4, 1e-1), ("global",)),
        "momentum": Hyper(0.5, LOGIT, None, (0.0, 0.95), ("global",)),
    }
)
CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(compilation.obstacle(CPU) is not None, reason=f"{compilation.obstacle(CPU)}")


def parts_of(engine, *, compiled, lift: population.Lift = "loop", seeds=(0,)):
    execution = Execution(lift, 8, compile=compiled)
    return assemble(TASK, rule=rules.sgd(), space=SPACE, engine=engine, seeds=seeds, sample=True, execution=execution)


@needs_compiler
@pytest.mark.parametrize(
    ("engine", "lift", "seeds", "steps"),
    [(hypergrad.neumann(2), "vmap", (0, 1), 1), (hypergrad.unroll(2), "loop", (0,), 2)],
    ids=["neumann under vmap", "unroll"],
)
def test_compiled_equals_eager(engine, lift, seeds, steps, caplog):
    plan = Plan(updates=3, steps_per_update=steps)
    eager = run(parts_of(engine, compiled=False, lift=lift, seeds=seeds), plan)
    compiled = run(parts_of(engine, compiled=True, lift=lift, seeds=seeds), plan)
    assert "running eagerly" not in caplog.text
    for group in ("final", "hyper", "best_validation"):
        assert_close(compiled[group], eager[group], 1e-12)
    assert compiled["seconds"]["compile"] > 0.0
    assert eager["seconds"]["compile"] == 0.0


@needs_compiler
def test_a_compiled_run_resumes_bit_for_bit(tmp_path, caplog):
    def train(directory, updates, resume=None):
        parts = parts_of(hypergrad.neumann(2), compiled=True, lift="vmap", seeds=(0, 1))
        plan = Plan(updates=updates, steps_per_update=1, checkpoint_every=2)
        with Telemetry(directory, {}, runs=2, resume_at=2 if resume else None, progress="none") as telemetry:
            return run(parts, plan, telemetry, resume=resume)

    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    saved, _ = checkpoint.load(tmp_path / "parts" / "checkpoints", lambda message: None)
    resumed = train(tmp_path / "parts", 4, saved)
    assert "running eagerly" not in caplog.text
    for group in ("final", "hyper", "best_validation"):
        assert_close(resumed[group], whole[group], 0.0)


@needs_compiler
def test_chunks_on_threads_give_the_same_numbers_at_every_start(caplog, monkeypatch):
    """Programs are there before threads call them, and nothing is compiled at the second start."""
    plan, seeds = Plan(updates=40, steps_per_update=2), tuple(range(8))

    def train(compiled):
        execution = Execution("vmap", 2, compile=compiled)
        given = {"space": SPACE, "engine": hypergrad.neumann(2), "seeds": seeds, "sample": True}
        return run(assemble(TASK, rule=rules.sgd(), execution=execution, **given), plan)

    torch.set_num_threads(4)
    try:
        eager, first = train(compiled=False), train(compiled=True)
        monkeypatch.setattr(compilation_program, "_start", None)
        again = [train(compiled=True) for _ in range(3)]
    finally:
        torch.set_num_threads(1)
    assert "running eagerly" not in caplog.text
    for group in ("final", "hyper", "best_validation"):
        assert_close(first[group], eager[group], 1e-9)
        for other in again:
            assert_close(other[group], first[group], 0.0)


@needs_compiler
def test_starts_under_load_end_well_and_with_the_same_numbers(tmp_path):
    """The short form of the script; its long one takes fifty starts of a larger population."""
    result = stress_compiled.stress(tmp_path, user_cache.folder(), 3, 4, 2, ("digits", "Ours_LR"))
    assert (result["errors"], result["different"], len(result["seconds"])) == (0, 0, 3)


@needs_compiler
@pytest.mark.parametrize(
    ("engine", "sizes"),
    [
        (hypergrad.neumann(3), (64, 10)),
        (hypergrad.neumann(5), (64, 8, 10)),
        (hypergrad.neumann(5, carry_state=True), (64, 8, 10)),
    ],
    ids=["one layer", "two layers", "two layers, carried"],
)
def test_compiled_hypergradients_equal_eager_ones(engine, sizes, caplog):
    """Of a single run on minibatches at a large learning rate, where an error in a Hessian-vector product shows; after
    a step of Adam it would not."""
    task = supervised(digits_data().to("cpu", torch.float64), lambda: mlp(sizes), "cross_entropy", 50)
    tuned = {name: replace(hyper, init=0.3 if name == "lr" else hyper.init) for name, hyper in SPACE.hypers.items()}
    found = []
    for compiled in (False, True):
        execution = Execution(compile=compiled)
        parts = assemble(task, rule=rules.sgd(), space=Space(tuned), engine=engine, execution=execution)
        chunk = population.split(parts.start(), parts.members, parts.lift)[0]
        found.append(hyper_update(parts, Plan(updates=1, steps_per_update=1), 0, chunk, [0])[1].hypergradient)
    assert "running eagerly" not in caplog.text
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, rtol=1e-9, atol=1e-12)


FAILURES = {
    "no program": (lambda programs, threads: {p.path: "no such register" for p in programs}, "no such register"),
    "another program": (None, "the program differs from eager execution, result 0 by "),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_compiler_that_fails_is_replaced_by_eager_execution(name, monkeypatch, caplog, tmp_path):
    compile_now, message = FAILURES[name]
    monkeypatch.setenv("HYPEROPT_ID_CACHE", str(tmp_path))
    monkeypatch.setattr(compilation_program, "compile_now", compile_now or (lambda programs, threads: {}))

    def load(program, callers):
        """One that is off in the ninth digit."""
        interpreted, _ = compilation_graph.read(program.graph.text)
        constants, result = program.graph.constants, program.graph.result

        def call(leaves):
            found = trees.like(result, interpreted(*leaves, *constants))
            return trees.map(lambda x: x * (1 + 1e-9) if x.is_floating_point() else x, found)

        return call

    monkeypatch.setattr(compilation_program, "load", load)
    plan, engine = Plan(updates=3, steps_per_update=2), hypergrad.neumann(2)
    with caplog.at_level(logging.WARNING, "hyperopt_id"):
        compiled = run(parts_of(engine, compiled=True), plan)
    eager = run(parts_of(engine, compiled=False), plan)
    for group in ("final", "hyper", "best_validation"):
        assert_close(compiled[group], eager[group], 0.0)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2  # the step and the hypergradient, once each
    for record in warnings:
        assert record.getMessage().startswith(f"not compiled, running eagerly: {message}")
        assert "\n" not in record.getMessage()


def test_a_program_serves_the_signature_that_it_was_made_for_alone(monkeypatch, tmp_path):
    """Other shapes, strides, precisions, static entries or names have programs of their own."""
    made = []
    monkeypatch.setenv("HYPEROPT_ID_CACHE", str(tmp_path))
    monkeypatch.setattr(compilation_program, "compile_now", lambda programs, threads: {})

    def load(program, callers):
        interpreted, _ = compilation_graph.read(program.graph.text)
        made.append(program)
        return lambda leaves: trees.like(program.graph.result, interpreted(*leaves, *program.graph.constants))

    monkeypatch.setattr(compilation_program, "load", load)

    def function(tree, factor):
        return {name: value.sum(0) * factor for name, value in tree.items()}

    piece = compilation.Compilation().piece(function)
    x = random(4, 4, seed=1)
    calls = [
        ({"a": x}, 2.0),
        ({"a": x}, 3.0),
        ({"b": x}, 2.0),
        ({"a": x.T}, 2.0),
        ({"a": x.float()}, 2.0),
        ({"a": x[:3]}, 2.0),
        ({"a": x, "b": x}, 2.0),
    ]
    for expected_programs, arguments in enumerate([*calls, *calls], 1):
        assert_close(piece(*arguments), function(*arguments), 0.0)
        assert len(made) == min(expected_programs, len(calls))
    assert_close(piece({"a": x, "b": x + 1}, 2.0), function({"a": x, "b": x + 1}, 2.0), 0.0)  # two tensors, not one


@pytest.mark.parametrize("failure", [RuntimeError("first line\nsecond line"), NotImplementedError()])
def test_what_cannot_be_compiled_for_a_gpu_runs_eagerly(failure, monkeypatch, caplog):
    def broken(function, **options):
        def call(*arguments):
            raise failure

        return call

    monkeypatch.setattr(torch, "compile", broken)
    call = compilation_cuda.compiled(lambda x: x + 1)
    assert [call(n) for n in range(3)] == [1, 2, 3]
    (record,) = caplog.records
    assert record.getMessage().startswith("not compiled, running eagerly: ")
    assert "\n" not in record.getMessage()


def digits(*overrides, method="Ours_LR"):
    small = ["task.model.sizes=[64,5,10]", "threads=1", *overrides]
    return load([CONFIGS / "digits.yaml", CONFIGS / f"{method}.yaml"], small)


@pytest.mark.parametrize(
    ("setting", "seconds", "expected", "line"),
    [
        ("auto", 1.0, False, "not compiled, running eagerly: the whole run takes about 1 s as it is"),
        ("auto", 1000.0, True, None),
        ("on", 1.0, True, None),
        ("off", 1000.0, False, None),
    ],
)
def test_auto_compiles_where_the_run_is_long_enough(setting, seconds, expected, line, monkeypatch, caplog):
    monkeypatch.setattr(compilation, "obstacle", lambda device: None)
    monkeypatch.setattr(names, "_eager_seconds", lambda parts, plan: seconds)
    with caplog.at_level(logging.INFO, "hyperopt_id"):
        parts, _ = names.from_config(digits(f"inner.compile={setting}", "inner.updates=2"))
    assert parts.compiled is expected
    told = [record.getMessage() for record in caplog.records if "compiled" in record.getMessage()]
    assert told == ([] if line is None else [line])


@pytest.mark.parametrize(
    ("there", "later", "line"),
    [
        (True, None, None),
        (False, lambda: 1, "the whole run takes about 5 s as it is; when it ends, it is compiled for later starts"),
        (False, None, "the whole run takes about 5 s as it is"),
    ],
)
def test_what_has_been_compiled_before_is_used(there, later, line, monkeypatch, caplog):
    monkeypatch.setattr(compilation, "obstacle", lambda device: None)
    monkeypatch.setattr(names, "_eager_seconds", lambda parts, plan: 5.0)
    monkeypatch.setattr(compilation.Compilation, "is_there", lambda self, trial: there)
    monkeypatch.setattr(compilation.Compilation, "later", lambda self: later)
    with caplog.at_level(logging.INFO, "hyperopt_id"):
        parts, _ = names.from_config(digits("inner.updates=100"))
    assert parts.compiled is there
    said = [record.getMessage() for record in caplog.records if "compiled" in record.getMessage()]
    assert said == ([] if line is None else [f"not compiled, running eagerly: {line}"])
    assert parts.afterwards() == (later and later())


def test_a_command_compiles_for_later_starts_when_its_run_is_finished(tmp_path, monkeypatch):
    """Beside the run, it would take the cores that the run computes on."""
    begun = []

    def build(config, *, compiled=None):
        parts, plan = names.from_config(config, compiled=compiled)
        return replace(parts, afterwards=lambda: begun.append((tmp_path / "run" / "summary.json").exists())), plan

    launch.run(digits("inner.updates=2"), tmp_path / "run", build=build)
    assert begun == [True]


@pytest.mark.parametrize(("method", "expected"), [("Ours_LR", True), ("Ours_MuLO", False)])
def test_a_rule_that_takes_longer_to_compile_is_worth_it_later(method, expected, monkeypatch):
    monkeypatch.setattr(compilation, "obstacle", lambda device: None)
    monkeypatch.setattr(names, "_eager_seconds", lambda parts, plan: 100.0)
    monkeypatch.setattr(names, "SECONDS_WORTH_LOOKING", 1000.0)
    assert names.from_config(digits("inner.updates=2", method=method))[0].compiled is expected


@pytest.mark.parametrize("setting", ["auto", "on"])
def test_without_a_compiler_one_line_says_so(setting, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delitem(os.environ, "CXX", raising=False)
    with caplog.at_level(logging.INFO, "hyperopt_id"):
        parts, _ = names.from_config(digits(f"inner.compile={setting}", "inner.updates=2"))
    assert parts.compiled is False
    told = [record for record in caplog.records if "running eagerly" in record.getMessage()]
    assert len(told) == 1
    assert "install g++" in told[0].getMessage() or "ahead of time" in told[0].getMessage()
    assert told[0].levelno == (logging.WARNING if setting == "on" else logging.INFO)


def test_the_length_of_the_run_is_measured_without_changing_it():
    config = digits("inner.compile=off", "inner.updates=50")
    parts, plan = names.from_config(config)
    before = run(replace(parts), replace(plan, updates=2))
    short, long = (names._eager_seconds(parts, replace(plan, updates=updates)) for updates in (1, 1000))
    assert 0.0 < short < long
    after = run(parts, replace(plan, updates=2))
    assert_close(before["final"], after["final"], 0.0)
