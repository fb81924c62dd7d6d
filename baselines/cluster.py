"""Ray, quietly: an own one on this machine for as long as it is needed, or one that is there.

An own one stays on the loopback device, sends nothing anywhere, and its temporary files go when it does.
"""

import argparse
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from baselines.arguments import INSTALL
from baselines.signals import as_ctrl_c, kept
from hyperopt_id.arguments import first_line

MEMORY = 128 * 2**20  # bytes of Ray's object store, through which only configs go
PATIENCE = 5.0  # seconds; Ray itself would try for two minutes
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # run directories hold what they would write
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints tables however quiet it is told to be
}


@dataclass(frozen=True)
class Resources:
    """Where trials run: so many at a time on this machine, or as many as the Ray cluster at `address` has room for.
    `gpus_per_trial` None: see `shared`."""

    workers: int = 2
    gpus_per_trial: float | None = None
    address: str | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workers", type=int, default=2, metavar="N", help="trials at a time (default %(default)s)")
    gpus = "0.25: four trials share a GPU; 0: on the CPU (default: the workers share this machine's; with --address: 0)"
    add("--gpus-per-trial", type=float, metavar="F", help=gpus)
    add("--address", metavar="RAY", help="use the Ray cluster there (HOST:PORT, auto) instead of this machine")


def resources(options: argparse.Namespace) -> Resources:
    return Resources(options.workers, options.gpus_per_trial, options.address)


def shared(resources: Resources, device: str, gpus: int) -> Resources:
    """The same, but where nobody says how many GPUs a trial has, the workers share those of this machine, `gpus` in
    number, if the `device` of the config allows it: each has a part of one, so large that all of them find room. Those
    of a cluster elsewhere nobody knows: none."""
    if resources.gpus_per_trial is not None:
        return resources
    if device == "cpu" or gpus == 0 or resources.address is not None:
        return replace(resources, gpus_per_trial=0.0)
    trials_on_one = -(-max(1, resources.workers) // gpus)
    return replace(resources, gpus_per_trial=10_000 // trials_on_one / 1e4)  # Ray counts in 0.0001, and would round up


def check_ray() -> None:
    """Raise a ValueError that says what to install where Ray is missing."""
    try:
        import ray.tune  # noqa: F401 - whether it is there
    except ImportError as error:
        raise ValueError(f"Ray is needed: {INSTALL} ({error})") from error


@contextmanager
def cluster(resources: Resources) -> Iterator[None]:
    """A Ray on this machine, or the one at the address; one that has been started in this process is taken as it is. A
    ValueError where none answers, or it has no room for a trial."""
    check_ray()
    import ray

    with environment(QUIET), _running(resources.workers, resources.address), as_ctrl_c():
        gpus, needed = ray.cluster_resources().get("GPU", 0.0), resources.gpus_per_trial or 0.0
        if gpus < needed:
            raise ValueError(f"given {needed:g} GPUs for each trial, but Ray sees {gpus:g} in all")
        yield


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """With these variables set, for this process and those that it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _running(workers: int, address: str | None) -> Iterator[None]:
    import ray

    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is not None:
        _check_address(address)
    if ray.is_initialized():
        yield
        return
    if workers < 1:
        raise ValueError(f"given {workers} workers; needed: 1 or more")
    if address is not None:
        with _one_line(_unusable(address)), kept():
            ray.init(address=address, **common)
        try:
            yield
        finally:
            ray.shutdown()
        return
    folder = tempfile.mkdtemp(prefix="ray_")
    own = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": MEMORY, "_temp_dir": folder}
    try:
        with _loopback(), _one_line("Ray cannot be started here"), kept():
            ray.init(**common, **own)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _loopback() -> Iterator[None]:
    """Have Ray listen on 127.0.0.1 alone. It takes `_node_ip_address="127.0.0.1"` for the address of the machine; what
    it does hear is a setting for other systems, which the environment can only make before Ray is imported."""
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        with environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):  # for its processes
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _unusable(address: str) -> str:
    return f"cannot use the Ray cluster at {address} (one that was started with a token wants RAY_AUTH_MODE=token here)"


def reach(place: str, seconds: float) -> None:
    """Raise an OSError where nobody answers at HOST:PORT, or [HOST]:PORT as of IPv6, within so many seconds."""
    host, _, port = place.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), seconds).close()


def _check_address(address: str) -> None:
    place = address.removeprefix("ray://")
    if ":" not in place:  # "auto" and the like, which Ray looks up quickly
        return
    try:
        reach(place, PATIENCE)
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or leave --address out"
        ) from error


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{what}: {first_line(error)}") from error
    except SystemExit as error:  # Ray's way to say that one of its processes did not start
        raise ValueError(f"{what}: it ended with status {error.code}") from error
