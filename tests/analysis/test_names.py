"""Names from files: what they are in paths, LaTeX, Markdown, HTML, CSV and figures, and that they are nothing else."""

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import config, write_run, write_search

from hyperopt_id.analysis import names, paper, plotting
from hyperopt_id.analysis.collect import collect
from hyperopt_id.analysis.page import Text, page
from hyperopt_id.analysis.tables import Table, comma_separated, latex, markdown

HOSTILE = (
    "../../../escaped",
    "/absolute/path",
    r"\input{/etc/passwd}",
    r"a$b^c~d{e}f\g|h&i%j_k#l",
    "$",
    "$x",
    r"\$y$",
    "$\\frac{1}{$",
    "_hidden",
    "a\nb\x00c\ud800\u202e",
    "<script>alert(1)</script>",
    "**bold** [link](javascript:x) `code`",
    "..",
    "",
    "n" * 5000,
)
ONLY = ("final_losses", "searches", "variants", "learning_rates", "runtimes", "best_so_far")
AWKWARD = st.text(st.sampled_from("ab/.\\$^~{}|&%_#*<>\n\x00\ud800é中"), max_size=20)


@given(AWKWARD)
def test_a_component_is_a_file_in_its_folder(name: str):
    component = names.file_component(name)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", component)
    assert len(component) < 100
    assert names.inside(Path("folder"), component) == Path("folder") / component


def test_plain_names_stay_and_others_stay_apart():
    assert [names.file_component(name) for name in ("uci_energy", "digits_bn", "houses.2")] == [
        "uci_energy",
        "digits_bn",
        "houses.2",
    ]
    assert len({names.file_component(name) for name in HOSTILE}) == len(HOSTILE)
    with pytest.raises(AssertionError, match="is not in"):
        names.inside(Path("folder"), "../x")


@given(AWKWARD)
def test_latex_has_no_command_that_is_not_ours(name: str):
    text = names.in_latex(name)
    rest = re.sub(r"\\(text[a-z]+\{\}|dots\{\}|[&%_#${}])", "", text)
    assert not re.search(r"[\\${}^~&%#_|<>\n]", rest)


@given(AWKWARD)
def test_a_figure_shows_the_name_and_no_mathematics(name: str):
    from matplotlib import cbook

    for text in (names.in_figure(name), f"a: {names.in_figure(name)}, {names.in_figure(name)}"):
        assert not cbook.is_math_text(text)
    assert names.in_figure(name).replace(r"\$", "$").lstrip() == names.printable(name, names.TITLE).lstrip()
    assert not names.in_figure(name).startswith("_")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_table_stays_a_table(name: str):
    rows = [{"data set": name, "algorithm": name, "mean": 1.0}, {"data set": "other", "algorithm": name, "mean": 2.0}]
    table = Table("t", "", rows, "data set", ("mean",))
    lines = [line for line in markdown(table).splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [4] * 4
    assert len(latex(table).splitlines()) == 9
    assert [line.count("&") - line.count(r"\&") for line in latex(table).splitlines() if line.endswith(r"\\")] == [
        2
    ] * 3
    assert [row["mean"] for row in csv.DictReader(io.StringIO(comma_separated(table)))] == ["1.0", "2.0"]
    assert "<script" not in page(name, [Text(name), table])
    for text in (markdown(table), latex(table), comma_separated(table), page(name, [table])):
        text.encode()


def test_a_study_of_hostile_names_is_written_into_its_folder_and_nowhere_else(tmp_path: Path):
    chosen = [HOSTILE[place] for place in (0, 3, 14)]
    for number, name in enumerate(chosen):
        about = config(name, seed=number, task__name=name, inner__compile="off")
        curves = {"loss/test": [[2.0, 3.0], [1.0, 2.0]], "loss/validation": [[2.0, 3.0], [1.0, 2.0]]}
        write_run(tmp_path / f"runs/{number}", about, {**curves, "hyper/lr": [[0.1, 0.2]] * 2})
        write_run(tmp_path / f"runs/random{number}", {**about, "algorithm": "Random"}, curves)
        write_search(tmp_path / f"runs/search{number}", name, [(0, 1.0, 2.0), (1, 2.0, 1.0)], about)
    before = set(tmp_path.rglob("*"))
    study = collect([tmp_path / "runs"])
    assert study.remarks == ()
    written = paper.write(study, tmp_path / "deep/er/out", ONLY, say=str)
    new = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert new == set(written)
    assert all(path.is_relative_to(tmp_path / "deep/er/out") for path in new)
    assert len([path for path in new if path.name.startswith("final_losses_")]) == 2 * len(set(study.datasets))
    for table in (tmp_path / "deep/er/out/tables").glob("*.tex"):
        assert r"\input" not in table.read_text()


def test_a_link_in_the_output_folder_is_replaced_and_not_followed(tmp_path: Path):
    from matplotlib.figure import Figure

    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "figure.png").symlink_to(elsewhere)
    plotting.save(Figure(), tmp_path / "out" / "figure")
    assert elsewhere.read_text() == "mine"
    assert not (tmp_path / "out" / "figure.png").is_symlink()
