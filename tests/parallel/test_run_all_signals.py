"""Signals: the command that is running ends with the script that runs it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import run_all

SCRIPTS = str(Path(run_all.__file__).parent)


def executing(folder: Path, child: str) -> tuple[subprocess.Popen[bytes], int]:
    """`run_all.execute` in a process of its own, and the id of its child, which has got to `ready()`."""
    begin = "import os, pathlib, signal, time\nready = lambda: pathlib.Path('ready').symlink_to(str(os.getpid()))\n"
    code = "import run_all, signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as without nohup\n"
    code += "run_all.ROOT = {!r}; run_all.execute([{!r}, '-c', {!r}])"
    command = [sys.executable, "-c", code.format(str(folder), sys.executable, begin + child)]
    environment = {**os.environ, "PYTHONPATH": SCRIPTS}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    wait_for(process, (folder / "ready").is_symlink)
    return process, int(os.readlink(folder / "ready"))


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None
        time.sleep(0.01)


TIDY = """try:
    ready(); time.sleep(100)
except KeyboardInterrupt:
    time.sleep(0.5); pathlib.Path('tidied up').touch()"""
DEAF = """signal.signal(signal.SIGINT, lambda *_: pathlib.Path('heard').touch())
ready()
time.sleep(100)"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_it_reaches_the_command_as_ctrl_c_and_is_waited_for(tmp_path: Path, number: signal.Signals):
    """A child that ends its work before it goes is given the time."""
    process, _ = executing(tmp_path, TIDY)
    process.send_signal(number)
    assert b"KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert (tmp_path / "tidied up").exists()


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path):
    process, child = executing(tmp_path, DEAF)
    process.send_signal(signal.SIGINT)
    wait_for(process, (tmp_path / "heard").exists)
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=60)[1]
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
