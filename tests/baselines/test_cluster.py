"""Ray is started and left without a trace in this process."""

import os
import socket

import pytest

from baselines import cluster
from baselines.cluster import QUIET, Resources


def test_the_environment_is_as_it_was(local_ray, monkeypatch):
    """Also variables that somebody else has set."""
    mine, *others = QUIET
    for name in others:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(mine, "mine")
    before = dict(os.environ)
    with cluster.cluster(Resources()):
        assert {name: os.environ[name] for name in QUIET} == QUIET
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("device", "gpus", "workers", "said", "each"),
    [
        ("auto", 1, 2, None, 0.5),
        ("cuda", 1, 4, None, 0.25),
        ("auto", 1, 3, None, 0.3333),
        ("auto", 1, 6, None, 0.1666),  # Ray would make 0.1667 of 1/6, and five at a time
        ("auto", 4, 2, None, 1.0),
        ("auto", 2, 4, None, 0.5),
        ("auto", 0, 2, None, 0.0),
        ("cuda", 0, 2, None, 0.0),  # which is refused
        ("cpu", 1, 2, None, 0.0),
        ("auto", 1, 2, 0.0, 0.0),
        ("cuda", 1, 2, 0.25, 0.25),
        ("auto", 0, 2, 0.25, 0.25),  # as of a cluster elsewhere
    ],
)
def test_workers_share_the_gpus_of_the_machine(device, gpus, workers, said, each):
    """Unless the command says how."""
    assert cluster.shared(Resources(workers, said), device, gpus) == Resources(workers, each)


@pytest.mark.parametrize("gpus", range(1, 9))
def test_as_many_trials_as_workers_find_room(gpus):
    """Each on one GPU, of which Ray counts ten thousandths."""
    for workers in range(1, 65):
        each = cluster.shared(Resources(workers), "auto", gpus).gpus_per_trial
        assert each is not None
        assert 0 < each <= 1
        assert gpus * (10_000 // round(each * 10_000)) >= workers


def test_the_gpus_of_this_machine_are_not_those_of_a_cluster_elsewhere():
    assert cluster.shared(Resources(2, None, "there:1"), "auto", 1).gpus_per_trial == 0.0
    assert cluster.shared(Resources(2, 0.5, "there:1"), "auto", 1).gpus_per_trial == 0.5


@pytest.mark.parametrize(("family", "host", "written"), [("AF_INET", "127.0.0.1", "{}"), ("AF_INET6", "::1", "[{}]")])
def test_whether_somebody_answers_at_an_address(family, host, written):
    with socket.socket(getattr(socket, family)) as server:
        try:
            server.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        place = f"{written.format(host)}:{server.getsockname()[1]}"
        with pytest.raises(ConnectionRefusedError):
            cluster.reach(place, 5.0)
        server.listen()
        cluster.reach(place, 5.0)


def test_a_variable_that_ray_is_started_with_is_put_back(monkeypatch):
    monkeypatch.setenv("THERE", "before")
    monkeypatch.delenv("NOT_THERE", raising=False)
    with cluster.environment({"THERE": "0", "NOT_THERE": "0"}):
        assert (os.environ["THERE"], os.environ["NOT_THERE"]) == ("0", "0")
    assert os.environ["THERE"] == "before"
    assert "NOT_THERE" not in os.environ


def test_a_ray_that_ends_the_process_is_a_mistake_in_one_line(monkeypatch):
    import ray

    def init(**options):
        raise SystemExit(1)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with (
        pytest.raises(ValueError, match=r"^Ray cannot be started here: it ended with status 1$"),
        cluster.cluster(Resources()),
    ):
        pass
