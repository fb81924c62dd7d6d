r"""Layers and their first and second derivative, written out.

.. math:: y = f(x, w), \qquad (\bar x, \bar w) = g \cdot \partial f, \qquad
          (g', x', w') = (u, v) \cdot \partial (\bar x, \bar w) / \partial (g, x, w)

for cotangents g of y and (u, v) of \((\bar x, \bar w)\). The second line of a Hessian-vector product is the last one;
torch composes it of dozens of elementwise operations for a normalization, and of convolutions with exchanged roles that
no fast kernel serves. Here they are the fewest passes over memory, and the kernels of the first derivative.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = Sequence[Tensor]
Cotangents = Sequence[Tensor | None]
aten: Any = torch.ops.aten


class Rule(ABC):
    """A layer of one output. Its functions return notes for the next ones beside what they are for; `first` says
    whether the first input wants a cotangent, which data do not."""

    @abstractmethod
    def value(self, inputs: Tensors) -> tuple[Tensor, Tensors]:
        """y, notes."""

    @abstractmethod
    def pull(self, first: bool, g: Tensor, inputs: Tensors, notes: Tensors) -> tuple[Cotangents, Tensors]:
        """Cotangents of the inputs, more notes."""

    @abstractmethod
    def pull_again(self, first: bool, forms: Tensors, g: Tensor, inputs: Tensors, notes: Tensors) -> Cotangents:
        """Cotangents of g and of the inputs, for the cotangents `forms` of what `pull` returns; all notes."""


@dataclass(frozen=True)
class Relu(Rule):
    r"""\(y = \max(x, 0)\): \(\bar x = g [y > 0],\ g' = u [y > 0],\ x' = 0\), which torch adds up as a tensor."""

    def value(self, inputs: Tensors) -> tuple[Tensor, Tensors]:
        y = torch.relu(inputs[0])
        return y, (y,)

    def pull(self, first: bool, g: Tensor, inputs: Tensors, notes: Tensors) -> tuple[Cotangents, Tensors]:
        return (aten.threshold_backward(g, notes[0], 0),), ()

    def pull_again(self, first: bool, forms: Tensors, g: Tensor, inputs: Tensors, notes: Tensors) -> Cotangents:
        return aten.threshold_backward(forms[0], notes[0], 0), None


@dataclass(frozen=True)
class Convolution(Rule):
    r"""\(y = x * W\): \(\bar x = g *^\top W,\ \bar W = x \star g\);
    \(g' = u * W + x * V,\ x' = g *^\top V,\ W' = u \star g\)."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int

    def _forward(self, x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, None, self.stride, self.padding, self.dilation, self.groups)

    def _backward(self, g: Tensor, x: Tensor, w: Tensor, of_x: bool, of_w: bool) -> Cotangents:
        """Both transposes; a tensor that a transpose does not need only tells its shape."""
        geometry = (self.stride, self.padding, self.dilation, False, (0, 0), self.groups)
        return aten.convolution_backward(g, x, w, None, *geometry, (of_x, of_w, False))[:2]

    def value(self, inputs: Tensors) -> tuple[Tensor, Tensors]:
        x, w = inputs
        return self._forward(x, w), ()

    def pull(self, first: bool, g: Tensor, inputs: Tensors, notes: Tensors) -> tuple[Cotangents, Tensors]:
        x, w = inputs
        return self._backward(g, x, w, first, True), ()

    def pull_again(self, first: bool, forms: Tensors, g: Tensor, inputs: Tensors, notes: Tensors) -> Cotangents:
        (u, v), (x, w) = forms, inputs
        moved = self._forward(x, v)
        if not first:
            return moved, None, None
        moved += self._forward(u, w)
        return moved, self._backward(g, x, v, True, False)[0], self._backward(g, u, w, False, True)[1]


@dataclass(frozen=True)
class BatchNorm(Rule):
    r"""\(y = \gamma \hat x + \beta,\ \hat x = r (x - \langle x \rangle),\ r = (\langle (x - \langle x \rangle)^2
    \rangle + \epsilon)^{-1/2}\), with the mean \(\langle \cdot \rangle\) over the batch and all positions of a channel.
    Let \(P q = q - \langle q \rangle - \hat x \langle q \hat x \rangle\), and u, v, t be the cotangents of
    \(\bar x, \bar \gamma, \bar \beta\).

    .. math:: \bar x = r P(\gamma g), \quad \bar \gamma = \sum g \hat x, \quad \bar \beta = \sum g; \qquad
              g' = \gamma r P u + v \hat x + t, \quad \gamma' = \sum g\, r P u,

    .. math:: x' = r P(v g - r \langle \gamma g \hat x \rangle u - r \langle u \hat x \rangle \gamma g)
                   - r \langle u \bar x \rangle \hat x.

    The sums over u and g are known, so that P takes no pass over memory of its own. Running statistics are updated in
    place.
    """

    running_mean: Tensor
    running_var: Tensor
    momentum: float
    eps: float

    def _project(self, q: Tensor, x: Tensor, w: Tensor, mean: Tensor, r: Tensor) -> Tensors:
        r"""\(\gamma r P q,\ \sum q \hat x,\ \sum q\)."""
        masks = (True, True, True)
        return aten.native_batch_norm_backward(q, x, w, None, None, mean, r, True, self.eps, masks)

    def value(self, inputs: Tensors) -> tuple[Tensor, Tensors]:
        running = (self.running_mean, self.running_var, True, self.momentum, self.eps)
        y, *statistics = aten.native_batch_norm(*inputs, *running)
        return y, statistics

    def pull(self, first: bool, g: Tensor, inputs: Tensors, notes: Tensors) -> tuple[Cotangents, Tensors]:
        (x, w, _), (mean, r) = inputs, notes
        pulled = self._project(g, x, w, mean, r)
        share = x.shape[1] / x.numel()
        return pulled, (pulled[1] * share, pulled[2] * share, -w * r * r)

    def pull_again(self, first: bool, forms: Tensors, g: Tensor, inputs: Tensors, notes: Tensors) -> Cotangents:
        (u, v, t), (x, w, _) = forms, inputs
        mean, r, mean_gx, mean_g, scale = notes
        axes = [axis for axis in range(x.ndim) if axis != 1]
        count = x.numel() // x.shape[1]

        def channels(q: Tensor) -> Tensor:
            return q.view(-1, *[1] * (x.ndim - 2))

        moved, *sums = self._project(u, x, w, mean, r)
        mean_ux, mean_u = sums[0] / count, sums[1] / count
        of_x = v * r
        moved.addcmul_(x, channels(of_x)).add_(channels(torch.addcmul(t, of_x, mean, value=-1)))
        mean_ugp = (u * g).mean(axes) - mean_u * mean_g - mean_ux * mean_gx  # <u P g>
        of_u, of_g = scale * mean_gx, scale * mean_ux + of_x
        of_x = (scale * mean_ugp - of_u * mean_ux - of_g * mean_gx) * r
        rest = of_u * mean_u + of_g * mean_g + of_x * mean
        bent = (u * channels(of_u)).addcmul_(g, channels(of_g)).addcmul_(x, channels(of_x)).sub_(channels(rest))
        return moved, bent, r * mean_ugp * count, None
