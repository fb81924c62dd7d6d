r"""How Hessian-vector products are computed: a value passed in.

A curvature is called once per linearization, `curvature(loss, thin_loss, params)`, with two functions of the
parameters: the loss of the training batch, and the loss of the (possibly smaller) batch that second derivatives may
use. It returns the gradient \(g = \nabla L(w)\) of the first, and the function \(u \mapsto u H\) for the Hessian H of
the second, which may be called any number of times. All of it may carry a leading axis R of independent runs: losses
are then [R], and H is block diagonal.

`exact` differentiates the gradient's own graph, which is built once and shared by all products. Some of its
derivatives are wrong (of functions that save intermediate results, of stopped gradients) or not finite (of a norm at
zero): most of them are right in `rewritten` and `rewritten_forward`. No second derivative exists through fused
attention kernels, cuDNN recurrent networks or compiled modules; `finite_difference` works there, at a relative error
of about 1e-3 in float32 where nothing has kinks. `choose` compares them at the weights that training starts from.
"""

from __future__ import annotations

import torch

from hyperopt_id import derivatives, trees
from hyperopt_id.curvature_choice import Candidate, Choice, select
from hyperopt_id.curvature_measure import take
from hyperopt_id.curvature_rewritten import Passes, rewrite
from hyperopt_id.derivatives import Curvature, Gradient, Loss, Product, gradient
from hyperopt_id.trees import Params


def none(loss: Loss, thin_loss: Loss, params: Params) -> tuple[Gradient, Product]:
    """The gradient as a constant: for engines that take a single term, where no product is needed."""
    return gradient(loss, trees.variables(params)), trees.zeros


def exact(loss: Loss, thin_loss: Loss, params: Params) -> tuple[Gradient, Product]:
    """Reverse over reverse."""
    variables = trees.variables(params)
    few = gradient(thin_loss, variables, create_graph=True)
    whole = few if thin_loss is loss else gradient(loss, variables)

    def product(u: Params) -> Params:
        return derivatives.pull(trees.leaves(few.value), trees.leaves(u), variables)

    return whole, product


def rewritten(loss: Loss, thin_loss: Loss, params: Params) -> tuple[Gradient, Product]:
    """`exact`, where gradients are stopped (`detach()`, `torch.no_grad()`) or changed (hooks), or where an operation's
    recorded derivative is wrong that can be written out. One gradient more."""
    variables, recorded = _record_rewritten(thin_loss, params)

    def product(u: Params) -> Params:
        return derivatives.pull(trees.leaves(recorded), trees.leaves(u), variables)

    return gradient(loss, trees.variables(params)), product


def rewritten_forward(loss: Loss, thin_loss: Loss, params: Params) -> tuple[Gradient, Product]:
    """J u instead of u J: the derivative of v J, which is linear in v, at v = 0. Also where u J is not finite for a
    factor 0 / 0, as of a norm at zero."""
    variables, recorded = _record_rewritten(thin_loss, params)
    outputs = {key: value for key, value in recorded.items() if value.requires_grad}

    def product(u: Params) -> Params:
        if not outputs:
            return trees.zeros(u)
        v = trees.variables(trees.zeros(outputs))
        ends, forms = trees.leaves(outputs), trees.leaves(v)
        pulled = torch.autograd.grad(ends, list(variables.values()), forms, create_graph=True, allow_unused=True)
        pairs = [(value, u[key]) for key, value in zip(variables, pulled, strict=True) if value is not None]
        pushed = derivatives.pull([value for value, _ in pairs], [form for _, form in pairs], v)
        return {key: pushed.get(key, torch.zeros_like(value)) for key, value in u.items()}

    return gradient(loss, trees.variables(params)), product


def _record_rewritten(loss: Loss, params: Params) -> tuple[Params, Params]:
    """Variables, and the recorded gradient at them. Dynamo would leave operations as they are, without a word."""
    if torch.compiler.is_dynamo_compiling():
        raise NotImplementedError("torch.compile does not rewrite operations")
    variables, passes = trees.variables(params), Passes()
    value = gradient(rewrite(loss, passes), variables, create_graph=True).value
    passes.first_is_over = True
    return variables, value


RECORDED = (exact, rewritten, rewritten_forward)  # those that differentiate a gradient


