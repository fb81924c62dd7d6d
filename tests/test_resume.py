"""Resuming continues to the last bit: engines x populations, after any kind of death; only what may be continued is."""

import json
import subprocess
import sys

import pytest
import torch
from short_runs import CONFIGS, ENGINES, POPULATIONS, arguments, assert_same_run, interrupted, train

from hyperopt_id import cli


@pytest.mark.parametrize("members", POPULATIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_resuming_continues_to_the_last_bit(engine, members, tmp_path):
    whole = train(tmp_path / "whole", *ENGINES[engine], *POPULATIONS[members])
    cut = interrupted(whole, tmp_path / "cut", update=3)
    assert cli.train(["--resume", str(cut), "--progress", "none"]) == 0
    assert_same_run(whole, cut)


DYING = """
import io, os, signal, sys
import torch
from hyperopt_id.cli import train

save, calls, fatal = torch.save, [], int(sys.argv[1])

def dying(record, file):
    calls.append(record)
    if len(calls) == fatal:
        content = io.BytesIO()
        save(record, content)
        file.write(content.getvalue()[: content.tell() // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(record, file)

torch.save = dying
train(sys.argv[2:])
"""


@pytest.mark.parametrize("fatal", [1, 4])
def test_resuming_after_kill_9_in_the_middle_of_a_checkpoint(fatal, tmp_path):
    whole = train(tmp_path / "whole", *ENGINES["neumann"])
    cut = tmp_path / "cut"
    command = [sys.executable, "-c", DYING, str(fatal), *arguments(cut, *ENGINES["neumann"])]
    killed = subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert len(list((cut / "checkpoints").glob("step_*.pt"))) == fatal - 1
    assert len(list((cut / "checkpoints").glob(".*.tmp"))) == 1
    assert cli.train(["--resume", str(cut)]) == 0
    assert_same_run(whole, cut)
    assert not list((cut / "checkpoints").glob(".*.tmp"))


@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(damage, tmp_path, capsys):
    """And says so once, on the terminal and in log.txt."""
    whole = train(tmp_path / "whole", *ENGINES["neumann"])
    cut = interrupted(whole, tmp_path / "cut", update=4)
    newest = cut / "checkpoints" / "step_000000004.pt"
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\0" * len(content))
    assert cli.train(["--resume", str(cut)]) == 0
    for said in (capsys.readouterr().err, (cut / "log.txt").read_text()):
        assert said.count("step_000000004.pt is unusable") == said.count("unusable") == 1
    assert_same_run(whole, cut)


def test_nothing_is_resumed_from_damaged_checkpoints_only(tmp_path, capsys):
    cut = interrupted(train(tmp_path / "whole"), tmp_path / "cut", update=1)
    (cut / "checkpoints" / "step_000000001.pt").write_bytes(b"")
    assert cli.train(["--resume", str(cut)]) == 2
    error = capsys.readouterr().err
    assert "no usable" in error
    assert "step_000000001.pt: BadZipFile" in error


def test_resuming_a_finished_run_says_so_and_does_nothing(tmp_path, capsys):
    whole = train(tmp_path / "whole")
    before = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in whole.rglob("*")}
    capsys.readouterr()
    assert cli.train(["--resume", str(whole)]) == 0
    output = capsys.readouterr()
    assert "is finished" in output.out
    assert output.err == ""
    assert before == {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in whole.rglob("*")
    }


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("space.lr.init=0.5", "space.lr.init: 0.001 -> 0.5"),
        ("seed=3", "seed: 0 -> 3"),
        ("inner.updates=7", "inner.updates: 6 -> 7"),
    ],
)
def test_a_changed_config_is_refused_by_naming_the_key(override, named, tmp_path, capsys):
    cut = interrupted(train(tmp_path / "whole"), tmp_path / "cut", update=3)
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert cli.train(["--resume", str(cut), "-c", str(cut / "config.yaml"), "-s", override]) == 2
    assert named in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}


def test_what_does_not_change_numbers_may_be_changed_when_resuming(tmp_path):
    whole = train(tmp_path / "whole", *ENGINES["neumann"])
    cut = interrupted(whole, tmp_path / "cut", update=3)
    override = ["-s", "report.keep=3", "report.checkpoint_every=2", "log.progress=none"]
    assert cli.train(["--resume", str(cut), "-c", str(cut / "config.yaml"), *override]) == 0
    assert_same_run(whole, cut)


@pytest.mark.parametrize(
    ("began", "options", "refusal"),
    [
        ("cpu", [], None),
        ("cpu", ["-s", "device=cpu"], None),
        ("cuda:0", [], "began on cuda, but device auto is cpu here; add --set device=cuda"),
        ("cuda:0", ["-s", "device=cpu"], "device: cuda -> cpu"),
    ],
)
def test_a_run_goes_on_only_on_the_device_that_it_began_on(began, options, refusal, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    whole = train(tmp_path / "whole", "device=auto")
    cut = interrupted(whole, tmp_path / "cut", update=3)
    environment = json.loads((cut / "environment.json").read_text())
    first = environment | {"device": began}
    (cut / "environment.json").write_text(json.dumps(environment | {"previous": [first]}))  # resumed before
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert cli.train(["--resume", str(cut), *options]) == (0 if refusal is None else 2)
    if refusal is None:
        assert_same_run(whole, cut)
    else:
        assert refusal in capsys.readouterr().err
        assert before == {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}


def test_resume_auto_finds_the_newest_unfinished_run_of_the_group(tmp_path):
    whole = train(tmp_path / "runs" / "whole")
    cut = interrupted(whole, tmp_path / "runs" / "cut", update=3)
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "config.yaml").write_text("task: {")  # newer, and no config
    assert cli.train([*arguments(tmp_path / "runs" / "new"), "--resume", "auto"]) == 0
    assert_same_run(whole, cut)
    assert not (tmp_path / "runs" / "new").exists()
