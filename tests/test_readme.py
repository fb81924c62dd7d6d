"""The README and the pages in docs/ are true: their code runs, their tables are the configs, their links exist."""

import json
import re
import shlex
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from laws import random

from hyperopt_id import cli
from hyperopt_id.config import load
from hyperopt_id.config_schema import HYPERPARAMETERS, Config, HyperConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
RUN_DIRECTORY = (ROOT / "docs" / "run_directory.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
ALGORITHMS = [name for name in CONFIGS if name[0].isupper()]
QUICK = ["-s", "inner.updates=2", "inner.compile=off", "log.progress=none", "threads=1"]


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row of every table."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short run on digits where the pages have theirs, below the current directory."""
    monkeypatch.chdir(tmp_path)
    files = [str(ROOT / "configs" / name) for name in ("digits.yaml", "Ours_HDLR.yaml")]
    assert cli.train(["-c", *files, "-g", "demo", "-n", "tuned", *QUICK]) == 0
    return tmp_path / "runs" / "demo" / "tuned"


# Code


def test_the_options_for_any_width_are_taken_as_they_are_printed(tmp_path: Path):
    text = " ".join(README[README.index("**Any width**") :].partition("\n- **")[0].split())
    found = [command.split()[1:] for command in re.findall(r"`(-s [^`]+)`", text)]
    assert [options[0] for options in found] == ["parametrization=mup", "parametrization=umup"]
    for number, options in enumerate(found):
        files = [str(ROOT / "configs" / name) for name in ("digits.yaml", "Ours_HDLR.yaml")]
        given = ["-c", *files, "-l", str(tmp_path), "-g", ".", "-n", str(number), *QUICK]
        assert cli.train([*given, "-s", *options]) == 0


def test_the_library_takes_ten_lines():
    assert len([line for line in python_blocks(README)[0].splitlines() if line.strip()]) <= 10


def test_the_readme_s_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "readme"}
    for block in python_blocks(README):
        short = re.sub(r"\bupdates=\d+", "updates=2", block)
        assert short != block, "a block without a run in it: shorten it in another way"
        exec(compile(short, "README.md", "exec"), scope)
        assert not scope["summary"]["diverged"].any()
    assert (tmp_path / "runs" / "mine" / "summary.json").is_file()


def test_the_readme_s_table_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    block = re.search(r"<!-- example: csv -->\n```sh\n(.*?)```", README, re.DOTALL)
    assert block
    python, script, *arguments = shlex.split(block[1].replace("\\\n", " "))
    assert (python, script) == ("python", "train.py")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    np.savetxt(tmp_path / "table.csv", random(800, 9, seed=3).numpy(), delimiter=",")
    assert cli.train([*arguments, *QUICK]) == 0


def test_the_code_of_the_run_directory_s_page(tuned: Path):
    scope: dict[str, Any] = {}
    for block in python_blocks(RUN_DIRECTORY):
        exec(compile(block, "run_directory.md", "exec"), scope)
    assert [step for step, _ in scope["curve"]] == [10, 20]


def test_the_figure(tuned: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib", reason="the figure needs the extra plots")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import demo_figure

    demo_figure.draw(tuned, tuned, Path("figure.png"))
    assert Path("figure.png").stat().st_size > 10_000
    rates = demo_figure.learning_rates(tuned)
    reported = json.loads((tuned / "metrics.jsonl").read_text().splitlines()[-1])["hyper/lr"]
    assert {name: values.max() for name, values in rates.items()} == {k: v["max"] for k, v in reported.items()}


# Tables


def algorithm_row(name: str) -> list[str]:
    """What the table of algorithms has to say: file, tunes, engine, trains on, meta-optimizer."""
    config = load([ROOT / "configs" / "digits.yaml", ROOT / "configs" / name])
    settings, meta, steps = config.hypergradient, config.meta, config.inner.steps_per_update
    suffixes = {("global",): "", ("element",): " per weight", ("global", "element"): " global × per weight"}
    tuned = {n.replace("_", " "): suffixes[h.tune] for n, h in config.space.items() if h.tune}
    tunes = ", ".join(f"{n}{suffix}" for n, suffix in tuned.items()) or "nothing"
    if meta.rule == "geometric":
        low, high = meta.factor.sample  # type: ignore[union-attr]
        tunes = f"lr × c every {steps} steps, c ~ U({low}, {high})"
    size = {"neumann": f"({settings.terms})", "unroll": f"({config.window})"}.get(settings.engine, "")
    engine = f"{settings.engine}{size}{', carried state,' if settings.carry_state else ''} of every {steps}"
    engine += ", next training loss" if settings.objective == "training" else ""
    engine += ", reset" if config.inner.reset else ""
    without = settings.engine == "none"
    names = {"adam": "Adam", "sgd": "SGD"}
    optimizer = "–" if without else f"{names[meta.rule]} {meta.lr}"
    return [f"`{name}`", tunes, "–" if without else engine, config.task.train_on.replace("+", " + "), optimizer]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_in_the_table(name: str):
    (row,) = [row for row in table_rows(README) if row[0] == f"`{name}`"]
    assert row[:5] == algorithm_row(name)
    assert row[5]


def as_yaml(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(as_yaml(entry) for entry in value)}]"
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else f"{value}"
    )


