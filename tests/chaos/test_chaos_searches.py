"""The short form of `chaos_searches`: commands without Ray, which takes long to start."""

import subprocess
import sys
from pathlib import Path

SHORT = """
import sys, pathlib
from chaos_searches import trials
for outcome in trials(6, 5, pathlib.Path(sys.argv[1]), "random search", "replay", "kernel build"):
    print(outcome)
"""


def test_killed_commands_go_on_to_the_same_numbers(tmp_path):
    """In a process of its own, which has no threads, since it forks."""
    command = [sys.executable, "-c", SHORT, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.splitlines()
    assert len(outcomes) == 6
    assert all("fault=None" in outcome for outcome in outcomes), done.stdout
