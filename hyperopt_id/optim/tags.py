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
GROWTH_CURE = "give a model of another width, too, as in tag_parameters(model, base, delta=wide)"
Member = Tensor | tuple[str, Tensor]  # of a parameter group, as `named_parameters` has them


def tag_parameters(
    model: nn.Module,
    base: int | nn.Module,
    roles: Mapping[str, str] | None = None,
    depth: int | None = None,
    delta: nn.Module | None = None,
) -> nn.Module:
    """The same module, whose parameters now have tags (see `mup.tags`).

    `base` is the base width, or a model of that width. Which dimensions grow, a base width leaves to the roles. A base
    model says it by comparison: with `delta`, a model of another width, as `mup.set_base_shapes` has it, or without
    one with `model`, which then has to have other widths than `base`. `roles` of the parameters are by default those
    that the model states, as models of this package do in `model.roles`. `depth` is for a residual stack that u-μP is
    to scale: a part of a model, tagged again with `roles` by its own names.
    """
    reference = base if isinstance(base, int) else _shapes(base)
    other = None if delta is None else _shapes(delta)
    tags = mup.tags(_shapes(model), roles or getattr(model, "roles", {}), reference, other)
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


def fan_in_factor(parameter: Tensor) -> float | None:
    """`mup.adam` for base width 1, whatever the base width that is set: 1 / fan_in of a matrix both of whose dimensions
    grow with the width, 1 of others; None if the parameter does not say."""
    if (tag := width_tag(parameter)) is None:
        return None
    widths = tuple(None if width is None else float(size) for size, width in zip(tag.shape, tag.widths))
    return mup.adam(tag._replace(widths=widths))


def none_grows(parameters: Iterable[Tensor]) -> bool:
    """Whether some parameters say how they scale with the width, and no dimension of any does."""
    tags = [tag for tag in map(width_tag, parameters) if tag is not None]
    return bool(tags) and all(width is None for tag in tags for width in tag.widths)


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