def finite_difference(epsilon: float = 1e-3, sides: int = 1) -> Curvature:
    r"""Differences of ordinary gradients, with \(\delta = \epsilon / \lVert u \rVert_2\) per run:

    .. math:: u H \approx \frac{\nabla L(w + \delta u) - \nabla L(w)}{\delta} \quad (1 \text{ side}), \qquad
              \frac{\nabla L(w + \delta u) - \nabla L(w - \delta u)}{2 \delta} \quad (2 \text{ sides}).

    One side reuses the step's own gradient, so a product costs one gradient. `epsilon` is the length of the step in
    parameter space: 1e-3 suits float32; a longer one crosses the kinks of a ReLU network.
    """
    if sides not in (1, 2):
        raise ValueError(f"finite differences take 1 or 2 sides, but sides is {sides}")

    def curvature(loss: Loss, thin_loss: Loss, params: Params) -> tuple[Gradient, Product]:
        here = gradient(loss, trees.variables(params))
        base = here.value if thin_loss is loss or sides == 2 else gradient(thin_loss, trees.variables(params)).value

        def product(u: Params) -> Params:
            norm = trees.norm(u, here.loss.ndim).clamp_min(torch.finfo(here.loss.dtype).tiny ** 0.5)
            step, inverse = epsilon / norm, norm / (epsilon * sides)

            def slopes(sign: float) -> Params:
                moved = {k: torch.addcmul(params[k], trees.per_run(step, x), x, value=sign) for k, x in u.items()}
                return gradient(thin_loss, trees.variables(moved)).value

            ahead, behind = slopes(1.0), base if sides == 1 else slopes(-1.0)
            return {k: (ahead[k] - behind[k]) * trees.per_run(inverse, x) for k, x in u.items()}

        return here, product

    return curvature


WAYS = {  # length and sides of differences to try, those that cost least first
    torch.float64: ((1e-6, 1), (1e-5, 1), (1e-7, 1), (1e-4, 2), (1e-3, 2)),
    torch.float32: ((1e-3, 1), (1e-2, 1), (1e-4, 1), (1e-2, 2), (1e-1, 2), (1e-3, 2)),
}


def examine(
    loss: Loss,
    params: Params,
    *,
    given: Curvature | None = None,
    differences: Curvature | None = None,
    plain: Loss | None = None,
    pushes: bool = False,
    few: tuple[Loss, Loss | None] | None = None,
) -> Choice:
    """Which products to take, by what they are at `params` beside central differences; `given` ones are kept.

    `plain` is the same loss without the autocast that `loss` runs under. `pushes` says that the engine needs H u, not
    u H. `few` are both on fewer rows, where all of them would cost much: what is clear there is taken if a product on
    all rows is finite, and else they are compared on all. Raises ValueError if no products are right.
    """
    ways = WAYS.get(next(iter(params.values())).dtype, WAYS[torch.float32])
    candidates = [
        Candidate(finite_difference(length, sides), f"finite differences (epsilon {length:g}, sides {sides})")
        for length, sides in ways
    ]
    if differences is not None:
        candidates.insert(0, Candidate(differences, "finite differences as given", enough=1e-2))
    known = None if given is None else Candidate(given, "exact" if given is exact else "products as given")
    ways_again = (rewritten_forward,) if pushes else (rewritten, rewritten_forward)
    again = [Candidate(way, "exact, rewritten") for way in ways_again]

    def compared(loss: Loss, plain: Loss | None) -> Choice:
        return select(
            Candidate(exact, "exact"), again, candidates, loss, params, given=known, plain=plain, pushes=pushes
        )

    if few is not None:
        try:
            choice = compared(*few)
        except (ValueError, RuntimeError):  # the latter of losses that need more rows
            choice = None
        if choice is not None and not choice.doubtful:
            curved = plain if plain is not None and choice.outside_autocast else loss
            with torch.enable_grad():
                _, seconds, fault = take(choice.curvature, curved, params, trees.map(torch.ones_like, params))
            if not fault:
                return choice._replace(seconds=seconds)
    return compared(loss, plain)


def choose(loss: Loss, params: Params, differences: Curvature | None = None) -> tuple[Curvature, str]:
    """`(curvature, why)`: exact where the second derivative is right (it is compared here, at `params`), else
    `differences` where these are, else those of another step length. Raises ValueError if none are."""
    choice = examine(loss, params, differences=differences)
    return choice.curvature, choice.line
