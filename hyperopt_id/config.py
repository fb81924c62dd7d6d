"""Reads configs: YAML files, later ones win, then dotted overrides; and writes them back exactly.

    config = load([Path("configs/fashion_mnist.yaml"), Path("configs/Ours_HDLR.yaml")], ["inner.updates=100"])

Mappings merge (but naming another model forgets the options of the one before), lists replace, null resets to the
default. A file may name `_base_: [other.yaml]`, relative to itself: those are merged first.
`from_dict(to_dict(config)) == config`, and a file that holds `dump(config)` loads as `config`. Nothing else in the
package knows about YAML.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hyperopt_id import config_yaml, files
from hyperopt_id.config_checks import problems
from hyperopt_id.config_decode import decode, encode, source_of, with_home
from hyperopt_id.config_schema import Config, ModelConfig

Tree = dict[str, Any]

SILENT = (  # what does not determine the numbers of a run
    "algorithm",
    "inner.steps",  # said by inner.updates
    "report.checkpoint_every",
    "report.keep",
    "report.trace_every",
    "log",
    "threads",
    "data_root",
)
FILES = {  # keys that name a file -> the name of its digest (see `build.identity`)
    "task.path": "data",
    "task.model.init_from": "task.model.init_from",
    "space.theta.init": "space.theta.init",
}
MOST_FILES = 256  # that are read for one config, a base counting each time it is named
MOST_CHARACTERS = 500  # of a message


def load(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> Config:
    """The config that `files` and then `overrides` ("inner.updates=100", the value in YAML) state.

    Raises ValueError, naming the file (or `--set`) and the key, for anything that cannot be read, is not in
    the schema, has the wrong type, or is impossible.
    """
    with _one_line():
        layers = _Layers()
        for file in files:
            layers.read(Path(file), ())
        if len(files) == 1:
            layers.sources[""] = str(files[0])
        for override in overrides:
            layers.merge(_read_override(override), "--set")
        return _finish(layers.tree, layers.sources)


def from_dict(tree: Mapping[str, Any], source: str = "config") -> Config:
    """The config that nested plain values state, with the same rules and errors as `load`."""
    with _one_line():
        _check_plain(tree, source)
        layers = _Layers()
        layers.merge(tree, source)
        return _finish(layers.tree, layers.sources)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers; every key, defaults too."""
    return encode(config)


def dump(config: Config) -> str:
    """YAML of the whole config; reading it gives an equal config, floats with all their digits."""
    return config_yaml.dump(to_dict(config))


