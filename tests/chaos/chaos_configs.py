"""Mutated configs and options: each is a config, or one line that says what is wrong with it.

A trial takes two shipped files, mutates one of them as text, as bytes or as a tree, or adds options, and reads them as
`train.py` does. A config that can be read is written and read again, which must give an equal one; where its data are
here (digits, diabetes, toys, a small table) the parts of its run are built. One trial in eight holds code.
"""

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch
import yaml
from outcomes import Outcome
from sandbox import TRAP, WrongNumbersError, judge

from hyperopt_id import cli, options
from hyperopt_id.build.names import from_config
from hyperopt_id.config import dump, load

COUNT = 1200
CONFIGS = ROOT / "configs"
DATA = ("digits", "diabetes", "csv", "toy_quadratic", "toy_ridge", "uci_energy", "cifar10", "penn_treebank")
HERE = ("digits", "diabetes", "csv", "toy_quadratic", "toy_ridge")
ALGORITHMS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem[0].isupper())
CODE = (
    f"!!python/object/apply:os.system ['touch {TRAP}']",
    f"!!python/object/apply:subprocess.check_call [[touch, {TRAP}]]",
    f"!!python/object/new:os.system ['touch {TRAP}']",
    "!!python/name:os.system",
    "!!python/module:this",
    f"!!python/object/apply:builtins.open [{TRAP}, w]",
    f"!<tag:yaml.org,2002:python/object/apply:os.mkdir> [{TRAP}]",
    f"$(touch {TRAP})",
    f"`touch {TRAP}`",
    f"__import__('os').mkdir('{TRAP}')",
)
VALUES = (
    *("-1", "0", "1", "2", "3.5", "1e-3", "1e400", "-1e400", ".nan", ".inf", "-.inf", "9223372036854775807"),
    *(
        "9" * 25,
        "9" * 6000,
        "1000000000",
        "4294967296",
        "1_0",
        "0x10",
        "010",
        "1e9",
        "true",
        "null",
        "~",
        "''",
        "[]",
        "{}",
    ),
    *(
        "[1]",
        "[1, 2, 3]",
        "[[1]]",
        "{a: 1}",
        "{lr: 1}",
        "text",
        "all",
        "none",
        "auto",
        "mlp",
        "csv",
        "element",
        "[global]",
    ),
    *(
        "!!timestamp x",
        "!!int abc",
        "!!int 3",
        "!!map [1]",
        "!!seq {a: 1}",
        "!!set {a}",
        "!!omap [a: 1]",
        "!!binary aGk=",
    ),
    *("!!float abc", "!!bool 3", "!!null x", "!foo 1", "!!str 3", "2024-01-01", "12:30", "on", "&a 1", "*a", "&a [*a]"),
    *(
        '"\\0"',
        '"\\ud800"',
        '"\\UFFFFFFFF"',
        "é",
        "\U0001f600",
        "../../x",
        "/dev/zero",
        "/",
        "x" * 9000,
        "|\n x\n",
        "> y",
    ),
    *("[" * 100, "[" * 5000, "{a: " * 2000, "- " * 3000, "? [a]\n: 1", "[1, 2", "'", "%", "@", "\t", "- a\nb: c"),
)
FLAGS = (
    "--runs",
    "--seed",
    "--threads",
    "--dtype",
    "--device",
    "--data-root",
    "-g",
    "-n",
    "-l",
    "--sample",
    "--resume",
)


