"""What is read from run directories, from whole and from damaged ones."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from logs import NAN, config, write_run
from short_runs import train

from hyperopt_id.analysis.load import dataset_of, load_reports, load_run
from hyperopt_id.analysis.runs import group, settings_of
from hyperopt_id.telemetry import read_json


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three members, learning rates for each element, momentum for each tensor."""
    tune = ["space.lr.tune=[element]", "space.weight_decay.tune=[global]", "space.momentum.tune=[tensor]"]
    engine = ["hypergradient={engine: neumann, terms: 3}", "population.runs=3", "algorithm=Mine", "seed=5"]
    return train(tmp_path_factory.mktemp("runs") / "run", *tune, *engine)


def test_a_summary_becomes_arrays_in_which_null_is_nan(tmp_path: Path):
    directory = write_run(tmp_path / "tuned", config("Ours_LR"), {"loss/test": [[0.5, NAN, 0.25]]})
    runs = load_run(directory)
    np.testing.assert_array_equal(runs.final("loss/test"), [0.5, NAN, 0.25])
    assert runs.diverged.tolist() == [False, True, False]


def test_a_run_that_is_not_finished_has_no_result(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no finished run: there is no summary\.json"):
        load_run(tmp_path)


def test_a_report_that_is_being_written_is_left_out(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"step": 3')
    assert load_reports(tmp_path) == [{"step": 10}, {"step": 20}]


def test_a_damaged_line_is_named(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": \n{"step": 30}\n')
    with pytest.raises(ValueError, match=r"line 2 of .+metrics\.jsonl is damaged \(.+\); remove it"):
        load_reports(tmp_path)
    with pytest.raises(ValueError, match=r"is not a run directory: it has no metrics\.jsonl"):
        load_reports(tmp_path / "elsewhere")


def test_a_run_without_reports_is_said_to_be_so(tmp_path: Path):
    directory = write_run(tmp_path / "run", config("Ours_LR"), {"loss/test": [1.0]})
    (directory / "metrics.jsonl").write_text('{"step": 1')
    with pytest.raises(ValueError, match="run holds no reports"):
        load_run(directory)


def test_a_damaged_config_is_named(tmp_path: Path):
    directory = write_run(tmp_path / "run", config("Ours_LR"), {"loss/test": [1.0]})
    (directory / "config.json").write_text('{"task": ')
    with pytest.raises(ValueError, match=r"run/config\.json: is no JSON .+; write it again from the config\.yaml"):
        load_run(directory)


def test_the_arrays_of_a_run_are_its_reports(run: Path):
    runs, reports = load_run(run), load_reports(run)
    assert (runs.dataset, runs.algorithm, len(runs)) == ("digits", "Mine", 3)
    assert runs.steps.tolist() == [report["step"] for report in reports]
    assert runs.seeds.tolist() == [5, 6, 7]
    assert (runs.steps_per_update, runs.terms, runs.length) == (3, 3, 18)
    for member in range(3):
        for name in ("loss/test", "hyper/weight_decay", "hypergradient/weight_decay"):
            assert runs.curve(name)[member].tolist() == [report[name][member] for report in reports]
        np.testing.assert_allclose(runs.times[member], [report["time"] / 3 for report in reports])
    np.testing.assert_array_equal(
        runs.final("accuracy/test"), read_json(run / "summary.json")["final"]["accuracy/test"]
    )
    np.testing.assert_array_equal(runs.final("error/test"), 1.0 - runs.final("accuracy/test"))
    np.testing.assert_array_equal(runs.lowest("loss/test"), runs.curve("loss/test").min(axis=1))


def test_many_hyperparameters_are_what_most_have(run: Path):
    runs, last = load_run(run), load_reports(run)[-1]
    rates = last["hyper/lr"]
    for name, share in (("hyper/lr", "median"), ("hyper/lr/p10", "p10"), ("hyper/lr/p90", "p90")):
        expected = np.median([tensor[share] for tensor in rates.values()], axis=0)
        np.testing.assert_allclose(runs.curve(name)[:, -1], expected)
    np.testing.assert_allclose(runs.curve("hyper/momentum")[:, -1], np.median(list(last["hyper/momentum"].values()), 0))
    assert not any("element" in name for name in runs.curves)


def test_starting_values_are_those_of_the_trace(run: Path):
    runs = load_run(run)
    traced = np.load(run / "trace" / "weight_decay.npy")
    np.testing.assert_allclose(runs.starts["weight_decay"], traced[0], rtol=1e-6)
    assert runs.identities[0] == (5, *(float(f"{runs.starts[name][0]:.6g}") for name in sorted(runs.starts)))


def test_a_metric_that_nobody_reported_is_missing(run: Path):
    assert not load_run(run).has("perplexity/test")
    assert np.isnan(load_run(run).final("perplexity/test")).all()


def test_a_run_from_python_is_named_after_its_directory(tmp_path: Path):
    runs = load_run(write_run(tmp_path / "mine" / "tuned", {}, {"loss/test": [[1.0, 2.0]]}))
    assert (runs.dataset, runs.algorithm, len(runs)) == ("mine", "tuned", 2)
    assert runs.terms is runs.steps_per_update is None


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ({"name": "uci_wine"}, "uci_wine"),
        ({"name": "digits", "model": {"batch_norm": True}}, "digits_bn"),
        ({"name": "csv", "path": "some/where/houses.csv", "model": {"batch_norm": False}}, "houses"),
    ],
)
def test_a_data_set_is_named_by_its_task(task, name):
    assert dataset_of({"task": task}) == name
    assert dataset_of({}) is None


def test_the_two_names_of_one_algorithm_are_one(tmp_path: Path):
    assert (
        load_run(write_run(tmp_path / "r", config("Ours_HDLR"), {"loss/test": [1.0]})).algorithm == "Ours_HDLR_Momentum"
    )


def test_runs_that_trained_on_validation_data_have_no_validation_loss(tmp_path: Path):
    curves = {"loss/test": [1.0], "loss/validation": [2.0]}
    assert np.isnan(load_run(write_run(tmp_path / "a", config("Random"), curves)).validation).all()
    assert load_run(write_run(tmp_path / "b", config("Lorraine"), curves)).validation.tolist() == [2.0]


# kinds


def test_chunks_are_the_population_that_they_were_cut_from(tmp_path: Path):
    values = np.random.default_rng(0).random((3, 5))
    start = {"lr": [0.1, 0.2, 0.3, 0.4, 0.5]}
    whole = write_run(tmp_path / "whole", config("Ours_LR"), {"loss/test": values.tolist()}, start=start)
    parts = [
        load_run(
            write_run(
                tmp_path / str(first),
                config("Ours_LR", seed=first),
                {"loss/test": values[:, first:last].tolist()},
                start={"lr": start["lr"][first:last]},
            )
        )
        for first, last in ((0, 2), (2, 5))
    ]
    (joined,), (expected,) = group(parts), group([load_run(whole)])
    for name in ("seeds", "steps", "diverged"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(expected, name))
    np.testing.assert_array_equal(joined.curve("loss/test"), expected.curve("loss/test"))
    np.testing.assert_array_equal(joined.starts["lr"], expected.starts["lr"])
    assert joined.cost["total"] == 20.0


def test_a_run_that_is_there_twice_counts_once(tmp_path: Path):
    pieces = [
        load_run(write_run(tmp_path / name, config("Ours_LR", seed=seed), {"loss/test": [values]}))
        for name, seed, values in (("a", 0, [1.0, 2.0]), ("b", 1, [3.0, 4.0]))
    ]
    (joined,) = group(pieces)
    assert joined.final("loss/test").tolist() == [1.0, 2.0, 4.0]
    assert joined.cost["total"] == pytest.approx(15.0)  # three of four runs
    assert [(timing.runs, timing.steps, timing.seconds["total"]) for timing in joined.timings] == [(2, 10, 10.0)] * 2


def test_reports_at_other_steps_lie_on_straight_lines(tmp_path: Path):
    often = load_run(write_run(tmp_path / "a", config("Ours_LR"), {"loss/test": [[4.0], [3.0], [2.0], [1.0]]}))
    seldom = load_run(write_run(tmp_path / "b", config("Ours_LR", seed=1), {"loss/test": [[8.0], [4.0]]}, every=2))
    (joined,) = group([often, seldom])
    assert joined.steps.tolist() == [10, 20, 30, 40]
    np.testing.assert_array_equal(joined.curve("loss/test"), [[4.0, 3.0, 2.0, 1.0], [NAN, 8.0, 6.0, 4.0]])


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"seed": 7}, True),
        ({"log__name": "elsewhere"}, True),
        ({"inner__steps": 40, "inner__updates": None}, True),
        ({"population__runs": 3}, True),
        ({"inner__steps_per_update": 5}, False),
        ({"hypergradient__terms": 3}, False),
        ({"task__validation_fraction": 0.5}, False),
        ({"meta__rule": "none"}, False),
        ({"space__lr__sample": [1e-3, 1.0]}, False),
        ({"space__lr__sample": "none"}, False),
        ({"population__start": {"lr": [0.1]}}, False),
    ],
)
def test_what_makes_a_kind(changed, same):
    assert (settings_of(config("Ours_LR")) == settings_of(config("Ours_LR", **changed))) is same


