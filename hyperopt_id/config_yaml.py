"""YAML in and out: the only entrance of YAML, and it takes plain data of bounded size.

    parse(text, source) = mappings with unique names as keys, lists, text, true/false, null, finite-sized numbers

Numbers and booleans are those of YAML 1.2: 1e-3 is a float; on, off and dates are text. A tag may say what a scalar is
already (`!!int 3`), or that it is text (`!!str 3`), and nothing else, so nothing is ever constructed or run. An alias
stands for a copy: what a file amounts to with all its aliases written out is bounded, and so is its depth, before
anything is built. Every error is a ValueError of one line with the source and the line.
"""

import math
import re
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from hyperopt_id import files

MOST_BYTES = 4 * files.MEBIBYTE  # of a file
NODE = 64  # what a list, mapping or scalar counts besides its characters, so that there are at most 65 536 of them
MOST_DEPTH = 64  # levels of lists and mappings
LARGEST = 2**63 - 1  # of an integer, so that every one fits a tensor
_TAG = "tag:yaml.org,2002:"
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


def read(file: Path) -> Any:
    """The value that a YAML file holds. Raises ValueError if it is no regular file, too large, or not plain data."""
    content = files.read(file, MOST_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not text in UTF-8 (byte {error.start})") from error
    return parse(text, str(file))


def parse(text: str, source: str) -> Any:
    """The value that a YAML text stands for. Raises ValueError that names `source` and the line."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"{source}: has {len(text)} characters, where at most {MOST_BYTES} are expected")
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: {_explained(error, text)}") from error
    except (ValueError, ArithmeticError) as error:  # of escapes such as "\\UFFFFFFFF"
        raise ValueError(f"{source}: cannot be read ({files.shorten(str(error), 200)})") from error


def _explained(error: yaml.YAMLError, text: str) -> str:
    """The line of an error and what is wrong there."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: a control character (U+{int(error.character):04X}), which no text has; remove it"
    mark = getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    reason = str(getattr(error, "problem", None) or error)
    if reason == "but found another document":
        reason = "another document begins, where a config is one; remove the line ---"
    return f"{line}{files.shorten(reason, 200)}"


def dump(tree: Any) -> str:
    """YAML of plain data; reading it gives equal data, floats with all their digits."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Loader(yaml.SafeLoader):
    """Bounds depth and size while nodes are composed, and judges scalars and keys when they are constructed."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}  # pyright: ignore

    def __init__(self, stream: str):
        super().__init__(stream)
        self.depth = 0
        self.size = 0  # so far, aliases written out
        self.sizes: dict[int, int] = {}  # of complete nodes, by identity

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self.size
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self.sizes:
                _fail(f"*{event.anchor} stands for something that it is a part of", event.start_mark)
            self._grow(self.sizes[id(node)], event.start_mark)
            return node
        self.depth += 1
        if self.depth > MOST_DEPTH:
            _fail(f"more than {MOST_DEPTH} levels of lists and mappings", event.start_mark)
        self._grow(NODE + len(getattr(event, "value", "")), event.start_mark)
        node = super().compose_node(parent, index)
        _check_tag(node, event)
        self.sizes[id(node)] = self.size - before
        self.depth -= 1
        return node

    def _grow(self, size: int, mark: yaml.Mark) -> None:
        self.size += size
        if self.size > MOST_BYTES:
            _fail("this is too large for a config, with its aliases written out", mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark
            if not isinstance(key, str):
                _fail("a key is a list or mapping, not text", line)
            if key_node.tag != f"{_TAG}str":
                _fail(f"key {files.shorten(key)!r} is not text", line)
            if key in seen:
                _fail(f"duplicate key {files.shorten(key)!r}", line)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        digits = node.value.replace("_", "")
        if node.tag == f"{_TAG}int":
            if len(digits) > 20 or abs(int(digits)) > LARGEST:
                _fail(f"{files.shorten(digits)} is beyond the largest whole number, 2^63 - 1", node.start_mark)
            return int(digits)
        if re.search("inf|nan", digits, re.IGNORECASE):
            return float(digits.replace(".", ""))
        number = float(digits)
        if math.isinf(number):
            _fail(f"{files.shorten(digits)} is beyond the largest number, 1.8e308", node.start_mark)
        return number

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text = node.value
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            _fail("text with a character that no file can hold (NUL, or half of a surrogate pair)", node.start_mark)
        return text


def _check_tag(node: yaml.Node | None, event: yaml.Event) -> None:
    """Fail where a tag does not say what the node is without it, text aside."""
    tag = getattr(event, "tag", None)
    if tag is None or tag == "!":
        return
    kind = tag.removeprefix(_TAG)
    kinds = ("int", "float") if kind == "float" else (kind,)
    if isinstance(node, yaml.ScalarNode) and (kind == "str" or any(_is(kind, node.value) for kind in kinds)):
        return
    if (isinstance(node, yaml.MappingNode) and kind == "map") or (
        isinstance(node, yaml.SequenceNode) and kind == "seq"
    ):
        return
    if kind not in ("str", "map", "seq", *_SCALARS):
        _fail(f"the tag {files.shorten(tag)!r} is none of plain data; write the value without it", event.start_mark)
    _fail(f"the tag !!{kind} does not fit; write the value without it", event.start_mark)


def _is(kind: str, text: str) -> bool:
    return kind in _PATTERNS and _PATTERNS[kind].match(text) is not None


def _fail(problem: str, mark: yaml.Mark | None) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, mark)


class _Dumper(yaml.SafeDumper):
    """Lists on one line; text that `_Loader` or another reader would take for something else is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    return dumper.represent_sequence(f"{_TAG}seq", data, flow_style=True)


_PATTERNS = {kind: re.compile(rf"^(?:{pattern})\Z") for kind, (pattern, _) in _SCALARS.items()}
for _kind, (_, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_kind}", _PATTERNS[_kind], _first)
_Dumper.add_representer(list, _represent_list)
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_number)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_number)
_Loader.add_constructor(f"{_TAG}str", _Loader.construct_text)
