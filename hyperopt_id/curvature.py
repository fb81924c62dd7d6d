r"""How the training gradient is differentiated: a value passed in.

A curvature is called once per linearization, `curvature(loss, thin_loss, variables)`, with two functions of the
parameters: the loss of the training batch, and the loss of the (possibly smaller) batch that second derivatives may
use. It returns the gradient \(g = \nabla L(w)\) of the first as part of the autograd graph over `variables`, so that
whoever pulls a cotangent \(u\) back through \(g\) gets a Hessian-vector product \(u H\), computed in this curvature's
way. All of it may carry a leading axis R of independent runs: losses are then [R], and H is block diagonal.

`exact` differentiates the gradient's own graph, which is built once and shared by all products. No second derivative
exists through fused attention kernels, cuDNN recurrent networks or compiled modules; `finite_difference` works there,
at a relative error of about 1e-3 in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.derivatives import Gradient, Loss, gradient
from hyperopt_id.trees import Params

Curvature = Callable[[Loss, Loss, Params], Gradient]


def none(loss: Loss, thin_loss: Loss, variables: Params) -> Gradient:
    """The gradient as a constant: for engines that take a single term, where no product is needed."""
    return gradient(loss, variables)


def exact(loss: Loss, thin_loss: Loss, variables: Params) -> Gradient:
    """Reverse over reverse."""
    if thin_loss is loss:
        return gradient(loss, variables, create_graph=True)
    whole = gradient(loss, variables)
    few = gradient(thin_loss, variables, create_graph=True).value
    # The value of the whole batch with the derivative of the few rows.
    return whole._replace(value={k: g + (few[k] - few[k].detach()) for k, g in whole.value.items()})


def finite_difference(epsilon: float = 1e-3, sides: int = 1) -> Curvature:
    r"""Differences of ordinary gradients, with \(\delta = \epsilon / \lVert u \rVert_2\) per run:

    .. math:: u H \approx \frac{\nabla L(w + \delta u) - \nabla L(w)}{\delta} \quad (1 \text{ side}), \qquad
              \frac{\nabla L(w + \delta u) - \nabla L(w - \delta u)}{2 \delta} \quad (2 \text{ sides}).

    One side reuses the step's own gradient, so a product costs one gradient. `epsilon` is the length of the step in
    parameter space: 1e-3 suits float32; a longer one crosses the kinks of a ReLU network.
    """
    if sides not in (1, 2):
        raise ValueError(f"finite differences take 1 or 2 sides, but sides is {sides}")

    def curvature(loss: Loss, thin_loss: Loss, variables: Params) -> Gradient:
        here = gradient(loss, variables)
        base = here.value if thin_loss is loss or sides == 2 else gradient(thin_loss, variables).value

        def product(direction: Params) -> Params:
            norm = trees.norm(direction, here.loss.ndim).clamp_min(torch.finfo(here.loss.dtype).tiny ** 0.5)
            step, inverse = epsilon / norm, norm / (epsilon * sides)

            def slopes(sign: float) -> Params:
                point = zip(variables.items(), direction.values(), strict=True)
                moved = {k: torch.addcmul(w.detach(), trees.per_run(step, u), u, value=sign) for (k, w), u in point}
                return gradient(thin_loss, trees.variables(moved)).value

            ahead, behind = slopes(1.0), base if sides == 1 else slopes(-1.0)
            return {k: (ahead[k] - behind[k]) * trees.per_run(inverse, u) for k, u in direction.items()}

        return here._replace(value=_attach(here.value, variables, product))

    return curvature


def _attach(values: Params, variables: Params, product: Callable[[Params], Params]) -> Params:
    """The values as a function of the variables whose vector-Jacobian product is `product`."""
    names = list(variables)

    class Attached(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
            return tuple(value.detach() for value in values.values())

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
            pulled = product(dict(zip(names, grad_outputs, strict=True)))
            return tuple(pulled[k] for k in names)

    with torch.enable_grad():
        return dict(zip(names, Attached.apply(*variables.values()), strict=True))


def choose(loss: Loss, params: Params, differences: Curvature | None = None) -> tuple[Curvature, str]:
    """`(curvature, why)`: exact where the loss can be differentiated twice (it is tried here, at `params`), else
    `differences` (default: `finite_difference()`)."""
    differences = differences or finite_difference()
    variables = trees.variables(params)
    try:
        slopes = exact(loss, loss, variables).value
        attached = [slope for slope in slopes.values() if slope.requires_grad]
        if attached:
            weights = [torch.ones_like(slope) for slope in attached]
            torch.autograd.grad(attached, list(variables.values()), weights, allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        return differences, f"finite differences, for the loss has no second derivative ({reason})"
    # A backward pass that is not recorded gives no error where its cotangent is a constant, just a wrong zero.
    elsewhere = gradient(loss, trees.map(lambda w: (w.detach() + 0.01).requires_grad_(), params)).value
    if any(not slope.requires_grad and not torch.equal(slope, elsewhere[k]) for k, slope in slopes.items()):
        reason = "its gradient varies, but is not recorded"
        return differences, f"finite differences, for the loss has no second derivative ({reason})"
    return exact, "exact, for the loss can be differentiated twice"
