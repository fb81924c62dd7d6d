"""The files that say what to install agree with each other, and the README has the commands that CI runs."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PIPFILE = tomllib.loads((ROOT / "Pipfile").read_text())
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENT = re.compile(r"([\w-]+)(?:\[([\w,]+)\])?(.*)")


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def requirements(lines: list[str]) -> dict[str, tuple[str, str]]:
    """{name: (extras, version)} of requirement lines such as `ray[tune]>=2`."""
    found = [REQUIREMENT.fullmatch(line) for line in lines]
    return {normal(match[1]): (match[2] or "", match[3] or "*") for match in found if match}


def pipfile_section(section: str) -> dict[str, tuple[str, str]]:
    entries = PIPFILE[section].items()
    return {
        normal(name): (",".join(entry["extras"]), entry["version"]) if isinstance(entry, dict) else ("", entry)
        for name, entry in entries
    }


def test_the_core_needs_five_packages():
    assert set(requirements(PROJECT["dependencies"])) == {"torch", "numpy", "pyyaml", "tensorboard", "tqdm"}


@pytest.mark.parametrize(
    ("section", "lines"),
    [("packages", PROJECT["dependencies"]), ("dev-packages", EXTRAS["test"])]
    + [(name, EXTRAS[name]) for name in ("baselines", "plots", "hub")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_pipfile_has_the_same_packages(section: str, lines: list[str]):
    assert pipfile_section(section) == requirements(lines)


def test_every_declared_package_has_a_tested_version():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert pinned["torch"] == "2.13.0"
    declared = requirements([*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)])
    assert set(declared) - {PROJECT["name"]} <= set(pinned)


def test_extra_all_is_the_sum_of_the_others():
    (everything,) = requirements(EXTRAS["all"]).items()
    assert everything == (PROJECT["name"], (",".join(name for name in EXTRAS if name != "all"), "*"))


@pytest.mark.parametrize("name", ["train", "test"])
def test_the_readme_shows_the_command(name: str):
    readme = (ROOT / "README.md").read_text()
    block = re.search(rf"<!-- command: {name} -->\n+```\w*\n(.+?)\n```", readme, re.DOTALL)
    assert block, f"README.md needs a fenced block right after <!-- command: {name} -->"
    assert block[1].startswith("python -m pip install -c constraints.txt -e ")
    assert PIPFILE["scripts"][name] in block[1]


def test_all_files_beside_the_modules_are_package_data():
    """As sources of kernels, and what they include."""
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["*"]
    beside = {path.name for path in (ROOT / "hyperopt_id").rglob("*.*") if path.is_file()}
    beside = {name for name in beside if not name.endswith((".py", ".pyc"))}
    assert {"mulo_cpu.cpp", "mulo_cpu_phases.h"} <= beside
    assert [name for name in sorted(beside) if not any(fnmatch(name, pattern) for pattern in patterns)] == []
