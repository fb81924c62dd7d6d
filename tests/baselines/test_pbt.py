"""Population based training: perturbations in natural units, and weights that are copied with all that made them."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from short_runs import TINY, TUNE, into, reports
from short_runs import config as files
from short_searches import config, killed, lines

from baselines import arguments, pbt
from baselines.perturbation import explore, perturbed
from baselines.trainable import score
from hyperopt_id import checkpoint, launch, population, replay
from hyperopt_id import config as configs
from hyperopt_id.analysis.cost import gradients_per_update
from hyperopt_id.config import to_dict
from hyperopt_id.space import IDENTITY, LOG10, LOGIT, Hyper, Space
from hyperopt_id.telemetry import read_json
from hyperopt_id.telemetry.trace import read_trace

MEMBERS, INTERVAL, MOST = 6, 6, 48
LOST = 1e36  # a learning rate at which training diverges in the first steps
STARTS = "population.start.lr=" + str([LOST, 1e-8, 0.3, 0.1, 0.03, 0.01])
LENGTH = ["inner.updates=16", f"population.runs={MEMBERS}", STARTS, "space.lr={bounds: none, sample: [1e-3, 1e-1]}"]
OURS = [*TUNE[:2], "space.momentum.tune=[global]", "hypergradient={engine: neumann, terms: 2}"]
SETTINGS = {"population": MEMBERS, "max_steps": MOST, "interval": INTERVAL}

SPACE = Space(
    {
        "lr": Hyper(1e-2, LOG10, bounds=(1e-10, 1.0), sample=(1e-6, 1e-1), tune=("global", "element")),
        "momentum": Hyper(0.5, LOGIT, sample=(0.0, 1.0)),
        "shift": Hyper(3.0, IDENTITY),
    }
)
PARAMS = {"w": torch.zeros(1, 2, dtype=torch.float64)}


def raw(lr=1e-2, momentum=0.5, elements=(0.0, 0.0)):
    values = SPACE.init(PARAMS, {"lr": lr, "momentum": momentum})
    values = {name: value[None] if value.dim() == 0 else value for name, value in values.items()}
    return {**values, "lr/element/w": torch.tensor([elements], dtype=torch.float64)}


def natural(values):
    """(rates of the elements, momentum)"""
    lr = 10 ** (values["lr/global"] + values["lr/element/w"])[0]
    return lr.tolist(), float(torch.sigmoid(values["momentum/global"]))


@pytest.mark.parametrize(
    ("changes", "rates", "momentum"),
    [
        ({"lr": ("times", 0.8)}, [0.8e-2, 0.8e-1], 0.6),
        ({"lr": ("times", 1.2), "momentum": ("times", 0.8)}, [1.2e-2, 1.2e-1], 0.48),
        ({"momentum": ("times", 1.2)}, [1e-2, 1e-1], 0.72),
        ({"lr": ("set", 1e-4), "momentum": ("set", 0.25)}, [1e-4, 1e-3], 0.25),
        ({"lr": ("set", 0.5)}, [0.5, 1.0], 0.6),  # an element at its bound
        ({"lr": ("times", 1e9)}, [1.0, 1.0], 0.6),
        ({"momentum": ("times", 3.0)}, [1e-2, 1e-1], 0.999),
        ({"momentum": ("set", 0.0)}, [1e-2, 1e-1], 0.001),
    ],
)
def test_changes_are_of_natural_values_within_their_bounds(changes, rates, momentum):
    changed = natural(perturbed(SPACE, raw(1e-2, 0.6, (0.0, 1.0)), changes))
    assert changed[0] == pytest.approx(rates, rel=1e-12)
    assert changed[1] == pytest.approx(momentum, rel=1e-12)


def test_exploration_draws_a_quarter_anew_and_scales_the_others():
    chance = random.Random(1)
    changes = [explore(SPACE, chance) for _ in range(4000)]
    assert all(change.keys() == {"lr", "momentum"} for change in changes)  # those with a range
    for name, (low, high) in {"lr": (1e-6, 1e-1), "momentum": (0.0, 1.0)}.items():
        anew = [number for kind, number in (change[name] for change in changes) if kind == "set"]
        factors = [number for kind, number in (change[name] for change in changes) if kind == "times"]
        assert len(anew) / 4000 == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 4000))
        assert factors.count(0.8) / len(factors) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(factors)))
        assert set(factors) == {0.8, 1.2}
        assert low < min(anew) < max(anew) < high
    rates = np.log10([number for kind, number in (change["lr"] for change in changes) if kind == "set"])
    assert np.mean(rates) == pytest.approx(-3.5, abs=4 * 5 / np.sqrt(12 * len(rates)))  # uniform in log10
    assert explore(SPACE, random.Random(7)) == explore(SPACE, random.Random(7))


@pytest.fixture(scope="module")
def searched(local_ray, tmp_path_factory):
    directory = tmp_path_factory.mktemp("pbt") / "search"
    return directory, pbt.search(config(*LENGTH, *OURS), directory, **SETTINGS)


def histories(found):
    """Go through the log in its order: for each run, the reports that its weights have behind them, and for each copy
    (its line, the line of the donor that it began from, the last losses of all runs when it was decided)."""
    history, decided, copies = {}, {}, []
    for line in found:
        run = line["run"]
        if "cloned" in line:
            known, losses = decided[run]
            donor, step = f"runs/{line['cloned']['trial']}", line["cloned"]["step"]
            base = [earlier for earlier in known[donor] if earlier["step"] <= step]
            copies.append((line, base[-1], losses))
            history[run] = base
        history[run] = [*history.get(run, []), line]
        losses = {name: score(lines[-1]["loss/validation"]) for name, lines in history.items()}
        decided[run] = (dict(history), losses)  # what the scheduler knew when this report came
    return history, copies


def test_the_worst_take_over_from_the_best(searched):
    _, copies = histories(lines(searched[0]))
    assert len(copies) >= 4
    for line, donor, losses in copies:
        quarter = max(1, min(int(np.ceil(len(losses) / 4)), len(losses) // 2))
        ordered = sorted(losses.values())
        assert losses[line["run"]] >= ordered[-quarter]
        assert donor["step"] == line["cloned"]["step"] == line["step"] - INTERVAL
        assert losses[donor["run"]] == score(donor["loss/validation"]) <= ordered[quarter - 1]


def test_a_run_directory_tells_the_history_of_its_weights(searched):
    directory, _ = searched
    history, _ = histories(lines(directory))
    for run, behind in history.items():
        reported = [{k: v for k, v in line.items() if k not in ("time", "update")} for line in reports(directory / run)]
        assert reported == [{key: line[key] for key in reported[0]} for line in behind]
        assert [line["step"] for line in behind] == list(range(INTERVAL, MOST + 1, INTERVAL))
        config_json = read_json(directory / run / "config.json")
        assert config_json["start"] == {name: [value] for name, value in behind[-1]["hyper"].items()}
        assert config_json["seed"] in range(MEMBERS)


def test_the_donors_present_values_are_perturbed(searched):
    directory, _ = searched
    history, copies = histories(lines(directory))
    limits = {"lr": (0.0, np.inf), "weight_decay": (0.0, np.inf), "momentum": (0.001, 0.999)}
    moved = 0
    for run, behind in history.items():
        steps, trace = read_trace(directory / run)
        assert steps == 3
        for before, line in pairwise(behind):
            for name, (low, high) in limits.items():
                value = before[f"hyper/{name}"]
                moved += value != before["hyper"][name]
                if "cloned" in line:
                    kind, number = line["cloned"]["changes"][name]
                    value = np.clip(number if kind == "set" else value * number, low, high)
                assert trace[name][before["step"] // steps, 0] == pytest.approx(value, rel=1e-5)
    assert moved  # by hypergradients
    assert any(kind == "set" for line, *_ in copies for kind, _ in line["cloned"]["changes"].values())


def test_replaying_the_trace_of_a_clone_gives_its_weights(searched, tmp_path):
    directory, _ = searched
    history, _ = histories(lines(directory))
    run = directory / next(name for name, behind in history.items() if any("cloned" in line for line in behind))
    replayed, build = replay.prepare(run, overrides=[f"log.dir={tmp_path}"])
    launch.run(replayed, tmp_path / "replay", build=build)
    ends = [reports(where)[-1]["loss/test"] for where in (run, tmp_path / "replay")]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)
    weights = population.from_plain(checkpoint.load(run / "checkpoints")[0]["run"]).z.params
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_a_diverged_member_goes_on_with_other_weights(searched):
    found = [line for line in lines(searched[0]) if line["run"] == "runs/trial_0000"]
    assert found[0]["diverged"]
    assert found[0]["loss/validation"] is None
    healed = next(line for line in found if not line["diverged"])
    assert "cloned" in healed
    assert healed["loss/validation"] < 10


def test_costs_add_up_over_members(searched):
    found = lines(searched[0])
    each = gradients_per_update(to_dict(config(*LENGTH, *OURS))) * INTERVAL / 3
    assert [line["gradients"] for line in found] == pytest.approx([each * (n + 1) for n in range(len(found))])
    assert searched[1]["method"] == "PBT + Random_Validation"


def test_a_killed_search_is_completed(local_ray, tmp_path):
    """From where Ray had noted it, so perhaps on another course. What had been logged stays and is paid for, and may be
    the best model."""
    directory, steps = tmp_path / "search", list(range(INTERVAL, 36 + 1, INTERVAL))
    options = ["--population", "4", "--max-steps", "36", "--interval", str(INTERVAL), *files("digits")]
    before = killed("baselines.pbt", [*options, "-s", *TINY, "inner.updates=16"], directory, 14)
    assert any("cloned" in line for line in before)
    given = configs.load([directory / "config.yaml"])
    summary = pbt.search(given, directory, population=4, max_steps=36, interval=INTERVAL)
    found = lines(directory)
    assert found[: len(before)] == before
    assert len({(line["run"], line["explored"], line["step"]) for line in found}) == len(found)
    each = gradients_per_update(to_dict(given)) * INTERVAL / 3
    assert [line["gradients"] for line in found] == pytest.approx([each * (n + 1) for n in range(len(found))])
    known = {(line["step"], line["loss/validation"]) for line in found}
    for member in range(4):
        run = directory / "runs" / f"trial_{member:04d}"
        told = [(line["step"], line["loss/validation"]) for line in reports(run)]
        assert [step for step, _ in told] == steps
        assert known.issuperset(told)
        assert len(read_trace(run)[1]["lr"]) == len(steps)  # plain training: values change at clones alone

    (best,) = summary["repetitions"]
    assert best["gradients"] == found[-1]["gradients"]
    assert best["loss/validation"] == min(score(line["loss/validation"]) for line in found)
    replayed, build = replay.prepare(directory)
    launch.run(replayed, tmp_path / "replay", build=build)
    assert reports(tmp_path / "replay")[-1]["loss/test"] == pytest.approx(best["loss/test"], rel=1e-4)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--population", "1"], "given a population of 1; needed: 2 or more, one to take over from another"),
        (["--interval", "0"], "given an interval of 0 steps; allowed: multiples of inner.steps_per_update, which is 3"),
        (["--interval", "7"], "given an interval of 7 steps; allowed: multiples of inner.steps_per_update, which is 3"),
        (["--interval", "21"], "given an interval of 21 steps; a training has 18"),
        (
            ["--interval", "6", "--device", "cuda"],
            "device cuda was asked for, but trials have none; add --gpus-per-trial 1, or less",
        ),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path, capsys, extra, said):
    assert arguments.main(pbt.run, [*files("digits"), *into(tmp_path / "search"), "-s", *TINY, *extra]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"
    assert not (tmp_path / "search").exists()
