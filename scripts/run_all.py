"""The whole study, or some of its experiments, each continued where it was left.

    python scripts/run_all.py --list
    python scripts/run_all.py --only uci_energy fashion_mnist -l runs --workers 8
    python scripts/run_all.py --scale 0.05 -l trial            a trial: fewer starts, shorter runs
    python scripts/run_all.py --only sensitivity --dry-run     the commands, one a line

The experiments are rows of `scripts/experiments.py`. What has been finished in DIR/<experiment> is not done again, and
where one fails, the others go on.
"""

import argparse
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout that is not installed

from experiments import EXPERIMENTS, STUDY, Experiment, Method, Part
from override_generators import known

from baselines.lock import held
from baselines.signals import as_ctrl_c
from hyperopt_id.config import load
from hyperopt_id.options import ended
from hyperopt_id.telemetry.directory import read_json, write_json
from hyperopt_id.terminal import show

FEWEST_STARTS, FEWEST_UPDATES = 2, 2  # however small the scale
COUNTS: dict[Method, str] = {  # the option that says how many
    "parallel_exec": "--repetitions",
    "random_search": "--repetitions",
    "bayesopt": "--repetitions",
    "asha": "--trials",
    "pbt": "--population",
}


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--list", action="store_true", help="show the experiments and stop")
    add("--only", nargs="+", metavar="NAME", help="these experiments (default: all)")
    add("--scale", type=float, default=1.0, metavar="F", help="this part of the starts, and of the length of each run")
    add("--dry-run", action="store_true", help="show the commands and stop")
    add("-l", "--log-dir", type=Path, default=Path("runs"), metavar="DIR", help="runs go to DIR/<experiment>/...")
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="trainings at a time (default: one a core)")
    gpus = "0.25: four of them share a GPU (default 0: everything on the CPU, so that times compare)"
    add("--gpus-per-task", type=float, default=0.0, metavar="F", help=gpus)
    add("--address", metavar="RAY", help="use the Ray cluster there (HOST:PORT, auto) instead of this machine")
    add("--data-root", type=Path, metavar="DIR", help="where data sets live (default: $HYPEROPT_ID_DATA, else ./data)")
    add("-s", "--set", nargs="+", action="extend", default=[], metavar="K=V", help="override one key in all runs")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when everything is finished, 1 when something failed, 2 for a mistake, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    failed: list[str] = []
    status = ended(lambda: run(options, failed), "interrupted; the same command continues")
    return status or int(bool(failed))


def run(options: argparse.Namespace, failed: list[str]) -> None:
    """Do what the options ask for; the names of experiments that fail go to `failed`."""
    chosen = choose(options)
    if options.list:
        show("\n".join(table(chosen)))
        return
    work = {experiment.name: list(commands(experiment, options)) for experiment in chosen}
    if options.dry_run:
        for name, todo in work.items():
            print(f"# {name}", *(shlex.join([*what, *where]) for what, where in todo), sep="\n")
        return
    failed += [name for name, todo in work.items() if not complete(name, todo, options.log_dir)]
    print(f"{len(work) - len(failed)} of {len(work)} experiments are finished in {options.log_dir}")
    if failed:
        print(f"failed, as said above: {', '.join(failed)}; the same command tries again", file=sys.stderr)


def choose(options: argparse.Namespace) -> list[Experiment]:
    if not 0.0 < options.scale <= 1.0:
        raise ValueError(f"--scale: given {options.scale:g}; allowed: above 0, at most 1")
    if options.workers < 1:
        raise ValueError(f"--workers: given {options.workers}; allowed: 1 or more")
    rows = {experiment.name: experiment for experiment in EXPERIMENTS}
    return [rows[known(name, rows, "--only")] for name in dict.fromkeys(options.only or rows)]


