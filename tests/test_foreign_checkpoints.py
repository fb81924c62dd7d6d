"""A checkpoint that is not one of the run, whole and unedited, is passed over in one line, as is what is no file."""

import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import ENGINES, assert_same_run, interrupted, summary, train

from hyperopt_id import checkpoint, cli, experiment
from hyperopt_id.build.names import from_config
from hyperopt_id.config import load

Record = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(folder):
    return train(folder / "whole", *ENGINES["neumann"])


OTHERS = {
    "seed": ["seed=3"],
    "width": ["task.model.sizes=[64,6,10]"],
    "population": ["population={runs: 2, lift: loop, sample: false}"],
    "learning rate": ["space.lr.init=0.5"],
}


@pytest.fixture(scope="module", params=OTHERS)
def other(request, folder):
    return train(folder / request.param, *ENGINES["neumann"], *OTHERS[request.param])


def resumed(whole: Path, cut: Path, capsys: pytest.CaptureFixture, said: str) -> None:
    """The run in `cut` passes over its newest checkpoint, says why in one line, and ends with the same numbers."""
    capsys.readouterr()
    assert cli.train(["--resume", str(cut)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "step_000000004.pt is unusable and is passed over" in lines[0]
    assert said in lines[0]
    assert len(lines[0]) < 800
    assert "weights_only" not in lines[0]
    assert_same_run(whole, cut)


def test_a_checkpoint_of_another_run_is_passed_over(whole, other, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=4)
    newest = cut / "checkpoints" / "step_000000004.pt"
    newest.write_bytes((other / "checkpoints" / "step_000000004.pt").read_bytes())
    resumed(whole, cut, capsys, "it is of another run: its")


def test_a_checkpoint_of_another_run_is_known_by_its_structure_where_no_identity_says_it(
    whole, folder, tmp_path, capsys
):
    cut = interrupted(whole, tmp_path / "cut", update=4)
    wide = train(tmp_path / "wide", *ENGINES["neumann"], "task.model.sizes=[64,6,10]")
    record = torch.load(wide / "checkpoints" / "step_000000004.pt", weights_only=True)
    torch.save({**record, "identity": None}, cut / "checkpoints" / "step_000000004.pt")
    resumed(whole, cut, capsys, "run/z/params/layers.0.weight is float32 [1, 6, 64], needed is float32 [1, 4, 64]")


def of(*path: str) -> Callable[[Record], dict[str, Any]]:
    def find(record: Record) -> dict[str, Any]:
        place: Any = record["tree"]
        for name in path:
            place = place[name]
        return place

    return find


PARAMS, RAW, RUN, TREE = of("run", "z", "params"), of("run", "raw"), of("run"), of()
WEIGHT = "layers.0.weight"
EDITS: dict[str, tuple[Callable[[Record], object], str]] = {
    "a missing parameter": (lambda r: PARAMS(r).pop(WEIGHT), "run/z/params lacks layers.0.weight"),
    "a parameter too many": (lambda r: PARAMS(r).update(more=torch.zeros(1)), "run/z/params has more"),
    "another type": (lambda r: PARAMS(r).update({WEIGHT: PARAMS(r)[WEIGHT].double()}), "is float64 [1, 4, 64]"),
    "another shape": (lambda r: PARAMS(r).update({WEIGHT: PARAMS(r)[WEIGHT].mT}), "needed is float32 [1, 4, 64]"),
    "a number for a tensor": (lambda r: PARAMS(r).update({WEIGHT: 1.0}), "needed is a tensor"),
    "weights that are not finite": (lambda r: PARAMS(r)[WEIGHT].fill_(math.inf), "layers.0.weight is not finite"),
    "a rate that is no number": (lambda r: RAW(r)["lr/global"].fill_(math.nan), "raw: lr/global is not finite"),
    "no raw values": (lambda r: RUN(r).pop("raw"), "run lacks raw"),
    "a list for a yes or no": (lambda r: TREE(r).update(compile=[False]), "compile: needs"),
    "a negative update": (lambda r: TREE(r).update(update=-1), "it is of hyper-update -1"),
    "an update beyond the end": (lambda r: TREE(r).update(update=7), "it is of hyper-update 7, and this run has 6"),
    "another update": (lambda r: TREE(r).update(update=3), "it is of hyper-update 3, and its name says 4"),
    "text for an update": (lambda r: TREE(r).update(update="4"), "update: needs an integer"),
    "another step": (lambda r: r.update(step=3), "it is of step 3, and its name says 4"),
    "no tree": (lambda r: r.pop("tree"), "tree is missing"),
    "a list for a tree": (lambda r: r.update(tree=[1]), "needs a mapping, found a list"),
    "another version": (lambda r: r.update(format=2), "format 2, this version reads 1"),
    "an identity that is damaged": (lambda r: r.update(identity=7), "an identity that is damaged"),
    "diverged before its start": (lambda r: RUN(r)["diverged_at"].fill_(-2), "diverged_at has a number"),
    "more skipped than made": (lambda r: RUN(r)["skipped"].fill_(5), "skipped has a number"),
    "seconds that run backwards": (lambda r: of("seconds")(r).update(total=-1.0), "seconds: total"),
    "weights that were edited": (lambda r: PARAMS(r)[WEIGHT].mul_(1.001), "its content is not the one that was saved"),
    "a best that was edited": (lambda r: of("best")(r)["update"].add_(1), "its content is not the one that was saved"),
    "no identity": (lambda r: r.update(identity=None), "its content is not the one that was saved"),
    "metrics of another population": (lambda r: of("best")(r).update(x=torch.zeros(2)), "best: x is float32 [2]"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_checkpoint_is_passed_over(edit, whole, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=4)
    newest = cut / "checkpoints" / "step_000000004.pt"
    record = torch.load(newest, weights_only=True)
    change, said = EDITS[edit]
    change(record)
    torch.save(record, newest)
    resumed(whole, cut, capsys, said)


class Code:
    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**7)


def sparse(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 10**11)


def padded(path: Path) -> None:
    torch.save({"format": 1, "step": 4, "tree": {}}, path)
    path.write_bytes(bytes(2**20) + path.read_bytes())


NO_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "is no regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "cannot be read"),
    "a zip bomb": (bomb, "it is compressed"),
    "a hundred gigabytes": (sparse, "has 100000000000 bytes"),
    "code": (
        lambda path: torch.save({"format": 1, "step": 4, "tree": Code()}, path),
        "UnpicklingError: it holds something",
    ),
    "nothing": (Path.touch, "BadZipFile"),
    "zeros before its beginning": (padded, "RuntimeError: torch cannot read it"),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_passed_over(kind, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cut = interrupted(whole, tmp_path / "cut", update=4)
    newest = cut / "checkpoints" / "step_000000004.pt"
    newest.unlink()
    make, said = NO_CHECKPOINTS[kind]
    make(newest)
    resumed(whole, cut, capsys, said)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["checkpoints/step_000000004.pt", "identity.json", "environment.json", "summary.json"])
@pytest.mark.parametrize("holds", [False, True])
def test_a_folder_in_the_place_of_a_file_gives_way_or_is_named(holds, name, whole, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=4)
    place = cut / name
    place.unlink(missing_ok=True)
    (place / "inside").mkdir(parents=True)
    if not holds:
        (place / "inside").rmdir()
    before = (cut / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert cli.train(["--resume", str(cut)]) == (2 if holds else 0)
    if holds:
        said = capsys.readouterr().err.splitlines()[-1]
        assert said == f"error: {place}: is a folder, in the place of a file; remove it to go on"
        assert (cut / "metrics.jsonl").read_bytes() == before
    else:
        assert_same_run(whole, cut)


def test_a_summary_of_another_run_is_not_the_end_of_this_one(whole, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=4)
    text = (whole / "summary.json").read_text().replace(summary(whole)["config_hash"], "0123456789abcdef")
    (cut / "summary.json").write_text(text)
    capsys.readouterr()
    assert cli.train(["--resume", str(cut)]) == 0
    assert "summary.json is damaged or of another run, and is written anew" in capsys.readouterr().err
    assert_same_run(whole, cut)


def test_a_run_in_the_library_refuses_the_state_of_another(whole):
    tree, _ = checkpoint.load(whole / "checkpoints")
    parts, plan = from_config(load([whole / "config.yaml"], ["task.model.sizes=[64,6,10]"]))
    with pytest.raises(ValueError, match="is of another run or model"):
        experiment.run(parts, plan, resume=tree)


def lines_of(cut: Path) -> list[str]:
    return (cut / "metrics.jsonl").read_text().splitlines(keepends=True)


REPORTS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "lost": (lambda lines: lines[1:], "lacks the report of hyper-update 2"),
    "doubled": (lambda lines: [lines[0], *lines], "lacks the report of hyper-update 4, which the checkpoint follows"),
    "in another order": (lambda lines: [lines[1], lines[0], *lines[2:]], "there is that of 4"),
    "not a number": (
        lambda lines: [lines[0].replace('"time": ', '"time": NaN, "x": '), *lines[1:]],
        "NaN is no number",
    ),
    "no JSON": (lambda lines: ["{\n", *lines[1:]], "line 1 of"),
    "a list": (lambda lines: ["[]\n", *lines[1:]], "needs a mapping"),
    "deep": (lambda lines: ["[" * 100_000 + "\n", *lines[1:]], "is damaged"),
    "another number": (lambda lines: [lines[0].replace('"time": ', '"time": 1'), *lines[1:]], "are not those"),
    "without an update": (lambda lines: ["{}\n", *lines[1:]], "update is missing"),
    "none": (lambda lines: [], "the file ends"),
}


@pytest.mark.parametrize("damage", REPORTS)
def test_damaged_reports_are_named_and_left_alone(damage, whole, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=4)
    change, said = REPORTS[damage]
    (cut / "metrics.jsonl").write_text("".join(change(lines_of(cut))))
    before = (cut / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert cli.train(["--resume", str(cut)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert (cut / "metrics.jsonl").read_bytes() == before


def test_what_is_behind_the_checkpoint_may_be_damaged(whole, tmp_path):
    """A power loss leaves anything where nothing was synchronized."""
    cut = interrupted(whole, tmp_path / "cut", update=4)
    (cut / "metrics.jsonl").write_text("".join(lines_of(cut)[:2]) + "\0" * 100 + "\n{}\n")
    assert cli.train(["--resume", str(cut)]) == 0
    assert_same_run(whole, cut)


@pytest.mark.parametrize("key,value", [("seed", 3), ("inner.updates", 8), ("space.lr.init", 0.5)])
def test_a_config_that_was_edited_in_the_directory_is_noticed(key, value, whole, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=4)
    text = cli.dump(load([cut / "config.yaml"], [f"{key}={value}"]))
    (cut / "config.yaml").write_text(text)
    assert cli.train(["--resume", str(cut)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "is of another run: its" in said
    assert said.endswith("undo what was changed, or start a new run")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"format": "1"}', b"\0" * 50])
def test_a_damaged_identity_is_written_anew(content, whole, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=4)
    (cut / "identity.json").write_bytes(content)
    assert cli.train(["--resume", str(cut)]) == 0
    assert "identity.json: " in capsys.readouterr().err
    assert json.loads((cut / "identity.json").read_text()) == json.loads((whole / "identity.json").read_text())
    assert_same_run(whole, cut)


def test_an_identity_that_says_otherwise_how_numbers_are_rounded_is_refused(whole, tmp_path, capsys):
    cut = interrupted(whole, tmp_path / "cut", update=4)
    told = json.loads((cut / "identity.json").read_text())
    (cut / "identity.json").write_text(json.dumps({**told, "compile": True}))
    assert cli.train(["--resume", str(cut)]) == 2
    assert "compile is True, and False in the checkpoint; remove that file" in capsys.readouterr().err
    (cut / "identity.json").unlink()
    assert cli.train(["--resume", str(cut)]) == 0
    assert_same_run(whole, cut)


def test_what_a_killed_save_left_is_finished_at_the_next_start(whole, tmp_path):
    cut = interrupted(whole, tmp_path / "cut", update=6)
    folder = cut / "checkpoints"
    (folder / "latest").write_text("step_000000005.pt\n")
    (folder / ".latest.tmp").write_text("step")
    (cut / ".summary.json.tmp").write_text("{")
    assert cli.train(["--resume", str(cut)]) == 0
    assert_same_run(whole, cut)
    assert (folder / "latest").read_text() == "step_000000006.pt\n"
    assert not list(cut.rglob(".*.tmp"))


ODD: dict[str, Callable[[Path], object]] = {
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("1"),
    "a link to nothing": lambda path: (path.unlink(missing_ok=True), path.symlink_to("nothing")),
    "lists for entries": lambda path: path.write_text('{"previous": 3, "device": [], "pid": {}}'),
    "odd starts": lambda path: path.write_text('{"previous": [1, [], {"device": 7}]}'),
    "cut": lambda path: path.write_text('{"previous": '),
    "a pipe": lambda path: (path.unlink(missing_ok=True), os.mkfifo(path)),
    "deep": lambda path: path.write_text("[" * 100_000),
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("name", ["environment.json", "summary.json", "config.json", "checkpoints/latest", "log.txt"])
@pytest.mark.parametrize("content", ODD)
def test_a_resume_does_not_stumble_over_what_it_does_not_need(content, name, whole, tmp_path):
    cut = interrupted(whole, tmp_path / "cut", update=4)
    ODD[content](cut / name)
    assert cli.train(["--resume", str(cut), "--progress", "none"]) == 0
    assert_same_run(whole, cut)


def test_a_resume_reads_no_more_of_an_event_file_than_it_needs(whole, tmp_path):
    cut = interrupted(whole, tmp_path / "cut", update=4)
    os.truncate(next(cut.rglob("events.out.tfevents.*")), 10**12)
    assert cli.train(["--resume", str(cut), "--progress", "none"]) == 0
    assert_same_run(whole, cut)
