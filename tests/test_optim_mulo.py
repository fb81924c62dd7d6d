"""`MuLO` takes the steps of the rule and of the recording, whatever the tensors, by its own names and those of PyLO."""

import copy
import re
from pathlib import Path

import pytest
import torch
from laws import assert_identical
from mulo_cases import RECORDED, STEPS, TENSORS, error, recorded_theta
from mulo_training import IMPLEMENTATIONS, THETA, assert_same, network, train
from torch import nn

from hyperopt_id import mulo
from hyperopt_id.optim import MuLO, MuLO_CUDA, MuLO_naive, tag_parameters
from hyperopt_id.optim.tags import width_tag


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    return request.param


# Values


@pytest.mark.parametrize("name", TENSORS)
def test_updates_are_the_recorded_ones(name, impl):
    before = RECORDED[f"params0/{name}"]
    param = nn.Parameter(before.clone())
    optimizer = MuLO([param], recorded_theta(), impl, lr=RECORDED[f"lr_mult/{name}"].item())
    for step in range(STEPS):
        param.data.copy_(before)
        param.grad = RECORDED[f"grads/{name}"][step].clone()
        optimizer.step()
        assert error(param.detach(), RECORDED[f"params/{name}"][step], before) <= 1e-4
        before = RECORDED[f"params/{name}"][step]


@pytest.mark.parametrize("options", [{}, {"lr": 3.0, "weight_decay": 0.1}, {"step_multiplier": 0.002}], ids=str)
def test_the_trajectory_is_that_of_the_rule(options, impl):
    model = network()
    optimizer = MuLO(model.parameters(), THETA, impl, **options)
    rule = mulo.mulo(step_multiplier=options.get("step_multiplier", 0.01))
    params = {k: p.detach().clone() for k, p in model.named_parameters() if k != "unused"}
    state, values = rule.init(params), {"lr": options.get("lr", 1.0), "weight_decay": options.get("weight_decay", 0.0)}
    hyper = {name: dict.fromkeys(params, torch.tensor(x)) for name, x in values.items()}
    for step in range(5):
        train(model, optimizer, 1, step)
        slopes = {k: p.grad for k, p in model.named_parameters() if k in params}
        params, state = rule.update(params, slopes, state, hyper | {"theta": dict.fromkeys(params, THETA)})
    for name, expected in params.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].detach(), expected, rtol=1e-5, atol=1e-6)


def test_half_precision_keeps_accumulators_of_single_precision(impl):
    model, optimizer = network().bfloat16(), None
    exact = copy.deepcopy(model).float()
    optimizer = MuLO(model.parameters(), THETA, impl)
    twin = MuLO(exact.parameters(), THETA, impl)
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.float()
    optimizer.step()
    twin.step()
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        assert_identical(p, q.bfloat16())
        assert {x.dtype for x in optimizer.state[p].values()} == {torch.float32}
        assert_identical(optimizer.state[p], twin.state[q])


def test_double_precision_is_trained_by_the_rule():
    """Also where a module becomes double later, or single again."""
    model = nn.Linear(4, 5)
    optimizer = MuLO(model.parameters(), THETA)
    for convert, dtype in ((model.float, torch.float32), (model.double, torch.float64), (model.float, torch.float32)):
        for param in convert().parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
        assert {state["momentum"].dtype for state in optimizer.state.values()} == {dtype}
    assert {state["step"].item() for state in optimizer.state.values()} == {3.0}


def test_another_default_precision_does_not_matter(impl, default_dtype):
    params = [nn.Parameter(torch.full((3,), 0.5)) for _ in range(2)]
    for param, default in zip(params, (torch.float64, torch.float32), strict=True):
        default_dtype(default)
        optimizer = MuLO([param], THETA, impl, lr=0.37)
        for _ in range(2):
            param.grad = torch.ones_like(param)
            optimizer.step()
    assert_identical(*params)


