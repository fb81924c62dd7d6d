"""Statistics against values computed by hand, and by trying all possibilities."""

import itertools

import numpy as np
import pytest
from logs import NAN

from hyperopt_id.analysis.statistics import (
    UNKNOWN,
    Estimate,
    band,
    estimate,
    estimate_selected,
    lowest,
    mean,
    median,
    quantiles,
    shares_of_batches,
)


@pytest.mark.parametrize(
    ("values", "statistic", "expected"),
    [
        ([1.0, 2.0, 6.0], np.mean, 3.0),
        ([1.0, 2.0, 6.0], np.median, 2.0),
        ([1.0, 2.0, 6.0], mean, 3.0),
        ([1.0, 2.0, 6.0], median, 2.0),
        ([1.0, NAN, 6.0, NAN], mean, 3.5),
        ([4.0, NAN, 1.0, 2.0], median, 2.0),
        ([4.0, NAN, 1.0, 2.0], lowest, 1.0),
    ],
)
def test_statistics_leave_failed_runs_out(values, statistic, expected):
    assert estimate(np.array(values), statistic).value == expected


def test_the_deviation_of_a_mean_is_that_of_the_values_over_the_root_of_their_number():
    values = np.random.default_rng(3).normal(size=400)
    found = estimate(values, mean, resamples=4000)
    assert found.deviation == pytest.approx(values.std() / 20.0, rel=0.05)
    assert (found.low, found.high) == pytest.approx(
        values.mean() + 1.96 * values.std() / 20.0 * np.array([-1, 1]), abs=0.01
    )
    assert found == estimate(values, mean, resamples=4000)
    assert found != estimate(values, mean, resamples=4000, seed=1)


def test_the_deviation_of_two_values_is_that_of_all_resamples():
    """Means of (0, 0), (0, 2), (2, 0), (2, 2) are 0, 1, 1, 2."""
    found = estimate(np.array([0.0, 2.0]), mean, resamples=100_000)
    assert found.deviation == pytest.approx(0.5**0.5, rel=0.01)
    assert (found.low, found.high) == (0.0, 2.0)


@pytest.mark.parametrize("others", [[], [np.nan, np.nan]])
def test_one_value_says_nothing_about_its_uncertainty(others: list[float]):
    values = np.array([3.0, *others])
    for found in (estimate(values, median), estimate_selected(values, values)):
        assert found.value == 3.0
        assert np.isnan(found[1:]).all()
        assert str(found) == "3.00"


def test_no_value_has_no_statistic():
    for found in (estimate(np.array([NAN, NAN]), mean), estimate_selected(np.array([NAN]), np.array([1.0]))):
        assert np.isnan(found).all()
        assert str(found) == str(UNKNOWN) == "–"


@pytest.mark.parametrize(
    ("value", "deviation", "shown"),
    [
        (0.30512, 0.0231, "0.305 ± 0.023"),
        (28.81, 2.44, "28.8 ± 2.4"),
        (1234.5, 6.7, "1234 ± 7"),
        (0.0, 0.0, "0.00 ± 0.00"),
        (1.234e-9, 5e-11, "1.23e-09 ± 5.0e-11"),
    ],
)
def test_an_estimate_is_shown_with_three_digits(value, deviation, shown):
    assert str(Estimate(value, deviation, 0.0, 0.0)) == shown


def test_what_validation_selects_is_the_test_value_of_the_lowest_validation_loss():
    validation, test = np.array([0.3, 0.1, 0.2, NAN]), np.array([1.0, 5.0, 2.0, 0.0])
    found = estimate_selected(validation, test, resamples=50_000)
    assert found.value == 5.0
    # of 3 runs drawn 3 times, the best is drawn with probability 19/27, else the second with 7/27, else the third
    middle = (19 * 5.0 + 7 * 2.0 + 1 * 1.0) / 27
    square = (19 * 25.0 + 7 * 4.0 + 1 * 1.0) / 27
    assert found.deviation == pytest.approx((square - middle**2) ** 0.5, rel=0.02)


