"""Laws of Hessian-vector products: curvatures x losses, with and without a run axis; which one is chosen, and why."""

import pytest
import torch
import torch.nn.functional as F
from laws import BATCHES, LIFTS, assert_close, assert_identical, copied, directions, initial, loss, random
from torch.autograd.function import once_differentiable

from hyperopt_id import curvature, population, trees
from hyperopt_id.tasks.data import Dataset
from hyperopt_id.tasks.models import mlp
from hyperopt_id.tasks.task import Batch, supervised

DATA = Dataset(
    random(30, 4, seed=1), torch.arange(30) % 3, {"train": (0, 20), "validation": (20, 25), "test": (25, 30)}
)
CLASSIFIER = supervised(DATA, lambda: mlp((4, 5, 3), "tanh"), "cross_entropy", 10)


def rows(*numbers):
    return Batch(torch.tensor(numbers), torch.tensor(0), "train")


def regression(params, batch=BATCHES[0]):
    return loss(params, {}, batch)


def classification(params, batch=None):
    return CLASSIFIER.loss(params, {}, rows(*range(10)) if batch is None else batch)


def quadratic(params):
    return params["w"] @ torch.diag(torch.tensor([1.0, 2.0, 3.0]).double()) @ params["w"] / 2, ({}, {})


def linear(params):
    return params["w"].sum(), ({}, {})


LOSSES = {
    "regression": (regression, initial()),
    "classification": (classification, CLASSIFIER.init(0)[0]),
    "quadratic": (quadratic, {"w": random(3, seed=0)}),
    "linear": (linear, {"w": random(3, seed=0)}),
}
CURVATURES = {  # relative tolerance on these losses, in float64
    "exact": (curvature.exact, 1e-12),
    "one side": (curvature.finite_difference(1e-6), 1e-5),
    "two sides": (curvature.finite_difference(1e-4, sides=2), 1e-7),
}


def reference(function, params, direction):
    """The product by torch.autograd.functional.hvp, on the parameters as a tuple."""

    def of_tuple(*values):
        return function(dict(zip(params, values, strict=True)))[0]

    _, product = torch.autograd.functional.hvp(of_tuple, tuple(params.values()), tuple(direction.values()))
    return dict(zip(params, product, strict=True))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("curve", CURVATURES)
def test_product_gradient_and_loss(curve, name):
    (function, params), (compute, tolerance) = LOSSES[name], CURVATURES[curve]
    before = copied(params)
    at, product = compute(function, function, params)
    assert_close(at.value, torch.func.grad(lambda w: function(w)[0])(params), 1e-14)
    assert_close(at.loss, function(params)[0], 1e-14)
    for seed in (1, 7, 13):  # several products from one linearization
        direction = directions(params, seed)
        assert_close(product(direction), reference(function, params, direction), tolerance)
    assert_identical(params, before)
    assert not any(leaf.requires_grad for leaf in trees.leaves((at.loss, at.auxiliary)))


@pytest.mark.parametrize("curve", CURVATURES)
def test_product_with_zero_is_zero(curve):
    params = initial()
    _, product = CURVATURES[curve][0](regression, regression, params)
    assert_identical(product(trees.zeros(params)), trees.zeros(params))


@pytest.mark.parametrize("curve", CURVATURES)
def test_a_run_axis_makes_the_hessian_block_diagonal(curve):
    compute, tolerance = CURVATURES[curve]
    members = [initial(seed) for seed in (3, 33, 63)]
    scales = (1e-3, 1.0, 1e3)  # of the directions: each run has its own step
    forms = [trees.map(lambda x: s * x, directions(members[0], 9 * r)) for r, s in enumerate(scales)]  # noqa: B023
    lifted = population.lift(regression, "vmap")
    at, product = compute(lifted, lifted, trees.stack(members))
    columns = trees.unstack(product(trees.stack(forms)))
    assert at.loss.shape == (3,)
    for r, (params, direction) in enumerate(zip(members, forms, strict=True)):
        assert_close(trees.take(at.value, r), regression_gradient(params), 1e-14)
        expected = reference(regression, params, direction)
        unit = lambda tree: trees.map(lambda x: x / scales[r], tree)  # noqa: B023, E731
        assert_close(unit(columns[r]), unit(expected), tolerance)


def regression_gradient(params):
    return torch.func.grad(lambda w: regression(w)[0])(params)


