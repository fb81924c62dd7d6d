"""The short forms of `chaos_edge_runs` and `chaos_odd_directories`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("part", "count", "seed"), [("edge_runs", 1, 3), ("odd_directories", 3, 1)])
def test_what_is_odd_is_drawn_replayed_or_refused(part: str, count: int, seed: int):
    """In a process of its own, which has signals of its own."""
    command = [sys.executable, str(Path(__file__).parent), part, "--count", f"{count}", "--seed", f"{seed}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} right" in done.stdout
