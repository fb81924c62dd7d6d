"""Tables in three formats, and what is in them, by hand."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from logs import NAN, config, write_run, write_search

from hyperopt_id.analysis import results
from hyperopt_id.analysis.collect import collect
from hyperopt_id.analysis.load import load_run
from hyperopt_id.analysis.statistics import UNKNOWN, Estimate
from hyperopt_id.analysis.tables import Table, comma_separated, latex, lowest_cells, markdown

TABLE = Table(
    "example",
    "What it says.",
    [
        {"data set": "A & B", "algorithm": "Random (× LR)", "mean": Estimate(2.5, 0.125, 2.0, 3.0), "diverged %": 12.5},
        {"data set": "A & B", "algorithm": "Ours_LR", "mean": Estimate(1.5, 0.25, 1.0, 2.0), "diverged %": 0.0},
        {"data set": "C", "algorithm": "Ours_LR", "mean": UNKNOWN, "diverged %": None, "runs": 20000},
    ],
    block="data set",
    lowest=("mean",),
)


def test_markdown():
    assert markdown(TABLE) == (
        "What it says.\n"
        "\n"
        "| data set | algorithm | mean | diverged % | runs |\n"
        "| --- | --- | ---: | ---: | ---: |\n"
        "| A & B | Random (× LR) | 2.50 ± 0.12 | 12.5 | – |\n"
        "| A & B | Ours_LR | **1.50** ± 0.25 | 0 | – |\n"
        "| C | Ours_LR | – | – | 20000 |\n"
    )


def test_latex():
    assert latex(TABLE) == (
        "% What it says.\n"
        "\\begin{tabular}{llrrr}\n"
        "\\toprule\n"
        "data set & algorithm & mean & diverged \\% & runs \\\\\n"
        "\\midrule\n"
        "A \\& B & Random ($\\times$ LR) & $2.50 \\pm 0.12$ & 12.5 & -- \\\\\n"
        "A \\& B & Ours\\_LR & $\\mathbf{1.50} \\pm 0.25$ & 0 & -- \\\\\n"
        "\\midrule\n"
        "C & Ours\\_LR & -- & -- & 20000 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


def test_the_lowest_stands_out_among_those_without_failures():
    rows = [{"mean": value, "failed %": failed} for value, failed in ((1.0, 0.5), (3.0, 0.0), (2.0, 0.0))]
    assert lowest_cells(Table("x", "", rows, lowest=("mean",))) == {(0, "mean")}
    assert lowest_cells(Table("x", "", rows, lowest=("mean",), failures="failed %")) == {(2, "mean")}
    assert lowest_cells(Table("x", "", rows[:2], lowest=("mean",), failures="failed %")) == set()  # nothing to compare


def test_csv_has_all_digits():
    first, _, last = csv.DictReader(io.StringIO(comma_separated(TABLE)))
    assert list(first) == [
        "data set",
        "algorithm",
        "mean",
        "mean deviation",
        "mean low",
        "mean high",
        "diverged %",
        "runs",
    ]
    assert [first[name] for name in ("mean", "mean deviation", "mean low", "mean high")] == [
        "2.5",
        "0.125",
        "2.0",
        "3.0",
    ]
    assert (first["runs"], last["mean"], last["mean low"], last["runs"]) == ("", "", "", "20000")


def test_a_row_of_runs_by_hand(tmp_path: Path):
    """Four runs, of which one failed; the lowest test value was reached on the way by a run that ends worse."""
    curves = {
        "loss/test": [[0.5, 3.0, 9.0, 0.1], [2.0, 1.0, 6.0, NAN]],
        "loss/validation": [[1.0, 1.0, 1.0, 1.0], [0.2, 0.3, 0.4, NAN]],
    }
    row = results.row(load_run(write_run(tmp_path / "run", config("Ours_LR_Momentum"), curves)))
    assert (row["data set"], row["algorithm"], row["metric"]) == ("UCI Energy", "Ours WD+LR+M", "test loss")
    assert (row["starts"], row["diverged %"], row["seconds"]) == (4, 25.0, 10.0)
    assert [row[name].value for name in ("mean", "median", "best on test", "selected")] == [3.0, 2.0, 0.5, 2.0]


def test_a_row_of_batches_by_hand(tmp_path: Path):
    curves = {"loss/test": [[3.0, 1.0, 2.0, 9.0]], "loss/validation": [[0.3, 0.2, 0.1, NAN]]}
    write_run(tmp_path / "run", config("Random_Validation"), curves)
    table = results.final_losses(collect([tmp_path]))
    row = table.rows[1]
    assert (row["algorithm"], row["starts"], row["selected"], row["seconds"]) == ("Random (3-batched)", 1, None, None)
    assert (row["mean"].value, row["median"].value, row["best on test"].value) == (1.75, 2.0, 1.0)


def test_error_rates_are_one_minus_accuracy(tmp_path: Path):
    curves = {"loss/test": [[1.0, 2.0]], "accuracy/test": [[0.75, 0.5]], "loss/validation": [[1.0, 2.0]]}
    write_run(tmp_path / "run", config("Ours_LR", dataset="digits"), curves)
    study = collect([tmp_path])
    (row,) = results.error_rates(study).rows
    assert (row["mean"].value, row["selected"].value, row["metric"]) == (0.375, 0.25, "test error rate")
    assert results.final_losses(study).rows[0]["metric"] == "test cross-entropy"


def test_a_row_of_a_search_by_hand(tmp_path: Path):
    evaluations = [(0, 0.5, 5.0), (0, 0.3, 3.0), (1, 0.4, 4.0), (1, 0.6, 1.0), (2, None, None)]
    write_search(tmp_path / "search", "ASHA + Ours_LR_Momentum", evaluations, config("Ours_LR_Momentum"))
    (row,) = results.searches(collect([tmp_path])).rows
    assert (row["algorithm"], row["repetitions"]) == ("ASHA + Ours WD+LR+M", 3)
    assert (row["mean"].value, row["best on test"].value, row["failed %"]) == (3.5, 1.0, pytest.approx(100 / 3))
    assert (row["gradients"], row["seconds"]) == (pytest.approx(500 / 3), pytest.approx(10 / 3))


def test_runtimes_are_multiples_of_vanilla_training(tmp_path: Path):
    """8 s of 10 are training; two runs of 40 steps."""
    curves = {"loss/test": [[1.0, 1.0]] * 4}
    write_run(tmp_path / "r", config("Random"), curves)
    write_run(tmp_path / "o", config("Ours_LR"), curves, seconds={"total": 18.0})
    rows = results.runtimes(collect([tmp_path])).rows
    assert {row["measured"] for row in rows} == {"no: side by side or compiled"}
    assert [row["of vanilla training"] for row in rows] == [1.0, 2.0]
    assert rows[0]["seconds per run and 1000 steps"] == 100.0


def test_every_statistic_is_shown_with_its_deviation_in_all_formats(tmp_path: Path):
    """Of two runs with 1 and 2, a resample's best and selected value is 2 with probability 1/4."""
    curves = {"loss/test": [[1.0, 2.0]], "loss/validation": [[1.0, 2.0]]}
    write_run(tmp_path / "run", config("Ours_LR"), curves)
    table = results.final_losses(collect([tmp_path]))
    (row,) = table.rows
    names = ("mean", "median", "best on test", "selected")
    shown = dict(zip(table.columns, markdown(table).splitlines()[-1].strip("| ").split(" | ")))
    typeset = dict(zip(table.columns, latex(table).splitlines()[-3].split(" & ")))
    (digits,) = csv.DictReader(io.StringIO(comma_separated(table)))
    for name in names:
        assert shown[name] == str(row[name]) == f"{row[name].value:.2f} ± {row[name].deviation:.2f}"
        assert typeset[name] == f"${str(row[name]).replace('±', chr(92) + 'pm')}$"
        assert float(digits[f"{name} deviation"]) == row[name].deviation
    for name in names[2:]:
        assert row[name].value == 1.0
        assert row[name].deviation == pytest.approx((1 / 4 * 3 / 4) ** 0.5, abs=0.03)


