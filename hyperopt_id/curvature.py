r"""Hessian-vector products \(u \mapsto H u\) of the training loss: how they are computed is a value passed in.

A curvature is called once per linearization, `curvature(loss, thin_loss, params)`, with two functions of the
parameters: the loss of the training batch, and the loss of the (possibly smaller) batch that products may use. It
returns the gradient of the first, the loss's value with its auxiliary output, and the product function. All of it
may carry a leading axis R of independent runs: losses are then [R], and H is block diagonal.

Exact products differentiate the gradient's graph, which is built once and shared by all products. No second
derivative exists through fused attention kernels, cuDNN recurrent networks or compiled modules; finite differences
of ordinary gradients work there, at a relative error of about 1e-3 in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.rules import Params

Loss = Callable[[Params], tuple[Tensor, Any]]  # params -> (scalar or [R], auxiliary output)
Product = Callable[[Params], Params]


class Gradient(NamedTuple):
    """The gradient of the training loss at one point, and products with the Hessian there."""

    value: Params
    loss: Tensor
    auxiliary: Any
    product: Product


Curvature = Callable[[Loss, Loss, Params], Gradient]


def gradient(loss: Loss, params: Params, *, create_graph: bool = False) -> tuple[Params, Tensor, Any, Params]:
    """`(gradient, loss, auxiliary, variables)`, the last being the leaves at which the gradient was taken.

    The sum over R independent losses is differentiated, which gives each run its own gradient. A parameter that
    the loss does not use has gradient zero.
    """
    with torch.enable_grad():
        variables = trees.variables(params)
        value, auxiliary = loss(variables)
        slopes = torch.autograd.grad(
            value,
            list(variables.values()),
            torch.ones_like(value),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    return dict(zip(params, slopes, strict=True)), value.detach(), trees.detach(auxiliary), variables


def none(loss: Loss, thin_loss: Loss, params: Params) -> Gradient:
    """No products, and no graph kept for them: for engines that take a single term."""

    def product(direction: Params) -> Params:
        raise AssertionError("an engine that takes no Hessian-vector products asked for one")

    value, at, auxiliary, _ = gradient(loss, params)
    return Gradient(value, at, auxiliary, product)


def exact(loss: Loss, thin_loss: Loss, params: Params) -> Gradient:
    """Reverse over reverse: the graph of the gradient is differentiated once per product."""
    graph, at, auxiliary, variables = gradient(loss, params, create_graph=True)
    value = trees.detach(graph)
    if thin_loss is not loss:
        graph, _, _, variables = gradient(thin_loss, params, create_graph=True)
    # A gradient entry without a graph does not depend on the parameters: its row of H is zero.
    rows = {k: row for k, row in graph.items() if row.requires_grad}

    def product(direction: Params) -> Params:
        if not rows:
            return trees.zeros(direction)
        columns = torch.autograd.grad(
            list(rows.values()),
            list(variables.values()),
            [direction[k] for k in rows],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(direction, columns, strict=True))

    return Gradient(value, at, auxiliary, product)


def finite_difference(epsilon: float = 1e-3, sides: int = 1) -> Curvature:
    r"""Differences of ordinary gradients, with \(\delta = \epsilon / \lVert u \rVert_2\) per run:

    .. math:: H u \approx \frac{\nabla L(w + \delta u) - \nabla L(w)}{\delta} \quad (1 \text{ side}), \qquad
              \frac{\nabla L(w + \delta u) - \nabla L(w - \delta u)}{2 \delta} \quad (2 \text{ sides}).

    One side reuses the step's own gradient, so a product costs one gradient. `epsilon` is the length of the step in
    parameter space: 1e-3 suits float32; a longer one crosses the kinks of a ReLU network.
    """
    if sides not in (1, 2):
        raise ValueError(f"finite differences take 1 or 2 sides, but sides is {sides}")

    def curvature(loss: Loss, thin_loss: Loss, params: Params) -> Gradient:
        value, at, auxiliary, _ = gradient(loss, params)
        base = value if thin_loss is loss or sides == 2 else gradient(thin_loss, params)[0]

        def product(direction: Params) -> Params:
            norm = trees.squared_norm(direction, at.ndim).sqrt()
            step = epsilon / norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)

            def along(scale: float) -> Params:
                return {k: torch.addcmul(p, _broadcast(step, p), direction[k], value=scale) for k, p in params.items()}

            ahead = gradient(thin_loss, along(1.0))[0]
            behind = base if sides == 1 else gradient(thin_loss, along(-1.0))[0]
            return {k: (ahead[k] - behind[k]) / (_broadcast(step, ahead[k]) * sides) for k in params}

        return Gradient(value, at, auxiliary, product)

    return curvature


def _broadcast(per_run: Tensor, leaf: Tensor) -> Tensor:
    return per_run.reshape(per_run.shape + (1,) * (leaf.ndim - per_run.ndim))


def choose(loss: Loss, params: Params) -> tuple[Curvature, str]:
    """`(curvature, why)`: exact where the loss can be differentiated twice (it is tried here, at `params`), else
    one-sided finite differences."""
    try:
        products = exact(loss, loss, params).product(params)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        return finite_difference(), f"finite differences, for the loss has no second derivative ({reason})"
    del products
    return exact, "exact, for the loss can be differentiated twice"
