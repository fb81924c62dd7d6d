"""A search directory: what all trainings have in common, and whose search it is.

config.yaml      the config
config.json      the same for programs: a scheduler changes those of its runs
search.json      the settings of the search
search.jsonl     the evaluations (see `hyperopt_id.telemetry.search`)
runs/            run directories
summary.json     what was found; written last
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from baselines.arguments import check_config
from hyperopt_id.config import dump, to_dict
from hyperopt_id.config_schema import Config
from hyperopt_id.telemetry import read_json
from hyperopt_id.telemetry.directory import write_json, write_text
from hyperopt_id.telemetry.measure import plain


def claim(directory: Path, config: Config, settings: Mapping[str, Any]) -> bool:
    """Make the directory, or check that it is this search's; whether it is new."""
    settings = plain(settings)
    if (directory / "config.yaml").is_file():
        check_config(directory, config)
        before = read_json(directory / "search.json") or {}
        if changed := [f"{key}: {before.get(key)} -> {now}" for key, now in settings.items() if before.get(key) != now]:
            raise ValueError(
                f"the search in {directory} was made with other settings: {'; '.join(changed)}; start a new one instead"
            )
        return False
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "search.json", settings)
        write_json(directory / "config.json", to_dict(config))
        write_text(directory / "config.yaml", dump(config))
    except OSError as error:
        raise ValueError(
            f"the search directory {directory} cannot be written ({error.strerror}); choose another with -l DIR"
        ) from error
    return True


def discard(directory: Path) -> None:
    """Remove what was written before any evaluation, and the folders that are then empty."""
    for name in ("config.yaml", "config.json", "search.json", "search.jsonl", "log.txt"):
        (directory / name).unlink(missing_ok=True)
    for folder in (directory / "runs", directory):
        with suppress(OSError):  # something else is in it
            folder.rmdir()
