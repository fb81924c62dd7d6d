"""The closed forms of the analytic tasks equal autograd, simulation and the losses of the tasks."""

import pytest
import torch
from torch.func import grad, vmap

from hyperopt_id.tasks.task import Batch
from hyperopt_id.tasks.toys import noisy_quadratic, ridge

SEED = torch.tensor(0)


def test_quadratic_has_its_minimum_at_the_optimum():
    toy = noisy_quadratic(4, condition=20.0, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(toy.hessian)
    assert (eigenvalues.max() / eigenvalues.min()).item() == pytest.approx(20.0)
    at_optimum, _ = toy.task.loss({"w": toy.optimum}, {}, Batch(None, SEED, "validation"))
    assert at_optimum == 0
    params, buffers = toy.task.init(0)
    value = toy.task.evaluate(params, buffers, "test")["loss"]
    difference = params["w"] - toy.optimum
    torch.testing.assert_close(value, 0.5 * difference @ toy.hessian @ difference)


def test_quadratic_noise_is_fixed_by_the_seed_and_has_its_size():
    toy = noisy_quadratic(4, noise=0.3, dtype=torch.float64)

    def gradient(seed: torch.Tensor) -> torch.Tensor:
        return grad(lambda w: toy.task.loss({"w": w}, {}, Batch(None, seed, "train"))[0])(toy.optimum)

    seeds = toy.task.batches("train", range(5000), 0, 1).seed[0]
    centers = vmap(gradient)(seeds) @ torch.linalg.inv(toy.hessian)
    assert torch.equal(gradient(seeds[0]), gradient(seeds[0]))
    torch.testing.assert_close(centers.T.cov(), 0.09 * torch.eye(4, dtype=torch.float64), atol=6e-3, rtol=0)


def test_expected_loss_equals_the_mean_of_many_runs():
    toy = noisy_quadratic(3, noise=0.5, dtype=torch.float64)
    start, lr, steps, runs = toy.optimum + 1.0, torch.tensor(0.4, dtype=torch.float64), 6, 20_000
    seeds = toy.task.batches("train", range(runs), 0, steps).seed

    def step(w: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return w - lr * grad(lambda w: toy.task.loss({"w": w}, {}, Batch(None, seed, "train"))[0])(w)

    w = start.expand(runs, 3)
    for t in range(steps):
        w = vmap(step)(w, seeds[t])
    losses = vmap(lambda w: toy.task.loss({"w": w}, {}, Batch(None, SEED, "validation"))[0])(w)
    error = losses.std() / runs**0.5
    assert (losses.mean() - toy.expected_loss(start, lr, steps)).abs() < 4 * error


def test_ridge_solution_is_the_fixed_point_of_training_with_weight_decay():
    toy = ridge(dtype=torch.float64)
    solution = toy.solution(0.1)
    batch = Batch(None, SEED, "train")
    gradient = grad(lambda w: toy.task.loss({"weight": w}, {}, batch)[0])(solution[None])
    torch.testing.assert_close(gradient + 0.1 * solution, torch.zeros_like(gradient), atol=1e-12, rtol=0)
    hessian = torch.func.hessian(lambda w: toy.task.loss({"weight": w[None]}, {}, batch)[0])(solution)
    torch.testing.assert_close(hessian, toy.hessian())


@pytest.mark.parametrize("weight_decay", [1e-3, 0.1, 3.0])
def test_ridge_hypergradient_equals_autograd_through_the_solution(weight_decay: float):
    toy = ridge(dtype=torch.float64)
    value = torch.tensor(weight_decay, dtype=torch.float64)
    torch.testing.assert_close(toy.hypergradient(value), grad(toy.validation_loss)(value))
    validation, _ = toy.task.loss({"weight": toy.solution(value)[None]}, {}, Batch(None, SEED, "validation"))
    torch.testing.assert_close(toy.validation_loss(value), validation)
