"""What parameters of a live module say about how they scale with the width: a `mup.Tag`, from any of three attributes.

    width_tag        type_tag
    infshape         -                  set by `set_base_shapes` of the package mup
    -                mup_type           and `mup_scaling_depth`, set by the package unit_scaling
    scaling_tag      scaling_tag        set here, by `tag_parameters`

μP reads the first column, u-μP the second. Attributes of a parameter are lost where it is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from hyperopt_id import mup
from hyperopt_id.mup import Tag

TYPES = ("weight", "bias", "norm", "output")  # of the package unit_scaling
Member = Tensor | tuple[str, Tensor]  # of a parameter group, as `named_parameters` has them


def tag_parameters(
    model: nn.Module, base: int | nn.Module, roles: Mapping[str, str] | None = None, depth: int | None = None
) -> nn.Module:
    """The same module, whose parameters now have tags (see `mup.tags`).

    `base` is the base width, or a model of other widths, where the dimensions that differ are those that grow. `roles`
    of the parameters are by default those that the model states, as models of this package do in `model.roles`. `depth`
    is for a residual stack that u-μP is to scale: a part of a model, tagged again with `roles` by its own names.
    """
    reference = base if isinstance(base, int) else _shapes(base)
    tags = mup.tags(_shapes(model), roles or getattr(model, "roles", {}), reference)
    for name, parameter in model.named_parameters():
        parameter.scaling_tag = tags[name]._replace(depth=depth)  # type: ignore[attr-defined] - a new one
    return model


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def width_tag(parameter: Tensor) -> Tag | None:
    """The tag of a parameter that says which of its dimensions grow with the width, and how far they have grown."""
    own, shape = getattr(parameter, "scaling_tag", None), getattr(parameter, "infshape", None)
    if own is not None or shape is None:
        return own
    widths = tuple(dimension.width_mult() if dimension.isinf() else None for dimension in shape)
    return Tag("", tuple(parameter.shape), widths)


def type_tag(parameter: Any) -> Tag | None:
    """The tag of a parameter (or what has its `shape` and attributes) that says its role, as u-μP distinguishes it."""
    own, kind = getattr(parameter, "scaling_tag", None), getattr(parameter, "mup_type", None)
    if own is not None:
        return own if own.role else None
    depth = getattr(parameter, "mup_scaling_depth", None)
    return Tag(kind, tuple(parameter.shape), (), depth) if kind in TYPES else None


def groups(params: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Parameter groups, whatever of the forms that `torch.optim` takes they were given in, with lists of members."""
    entries = list(params)
    if not entries:
        raise ValueError("an optimizer needs parameters, but the list is empty")
    if not isinstance(entries[0], dict):
        entries = [{"params": entries}]
    for entry in entries:
        members = entry["params"]
        yield {**entry, "params": [members] if isinstance(members, Tensor) else list(members)}


def require(member: Member, read: Callable[[Tensor], Tag | None], position: int, cure: str) -> Tag:
    """The tag of a member of a parameter group; a ValueError, which names it as far as it can, if it has none."""
    name, parameter = member if isinstance(member, tuple) else (f"number {position}", member)
    tag = read(parameter)
    if tag is None:
        hint = "" if isinstance(member, tuple) else " (names are known where model.named_parameters() is given)"
        raise ValueError(f"parameter {name} of shape {list(parameter.shape)} has no tag{hint}: {cure}")
    return tag
