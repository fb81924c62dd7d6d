"""The command `scripts/paper_plots.py`."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from logs import config, write_run

from hyperopt_id.analysis import paper

SCRIPT = Path(__file__).parents[2] / "scripts" / "paper_plots.py"


def main(*arguments: object) -> int:
    """What the script does, in this process."""
    spec = importlib.util.spec_from_file_location("paper_plots", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(argument) for argument in arguments])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for algorithm, finished in (("Random", True), ("Ours_LR", True), ("Baydin", False)):
        about = config(algorithm)
        write_run(tmp_path / "runs" / algorithm, about, {"loss/test": [[4.0, 2.0]]}, finished=finished)
    return tmp_path / "runs"


def test_a_table_on_the_terminal(runs: Path):
    command = [sys.executable, SCRIPT, runs / "Random", runs / "Ours_LR"]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    assert (done.returncode, done.stderr) == (0, "")
    assert [row[1].strip() for row in rows[2:]] == ["Random", "Ours WD+LR"]
    assert rows[2][3].strip() == "2"


def test_files_and_what_is_missing(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(runs, "--out", tmp_path / "out", "--only", "final_losses", "searches") == 0
    said = capsys.readouterr()
    assert said.err == f"warning: not finished, left out: {runs / 'Baydin'}\n"
    assert said.out.splitlines() == [
        "table final_losses: 2 rows",
        "table searches: left out, it needs finished searches",
        "figure final_losses: 1 drawn",
        f"5 files in {tmp_path / 'out'}",
    ]
    assert sorted(file.name for file in (tmp_path / "out").rglob("*.*")) == [
        "final_losses.csv",
        "final_losses.md",
        "final_losses.tex",
        "final_losses_uci_energy.pdf",
        "final_losses_uci_energy.png",
    ]


def test_the_list_names_everything(capsys: pytest.CaptureFixture[str]):
    assert main("--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(paper.NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no runs: name the folders that hold them"),
        (["nowhere"], "there is no folder nowhere"),
        (["."], "holds no runs"),
        ([".", "--only", "losses"], "there is no table or figure 'losses'"),
        ([".", "--out", "out", "--only", "losses"], "there is no table or figure 'losses'"),
        ([".", "--only", "best_so_far"], "best_so_far is a figure, which needs a folder: name one with --out DIR"),
        ([".", "--only", "final_losses", "loss_medians"], "loss_medians is a figure"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("error: ")
    assert message in said.err


def test_a_damaged_run_is_left_out_in_one_line_and_the_others_are_shown(runs: Path, capsys: pytest.CaptureFixture[str]):
    (runs / "Random" / "metrics.jsonl").write_text("not json\n")
    assert main(runs) == 0
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "Random" in line]
    assert line.startswith(f"warning: left out: line 1 of {runs / 'Random' / 'metrics.jsonl'} is damaged")
    assert "Ours WD+LR" in said.out
    assert "Random" not in said.out


def test_losses_at_the_end_of_what_numbers_can_be_are_drawn(tmp_path: Path):
    """The axis has to have room beyond them, too."""
    for number, losses in enumerate(([[1e-300, 1.0]] * 2, [[1e308, 1e-320]] * 2, [[0.0, 1e307], [1e308, -1e308]])):
        write_run(tmp_path / "runs" / str(number), config("Ours_LR", seed=9 * number), {"loss/test": losses})
    only = ["final_losses", "loss_medians", "loss_envelopes"]
    assert main(tmp_path / "runs", "--out", tmp_path / "out", "--only", *only) == 0
    assert len(list((tmp_path / "out" / "figures").iterdir())) == 6
