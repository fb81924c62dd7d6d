"""The report of a comparison, as people see it: the page that `scripts/compare.py` writes."""

import importlib.util
from pathlib import Path

from hyperopt_id.analysis import comparison
from hyperopt_id.analysis.load_search import Search

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare.py"


def search(method: str, level: float) -> Search:
    lines = [
        {
            "repetition": repetition,
            "run": f"runs/{number}",
            "member": 0,
            "gradients": 100.0 * (number + 1),
            "seconds": number + 1.0,
            "loss/validation": (level + 0.1 * repetition) / (number + 1),
            "loss/test": (level + 0.1 * repetition) / (number + 1),
        }
        for repetition in range(3)
        for number in range(4)
    ]
    repetitions = [tuple(line for line in lines if line["repetition"] == p) for p in range(3)]
    return comparison.merged([Search("uci_energy", method, method, tuple(repetitions), ())])


def test_text_table_and_figure_fit_the_window(browser, tmp_path: Path):
    spec = importlib.util.spec_from_file_location("compare", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    compare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare)
    searches = {"Ours_LR": search("Ours_LR", 1.0), "Random": search("Random", 8.0)}
    compare.write(searches, tmp_path, "What a < b & c mean.", "python scripts/compare.py -c 'a b'")
    browser.open((tmp_path / "report.html").as_uri())
    browser.wait_for("Hyperparameter optimization on UCI Energy", "What a < b & c mean.", "-c 'a b'")
    browser.wait_for("Ours WD+LR", "Random", "median, 95 %", "0.275", "2.02", "gradient evaluations")
    (drawn,) = browser.find("svg")
    (table,) = browser.find("table")
    assert drawn["width"] > 500
    assert drawn["height"] > 200
    for part in (drawn, table):
        assert 0 <= part["x"] <= part["x"] + part["width"] <= 1600
    assert browser.errors() == []
