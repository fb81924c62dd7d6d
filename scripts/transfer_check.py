r"""Transfer check: is the learning rate that Ours_LR finds on a narrow model the best one for a wide model?

    python scripts/transfer_check.py -c configs/fashion_mnist.yaml --out transfer
    python scripts/transfer_check.py -c configs/digits.yaml -s inner.steps=200 --widths 32 64 --out DIR

An MLP with equal hidden layers is trained by AdamW, under each parametrization and for each width,

1. with constant learning rates c 2^k, from the same few seeds each. The loss of a rate is that on the validation set
   after the last step, averaged over seeds. The search begins at k = -9 and ends when the lowest loss has two rates on
   either side. The best rate is the vertex of the parabola in k through the lowest loss and its two neighbors; the same
   of single seeds shows how sure it is.
2. by Ours_LR, from learning rates of c times 1e-4, 1e-3, 1e-2 and 1e-1. Of these runs, the one with the lowest final
   validation loss counts. What it has found is one number: the geometric mean, over all training steps, of the learning
   rate that the step used. The rates of its first and last step are reported, too, and what the other starts give.

At last the widest model is trained with the constant rate that Ours_LR has found on the narrowest. The narrowest width
is the base width of μP; c is 1, but the base width under u-μP, whose weights are larger. A run takes 500 steps with
batches of 100, one pass over Fashion-MNIST; -s changes this and everything else of the config.

OUT holds the run directories, so that the same command goes on, and transfer_check.{md,pdf,png}. Needs matplotlib: pip
install -c constraints.txt -e '.[plots]'
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout that is not installed

from transfer_results import PARAMETRIZATIONS, Found, Learned, Losses, draw, transfer_table, widths_table

from hyperopt_id import launch
from hyperopt_id.analysis import plotting, style
from hyperopt_id.analysis.load import load_run
from hyperopt_id.analysis.tables import markdown
from hyperopt_id.build.names import from_config, pick_device
from hyperopt_id.build.tasks import build_task
from hyperopt_id.config import load
from hyperopt_id.config_schema import Config
from hyperopt_id.experiment import Parts, Plan
from hyperopt_id.options import add_options, ended, given_flags
from hyperopt_id.tasks.task import Task
from hyperopt_id.telemetry.trace import read_trace

CONFIGS = Path(__file__).parents[1] / "configs"
WIDTHS = (64, 128, 256, 512)
BEGIN, REACH, FAR = 2.0**-9, 2, 2.0**9  # first rate; rates on either side of the lowest; the farthest from the first
STARTS = (1e-4, 1e-3, 1e-2, 1e-1)  # of Ours_LR
SETTINGS = ["inner={rule: adamw, steps: 500, compile: off}", "task.batch_size=100"]
FIXED = ["report={every: 1000000, splits: [validation]}", "log.progress=none", "population={sample: false, lift: loop}"]
PLAIN, TUNED = "Random_TrainingSetOnly", "Ours_LR"


def search(loss_at: Callable[[float], np.ndarray], begin: float) -> Losses:
    """Losses around the lowest mean, walking downhill from `begin`; every rate is asked for once."""
    seen: dict[float, np.ndarray] = {}

    def mean(rate: float) -> float:
        if rate not in seen:
            seen[rate] = loss_at(rate)
        return float(np.nan_to_num(seen[rate].mean(), nan=np.inf))

    center, lowest = 0, begin
    while center != lowest:
        center = lowest
        around = (center * 2.0**k for k in range(-REACH, REACH + 1))
        lowest = min((rate for rate in around if begin / FAR <= rate <= begin * FAR), key=mean)
    return dict(sorted(seen.items()))


class Setting(NamedTuple):
    """One parametrization and width: `config(algorithm, *overrides)`, its task, where its runs go, and c."""

    config: Callable[..., Config]
    task: Callable[[], Task]
    folder: Path
    unit: float


def setting(options: argparse.Namespace, parametrization: str, width: int) -> Setting:
    base = min(options.widths)
    given = [*SETTINGS, *options.set, *given_flags(options)]
    sizes = load(options.config, given).task.model.sizes
    if sizes is None:
        raise ValueError("task.model.sizes: missing; a transfer check is of an mlp: give [inputs, ..., outputs]")
    model = [f"task.model.sizes={[sizes[0], *[width] * options.layers, sizes[-1]]}"]
    model += [f"parametrization={parametrization}", f"base_width={base if parametrization == 'mup' else 'null'}"]

    def config(algorithm: str, *overrides: str) -> Config:
        return load([*options.config, CONFIGS / f"{algorithm}.yaml"], [*given, *FIXED, *model, *overrides])

    task = cache(lambda: build_task(config(PLAIN), pick_device(config(PLAIN).device)))
    folder = options.out / "runs" / f"{parametrization}_{width}"
    return Setting(config, task, folder, float(base) if parametrization == "umup" else 1.0)


def train(where: Setting, config: Config, name: str) -> Path:
    """The directory of the finished run, which is too short for checkpoints."""

    def build(config: Config, compiled: bool | None = None) -> tuple[Parts, Plan]:
        parts, plan = from_config(config, compiled=compiled, task=where.task())
        return parts, replace(plan, checkpoint_every=0)

    launch.complete(config, where.folder / name, build=build)
    return where.folder / name


def losses(where: Setting, rate: float, seeds: int) -> np.ndarray:
    """Validation loss of each seed after training with a constant rate."""
    start = f"space.lr={{init: {rate!r}, bounds: none}}"
    directory = train(where, where.config(PLAIN, f"population.runs={seeds}", start), f"lr_{rate:.6g}")
    return load_run(directory).curves["loss/validation"][:, -1]


def learn(where: Setting) -> Learned:
    """Of the runs of Ours_LR, that with the lowest final validation loss."""
    starts = [where.unit * start for start in STARTS]
    population = f"population={{runs: {len(starts)}, start: {{lr: {starts}}}}}"
    directory = train(where, where.config(TUNED, population, "space.lr.bounds=none"), TUNED)
    final = load_run(directory).curves["loss/validation"][:, -1]
    if np.isnan(final).all():
        raise ValueError(f"all runs of Ours_LR in {directory} have diverged; take other settings")
    best = int(np.nanargmin(final))
    rates = read_trace(directory)[1]["lr"].astype(float)
    means = [float(f"{mean:.4g}") for mean in np.exp(np.log(rates).mean(0))]  # the same on every machine
    return Learned(means[best], (rates[0, best], rates[-1, best]), float(final[best]), tuple(means))


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(result, "config", "set", "device", "threads", "data_root")
    add, names = result.add_argument, list(PARAMETRIZATIONS)
    add("--widths", nargs="+", type=int, default=WIDTHS, metavar="N")
    add("--parametrizations", nargs="+", choices=names, default=names)
    add("--layers", type=int, default=3, help="hidden layers (default: %(default)s)")
    add("--seeds", type=int, default=3, help="of each constant rate (default: %(default)s)")
    add("--out", type=Path, default=Path("transfer"), metavar="DIR")
    return result


def run(given: Sequence[str] | None = None) -> None:
    options = parser().parse_args(given)
    options.config = options.config or [CONFIGS / "fashion_mnist.yaml"]
    plotting.matplotlib()  # before anything is trained
    found: dict[str, dict[int, Found]] = {name: {} for name in options.parametrizations}
    transferred = {}
    for name, by_width in found.items():
        for width in sorted(set(options.widths)):
            where = setting(options, name, width)
            seen = search(partial(losses, where, seeds=options.seeds), where.unit * BEGIN)
            by_width[width] = here = Found(seen, learn(where))
            said = f"best rate {here.best:.3g}, Ours_LR {here.learned.rate:.3g}"
            print(f"{PARAMETRIZATIONS[name]}, width {width}: {said}", file=sys.stderr)
        widest = setting(options, name, max(by_width))
        transferred[name] = losses(widest, by_width[min(by_width)].learned.rate, options.seeds).mean()
    tables = markdown(transfer_table(found, transferred)) + "\n" + markdown(widths_table(found))
    (options.out / "transfer_check.md").write_text(tables, encoding="utf-8")
    print(tables)
    config = setting(options, "standard", min(options.widths)).config(PLAIN)
    title = f"{style.dataset(config.task.name)}, {config.inner.rule}, {config.inner.total_steps} steps"
    with plotting.matplotlib().rc_context(plotting.STYLE):
        for file in plotting.save(draw(found, f"Transfer check: {title}"), options.out / "transfer_check"):
            print(file)


def main(given: Sequence[str] | None = None) -> int:
    return ended(lambda: run(given), "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
