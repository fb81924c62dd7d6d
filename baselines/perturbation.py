"""Changes of hyperparameters between two steps of a training, in natural units.

Exploration as in population based training (Jaderberg et al. 2017, arXiv 1711.09846): each hyperparameter is drawn anew
from its range with probability 1/4, and else multiplied by 0.8 or 1.2.
"""

import random
from collections.abc import Mapping

import torch
from torch import Tensor

from hyperopt_id.space import LOGIT, Hyper, Space

Change = tuple[str, float]  # ("times", factor) or ("set", natural value)
FACTORS = (0.8, 1.2)
RESAMPLED = 0.25
EDGE = 1e-3  # how near to 0 and 1 a change may bring what lies between them: a momentum of 1 never forgets


def explore(space: Space, chance: random.Random) -> dict[str, Change]:
    """A change for every hyperparameter that has a range to start in."""
    drawn = space.draw(chance.getrandbits(63))
    return {
        name: ("set", drawn[name]) if chance.random() < RESAMPLED else ("times", chance.choice(FACTORS))
        for name, hyper in space.hypers.items()
        if hyper.sample is not None
    }


def perturbed(space: Space, raw: Mapping[str, Tensor], changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """Raw values, each [1, ...], after changes of the natural ones, which stay within their bounds.

    A change is made to the value that all parameters share; what is learned per tensor or element beside it stays as it
    is, so that under log10 every natural value is multiplied by the same factor.
    """
    changed = dict(raw)
    for name, (kind, number) in changes.items():
        hyper, shared = space.hypers[name], raw[f"{name}/global"]
        present = float(hyper.transform.natural(shared.double()))
        low, high = _limits(hyper)
        value = min(max(number if kind == "set" else present * number, low), high)
        changed[f"{name}/global"] = torch.full_like(shared, hyper.transform.raw(value))
    return space.project(changed)


def _limits(hyper: Hyper) -> tuple[float, float]:
    low, high = hyper.bounds or (hyper.transform.lowest, hyper.transform.highest)
    return (max(low, EDGE), min(high, 1.0 - EDGE)) if hyper.transform is LOGIT else (low, high)