def test_the_best_model_of_searches_has_a_deviation_over_repetitions(tmp_path: Path):
    """The lowest of the repetitions are 1 and 3."""
    write_search(tmp_path / "s", "PBT", [(0, 0.5, 4.0), (0, 0.6, 1.0), (1, 0.5, 3.0)], config("Random_TrainingSetOnly"))
    (row,) = results.searches(collect([tmp_path])).rows
    assert (row["best on test"].value, row["best on test"].low, row["best on test"].high) == (1.0, 1.0, 3.0)
    assert row["best on test"].deviation == pytest.approx(2.0 * (1 / 4 * 3 / 4) ** 0.5, abs=0.06)


def test_cost_is_measured_by_runs_that_trained_alone(tmp_path: Path):
    """A population of four beside runs of their own, all uncompiled: 8 s for 40 steps of one run count."""
    for name, seconds in (("Random", 10.0), ("Ours_LR", 18.0)):
        about = config(name, inner__compile="off", seed=9)
        write_run(tmp_path / name, about, {"loss/test": [1.0] * 4}, seconds={"total": seconds})
        write_run(tmp_path / f"{name}4", {**about, "seed": 0}, {"loss/test": [[1.0] * 4] * 4})
    rows = results.runtimes(collect([tmp_path])).rows
    assert [row["of vanilla training"] for row in rows] == [1.0, 2.0]
    assert [row["measured"] for row in rows] == ["alone, not compiled"] * 2
    assert rows[0]["seconds per run and 1000 steps"] == 200.0


