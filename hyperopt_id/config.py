"""Reads configs: YAML files, later ones win, then dotted overrides; and writes them back exactly.

    config = load([Path("configs/fashion_mnist.yaml"), Path("configs/Ours_HDLR.yaml")], ["inner.updates=100"])

Mappings merge (but naming another model forgets the options of the one before), lists replace, null resets to the
default. A file may name `_base_: [other.yaml]`, relative to itself: those are merged first.
`from_dict(to_dict(config)) == config`, and a file that holds `dump(config)` loads as `config`. Nothing else in the
package knows about YAML.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import yaml

from hyperopt_id.config_checks import problems
from hyperopt_id.config_decode import decode, encode, source_of
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


def load(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> Config:
    """The config that `files` and then `overrides` ("inner.updates=100", the value in YAML) state.

    Raises ValueError, naming the file (or `--set`) and the key, for anything that cannot be read, is not in
    the schema, has the wrong type, or is impossible.
    """
    tree: Tree = {}
    sources: dict[str, str] = {}
    for file in files:
        _read_file(Path(file), (), tree, sources)
    for override in overrides:
        _merge_layer(tree, sources, _read_override(override), "--set")
    return _finish(tree, sources)


def from_dict(tree: Mapping[str, Any], source: str = "config") -> Config:
    """The config that nested plain values state, with the same rules and errors as `load`."""
    merged: Tree = {}
    sources: dict[str, str] = {}
    _merge_layer(merged, sources, tree, source)
    return _finish(merged, sources)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers; every key, defaults too."""
    return encode(config)


def dump(config: Config) -> str:
    """YAML of the whole config; reading it gives an equal config, floats with all their digits."""
    return yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def config_hash(config: Config) -> str:
    """16 hexadecimal digits of what determines the numbers of a run; where it logs, for example, does not."""
    text = json.dumps(_numbers(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(before: Config, after: Config) -> list[str]:
    """What keeps `after` from continuing a run of `before`, as "key: old -> new"; empty if hashes agree."""
    old, new = _numbers(before), _numbers(after)
    keys = list(dict.fromkeys([*old, *new]))
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


def _finish(tree: Mapping[str, Any], sources: Mapping[str, str]) -> Config:
    config = decode(tree, sources)
    for keys, text in problems(config):
        raise ValueError(f"{source_of(keys, sources)}: {keys[0]}: {text}")
    return config


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
        key = f"{prefix}{name}"
        sources[key] = source
        if isinstance(value, Mapping):
            if not isinstance(tree.get(name), dict):
                tree[name] = {}
            _merge(tree[name], sources, value, source, f"{key}.")
        else:
            tree[name] = value


def _read_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ValueError(f"--set: given {override!r}; allowed: key=value, for example inner.updates=100")
    layer: Any = _parse(text, f"--set {key}")
    for part in reversed(parts):
        layer = {part: layer}
    return layer


def _read_file(file: Path, above: tuple[Path, ...], tree: Tree, sources: dict[str, str]) -> None:
    if file.resolve() in above:
        chain = " -> ".join(path.name for path in (*above, file))
        raise ValueError(f"{file}: _base_: goes in a circle: {chain}")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = get_close_matches(file.name, [path.name for path in file.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {file.parent / near[0]}?" if near else ""
        raise ValueError(f"{file}: cannot be read ({error}){hint}") from error
    layer = _parse(text, str(file))
    layer = {} if layer is None else layer
    if not isinstance(layer, dict):
        raise ValueError(f"{file}: a config is a mapping from keys to values, this is {type(layer).__name__}")
    bases = layer.pop("_base_", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{file}: _base_: given {bases!r}; allowed: a list of files, relative to this one")
    for base in bases:
        _read_file(file.parent / base, (*above, file.resolve()), tree, sources)
    _merge_layer(tree, sources, layer, str(file))


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{source}: {line}{getattr(error, 'problem', None) or error}") from error


class _Loader(yaml.SafeLoader):
    """Numbers and booleans of YAML 1.2: 1e-3 is a float; on, off and dates are text. Keys are unique."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}  # pyright: ignore

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark
            if key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", line)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", line)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Lists on one line; text that `_Loader` or another reader would take for something else is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Dumper.add_representer(list, _represent_list)
_EXPONENT = "[eE][-+]?[0-9]+"
_SCALARS = {  # kind -> (pattern, first characters)
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        rf"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*(?:{_EXPONENT})?|{_EXPONENT})|\.[0-9]+(?:{_EXPONENT})?)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
for _kind, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _first)
