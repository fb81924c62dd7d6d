"""Whose a run directory or a checkpoint is.

    identity = {"format": 1, "config": hash of what determines the numbers, "seed": of the first run, "runs": R,
                "digests": {"data": digest of the data, "task.model.init_from": ..., "space.theta.init": ...}}

A file that a config names counts by its content: in "config" its digest stands for its path. So the same bytes under
another path are the same run, and other bytes under the same path are not. It lies in `identity.json` of a run
directory, and in each checkpoint. One of an earlier version has none, and is taken for what its config says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperopt_id.config import config_hash
from hyperopt_id.config_schema import Config
from hyperopt_id.experiment import Parts
from hyperopt_id.files import read_json_file
from hyperopt_id.optim.mulo_weights import load_weights
from hyperopt_id.tasks.digests import digest, file_digest
from hyperopt_id.telemetry.directory import IDENTITY

Identity = dict[str, Any]
FILE = IDENTITY
FORMAT = 1
UNKNOWN = (
    "the run in %s is of an earlier version, which kept no digest: make sure that the data are those it began with"
)
FORM = {"format": int, "config": str, "seed": int, "runs": int, "digests": dict, "compile?": bool}


def with_files(parts: Parts, config: Config) -> Parts:
    """`parts` whose digests are also of the files that `config` names."""
    known = parts.digests
    return replace(parts, digests=lambda: known() | file_digests(config))


def file_digests(config: Config) -> dict[str, str]:
    """Digests of the files that `config` names, those of the data apart."""
    found = {}
    if (weights := config.task.model.init_from) is not None:
        found["task.model.init_from"] = file_digest(weights)
    theta = config.space["theta"].init if "theta" in config.space else None
    if isinstance(theta, str) and Path(theta).exists():  # and not the name of weights that are published
        found["space.theta.init"] = digest(load_weights(theta))
    return found


def identity(config: Config, parts: Parts) -> Identity:
    """The identity of the run of `config` that has been built as `parts`."""
    digests = parts.digests()
    hashed = config_hash(replace(config, device=parts.device.type), digests)
    runs = len(parts.seeds)
    return {"format": FORMAT, "config": hashed, "seed": config.seed, "runs": runs, "digests": digests}


def read_identity(directory: Path) -> Identity | None:
    """What `identity.json` of a run directory says; None without one. Raises ValueError if it is damaged."""
    path = directory / FILE
    return read_json_file(path, FORM) if path.exists() else None


def check_identity(found: Any, own: Identity, what: str) -> None:
    """Raise ValueError if `found`, of `what` ("the run in DIR"), is the identity of another run than `own`; None is
    that of an earlier version, which says nothing."""
    if found is None or found == own:
        return
    if not isinstance(found, Mapping) or not isinstance(found.get("digests"), Mapping):
        raise ValueError(f"{what} has an identity that is damaged, or of another version")
    check_digests(found["digests"], own["digests"], what)
    for key, meaning in (("seed", "seed"), ("runs", "number of runs"), ("config", "config"), ("format", "format")):
        if found.get(key) != own[key]:
            raise ValueError(
                f"{what} is of another run: its {meaning} is {found.get(key)!r:.40}, here it is {own[key]}; undo what "
                "was changed, or start a new run"
            )


def check_digests(found: Mapping[str, Any], own: Mapping[str, str], what: str) -> None:
    """Raise ValueError if a file or the data have another content than those of `what`."""
    for name, value in own.items():
        known = found.get(name)
        if known not in (None, value):
            of = "the data" if name == "data" else f"the file {name}"
            raise ValueError(
                f"{what} was made with other data: {of} had SHA-256 {known!s:.12}..., here it is {value:.12}...; bring "
                "back what it was made with, or start a new run"
            )
