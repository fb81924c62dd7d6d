r"""How Hessian-vector products are computed: a value passed in.

A curvature is called once per linearization, `curvature(loss, thin_loss, params)`, with two functions of the
parameters: the loss of the training batch, and the loss of the (possibly smaller) batch that second derivatives may
use. It returns the gradient \(g = \nabla L(w)\) of the first, and the function \(u \mapsto u H\) for the Hessian H of
the second, which may be called any number of times. All of it may carry a leading axis R of independent runs: losses
are then [R], and H is block diagonal.

`exact` differentiates the gradient's own graph, which is built once and shared by all products. No second derivative
exists through fused attention kernels, cuDNN recurrent networks or compiled modules; `finite_difference` works there,
at a relative error of about 1e-3 in float32.
"""

from __future__ import annotations

import torch

from hyperopt_id import derivatives, trees
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


@torch.enable_grad()
def choose(loss: Loss, params: Params, differences: Curvature | None = None) -> tuple[Curvature, str]:
    """`(curvature, why)`: exact where the loss can be differentiated twice (it is tried here, at `params`), else
    `differences` (default: `finite_difference()`)."""
    differences = differences or finite_difference()
    try:
        here, product = exact(loss, loss, params)
        product(trees.map(torch.ones_like, params))
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        return differences, f"finite differences, for the loss has no second derivative ({reason})"
    # A backward pass that is not recorded gives no error where its cotangent is a constant, just a wrong zero.
    elsewhere = gradient(loss, trees.variables(trees.map(lambda w: w + 0.01, params))).value
    if any(not slope.requires_grad and not torch.equal(slope, elsewhere[k]) for k, slope in here.value.items()):
        reason = "its gradient varies, but is not recorded"
        return differences, f"finite differences, for the loss has no second derivative ({reason})"
    return exact, "exact, for the loss can be differentiated twice"
