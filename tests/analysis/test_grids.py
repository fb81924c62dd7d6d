"""Grids over (T, K), and the accuracy of hypergradients by hand."""

from pathlib import Path

import numpy as np
from logs import NAN, config, write_run

from hyperopt_id.analysis import grids
from hyperopt_id.analysis.collect import collect


def write_grid(folder: Path, engine: str, vectors, **changed) -> None:
    """Runs of two seeds with hypergradients [2, 2] for each (T, K)."""
    for (steps, terms), values in vectors.items():
        about = config("Ours_LR" if engine == "neumann" else "DiffThroughOpt", hypergradient__engine=engine, **changed)
        about["hypergradient"] |= {"terms": terms, "window": terms}
        about["inner"] |= {"steps_per_update": steps, "updates": 1}
        curves = {"hypergradient/lr": [[v[0] for v in values]], "hypergradient/weight_decay": [[v[1] for v in values]]}
        write_run(folder / f"{engine}_{steps}_{terms}", about, {"loss/test": [[1.0, 2.0 * terms]], **curves})


def test_errors_and_cosines_of_hypergradients_by_hand(tmp_path: Path):
    write_grid(
        tmp_path,
        "neumann",
        {(1, 1): [(3.0, 4.0), (1.0, 0.0)], (2, 1): [(0.0, 5.0), (2.0, 0.0)], (2, 2): [(1.0, 1.0)] * 2},
    )
    write_grid(tmp_path, "unroll", {(1, 1): [(3.0, 4.0), (0.0, 2.0)], (2, 2): [(3.0, 4.0), (4.0, 0.0)]})
    found = grids.accuracies(collect([tmp_path]), "uci_energy")
    assert {name: list(cells) for name, cells in found.items()} == {
        "K steps": [(1, 1), (2, 2)],
        "T steps": [(1, 1), (2, 1), (2, 2)],
    }
    same = found["K steps"][1, 1]
    np.testing.assert_allclose(same.errors, [0.0, 5.0**0.5 / 2.0])
    np.testing.assert_allclose(same.distances, [0.0, 1.0])
    np.testing.assert_allclose(same.parts["lr"], [0.0, NAN])
    whole = found["T steps"][2, 1]
    np.testing.assert_allclose(whole.errors, [10.0**0.5 / 5.0, 0.5])
    np.testing.assert_allclose(whole.distances, [0.2, 0.0], atol=1e-15)
    np.testing.assert_allclose(whole.parts["lr"], [1.0, 0.5])


def test_hypergradients_of_other_starts_or_later_updates_are_not_compared(tmp_path: Path):
    vectors = {(1, 1): [(3.0, 4.0), (1.0, 0.0)]}
    write_grid(tmp_path / "a", "neumann", vectors)
    write_grid(tmp_path / "a", "unroll", vectors, seed=2)
    assert grids.accuracies(collect([tmp_path / "a"]), "uci_energy") == {}
    for engine in ("neumann", "unroll"):
        about = config("Ours_LR", hypergradient__engine=engine)
        curves = {"loss/test": [[1.0, 2.0]] * 2, "hypergradient/lr": [[1.0, 2.0]] * 2}
        write_run(tmp_path / "b" / engine, about | {"algorithm": engine}, curves, every=2)  # hyperparameters have moved
        held = {**about, "algorithm": engine, "meta": {"rule": "none"}}
        write_run(tmp_path / "c" / engine, held, curves, every=2)
    assert grids.accuracies(collect([tmp_path / "b"]), "uci_energy") == {}
    found = grids.accuracies(collect([tmp_path / "c"]), "uci_energy")  # a window of None is that of all T = 10 steps
    assert {name: [(cell, len(a.errors)) for cell, a in of.items()] for name, of in found.items()} == {
        "T steps": [((10, 5), 4)]
    }


def test_the_grid_is_the_largest_set_that_differs_in_t_and_k_alone(tmp_path: Path):
    vectors = {(steps, terms): [(1.0, 1.0)] * 2 for steps in (1, 2) for terms in (1, 2)}
    write_grid(tmp_path / "grid", "neumann", vectors)
    write_grid(tmp_path / "held", "neumann", {**vectors, (3, 3): [(1.0, 1.0)] * 2}, meta__rule="none")
    write_grid(tmp_path / "other", "neumann", {(10, 5): [(1.0, 1.0)] * 2}, task__validation_fraction=0.5)
    found = grids.sensitivity(collect([tmp_path]), "uci_energy")
    assert {engine: sorted(cells) for engine, cells in found.items()} == {"neumann": sorted(vectors)}
