"""One small Ray for all tests of a process, on the loopback device."""

import pytest


@pytest.fixture(scope="session")
def local_ray():
    from baselines.cluster import Resources, cluster

    with cluster(Resources(workers=2)):
        yield