def test_values_that_were_not_drawn_make_no_kind():
    fixed = {"population__sample": None}
    assert settings_of(config("Ours_LR", **fixed)) == settings_of(config("Ours_LR", **fixed, space__lr__init=0.5))
    assert json.dumps(settings_of(config("Ours_LR", **fixed))).count('"given"') == 2


# what is damaged or odd


def test_null_between_numbers_of_a_single_run_is_nan(tmp_path: Path):
    """A run that diverges, or skips a hypergradient after a finite report, and beside it one that does neither."""
    curves = {"loss/test": [3.0, 2.0, NAN], "hypergradient/lr": [0.5, NAN, 0.25]}
    lost = load_run(write_run(tmp_path / "lost", config("Ours_LR"), curves))
    np.testing.assert_array_equal(lost.curve("loss/test"), [[3.0, 2.0, NAN]])
    np.testing.assert_array_equal(lost.curve("hypergradient/lr"), [[0.5, NAN, 0.25]])
    assert (lost.diverged.tolist(), lost.lowest("loss/test").tolist()) == ([True], pytest.approx([NAN], nan_ok=True))
    fine = load_run(write_run(tmp_path / "fine", config("Ours_LR", seed=1), {"loss/test": [3.0, 2.0, 1.0]}))
    (both,) = group([lost, fine])
    np.testing.assert_array_equal(both.final("loss/test"), [NAN, 1.0])


