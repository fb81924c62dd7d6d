"""The other files of a run at its resume: lost, doubled, odd, of another run, no files at all.

    needed       metrics.jsonl, config.yaml     resumed with equal numbers, or refused with nothing changed
    not needed   everything else                resumed with equal numbers; rows of a trace that are not known are NaN,
                                                and the log says so

identity.json and environment.json of another run or device may be refused, too, and so may a folder in the place of a
file that a resume writes.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import damage
import numpy as np
from outcomes import Fault, Outcome
from resuming import Runs, judge
from tiny_runs import SETTINGS, difference, other_numbers

COUNT = 160
NEEDED = ("metrics.jsonl", "config.yaml")
MAY_SAY_ANOTHER_RUN = ("identity.json", "environment.json")
WRITTEN = ("summary.json",)
Change = Callable[[Path, random.Random, Path], str]  # (file, chance, the same file of another run) -> what was done


def trials(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    runs = Runs(folder)
    for number in range(count):
        yield trial(number, seed, folder, runs)


def trial(number: int, seed: int, folder: Path, runs: Runs) -> Outcome:
    chance = random.Random(f"run files {seed} {number}")
    setting = chance.choice(list(SETTINGS))
    cut = runs.interrupted(setting, folder / f"cut_{number}", chance.choice((2, 3, 4, 5)))
    changes = list(CHANGES)
    name = changes[number % len(changes)]
    path = _pick(cut, name, chance)
    other = runs.whole(setting, "seed=7") if chance.random() < 0.5 else runs.whole(chance.choice(list(SETTINGS)))
    same = other / path.relative_to(cut)
    does = chance.choice(CHANGES[name])
    what = f"{setting}, {path.relative_to(cut)}: {does(path, chance, same)}"
    outcome = judge(
        what,
        runs.whole(setting),
        cut,
        may_be_refused=name in (*NEEDED, *MAY_SAY_ANOTHER_RUN, *WRITTEN),
        compare=_same_but_lost_rows if name.startswith("trace") else _same,
    )
    if outcome.fault is None and name.startswith("trace"):
        outcome = _told(outcome, runs.whole(setting), cut)
    if outcome.fault is None:
        shutil.rmtree(cut)
    return outcome


def _pick(cut: Path, name: str, chance: random.Random) -> Path:
    if not any(character in name for character in "*"):
        return cut / name
    found = sorted(cut.glob(name))
    return chance.choice(found) if found else cut / "log.txt"


def _same(whole: Path, cut: Path) -> tuple[Fault | None, str]:
    fault, detail = difference(whole, cut)
    return (None, "") if fault == "untidy" else (fault, detail)


def _same_but_lost_rows(whole: Path, cut: Path) -> tuple[Fault | None, str]:
    """A trace whose rows are those of the whole run, or NaN, or of another period where that is lost, or none."""
    fault, detail = other_numbers(whole, cut)
    if fault is not None:
        return fault, detail
    if not (cut / "trace" / "trace.json").is_file():
        return None, ""
    for path in (whole / "trace").rglob("*.npy"):
        known, found = np.load(path), np.load(cut / path.relative_to(whole))
        if known.shape == found.shape and not ((known == found) | np.isnan(found)).all():
            return "wrong numbers", f"trace: {path.name}"
    return None, ""


def _told(outcome: Outcome, whole: Path, cut: Path) -> Outcome:
    """What is not as it was has been said."""
    paths = [path.relative_to(whole) for path in (whole / "trace").rglob("*.npy")]
    kept = (cut / "trace" / "trace.json").is_file()
    equal = kept and all(np.load(whole / path).tobytes() == np.load(cut / path).tobytes() for path in paths)
    is_said = "is lost" in outcome.detail or "cannot be written" in outcome.detail
    return outcome if equal or is_said else outcome._replace(fault="wrong numbers", detail=f"unsaid: {outcome.detail}")


def _damaged(path: Path, chance: random.Random, same: Path) -> str:
    if path.is_dir():
        return damage.special(path, chance)
    usual = damage.COMMON if path.is_file() and path.stat().st_size else (damage.other,)
    return chance.choice(usual)(path, chance)


def _special(path: Path, chance: random.Random, same: Path) -> str:
    if not path.exists():
        path.touch()
    return damage.special(path, chance)


def _exchanged(path: Path, chance: random.Random, same: Path) -> str:
    if not same.is_file():
        return _special(path, chance, same)
    path.unlink(missing_ok=True)
    shutil.copyfile(same, path)
    return "of another run"


def _lines(path: Path, chance: random.Random, same: Path) -> str:
    """Lines of reports, lost, doubled, exchanged, from another run, cut, glued."""
    lines = path.read_bytes().splitlines(keepends=True)
    number, more = chance.randrange(len(lines)), chance.randrange(len(lines))
    others = same.read_bytes().splitlines(keepends=True) if same.is_file() else lines
    changes: dict[str, Callable[[], list[bytes]]] = {
        "lost": lambda: lines[:number] + lines[number + 1 :],
        "first lost": lambda: lines[1:],
        "last lost": lambda: lines[:-1],
        "all lost": list,
        "doubled": lambda: [*lines[: number + 1], *lines[number:]],
        "exchanged": lambda: _swapped(lines, number, more),
        "all doubled": lambda: lines * 2,
        "reversed": lambda: lines[::-1],
        "of another run": lambda: [*lines[:number], *others[number : number + 1], *lines[number + 1 :]],
        "glued": lambda: [*lines[:number], lines[number].rstrip(b"\n"), *lines[number + 1 :]],
        "cut": lambda: [*lines[:number], lines[number][: chance.randrange(len(lines[number]))], *lines[number + 1 :]],
        "without an end": lambda: [*lines[:-1], lines[-1].rstrip(b"\n")],
        "empty line": lambda: [*lines[:number], b"\n", *lines[number:]],
        "carriage returns": lambda: [line.replace(b"\n", b"\r\n") for line in lines],
        "a byte order mark": lambda: [b"\xef\xbb\xbf", *lines],
    }
    what = chance.choice(list(changes))
    path.write_bytes(b"".join(changes[what]()))
    return f"{what} {number}"


def _swapped(lines: list[bytes], one: int, other: int) -> list[bytes]:
    lines[one], lines[other] = lines[other], lines[one]
    return lines


def _report(path: Path, chance: random.Random, same: Path) -> str:
    """One value of a report."""
    lines = path.read_text().splitlines()
    number = chance.randrange(len(lines))
    record = json.loads(lines[number])
    key = chance.choice(list(record))
    how, value = chance.choice(ODD)
    record[key] = value
    if chance.random() < 0.2:
        how, record = "removed", {name: entry for name, entry in record.items() if name != key}
    elif chance.random() < 0.3 and isinstance(json.loads(lines[number])[key], float):
        how, record[key] = "a little more", json.loads(lines[number])[key] * 1.0000001
    lines[number] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")
    return f"line {number + 1}, {key}: {how}"


def _json(path: Path, chance: random.Random, same: Path) -> str:
    """Odd values in a JSON file, or for all of it."""
    value = json.loads(path.read_text()) if path.is_file() else {}
    how, odd = chance.choice(ODD)
    if not isinstance(value, dict) or not value or chance.random() < 0.3:
        key, value = "all", odd
    else:
        key = chance.choice(list(value))
        value[key] = odd
        if chance.random() < 0.2:
            how = "removed"
            del value[key]
    path.write_text(json.dumps(value))
    return f"{key}: {how}"


ODD: tuple[tuple[str, Any], ...] = (
    *(("NaN", float("nan")), ("infinite", float("inf")), ("null", None), ("a list", [1, [2]]), ("text", "3\n4")),
    *(
        ("a mapping", {"a": {"b": 1}}),
        ("true", True),
        ("zero", 0),
        ("negative", -1),
        ("a float", 2.5),
        ("1e400", 10**400),
    ),
    *(
        ("an empty list", []),
        ("an empty mapping", {}),
        ("empty text", ""),
        ("long text", "x" * 100_000),
        ("odd text", "\0\ud800"),
    ),
)


def _config(path: Path, chance: random.Random, same: Path) -> str:
    """A value in the config that was edited by hand."""
    text = path.read_text()
    places = list(re.finditer(r"(?m)^(\s*)([a-z_0-9]+): (\S.*)$", text))
    place = chance.choice(places)
    new = chance.choice(("7", "0.123", "null", "other", "[]", "{}", "true", "-1", "1e999", "&a [*a]", "'x", "0"))
    path.write_text(text[: place.start(3)] + new + text[place.end(3) :])
    return f"{place[2]}: {place[3]} -> {new}"


def _seed(path: Path, chance: random.Random, same: Path) -> str:
    path.write_text(re.sub(r"(?m)^seed: .*$", "seed: 12345", path.read_text()))
    return "seed"


def _numbers(path: Path, chance: random.Random, same: Path) -> str:
    """An array of another form or type."""
    if not path.name.endswith(".npy"):
        return _special(path, chance, same)
    rows = np.load(path)
    forms = {
        "longer": np.concatenate([rows, rows]),
        "shorter": rows[:1],
        "of another type": rows.astype("f8" if rows.dtype == np.float32 else "f4"),
        "of integers": rows.astype("i4"),
        "flat": rows.reshape(-1),
        "by columns": np.asfortranarray(np.ones((rows.shape[0], rows.shape[1] + 1), rows.dtype)),
    }
    what = chance.choice(list(forms))
    np.save(path, forms[what])
    return what


def _gone(path: Path, chance: random.Random, same: Path) -> str:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    return "gone"


def _linked(path: Path, chance: random.Random, same: Path) -> str:
    """Behind a link, which is followed at most to read."""
    if not path.exists():
        return "gone"
    moved = path.rename(path.parents[0] / f"elsewhere_{path.name}")
    os.symlink(moved.name, path)
    return "behind a link"


def _left_over(path: Path, chance: random.Random, same: Path) -> str:
    """Something with the name of a temporary file."""
    left = path.with_name(f".{path.name}.tmp")
    left.write_text("left")
    return f"{left.name}: {damage.special(left, chance) if chance.random() < 0.7 else 'left'}"


ANY: tuple[Change, ...] = (_damaged, _damaged, _special, _exchanged, _left_over)
CHANGES: dict[str, tuple[Change, ...]] = {
    "metrics.jsonl": (*ANY[:4], _lines, _lines, _lines, _report, _report, _gone),
    "config.yaml": (*ANY, _config, _config, _config, _seed, _gone),
    "identity.json": (*ANY, _json, _json, _gone, _linked),
    "environment.json": (*ANY, _json, _json, _gone, _linked),
    "config.json": (*ANY, _json, _gone),
    "summary.json": (*ANY[1:], _json, _json, _json),
    "checkpoints/latest": (*ANY, _gone, _linked),
    "log.txt": (*ANY, _gone, _linked),
    "trace": (_special, _gone, _special),
    "trace/trace.json": (*ANY, _json, _json, _gone, _linked),
    "trace/**/*.npy": (*ANY, _numbers, _numbers, _gone, _linked),
    "**/events.out*": (*ANY, _gone, _linked),
}
