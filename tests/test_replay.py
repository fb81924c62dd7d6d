"""Replaying a run's trace repeats its trajectory; a stretched one follows it more slowly; what cannot be is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import assert_close
from short_runs import (
    ENGINES,
    MULO,
    POPULATIONS,
    TUNE,
    assert_same_run,
    interrupted,
    reports,
    state,
    summary,
    train,
)

from hyperopt_id import (
    LOG10,
    LOGIT,
    Hyper,
    Plan,
    Space,
    assemble,
    cli,
    experiment,
    hypergrad,
    rules,
)
from hyperopt_id import replay as replaying
from hyperopt_id.build.plain import in_whole_reports
from hyperopt_id.config import from_dict, load, to_dict
from hyperopt_id.optim import traced
from hyperopt_id.optim.plain import plain_parts
from hyperopt_id.replay import prepare
from hyperopt_id.tasks.digits import digits
from hyperopt_id.tasks.task import supervised
from hyperopt_id.telemetry import Telemetry
from hyperopt_id.telemetry.trace import read_trace

EXACT = ["dtype=float64"]
NEUMANN = "hypergradient={engine: neumann, terms: 3}"
ELEMENTS = ["space.lr.tune=[element]", "space.weight_decay.tune=[global]", "space.momentum.tune=[global]"]
CASES = {
    "fixed": ENGINES["none"],
    "global": [*TUNE[:2], "space.momentum.tune=[global]", NEUMANN],
    "per tensor": ["space.lr.tune=[tensor]", *TUNE[1:], NEUMANN],
    "per element": [*ELEMENTS, NEUMANN],
    "global x element, carried": [
        *ELEMENTS,
        "space.lr.tune=[global, element]",
        "hypergradient={engine: neumann, terms: 3, carry_state: true}",
    ],
    "decay per element": ["space.weight_decay.tune=[element]", NEUMANN],
    "nesterov": [*ELEMENTS, NEUMANN, "inner.nesterov=true"],
    "dampening": [*TUNE, NEUMANN, "inner.dampening=0.3"],
    "adam": [*ELEMENTS[:2], NEUMANN, "inner.rule=adam", "space.momentum=null"],
    "adamw": ["space.lr.tune=[element]", "space.weight_decay.tune=[element]", NEUMANN, "inner.rule=adamw"],
    "mulo": ENGINES["mulo"],
    "mulo, per tensor": [*MULO, NEUMANN, "space.lr.tune=[tensor]", "space.theta.tune=[global, tensor]"],
    "mulo, per element": [*MULO, NEUMANN, "space.lr.tune=[element]", "space.weight_decay.tune=[element]"],
    "clipped": [*TUNE, NEUMANN, "inner.clip_norm=0.1"],
    "unroll": ENGINES["unroll"],
    "schedule": ENGINES["schedule"],
    "Baydin": [*TUNE[:1], "hypergradient={engine: one_step, objective: training}", "inner.steps_per_update=1"],
    "reset": ENGINES["reset"],
}


def replayed(run: Path, *options: str) -> Path:
    """The directory of `run`'s replay."""
    assert cli.main(["replay", str(run), *options]) == 0
    return run.parent / f"{run.name}_replay"


def weights(run: Path, member: int = 0) -> dict[str, Any]:
    return {name: value[member] for name, value in state(run)["run"]["z"]["params"].items()}


@pytest.mark.parametrize("name", CASES)
def test_a_replay_ends_with_the_weights_of_the_run(name, tmp_path):
    run = train(tmp_path / "run", *CASES[name], *EXACT)
    replay = replayed(run)
    assert_close(weights(replay), weights(run))
    last, again = reports(run)[-1], reports(replay)[-1]
    for key in ("loss/validation", "accuracy/test"):
        assert last[key] == pytest.approx(again[key], rel=1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["per tensor", "per element", "adamw"])