@pytest.mark.parametrize(("sides", "tolerance"), [(1, 3e-3), (2, 1e-3)])
def test_finite_differences_in_float32_at_the_default_step(sides, tolerance):
    """The documented accuracy: a relative error of about 1e-3."""
    params = CLASSIFIER.init(0)[0]
    single = {k: p.float() for k, p in params.items()}
    data = Dataset(DATA.inputs.float(), DATA.targets, DATA.splits)
    task = supervised(data, lambda: mlp((4, 5, 3), "tanh"), "cross_entropy", 10)
    function = lambda w: task.loss(w, {}, rows(*range(10)))  # noqa: E731
    _, product = curvature.finite_difference(sides=sides)(function, function, single)
    for seed in (1, 11, 21):
        direction = directions(params, seed)
        exact = reference(classification, params, direction)
        found = product({k: x.float() for k, x in direction.items()})
        error = trees.norm({k: found[k].double() - exact[k] for k in exact})
        assert error < tolerance * trees.norm(exact)


@pytest.mark.parametrize("curve", CURVATURES)
@pytest.mark.parametrize("batch_size", [10, None], ids=["minibatch", "whole split"])
def test_products_on_sub_batches_are_unbiased(batch_size, curve):
    """Their mean over all equally likely sub-batches is the product on the whole batch; gradients are not thinned."""
    task = supervised(DATA, lambda: mlp((4, 5, 3), "tanh"), "cross_entropy", batch_size)
    params, buffers = task.init(0)
    compute, tolerance = CURVATURES[curve]
    direction = directions(params)
    if batch_size is None:
        batches = [Batch(None, torch.tensor(seed), "train") for seed in range(20)]  # every offset
    else:
        batches = [rows(*[(i + shift) % 10 for i in range(10)]) for shift in range(10)]
    found = []
    for batch in batches:
        thinned = task.thin(batch, 0.25)
        assert thinned.index is not None
        assert thinned.index.shape[-1] == (5 if batch_size is None else 3)
        whole, few = (lambda w, b=b: task.loss(w, buffers, b) for b in (batch, thinned))
        at, product = compute(whole, few, params)
        assert_close(at.value, torch.func.grad(lambda w: whole(w)[0])(params), 1e-12)  # noqa: B023
        found.append(product(direction))
        assert_close(found[-1], reference(few, params, direction), tolerance)
    mean = trees.map(lambda x: x.mean(0), trees.stack(found))
    exact = reference(lambda w: task.loss(w, buffers, batches[0]), params, direction)
    assert_close(mean, exact, tolerance)
    assert (found[0]["layers.0.weight"] - exact["layers.0.weight"]).abs().max() > 1e-4


def test_none_gives_the_gradient_and_no_curvature():
    at, product = curvature.none(regression, regression, initial())
    assert_identical(at.value, regression_gradient(initial()))
    assert_identical(product(at.value), trees.zeros(at.value))


@pytest.mark.parametrize("sides", [0, 3])
def test_sides_are_one_or_two(sides):
    with pytest.raises(ValueError, match=f"sides is {sides}"):
        curvature.finite_difference(sides=sides)


class Cube(torch.autograd.Function):
    """x³ whose gradient cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):  # type: ignore
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):  # type: ignore
        return 3.0 * slope * ctx.saved_tensors[0] ** 2


def cubed(params):
    return Cube.apply(params["w"]).sum(), ({}, {})  # type: ignore


def fused_attention(params):
    queries = params["w"].reshape(1, 2, 6, 8)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(queries, queries, queries).square().mean(), ({}, {})


CHOICES = {
    "mlp": (classification, CLASSIFIER.init(0)[0], "exact"),
    "custom function": (cubed, {"w": random(4, seed=1)}, "finite differences"),
    "fused attention": (fused_attention, {"w": random(96, seed=1)}, "finite differences"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choice_explains_itself(name):
    function, params, expected = CHOICES[name]
    with torch.no_grad():  # a caller's affair
        chosen, why = curvature.choose(function, params)
    assert why.startswith(expected)
    assert (chosen is curvature.exact) == (expected == "exact")
    assert "\n" not in why
    _, product = chosen(function, function, params)
    assert all(leaf.isfinite().all() for leaf in trees.leaves(product(directions(params))))


def test_the_choice_for_a_custom_function_is_right():
    params, direction = {"w": random(4, seed=1)}, {"w": random(4, seed=2)}
    chosen, _ = curvature.choose(cubed, params)
    _, product = chosen(cubed, cubed, params)
    assert_close(product(direction), {"w": 6.0 * params["w"] * direction["w"]}, 1e-2)


@pytest.mark.parametrize("how", LIFTS)
def test_the_thinned_loss_may_be_the_whole_one(how):
    params = initial() if how == "loop" else trees.stack([initial(), initial(40)])
    function = population.lift(regression, how)
    again = lambda w: function(w)  # noqa: E731 - equal, but not the same object
    once, twice = (curvature.exact(function, thin, params)[1](params) for thin in (function, again))
    assert_close(once, twice, 1e-14)


def test_the_choice_falls_back_on_the_differences_it_is_given():
    two_sided = curvature.finite_difference(1e-4, 2)
    assert curvature.choose(cubed, {"w": random(4, seed=1)}, two_sided)[0] is two_sided
