"""Bayesian optimization: laws of its proposals, then of whole searches."""

import json
import math
import re
import sys

import numpy as np
import pytest
from short_runs import TINY, into
from short_runs import config as files
from short_searches import EXPLOSIVE, config, interrupted, lines, timeless

from baselines import arguments, bayesopt
from baselines.bayesopt import Axis, propose, told
from hyperopt_id.build.names import starting_values
from hyperopt_id.telemetry import read_json

pytest.importorskip("skopt", reason="scikit-optimize is not installed (extra: baselines)")

AXES = {
    "log10": (Axis(1e-6, 1e-1, "log10"), [(1e-6, 0.0), (1e-1, 1.0), (10**-3.5, 0.5), (1e-5, 0.2)]),
    "logit": (Axis(0.5, 0.9, "logit"), [(0.5, 0.0), (0.9, 1.0), (0.6, 0.25)]),
    "identity": (Axis(-1.0, 3.0, "identity"), [(-1.0, 0.0), (3.0, 1.0), (0.0, 0.25)]),
}


@pytest.mark.parametrize("transform", AXES)
def test_an_axis_is_a_range_on_its_raw_scale(transform):
    axis, known = AXES[transform]
    for natural, coordinate in known:
        assert axis.coordinate(natural) == pytest.approx(coordinate, abs=1e-12)
        assert axis.natural(coordinate) == pytest.approx(natural, rel=1e-12)
        assert axis.low <= axis.natural(coordinate) <= axis.high


def test_the_end_of_a_logit_axis_is_a_value_that_a_config_allows():
    assert 1.0 - 1e-12 < Axis(0.0, 1.0, "logit").natural(1.0) < 1.0


@pytest.mark.parametrize(
    "losses, values",
    [
        ([], []),
        ([3.0, 1.0], [3.0, 1.0]),
        ([3.0, None, 1.0], [3.0, 5.0, 1.0]),  # the worst and the spread
        ([None, 2.0, None], [3.0, 2.0, 3.0]),  # no spread: the worst and 1
        ([None, None], [1.0, 1.0]),  # nothing but failures
    ],
)
def test_a_failure_is_told_as_the_worst_and_a_margin(losses, values):
    assert told(losses) == values


def bowl(point):
    return sum((x - center) ** 2 for x, center in zip(point, (0.7, 0.2, 0.9), strict=True))


def minimize(seed, evaluations, guided, landscape=bowl):
    """The losses of a search whose first five points are random, and whose later ones are only if not `guided`."""
    random, points, losses = np.random.default_rng(seed), [], []
    for number in range(evaluations):
        if guided and number >= 5:
            points += propose(points, losses, [], 1, seed * evaluations + number)
        else:
            points.append(random.random(3).tolist())
        losses.append(landscape(points[-1]))
    return losses


def test_the_optimum_is_approached_faster_than_at_random():
    """After 12 evaluations, 7 of them guided, the search is closer than a random one after 100."""
    guided = np.median([min(minimize(seed, 12, True)) for seed in range(3)])
    random = np.median([min(minimize(seed, 100, False)) for seed in range(3)])
    assert guided < random


def test_a_search_keeps_away_from_failures():
    def cliff(point):
        return bowl(point) if point[1] < 0.5 else None

    losses = minimize(0, 12, True, cliff)
    assert None in losses[:5]
    assert losses[-4:].count(None) == 0