def test_a_replay_on_cuda(name, tmp_path):
    run = train(tmp_path / "run", *CASES[name], *EXACT, "device=cuda")
    assert_close(weights(replayed(run)), weights(run), 1e-8)


def test_a_replay_in_float32_is_about_the_run(tmp_path):
    run = train(tmp_path / "run", *CASES["per element"])
    torch.testing.assert_close(weights(replayed(run)), weights(run), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("members", ["loop", "vmap"])
def test_a_member_of_a_population(members, tmp_path):
    run = train(tmp_path / "run", *CASES["per element"], *POPULATIONS[members], *EXACT)
    for member in (0, 2):
        replay = replayed(run, "--member", str(member), "-n", f"replay_{member}").with_name(f"replay_{member}")
        assert_close(weights(replay), weights(run, member))
    best = int(np.argmin(summary(run)["final"]["loss/validation"]))
    assert_close(weights(replayed(run)), weights(run, best))


def test_the_best_of_a_search(tmp_path, capsys):
    search, losses = tmp_path / "search", []
    for number in range(2):
        train(search / "runs" / f"{number}", *CASES["fixed"], *POPULATIONS["vmap"], f"seed={number}", *EXACT)
        losses.append(summary(search / "runs" / f"{number}")["final"]["loss/validation"])
    repetitions = [
        {"run": f"runs/{run}", "member": member, "loss/validation": losses[run][member]}
        for run, member in ((0, 1), (1, 2), (1, 0))
    ]
    best = min(repetitions, key=lambda found: found["loss/validation"])
    repetitions.append({"run": "runs/0", "member": 0, "loss/validation": None})
    (search / "summary.json").write_text(json.dumps({"method": "Random", "repetitions": repetitions}))
    shutil.copy(search / "runs" / "0" / "config.yaml", search)
    assert_close(weights(replayed(search)), weights(search / best["run"], best["member"]))

    best["loss/validation"] -= 0.1  # a run that has gone on, or another one
    (search / "summary.json").write_text(json.dumps({"method": "Random", "repetitions": repetitions}))
    said = "the best model of .* has a validation loss of .*, but its run .* ends {}; search again, .*"
    assert refused([str(search), "-n", "other"], capsys, said.format("with .*"))
    final = summary(search / best["run"])
    final["final"]["loss/validation"][best["member"]] = None
    (search / best["run"] / "summary.json").write_text(json.dumps(final))
    assert refused([str(search), "-n", "other"], capsys, said.format("without a finite one"))


def test_a_run_twice_as_long_has_each_value_for_twice_the_steps(tmp_path):
    run = train(tmp_path / "run", *CASES["per tensor"], *EXACT)
    replay = replayed(run, "--stretch", "2")
    assert [report["step"] for report in reports(replay)] == [12, 24, 36]

    rows, trace = read_trace(run)
    data = digits().to("cpu", torch.float64)
    task = supervised(data, net, "cross_entropy", 5)
    model = net().to(torch.float64)
    by_order = dict(zip(dict(model.named_parameters()), weights(run), strict=True))  # our names: layers.0.weight, ...
    start = task.init(0)[0]
    model.load_state_dict(start)
    optimizer = torch.optim.SGD([{"params": [w]} for w in model.parameters()], lr=1.0, momentum=0.5)
    index = task.batches("train", [0], 0, 36).index
    assert index is not None
    for step in range(36):
        row = step // (2 * rows)
        for group, name in zip(optimizer.param_groups, by_order.values(), strict=True):
            group["lr"], group["momentum"] = (float(trace[f"{h}/{name}"][row, 0]) for h in ("lr", "momentum"))
            group["weight_decay"] = float(trace["weight_decay"][row, 0])
        optimizer.zero_grad()
        batch = index[step, 0]
        F.cross_entropy(model(data.inputs[batch]), data.targets[batch]).backward()
        optimizer.step()
    found = weights(replay)
    assert_close({k: w.detach() for k, w in model.named_parameters()}, {k: found[v] for k, v in by_order.items()})


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.ReLU(), torch.nn.Linear(4, 10))


