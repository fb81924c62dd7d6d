"""A table of operations: the products that are chosen equal central differences in float64, or the choice is refused.

Where the gradient is not that of the loss, they are u J, J being the Jacobian of what is computed as the gradient.

The oracle differentiates a loss of its own, in float64 at a step of 1e-6; the loss under test has its data in the
precision of the weights.
"""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from laws import random
from second_derivatives import (
    ByNumPy,
    Normed,
    Once,
    Saved,
    Scaled,
    Sign,
    WithoutGraph,
    by_running_size,
    hooked,
    reversed_gradient,
    rounded,
    with_inner_gradient,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from hyperopt_id import curvature, trees
from hyperopt_id.derivatives import gradient

ROWS = random(12, 6, seed=5)
ROWS[::4] = 0.0
WORDS = torch.arange(12) % 5
Operation = Callable[[Tensor, Tensor], Tensor]  # (hidden [12, 6], weights [6, 6]) -> anything


def cell(make: Callable[[], nn.Module]) -> Operation:
    """A module whose first weights are the rows of those given."""

    def compute(h: Tensor, w: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = make().to(w.dtype)
        tensors = {name: value.detach() for name, value in module.named_parameters()}
        name, value = next(iter(tensors.items()))
        tensors[name] = w.repeat(4, 1)[: len(value)]
        outputs = torch.func.functional_call(module, tensors, (h,))
        return outputs[0] if isinstance(outputs, tuple) else outputs

    return compute


def parametrized(how: Callable[[nn.Module], nn.Module]) -> Operation:
    def compute(h: Tensor, w: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = how(nn.Linear(6, 6)).to(w.dtype)
        tensors = {name: value.detach() for name, value in module.named_parameters()}
        name = max(tensors, key=lambda name: tensors[name].numel())
        return torch.func.functional_call(module, tensors | {name: w}, (h,))

    return compute


def images(h: Tensor) -> Tensor:
    return h.reshape(2, 1, 6, 6)


def flash(h: Tensor, w: Tensor) -> Tensor:
    queries = (h @ w).reshape(1, 1, 12, 6)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(queries, queries, queries)


def positive(w: Tensor) -> Tensor:
    return w @ w.T + torch.eye(6, dtype=w.dtype)


def batch_norm(h: Tensor, w: Tensor) -> Tensor:
    return F.batch_norm(h @ w, None, None, training=True)


EXACT: dict[str, Operation] = {
    "linear": lambda h, w: h @ w,
    "tanh": lambda h, w: torch.tanh(h @ w),
    "gelu": lambda h, w: F.gelu(h @ w),
    "silu": lambda h, w: F.silu(h @ w),
    "elu": lambda h, w: F.elu(h @ w + 0.1),
    "relu": lambda h, w: F.relu(h @ w + 0.1),
    "leaky relu": lambda h, w: F.leaky_relu(h @ w + 0.1),
    "hardswish": lambda h, w: F.hardswish(h @ w),
    "abs": lambda h, w: (h @ w + 0.1).abs(),
    "clamp": lambda h, w: (h @ w + 0.1).clamp(-0.5, 0.7),
    "where": lambda h, w: torch.where(h @ w > 0.05, (h @ w).exp(), (h @ w).sin()),
    "max": lambda h, w: (h @ w + ROWS.to(w)).max(1)[0],
    "sort": lambda h, w: (h @ w + ROWS.roll(1).to(w)).sort(1)[0] * torch.arange(6),
    "softmax": lambda h, w: (h @ w).softmax(1),
    "cross-entropy": lambda h, w: F.cross_entropy(h @ w, WORDS),
    "label smoothing": lambda h, w: F.cross_entropy(h @ w, WORDS, label_smoothing=0.1),
    "embedding": lambda h, w: F.embedding(WORDS, w).sin(),
    "einsum": lambda h, w: torch.einsum("ni,ij,nj->n", h, w, h).sin(),
    "cumulative product": lambda h, w: (h @ w + 1.0).cumprod(1),
    "logsumexp": lambda h, w: (h @ w).logsumexp(0),
    "standard deviation": lambda h, w: (h @ w + 0.3 * w[0] * torch.arange(6).to(w)).std(1),
    "normalize": lambda h, w: F.normalize(h @ w + w[0], dim=1),
    "layer norm": lambda h, w: F.layer_norm(h @ w + w[0], (6,)),
    "group norm": lambda h, w: F.group_norm(h @ w + w[0], 2),
    "batch norm": batch_norm,
    "convolution": lambda h, w: F.conv2d(images(h), w[:3, :3].reshape(1, 1, 3, 3)).tanh(),
    "max pooling": lambda h, w: F.max_pool2d(images(h @ w + ROWS.to(w)), 2),
    "interpolation": lambda h, w: F.interpolate(images(h @ w), scale_factor=2, mode="bilinear").sin(),
    "determinant": lambda h, w: positive(w).logdet(),
    "inverse": lambda h, w: positive(w).inverse(),
    "Cholesky": lambda h, w: torch.linalg.cholesky(positive(w)),
    "eigenvalues": lambda h, w: torch.linalg.eigvalsh(positive(w)),
    "matrix exponential": lambda h, w: torch.linalg.matrix_exp(w),
    "Fourier": lambda h, w: torch.fft.rfft(h @ w).abs().square(),
    "LSTM": cell(lambda: nn.LSTM(6, 4, batch_first=True)),
    "GRU": cell(lambda: nn.GRU(6, 2)),
    "checkpoint": lambda h, w: checkpoint(lambda x: torch.tanh(x @ w), h @ w, use_reentrant=False),  # type: ignore
    "old weight norm": parametrized(lambda module: torch.nn.utils.weight_norm(module, dim=None)),  # type: ignore
    "orthogonal": parametrized(parametrizations.orthogonal),
    "standard deviation at zero": lambda h, w: (h @ w).std(1),
    "quantile": lambda h, w: (h @ w + ROWS.to(w)).quantile(0.3, 1),
    "median": lambda h, w: (h @ w + ROWS.to(w)).median(1)[0],
    "RMS norm": lambda h, w: F.rms_norm(h @ w, (6,)),
    "local response": lambda h, w: F.local_response_norm((h @ w)[..., None], 2),
    "p-norm at zero": lambda h, w: (h @ w).norm(p=3, dim=1),
    "maximum norm at zero": lambda h, w: (h @ w + ROWS.roll(1).to(w)).norm(p=float("inf"), dim=1),
    "angle": lambda h, w: torch.atan2(h @ w + 2.0, h @ w.T + 1.0),
    "gamma": lambda h, w: torch.lgamma((h @ w).square() + 0.5),
    "singular values": lambda h, w: torch.linalg.svdvals(w),
    "cumulative logsumexp": lambda h, w: (h @ w).logcumsumexp(1),
    "in place": lambda h, w: (h @ w).clone().mul_(2.0).tanh_(),
    "stopped constant": lambda h, w: (h @ w - (h @ w).detach().amax(1, keepdim=True)).softmax(1),
    "square root": lambda h, w: (h @ w).square().add(0.1).sqrt(),
}
DIFFERENCES: dict[str, Operation] = {
    "backward in NumPy": lambda h, w: ByNumPy.apply(h @ w),  # type: ignore[dict-item]
    "backward without a graph": lambda h, w: WithoutGraph.apply(h @ w),  # type: ignore[dict-item]
    "distances to oneself": lambda h, w: torch.cdist(h @ w, h @ w),
    "no second derivative": lambda h, w: Once.apply(h @ w),  # type: ignore[dict-item]
    "flash attention": flash,
    "distance at zero": lambda h, w: torch.cdist(h @ w, torch.zeros(1, 6).to(w)),
}
REWRITTEN: dict[str, Operation] = {
    "cosine similarity at zero": lambda h, w: F.cosine_similarity(h @ w, (h @ w).roll(1, 1)),
    "normalize at zero": lambda h, w: F.normalize(h @ w, dim=1),
    "norm at zero": lambda h, w: (h @ w).norm(dim=1),
    "pairs at zero": lambda h, w: F.pairwise_distance((h @ w)[:, :3], (h @ w)[:, 3:], eps=0.0),
    "weight norm": parametrized(parametrizations.weight_norm),
    "kept outputs": lambda h, w: Normed.apply(h @ w + w[0]),  # type: ignore[dict-item]
    "kept derivative": lambda h, w: Saved.apply(h @ w),  # type: ignore[dict-item]
    "straight-through": lambda h, w: torch.tanh(h @ rounded(w)) @ w,
    "reversal by detach": lambda h, w: torch.tanh(reversed_gradient(torch.tanh(h @ w)) @ w),
    "stopped norm": lambda h, w: h @ w / (h @ w).detach().norm(),
    "stopped share": lambda h, w: (0.1 * torch.tanh(h @ w).detach() + torch.tanh(h @ w)) @ w,
    "stopped by data": lambda h, w: torch.tanh(h @ w) @ w.data,
    "hook": lambda h, w: torch.tanh(hooked(torch.tanh(h @ w)) @ w),
    "inner gradient": lambda h, w: with_inner_gradient(h @ w),
    "running statistic": lambda h, w: torch.tanh(by_running_size(h @ w)),
    "spectral norm": lambda h, w: torch.tanh(parametrized(parametrizations.spectral_norm)(h, w)),
    "old spectral norm": lambda h, w: torch.tanh(parametrized(torch.nn.utils.spectral_norm)(h, w)),
    "padding": lambda h, w: torch.tanh(F.embedding(WORDS, w, padding_idx=1) + h) @ w,
}
REFUSED: dict[str, Operation] = {
    "gradient reversal": lambda h, w: torch.tanh(Scaled.apply(torch.tanh(h @ w), -1.0) @ w),  # type: ignore[operator]
    "signs": lambda h, w: torch.tanh(Sign.apply(h @ w) @ w),  # type: ignore[operator]
}
OPERATIONS = EXACT | DIFFERENCES | REWRITTEN | REFUSED
START = dict.fromkeys(EXACT, "exact, ") | dict.fromkeys(DIFFERENCES, "finite differences")
START |= dict.fromkeys(REWRITTEN, "exact, rewritten")


def make_loss(name: str, dtype: torch.dtype) -> curvature.Loss:
    rows, mixing = ROWS.to(dtype), random(6, 6, seed=9).to(dtype)

    def loss(params: trees.Params) -> tuple[Tensor, Any]:
        hidden = rows @ torch.tanh(params["first"] @ mixing)
        return OPERATIONS[name](hidden, params["second"]).sin().mul(2.0).exp().mean(), {}

    return loss


PARAMS = {"first": 0.5 * random(6, 6, seed=3), "second": 0.5 * random(6, 6, seed=4)}
DIRECTION = {key: random(6, 6, seed=seed) for seed, key in enumerate(PARAMS, 70)}


def by_differences(loss: curvature.Loss, direction: trees.Params, step: float = 1e-6) -> trees.Params:
    """J u."""

    def slope(sign: float) -> trees.Params:
        moved = {key: (w + sign * step * direction[key]).requires_grad_() for key, w in PARAMS.items()}
        return gradient(loss, moved).value

    ahead, behind = slope(1.0), slope(-1.0)
    return {key: (ahead[key] - behind[key]) / (2.0 * step) for key in ahead}


def pulled_by_differences(loss: curvature.Loss) -> trees.Params:
    """u J, entry by entry."""
    found = {key: torch.zeros_like(w) for key, w in PARAMS.items()}
    for key, value in found.items():
        for i in range(value.numel()):
            unit = trees.zeros(PARAMS)
            unit[key].view(-1)[i] = 1.0
            value.view(-1)[i] = sum((DIRECTION[k] * v).sum() for k, v in by_differences(loss, unit).items())
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_products_equal_differences_or_are_refused(name: str, dtype: torch.dtype):
    loss, params = make_loss(name, dtype), trees.map(lambda w: w.to(dtype), PARAMS)
    with warnings.catch_warnings(action="ignore"):  # of torch, about orthogonal parametrizations
        if name in REFUSED:
            with pytest.raises(ValueError, match=r"the Hessian is not symmetric.*needs the products u J") as caught:
                curvature.choose(loss, params)
            assert "\n" not in str(caught.value)
            return
        for pushes in (False, True):
            chosen, why, *_ = curvature.examine(loss, params, pushes=pushes)
            found = chosen(loss, loss, params)[1](trees.map(lambda u: u.to(dtype), DIRECTION))
            wide = make_loss(name, torch.float64)
            sided = name in REWRITTEN and not pushes
            expected = pulled_by_differences(wide) if sided else by_differences(wide, DIRECTION)
            assert why.startswith(START[name]), why
            error = trees.norm({key: found[key].double() - expected[key] for key in expected}) / trees.norm(expected)
            assert error < ((1e-4 if name in DIFFERENCES else 1e-6) if dtype == torch.float64 else 1e-2), why


def test_a_gradient_that_is_all_but_that_of_the_loss_is_taken_with_a_warning():
    rows, mixing = ROWS, random(6, 6, seed=9)

    def loss(params: trees.Params) -> tuple[Tensor, Any]:
        hidden = Scaled.apply(torch.tanh(rows @ torch.tanh(params["first"] @ mixing)), 1.001)
        return torch.tanh(hidden @ params["second"]).exp().mean(), {}  # type: ignore[operator]

    choice = curvature.examine(loss, PARAMS)
    assert choice.doubtful
    assert choice.curvature is curvature.exact
    assert re.match(r"exact, off by 0\.\d+ %, though the Hessian is not symmetric \(by 0\.\d+ %\)", choice.why)
