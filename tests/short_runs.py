"""Tiny runs of the whole program, for laws about directories that runs leave behind."""

import json
import shutil
from pathlib import Path
from typing import Any

from laws import assert_identical

from hyperopt_id import checkpoint, cli
from hyperopt_id.analysis.load import load_reports as reports

CONFIGS = Path(__file__).parents[1] / "configs"
TINY = [
    "task.model.sizes=[64,4,10]",
    "task.batch_size=5",
    "inner={steps_per_update: 3, updates: 6, compile: off}",
    "report={every: 2, checkpoint_every: 1, keep: 20}",
    "log.progress=none",
    "threads=1",
]
TUNE = ["space.lr.tune=[global]", "space.weight_decay.tune=[global]", "space.momentum.tune=[tensor]"]
MULO = ["inner.rule=mulo", "space.momentum=null", "space.lr.init=1.0", "space.weight_decay.init=0.01"]
ENGINES = {
    "none": ["hypergradient.engine=none"],
    "neumann": [*TUNE, "hypergradient={engine: neumann, terms: 3}"],
    "neumann, carried": [*TUNE, "hypergradient={engine: neumann, terms: 3, carry_state: true}"],
    "neumann, finite differences on sub-batches": [
        *TUNE,
        "hypergradient={engine: neumann, terms: 3, curvature: {name: finite_difference, sub_batch: 0.5}}",
    ],
    "unroll": [*TUNE, "hypergradient={engine: unroll, window: 2}"],
    "one_step": [*TUNE, "hypergradient={engine: one_step, objective: training}"],
    "forward": [*TUNE, "hypergradient={engine: forward, window: 2}"],
    "adamw": [*TUNE[:2], "space.beta1.tune=[element]", "inner.rule=adamw", "hypergradient={engine: neumann, terms: 3}"],
    "mulo": [
        *MULO,
        "space.lr.tune=[global]",
        "space.theta.tune=[global]",
        "hypergradient={engine: neumann, terms: 3}",
    ],
    "mup": [*TUNE, "hypergradient={engine: neumann, terms: 3}", "parametrization=mup", "base_width=2"],
    "schedule": [
        "space.lr.tune=[global]",
        "hypergradient.engine=none",
        "meta={rule: geometric, factor: {sample: [0.9, 1.0]}}",
    ],
    "reset": [*TUNE, "inner.reset=true", "hypergradient={engine: unroll}"],
}
POPULATIONS = {
    "single": ["population.sample=true"],
    "loop": ["population={runs: 3, lift: loop}"],
    "vmap": ["population={runs: 3, lift: vmap, chunk: 2}"],
}


QUICK = ["inner.compile=off", "log.progress=none", "threads=1"]


def config(*stems: str) -> list[str]:
    return ["-c", *(str(CONFIGS / f"{stem}.yaml") for stem in stems)]


def into(directory: Path) -> list[str]:
    return ["-l", str(directory.parent), "-g", ".", "-n", directory.name]


def digits(tmp_path: Path, *overrides: str) -> list[str]:
    """One hyper-update on digits, into tmp_path/run."""
    short = ["inner.updates=1", "task.model.sizes=[64,5,10]"]
    return [*config("digits", "Ours_LR"), *into(tmp_path / "run"), "-s", *QUICK, *short, *overrides]


def arguments(directory: Path, *overrides: str) -> list[str]:
    return [*config("digits"), *into(directory), "-s", *TINY, *overrides]


def train(directory: Path, *overrides: str) -> Path:
    assert cli.train(arguments(directory, *overrides)) == 0
    return directory


def interrupted(finished: Path, directory: Path, update: int) -> Path:
    """What a run leaves that is killed after the report of hyper-update `update` + 1 and before its checkpoint."""
    shutil.copytree(finished, directory)
    (directory / "summary.json").unlink()
    for path in (directory / "checkpoints").glob("step_*.pt"):
        if int(path.stem.removeprefix("step_")) > update:
            path.unlink()
    lines = reports(directory)
    kept = [json.dumps(line) for line in lines if line["update"] <= update + 1]
    (directory / "metrics.jsonl").write_text("".join(line + "\n" for line in kept) + '{"step": 99, "upd')
    return directory


def summary(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


def state(directory: Path) -> dict[str, Any]:
    tree, _ = checkpoint.load(directory / "checkpoints")
    return {name: value for name, value in tree.items() if name != "seconds"}


def assert_same_run(left: Path, right: Path) -> None:
    """To the last bit, but for times."""
    assert_identical(state(left), state(right))
    timeless = [[{k: v for k, v in line.items() if k != "time"} for line in reports(d)] for d in (left, right)]
    assert timeless[0] == timeless[1]
    ends = [{k: v for k, v in summary(d).items() if k != "seconds"} for d in (left, right)]
    assert ends[0] == ends[1]
