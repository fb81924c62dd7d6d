"""What a program hands to the library: of the right kind, or a ValueError of one line that names it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

HIGHEST_SEED = 2**63 - 1
SHOWN = 80  # characters of a value
P = ParamSpec("P")
R = TypeVar("R")


def entrance(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which trains or looks at gradients, whatever mode torch is in: outside of inference mode.

    Raises ValueError inside `torch.autocast`, which keeps the low-precision copies that it has made of weights as long
    as it lasts, so that no later step would see what training has made of them.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
            raise ValueError(
                f"{function.__name__}: inside torch.autocast, steps would not see what earlier ones have made of the "
                "weights: leave it, and take Execution(autocast=True), or have it in the model's forward"
            )
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return call


def check_kind(name: str, value: Any, kind: type, example: str) -> None:
    """Raise ValueError unless `value` is of this kind."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {example}, not {_shown(value)}")


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless `value` is a whole number, `least` or more."""
    try:
        right = _whole(value) >= least
    except TypeError:
        right = False
    if not right:
        raise ValueError(f"{name} is {_shown(value)}, and must be a whole number, {least} or more")


def _shown(value: Any) -> str:
    """The value in a part of one line."""
    return " ".join(repr(value).split())[:SHOWN]


def first_line(error: BaseException | None) -> str:
    """What an error says first; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def as_seeds(given: Iterable[Any]) -> list[int]:
    """Seeds as Python integers: from lists, ranges, arrays and tensors."""
    needed = f"seeds must be whole numbers from 0 to {HIGHEST_SEED}, one for each run, such as [0, 1] or range(20)"
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"{needed}, not {given!r}")
    try:
        seeds = [_whole(seed) for seed in given]
    except TypeError as error:  # also iteration over a 0-d array or tensor
        raise ValueError(f"{needed}; {error}") from None
    wrong = [seed for seed in seeds if not 0 <= seed <= HIGHEST_SEED]
    if wrong or not seeds:
        raise ValueError(f"{needed}; given {wrong[0] if wrong else 'none'}")
    return seeds


def _whole(value: Any) -> int:
    kind = value.dtype if isinstance(value, Tensor) else getattr(value, "dtype", type(value))
    if kind in (bool, torch.bool) or str(kind) == "bool":
        raise TypeError(f"given {value!r}, which is a truth value")
    return operator.index(value)