def trials(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    torch.set_num_threads(1)
    for number in range(count):
        here = folder / f"t{number}"
        here.mkdir()
        (here / "table.csv").write_text("a,b\n" + "1,2\n3,4\n5,7\n" * 4)
        chance = random.Random(f"{seed}/{number}")
        arguments, what = _arguments(chance, here, code=number % 8 == 0)
        yield judge(f"{number}: {what}", lambda arguments=arguments: _read(arguments), here)


def _read(arguments: list[str]) -> None:
    try:
        given = cli.parser().parse_args(arguments)
    except SystemExit:  # argparse has said what is wrong
        return
    overrides = [*given.set, *options.given_flags(given)]
    config = load(given.config, overrides)
    text = dump(config)
    Path("again.yaml").write_text(text, encoding="utf-8")
    if load(["again.yaml"]) != config or dump(load(["again.yaml"])) != text:
        raise WrongNumbersError(f"a config is another one when it is read again: {text[:200]}")
    if config.task.name in HERE and config.trained_by is None and config.population.runs <= 1000:
        from_config(config, compiled=False)[0].start()


def _arguments(chance: random.Random, here: Path, code: bool) -> tuple[list[str], str]:
    data, algorithm = chance.choice(DATA), chance.choice(ALGORITHMS)
    texts = [(CONFIGS / f"{name}.yaml").read_text() for name in (data, algorithm)]
    place, added, keys = chance.randrange(2), [], _keys(texts[0])
    if data == "csv":
        added = ["-s", "task.path=table.csv", "task.splits=[6, 3, 3]", "task.model.sizes=[1, 4, 1]"]
    value = chance.choice(CODE) if code else chance.choice(VALUES)
    mutate = chance.choice(MUTATIONS)
    texts[place], what = mutate(texts[place], value, chance)
    names = [here / "first.yaml", here / "second.yaml"]
    for path, text in zip(names, texts, strict=True):
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    _bases(here, chance)
    arguments = ["-c", *map(str, names), *added]
    if chance.random() < 0.4:
        key = chance.choice(keys)
        arguments += ["-s", f"{key}={value.replace(chr(0), '')}"]
        what += f", -s {key}={value[:60]}"
    if chance.random() < 0.2:
        flag = chance.choice(FLAGS)
        arguments += [f"{flag}={value}" if flag.startswith("--") else f"{flag}{value}"]
        what += f", {flag} {value[:60]}"
    return arguments, f"{data} × {algorithm}: {what}"


def _bases(here: Path, chance: random.Random) -> None:
    """Files that a mutated `_base_` may name: a circle, doubled ones, a long chain, a pipe."""
    (here / "circle.yaml").write_text("_base_: circle.yaml")
    for level in range(30):
        (here / f"double{level}.yaml").write_text(f"_base_: [double{level + 1}.yaml, double{level + 1}.yaml]")
    (here / "double30.yaml").write_text(f"seed: {chance.randrange(9)}")


def _keys(text: str) -> list[str]:
    """Dotted keys of a config."""

    def dotted(tree: Any, prefix: str) -> Iterator[str]:
        for name, value in tree.items() if isinstance(tree, dict) else ():
            yield f"{prefix}{name}"
            yield from dotted(value, f"{prefix}{name}.")

    return list(dotted(yaml.safe_load(text), ""))


def _scalar(text: str, value: str, chance: random.Random) -> tuple[str, str]:
    """The value of one key of one line."""
    lines = text.splitlines()
    places = [number for number, line in enumerate(lines) if ":" in line and not line.lstrip().startswith("#")]
    number = chance.choice(places)
    pieces = lines[number].split(":")
    cut = chance.randrange(1, len(pieces))
    lines[number] = ":".join(pieces[:cut]) + ": " + value
    return "\n".join(lines), f"line {number + 1} has {value[:60]!r}"


def _tree(text: str, value: str, chance: random.Random) -> tuple[str, str]:
    """One entry anywhere in the tree, written anew."""
    tree = yaml.safe_load(text)
    mark, node, path = "VALUE-HERE", tree, []
    while isinstance(node, dict) and node:
        key = chance.choice(list(node))
        path.append(str(key))
        if not isinstance(node[key], dict) or not node[key] or chance.random() < 0.3:
            node[key] = mark
            break
        node = node[key]
    return yaml.safe_dump(tree, default_flow_style=True, width=10**6).replace(
        mark, value
    ), f"{'.'.join(path)} is {value[:60]!r}"


def _added(text: str, value: str, chance: random.Random) -> tuple[str, str]:
    """A key that is not there, or there already, in front or behind."""
    key = chance.choice(
        ("seed", "threads", "_base_", "nonsense", "<<", "'a.b'", "task", "space", "population", "1", "!!int 3")
    )
    line = f"{key}: {value}\n"
    return (line + text if chance.random() < 0.5 else text + "\n" + line), f"with {key}: {value[:60]!r}"


def _tokens(text: str, value: str, chance: random.Random) -> tuple[str, str]:
    """Words deleted, doubled, exchanged."""
    words = text.split(" ")
    for _ in range(chance.randint(1, 4)):
        here, there = (chance.randrange(len(words)) for _ in range(2))
        how = chance.randrange(4)
        if how == 0 and len(words) > 1:
            del words[here]
        elif how == 1:
            words.insert(there, words[here])
        elif how == 2:
            words[here], words[there] = words[there], words[here]
        else:
            words[here] = value
    return " ".join(words), f"words of {value[:40]!r}"


def _bytes(text: str, value: str, chance: random.Random) -> tuple[bytes, str]:
    """Damage: bits, cuts, zeros, another encoding."""
    content = bytearray(text.encode())
    how = chance.randrange(7)
    place = chance.randrange(len(content))
    if how == 0:
        content[place] ^= 1 << chance.randrange(8)
    elif how == 1:
        del content[place:]
    elif how == 2:
        content[place:place] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 40)))
    elif how == 3:
        content[place : place + 16] = bytes(16)
    elif how == 4:
        content = bytearray(text.encode(chance.choice(("utf-16", "utf-32", "utf-8-sig", "cp037"))))
    elif how == 5:
        content = bytearray(text.replace("\n", "\r").encode())
    else:
        content += b"#" + b"x" * (5 * 2**20)
    return bytes(content), f"damage {how} at {place}"


def _bomb(text: str, value: str, chance: random.Random) -> tuple[str, str]:
    """Aliases and bases that multiply, nesting, width."""
    how = chance.randrange(8)
    width = chance.randint(2, 12)
    bombs: list[Callable[[], str]] = [
        lambda: "b0: &b0 lol\n" + "".join(f"b{i + 1}: &b{i + 1} [{f'*b{i},' * width}]\n" for i in range(40)),
        lambda: "b0: &b0 {x: lol}\n" + "".join(f"b{i + 1}: &b{i + 1} {{a: *b{i}, b: *b{i}}}\n" for i in range(40)),
        lambda: f"s: &s {'x' * 100_000}\nb: [{'*s,' * (50 * width)}]\n",
        lambda: "_base_: double0.yaml\n",
        lambda: f"_base_: [{'double30.yaml,' * 1500}]\n",
        lambda: "_base_: circle.yaml\n",
        lambda: "a: " + chance.choice("[{") * (10**width if width < 6 else 5000) + "\n",
        lambda: f"a: [{'1,' * 300_000}]\n",
    ]
    return bombs[how]() + text, f"bomb {how} of width {width}"


MUTATIONS = (_scalar, _scalar, _scalar, _tree, _tree, _tree, _added, _added, _tokens, _tokens, _bytes, _bomb)