@pytest.mark.parametrize(
    ("updates", "steps", "every", "stretch", "expected"),  # expected: hyper-updates, steps of each, between reports
    [
        (6, 3, 2, 1.0, (3, 6, 1)),
        (6, 3, 2, 2.0, (3, 12, 1)),
        (6, 3, 2, 0.5, (3, 3, 1)),
        (6, 3, 2, 0.01, (1, 1, 1)),
        (1000, 10, None, 1.0, (100, 100, 1)),
        (1000, 10, None, 0.7133, (100, 71, 1)),
        (101, 10, 10, 1.0, (101, 10, 10)),  # no divisor of 1010 is between 10 and 100
        (350, 10, None, 1.0, (125, 28, 1)),
        (4, 5, 9, 1.0, (1, 20, 2)),
    ],
)
def test_the_run_is_cut_where_reports_are(updates, steps, every, stretch, expected):
    tree = {"task": {"name": "digits", "model": {"sizes": [64, 10]}}, "report": {"every": every}}
    config = from_dict({**tree, "inner": {"updates": updates, "steps_per_update": steps}})
    cut = in_whole_reports(config, stretch)
    assert (cut.inner.updates, cut.inner.steps_per_update, cut.report.every) == expected
    assert abs(cut.inner.total_steps - stretch * config.inner.total_steps) <= max(1, cut.inner.steps_per_update / 2)
    assert in_whole_reports(cut) == cut
    assert from_dict(to_dict(cut)) == cut


def test_retraining_on_all_data(tmp_path):
    run = train(tmp_path / "run", *CASES["per element"])
    replay = replayed(
        run, "-s", "task.train_on=train+validation", "seed=3", "-l", str(tmp_path), "-g", "again", "-n", "all"
    )
    assert not replay.exists()
    config = load([tmp_path / "again" / "all" / "config.yaml"])
    assert (config.task.train_on, config.seed, config.algorithm) == ("train+validation", 3, "Custom_replay")
    assert config.trained_by == f"hyperopt-id replay {run} --member 0 --stretch 1.0"


@pytest.mark.parametrize("name", ["global", "per tensor"])
def test_a_wider_network_takes_the_schedule_of_a_narrow_one(name, tmp_path):
    run = train(tmp_path / "run", *CASES[name])
    wide = replayed(run, "-s", "task.model.sizes=[64,9,10]")
    assert weights(wide)["layers.0.weight"].shape == (9, 64)
    assert reports(wide)[0]["hyper/lr"] == reports(run)[0]["hyper/lr"]


def test_reports_name_the_values_in_use(tmp_path):
    run = train(tmp_path / "run", *CASES["per tensor"])
    for before, now in zip(reports(run)[:-1], reports(replayed(run))[:-1], strict=True):
        assert now["hyper/lr"] == before["hyper/lr"]
        assert now["hyper/weight_decay"] == before["hyper/weight_decay"]


@pytest.mark.parametrize("name", ["per element", "adamw"])
def test_an_interrupted_replay_continues_to_the_last_bit(name, tmp_path):
    run = train(tmp_path / "run", *CASES[name])
    options = ["--stretch", "2", "-s", "report.checkpoint_every=1"]
    replay = replayed(run, *options)
    whole = shutil.copytree(replay, tmp_path / "whole")
    shutil.rmtree(replay)
    interrupted(whole, replay, update=2)
    replayed(run, *options, "--resume")
    assert_same_run(whole, replay)


def test_a_trace_with_fewer_rows_is_followed_with_a_warning(tmp_path):
    run = train(tmp_path / "run", *CASES["per tensor"], "report.trace_every=4")
    said = (replayed(run) / "log.txt").read_text()
    assert "has a row for every 12 steps, but values changed every 3" in said
    full = train(tmp_path / "full", *CASES["per tensor"])
    assert "only about the same" not in (replayed(full) / "log.txt").read_text()


