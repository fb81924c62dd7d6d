"""Which Hessian-vector products are right: a choice by comparison, and the line that says so.

Exact products are taken where they agree with central differences (`curvature_reference`); else finite differences of
the step length that agrees best. The products of some losses depend on the side they are taken from (u J and J u), and
then each engine needs its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from hyperopt_id import trees
from hyperopt_id.curvature_measure import (
    Asymmetry,
    Measured,
    asymmetry_of,
    depends_on_side,
    is_rounding,
    measure,
    percent,
    tolerance,
)
from hyperopt_id.curvature_reference import Reference, make_reference
from hyperopt_id.derivatives import Curvature, Loss
from hyperopt_id.trees import Params

USABLE, DOUBTFUL = 0.1, 0.5  # errors of differences that are taken without and with a warning
SOURCES = "detach(), gradient reversal, a straight-through estimator or a hook"
FORCE = (
    "to take exact products all the same, ask for them (curvature=curvature.exact, hypergradient.curvature.name=exact)"
)


class Candidate(NamedTuple):
    """Products to take; `enough` is the error below which nothing better is looked for (default: by precision)."""

    curvature: Curvature
    name: str
    enough: float | None = None


class Choice(NamedTuple):
    """The products to take; why, as a warning if `doubtful`; whether of the loss without autocast; what one takes."""

    curvature: Curvature
    why: str
    doubtful: bool = False
    outside_autocast: bool = False
    seconds: float = 0.0

    @property
    def line(self) -> str:
        cost = f"; a product takes {1e3 * self.seconds:.3g} ms" if self.seconds else ""
        return f"{self.why}{cost}"


@torch.enable_grad()
def select(
    exact: Candidate,
    rewritten: Sequence[Candidate],
    differences: Sequence[Candidate],
    loss: Loss,
    params: Params,
    *,
    given: Candidate | None = None,
    plain: Loss | None = None,
    pushes: bool = False,
) -> Choice:
    """See `curvature.examine`. Of `rewritten`, the first has the side that is needed, and others J u."""
    reference = make_reference(plain or loss, params)
    if reference is None:
        return _unchecked(exact, differences[0], given, loss, params)
    if given is not None:
        return _judged(given, exact, loss, params, reference, plain is not None, pushes)
    outside, of = plain is not None, plain or loss
    found = measure(exact.curvature, of, params, reference)
    sure = _is_sure(exact, found, of, params, reference)
    again = None if sure else measure(rewritten[0].curvature, of, params, reference)
    if again is not None and _is_sure(rewritten[0], again, of, params, reference):
        asymmetry = asymmetry_of(exact.curvature, of, params, reference)
        side = f"; {_meaning(asymmetry)}" if asymmetry.is_real else ""
        why = f"{_said(rewritten[0], again, reference, outside)}, for {found.fault}{side}"
        return Choice(rewritten[0].curvature, why, outside_autocast=outside, seconds=again.seconds)
    if sure or (found.error < math.inf and found.error <= 3.0 * reference.spread):
        inside = measure(exact.curvature, loss, params, reference) if outside else found
        if inside.error <= max(found.error, tolerance(params, under_autocast=True)):
            found, outside = inside, False
        why = _said(exact, found, reference, outside) if sure else _unclear(exact, reference, outside)
        return Choice(exact.curvature, why, not sure, outside, found.seconds)
    asymmetry = asymmetry_of(exact.curvature, of, params, reference)
    if asymmetry.is_real and not pushes:
        choice = _of_one_side(exact, rewritten[0], asymmetry, found, of, params, reference)
        return choice._replace(outside_autocast=outside)
    choice = _by_differences([*rewritten[1:], *differences], of, params, reference, found.fault, outside)
    if asymmetry.is_real:
        return choice._replace(why=f"{choice.why}, and J u, which this engine needs, for {_meaning(asymmetry)}")
    return choice


def _is_sure(taken: Candidate, found: Measured, loss: Loss, params: Params, reference: Reference) -> bool:
    return found.error <= tolerance(params, under_autocast=False) or is_rounding(
        taken.curvature, found, loss, params, reference
    )


def _of_one_side(
    exact: Candidate,
    rewritten: Candidate,
    asymmetry: Asymmetry,
    found: Measured,
    loss: Loss,
    params: Params,
    reference: Reference,
) -> Choice:
    """Products u J, where J u is another; of exact ones that are near, with a warning."""
    meaning = _meaning(asymmetry)
    for candidate in (exact, rewritten):
        side = asymmetry_of(candidate.curvature, loss, params, reference)
        if depends_on_side(side, params):
            why = f"{candidate.name}, off by {percent(side.error)} in u J, for {meaning}"
            return Choice(candidate.curvature, why, seconds=found.seconds)
    error = max(found.error, asymmetry.error)
    if error <= USABLE:
        why = f"{exact.name}, off by {percent(error)}, though {meaning}, and this engine needs u J"
        return Choice(exact.curvature, why, doubtful=True, seconds=found.seconds)
    raise ValueError(
        f"curvature: {meaning}; this engine needs the products u J, but {found.fault}, and differences are J u: stop "
        f"gradients by detach() rather than in a Function's backward, as in s(x) + (f(x) - s(x)).detach(), or take the "
        f"engine forward, or one without products (one_step, or neumann of 1 term); {FORCE}"
    )


def _by_differences(
    candidates: Sequence[Candidate], loss: Loss, params: Params, reference: Reference, fault: str, outside: bool
) -> Choice:
    """The first candidate that is accurate, else the best one."""
    tried = []
    for candidate in candidates:
        found = measure(candidate.curvature, loss, params, reference, by_differences=True)
        tried.append((found.error, len(tried), found, candidate))
        if found.error <= (candidate.enough or tolerance(params, under_autocast=False)):
            break
    error, _, found, best = min(tried)
    if reference.spread > USABLE:  # nothing to compare with
        best = next((candidate for error, _, _, candidate in tried if error < math.inf), best)
        why = _unclear(best, reference, outside)
        return Choice(best.curvature, f"{why}, for {fault}", True, outside, found.seconds)
    if error > DOUBTFUL:
        raise ValueError(
            f"curvature: no products are right: {fault}, and {best.name} are off by {percent(error)}: "
            f"take float64, or an engine without products (one_step, or neumann of 1 term); {FORCE}"
        )
    why = f"{_said(best, found, reference, outside)}, for {fault}"
    return Choice(best.curvature, why, error > USABLE, outside, found.seconds)


def _judged(
    given: Candidate,
    exact: Candidate,
    loss: Loss,
    params: Params,
    reference: Reference,
    under_autocast: bool,
    pushes: bool,
) -> Choice:
    """The products that the user asked for, with a warning where they are wrong."""
    found = measure(given.curvature, loss, params, reference)
    if found.error == math.inf and not found.seconds:
        raise ValueError(f"curvature: {given.name} cannot be taken, for {found.fault}: leave the choice to the library")
    choice = Choice(given.curvature, _said(given, found, reference, False), seconds=found.seconds)
    right = found.error <= max(USABLE, tolerance(params, under_autocast))
    if right and given.curvature is exact.curvature:
        return choice
    if not right and found.error <= 3.0 * reference.spread < math.inf:
        return choice._replace(why=_unclear(given, reference, False), doubtful=True)
    asymmetry = asymmetry_of(given.curvature, loss, params, reference)
    if not pushes and depends_on_side(asymmetry, params):
        return choice._replace(why=f"{given.name}, off by {percent(asymmetry.error)} in u J, for {_meaning(asymmetry)}")
    if asymmetry.is_real:
        side = "J u" if pushes else "u J"
        why = f"{given.name}, though {_meaning(asymmetry)}, and this engine needs {side}"
        return choice._replace(why=why, doubtful=True)
    return choice if right else choice._replace(why=f"{given.name}, though {found.fault}", doubtful=True)


def _unchecked(exact: Candidate, first: Candidate, given: Candidate | None, loss: Loss, params: Params) -> Choice:
    """What can be computed at all, where gradients at the start are not finite."""
    taken = given or exact
    if given is None:
        try:
            exact.curvature(loss, loss, params)[1](trees.map(torch.ones_like, params))
        except (RuntimeError, NotImplementedError):
            taken = first
    return Choice(taken.curvature, f"{taken.name}, not checked: the gradient at the start is not finite", doubtful=True)


def _said(taken: Candidate, found: Measured, reference: Reference, outside: bool) -> str:
    where = f"{taken.name}{' outside autocast' if outside else ''}"
    return f"{where}, off by {percent(found.error)} from {reference.name}"


def _unclear(taken: Candidate, reference: Reference, outside: bool) -> str:
    apart = f"{reference.name} of several step lengths are {percent(reference.spread)} apart"
    where = f"{taken.name}{' outside autocast' if outside else ''}"
    return f"{where}, not checked: {apart}"


def _meaning(asymmetry: Asymmetry) -> str:
    return (
        f"the Hessian is not symmetric (by {percent(asymmetry.size)}), so that the gradient is not that of the loss, "
        f"as with {SOURCES}"
    )
