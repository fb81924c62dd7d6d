"""The report of a comparison, as people see it."""

from pathlib import Path

from hyperopt_id.analysis import comparison, plotting
from hyperopt_id.analysis.figures_cost import draw_best_so_far
from hyperopt_id.analysis.load_search import Search
from hyperopt_id.analysis.page import Heading, Picture, Text, page


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
    searches = {"Ours_LR": search("Ours_LR", 1.0), "Random": search("Random", 8.0)}
    with plotting.matplotlib().rc_context(plotting.STYLE):
        figure = draw_best_so_far("uci_energy", searches)
        parts = [Text("a < b & c"), comparison.table(searches, "x"), Heading("Costs"), Picture(figure, "A caption.")]
        (tmp_path / "report.html").write_text(page("A title", parts), encoding="utf-8")
    browser.open((tmp_path / "report.html").as_uri())
    browser.wait_for("A title", "a < b & c", "Ours WD+LR", "Random", "median, 95 %", "0.275", "2.02", "A caption.")
    (drawn,) = browser.find("svg")
    (table,) = browser.find("table")
    assert drawn["width"] > 500
    assert drawn["height"] > 200
    for part in (drawn, table):
        assert 0 <= part["x"] <= part["x"] + part["width"] <= 1600
    assert browser.errors() == []
