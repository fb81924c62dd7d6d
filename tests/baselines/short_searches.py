"""Tiny searches on digits, for laws about what searches leave behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from short_runs import CONFIGS, TINY

from hyperopt_id import config as configs
from hyperopt_id.config_schema import Config

EXPLOSIVE = "space.lr={bounds: none, sample: [1e36, 1e38]}"  # every start diverges


def config(*overrides: str, algorithm: str = "Random_Validation") -> Config:
    """18 training steps each."""
    return configs.load([CONFIGS / "digits.yaml", CONFIGS / f"{algorithm}.yaml"], [*TINY, *overrides])


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "search.jsonl").read_text().splitlines()]


def killed(module: str, options: list[str], directory: Path, count: int) -> list[dict[str, Any]]:
    """What a search by `python -m module`, which knows `directory` by a relative path, has logged when it is killed:
    `count` lines or a few more. It uses the Ray of this process, and has it note as little as it can: the first step,
    and every fourth checkpoint of a trial."""
    import ray
    from ray._private.ray_constants import ENABLE_RAY_CLUSTERS_ENV_VAR

    root = CONFIGS.parent
    where = ["-l", os.path.relpath(directory.parent, root), "-g", ".", "-n", directory.name]
    where += ["--address", ray.get_runtime_context().gcs_address]
    settings = {"TUNE_GLOBAL_CHECKPOINT_S": "1000", ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    command = [sys.executable, "-m", module, *where, *options]
    log, until = directory / "search.jsonl", time.monotonic() + 120.0
    with subprocess.Popen(command, cwd=root, env={**os.environ, **settings}) as child:
        while child.poll() is None and time.monotonic() < until:
            if log.exists() and log.read_bytes().count(b"\n") >= count:
                break
            time.sleep(0.01)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    return lines(directory)


def timeless(found: Any) -> Any:
    """All but times, which differ between repetitions of the same search."""
    if isinstance(found, dict):
        return {key: timeless(value) for key, value in found.items() if key != "seconds"}
    return [timeless(value) for value in found] if isinstance(found, list) else found


def interrupted(finished: Path, directory: Path, count: int, half: str = "") -> Path:
    """What a search leaves that is killed after it has logged `count` evaluations, and `half` of a further line."""
    shutil.copytree(finished, directory)
    (directory / "summary.json").unlink()
    text = (finished / "search.jsonl").read_text().splitlines(keepends=True)
    begun = {line["run"] for line in lines(finished)[: count + 1]}
    for run in (directory / "runs").iterdir():
        if f"runs/{run.name}" not in begun:
            shutil.rmtree(run)
    (directory / "search.jsonl").write_text("".join(text[:count]) + half)
    return directory
