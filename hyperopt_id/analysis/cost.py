r"""What a hyper-update costs, counted in gradients of the loss on one batch.

A training step is one gradient, and so is the objective's. A Hessian-vector product by double backward is two (the
gradient is differentiated once more), by one-sided finite differences one, by two-sided ones two; on a fraction of the
batch it costs that fraction. With T steps, K terms, window W and H tuned numbers:

=========  ================================================================
none       T
neumann    T + 1 + (K - 1) products
one_step   T + 1
unroll     T + 1 + W (each step of the window is computed again) + (W - 1) products
forward    T + 1 + W H products
=========  ================================================================

Evaluations on whole splits are the same for every method, and not counted.
"""

from collections.abc import Mapping
from typing import Any


def gradients_per_update(config: Mapping[str, Any], tuned_numbers: int | None = None) -> float:
    """The cost of one hyper-update of a run with this config (nested, as in `config.json`). `tuned_numbers` is H, by
    default the number of hyperparameters that are tuned."""
    inner, settings = config["inner"], config["hypergradient"]
    steps, engine = inner["steps_per_update"], settings["engine"]
    if engine == "none":
        return float(steps)
    product, window = _product(settings["curvature"]), settings["window"] or steps
    if tuned_numbers is None:
        tuned_numbers = sum(bool(hyper["tune"]) for hyper in config["space"].values())
    extra = {
        "neumann": (settings["terms"] - 1) * product,
        "one_step": 0.0,
        "unroll": window + (window - 1) * product,
        "forward": window * tuned_numbers * product,
    }
    return steps + 1 + extra[engine]


def _product(curvature: Mapping[str, Any]) -> float:
    """A Hessian-vector product in gradients; `auto` is taken for exact, which it is wherever that works."""
    gradients = curvature["sides"] if curvature["name"] == "finite_difference" else 2
    return gradients * curvature["sub_batch"]
