"""The hyperparameter trace holds the values that training used, of every granularity, interrupted or not."""

import logging

import numpy as np
import pytest
import torch
from short_runs import ENGINES, POPULATIONS, interrupted, reports, train

from hyperopt_id import cli
from hyperopt_id.telemetry import trace
from hyperopt_id.telemetry.trace import open_trace, read_trace

EVERY_REPORT = ["report={every: 1, checkpoint_every: 2, trace_every: 1}"]
TENSORS = ("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias")
TUNE_ALL = [
    "space.lr.tune=[global]",
    "space.weight_decay.tune=[tensor]",
    "space.momentum.tune=[element]",
    "hypergradient={engine: neumann, terms: 2}",
]


@pytest.mark.parametrize("members", POPULATIONS)
def test_row_u_is_what_the_report_after_hyper_update_u_says(members, tmp_path):
    run = train(tmp_path / "run", *TUNE_ALL, *POPULATIONS[members], *EVERY_REPORT)
    steps, values = read_trace(run)
    assert steps == 3
    assert set(values) == {"lr", *(f"{name}/{k}" for name in ("weight_decay", "momentum") for k in TENSORS)}
    for report in reports(run)[:-1]:  # nothing is trained with the values after the last update
        row = report["update"]
        np.testing.assert_array_equal(values["lr"][row], np.float32(report["hyper/lr"]))
        for k in TENSORS:
            np.testing.assert_array_equal(values[f"weight_decay/{k}"][row], np.float32(report["hyper/weight_decay"][k]))
            element = values[f"momentum/{k}"][row]
            low = element.reshape(len(element), -1).min(1)
            np.testing.assert_array_equal(low, np.float32(report["hyper/momentum"][k]["min"]))


def test_row_0_is_where_hyperparameters_start(tmp_path):
    starts = {"lr": [0.1, 0.01], "momentum": [0.25, 0.75]}
    run = train(tmp_path / "run", *ENGINES["neumann"], "population.runs=2", f"population.start={starts}")
    _, values = read_trace(run)
    np.testing.assert_allclose(values["lr"][0], starts["lr"], rtol=1e-6)
    np.testing.assert_allclose(values["momentum/layers.0.weight"][0], starts["momentum"], rtol=1e-6)


def test_a_resumed_run_has_the_trace_of_an_uninterrupted_one(tmp_path):
    whole = train(tmp_path / "whole", *TUNE_ALL)
    cut = interrupted(whole, tmp_path / "cut", update=3)
    for path in (cut / "trace").rglob("*.npy"):
        np.load(path, mmap_mode="r+")[3:] = -1.0  # rows that are made again
    assert cli.train(["--resume", str(cut), "--progress", "none"]) == 0
    (_, left), (_, right) = read_trace(whole), read_trace(cut)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name])


def test_fixed_hyperparameters_are_one_row(tmp_path):
    steps, values = read_trace(train(tmp_path / "run", *ENGINES["none"]))
    assert steps == 18
    assert {name: value.shape for name, value in values.items()} == dict.fromkeys(
        ("lr", "weight_decay", "momentum"), (1, 1)
    )


def test_trace_every_0_leaves_no_trace(tmp_path):
    run = train(tmp_path / "run", *ENGINES["neumann"], "report.trace_every=0")
    with pytest.raises(ValueError, match=r"has no hyperparameter trace .*report\.trace_every"):
        read_trace(run)


@pytest.mark.parametrize("kept,rows", [(1000, 10), (400, 5), (100, 1), (1, 1)])
def test_rows_are_dropped_evenly_where_a_whole_trace_would_be_too_large(kept, rows, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trace, "LARGEST", kept)
    values = {"lr": {"w": torch.zeros(2, 10)}}  # 80 bytes a row, 10 rows
    with caplog.at_level(logging.INFO, "hyperopt_id"):
        opened = open_trace(tmp_path, values, updates=10, steps_per_update=7, every=None)
    for update in range(11):
        opened.write(update, {"lr": {"w": torch.full((2, 10), float(update))}})
    steps, read = read_trace(tmp_path)
    assert steps == 7 * opened.every
    assert read["lr/w"][:, 0, 0].tolist() == [float(u) for u in range(0, 10, opened.every)]
    assert len(read["lr/w"]) == rows
    assert ("report.trace_every=1" in caplog.text) == (opened.every > 1)
