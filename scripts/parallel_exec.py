"""Many runs over many workers, of this machine or of a Ray cluster.

    python scripts/parallel_exec.py -c configs/uci_energy.yaml --algorithms Random Ours_LR_Momentum \
        --repetitions 200 --workers 2 -l runs -g energy

Starts are packed into chunks (`scripts/chunks.py`), each a Ray task that trains a whole population in a run directory
of its own and checkpoints there. The chunk of a worker that dies is given to another one and continues from its
checkpoint; the same command completes what Ctrl-C left. `--overrides` names what varies; by default nothing but the
random start (`scripts/override_generators.py`):

"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout that is not installed

from chunks import Chunk, check_data, default_size, pack, unfinished
from override_generators import GENERATORS, generate, known

from baselines.cluster import Resources, check_ray
from baselines.lock import held
from hyperopt_id.build.tasks import data_root
from hyperopt_id.config import load
from hyperopt_id.config_schema import Config
from hyperopt_id.options import WHAT, Parser, add_options, ended, given_flags


def parser() -> argparse.ArgumentParser:
    generators = "\n".join(f"    {name:<24}{function.__doc__}" for name, function in GENERATORS.items())
    result = Parser(description=f"{__doc__}{generators}", formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add_options(
        result,
        *WHAT,
        *("log_dir", "group", "progress"),
        seed={"help": "seed of the first start (default: the config's)"},
        threads={"default": 1, "help": "CPU threads of each chunk (default 1)"},
        log_dir={"default": "runs", "help": "runs go to DIR/GROUP/<algorithm>_<first>-<last> (default DIR: runs)"},
        group={"help": "default: <data set>"},
        progress={"default": "auto"},
    )
    add("--algorithms", nargs="+", default=[], metavar="NAME", help="files in configs/, each merged after -c")
    add("--repetitions", type=int, metavar="R", help="starts of each variation (default 1, or all of from_directory)")
    add("--overrides", nargs="+", default=["natural_sgd"], metavar=("NAME", "ARGUMENT"), help="what varies, see above")
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="chunks at a time (default: one a core)")
    add("--chunk", type=int, metavar="N", help="members of a chunk (default: starts / workers, at most 128)")
    add("--gpus-per-task", type=float, default=0.0, metavar="F", help="0.25: four chunks share a GPU; 0: on the CPU")
    add("--address", metavar="RAY", help="use the Ray cluster there (HOST:PORT, auto) instead of this machine")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when every run is finished, 1 when some failed, 2 for a mistake of the user, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    failures: dict[Path, str] = {}
    status = ended(lambda: run(options, failures), "interrupted; the same command continues")
    return status or int(bool(failures))


def run(options: argparse.Namespace, failures: dict[Path, str]) -> None:
    """Complete the directory; `failures`, by directory, are said at the end, whatever it comes to."""
    chunks = plan(options)
    with ExitStack() as locks:
        for group, algorithm in dict.fromkeys((chunk.directory.parent, chunk.config.algorithm) for chunk in chunks):
            lock = group / f"{algorithm.replace('/', '_')}.lock"
            locks.enter_context(held(lock, "wait for it, or choose another group with -g GROUP"))
        _complete(chunks, options, failures)


def _complete(chunks: Sequence[Chunk], options: argparse.Namespace, failures: dict[Path, str]) -> None:
    todo = unfinished(chunks)
    check_data(chunks, needed=bool(todo))
    if len(todo) < len(chunks):
        print(f"{len(chunks) - len(todo)} of {len(chunks)} chunks are already finished", file=sys.stderr)
    try:
        failures.update(execute(todo, options) if todo else ())
    finally:
        for directory, reason in failures.items():
            log = directory / "log.txt"
            print(f"failed: {directory.name}: {reason}" + f"; log: {log}" * log.is_file(), file=sys.stderr)
    print(f"{len(chunks) - len(failures)} of {len(chunks)} chunks are finished in {chunks[0].directory.parent}")


def plan(options: argparse.Namespace) -> list[Chunk]:
    """Every chunk that the options mean; a ValueError for what cannot be."""
    for name in ("workers", "repetitions", "chunk", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}: given {value}; allowed: 1 or more")
    if not options.config:
        raise ValueError("no config: name at least one file, as in -c configs/uci_energy.yaml")
    names = [path.stem for path in sorted((ROOT / "configs").glob("[A-Z]*.yaml"))]
    algorithms = [known(name, names, "--algorithms") for name in options.algorithms]
    overrides = [*options.set, *given_flags(options)]
    files = [[*options.config, ROOT / "configs" / f"{name}.yaml"] for name in algorithms] or [options.config]
    chunks = [chunk for each in files for chunk in _chunks(each, overrides, options)]
    if not options.gpus_per_task and any(chunk.config.device == "cuda" for chunk in chunks):
        raise ValueError("device cuda was asked for, but tasks get no GPU; add --gpus-per-task 1, or a part of one")
    return chunks


def _chunks(files: Sequence[Path | str], overrides: Sequence[str], options: argparse.Namespace) -> Iterator[Chunk]:
    """The chunks of one algorithm."""
    base = load(files, overrides)
    name, *arguments = options.overrides
    for job in generate(name, base, options.repetitions, base.seed, arguments):
        config = _from_anywhere(load(files, [*overrides, *job.overrides]), options.data_root)
        if config.device == "auto" and not options.gpus_per_task:
            config = replace(config, device="cpu")  # whatever a worker may see
        label = "_".join(filter(None, (base.algorithm, job.label)))
        size = options.chunk or default_size(len(job.seeds), options.workers)
        yield from pack(config, label, job, Path(options.log_dir).resolve() / (options.group or base.task.name), size)


def _from_anywhere(config: Config, root: str | None) -> Config:
    """With absolute paths: a worker starts in a folder of its own, perhaps on another machine."""
    root = str(data_root(replace(config, data_root=root or config.data_root)).resolve())
    task, weights, theta = config.task, config.task.model.init_from, config.space.get("theta")
    model = replace(task.model, init_from=weights and str(Path(weights).resolve()))
    task = replace(task, path=task.path and str(Path(task.path).resolve()), model=model)
    space = dict(config.space)
    if theta is not None and isinstance(theta.init, str) and Path(theta.init).exists():  # and no published name
        space["theta"] = replace(theta, init=str(Path(theta.init).resolve()))
    return replace(config, data_root=root, task=task, space=space)


def execute(chunks: Sequence[Chunk], options: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """Train all chunks; those that could not be trained, with the reason."""
    check_ray()
    import ray_tasks

    resources = Resources(options.workers, options.gpus_per_task, options.address)
    return ray_tasks.train(chunks, resources, options.threads, options.progress)


if __name__ == "__main__":
    sys.exit(main())
