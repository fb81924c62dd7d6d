"""The short form of `chaos_configs`."""

import subprocess
import sys
from pathlib import Path

import pytest

SHORT = """
import sys, pathlib
from {part} import trials
for outcome in trials({count}, 1, pathlib.Path(sys.argv[1])):
    print(outcome)
"""


@pytest.mark.parametrize("part, count", [("chaos_configs", 16), ("chaos_files", 48)])
def test_strange_input_ends_in_one_line(part: str, count: int, tmp_path: Path):
    """In a process of its own, which has no threads, since it forks."""
    command = [sys.executable, "-c", SHORT.format(part=part, count=count), str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.splitlines()
    assert len(outcomes) == count
    assert all("fault=None" in outcome for outcome in outcomes), done.stdout
