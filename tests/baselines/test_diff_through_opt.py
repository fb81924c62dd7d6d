"""Laws of Diff-through-Opt's two backends: the same steps, hypergradients, hyperparameters and run directories."""

import sys

import pytest
import torch
from laws import BATCHES, GRANULARITIES, RULES, TARGET, dynamics, loss, objective, penalized, raw_values, space, trained
from short_runs import (
    CONFIGS,
    POPULATIONS,
    TINY,
    assert_same_run,
    config,
    interrupted,
    into,
    reports,
    state,
    summary,
)

from baselines import arguments, diff_through_opt
from hyperopt_id import cli, config_schema, curvature, hypergrad, population, trees
from hyperopt_id import config as configs
from hyperopt_id.config_schema import InnerConfig
from hyperopt_id.experiment import hyper_update

pytest.importorskip("higher", reason="the peer package `higher` is not installed (extra: test)")

PEERS = {
    "sgd": InnerConfig(),
    "nesterov": InnerConfig(nesterov=True),
    "adam": InnerConfig(rule="adam"),
    "clipped sgd": InnerConfig(clip_norm=0.2),
    "clipped adam": InnerConfig(rule="adam", clip_norm=0.2),
}
TUNED = {  # granularity -> hyperparameters that `higher` can have tuned so; beta2 it never can
    "global": ("lr", "weight_decay", "momentum", "beta1", "eps"),
    "tensor": ("lr", "weight_decay", "momentum", "beta1", "eps"),
    "element": ("lr", "beta1", "eps"),
}
ALGORITHM = CONFIGS / "DiffThroughOpt.yaml"
SHORT = [*TINY, "hypergradient.window=2"]


def assert_equal_vectors(left, right, tolerance=1e-10):
    """Trees whose every leaf differs by at most `tolerance` of its norm, however small that is."""
    assert trees.map(lambda leaf: list(leaf.shape), left) == trees.map(lambda leaf: list(leaf.shape), right)
    for one, other in zip(trees.leaves(left), trees.leaves(right), strict=True):
        if other.is_floating_point():
            assert (one - other).norm() <= tolerance * other.norm()
        else:
            assert torch.equal(one, other)


# The engine


@pytest.mark.parametrize("target_function", [objective, penalized], ids=["validation", "with a direct term"])
@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("granularity", TUNED)
@pytest.mark.parametrize("rule_name", PEERS)
def test_one_hyper_update_of_higher_is_that_of_unroll(rule_name, granularity, window, target_function):
    """From a state with momentum, with a parameter that the loss does not use, and nothing is mutated."""
    rule = RULES[rule_name]
    own = space(rule, GRANULARITIES[granularity], TUNED[granularity])
    z = trained(rule)
    raw, phi = raw_values(own, z.params), dynamics(rule, own)
    before = trees.map(torch.clone, (z, raw))
    engine = diff_through_opt.unroll_by_higher(loss, PEERS[rule_name], window)
    expected, found = (
        each.call(phi, target_function, z, raw, BATCHES[:window], TARGET) for each in (hypergrad.unroll(window), engine)
    )
    assert_equal_vectors(tuple(found), tuple(expected))
    assert_equal_vectors((z, raw), before, 0.0)
    assert not any(leaf.requires_grad for leaf in trees.leaves(tuple(found)))


# Runs


def trajectory(build, given):
    """(run, hypergradient) after every hyper-update of a run."""
    parts, plan = build(given)
    chunk, passed = population.split(parts.start(), parts.members, parts.lift)[0], []
    for update in range(plan.updates):
        chunk, record = hyper_update(parts, plan, update, chunk, parts.members[0])
        passed.append((population.to_plain(chunk), record.hypergradient, record.losses, record.objective))
    return passed


@pytest.mark.parametrize("steps", [3, 5], ids=["window < T", "window = T"])
@pytest.mark.parametrize("rule_name", ["sgd", "adam"])
def test_runs_of_both_backends_have_equal_hypergradients_weights_and_hyperparameters(rule_name, steps):
    """Over 8 hyper-updates, with BatchNorm's statistics; every value is checked after every one of them."""
    tuned = {"sgd": ("lr", "weight_decay", "momentum"), "adam": ("lr", "weight_decay", "beta1", "eps")}[rule_name]
    overrides = [
        *TINY,
        "task.model={sizes: [64, 4, 10], batch_norm: true}",
        f"inner={{rule: {rule_name}, steps_per_update: 5, updates: 8}}",
        f"hypergradient.window={steps}",
        "space={lr: {init: 0.02}, weight_decay: {init: 1.0e-2}}",
        *(f"space.{name}.tune=[global]" for name in tuned),
        "dtype=float64",
        "population.sample=false",
    ]
    if rule_name == "adam":
        overrides.append("space.momentum=null")
    given = configs.load([CONFIGS / "digits.yaml", ALGORITHM], overrides)
    ours, peers = (trajectory(build, given) for build in diff_through_opt.BACKENDS.values())
    assert_equal_vectors(peers, ours)
    assert all(slope.abs() > 0.0 for _, slopes, *_ in ours for slope in slopes.values())
    assert ours[-1][0]["z"]["buffers"]


def run(directory, backend, *overrides):
    return diff_through_opt.run([*config("digits"), *into(directory), "--backend", backend, "-s", *SHORT, *overrides])


