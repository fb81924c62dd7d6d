"""One thread per test process (two run at once), repeatable examples, and GPU tests skipped with a reason."""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded; processes that tests start inherit it

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# A shell that runs the tests in the background has them ignore Ctrl-C, and everything that they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
