"""Ray is started and left without a trace in this process."""

import os

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