def test_another_default_device_does_not_matter(impl):
    params = [nn.Parameter(torch.full((3,), 0.5)) for _ in range(2)]
    for param, device in zip(params, ("meta", "cpu"), strict=True):
        param.grad = torch.ones_like(param)
        with torch.device(device):
            MuLO([param], mulo.untrained(), impl, lr=0.37).step()
    assert_identical(*params)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.permute(3, 2, 1, 0),
        lambda x: x[:, :, ::2],
        lambda x: torch.as_strided(x, (7, 5), (20, 3)),
        lambda x: x.flatten()[3:50],
    ],
    ids=["channels last", "transposed", "with holes", "strided", "unaligned"],
)
@pytest.mark.parametrize("slope", ["like the parameter", "contiguous", "expanded"])
def test_the_order_of_memory_does_not_matter(make, slope, impl):
    storage = torch.randn(8, 6, 5, 3)
    untouched = storage.clone()
    param = nn.Parameter(make(storage))
    plain = nn.Parameter(param.detach().clone(memory_format=torch.contiguous_format))
    ours, theirs = MuLO([param], THETA, impl), MuLO([plain], THETA, "torch")
    for seed in range(3):
        gradient = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))
        if slope == "expanded":
            gradient = gradient.flatten()[0].expand(param.shape)
        param.grad = torch.empty_like(param).copy_(gradient) if slope.startswith("like") else gradient
        plain.grad = gradient.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(param, plain, rtol=1e-5, atol=1e-6)
    make(untouched).copy_(param.detach())
    assert_identical(storage, untouched)  # what is not the parameter has not changed


def test_a_module_may_be_laid_out_anew(impl):
    model = network()
    other = copy.deepcopy(model)
    ours, theirs = (MuLO(m.parameters(), THETA, impl) for m in (model, other))
    for step in range(4):
        train(model, ours, 1, step)
        train(other, theirs, 1, step)
        model.to(memory_format=torch.channels_last if step % 2 == 0 else torch.contiguous_format)
    assert_same(model, other, 1e-6)


# Names, parametrizations


def test_names_of_pylo(tmp_path):
    param, file = nn.Parameter(torch.randn(3)), tmp_path / "theta.pt"
    torch.save(THETA, file)
    for given in ({"hf_key": THETA}, {"hf_key": str(file)}, {"load_from_file": str(file)}):
        optimizer = MuLO_naive([param], lr=2.0, step_mult=0.001, **given)
        (group,) = optimizer.param_groups
        assert (optimizer.impl, group["lr"], group["step_multiplier"]) == ("torch", 2.0, 0.001)
        assert_identical(group["theta"], THETA)
    param.grad, loss = torch.ones(3), torch.tensor(0.7)
    assert optimizer.step(loss) is loss
    assert optimizer.state[param]["step"] == 1.0
    with pytest.raises(ValueError, match="MuLO: impl='cuda'"):
        MuLO_CUDA([param], hf_key=THETA).step()


class Dimension:
    """As the package mup has it."""

    def __init__(self, dim, infinite):
        self.dim, self.infinite = dim, infinite

    def isinf(self):
        return self.infinite

    def width_mult(self):
        return self.dim / 8


@pytest.mark.parametrize(
    ("growing", "expected"), [((True, True), 1 / 20), ((True, False), 1.0), ((False, True), 1.0), ((False, False), 1.0)]
)
def test_hidden_matrices_divide_the_learning_rate_by_their_fan_in(growing, expected, impl):
    """Whatever the base width; weight decay, as under every parametrization, is that of the learning rate."""
    values = torch.randn(10, 20)
    tagged, plain, other = (nn.Parameter(values.clone()) for _ in range(3))
    tagged.infshape = other.infshape = tuple(Dimension(*each) for each in zip(values.shape, growing))
    optimizers = {
        tagged: MuLO([tagged], THETA, impl, weight_decay=0.1),
        plain: MuLO([plain], THETA, impl, lr=expected, weight_decay=0.1 / expected),
        other: MuLO([other], THETA, impl, weight_decay=0.1, parametrization="standard"),
    }
    for param, optimizer in optimizers.items():
        param.grad = 0.1 * values.flip(0)
        optimizer.step()
    assert_identical(tagged, plain)
    assert torch.equal(tagged, other) == (expected == 1.0)