def table(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Markdown."""
    yield "| experiment | data | algorithms | starts | varies | shows | drawn as |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in experiments:
        cells = {  # of all parts, each said once
            "data": [name for part in row.parts for name in part.data],
            "algorithms": [name for part in row.parts for name in _algorithms(part)],
            "starts": [str(part.starts) for part in row.parts],
            "varies": [" ".join(part.overrides) for part in row.parts if part.method == "parallel_exec"],
        }
        joined = [", ".join(dict.fromkeys(cell)) for cell in cells.values()]
        yield f"| {' | '.join([row.name, *joined, row.shows, row.figure])} |"


def _algorithms(part: Part) -> Sequence[str]:
    if part.method != "parallel_exec":
        return [f"{part.method} + {name}" for name in part.algorithms]
    if set(STUDY) <= set(part.algorithms):
        return [*(name for name in part.algorithms if name not in STUDY), "the study's nine"]
    return part.algorithms


Command = tuple[list[str], list[str]]  # what is to be done, and where: directories, workers


def commands(experiment: Experiment, options: argparse.Namespace) -> Iterator[Command]:
    for part in experiment.parts:
        for data in part.data:
            if part.method == "parallel_exec":
                yield _parallel(experiment, part, data, options)
            else:
                yield from (_search(experiment, part, data, name, options) for name in part.algorithms)


def _parallel(experiment: Experiment, part: Part, data: str, options: argparse.Namespace) -> Command:
    several = len({name for other in experiment.parts for name in other.data}) > 1
    group = "/".join(filter(None, (experiment.name, part.group, data if several else "")))
    what = [sys.executable, "scripts/parallel_exec.py", "-c", f"configs/{data}.yaml", "--algorithms", *part.algorithms]
    what += ["--overrides", *part.overrides, *_amounts(part, data, part.algorithms, options)]
    return what, [*_where(options, "--gpus-per-task", part), "-g", group]


def _search(experiment: Experiment, part: Part, data: str, algorithm: str, options: argparse.Namespace) -> Command:
    name = f"{data}_{algorithm}"
    what = [sys.executable, "-m", f"baselines.{part.method}", "-c", f"configs/{data}.yaml", f"configs/{algorithm}.yaml"]
    what += _amounts(part, data, (algorithm,), options)
    group = "/".join(filter(None, (experiment.name, part.group)))
    where = [*_where(options, "--gpus-per-trial", part), "-g", group, "-n", name]
    begun = (options.log_dir / group / name / "config.yaml").is_file()
    return what, [*where, *(["--resume"] if begun else [])]


def _amounts(part: Part, data: str, algorithms: Sequence[str], options: argparse.Namespace) -> list[str]:
    """How many, how long, and what is set; scaled."""
    scale, settings = options.scale, [*part.settings, *options.set]
    starts, amounts = part.starts, dict(part.options)
    if scale < 1.0:
        starts = max(FEWEST_STARTS, round(starts * scale))
        files = [[ROOT / "configs" / f"{stem}.yaml" for stem in (data, algorithm)] for algorithm in algorithms]
        inners = [load(pair, settings).inner for pair in files]
        unit = math.lcm(*(inner.steps_per_update for inner in inners))
        settings.append(
            f"inner.steps={_scaled(max(inner.total_steps for inner in inners), scale, unit, FEWEST_UPDATES)}"
        )
        if "interval" in amounts:
            amounts["interval"] = _scaled(amounts["interval"], scale, unit, 1)
    said = [COUNTS[part.method], str(starts)]
    said += [word for key, value in amounts.items() if key != "workers" for word in (f"--{key}", str(value))]
    return [*said, *(["-s", *settings] if settings else [])]


def _scaled(steps: int, scale: float, unit: int, fewest: int) -> int:
    """That part of `steps`, in whole units."""
    return max(fewest, round(steps * scale / unit)) * unit


def _where(options: argparse.Namespace, gpus: str, part: Part) -> list[str]:
    """Absolute, since commands run in the root of the repository."""
    root = options.data_root or Path(os.environ.get("HYPEROPT_ID_DATA") or "data")
    where = ["-l", str(options.log_dir.resolve()), "--data-root", str(root.resolve())]
    if part.method in ("random_search", "bayesopt"):  # train in one process
        return [*where, "--threads", str(options.workers), *([] if options.gpus_per_task else ["--device", "cpu"])]
    where += ["--workers", str(part.options.get("workers", options.workers))]
    where += [gpus, str(options.gpus_per_task)]
    return where + (["--address", options.address] if options.address else [])


def complete(name: str, todo: Sequence[Command], directory: Path) -> bool:
    """Whether the experiment is finished, now or already. What was done is remembered in `finished.json`."""
    try:
        with held(directory / name / "run_all.lock", "wait for it"):
            return _complete(name, todo, directory)
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return False


def _complete(name: str, todo: Sequence[Command], directory: Path) -> bool:
    note, plan = directory / name / "finished.json", [what[1:] for what, _ in todo]
    if read_json(note) == plan:
        print(f"{name}: already finished", file=sys.stderr)
        return True
    failures = 0
    for number, (what, where) in enumerate(todo, start=1):
        print(f"{name}, {number} of {len(todo)}: {shlex.join([*what, *where])}", file=sys.stderr)
        if status := execute([*what, *where]):
            failures += 1
            print(f"{name}, {number} of {len(todo)}: failed with status {status}", file=sys.stderr)
    if not failures:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, plan)
    return not failures


def execute(command: Sequence[str]) -> int:
    """Exit status of a command, run in the root of the repository. What ends this process ends the command as well: the
    first Ctrl-C is passed on and waited for, the second one does not wait."""
    with as_ctrl_c():
        child = subprocess.Popen(command, cwd=ROOT, process_group=0)  # else the terminal would send it Ctrl-C as well
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            child.wait()
            raise
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


if __name__ == "__main__":
    sys.exit(main())
