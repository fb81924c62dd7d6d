"""The starts of earlier runs: seeds and natural starting values, from run directories of this package, from those of
the study's published code (`config.json`), or from its published starts.

Those are files `inits/iteration_N.yaml`, {config_dicts: {network_weight: {lr, weight_decay, momentum, lr_multiplier}}},
with log10 of learning rate and weight decay and logit of momentum, as in its `config.json`.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from hyperopt_id import config_yaml
from hyperopt_id.analysis.load_event_runs import NATURAL
from hyperopt_id.build.names import run_seeds, starting_values
from hyperopt_id.config import load
from hyperopt_id.files import check_form, read_json_file

PUBLISHED: dict[str, tuple[str, Callable[[float], float]]] = {  # name -> what the published code calls it, its scale
    **{name: (name, natural) for name, natural in NATURAL.items()},
    "factor": ("lr_multiplier", float),
}
Values = tuple[tuple[str, float], ...]
Start = tuple[int, dict[str, float]]


def found_starts(directory: Path, seed: int, names: Collection[str]) -> list[Start]:
    """The starts of all runs below a directory, each once, by seed; of the published ones, the values called so."""
    own = {(s, tuple(values.items())) for file in directory.rglob("config.yaml") for s, values in _own(file)}
    if own:
        starts = sorted(own)
        seeds = [start[0] for start in starts]
        if doubled := {s for s in seeds if seeds.count(s) > 1}:
            raise ValueError(
                f"{directory} holds runs of seed {min(doubled)} with several starting values; "
                "name the directory of one experiment"
            )
        return [(s, dict(values)) for s, values in starts]
    published = dict.fromkeys(
        start for file in sorted(directory.rglob("config.json")) for start in _published(file, names)
    )
    if not published:
        given = sorted(directory.rglob("*.yaml"), key=_in_order)
        published = dict.fromkeys(start for file in given for start in _published_start(file, names))
    if not published:
        raise ValueError(
            f"{directory} holds no runs: there is no config.yaml, and no config.json or inits/*.yaml of the study's "
            "published code, in it or in a directory below"
        )
    return [(seed + number, dict(start)) for number, start in enumerate(published)]


def _in_order(file: Path) -> list[tuple[int, str]]:
    """iteration_2 before iteration_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,9})", str(file))]


def _own(file: Path) -> Iterator[Start]:
    if (file.parent / "search.jsonl").exists():  # the config of a search, whose runs lie below
        return
    config = load([file])
    values = starting_values(config)
    for member, seed in enumerate(run_seeds(config)):
        yield seed, {name: values[name][member] for name in values}


def _published(file: Path, names: Collection[str]) -> list[Values]:
    form = {"config_dicts": {"network_weight": dict}}
    try:
        return [_natural(read_json_file(file, form)["config_dicts"]["network_weight"], names)]
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as a config of the study's published code ({error})") from error


def _published_start(file: Path, names: Collection[str]) -> list[Values]:
    """The values of one of the files that the study's code was started with; none if it is another file."""
    tree = config_yaml.read(file)
    for key in ("config_dicts", "network_weight"):
        tree = tree.get(key) if isinstance(tree, dict) else None
    try:
        return [_natural(tree, names)] if isinstance(tree, dict) else []
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as a start of the study's published code ({error})") from error


def _natural(raw: Mapping[str, Any], names: Collection[str]) -> Values:
    """Natural values, by name, of what the published code calls so, on its scale."""
    values = []
    for name, (called, natural) in PUBLISHED.items():
        if name in names and called in raw:
            check_form(raw[called], float, called)
            if not abs(raw[called]) <= 300:
                raise ValueError(f"{called}: given {raw[called]}; it is a logarithm or a logit")
            values.append((name, natural(raw[called])))
    return tuple(values)