def config_hash(config: Config, digests: Mapping[str, str] | None = None) -> str:
    """16 hexadecimal digits of what determines the numbers of a run; where it logs, for example, does not. Where
    `digests` have what a key names a file for, that stands for the path."""
    numbers = _numbers(config)
    for key, name in FILES.items():
        if numbers.get(key) is not None and name in (digests or {}):
            numbers[key] = f"sha256:{(digests or {})[name]}"
    text = json.dumps(numbers, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(before: Config, after: Config, known: Collection[str] = ()) -> list[str]:
    """What keeps `after` from continuing a run of `before`, as "key: old -> new"; empty if hashes agree. The paths of
    files whose digests are `known` are left out: they are compared by their content."""
    old, new = _numbers(before), _numbers(after)
    keys = [key for key in dict.fromkeys([*old, *new]) if FILES.get(key) not in known]
    missing = "(not there)"
    return [f"{k}: {old.get(k, missing)} -> {new.get(k, missing)}" for k in keys if old.get(k) != new.get(k)]


def _numbers(config: Config) -> dict[str, Any]:
    """Dotted key -> value of what determines the numbers; settings that mean the same look the same."""
    config = replace(
        config,
        inner=replace(config.inner, updates=config.inner.total_updates),
        population=replace(config.population, sample=config.population.samples),
    )
    if config.hypergradient.engine in ("unroll", "forward"):
        config = replace(config, hypergradient=replace(config.hypergradient, window=config.window))
    flat = _flatten(to_dict(config))
    return {key: value for key, value in flat.items() if not any(f"{key}.".startswith(f"{s}.") for s in SILENT)}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


@contextmanager
def _one_line() -> Iterator[None]:
    """Keep a ValueError's message to one line of bounded length, however much of a config it quotes."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        if len(text) <= MOST_CHARACTERS and "\n" not in text:
            raise
        raise ValueError(files.shorten(text, MOST_CHARACTERS)) from error


def _check_plain(tree: Any, source: str) -> None:
    """Raise ValueError unless `tree` is what YAML could hold (see `config_yaml`), whoever made it."""
    pending, seen = [(tree, 0)], 0
    while pending:
        value, depth = pending.pop()
        seen += 1
        if depth > config_yaml.MOST_DEPTH or seen > config_yaml.MOST_BYTES:
            raise ValueError(f"{source}: is too deep or too large for a config, or a part of itself")
        if isinstance(value, Mapping):
            if wrong := [key for key in value if not isinstance(key, str)]:
                raise ValueError(f"{source}: key {files.shorten(repr(wrong[0]))} is not text")
            pending += [(entry, depth + 1) for entry in value.values()]
        elif isinstance(value, list | tuple):
            pending += [(entry, depth + 1) for entry in value]
        elif isinstance(value, int) and abs(value) > config_yaml.LARGEST:
            raise ValueError(f"{source}: a number is beyond the largest whole number, 2^63 - 1")


def _finish(tree: Mapping[str, Any], sources: Mapping[str, str]) -> Config:
    config = decode(with_home(tree, (*FILES, "data_root", "log.dir")), sources)
    for keys, text in problems(config):
        raise ValueError(f"{source_of(keys, sources)}: {keys[0]}: {text}")
    return config


class _Layers:
    """What has been read so far: a tree, later layers over earlier ones, and which source set each dotted key."""

    def __init__(self) -> None:
        self.tree: Tree = {}
        self.sources: dict[str, str] = {}
        self._read: dict[str, Tree] = {}  # by resolved path
        self._count = 0

    def merge(self, layer: Mapping[str, Any], source: str) -> None:
        _merge_layer(self.tree, self.sources, layer, source)

    def read(self, file: Path, above: tuple[Path, ...]) -> None:
        """Merge a file, its bases first; `above` are the files that have named it, each as a base of the one before."""
        path = _resolved(file)
        if any(path == _resolved(other) for other in above):
            chain = " -> ".join(other.name for other in (*above, file))
            raise ValueError(f"{file}: _base_: goes in a circle: {chain}")
        self._count += 1
        if self._count > MOST_FILES:
            raise ValueError(f"{file}: _base_: more than {MOST_FILES} files are read for one config")
        if path not in self._read:
            self._read[path] = _read_layer(file)
        layer = dict(self._read[path])
        bases = layer.pop("_base_", None) or []
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            given = files.shorten(repr(bases))
            raise ValueError(f"{file}: _base_: given {given}; allowed: a list of files, relative to this one")
        for base in bases:
            self.read(file.parent / base, (*above, file))
        self.merge(layer, str(file))


def _merge_layer(tree: Tree, sources: dict[str, str], layer: Mapping[str, Any], source: str) -> None:
    inner, merged = layer.get("inner"), tree.get("inner")
    if (
        isinstance(inner, Mapping)
        and isinstance(merged, dict)
        and inner.get("steps") is not None
        and inner.get("updates") is None
    ):
        merged.pop("updates", None)  # the later statement of the run's length wins
    _leave_model(tree, sources, layer, source)
    _merge(tree, sources, layer, source, "")


def _leave_model(tree: Tree, sources: dict[str, str], layer: Mapping[str, Any], source: str) -> None:
    """Options belong to a model: where `layer` names another one, those of earlier sources are forgotten."""
    model, name = _at(tree, "task", "model"), _at(layer, "task", "model", "name")
    if not isinstance(model, dict) or name is None or name == (model.get("name") or ModelConfig.name):
        return
    for key in [key for key in model if sources[f"task.model.{key}"] != source]:
        del model[key], sources[f"task.model.{key}"]


def _at(tree: Any, *names: str) -> Any:
    for name in names:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _merge(tree: Tree, sources: dict[str, str], layer: Mapping[str, Any], source: str, prefix: str) -> None:
    for name, value in layer.items():
        key, before = f"{prefix}{name}", tree.get(name)
        if isinstance(value, Mapping) and not (before is None or isinstance(before, dict)):
            given = files.shorten(repr(before))  # which would take with it what stood there before
            raise ValueError(
                f"{sources[key]}: {key}: given {given}, where {source} has a mapping; leave one of them out"
            )
        sources[key] = source
        if isinstance(value, Mapping):
            if before is None:
                tree[name] = {}
            _merge(tree[name], sources, value, source, f"{key}.")
        else:
            tree[name] = value


def _read_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) > config_yaml.MOST_DEPTH:
        given = files.shorten(override)
        raise ValueError(f"--set: given {given!r}; allowed: key=value, for example inner.updates=100")
    layer: Any = config_yaml.parse(text, f"--set {key}")
    for part in reversed(parts):
        layer = {part: layer}
    return layer


def _read_layer(file: Path) -> Tree:
    """The mapping that a file holds, its `_base_` among the keys."""
    try:
        layer = config_yaml.read(file)
    except ValueError as error:
        raise ValueError(f"{error}{'' if os.path.lexists(file) else _near(file)}") from error
    layer = {} if layer is None else layer
    if not isinstance(layer, dict):
        raise ValueError(f"{file}: a config is a mapping from keys to values, this is {type(layer).__name__}")
    return layer


def _resolved(file: Path) -> str:
    return str(file) if "\0" in str(file) else os.path.realpath(file)  # no name; the reader says so


def _near(file: Path) -> str:
    """A hint at a file of nearly that name."""
    try:
        near = get_close_matches(file.name[:100], [path.name for path in file.parent.glob("*.yaml")], n=1)
    except (OSError, ValueError):
        return ""
    return f"; did you mean {file.parent / near[0]}?" if near else ""
