"""A cluster for the tests of one process, or the reason why they are skipped."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import slurm_server


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which sbatch finds a cluster of this machine."""
    with ExitStack() as stack:
        try:
            environment = stack.enter_context(slurm_server.running())
        except RuntimeError as reason:
            pytest.skip(str(reason))
        yield environment
