"""Nested dicts to `Config` and back: names, types and defaults. Values are judged in `config_checks`.

`decode(encode(config)) == config`. Every error names the key and, through `Sources`, the file that set it.
"""

import math
import os
import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from hyperopt_id.config_schema import GRANULARITIES, HYPERPARAMETERS, RULES, Config, HyperConfig, RuleName
from hyperopt_id.files import shorten

SHOWN = 100  # characters of a value or key in a message
Sources = Mapping[str, str]  # dotted key -> the file (or `--set`) that set it last


def decode(tree: Mapping[str, Any], sources: Sources) -> Config:
    """The config that `tree` states, defaults filled in; ValueError for unknown keys and wrong types."""
    return _Decoder(sources).config(tree)


def encode(config: Any) -> Any:
    """Plain dicts, lists, strings and numbers with the same content."""
    if is_dataclass(config):
        return {f.name: encode(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, Mapping):
        return {key: encode(value) for key, value in config.items()}
    return list(config) if isinstance(config, tuple) else config


def with_home(tree: Mapping[str, Any], paths: Collection[str], above: str = "") -> dict[str, Any]:
    """The tree in which `~/` at the beginning of the paths, dotted keys, is the home folder: a shell sees to that in
    `-l ~/runs`, and not in `-s log.dir=~/runs`."""

    def at_home(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return with_home(value, paths, f"{key}.")
        return os.path.expanduser(value) if key in paths and str(value).startswith("~/") else value

    return {key: at_home(f"{above}{key}", value) for key, value in tree.items()}


def source_of(keys: tuple[str, ...], sources: Sources) -> str:
    """Where `keys` were set, each place once; if nowhere, where the section of the first was, or the only file that
    there is."""
    found = [sources[key] for key in keys if key in sources]
    section = keys[0]
    while not found and "." in section:
        section = section.rpartition(".")[0]
        found = [sources[section]] if section in sources else []
    return ", ".join(dict.fromkeys(found)) or sources.get("", "config")


class _Decoder:
    def __init__(self, sources: Sources):
        self.sources = sources

    def fail(self, key: str, text: str) -> ValueError:
        return ValueError(f"{source_of((key,), self.sources)}: {shorten(key, SHOWN)}: {text}")

    def config(self, tree: Mapping[str, Any]) -> Config:
        space = tree.get("space")
        config = self.section(Config, {k: v for k, v in tree.items() if k != "space"}, "", {"space": {}})
        return replace(config, space=self.space({} if space is None else space, config.inner.rule))

    def space(self, tree: Any, rule: RuleName) -> dict[str, HyperConfig]:
        if not isinstance(tree, Mapping):
            raise self.fail(
                "space", f"given {_describe(tree)}; allowed: a mapping with the keys {', '.join(RULES[rule])}"
            )
        self.known(tree, tuple(HYPERPARAMETERS), "space")
        for name in tree:
            if name not in RULES[rule] and tree[name] is not None:
                has = f"inner.rule = {rule} has {', '.join(RULES[rule])}, but not {name}"
                raise self.fail(f"space.{name}", f"{has} (space.{name}=null takes it out)")
        space = {}
        for name in RULES[rule]:
            default, key = HYPERPARAMETERS[name], f"space.{name}"
            given = {f.name: getattr(default, f.name) for f in fields(default)}
            hyper = self.section(HyperConfig, tree.get(name), key, given)
            if len(set(hyper.tune)) < len(hyper.tune):
                raise self.fail(f"{key}.tune", f"given {list(hyper.tune)}; name every granularity once")
            space[name] = replace(hyper, tune=tuple(g for g in GRANULARITIES if g in hyper.tune))
        return space

    def section(self, cls: Any, tree: Any, prefix: str, defaults: Mapping[str, Any] | None = None) -> Any:
        """An instance of the dataclass `cls`; where `tree` is silent or null: `defaults`, or else its own."""
        defaults = defaults or {}
        if tree is not None and not isinstance(tree, Mapping):
            known = ", ".join(f.name for f in fields(cls))
            raise self.fail(prefix, f"given {_describe(tree)}; allowed: a mapping with the keys {known}")
        tree = tree or {}
        self.known(tree, tuple(f.name for f in fields(cls)), prefix)
        values = {}
        for f in fields(cls):
            key, kind = _join(prefix, f.name), _hints(cls)[f.name]
            if tree.get(f.name) is not None or (is_dataclass(kind) and f.name not in defaults):
                values[f.name] = self.value(kind, tree.get(f.name), key)
            elif f.name in defaults:
                values[f.name] = defaults[f.name]
            elif _required(f):
                raise self.fail(key, f"missing; allowed: {_allowed(kind)}")
        return cls(**values)

    def value(self, kind: Any, value: Any, key: str) -> Any:
        if is_dataclass(kind):
            return self.section(cast(type, kind), value, key)
        options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
        for option in options:
            if is_dataclass(option) and isinstance(value, Mapping):
                return self.section(cast(type, option), value, key)
            matched, result = _match(option, value)
            if matched:
                return result
        raise self.fail(key, f"given {_describe(value)}; allowed: {_allowed(kind)}{_nearest(value, kind)}")

    def known(self, tree: Mapping[str, Any], names: tuple[str, ...], prefix: str) -> None:
        for name in tree:
            if name not in names:
                hint = _suggestion(name[:SHOWN], names, prefix)
                raise self.fail(_join(prefix, name), f"unknown key{hint}; allowed here: {', '.join(names)}")


def _match(kind: Any, value: Any) -> tuple[bool, Any]:
    """Whether `value` is of the simple type `kind`, and the value in that type. A bool is not a number."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments), value
    if origin is tuple:
        if not isinstance(value, list):
            return False, None
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        parts = [_match(item_kind, item) for item_kind, item in zip(kinds, value, strict=False)]
        return len(kinds) == len(value) and all(ok for ok, _ in parts), tuple(part for _, part in parts)
    if origin is dict:
        if not isinstance(value, Mapping):
            return False, None
        parts = {name: _match(arguments[1], item) for name, item in value.items()}
        return all(ok for ok, _ in parts.values()), {name: part for name, (_, part) in parts.items()}
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        return number, float(value) if number else None
    return type(value) is kind, value


def _allowed(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_allowed(option) for option in arguments)
    if origin is Literal:
        return ", ".join(str(choice) for choice in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each entry {_allowed(arguments[0])}"
        return f"a list of {len(arguments)}, each {_allowed(arguments[0])}"
    if origin is dict:
        return f"a mapping, each entry {_allowed(arguments[1])}"
    if is_dataclass(kind):
        return "{" + ", ".join(f"{f.name}: ..." for f in fields(kind)) + "}"
    return {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        types.NoneType: "null",
    }[kind]


def _describe(value: Any) -> str:
    kinds = {bool: "true/false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    kind = kinds.get(type(value), "a mapping" if isinstance(value, Mapping) else "nothing")
    return f"{shorten(repr(value), SHOWN)} ({kind})"


def _nearest(value: Any, kind: Any) -> str:
    found = get_close_matches(str(value)[:SHOWN], list(_choices(kind)), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def _choices(kind: Any) -> Iterator[str]:
    for argument in get_args(kind):
        if isinstance(argument, str):
            yield argument
        else:
            yield from _choices(argument)


def _suggestion(name: str, names: tuple[str, ...], prefix: str) -> str:
    """The nearest key: among those of the section, else a key of that name elsewhere, else anything near."""
    everywhere = list(_dotted(Config, ""))
    if name in everywhere:
        section, _, leaf = name.rpartition(".")
        return f"; did you mean {leaf} inside {section}? (dots are for --set)" if section else ""
    near = [_join(prefix, sibling) for sibling in get_close_matches(name, names, n=1, cutoff=0.6)]
    near = near or [key for key in everywhere if key.split(".")[-1] == name]
    near = near or get_close_matches(_join(prefix, name), everywhere, n=1, cutoff=0.0)
    return f"; did you mean {near[0]}?"


def _dotted(cls: type, prefix: str) -> Iterator[str]:
    for f in fields(cls):
        key, kind = _join(prefix, f.name), _hints(cls)[f.name]
        if key == "space":
            for name in HYPERPARAMETERS:
                yield from _dotted(HyperConfig, f"space.{name}")
        elif is_dataclass(kind):
            yield from _dotted(cast(type, kind), key)
        else:
            yield key


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _required(f: Field[Any]) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)
