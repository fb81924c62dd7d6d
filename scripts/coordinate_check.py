r"""Coordinate check: mean |activation| against the width of a model, at the start and after some steps of Adam.

    python scripts/coordinate_check.py --out figures
    python scripts/coordinate_check.py --models mlp --widths 64 256 --steps 10 --out DIR

Writes DIR/coordinate_check_<model>.pdf and .png, and prints the slope of log mean |activation| over log width for every
layer. Under μP and u-μP activations neither grow nor vanish with the width (slope 0; those of outputs start at 0 or
smaller the wider, which is intended), under the standard parametrization they grow. Needs matplotlib: pip install -c
constraints.txt -e '.[plots]'
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

from hyperopt_id import optim
from hyperopt_id.analysis import plotting, style
from hyperopt_id.analysis.style import Look
from hyperopt_id.tasks import models
from hyperopt_id.tasks.digits import digits

WIDTHS = (64, 128, 256, 512, 1024)
BASE = 64
BATCH = 100
PARAMETRIZATIONS = {"standard": "standard", "mup": "μP", "umup": "u-μP"}
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
LOOKS = (  # by layer, from the first to the last
    Look("", style.SKY, style.SOLID, "o"),
    Look("", style.BLUE, style.DASHED, "s"),
    Look("", style.INDIGO, style.MIXED, "^"),
    Look("", style.VERMILLION, style.SOLID, "D"),
)


class Sizes(NamedTuple):
    """Of one model and parametrization: mean |activation| by layer, [widths, steps + 1], averaged over seeds."""

    widths: tuple[int, ...]
    layers: dict[str, np.ndarray]

    def slopes(self, step: int = -1) -> dict[str, float]:
        """d log(size) / d log(width) after a step, by least squares."""
        logs = np.log(self.widths)
        return {label: float(np.polyfit(logs, np.log(size[:, step]), 1)[0]) for label, size in self.layers.items()}


def parametrized_by(name: str) -> list[str]:
    """The parametrizations that a model has; convolutions of images have no u-μP."""
    return [how for how in PARAMETRIZATIONS if how != "umup" or name != "cnn"]


def measure(
    name: str, parametrization: str, widths: Sequence[int] = WIDTHS, steps: int = 5, lr: float = 0.003, seeds: int = 1
) -> Sizes:
    """Sizes over `steps` steps of Adam on digits. `lr` is that at width 64, for all parametrizations."""
    labels = MODELS[name][1]
    found = {label: np.zeros((len(widths), steps + 1)) for label in labels.values()}
    for row, width in enumerate(widths):
        for seed in range(seeds):
            for label, sizes in _trained(name, parametrization, width, steps, lr, seed).items():
                found[label][row] += np.array(sizes) / seeds
    return Sizes(tuple(widths), found)


def _trained(name: str, parametrization: str, width: int, steps: int, lr: float, seed: int) -> dict[str, list[float]]:
    make, labels = MODELS[name]
    torch.manual_seed(seed)
    model = make(width, HOW[parametrization])
    optimizer = _optimizer(model, parametrization, lr)
    data = digits().to("cpu", torch.float32)
    sizes: dict[str, list[float]] = {label: [] for label in labels.values()}
    for module, label in labels.items():
        model.get_submodule(module).register_forward_hook(_recording(sizes[label]))
    for step in range(steps + 1):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        loss = F.cross_entropy(model(data.inputs[rows]), data.targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sizes


def _recording(sizes: list[float]) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda module, inputs, outputs: sizes.append(outputs.detach().abs().mean().item())


def _optimizer(model: nn.Module, parametrization: str, lr: float) -> torch.optim.Optimizer:
    if parametrization == "standard":
        return torch.optim.Adam(model.parameters(), lr=lr)
    optim.tag_parameters(model, BASE)
    if parametrization == "mup":
        return optim.MuAdam(model.parameters(), lr=lr)
    return optim.Adam(model.parameters(), lr=lr * BASE)  # a step moves n^-1/2 W by lr / n


def draw(name: str, found: dict[str, Sizes], steps: int) -> Any:
    """A panel for each parametrization; dotted: at the start."""
    figure, axes = plotting.new_figure(len(found), sharey=True)
    layers = list(next(iter(found.values())).layers)
    looks = dict(zip(layers, [*LOOKS[: len(layers) - 1], LOOKS[-1]]))
    looks = {label: look._replace(label=label) for label, look in looks.items()}
    for panel, (parametrization, sizes) in zip(axes, found.items()):
        widths = np.array(sizes.widths)
        for label, size in sizes.layers.items():
            plotting.curve(panel, widths, size[:, -1], looks[label])
            if size[:, 0].all():  # outputs of zero have no logarithm
                panel.plot(widths, size[:, 0], color=looks[label].color, ls=style.DOTTED, lw=1.0)
        panel.set(title=PARAMETRIZATIONS[parametrization], xlabel="width", xscale="log", yscale="log")
        panel.set_xticks(widths, [str(width) for width in widths])
        panel.minorticks_off()
    axes[0].set_ylabel("mean |activation|")
    plotting.legend(figure, looks, title=f"after {steps} steps\n(dotted: at the start)", alignment="left")
    title = name if name == "transformer" else name.upper()
    plotting.title(figure, f"Coordinate check of the {title}: Adam, one learning rate for all widths")
    return figure


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["mlp", "transformer"])
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS, metavar="N")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.003, help="learning rate at width 64 (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds to average over (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR")
    asked = parser.parse_args(given)
    for name in asked.models:
        settings = (asked.widths, asked.steps, asked.lr, asked.seeds)
        found = {how: measure(name, how, *settings) for how in parametrized_by(name)}
        for how, sizes in found.items():
            slopes = ", ".join(f"{label} {slope:+.2f}" for label, slope in sizes.slopes().items())
            print(f"{name}, {PARAMETRIZATIONS[how]}: slopes after {asked.steps} steps: {slopes}")
        with plotting.matplotlib().rc_context(plotting.STYLE):
            for file in plotting.save(draw(name, found, asked.steps), asked.out / f"coordinate_check_{name}"):
                print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