def test_proposals_are_pure():
    random = np.random.default_rng(0)
    points = random.random((6, 3)).tolist()
    losses = [*map(bowl, points[:-1]), None]
    kept = json.dumps([points, losses])
    first, again, other = (propose(points, losses, [], 2, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert kept == json.dumps([points, losses])
    assert all(type(value) is float and 0.0 <= value <= 1.0 for point in first for value in point)


def test_proposals_of_one_round_lie_apart():
    """The constant liar: with a lie at each point that is not evaluated yet, the next one goes elsewhere."""
    random = np.random.default_rng(0)
    points = random.random((6, 3)).tolist()
    pending = random.random((1, 3)).tolist()
    together = np.array(pending + propose(points, list(map(bowl, points)), pending, 3, seed=0))
    distances = np.linalg.norm(together[:, None] - together[None], axis=-1)[np.triu_indices(4, 1)]
    assert distances.min() > 1e-3


def test_a_lie_is_the_lowest_loss_so_far():
    """What is proposed while a point is pending is what would be if it had come out as the best."""
    points = np.random.default_rng(0).random((6, 3)).tolist()
    losses = list(map(bowl, points))
    expected = propose(points, [*losses[:5], min(losses[:5])], [], 1, seed=0)
    assert propose(points[:5], losses[:5], points[5:], 1, seed=0) == expected


def test_another_process_proposes_the_same():
    points = np.random.default_rng(0).random((5, 3)).tolist()
    task = [[points], [list(map(bowl, points))], [[]], [1], [0]]
    with bayesopt.processes(config("threads=2"), 2, 10**9) as each:
        assert each is not map
        assert list(each(propose, *task)) == list(map(propose, *task))
    with bayesopt.processes(config("threads=2"), 2, 1) as each:
        assert each is map


FOUR = {"repetitions": 2, "evaluations": 4, "random": 1, "parallel": 2}
SEED = "seed=2"  # the lowest validation loss and the lowest test loss are those of different evaluations


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Two repetitions of four evaluations, the first of which is random, two at once."""
    directory = tmp_path_factory.mktemp("bayesopt") / "search"
    return directory, bayesopt.search(config(SEED), directory, **FOUR)


def test_rounds_of_all_repetitions(searched):
    found = lines(searched[0])
    order = [(r, e) for first, last in ((0, 2), (2, 4)) for r in range(2) for e in range(first, last)]
    assert [(line["repetition"], line["evaluation"]) for line in found] == order
    assert [line["run"] for line in found] == ["runs/round_000"] * 4 + ["runs/round_001"] * 4
    assert [line["member"] for line in found] == [0, 1, 2, 3] * 2
    assert [line["gradients"] for line in found] == [18.0 * (evaluation + 1) for _, evaluation in order]


def test_a_line_tells_what_was_trained(searched):
    directory, _ = searched
    for line in lines(directory):
        run, member = directory / line["run"], line["member"]
        final = read_json(run / "summary.json")["final"]
        assert {key: line[key] for key in final} == {key: values[member] for key, values in final.items()}
        for name, value in line["hyper"].items():
            assert np.load(run / "trace" / f"{name}.npy")[0, member] == pytest.approx(value, rel=1e-5, abs=1e-6)
        assert line["told"] == line["loss/validation"]


def test_random_evaluations_start_where_their_seeds_draw(searched):
    starts = starting_values(config(SEED, "population.runs=4"))
    for repetition, member in enumerate((0, 2)):
        found = next(line for line in lines(searched[0]) if line["repetition"] == repetition)
        assert found["hyper"] == {name: values[member] for name, values in starts.items()}


def test_the_lowest_validation_loss_is_chosen_whatever_the_test_loss(searched):
    directory, summary = searched
    lowest = {}
    for split in ("validation", "test"):
        found = sorted(lines(directory), key=lambda line: line[f"loss/{split}"])
        lowest[split] = [next(line for line in found if line["repetition"] == r)["evaluation"] for r in range(2)]
    assert lowest["validation"] != lowest["test"]
    assert [best["evaluation"] for best in summary["repetitions"]] == lowest["validation"]
    assert summary == read_json(directory / "summary.json")


@pytest.mark.parametrize(
    "count, half", [*((count, "") for count in range(9)), (0, '{"repe'), (6, '{"repetition": 1, "ev')]
)
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(searched, tmp_path, count, half):
    directory, summary = searched
    copy = interrupted(directory, tmp_path / "copy", count, half)
    finished = sorted(path.parent.name for path in copy.glob("runs/*/summary.json"))
    assert timeless(bayesopt.search(config(SEED), copy, **FOUR)) == timeless(summary)
    assert timeless(lines(copy)) == timeless(lines(directory))
    for run in finished:
        assert "previous" not in read_json(copy / "runs" / run / "environment.json")  # not trained again


def test_test_data_choose_nothing(searched, tmp_path):
    """With other test losses in the log, the search goes on to the same points and choices."""
    directory, summary = searched
    copy = interrupted(directory, tmp_path / "copy", 4)
    changed = [{**line, "loss/test": -100.0 * number} for number, line in enumerate(lines(copy))]
    (copy / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    after = bayesopt.search(config(SEED), copy, **FOUR)
    assert [line["hyper"] for line in lines(copy)] == [line["hyper"] for line in lines(directory)]
    chosen, before = ([best["evaluation"] for best in s["repetitions"]] for s in (after, summary))
    assert chosen == before


def test_failures_are_logged_as_such(tmp_path):
    """Evaluations that diverge have no loss, and are told as the worst so far and a margin."""
    wild = config("space.lr={bounds: none, sample: [1e-2, 1e4]}")
    bayesopt.search(wild, tmp_path / "search", repetitions=3, evaluations=4, random=3)
    found = lines(tmp_path / "search")
    assert 0 < sum(line["loss/validation"] is None for line in found) < len(found)
    for line in found:
        mine = [other for other in found if other["repetition"] == line["repetition"]]
        known = [other["loss/validation"] for other in mine if other["evaluation"] <= line["evaluation"]]
        assert line["told"] == told(known)[-1]
        assert math.isfinite(line["told"])


def test_a_search_goes_on_after_nothing_but_failures(tmp_path):
    summary = bayesopt.search(config(EXPLOSIVE), tmp_path / "search", evaluations=4, random=2)
    found = lines(tmp_path / "search")
    assert [(line["loss/validation"], line["told"]) for line in found] == [(None, 1.0)] * 4
    assert len({line["hyper"]["lr"] for line in found}) == 4
    assert summary["repetitions"][0]["loss/validation"] is None


def test_a_budget_of_gradients_ends_the_search(tmp_path):
    summary = bayesopt.search(config(), tmp_path / "search", evaluations=9, random=1, parallel=2, gradients=59.0)
    assert [line["evaluation"] for line in lines(tmp_path / "search")] == [0, 1, 2]
    assert summary["repetitions"][0]["gradients"] == 54.0


def test_a_budget_of_seconds_ends_the_search(tmp_path):
    summary = bayesopt.search(config(), tmp_path / "search", evaluations=9, random=1, parallel=2, seconds=1e-9)
    assert [line["evaluation"] for line in lines(tmp_path / "search")] == [0, 1]
    assert summary["repetitions"][0]["evaluation"] == 0  # the other one came too late


FIXED = ["space.lr.sample=none", "space.weight_decay.sample=none", "space.momentum.sample=none"]
MISTAKES = {
    "no evaluations": (["--evaluations", "0"], [], "given 0 evaluations, 5 of them random; allowed: 1 or more random"),
    "more random than evaluations": (["--evaluations", "4"], [], "given 4 evaluations, 5 of them random"),
    "nothing random": (["--random", "0"], [], "given 30 evaluations, 0 of them random"),
    "no repetitions": (["--repetitions", "0"], [], "given 0 repetitions"),
    "none at once": (["--parallel", "0"], [], "given 0 evaluations at once"),
    "too small a budget": (["--budget-gradients", "17"], [], "17 gradients holds no evaluation, which takes 18"),
    "nothing to search": ([], FIXED, "nothing to search: give space.lr.sample a range"),
    "no search to resume": (["--resume"], [], "there is no search"),
    "a run that cannot be": ([], ["task.batch_size=1098"], "but the train split has 1097 rows"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, tmp_path, capsys):
    """One line on stderr, exit status 2, and nothing is left."""
    options, overrides, message = MISTAKES[name]
    given = [*files("digits"), *into(tmp_path / "run"), "-s", *TINY, *overrides, *options]
    assert arguments.main(bayesopt.run, given) == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_budget_alone_says_how_many_evaluations(tmp_path):
    """Of gradients, 18 each: 4 fit into 80. Of seconds: as many as it takes."""
    bayesopt.search(config(), tmp_path / "gradients", random=2, gradients=80.0)
    assert [line["evaluation"] for line in lines(tmp_path / "gradients")] == [0, 1, 2, 3]
    bayesopt.search(config(), tmp_path / "seconds", random=1, seconds=1e-9)
    assert len(lines(tmp_path / "seconds")) == 1
    with pytest.raises(ValueError, match="nothing says when the search ends"):
        bayesopt.search(config(), tmp_path / "endless")
    assert not (tmp_path / "endless").exists()


def test_without_scikit_optimize(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "skopt", None)
    assert arguments.main(bayesopt.run, [*files("digits"), *into(tmp_path / "run"), "-s", *TINY]) == 2
    assert re.fullmatch(
        "error: bayesopt needs scikit-optimize: python -m pip install -c constraints.txt -e .*\n",
        capsys.readouterr().err,
    )
    assert not (tmp_path / "run").exists()


def test_a_directory_belongs_to_one_search(searched, tmp_path, capsys):
    copy = interrupted(searched[0], tmp_path / "copy", 8)
    given = [*files("digits", "Random_Validation"), *into(copy), "--repetitions", "2", "--evaluations", "4"]
    given += ["--parallel", "2", "-s", *TINY, SEED]
    cases = {
        "already holds a search; continue it with --resume": ["--random", "1"],
        "made with another config: inner.updates: 6 -> 7": ["--random", "1", "--resume", "-s", "inner.updates=7"],
        "made with other settings: random: 1 -> 2": ["--random", "2", "--resume"],
    }
    for message, options in cases.items():
        assert arguments.main(bayesopt.run, [*given, *options]) == 2
        assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert arguments.main(bayesopt.run, [*given, "--random", "1", "--resume"]) == 0
    assert timeless(read_json(copy / "summary.json")) == timeless(searched[1])
