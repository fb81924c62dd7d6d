"""Warnings of hyper-updates that are left out: at the first one, and when more than half of the last hundred are."""

import logging
from collections.abc import Sequence

from hyperopt_id.population import Run

logger = logging.getLogger("hyperopt_id")

WINDOW, SHOWN = 100, 8
WHY = "the hypergradient is not finite, so that hyperparameters stay as they are while weights are trained on"
CURE = (
    "if losses are small, a second derivative is not finite, as of a norm or a root at zero in a row that the first "
    "batch does not have: take finite differences (curvature=curvature.finite_difference(), "
    "hypergradient.curvature.name=finite_difference); if they are large, lower learning rates or the series' terms"
)
Skips = dict[int, list[int]]  # member -> the hyper-updates of the last hundred that were left out


def left_out(before: Sequence[Run], after: Sequence[Run], members: Sequence[Sequence[int]]) -> dict[int, int]:
    """{member: how often by now} of those that were left out just now. Where none is, a chunk keeps the very tensor
    that counts them (`population.settle`), so that nothing is waited for."""
    counts: dict[int, int] = {}
    for old, new, chunk in zip(before, after, members, strict=True):
        if new.skipped is not old.skipped:
            was, now = old.skipped.reshape(-1).tolist(), new.skipped.reshape(-1).tolist()
            counts |= {member: now[i] for i, member in enumerate(chunk) if now[i] > was[i]}
    return counts


def note_skips(skips: Skips, counts: dict[int, int], update: int) -> Skips:
    """`skips` after hyper-update number `update`, with a warning where one is due."""
    recent = {member: [u for u in updates if u > update - WINDOW] for member, updates in skips.items()}
    first, often = [], []
    for member, count in sorted(counts.items()):
        past = recent.get(member, [])
        recent[member] = [*past, update]
        if count == 1:
            first.append(member)
        if len(past) == WINDOW // 2:
            often.append(member)
    if first:
        logger.warning("hyper-update %d is left out for %s: %s; %s", update + 1, _named(first), WHY, CURE)
    if often:
        logger.warning("more than half of the last %d were left out for %s: %s", WINDOW, _named(often), WHY)
    return {member: updates for member, updates in recent.items() if updates}


def _named(members: Sequence[int]) -> str:
    numbers = ", ".join(map(str, members[:SHOWN]))
    more = f" and {len(members) - SHOWN} more" if len(members) > SHOWN else ""
    return f"member{'s' if len(members) > 1 else ''} {numbers}{more}"
