"""The forms of what analysis reads from JSON: which keys a file has to have, and of which type each is.

A form is as `files.check_form` takes it. Whoever reads a file asks for its form once, so that the code behind it meets
the types that it was written for. A number that was not finite is null.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hyperopt_id import files
from hyperopt_id.telemetry import records
from hyperopt_id.telemetry.search import is_below

LARGEST = 2**63 - 1  # of counts
LOG = 4 * 2**30  # bytes of a file with a record per line
DEEPEST = 50  # levels of a value
NONE = type(None)


def number(value: Any) -> bool:
    """a finite number"""
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= LARGEST)


def number_or_null(value: Any) -> bool:
    """a number or null"""
    return value is None or type(value) is float or number(value)


def seconds(value: Any) -> bool:
    """seconds, a finite number"""
    return number(value)


def count(value: Any) -> bool:
    """an integer from 0 to 2^63 - 1"""
    return type(value) is int and 0 <= value <= LARGEST


def positive_count(value: Any) -> bool:
    """an integer from 1 to 2^63 - 1"""
    return count(value) and value > 0


def count_or_null(value: Any) -> bool:
    """an integer from 0 to 2^63 - 1, or null"""
    return value is None or count(value)


def numbers_by_name(value: Any) -> bool:
    """a mapping from names to finite numbers"""
    return isinstance(value, dict) and all(map(number, value.values()))


def values_of_members(value: Any) -> bool:
    """a number, or a list of one for each run"""
    return number_or_null(value) or (isinstance(value, list) and all(map(number_or_null, value)))


def starts(value: Any) -> bool:
    """a mapping from hyperparameters to a number, or a list of one for each run"""
    return isinstance(value, dict) and all(map(values_of_members, value.values()))


def numbers_of_optimizer(value: Any) -> bool:
    """a mapping in which lr, weight_decay and momentum are numbers from -300 to 300"""
    if not isinstance(value, dict):
        return False
    known = [value[name] for name in ("lr", "weight_decay", "momentum") if name in value]
    return all(number(x) and abs(x) <= 300.0 for x in known)


def mappings_by_name(value: Any) -> bool:
    """a mapping from names to mappings"""
    return isinstance(value, dict) and all(isinstance(inner, dict) for inner in value.values())


def population(value: Any) -> bool:
    """null, or a mapping in which runs is an integer from 1, sample true, false or null, and start a mapping"""
    if not isinstance(value, dict):
        return value is None
    sampled = value.get("sample") is None or type(value["sample"]) is bool
    return positive_count(value.get("runs", 1)) and sampled and isinstance(value.get("start", {}), dict)


CONFIG: Mapping[str, Any] = {  # config.json; a run from Python has none of it
    "task?": {
        "name": str,
        "path?": (str, NONE),
        "model?": (dict, NONE),
        "validation_fraction?": number_or_null,
        "train_on?": str,
    },
    "algorithm?": str,
    "seed?": (int, NONE),
    "start?": starts,
    "space?": mappings_by_name,
    "population?": population,
    "inner?": {
        "steps_per_update?": count_or_null,
        "steps?": count_or_null,
        "updates?": count_or_null,
        "compile?": object,
    },
    "hypergradient?": {"engine?": (str, NONE), "terms?": count_or_null, "window?": count_or_null},
    "meta?": {"rule?": (str, NONE)},
}
PUBLISHED: Mapping[str, Any] = {  # config.json of the published code
    "algorithm?": str,
    "config_dicts": {
        "dataset": {"class": str},
        "model?": dict,
        "network_weight?": numbers_of_optimizer,
        "hyperparameter_wrapper?": {"class?": str, "hyperparameter_rollback_distance?": count_or_null},
    },
    "network_weight_steps": count,
    "hyperparameter_steps": count,
    "batch_size?": count_or_null,
    "total_step_limit?": count_or_null,
    "validation_proportion?": number_or_null,
    "reset_loop_before_hyperparameter_step?": number,
}
OWN_EVENTS: Mapping[str, Any] = {  # config.json of this package, of a run whose reports are lost
    "task": dict,
    "algorithm": str,
    "inner": {"steps_per_update": positive_count},
}
SUMMARY: Mapping[str, Any] = {"diverged": [bool], "seconds": numbers_by_name}
REPORT: Mapping[str, Any] = {"step": positive_count, "time?": seconds}


def numbers_of_a_model(value: Any) -> bool:
    """a mapping whose metrics and costs are finite numbers or null"""
    if not isinstance(value, dict):
        return False
    numbers = [v for key, v in value.items() if "/" in key or key in ("gradients", "seconds")]
    return all(v is None or number(v) for v in numbers)


def hypers(value: Any) -> bool:
    """a mapping from hyperparameters to finite numbers or null"""
    return isinstance(value, dict) and all(v is None or number(v) for v in value.values())


def digests(value: Any) -> bool:
    """a mapping from names to text"""
    return isinstance(value, dict) and all(isinstance(digest, str) for digest in value.values())


EVALUATION: Mapping[str, Any] = {  # a line of search.jsonl
    "repetition": count,
    "run": is_below,
    "member": count,
    "step": positive_count,
    "hyper": hypers,
    "gradients": number,
    "seconds": number,
    "loss/validation": object,
}
IDENTITY: Mapping[str, Any] = {"digests": digests}
SEARCH: Mapping[str, Any] = {"method": str, "repetitions": [numbers_of_a_model]}  # its summary.json
STATISTICS: Mapping[str, Any] = {"p10": object, "median": object, "p90": object}  # of the elements of a parameter


def members(value: Any, runs: int, where: str) -> np.ndarray:
    """What a report says of R runs, a number that all share or a list of R, as float64 [R]; null is NaN. Raises
    ValueError, which begins with `where`, if it is neither."""
    if not values_of_members(value):
        raise ValueError(f"{where}: needs {values_of_members.__doc__}")
    found = np.array(value, dtype=np.float64)
    if found.ndim and len(found) != runs:
        raise ValueError(f"{where}: has {len(found)} numbers, but summary.json has {runs} runs")
    return np.broadcast_to(np.where(np.isfinite(found), found, np.nan), (runs,))


def read_json(path: Path, form: Any, cure: str) -> Any:
    """The value in a JSON file. Raises ValueError, which ends with the cure, if the file cannot be read or its value
    has not the form."""
    try:
        value = files.read_json_file(path, form)
        if _depth(value) > DEEPEST:
            raise ValueError(f"{path}: is nested more than {DEEPEST} levels deep")
        return value
    except ValueError as error:
        raise ValueError(f"{error}; {cure}") from error


def read_lines(path: Path, form: Any) -> Iterator[dict[str, Any]]:
    """The records of a file that has one per line. A last line without an end is left out. Raises ValueError, which
    names the line, if one is damaged or has not the form."""
    with files.open_regular(path, LOG) as lines:
        found = records(lines)
        for number in itertools.count(1):
            try:
                record = next(found, None)
            except RecursionError:
                raise ValueError(
                    f"line {number} of {path} is damaged (nested too deeply); remove it to go on"
                ) from None
            if record is None:
                return
            files.check_form(record[0], form, f"line {number} of {path}")
            yield record[0]


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level, depth = [leaf for values in inner for leaf in values], depth + 1
    return depth
