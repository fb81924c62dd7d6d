"""Tiny searches on digits, for laws about what searches leave behind."""

import json
import shutil
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