def test_a_reset_run_says_which_steps_are_replayed(tmp_path):
    run = train(tmp_path / "run", *CASES["reset"])
    replay = replayed(run)
    assert "its last 3 steps are replayed" in (replay / "log.txt").read_text()
    assert [report["step"] for report in reports(replay)] == [3]


MISTAKES = {
    "no run": (lambda run: [str(run / "trace")], "holds no run"),
    "no such member": (lambda run: [str(run), "--member", "2"], "has members 0 to 0"),
    "stretch 0": (lambda run: [str(run), "--stretch", "0"], "--stretch 0.0: allowed is a number above 0"),
    "stretch nan": (lambda run: [str(run), "--stretch", "nan"], "--stretch nan: allowed is a number above 0"),
    "another lr": (lambda run: [str(run), "-s", "space.lr.init=1"], "--set space.lr.init: the run that is replayed"),
    "another length": (lambda run: [str(run), "-s", "inner.updates=1"], "the run that is replayed decides inner"),
    "another model": (
        lambda run: [str(run), "-s", "task.model.sizes=[64,5,10]"],
        r"has lr of layers.0.bias \[4\], but the model has \[5\]; leave task.model",
    ),
    "nothing to resume": (lambda run: [str(run), "--resume"], "--resume: there is no replay"),
    "an unknown key": (lambda run: [str(run), "-s", "task.trained_on=train"], "task.train_on"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("mistakes") / "run", *CASES["per element"])


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(name, run, capsys):
    mistake, message = MISTAKES[name]
    assert refused(mistake(run), capsys, message)
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def refused(given: list[str], capsys: pytest.CaptureFixture[str], message: str) -> bool:
    capsys.readouterr()
    assert cli.main(["replay", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    with pytest.raises(ValueError, match=message):
        raise ValueError(line)
    return line.startswith("error: ")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["report.trace_every=0"], "has no hyperparameter trace"),
        (["space.lr={init: 1.0e+30, bounds: none}"], r"member 0 of .* diverged at step \d+"),
        (["space.momentum.tune=[element]", NEUMANN], "has momentum for every element"),
    ],
)
def test_runs_without_a_schedule_to_replay(overrides, message, tmp_path, capsys):
    assert refused([str(train(tmp_path / "run", *overrides))], capsys, message)


def test_an_unfinished_run_is_not_replayed(run, tmp_path, capsys):
    cut = interrupted(run, tmp_path / "cut", update=2)
    assert refused([str(cut)], capsys, "is not finished, so its trace is not whole; --resume .*cut first")


def test_a_population_without_validation_losses_needs_a_member(tmp_path, capsys):
    run = train(tmp_path / "run", *POPULATIONS["vmap"], "report.splits=[test]")
    assert refused([str(run)], capsys, "has 3 members and no validation loss to choose by; name one with --member")


