"""What Ray has noted of a search, and what is done where it cannot go on from that.

    DIR/ray/        Ray's notes, and checkpoints of the trials, the newest of which Ray knows
    DIR/saved/      the newest whole checkpoint of each trial, where Ray's notes are of no use any more

Ray copies its notes over the old ones every few seconds, so a kill may leave none, or a part. Whatever is left of them,
the log and the checkpoints tell all that a search needs: it begins anew in Ray, where each trial takes up its own
checkpoint and reports that step again, which the log knows. So nothing is trained again that a checkpoint holds.
"""

import json
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ray import cloudpickle

from baselines import training
from baselines.training import Tree
from hyperopt_id.files import read, read_json_file
from hyperopt_id.telemetry.directory import write_json

logger = logging.getLogger("hyperopt_id")
STATE = "state.pt"  # the file in a checkpoint
PLACE = "place.json"
TUNER, TRIALS, GENERATOR = "tuner.pkl", "experiment_state-*.json", "basic-variant-state-*.json"  # as Ray calls them
MOST_BYTES = 2**30  # of a file of Ray's notes


def newest(directory: Path, trial: str) -> Tree | None:
    """The newest whole checkpoint of a trial of the search in `directory`, None without one. Those that are damaged are
    passed over, and said."""
    there = sorted((directory / "ray" / trial).glob(f"checkpoint_*/{STATE}"), key=_written, reverse=True)
    for file in (*there, *_saved(directory, trial)):
        try:
            return training.load(file)
        except ValueError as error:
            logger.warning("%s; it is passed over", error)
    return None


def prepare(directory: Path) -> bool:
    """Whether Ray can restore the search in `directory` from its notes. If not, they are removed, checkpoints are kept,
    and that is said where there had been any notes.

    Raises ValueError if the directory was elsewhere when the search began, for there Ray would write to.
    """
    folder = directory / "ray"
    folder.mkdir(exist_ok=True)
    _check_place(folder)
    reason = _unusable(folder)
    if reason is None:
        return True
    begun = any(path.name != PLACE for path in folder.iterdir())
    set_aside(directory)
    if begun:
        logger.warning("what Ray noted of %s cannot be used (%s): its trials go on from checkpoints", directory, reason)
    return False


def set_aside(directory: Path) -> None:
    """Move the newest whole checkpoint of each trial to `saved/`, and remove Ray's notes. Idempotent: an interrupted
    call is repeated, since the notes that would be restored go first."""
    folder = directory / "ray"
    (folder / TUNER).unlink(missing_ok=True)
    for trial in sorted(path for path in folder.glob("trial_*") if path.is_dir()):
        for file in sorted(trial.glob(f"checkpoint_*/{STATE}"), key=_written, reverse=True):
            with suppress(ValueError):
                training.load(file)
                (directory / "saved").mkdir(exist_ok=True)
                os.replace(file, directory / "saved" / f"{trial.name}.pt")
                break
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != PLACE:
            path.unlink()


def _saved(directory: Path, trial: str) -> list[Path]:
    file = directory / "saved" / f"{trial}.pt"
    return [file] if file.exists() else []


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns


def _unusable(folder: Path) -> str | None:
    """Why Ray cannot restore a search from its folder, None if it can: its tuner, the newest state of the trials and
    that of what generates them have to be whole, and the last two of the same moment."""
    try:
        cloudpickle.loads(read(folder / TUNER, MOST_BYTES))
        trials, generator = (max(folder.glob(name), default=folder / name) for name in (TRIALS, GENERATOR))
        known = read_json_file(trials, {"trial_data": list}, MOST_BYTES)["trial_data"]
        for trial, _ in known:
            json.loads(trial)
        generated = cloudpickle.loads(read(generator, MOST_BYTES))["_iterators"]
        if len(known) != sum(iterator.counter for iterator in generated):
            return "it knows of another number of trials than it has begun"
    except Exception as error:  # a pickle that is damaged can raise almost any of them
        return " ".join(f"{error}".split()) or type(error).__name__
    return None if known else "it knows of no trial"


def _check_place(folder: Path) -> None:
    """Note where Ray's folder is; a ValueError where it was elsewhere before."""
    note = folder / PLACE
    if not note.exists():
        write_json(note, str(folder))
        return
    before = read_json_file(note, str)
    if before != str(folder):
        raise ValueError(
            f"the search in {folder.parent} was begun in {Path(before).parent} and is not finished; "
            "move it back to go on with it"
        )
