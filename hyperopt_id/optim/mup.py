r"""μP for optimizers of `torch.optim`: parameter groups with a learning rate and weight decay for every width.

.. math:: \eta_k = c_k\,\eta, \qquad \xi_k = \xi / c_k

with \(c_k\) of `mup.adam` or `mup.sgd` (arXiv 2203.03466, table 8). Names, arguments and the order of groups are those
of the package mup, so that either loads what the other has saved.
Parameters say their widths by `infshape`, which `mup.set_base_shapes` of that package sets, or by `tag_parameters`; one
that does not is a ValueError that names it. Parameters that are added later keep the settings they come with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from hyperopt_id import mup
from hyperopt_id.optim.tags import Member, groups, require, width_tag

Make = Callable[..., torch.optim.Optimizer]
CURE = "call mup.set_base_shapes (package mup) or hyperopt_id.optim.tag_parameters on the model, after copying it"


def MuAdam(  # noqa: N802 - the name that it has in the package mup
    params: Iterable[Any], impl: Make = torch.optim.Adam, decoupled_wd: bool = False, **kwargs: Any
) -> torch.optim.Optimizer:
    """`impl`, an optimizer that normalizes gradients, under μP; `kwargs` are its arguments.

    Learning rates of hidden matrices are divided by their width multiplier, and weight decay is multiplied by it,
    unless `decoupled_wd` says that `impl` does not multiply the decay by the learning rate. `lr` is by default that of
    `impl`, `weight_decay` 0; groups may have their own.
    """
    return _made(params, mup.adam, (0, 1), impl, decoupled_wd, kwargs)


def MuAdamW(params: Iterable[Any], **kwargs: Any) -> torch.optim.Optimizer:  # noqa: N802
    """`MuAdam` of `torch.optim.AdamW`."""
    return MuAdam(params, impl=torch.optim.AdamW, **kwargs)


def MuSGD(  # noqa: N802
    params: Iterable[Any], impl: Make = torch.optim.SGD, decoupled_wd: bool = False, **kwargs: Any
) -> torch.optim.Optimizer:
    """`impl`, an optimizer whose steps are linear in the gradient, under μP; see `MuAdam`.

    Learning rates of vectors, and of matrices between a width and something else, are multiplied by the width
    multiplier, those of hidden matrices by the multiplier of their fan-out over that of their fan-in.
    """
    return _made(params, mup.sgd, (0,), impl, decoupled_wd, kwargs)


def _made(
    params: Iterable[Any],
    scheme: mup.Scheme,
    alike: tuple[int, ...],
    impl: Make,
    decoupled: bool,
    kwargs: dict[str, Any],
) -> torch.optim.Optimizer:
    """A group is split by the number of dimensions that grow, those with most first, and by the factor. The numbers
    `alike` make one group, which is the last, even where it is empty (but with names, which torch wants everywhere)."""
    defaults, position, found = _defaults(impl, kwargs), 0, []
    for group in groups(params):
        settings = defaults | {k: v for k, v in group.items() if k != "params"}
        split: dict[tuple[int, float], list[Member]] = {(0, 1.0): []}
        for member in group["params"]:
            tag = require(member, width_tag, position, CURE)
            factor = scheme(tag)
            growing = sum(width is not None for width in tag.widths)
            split.setdefault((0 if growing in alike else growing, factor), []).append(member)
            position += 1
        if any(isinstance(member, tuple) for member in group["params"]) and not split[0, 1.0]:
            del split[0, 1.0]
        for (_, factor), members in sorted(split.items(), key=lambda item: -item[0][0]):
            decay = settings["weight_decay"] / (1.0 if decoupled else factor)
            found.append(settings | {"params": members, "lr": settings["lr"] * factor, "weight_decay": decay})
    return impl(found, **kwargs)


def _defaults(impl: Make, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Settings of a group that has none of its own."""
    own = {name: argument.default for name, argument in inspect.signature(impl).parameters.items()}
    rate = kwargs.get("lr", own.get("lr", inspect.Parameter.empty))
    if rate is inspect.Parameter.empty:
        raise ValueError(f"{getattr(impl, '__name__', impl)} has no learning rate by default: give lr=...")
    return {"lr": rate, "weight_decay": kwargs.get("weight_decay", 0.0)}