def test_train_does_not_take_a_replay_for_a_run_of_its_own(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    replay = replayed(copy)
    assert refused([str(replay)], capsys, "is a run of another command and has no schedule to replay")
    assert cli.train(["-c", str(replay / "config.yaml"), "-l", str(tmp_path), "-g", ".", "-n", "new"]) == 2
    assert f"repeat or resume it with: hyperopt-id replay {copy} --member 0" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert refused([str(copy)], capsys, "already holds a run")
    assert refused([str(copy), "--stretch", "3", "--resume"], capsys, "trained_by: .*1.0 -> .*3.0")


def test_the_library_s_way(run):
    config, build = prepare(run, stretch=2.0, overrides=["log.progress=none"])
    parts, plan = build(config)
    assert (plan.updates * plan.steps_per_update, len(parts.seeds)) == (36, 1)


def test_a_replay_of_a_search_says_of_what_it_is_and_where_it_goes(tmp_path, capsys):
    """Though the search has kept its runs quiet."""
    search = tmp_path / "search"
    run = train(search / "runs" / "0", *CASES["fixed"], *POPULATIONS["vmap"], "log.progress=none")
    loss = summary(run)["final"]["loss/validation"][1]
    found = {"method": "Random", "repetitions": [{"run": "runs/0", "member": 1, "loss/validation": loss}]}
    (search / "summary.json").write_text(json.dumps(found))
    shutil.copy(run / "config.yaml", search)
    capsys.readouterr()
    replay = replayed(search)
    said = f"replaying member 1 of {run}, the best model of the search {search}, validation loss {loss:g}; the log goes"
    for text in (capsys.readouterr().err, (replay / "log.txt").read_text()):
        assert f"{said} to {replay}" in text


def test_a_run_from_python_says_how_it_is_replayed_and_is(tmp_path, capsys):
    task = supervised(digits().to("cpu", torch.float64), net, "cross_entropy", 5)
    hypers = {"lr": (0.1, LOG10, ("tensor",)), "weight_decay": (1e-4, LOG10, ()), "momentum": (0.5, LOGIT, ("global",))}
    space = Space({name: Hyper(init, transform, tune=tune) for name, (init, transform, tune) in hypers.items()})
    parts = assemble(task, rule=rules.sgd(), space=space, engine=hypergrad.neumann(terms=2))
    directory = tmp_path / "mine"
    with Telemetry(directory, {}, total=3, progress="none") as telemetry:
        expected = experiment.run(parts, Plan(updates=3, steps_per_update=4), telemetry)
        telemetry.close(expected)
    assert refused([str(directory)], capsys, "was started from Python, .*replay.schedule and optim.traced.follow")
    schedule = replaying.schedule(directory)
    again = plain_parts(task, traced.follow("sgd", schedule), seeds=[0], hyper=lambda state: {})
    found = experiment.run(again, Plan(updates=1, steps_per_update=12))
    for name in ("loss/validation", "accuracy/test"):
        assert_close(found["final"][name], expected["final"][name])


ODD = {  # file, its new content, what is said
    "another list": (
        "summary.json",
        '{"final": {}, "diverged": [false, false], "diverged_at": [-1, -1]}',
        "not of the 1 ru",
    ),
    "no list": ("summary.json", '{"final": {}, "diverged": 3, "diverged_at": [-1]}', "diverged: needs a list, found 3"),
    "nothing": ("summary.json", "{}", r"summary\.json: final is missing"),
    "no mapping": ("summary.json", "[1]", r"summary\.json: needs a mapping"),
    "half": ("summary.json", '{"final"', r"summary\.json: is no JSON"),
    "elsewhere": (
        "summary.json",
        '{"repetitions": [{"run": "../../etc", "member": 0, "loss/validation": 1.0}]}',
        "run: needs the path of a folder below the search",
    ),
    "itself": (
        "summary.json",
        '{"repetitions": [{"run": ".", "member": 0, "loss/validation": 1.0}]}',
        "run: needs the path of a folder below the search",
    ),
    "a word": ("config.yaml", "word", r"config\.yaml"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_refused_in_one_line(name, run, tmp_path, capsys):
    file, text, message = ODD[name]
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / file).write_text(text)
    assert refused([str(copy)], capsys, message)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("damage", ["shape", "type", "members", "nan", "empty"])
def test_a_trace_that_is_no_table_of_numbers_is_refused(damage, run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    rows = np.load(copy / "trace" / "momentum.npy")
    odd = {
        "shape": rows[:, 0],
        "type": rows.astype(int),
        "members": rows[:, :0],
        "nan": rows * np.nan,
        "empty": rows[:0],
    }
    np.save(copy / "trace" / "momentum.npy", odd[damage])
    assert refused([str(copy)], capsys, "the trace in .* (is damaged: .*|has rows of momentum that are not known)")