def test_a_model_prepared_by_the_package_mup(impl):
    mup = pytest.importorskip("mup", reason="the package `mup` is not installed (extra: test)")

    def make(width):
        return nn.Sequential(nn.Linear(6, width), nn.Linear(width, width), mup.MuReadout(width, 3))

    model = make(32)
    mup.set_base_shapes(model, make(1), delta=make(2))
    optimizer = MuLO(model.parameters(), THETA, impl, parametrization="mup")
    assert list(optimizer.factors.values()) == [1.0, 1.0, 1 / 32, 1.0, 1.0, 1.0]


def test_a_model_prepared_here():
    model = nn.Sequential(nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 3))
    tag_parameters(model, nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 3)))
    assert list(MuLO(model.parameters(), THETA).factors.values()) == [1.0, 1.0, 1 / 32, 1.0, 1.0, 1.0]


def stack(width: int, readout: type[nn.Module] = nn.Linear) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.Linear(width, width), readout(width, 3))


@pytest.mark.parametrize("width", [3, 4, 5, 7, 8, 9])
@pytest.mark.parametrize("parametrization", ["auto", "mup"])
def test_with_a_delta_model_the_base_width_is_a_width_like_any_other(width, parametrization):
    """The oracle is `infshape` of the package mup: base 4, delta 8, and models smaller, equal, and larger."""
    mup = pytest.importorskip("mup", reason="the package `mup` is not installed (extra: test)")
    theirs = stack(width, mup.MuReadout)
    mup.set_base_shapes(theirs, stack(4, mup.MuReadout), delta=stack(8, mup.MuReadout))
    ours = tag_parameters(stack(width), stack(4), delta=stack(8))
    for model in (ours, theirs):
        optimizer = MuLO(model.parameters(), THETA, parametrization=parametrization)
        assert list(optimizer.factors.values()) == [1.0, 1.0, 1 / width, 1.0, 1.0, 1.0]
    for tagged, package in zip(ours.parameters(), theirs.parameters()):
        tag = width_tag(tagged)
        assert tag is not None
        assert tag.widths == tuple(d.width_mult() if d.isinf() else None for d in package.infshape)


@pytest.mark.parametrize("kind", ["package", "here"])
def test_where_no_dimension_grows_it_says_so(kind, caplog):
    model = stack(4)
    if kind == "here":
        tag_parameters(model, stack(4))
    else:
        package = pytest.importorskip("mup", reason="the package `mup` is not installed (extra: test)")
        package.set_base_shapes(model, stack(4))
    with pytest.raises(ValueError, match=r"no dimension of any parameter grows with the width.*delta=wide") as raised:
        MuLO(model.parameters(), THETA, parametrization="mup")
    assert "\n" not in str(raised.value)
    assert not caplog.text
    assert set(MuLO(model.parameters(), THETA).factors.values()) == {1.0}
    assert "no dimension of any parameter grows" in caplog.text
    caplog.clear()
    MuLO(model.parameters(), THETA, parametrization="standard")
    assert not caplog.text


def test_the_code_of_its_page(caplog):
    page = (Path(__file__).parents[1] / "docs" / "learned_optimizer.md").read_text()
    scope, counts, rates = {}, [], []
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "learned_optimizer.md", "exec"), scope)
        counts.append({state["step"].item() for state in scope["optimizer"].state.values()})
        rates.append(list(scope["optimizer"].factors.values()))
    assert counts == [{10.0}, set()]
    assert rates == [[1.0] * 4, [1.0, 1.0, 1 / 256, 1.0, 1.0, 1.0]]
    assert "untrained" in caplog.text
