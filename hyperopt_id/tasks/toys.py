"""Two analytic tasks: every quantity an engine computes has a closed form here.

    noisy quadratic   L(w) = ½ (w - c)ᵀ A (w - c),   c = w* + σ n
    ridge regression  L(w) = mean (x·w - y)²,   w*(ξ) = (H + ξ I)⁻¹ 2 Xᵀy / n

n ~ N(0, I) anew in every training batch; ξ is the weight decay of the update rule.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hyperopt_id.tasks.data import Dataset, split_by_position
from hyperopt_id.tasks.digests import digest
from hyperopt_id.tasks.functional import Tensors
from hyperopt_id.tasks.hashing import random_normal
from hyperopt_id.tasks.sampling import batch_seeds
from hyperopt_id.tasks.task import Batch, Metrics, Task, supervised


@dataclass(frozen=True)
class NoisyQuadratic:
    """`task` has one parameter "w" [D]; hessian A [D, D], optimum w* [D], noise σ. The validation and test
    losses are without noise, so their minimum is 0 at w*."""

    task: Task
    hessian: Tensor
    optimum: Tensor
    noise: float

    def expected_loss(self, start: Tensor, lr: Tensor, steps: int) -> Tensor:
        """The expected validation loss after `steps` steps of plain gradient descent from `start` [D] with
        learning rate `lr` (0-d), differentiable in both. In the eigenbasis of A, with mean m and variance v
        of w - w*,

            m' = (1 - η a) m,    v' = (1 - η a)² v + (η a σ)²,    E L = ½ Σ a (m² + v).
        """
        eigenvalues, basis = torch.linalg.eigh(self.hessian)
        mean = basis.T @ (start - self.optimum)
        variance = torch.zeros_like(mean)
        shrink = 1.0 - lr * eigenvalues
        for _ in range(steps):
            mean = shrink * mean
            variance = shrink**2 * variance + (lr * eigenvalues * self.noise) ** 2
        return 0.5 * (eigenvalues * (mean**2 + variance)).sum()


def noisy_quadratic(
    dimension: int = 10,
    condition: float = 10.0,
    noise: float = 0.1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> NoisyQuadratic:
    """Eigenvalues of A from 1/condition to 1, geometrically spaced, in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=torch.float64))
    eigenvalues = torch.logspace(-math.log10(condition), 0.0, dimension, dtype=torch.float64)
    hessian = (basis * eigenvalues @ basis.T).to(device, dtype)
    optimum = torch.randn(dimension, generator=generator, dtype=torch.float64).to(device, dtype)

    def init(seed: int) -> tuple[Tensors, Tensors]:
        generator = torch.Generator().manual_seed(seed)
        return {"w": torch.randn(dimension, generator=generator, dtype=torch.float64).to(device, dtype)}, {}

    def exact(w: Tensor, center: Tensor) -> Tensor:
        return 0.5 * (w - center) @ hessian @ (w - center)

    def loss(params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensor, tuple[Tensors, Metrics]]:
        center = optimum
        if batch.split in ("train", "train+validation") and noise:
            center = optimum + noise * random_normal(batch.seed, 0, dimension, dtype)
        return exact(params["w"], center), (buffers, {})

    @torch.no_grad()
    def evaluate(params: Tensors, buffers: Tensors, split: str) -> Metrics:
        return {"loss": exact(params["w"], optimum)}

    def batches(split: str, seeds: Sequence[int], start: int, steps: int) -> Batch:
        return Batch(None, batch_seeds(split, seeds, start, steps, torch.device(device)), split)

    source = digest(f"noisy quadratic: {dimension}, {condition}, {noise}, {seed}")
    sizes = {"train": 1, "validation": 1, "test": 1, "train+validation": 2}
    thin, roles = (lambda batch, fraction: batch), {"w": "hidden"}
    task = Task(init, loss, evaluate, batches, thin, sizes, roles, lambda: source)
    return NoisyQuadratic(task, hessian, optimum, noise)


@dataclass(frozen=True)
class Ridge:
    """`task` has one parameter "weight" [1, D] and whole-split batches; `data` is what it fits."""

    task: Task
    data: Dataset

    def _normal_equations(self, split: str) -> tuple[Tensor, Tensor]:
        """H = 2 XᵀX / n [D, D] and 2 Xᵀy / n [D]: the gradient of the split's loss is H w - r."""
        first, last = self.data.bounds(split)
        inputs, targets = self.data.inputs[first:last], self.data.targets[first:last]
        return 2.0 * inputs.T @ inputs / len(inputs), 2.0 * inputs.T @ targets / len(inputs)

    def hessian(self, split: str = "train") -> Tensor:
        """H [D, D] of a split's loss."""
        return self._normal_equations(split)[0]

    def solution(self, weight_decay: Tensor | float) -> Tensor:
        """The fixed point w*(ξ) [D] of training with weight decay ξ; differentiable in it."""
        hessian, moment = self._normal_equations("train")
        return torch.linalg.solve(hessian + weight_decay * torch.eye(len(hessian)).to(hessian), moment)

    def validation_loss(self, weight_decay: Tensor | float) -> Tensor:
        """Validation loss at the fixed point, differentiable in ξ."""
        first, last = self.data.bounds("validation")
        return (
            (self.data.inputs[first:last] @ self.solution(weight_decay) - self.data.targets[first:last]).pow(2).mean()
        )

    def hypergradient(self, weight_decay: Tensor | float) -> Tensor:
        """d(validation loss at w*) / dξ = -∇L_Vᵀ (H + ξ I)⁻¹ w*, by the implicit function theorem. In the
        raw variable log10 ξ multiply by ξ ln 10."""
        solution = self.solution(weight_decay)
        hessian, _ = self._normal_equations("train")
        validation_hessian, validation_moment = self._normal_equations("validation")
        gradient = validation_hessian @ solution - validation_moment
        damped = hessian + weight_decay * torch.eye(len(hessian)).to(hessian)
        return -gradient @ torch.linalg.solve(damped, solution)


def ridge(
    rows: Sequence[int] = (40, 20, 20),
    dimension: int = 5,
    noise: float = 0.5,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Ridge:
    """Random inputs, targets linear in them plus noise; `rows` of train, validation and test."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(sum(rows), dimension, generator=generator, dtype=torch.float64)
    truth = torch.randn(dimension, generator=generator, dtype=torch.float64)
    targets = inputs @ truth + noise * torch.randn(sum(rows), generator=generator, dtype=torch.float64)
    source = digest(f"ridge: {list(rows)}, {dimension}, {noise}, {seed}")
    data = Dataset(inputs, targets, split_by_position(rows, sum(rows), "ridge"), source=source).to(device, dtype)
    return Ridge(supervised(data, lambda: _linear(dimension), "mse", batch_size=None), data)


def _linear(dimension: int) -> nn.Module:
    module = nn.Linear(dimension, 1, bias=False)
    module.roles = {"weight": "output"}  # type: ignore[assignment]
    return module
