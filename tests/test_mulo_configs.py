"""The learned optimizer through its configs: what a run learns of θ is what its training takes."""

import math

from short_runs import QUICK, config, into, reports

from hyperopt_id import cli


def losses(algorithm, directory):
    """On the validation set, of three networks after 300 steps."""
    overrides = [*QUICK, "inner.steps=300", "report.splits=[validation]"]
    assert cli.train([*config("digits", algorithm), *into(directory), "--runs", "3", "-s", *overrides]) == 0
    return reports(directory)[-1]["loss/validation"]


def test_weights_that_are_learned_in_the_run_train_where_the_same_weights_left_alone_do_not(tmp_path):
    chance = math.log(10.0)  # of ten digits
    assert min(losses("MuLO", tmp_path / "alone")) > 0.9 * chance
    assert max(losses("Ours_MuLO", tmp_path / "learned")) < 0.4 * chance
