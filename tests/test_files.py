"""What is on the disk, and when: whatever a power loss leaves is a run that can be resumed."""

import errno
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from short_runs import ENGINES, arguments, assert_same_run, train

from hyperopt_id import cli, files
from hyperopt_id.analysis.load import load_reports
from hyperopt_id.telemetry import is_finished


@pytest.mark.parametrize("left", ["", '{"final": {"loss/tr'])
def test_a_run_whose_summary_was_cut_off_is_not_finished_and_goes_on(tmp_path: Path, left: str):
    whole = train(tmp_path / "whole")
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    (cut / "summary.json").write_text(left)
    assert not is_finished(cut)
    assert cli.train([*arguments(cut), "--resume", str(cut)]) == 0
    assert is_finished(cut)
    assert_same_run(cut, whole)


@pytest.mark.parametrize("every, checkpoints", [(1, 6), (4, 2)])
def test_what_is_relied_on_is_on_the_disk_before(
    every: int, checkpoints: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """When a file gets its name, its content is on the disk; with a checkpoint, so are all reports and hyperparameters
    up to it, and with the summary, all of them."""
    on_disk: dict[str, bytes] = {}
    known: dict[str, dict[str, bytes]] = {}  # name: what was on the disk when it appeared
    synchronize, rename = os.fsync, os.replace

    def synchronized(descriptor: int) -> None:
        synchronize(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_file():
            on_disk[path.name] = path.read_bytes()

    def renamed(old: Path, new: Path) -> None:
        assert on_disk[old.name] == old.read_bytes()
        known[new.name] = dict(on_disk)
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synchronized)
    monkeypatch.setattr(os, "replace", renamed)
    run = train(tmp_path / "run", *ENGINES["neumann"], f"report.checkpoint_every={every}")
    trace = np.load(run / "trace" / "lr.npy")
    for name, then in known.items():
        if name.startswith("step_") or name == "summary.json":
            update = 6 if name == "summary.json" else int(name[5:-3])
            reports = [line for line in load_reports(run) if line["update"] <= update]
            assert [json.loads(line) for line in then["metrics.jsonl"].splitlines()] == reports
            np.testing.assert_array_equal(np.load(io.BytesIO(then["lr.npy"]))[:update], trace[:update])
    assert len([name for name in known if name.startswith("step_")]) == checkpoints


FORM = {"name": str, "rate": (float, type(None)), "seeds": [int], "extra?": {"on": bool}}
FITS = {"name": "a", "rate": 1, "seeds": [1, 2], "unknown": object}


@pytest.mark.parametrize(
    "change, message",
    [
        ({}, None),
        ({"rate": None, "extra": {"on": True}, "seeds": []}, None),
        ({"name": 3}, "here: name: needs a string, found 3"),
        ({"rate": True}, "here: rate: needs a number or null, found True"),
        ({"seeds": [1, 2.0]}, r"here: seeds\[1\]: needs an integer, found 2.0"),
        ({"seeds": {"0": 1}}, "here: seeds: needs a list, found a mapping"),
        ({"extra": {}}, "here: extra: on is missing"),
    ],
)
def test_a_form_says_which_entry_is_of_another_type(change: dict, message: str | None):
    value = {**FITS, **change}
    if message is None:
        files.check_form(value, FORM, "here")
    else:
        with pytest.raises(ValueError, match=f"^{message}$"):
            files.check_form(value, FORM, "here")


def test_what_is_no_regular_file_or_too_large_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"12345")
    for name, message in (
        ("pipe", "no regular file"),
        ("", "no regular file"),
        ("large", "5 bytes, where at most 4"),
        ("missing", "No such file"),
    ):
        with pytest.raises(ValueError, match=f"^{tmp_path / name}: .*{message}"):
            files.read(tmp_path / name, 4)
    with pytest.raises(ValueError, match="no regular file"):
        files.read("/dev/zero", 4)
    assert files.read(tmp_path / "large", 5) == b"12345"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[1, 2]"])
def test_a_damaged_json_file_is_one_line_with_its_path(tmp_path: Path, content: bytes):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{tmp_path / 'x.json'}: .*$") as caught:
        files.read_json_file(tmp_path / "x.json", {"a": int})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, line",
    [("short", "short"), ("a\n  b", "a b"), ("0123456789", "0123...89"), ("", ""), ("ab" * 9999, "abab...ab")],
)
def test_a_shortened_text_is_one_line_and_keeps_its_ends(text: str, line: str):
    assert files.shorten(text, 9) == line


def test_what_the_disk_refuses_names_the_file(tmp_path):
    def refuse(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: .*wanted\.txt"):
        files.replace(tmp_path / "wanted.txt", refuse)
    assert not list(tmp_path.iterdir())
