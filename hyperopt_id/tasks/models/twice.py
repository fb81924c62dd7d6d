"""torch's layers, with a second derivative that is cheap (the rules of `twice_rules`).

They are torch's own, but where a loss is evaluated to be differentiated twice (`derivatives.differentiates_twice`):
a rule costs some microseconds more in the first derivative than it has to where there is no second one. Transformed
functions (vmap, jvp), compiled ones and mixed precision stay with torch. Third derivatives are refused.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hyperopt_id.derivatives import differentiates_twice
from hyperopt_id.tasks.models import twice_rules as rules
from hyperopt_id.tasks.models.twice_rules import Rule


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: Rule, *inputs: Tensor) -> Tensor:
        y, notes = rule.value(inputs)
        ctx.rule, ctx.count = rule, len(inputs)
        ctx.save_for_backward(*inputs, *notes)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        first, n = ctx.needs_input_grad[1], ctx.count
        kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *_Pull.apply(ctx.rule, first, n, *cotangents, *kept)
        return None, *ctx.rule.pull(first, *cotangents, kept[:n], kept[n:])[0]


class _Pull(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: Rule, first: bool, n: int, g: Tensor, *kept: Tensor) -> tuple[Tensor | None, ...]:
        pulled, notes = rule.pull(first, g, kept[:n], kept[n:])
        ctx.rule, ctx.first, ctx.count, ctx.constants = rule, first, n, len(kept) - n
        ctx.save_for_backward(g, *kept, *notes)
        return tuple(pulled)

    @staticmethod
    def backward(ctx: Any, *forms: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # `once_differentiable` would not notice that saved tensors vary
            raise RuntimeError(f"there is no third derivative of {ctx.rule}")
        n, (g, *kept) = ctx.count, ctx.saved_tensors
        bent = ctx.rule.pull_again(ctx.first, forms, g, kept[:n], kept[n:])
        return None, None, None, *bent, *(None,) * ctx.constants


def apply(rule: Rule, *inputs: Tensor) -> Tensor:
    """The layer as a function with two derivatives."""
    return _Layer.apply(rule, *inputs)  # type: ignore[return-value] - torch's stub


def wanted(x: Tensor) -> bool:
    """Whether a layer with this input is differentiated by its rule."""
    if torch.compiler.is_compiling() or not differentiates_twice():
        return False
    return not torch._C._are_functorch_transforms_active() and not torch.is_autocast_enabled(x.device.type)


def relu(x: Tensor) -> Tensor:
    """For few numbers, a node in Python costs more than the passes over memory that it saves."""
    return apply(rules.Relu(), x) if x.numel() >= 2**14 and wanted(x) else torch.relu(x)


class Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        plain = self.bias is None and self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if not plain or not wanted(input):
            return super().forward(input)
        rule = rules.Convolution(self.stride, self.padding, self.dilation, self.groups)
        return apply(rule, input, self.weight)


def _batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor | None:
    """The layer in training mode by its rule, or None where torch's own is needed."""
    if not (norm.training and norm.affine) or norm.momentum is None or not wanted(x):
        return None
    mean, var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None or var is None or count is None:
        return None
    count.add_(1)
    return apply(rules.BatchNorm(mean, var, norm.momentum, norm.eps), x, norm.weight, norm.bias)


class BatchNorm1d(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        y = _batch_norm(self, input)
        return super().forward(input) if y is None else y


class BatchNorm2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        y = _batch_norm(self, input)
        return super().forward(input) if y is None else y