def test_variants_say_what_they_vary(tmp_path: Path):
    for terms in (2, 5):
        about = config(
            "Ours_LR",
            hypergradient__engine="neumann",
            hypergradient__terms=terms,
            meta__rule="none" if terms == 2 else "adam",
        )
        write_run(tmp_path / str(terms), about, {"loss/test": [float(terms)]})
    study = collect([tmp_path])
    rows = {row["algorithm"]: row["mean"].value for row in results.variants(study).rows}
    assert rows == {"Ours WD+LR, meta rule = none, K = 2": 2.0, "Ours WD+LR, meta rule = adam, K = 5": 5.0}
    assert results.validation_fractions(study) is results.batch_norm(study) is results.long_horizon(study) is None


def test_tables_of_pairs_and_fractions(tmp_path: Path):
    losses = {"loss/test": [[1.0, 2.0]]}
    write_run(tmp_path / "plain", config("Ours_LR", dataset="digits"), losses)
    write_run(tmp_path / "bn", config("Ours_LR", dataset="digits", task__model={"batch_norm": True}), losses)
    write_run(tmp_path / "half", config("Ours_LR", dataset="digits", task__validation_fraction=0.5), losses)
    study = collect([tmp_path])
    assert [row["data set"] for row in results.batch_norm(study).rows] == ["Digits", "Digits, batch norm"]
    rows = results.validation_fractions(study).rows
    assert [row["algorithm"] for row in rows] == [f"Ours WD+LR, validation fraction {f}" for f in ("standard", "0.5")]


def test_accuracies_of_hypergradients_are_listed(tmp_path: Path):
    for engine, value in (("neumann", 1.0), ("unroll", 2.0)):
        about = config(engine, hypergradient={"engine": engine, "terms": 10, "window": None})
        write_run(tmp_path / engine, about, {"loss/test": [[1.0, 2.0]], "hypergradient/lr": [[value, 4.0]]})
    rows = results.hypergradient_accuracy(collect([tmp_path])).rows
    assert [(row["exact through"], row["T"], row["K"]) for row in rows] == [("K steps", 10, 10), ("T steps", 10, 10)]
    assert rows[0]["relative error"].value == rows[0]["mean error"].value == 0.25
    assert rows[0]["1 − cosine"].value == pytest.approx(0.0)  # of one number each
    assert np.isclose(rows[0]["error, lr"].value, 0.25)


def test_one_run_has_no_deviation_and_does_not_stand_out_beside_many(tmp_path: Path):
    write_run(tmp_path / "many", config("Ours_LR"), {"loss/test": [[2.0 + 0.01 * n for n in range(20)]]})
    write_run(tmp_path / "other", config("Lorraine"), {"loss/test": [[3.0 + 0.01 * n for n in range(20)]]})
    write_run(tmp_path / "one", config("Baydin"), {"loss/test": [1.0]})
    table = results.final_losses(collect([tmp_path]))
    cells = {row["algorithm"]: str(row["mean"]) for row in table.rows}
    assert cells["Baydin"] == "1.00"
    assert [table.rows[row]["algorithm"] for row, column in sorted(lowest_cells(table)) if column == "mean"] == [
        "Ours WD+LR"
    ]
    assert "$1.00$" in latex(table)
    digits = {row["algorithm"]: row for row in csv.DictReader(io.StringIO(comma_separated(table)))}
    assert (digits["Baydin"]["mean"], digits["Baydin"]["mean deviation"]) == ("1.0", "")
