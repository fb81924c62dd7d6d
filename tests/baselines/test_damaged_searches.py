"""Files of a search that are damaged, foreign or lost: one line that names the file, or the same numbers again."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from short_runs import TINY, into
from short_runs import config as files
from short_searches import config, lines, timeless

from baselines import arguments, bayesopt
from baselines.ledger import lines as logged
from hyperopt_id import cli
from hyperopt_id.telemetry import read_json

OPTIONS = ["--evaluations", "3", "--random", "2", "-s", *TINY]
ODD = {
    "nothing": b"",
    "half": None,
    "no JSON": b"\x00\xff{",
    "a list": b"[1, 2]",
    "a number": b"NaN",
    "deep": b"[" * 100_000,
    "another form": b'{"method": 1, "repetitions": [{}], "final": {"loss/validation": 3}, "seconds": 5}',
}
PLACES = ("search.json", "search.jsonl", "summary.json", "config.yaml", "identity.json", "runs/round_000/summary.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bayesopt") / "search"
    assert arguments.main(bayesopt.run, [*files("digits"), *into(directory), *OPTIONS]) == 0
    return directory


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_file_is_named_in_one_line_or_made_again(whole, tmp_path, capsys, place, odd):
    """By what goes on with the search, and by what replays it."""
    directory = shutil.copytree(whole, tmp_path / "search")
    text = (directory / place).read_bytes()
    (directory / place).write_bytes(text[: len(text) // 2] if odd == "half" else ODD[odd])
    given = [*files("digits"), *into(directory), *OPTIONS, "--resume"]
    replayed = [str(directory), *into(tmp_path / "replay"), "--progress", "none"]
    for command in (lambda: arguments.main(bayesopt.run, given), lambda: cli.replay(replayed)):
        status, said = command(), capsys.readouterr().err
        if status == 0:
            assert timeless(lines(directory)) == timeless(lines(whole))
        else:
            assert status == 2
            assert said.startswith("error: ")
            assert said.count("\n") == 1
            assert str(directory) in said
            assert len(said) < 1000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss/validation": float("nan")}, "NaN is no number of JSON"),
        ({"loss/validation": "low"}, "line 2 of .*: loss/validation: needs a finite number or null, found 'low'"),
        ({"evaluation": 0}, "line 2 of .*search.jsonl repeats line 1's evaluation"),
        ({"evaluation": -1}, "evaluation: needs an integer of 0 or more, found -1"),
        ({"run": "../../elsewhere"}, "run: needs the path of a folder below the search"),
        ({"run": "/etc"}, "run: needs the path of a folder below the search"),
        ({"gradients": None}, "gradients: needs a finite number of 0 or more, found None"),
    ],
)
def test_lines_that_tell_of_no_evaluation_are_named(whole, tmp_path, capsys, change, said):
    directory = shutil.copytree(whole, tmp_path / "search")
    found = lines(directory)
    text = "".join(json.dumps(line | (change if number == 1 else {})) + "\n" for number, line in enumerate(found))
    (directory / "search.jsonl").write_text(text)
    with pytest.raises(ValueError, match=said):
        bayesopt.search(config(), directory, evaluations=3, random=2)


def test_lost_lines_are_logged_again(whole, tmp_path):
    """Their rounds are there; the proposals that they lead to are the same."""
    for lost in range(3):
        directory = shutil.copytree(whole, tmp_path / f"search_{lost}")
        (directory / "summary.json").unlink()
        text = (directory / "search.jsonl").read_text().splitlines(keepends=True)
        (directory / "search.jsonl").write_text("".join(text[:lost] + text[lost + 1 :]))
        shutil.rmtree(directory / "runs" / "round_002")
        bayesopt.search(config(), directory, evaluations=3, random=2)
        found = sorted(timeless(lines(directory)), key=lambda line: line["evaluation"])
        assert found == timeless(lines(whole))
        assert timeless(read_json(directory / "summary.json")) == timeless(read_json(whole / "summary.json"))


def test_a_log_of_trials_that_has_lost_a_line_is_refused(whole, tmp_path):
    found = [{**line, "diverged": False, "explored": None} for line in lines(whole)]
    (tmp_path / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (found[0], found[2])))
    with pytest.raises(ValueError, match="line 2 is evaluation 2, where 1 was to come: lines are lost"):
        logged(tmp_path)


def test_what_is_no_file_is_named(whole, tmp_path, capsys):
    for place, make in ((p, m) for p in PLACES[:3] for m in (os.mkfifo, os.mkdir)):
        directory = shutil.copytree(whole, tmp_path / f"{random.getrandbits(32)}")
        (directory / place).unlink()
        make(directory / place)
        status = arguments.main(bayesopt.run, [*files("digits"), *into(directory), *OPTIONS, "--resume"])
        said = capsys.readouterr().err
        if status == 0:  # a summary is made again
            assert timeless(read_json(directory / place)) == timeless(read_json(whole / place))
        else:
            assert (status, said.count("\n")) == (2, 1), said
            assert str(Path(place).name) in said


def test_an_unfinished_search_is_not_replayed(whole, tmp_path, capsys):
    directory = shutil.copytree(whole, tmp_path / "search")
    (directory / "summary.json").unlink()
    assert cli.replay([str(directory)]) == 2
    assert "is not finished" in capsys.readouterr().err
