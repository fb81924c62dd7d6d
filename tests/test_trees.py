"""Laws of the algebra on trees."""

from typing import NamedTuple

import pytest
import torch
from laws import assert_identical, random

from hyperopt_id import trees


class Pair(NamedTuple):
    numbers: dict
    label: str


def tree(seed: int = 0):
    """Every kind of node and leaf: named tuple, dict, list, 0-d, matrix, integer, None and text."""
    numbers = {
        "scalar": random(seed=seed),
        "list": [random(2, 3, seed=seed + 1), None],
        "count": torch.tensor(seed),
    }
    return Pair(numbers, "train")


MEMBERS = [tree(seed) for seed in (0, 10, 20)]
ROUND_TRIPS = {
    "unstack after stack": lambda: trees.stack(trees.unstack(trees.stack(MEMBERS))),
    "like of leaves": lambda: trees.like(trees.stack(MEMBERS), trees.leaves(trees.stack(MEMBERS))),
    "identity map": lambda: trees.map(lambda leaf: leaf, trees.stack(MEMBERS)),
    "concatenate of takes": lambda: trees.concatenate(
        [trees.take(trees.stack(MEMBERS), slice(0, 1)), trees.take(trees.stack(MEMBERS), slice(1, 3))]
    ),
    "adding zeros": lambda: trees.add(trees.stack(MEMBERS), trees.zeros(trees.stack(MEMBERS))),
    "detached variables": lambda: trees.detach(trees.variables(floats(trees.stack(MEMBERS)))),
}


def floats(pair):
    return {"scalar": pair.numbers["scalar"], "list": pair.numbers["list"]}


@pytest.mark.parametrize("law", ROUND_TRIPS)
def test_round_trip(law):
    expected = trees.stack(MEMBERS)
    expected = floats(expected) if law == "detached variables" else expected
    found = ROUND_TRIPS[law]()
    assert type(found) is type(expected)
    assert_identical(trees.leaves(found), trees.leaves(expected))
    assert all(isinstance(leaf, torch.Tensor) for leaf in trees.leaves(found))


@pytest.mark.parametrize("member", range(3))
def test_take_of_stack_is_the_member(member):
    taken = trees.take(trees.stack(MEMBERS), member)
    assert taken.label == "train"
    assert taken.numbers["list"][1] is None
    assert_identical(trees.leaves(taken), trees.leaves(MEMBERS[member]))


@pytest.mark.parametrize("condition", [[True, True, True], [False, True, False], [False, False, False]])
def test_where_chooses_by_run(condition):
    yes, no = trees.stack(MEMBERS), trees.stack([tree(seed) for seed in (1, 11, 21)])
    chosen = trees.unstack(trees.where(torch.tensor(condition), yes, no))
    for found, flag, a, b in zip(chosen, condition, trees.unstack(yes), trees.unstack(no), strict=True):
        assert_identical(trees.leaves(found), trees.leaves(a if flag else b))


def test_where_chooses_for_a_single_run():
    assert_identical(trees.leaves(trees.where(torch.tensor(True), *MEMBERS[:2])), trees.leaves(MEMBERS[0]))


@pytest.mark.parametrize("law", ["inner", "norm"])
def test_products_with_a_run_axis_are_those_of_the_members(law):
    members = [floats(member) for member in MEMBERS]
    others = [floats(tree(seed)) for seed in (5, 6, 7)]
    if law == "inner":
        found = trees.inner(trees.stack(members), trees.stack(others), 1)
        expected = [trees.inner(a, b) for a, b in zip(members, others, strict=True)]
    else:
        found = trees.norm(trees.stack(members), 1).square()
        expected = [trees.inner(a, a) for a in members]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_total_of_a_run_is_finite_iff_all_its_numbers_are(bad):
    stacked = trees.stack(MEMBERS)
    stacked.numbers["list"][0][1, 1, 2] = bad
    assert trees.total(stacked, 1).isfinite().tolist() == [True, False, True]
    assert not trees.total(trees.take(stacked, 1)).isfinite()


def test_axes_vectorize_tensors_and_leave_the_rest():
    assert trees.axes(MEMBERS[0]) == Pair({"scalar": 0, "list": [0, None], "count": 0}, None)  # type: ignore
