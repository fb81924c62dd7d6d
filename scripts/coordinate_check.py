r"""Coordinate check: mean |activation| against the width of a model, at the start and after steps of Adam and of SGD.

    python scripts/coordinate_check.py --out figures
    python scripts/coordinate_check.py --models mlp --widths 64 256 --steps 10 --out DIR

Writes DIR/coordinate_check_<model>.pdf and .png, and prints the slope of log mean |activation| over log width for every
layer. Under μP and u-μP activations neither grow nor vanish with the width (slope 0; those of outputs start at 0 or
smaller the wider, which is intended), under the standard parametrization they grow. Of these, the combinations are
measured that configs allow. Needs matplotlib: pip install -c constraints.txt -e '.[plots]'
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout that is not installed

from transfer_results import LOOKS, PARAMETRIZATIONS

from hyperopt_id import optim
from hyperopt_id.analysis import plotting, style
from hyperopt_id.analysis.style import Look
from hyperopt_id.config_task_checks import PARAMETRIZED
from hyperopt_id.options import ended
from hyperopt_id.tasks import models
from hyperopt_id.tasks.digits import digits

WIDTHS = (64, 128, 256, 512, 1024)
BASE = 64
BATCH = 100
HOW = {"standard": models.STANDARD, "mup": models.mup(BASE), "umup": models.UNIT_SCALED}
Make = Callable[[int, models.Parametrization], nn.Module]
MODELS: dict[str, tuple[Make, dict[str, str]]] = {  # width -> model; its modules that are looked at, with labels
    "mlp": (
        lambda n, how: models.mlp([64, n, n, n, 10], parametrization=how),
        {"layers.0": "layer 1", "layers.1": "layer 2", "layers.2": "layer 3", "layers.3": "output"},
    ),
    "cnn": (
        lambda n, how: models.cnn((1, 8, 8), (n, n), 10, how),
        {"convolutions.0": "convolution 1", "convolutions.1": "convolution 2", "output": "output"},
    ),
    "transformer": (
        lambda n, how: models.transformer(
            features=8, outputs=10, length=8, embedding=n, heads=4, hidden=n, parametrization=how
        ),
        {"embedding": "embedding", "blocks.0": "block 1", "blocks.1": "block 2", "output": "output"},
    ),
}
OPTIMIZERS: dict[str, dict[str, Callable[..., torch.optim.Optimizer]]] = {  # by parametrization
    "adam": {"standard": torch.optim.Adam, "mup": optim.MuAdam, "umup": optim.Adam},
    "sgd": {"standard": torch.optim.SGD, "mup": optim.MuSGD},
}
RATES = {  # at width 64, for all parametrizations
    "adam": {"mlp": 0.003, "cnn": 0.003, "transformer": 0.003},
    "sgd": {"mlp": 3.0, "cnn": 1.0, "transformer": 0.15},
}


class Case(NamedTuple):
    """What is trained: a model, by an optimizer, under a parametrization."""

    model: str
    optimizer: str
    parametrization: str

    @property
    def label(self) -> str:
        optimizer = OPTIMIZERS[self.optimizer]["standard"].__name__
        return f"{PARAMETRIZATIONS[self.parametrization]}, {optimizer}"


class Sizes(NamedTuple):
    """Of one case: mean |activation| by layer, [widths, steps + 1], averaged over seeds."""

    widths: tuple[int, ...]
    layers: dict[str, np.ndarray]

    def slopes(self, step: int = -1) -> dict[str, float]:
        """d log(size) / d log(width) after a step, by least squares."""
        logs = np.log(self.widths)
        return {label: float(np.polyfit(logs, np.log(size[:, step]), 1)[0]) for label, size in self.layers.items()}


def cases(model: str) -> list[Case]:
    """Those of a model that configs allow."""

    def allowed(optimizer: str, parametrization: str) -> bool:
        having = PARAMETRIZED.get(parametrization)  # the standard one has everything
        return having is None or (model in having[0] and optimizer in having[1])

    pairs = ((optimizer, how) for optimizer in OPTIMIZERS for how in PARAMETRIZATIONS)
    return [Case(model, optimizer, how) for optimizer, how in pairs if allowed(optimizer, how)]


def measure(case: Case, widths: Sequence[int] = WIDTHS, steps: int = 5, seeds: int = 1) -> Sizes:
    """Sizes over `steps` steps on digits."""
    found = {label: np.zeros((len(widths), steps + 1)) for label in MODELS[case.model][1].values()}
    for row, width in enumerate(widths):
        for seed in range(seeds):
            for label, sizes in _trained(case, width, steps, seed).items():
                found[label][row] += np.array(sizes) / seeds
    return Sizes(tuple(widths), found)


def _trained(case: Case, width: int, steps: int, seed: int) -> dict[str, list[float]]:
    make, labels = MODELS[case.model]
    torch.manual_seed(seed)
    model = make(width, HOW[case.parametrization])
    optimizer = _optimizer(case, model)
    data = digits().to("cpu", torch.float32)
    sizes: dict[str, list[float]] = {label: [] for label in labels.values()}
    for module, label in labels.items():
        model.get_submodule(module).register_forward_hook(_recording(sizes[label]))
    for step in range(steps + 1):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(data.inputs)
        loss = F.cross_entropy(model(data.inputs[rows]), data.targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sizes


def _recording(sizes: list[float]) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda module, inputs, outputs: sizes.append(outputs.detach().abs().mean().item())


def _optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    make, lr = OPTIMIZERS[case.optimizer][case.parametrization], RATES[case.optimizer][case.model]
    if case.parametrization != "standard":
        optim.tag_parameters(model, BASE)
    unit = BASE if case.parametrization == "umup" else 1  # where a step moves n^-1/2 W by lr / n
    return make(model.parameters(), lr=lr * unit)


def draw(found: dict[Case, Sizes], steps: int) -> Any:
    """A panel for each case of a model; dotted: at the start."""
    columns = len({case.parametrization for case in found})
    figure, axes = plotting.new_figure(len(found), across=columns, sharey=True)
    layers = list(next(iter(found.values())).layers)
    chosen = [*LOOKS[: len(layers) - 1], LOOKS[-1]]  # outputs have the last
    looks = {label: Look(label, *look) for label, look in zip(layers, chosen)}
    for panel, (case, sizes) in zip(axes, found.items()):
        widths = np.array(sizes.widths)
        for label, size in sizes.layers.items():
            plotting.curve(panel, widths, size[:, -1], looks[label])
            if size[:, 0].all():  # outputs of zero have no logarithm
                panel.plot(widths, size[:, 0], color=looks[label].color, ls=style.DOTTED, lw=1.0)
        panel.set(title=case.label, xlabel="width", xscale="log", yscale="log")
        panel.set_xticks(widths, [str(width) for width in widths])
        panel.minorticks_off()
    for panel in axes[::columns]:
        panel.set_ylabel("mean |activation|")
    plotting.legend(figure, looks, title=f"after {steps} steps\n(dotted: at the start)", alignment="left")
    name = next(iter(found)).model
    title = name if name == "transformer" else name.upper()
    plotting.title(figure, f"Coordinate check of the {title}: one learning rate for all widths")
    return figure


def run(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS, metavar="N")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3, help="seeds to average over (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR")
    asked = parser.parse_args(given)
    if len(set(asked.widths)) < 2 or min(asked.widths) < 1:
        raise ValueError(f"--widths: given {asked.widths}; a slope needs two or more different ones, each 1 or more")
    if min(asked.steps, asked.seeds) < 1:
        raise ValueError(f"--steps, --seeds: given {asked.steps} and {asked.seeds}; allowed: 1 or more")
    plotting.matplotlib()  # before anything is trained
    for name in asked.models:
        found = {case: measure(case, asked.widths, asked.steps, asked.seeds) for case in cases(name)}
        for case, sizes in found.items():
            slopes = ", ".join(f"{label} {slope:+.2f}" for label, slope in sizes.slopes().items())
            print(f"{name}, {case.label}: slopes after {asked.steps} steps: {slopes}")
        with plotting.matplotlib().rc_context(plotting.STYLE):
            for file in plotting.save(draw(found, asked.steps), asked.out / f"coordinate_check_{name}"):
                print(file)


def main(given: Sequence[str] | None = None) -> int:
    return ended(lambda: run(given))


if __name__ == "__main__":
    sys.exit(main())
