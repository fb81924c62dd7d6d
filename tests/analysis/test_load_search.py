"""Searches: the incumbent of every moment, by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from logs import NAN, config, write_search

from hyperopt_id.analysis.load_search import Steps, best_so_far, load_search, on_grid

EVALUATIONS = [  # repetition, validation loss, test loss
    (0, 0.5, 5.0),
    (1, None, 9.0),
    (0, 0.7, 1.0),  # better on test data, which choose nothing
    (1, 0.4, 4.0),
    (0, 0.3, 3.0),
    (1, 0.4, 2.0),
    (0, None, 0.5),
    (1, 0.2, None),
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_search(tmp_path / "search", "BayesOpt", EVALUATIONS, config("Random_Validation"))


def test_a_search_is_what_its_files_say(directory: Path):
    search = load_search(directory)
    assert search is not None
    assert (search.dataset, search.method, search.algorithm) == ("uci_energy", "BayesOpt", "Random_Validation")
    assert [[line["loss/test"] for line in lines] for lines in search.evaluations] == [
        [5.0, 1.0, 3.0, 0.5],
        [9.0, 4.0, 2.0, None],
    ]
    assert (search.metric, search.classifies) == ("loss/test", False)
    np.testing.assert_array_equal(search.final("loss/test"), [3.0, NAN])
    np.testing.assert_array_equal(search.final("gradients"), [400.0, 400.0])


def test_the_incumbent_is_the_lowest_validation_loss_so_far(directory: Path):
    search = load_search(directory)
    assert search is not None
    first, second = best_so_far(search, "loss/test", "gradients")
    assert (first.costs.tolist(), first.values.tolist()) == ([100.0, 300.0], [5.0, 3.0])
    assert second.costs.tolist() == [200.0, 400.0]
    np.testing.assert_array_equal(second.values, [4.0, NAN])
    assert best_so_far(search, "loss/test", "seconds")[1].costs.tolist() == [4.0, 8.0]


def test_step_functions_on_a_grid():
    curves = [Steps(np.array([2.0, 4.0]), np.array([7.0, 5.0])), Steps(np.empty(0), np.empty(0))]
    found = on_grid(curves, np.array([1.0, 2.0, 3.9, 4.0, 9.0]))
    np.testing.assert_array_equal(found, [[NAN, 7.0, 7.0, 5.0, 5.0], [NAN] * 5])


def test_a_search_that_goes_on_is_none(directory: Path):
    (directory / "summary.json").unlink()
    assert load_search(directory) is None


def test_a_half_written_line_is_left_out_and_a_damaged_one_named(directory: Path):
    text = (directory / "search.jsonl").read_text()
    (directory / "search.jsonl").write_text(text + '{"repetition": 1, "eval')
    search = load_search(directory)
    assert search is not None
    assert sum(map(len, search.evaluations)) == len(EVALUATIONS)
    (directory / "search.jsonl").write_text("{\n" + text)
    with pytest.raises(ValueError, match=r"line 1 of .+search\.jsonl is damaged"):
        load_search(directory)


def test_files_of_something_else_are_said_to_be_so(directory: Path):
    (directory / "summary.json").write_text(json.dumps({"repetitions": []}))
    cure = "repair or remove it, and start the search again"
    with pytest.raises(ValueError, match=rf"search/summary\.json: method is missing; {cure}"):
        load_search(directory)