def test_shares_of_batches_by_hand():
    """Of the 4 sets of 3 out of 4 runs, 3 hold the best one, and the other one keeps the second."""
    assert shares_of_batches(np.array([0.2, 0.1, NAN, 0.3]), 3).tolist() == [0.25, 0.75, 0.0, 0.0]
    assert shares_of_batches(np.array([5.0, 4.0, 3.0]), 3).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_shares_of_batches_are_those_of_all_sets(batch):
    losses = np.array([0.7, 0.2, NAN, 0.9, 0.1, 0.4, 0.3])
    kept = [
        min(group, key=lambda i: (np.isnan(losses[i]), losses[i])) for group in itertools.combinations(range(7), batch)
    ]
    assert shares_of_batches(losses, batch) == pytest.approx(np.bincount(kept, minlength=7) / len(kept))


def test_statistics_of_batches_are_those_of_all_sets():
    generator = np.random.default_rng(1)
    validation, test = generator.normal(size=9), generator.normal(size=9)
    kept = [test[min(group, key=lambda i: validation[i])] for group in itertools.combinations(range(9), 3)]
    weights = shares_of_batches(validation, 3)
    found = estimate(test, mean, weights=weights, resamples=20_000)
    assert found.value == pytest.approx(np.mean(kept))
    assert estimate(test, median, weights=weights).value == pytest.approx(np.median(kept))
    assert estimate(test, lowest, weights=weights).value == min(kept)
    assert found.deviation == pytest.approx(np.std(kept) / 3**0.5, rel=0.03)  # three batches of nine runs


def test_a_batch_of_failed_runs_has_failed():
    validation, test = np.array([0.1, 0.2, NAN, NAN, NAN]), np.array([1.0, 2.0, NAN, NAN, NAN])
    weights = shares_of_batches(validation, 3)
    assert weights[np.isnan(test)].sum() == pytest.approx(0.1)  # 1 of the 10 sets
    assert estimate(test, mean, weights=weights).value == pytest.approx((6 * 1.0 + 3 * 2.0) / 9)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_quantiles_of_equal_shares_are_numpys(count):
    values = np.random.default_rng(count).normal(size=(count, 3))
    shares = [0.0, 0.25, 0.5, 0.9, 1.0]
    np.testing.assert_allclose(quantiles(values, shares), np.quantile(values, shares, axis=0))
    doubled = quantiles(values, [0.5], np.full(count, 2.0))[0]
    np.testing.assert_allclose(doubled, np.median(values, axis=0))


def test_a_failed_run_is_worse_than_any_other_in_quantiles():
    values = np.array([NAN, 1.0, 3.0, 2.0, NAN])
    np.testing.assert_array_equal(quantiles(values, [0.0, 0.25, 0.5, 0.75, 1.0]), [1.0, 2.0, 3.0, NAN, NAN])
    weights = np.array([0.1, 0.2, 0.2, 0.4, 0.1])
    np.testing.assert_array_equal(quantiles(values, [0.1, 0.5, 0.7, 0.9], weights), [1.0, 2.0, 3.0, NAN])


def test_a_band_holds_the_statistic_and_is_as_wide_as_its_resamples():
    values = np.stack([np.array([0.0, 5.0]), np.array([2.0, 5.0])])
    middle, low, high = band(values, mean)
    np.testing.assert_array_equal([middle, low, high], [[1.0, 5.0], [0.0, 5.0], [2.0, 5.0]])


def test_a_band_is_open_where_resamples_have_no_value():
    """Of two values of which one is missing, resamples hold both, one or none of what is there: their medians are the
    value in one of four, and nothing in the others; of three of which one is missing, the median is in 20 of 27 one of
    those that are there."""
    two, three = np.array([[1.0], [NAN]]), np.array([[1.0], [2.0], [NAN]])
    for values, expected in (
        (two, (NAN, 1.0, np.inf)),
        (three, (2.0, 1.0, np.inf)),
        (two * NAN, (NAN, np.inf, np.inf)),
    ):
        found = band(values, lambda rows, axis: quantiles(rows, [0.5])[0])
        np.testing.assert_array_equal(np.ravel(found), expected)