def test_seeds_of_any_size_are_kept(tmp_path: Path):
    seeds = (2**63 - 1, 2**63, 2**64 + 7)
    runs = [
        load_run(write_run(tmp_path / str(seed), config("Ours_LR", seed=seed), {"loss/test": [[1.0, 2.0]]}))
        for seed in seeds
    ]
    (together,) = group(runs)
    assert [identity[0] for identity in together.identities] == [2**63 - 1, 2**63, 2**63 + 1, 2**64 + 7, 2**64 + 8]


MISTAKES = {  # file, what is put in place of it, and what is said
    "a list": ("config.json", "[1]", r"config\.json: needs a mapping"),
    "a name that is none": ("config.json", '{"task": {"name": 3}}', r"task: name: needs a string, found 3"),
    "a seed that is none": ("config.json", '{"seed": "a"}', r"seed: needs an integer"),
    "too few starts": ("config.json", '{"start": {"lr": [1.0]}}', r"start: lr: has 1 numbers, but summary.json has 2"),
    "levels": ("config.json", '{"a": ' * 60 + "1" + "}" * 60, r"nested more than 50 levels"),
    "no end": ("summary.json", "{", r"summary\.json: is no JSON"),
    "no seconds": ("summary.json", '{"diverged": [false, false]}', r"summary\.json: seconds is missing"),
    "a number too many": ("metrics.jsonl", '{"step": 1, "time": 1.0, "loss/test": [1, 2, 3]}\n', r"has 3 numbers"),
    "text for a number": (
        "metrics.jsonl",
        '{"step": 1, "time": 1.0, "loss/test": "x"}\n',
        r"loss/test: needs a number",
    ),
    "no step": ("metrics.jsonl", '{"time": 1.0}\n', r"line 1 of .+: step is missing"),
    "a line twice": ("metrics.jsonl", '{"step": 1, "time": 1.0}\n' * 2, r"line 2 of .+: step 1 after step 1"),
    "no statistics": (
        "metrics.jsonl",
        '{"step": 1, "time": 1, "hyper/lr": {"w": {"p10": 1}}}\n',
        r"w: median is missing",
    ),
    "a level too many": ("metrics.jsonl", '{"step": 1, "time": 1, "loss/test": [[1], 2]}\n', r"needs a number"),
    "an integer too large": ("metrics.jsonl", f'{{"step": 1, "time": 1, "a/b": {10**400}}}\n', r"needs a number"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_fit_is_named(tmp_path: Path, mistake: str):
    name, text, message = MISTAKES[mistake]
    directory = write_run(tmp_path / "run", config("Ours_LR"), {"loss/test": [[1.0, 2.0]]})
    (directory / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_run(directory)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path):
    for name in ("config.json", "summary.json", "metrics.jsonl"):
        directory = write_run(tmp_path / name, config("Ours_LR"), {"loss/test": [1.0]})
        (directory / name).unlink()
        os.mkfifo(directory / name)
        with pytest.raises(ValueError, match=f"{name}: is no regular file"):
            load_run(directory)
