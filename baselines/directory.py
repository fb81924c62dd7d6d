"""A search directory: what all trainings have in common, and whose search it is.

config.yaml      the config
config.json      the same for programs: a scheduler changes those of its runs
search.json      the settings of the search
search.jsonl     the evaluations (see `hyperopt_id.telemetry.search`)
runs/            run directories
summary.json     what was found; written last
identity.json    the digest of the data (see `build.identity`)
search.lock      held by the process that searches (see `baselines.lock`)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from baselines.arguments import LOCK, STARTED, check_config
from baselines.lock import held
from hyperopt_id.build.identity import FILE as IDENTITY
from hyperopt_id.build.identity import check_digests, identity, read_identity
from hyperopt_id.config import dump, to_dict
from hyperopt_id.config_schema import Config
from hyperopt_id.experiment_plan import Parts
from hyperopt_id.files import read_json_file
from hyperopt_id.launch import check_named
from hyperopt_id.telemetry.directory import remove_temporary, write_json, write_text
from hyperopt_id.telemetry.measure import plain
from hyperopt_id.telemetry.search import SUMMARY


@contextmanager
def claimed(directory: Path, config: Config, settings: Mapping[str, Any]) -> Iterator[bool]:
    """Hold the directory, new or of this search, while searching there; whether it is new.

    Raises ValueError where another process holds it (an `OccupiedError`), it is another search's, or cannot be written.
    """
    with held(directory / LOCK, "wait for it, or choose another name with -n NAME"):
        remove_temporary(directory)
        yield claim(directory, config, settings)


def claim(directory: Path, config: Config, settings: Mapping[str, Any]) -> bool:
    """Start the search in a directory that is held, or check that it is the one there; whether it is new."""
    settings = plain(settings)
    if (directory / "config.yaml").is_file():
        check_config(directory, config)
        if (directory / "summary.json").exists():  # or else training goes on, which compares
            check_named(config, directory, "search")
        before = settings_of(directory)
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


def identify(directory: Path, config: Config, parts: Parts) -> None:
    """Note whose data the search has, where nobody has yet. Raises ValueError if `parts` were built of other ones."""
    own, known = identity(config, parts), read_identity(directory)
    if known is None:
        write_json(directory / IDENTITY, own)
    else:
        check_digests(known["digests"], own["digests"], f"the search in {directory}")


def settings_of(directory: Path) -> dict[str, Any]:
    """The settings of a search that has been started. Raises ValueError if its `search.json` does not tell them."""
    try:
        return read_json_file(directory / "search.json", {"method": str, "compiled?": bool})
    except ValueError as error:
        raise ValueError(f"{error}; without it nobody knows whose search this is: start a new one instead") from error


def summary_of(directory: Path) -> dict[str, Any]:
    """The summary of a search that is finished. Raises ValueError if it is damaged."""
    path = directory / "summary.json"
    try:
        return read_json_file(path, SUMMARY)
    except ValueError as error:
        raise ValueError(f"{error}; remove it, and the same command makes it again") from error


def discard(directory: Path) -> None:
    """Remove what was written before any evaluation, and the folders that are then empty."""
    for name in ("log.txt", "search.jsonl", IDENTITY, *reversed(STARTED)):
        (directory / name).unlink(missing_ok=True)
    for folder in (directory / "runs", directory):
        with suppress(OSError):  # something else is in it
            folder.rmdir()
