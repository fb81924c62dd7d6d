"""Damaged, edited and hostile run directories, read by `scripts/paper_plots.py` and `hyperopt-id replay`.

A trial takes a run, a population, a search, or what is left of a run in TensorBoard events, and does one to three odd
things to it. Right is: the healthy run beside it is in every table, what is wrong is a line, nothing is written outside
of the output folder, and the replay works or refuses in one line.
"""

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from analysis_trials import as_outcomes, drawn, paper_plots, refusal, said, write_healthy
from logs import EventLog, log_steps, published
from outcomes import Fault, Outcome
from short_runs import POPULATIONS, TUNE, train

from hyperopt_id import cli

COUNT = 200
WITH_FIGURES = 5  # one trial of so many: drawing takes longest
NAMES = (
    *(
        "../../../escaped",
        "/etc/passwd",
        r"\input{/etc/passwd}",
        "$x^2",
        "a$b$c",
        "~^{}|&%_#",
        "..",
        "",
        "_x",
        "n" * 3000,
    ),
    *("line\nbreak", "\x00", "\ud800", "<script>", "**b**", "\u202egnp", "nan", "Random", "con/../x", "`id`", "中文"),
)
VALUES = (
    None,
    True,
    0,
    -1,
    1e308,
    -0.0,
    2**63,
    10**400,
    float("nan"),
    float("inf"),
    "x",
    "",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
)
TEXTS = (
    b"",
    b"{",
    b"null\n",
    b"[]\n",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"1e999\n",
    b'{"step": 1}\n' * 3,
    b"{}\n",
    b"\n\n",
)


