"""The files of a run directory: who may write into it, and what is already there.

``metrics.jsonl`` is the source of truth and also the lock: its writer holds an exclusive ``flock``, which
the operating system drops when the process ends, however it ends. Only ever a tail is removed from it, by
one ``ftruncate``.
"""

import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from hyperopt_id import files
from hyperopt_id.telemetry.measure import dump

logger = logging.getLogger("hyperopt_id")
_PACKAGES = ("hyperopt-id", "torch", "numpy", "pyyaml", "tensorboard", "tqdm")
IDENTITY = "identity.json"
INSIDE = ("checkpoints", "trace", "cache", "Weights")  # folders of a run or study, no runs


def may_hold_runs(name: str) -> bool:
    """Whether a folder of this name is looked into for runs: not a hidden one, nor one that a run directory, or one of
    the published code, has in it."""
    return name not in INSIDE and not name.startswith((".", "member_", "members_"))


class OccupiedError(ValueError):
    """Another process is writing into the run directory, or was: over NFS, a dead node's lock stays for a while."""


def is_finished(directory: str | Path) -> bool:
    """Whether the run in ``directory`` came to its end (its summary, which has to be readable, is written last)."""
    return isinstance(read_json(Path(directory) / "summary.json"), dict)


def claim(directory: Path, resuming: bool) -> IO[bytes]:
    """Create ``directory`` if needed and return its ``metrics.jsonl``, open and locked.

    ``ValueError`` when the directory cannot be written, when another process is writing into it (``OccupiedError``),
    and, unless ``resuming``, when it already holds a run.
    """
    try:
        files.make_folder(directory)
        metrics = open(directory / "metrics.jsonl", "a+b", opener=files.open_to_write)  # noqa: SIM115 - for the whole run
    except OSError as error:
        raise ValueError(
            f"the log directory {directory} cannot be written ({error.strerror or error}); choose another with -l DIR"
        ) from error
    try:
        _lock(metrics, directory)
        occupied = is_finished(directory) or metrics.tell() > 0 or any(directory.glob("checkpoints/*.pt"))
        if occupied and not resuming:
            raise ValueError(
                f"the directory {directory} already holds a run; continue it with --resume (of train: --resume "
                f"{directory}; from Python: Telemetry(..., resume_at=...)) or choose another name with -n NAME"
            )
    except BaseException:
        metrics.close()
        raise
    return metrics


def _lock(metrics: IO[bytes], directory: Path) -> None:
    try:
        fcntl.flock(metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = (_starts(directory) or [{}])[-1]
        who = f"process {owner['pid']} on {owner['host']}" if "pid" in owner else "another process"
        raise OccupiedError(
            f"two runs into the same directory: {who} is writing into {directory}; wait for it, "
            "or choose another name with -n NAME"
        ) from None
    except OSError as error:  # some network file systems have no locks
        why = error.strerror
        logger.warning("%s cannot be locked (%s): make sure that no other process writes into it", directory, why)


def records(metrics: IO[bytes]) -> Iterator[tuple[dict[str, Any], int]]:
    """Every report of ``metrics.jsonl`` (or another file of such lines) and the length of its line. A last line without
    an end is a report that was not written to its end, and left out; a ``ValueError`` says which line before it is
    damaged."""
    for number, line in enumerate(metrics, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            record = json.loads(line, parse_constant=_no_constant)
            files.check_form(record, dict, "it")
        except (ValueError, RecursionError) as error:
            why = files.shorten(str(error), 100)
            raise ValueError(f"line {number} of {metrics.name} is damaged ({why}); remove it to go on") from error
        yield record, len(line)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def keep_until(
    metrics: IO[bytes], update: int, reports: Iterable[int] | None = None, digest: str | None = None
) -> tuple[dict[str, Any] | None, Any]:
    """Drop the reports after ``update`` and a half-written last line; return the last report that stays, and the
    SHA-256 of those that do, to be continued.

    ``reports``: the hyper-updates up to ``update`` that have one; ``digest``: that of these reports. Raises ValueError,
    with the file untouched, unless they and no others come first; what is behind them is dropped unread.
    """
    last, end = None, 0
    metrics.seek(0)
    there = ((_checked(record, metrics), length) for record, length in records(metrics))
    if reports is None:
        expected = itertools.takewhile(lambda item: item[0]["update"] <= update, there)
    else:
        expected = (_expected(number, next(there, None), metrics) for number in reports)
    for record, length in expected:
        last, end = record, end + length
    metrics.seek(0)
    kept = hashlib.sha256(metrics.read(end))
    if digest not in (None, kept.hexdigest()):
        raise ValueError(
            f"{metrics.name}: the reports up to hyper-update {update} are not those that the checkpoint follows; bring "
            "the file back, or start the run anew"
        )
    metrics.truncate(end)
    metrics.seek(0, os.SEEK_END)
    return last, kept


def _checked(record: dict[str, Any], metrics: IO[bytes]) -> dict[str, Any]:
    files.check_form(record, {"update": int, "step": int, "time": float}, f"{metrics.name}: a report")
    return record


def _expected(number: int, item: tuple[dict[str, Any], int] | None, metrics: IO[bytes]) -> tuple[dict[str, Any], int]:
    if item is None or item[0]["update"] != number:
        there = "the file ends" if item is None else f"there is that of {item[0]['update']}"
        raise ValueError(
            f"{metrics.name} lacks the report of hyper-update {number}, which the checkpoint follows: {there}; bring "
            "the file back, or start the run anew"
        )
    return item


def remove_temporary(directory: Path) -> None:
    """Remove what writing files left behind when the process was killed."""
    for pattern in (".*.tmp", "trace/**/.*.tmp"):
        files.remove_temporary(directory.glob(pattern))


def make_way(directory: Path) -> None:
    """Remove empty folders in the places of files that a resume writes. Raises ValueError for one that is not empty."""
    names = ("environment.json", IDENTITY, "summary.json")
    for path in (*(directory / name for name in names), *directory.glob("checkpoints/step_*.pt")):
        files.make_way(path)


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
    if earlier := _starts(directory):
        described["previous"] = earlier
    return described


def _starts(directory: Path) -> list[dict[str, Any]]:
    """What environment.json says of the starts so far, the last one last; empty where it says nothing that can be
    used."""
    last = read_json(directory / "environment.json")
    if not isinstance(last, dict):
        return []
    before = last.pop("previous", [])
    return [*(entry for entry in (before if isinstance(before, list) else []) if isinstance(entry, dict)), last]


def first_device(directory: Path) -> str | None:
    """The type of the device that the run in ``directory`` began on, ``cpu`` or ``cuda``; None if nothing says so."""
    device = (_starts(directory) or [{}])[0].get("device")
    return device.split(":")[0] if isinstance(device, str) else None


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
    """Content of a JSON file, or None where it is missing, was cut off, or is no regular file."""
    try:
        return files.read_json_file(path, object)
    except ValueError:
        return None


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` so that a reader, also after a crash, sees either the old file or the whole new one."""
    write_text(path, dump(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same for text."""
    files.replace(path, lambda file: file.write(text.encode()))


def synchronize(directory: Path) -> None:
    """Have the reports and the trace on the disk, before the checkpoint after which nobody writes them again."""
    for path in (*directory.glob("metrics.jsonl"), *directory.glob("trace/**/*.npy")):
        files.synchronize(path)
