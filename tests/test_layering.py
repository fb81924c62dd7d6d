"""The layer table: a module imports only from lower layers, and some libraries have one home."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (  # a name stands for a module, for the files of a package, and for siblings NAME_*.py
    "arguments trees files memory terminal interruption",
    "user_cache",
    "derivatives kernels compilation rules",
    "mup mulo space tasks",  # mup and mulo make update rules
    "dynamics curvature",
    "hypergrad es",
    "population runtime meta telemetry checkpoint",
    "experiment_plan",  # what the loop is given, by whatever makes it
    "experiment analysis optim",
    "config",
    "build",  # turns the dataclasses of config into parts, so it stands on config
    "launch options",
    "replay",
    "cli",
)
LAYER = {name: height for height, names in enumerate(LAYERS) for name in names.split()}
HOMES = {  # library: the only places that may import it
    "yaml": ("hyperopt_id/config",),
    "tensorboard": ("hyperopt_id/telemetry/events.py", "hyperopt_id/analysis/load"),
    "torch.utils.tensorboard": (),
    "torch.utils._pytree": ("hyperopt_id/trees.py",),
    "torch.utils.pytree": ("hyperopt_id/trees.py",),
    "ray": ("baselines/", "scripts/"),
    "baselines": ("baselines/", "scripts/"),
}
FOLDERS = ("hyperopt_id", "baselines", "scripts")
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
FACADE = Path("hyperopt_id/__init__.py")  # stands on everything, and nothing inside may import it
PACKAGE = [file for file in FILES if file.parts[0] == "hyperopt_id" and file != FACADE]


def imports(file: Path) -> Iterator[str]:
    """Dotted names of everything that `file` imports, at any depth of its code."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = list(file.parts[: len(file.parts) - node.level]) if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    """The entry of the layer table that `module`, a dotted name inside hyperopt_id, belongs to."""
    name = module.split(".")[1] if "." in module else ""
    return name if name in LAYER else name.split("_")[0]


@pytest.mark.parametrize("file", PACKAGE, ids=str)
def test_imports_point_downwards(file: Path):
    own = room(".".join(file.with_suffix("").parts))
    assert own in LAYER, f"{file} is missing in the layer table"
    for module in imports(file):
        if module.split(".")[0] == "hyperopt_id" and room(module) != own:
            assert LAYER.get(room(module), len(LAYERS)) < LAYER[own], f"{file} must not import {module}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_libraries_stay_in_their_place(file: Path):
    for module in imports(file):
        for library, homes in HOMES.items():
            at_home = file.as_posix().startswith(homes)
            assert at_home or not f"{module}.".startswith(f"{library}."), f"{file} must not import {module}"
