"""What is on the disk, and when: whatever a power loss leaves is a run that can be resumed."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from short_runs import ENGINES, arguments, assert_same_run, train

from hyperopt_id import cli
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