def trials(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    plots, kinds = paper_plots(), _kinds(folder / "kinds")
    return as_outcomes(_trial(random.Random(f"{seed}/{n}"), folder / f"{n}", kinds, plots, n) for n in range(count))


def _kinds(folder: Path) -> list[Path]:
    """One directory of each kind."""
    tuned = [*TUNE, "hypergradient={engine: neumann, terms: 3}"]
    single, population = train(folder / "single", *tuned), train(folder / "population", *tuned, *POPULATIONS["vmap"])
    search = folder / "search"
    shutil.copytree(population, search / "runs" / "0")
    final = json.loads((population / "summary.json").read_text())["final"]
    lines = [
        {"repetition": m, "evaluation": 0, "hyper": {"lr": 0.1}, "step": 18, "gradients": 18.0, "seconds": 1.0 + m}
        | {"loss/validation": final["loss/validation"][m], "loss/test": final["loss/test"][m]}
        | {"run": "runs/0", "member": m}
        for m in range(3)
    ]
    (search / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (search / "summary.json").write_text(json.dumps({"method": "Random", "repetitions": lines}))
    (search / "search.json").write_text(json.dumps({"method": "Random", "repetitions": 3}))
    shutil.copy(population / "config.yaml", search)
    log = EventLog(folder / "events")
    log_steps(log, range(30))
    log.close()
    (folder / "events" / "config.json").write_text(json.dumps(published()))
    return [single, population, search, folder / "events"]


def _trial(
    draw: random.Random, folder: Path, kinds: list[Path], plots: ModuleType, number: int
) -> tuple[str, Fault | None, str]:
    (folder / "runs").mkdir(parents=True)
    write_healthy(folder / "runs")
    kind = draw.choice(kinds)
    odd = Path(shutil.copytree(kind, folder / "runs" / "odd"))
    done = [draw.choice(ODDITIES)(draw, odd) for _ in range(draw.randint(1, 3))]
    fault, detail, _ = drawn(folder, plots, figures=number % WITH_FIGURES == 0)
    if fault is None:
        given = ["replay", str(odd), "-l", str(folder), "-g", "replays", "-n", "again", "--progress", "none"]
        fault, detail = refusal(said(lambda: cli.main(given)))
    shutil.rmtree(folder)
    return f"{kind.name}: {'; '.join(done)}", fault, detail


def _files(directory: Path) -> list[Path]:
    found = [path for path in directory.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
    return sorted(
        path for path in found if path.suffix in (".json", ".jsonl", ".yaml", ".npy") or "tfevents" in path.name
    )


def _edit_json(draw: random.Random, directory: Path, change: Callable[[random.Random, Any], str]) -> str:
    """Change the value in a JSON file, or in a line of one."""
    path = draw.choice([path for path in _files(directory) if path.suffix in (".json", ".jsonl")] or [directory])
    try:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        place = draw.randrange(len(lines))
        tree = json.loads(lines[place])
        what = change(draw, tree)
        lines[place] = json.dumps(tree)
        path.write_text("\n".join(lines) + "\n")
    except (ValueError, IndexError, TypeError, RecursionError, OSError):
        return f"{path.name} left as it is"
    return f"{path.name} {what}"


def _place(draw: random.Random, tree: Any) -> tuple[Any, Any, str]:
    """A container anywhere in the tree, one of its keys, and the way there."""
    way = []
    while True:
        key = draw.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        way.append(str(key))
        inner = tree[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.3:
            return tree, key, ".".join(way)
        tree = inner


def _odd_value(draw: random.Random, tree: Any) -> str:
    container, key, way = _place(draw, tree)
    container[key] = copy.deepcopy(draw.choice(VALUES))
    return f"{way} = {container[key]!r:.40}"


def _odd_name(draw: random.Random, tree: Any) -> str:
    """A name where names are, or a key."""
    name = draw.choice(NAMES)
    if isinstance(tree, dict) and isinstance(tree.get("task"), dict) and draw.random() < 0.8:
        key = draw.choice(("name", "path"))
        tree["task"][key] = name
        if draw.random() < 0.5:
            tree["algorithm"] = draw.choice(NAMES)
        return f"task.{key} = {name!r:.40}"
    container, key, way = _place(draw, tree)
    if isinstance(container, dict):
        container[name if draw.random() < 0.5 else f"loss/{name}"] = container.pop(key)
    else:
        container[key] = name
    return f"{way} is {name!r:.40}"


def _less(draw: random.Random, tree: Any) -> str:
    container, key, way = _place(draw, tree)
    del container[key]
    return f"without {way}"


def _deeper(draw: random.Random, tree: Any) -> str:
    container, key, way = _place(draw, tree)
    for _ in range(draw.choice((1, 60, 900))):
        container[key] = [container[key]]
    return f"{way} deeper"


def _twice(draw: random.Random, tree: Any) -> str:
    container, key, way = _place(draw, tree)
    if isinstance(container, list):
        container.append(container[key])
    elif isinstance(container[key], list):
        container[key] = container[key] * 2
    return f"{way} twice"


def _odd_bytes(draw: random.Random, directory: Path) -> str:
    path = draw.choice(_files(directory) or [directory / "config.json"])
    data = bytearray(path.read_bytes() if path.is_file() else b"")
    kind = draw.choice(("text", "cut", "flip", "more", "doubled"))
    if kind == "text" or not data:
        data = bytearray(draw.choice(TEXTS))
    elif kind == "cut":
        del data[draw.randrange(len(data)) :]
    elif kind == "flip":
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif kind == "more":
        data += draw.choice(TEXTS)
    else:
        data += bytes(data)
    path.write_bytes(bytes(data))
    return f"{path.name}: {kind}"


def _odd_file(draw: random.Random, directory: Path) -> str:
    """Something that is no such file in its place."""
    path = draw.choice(_files(directory) or [directory / "config.json"])
    path.unlink(missing_ok=True)
    kind = draw.choice(("nothing", "pipe", "folder", "circle", "device", "elsewhere", "unreadable"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "unreadable":
        path.touch(mode=0)
    elif kind != "nothing":
        path.symlink_to({"circle": path, "device": "/dev/zero", "elsewhere": "/etc/passwd"}[kind])
    return f"{path.name}: {kind} in its place"


def _odd_folder(draw: random.Random, directory: Path) -> str:
    """More, or something else, around the files."""
    kind = draw.choice(("circle", "nested", "names", "moved"))
    if kind == "circle":
        for name in "abc":
            (directory.parent / name).symlink_to(directory.parent, target_is_directory=True)
    elif kind == "nested" and not (directory / "inside").exists():
        shutil.copytree(
            directory, directory.parent / "outer" / "inside", symlinks=True, ignore=shutil.ignore_patterns("*.npy")
        )
    elif kind == "names":
        (directory.parent / "a $b^ \\c{d}\n|e").mkdir()
        shutil.copy(directory.parent / "healthy" / "metrics.jsonl", directory.parent / "a $b^ \\c{d}\n|e")
    elif (directory / "runs").exists():
        shutil.rmtree(directory / "runs")
    return f"folder: {kind}"


EDITS = (_odd_value, _odd_value, _odd_name, _odd_name, _less, _deeper, _twice)
ODDITIES: tuple[Callable[[random.Random, Path], str], ...] = (
    *(lambda draw, directory, edit=edit: _edit_json(draw, directory, edit) for edit in EDITS),
    *(_odd_bytes, _odd_bytes, _odd_file, _odd_folder),
)
