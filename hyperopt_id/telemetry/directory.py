"""The files of a run directory: who may write into it, and what is already there.

``metrics.jsonl`` is the source of truth and also the lock: its writer holds an exclusive ``flock``, which
the operating system drops when the process ends, however it ends. Only ever a tail is removed from it, by
one ``ftruncate``.
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from hyperopt_id import files
from hyperopt_id.telemetry.measure import dump

_PACKAGES = ("hyperopt-id", "torch", "numpy", "pyyaml", "tensorboard", "tqdm")


class OccupiedError(ValueError):
    """Another process is writing into the run directory, or was: over NFS, a dead node's lock stays for a while."""


def is_finished(directory: str | Path) -> bool:
    """Whether the run in ``directory`` came to its end (its summary, which has to be readable, is written last)."""
    return read_json(Path(directory) / "summary.json") is not None


def claim(directory: Path, resuming: bool) -> IO[bytes]:
    """Create ``directory`` if needed and return its ``metrics.jsonl``, open and locked.

    ``ValueError`` when the directory cannot be written, when another process is writing into it (``OccupiedError``),
    and, unless ``resuming``, when it already holds a run.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        metrics = open(directory / "metrics.jsonl", "a+b")  # noqa: SIM115 - lives as long as the run
    except OSError as error:
        raise ValueError(
            f"the log directory {directory} cannot be written ({error.strerror}); choose another with -l DIR"
        ) from error
    try:
        _lock(metrics, directory)
        occupied = is_finished(directory) or metrics.tell() > 0 or any(directory.glob("checkpoints/*.pt"))
        if occupied and not resuming:
            raise ValueError(
                f"the directory {directory} already holds a run; continue it with --resume (of train: --resume "
                f"{directory}) or choose another name with -n NAME"
            )
    except BaseException:
        metrics.close()
        raise
    return metrics


def _lock(metrics: IO[bytes], directory: Path) -> None:
    try:
        fcntl.flock(metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = read_json(directory / "environment.json") or {}
        who = f"process {owner['pid']} on {owner['host']}" if "pid" in owner else "another process"
        raise OccupiedError(
            f"two runs into the same directory: {who} is writing into {directory}; wait for it, "
            "or choose another name with -n NAME"
        ) from None


def records(metrics: IO[bytes]) -> Iterator[tuple[dict[str, Any], int]]:
    """Every report of ``metrics.jsonl`` and the length of its line. A last line without an end is a report that was not
    written to its end, and left out; a ``ValueError`` says which line before it is damaged."""
    for number, line in enumerate(metrics, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            yield json.loads(line), len(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {metrics.name} is damaged ({error}); remove it to go on") from error


def keep_until(metrics: IO[bytes], update: int) -> dict[str, Any] | None:
    """Drop the reports after ``update`` and a half-written last line; return the last report that stays."""
    last, end = None, 0
    metrics.seek(0)
    for record, length in records(metrics):
        if record["update"] > update:
            break
        last, end = record, end + length
    metrics.truncate(end)
    metrics.seek(0, os.SEEK_END)
    return last


def remove_traces(directory: Path) -> None:
    """Remove what this process wrote into ``directory`` before any report, and the folders that are then empty."""
    events = f"events.out.tfevents.*.{os.getpid()}"
    for pattern in ("config.*", "environment.json", "log.txt", "metrics.jsonl", events, f"member*/{events}"):
        for path in directory.glob(pattern):
            path.unlink()
    for folder in (*directory.glob("member*"), directory):
        with suppress(OSError):  # something else is in it
            folder.rmdir()


def describe_environment(directory: Path, device: str) -> dict[str, Any]:
    """What a reader needs to repeat the run; earlier starts of a resumed run stay under ``previous``."""
    described = {
        "command": shlex.join([sys.executable, *sys.argv]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "git_commit": _git_commit(),
        "device": device,
        "accelerator": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "cpu": {
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version(), "platform": platform.platform(), **_versions()},
    }
    earlier = read_json(directory / "environment.json")
    if earlier is not None:
        described["previous"] = [*earlier.pop("previous", []), earlier]
    return described


def first_device(directory: Path) -> str | None:
    """The type of the device that the run in ``directory`` began on, ``cpu`` or ``cuda``; None if nothing says so."""
    last = read_json(directory / "environment.json") or {}
    device = [*last.get("previous", []), last][0].get("device")
    return device and device.split(":")[0]


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None  # run from a checkout that is not installed
    return versions


def _git_commit() -> str | None:
    """Commit of the checkout this package lies in, ``+changes`` when files differ; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed, perhaps inside somebody else's repository
        return None
    try:
        asked = subprocess.run(
            [
                "git",
                "-C",
                str(root),
                "describe",
                "--always",
                "--abbrev=40",
                "--exclude=*",
                "--dirty=+changes",
            ],
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return asked.stdout.strip() or None


def read_json(path: Path) -> Any:
    """Content of a JSON file, or None where it is missing or was cut off."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` so that a reader, also after a crash, sees either the old file or the whole new one."""
    write_text(path, dump(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same for text."""
    files.replace(path, lambda file: file.write(text.encode()))


def synchronize(directory: Path) -> None:
    """Have the reports and the trace on the disk, before the checkpoint that relies on them."""
    for path in (*directory.glob("metrics.jsonl"), *directory.glob("trace/**/*.npy")):
        files.synchronize(path)