def schema(cls: Any, prefix: str = "") -> dict[str, tuple[str, list[str]]]:
    """{dotted key: (default, choices)} of everything but `space`."""
    found: dict[str, tuple[str, list[str]]] = {}
    for f in fields(cls):
        key, kind = f"{prefix}{f.name}", get_type_hints(cls)[f.name]
        if is_dataclass(kind):
            found |= schema(kind, f"{key}.")
        elif key != "space":
            default = f.default if f.default_factory is MISSING else f.default_factory()
            default = "required" if key == "task.name" else f"`{as_yaml(default)}`"
            found[key] = (default, choices(kind))
    return found


def choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    inside = get_args(kind) if get_origin(kind) in (Union, tuple) or hasattr(kind, "__args__") else ()
    return [choice for option in inside for choice in choices(option)]


def test_the_page_has_every_key_with_its_default_and_choices():
    documented = {row[0].strip("`"): row[1:] for row in table_rows(CONFIGURATION) if len(row) == 3 and "`" in row[0]}
    expected = schema(Config)
    assert {key: row[0] for key, row in documented.items()} == {key: default for key, (default, _) in expected.items()}
    for key, (_, allowed) in expected.items():
        assert [choice for choice in allowed if f"`{choice}`" not in " ".join(documented[key])] == [], key


def test_the_page_has_every_hyperparameter_with_its_defaults():
    rows = {row[0].strip("`"): [cell.strip("`") for cell in row[1:]] for row in table_rows(CONFIGURATION)}
    for name, hyper in HYPERPARAMETERS.items():
        assert rows[name] == [as_yaml(v) for v in (hyper.init, hyper.transform, hyper.bounds, hyper.sample)]
    assert {f"space.<name>.{f.name}" for f in fields(HyperConfig)} == {key for key in rows if key.startswith("space.")}


def test_the_page_has_every_data_set():
    named = re.findall(r"`(\w+\.yaml)`", CONFIGURATION.split("## Data sets")[1])
    assert sorted(named) == [name for name in CONFIGS if name not in ALGORITHMS]


def test_the_page_of_the_run_directory_has_every_key(tuned: Path):
    documented = {key for row in table_rows(RUN_DIRECTORY) for key in re.findall(r"`([^`]+)`", row[0])}
    patterns = [
        re.sub(r"<\w+>", r"[^/]+", re.escape(key).replace(r"\<", "<").replace(r"\>", ">")) for key in documented
    ]
    summary = json.loads((tuned / "summary.json").read_text())
    for report in (tuned / "metrics.jsonl").read_text().splitlines():
        for key in [*json.loads(report), *summary]:
            key = re.sub("^hypergradient/lr/element$", ".../element", key)
            assert any(re.fullmatch(pattern, key) for pattern in patterns), f"{key} is not in docs/run_directory.md"
    files = {path.name.split(".")[0] for path in tuned.iterdir()}
    assert [name for name in files if f"        {name}" not in RUN_DIRECTORY] == []


def test_the_index_of_decisions_has_their_titles():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    for page in folder.glob("[0-9]*.md"):
        number, title = page.read_text().splitlines()[0].removeprefix("# ").split(" ", 1)
        assert page.name.startswith(f"{number}-")
        if number != "000":
            assert f"| [{number}]({page.name}) | {title} |" in index


# Links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path):
    text = page.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    # whole paths in code, such as `python scripts/download_data.py`; <...> and * stand for something else
    named = re.findall(r"(?:configs|scripts|tests|docs|\.ci)/[\w./-]+\b(?![<*])", text)
    placeholders = {"tests/test_x.py", "docs/decisions/NNN-title.md"}
    missing += [name for name in named if name not in placeholders and not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_headings_that_a_page_links_to_exist(page: Path):
    for link in re.findall(r"\]\(([^)\s]+#[^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        headings = re.findall(r"^#+ (.+)$", (page.parent / file if file else page).read_text(), re.MULTILINE)
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in slugs, link
