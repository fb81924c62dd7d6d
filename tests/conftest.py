"""One thread per test process (two run at once), repeatable examples, and GPU tests skipped with a reason."""

import os
import signal
from collections.abc import Callable, Iterator

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded; processes that tests start inherit it
os.environ["HYPEROPT_ID_COMPILE_LATER"] = "0"  # nothing goes on in the background

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


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    """Sets what torch makes where no precision is asked for, until the test is over."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def double(default_dtype: Callable[[torch.dtype], None]) -> None:
    """float64 where no precision is asked for, and the same random numbers in any order of tests."""
    default_dtype(torch.float64)
    torch.manual_seed(0)