def test_the_backend_unroll_is_the_run_of_train(tmp_path):
    run(tmp_path / "ours", "unroll")
    given = [*config("digits", "DiffThroughOpt"), *into(tmp_path / "train"), "-s", *SHORT]
    assert cli.train(given) == 0
    assert_same_run(tmp_path / "ours", tmp_path / "train")


@pytest.mark.parametrize("algorithm", [[], ["LongDiffThroughOpt_Medium"], ["LongDiffThroughOpt_Standalone"]], ids=str)
@pytest.mark.parametrize("stem", ["digits", "uci_energy", "fashion_mnist", "penn_treebank", "cifar10"])
def test_a_data_set_alone_means_its_config_with_the_algorithms(stem, algorithm):
    options = arguments.parser("").parse_args(config(stem, *algorithm))
    options.config = [ALGORITHM, *options.config]
    found = diff_through_opt.configured(arguments.load(options), "unroll")
    files = [CONFIGS / f"{name}.yaml" for name in (stem, *(algorithm or ["DiffThroughOpt"]))]
    assert configs.differences(found, configs.load(files)) == []
    assert found.algorithm == configs.load(files).algorithm


@pytest.mark.parametrize("members", [POPULATIONS["single"], ["population.runs=2"]], ids=["single", "population"])
def test_run_directories_of_both_backends_hold_the_same(tmp_path, members):
    directories = {backend: tmp_path / backend for backend in diff_through_opt.BACKENDS}
    for backend, directory in directories.items():
        run(directory, backend, "dtype=float64", *members)
    ours, peers = directories.values()
    assert {path.relative_to(ours) for path in ours.rglob("*") if "events" not in path.name} == {
        path.relative_to(peers) for path in peers.rglob("*") if "events" not in path.name
    }
    assert [list(line) for line in reports(ours)] == [list(line) for line in reports(peers)]
    assert list(summary(ours)) == list(summary(peers))
    assert list(summary(ours)["seconds"]) == list(summary(peers)["seconds"])
    assert summary(peers)["seconds"]["hypergradient"] > 0.0
    assert_equal_vectors(state(ours)["run"], state(peers)["run"])
    assert configs.load([peers / "config.yaml"]).algorithm == "DiffThroughOpt_higher"


def test_a_resumed_run_of_higher_is_the_uninterrupted_one(tmp_path):
    run(tmp_path / "whole", "higher")
    interrupted(tmp_path / "whole", tmp_path / "half", 2)
    given = [*config("digits"), *into(tmp_path / "half"), "--backend", "higher", "--resume", "-s", *SHORT]
    diff_through_opt.run(given)
    assert_same_run(tmp_path / "half", tmp_path / "whole")


def test_runs_of_both_backends_diverge_at_the_same_step(tmp_path):
    wild = ["space.lr={init: 1.0e+30, bounds: none}", "population.sample=false"]
    ends = [run(tmp_path / backend, backend, *wild) for backend in diff_through_opt.BACKENDS]
    assert ends[0]["diverged"].all()
    assert torch.equal(ends[0]["diverged_at"], ends[1]["diverged_at"])


# Mistakes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["inner.rule=adamw", "space={momentum: null}"], "inner.rule = adamw"),
        (["inner.dampening=0.1"], "inner.dampening = 0.1"),
        (["inner.compile=on"], "inner.compile = on"),
        (["hypergradient.curvature.name=finite_difference"], "finite_difference"),
        (["hypergradient.curvature.sub_batch=0.5"], "sub_batch = 0.5"),
        (["population={runs: 2, lift: vmap}"], "population.lift = vmap of 2 runs"),
        (["dtype=bfloat16"], "bfloat16"),
        (["inner.rule=adam", "space={momentum: null, beta2: {tune: [global]}}"], "space.beta2.tune"),
        (["space.weight_decay.tune=[element]"], "space.weight_decay.tune = element"),
        (["space.momentum.transform=identity"], "space.momentum.transform = identity"),
        (["hypergradient={engine: forward}"], "the engine unroll, but the config's is forward"),
    ],
)
def test_what_higher_cannot_do_is_one_line_and_leaves_nothing(tmp_path, capsys, overrides, message):
    given = [*config("digits"), *into(tmp_path / "run"), "--backend", "higher", "-s", *SHORT]
    assert arguments.main(diff_through_opt.run, [*given, *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run").exists()


def test_every_rule_is_a_peer_or_refused():
    assert set(config_schema.RULES) - set(diff_through_opt.PEERS) == {"adamw", "mulo"}


def test_a_loss_without_second_derivatives_is_refused(monkeypatch):
    monkeypatch.setattr(diff_through_opt, "pick_curvature", lambda *given: curvature.finite_difference())
    with pytest.raises(ValueError, match="differentiated twice"):
        diff_through_opt.from_config_by_higher(configs.load([CONFIGS / "digits.yaml", ALGORITHM], SHORT))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "higher", None)
    with pytest.raises(ValueError, match="needs the package higher"):
        diff_through_opt.from_config_by_higher(configs.load([CONFIGS / "digits.yaml", ALGORITHM], SHORT))


def test_resume_needs_a_run(tmp_path):
    given = [*config("digits"), *into(tmp_path / "run"), "--resume"]
    with pytest.raises(ValueError, match="there is no run"):
        diff_through_opt.run(given)
