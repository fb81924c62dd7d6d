"""Models under μP and u-μP: as the packages mup and unit_scaling have them; configs; coordinate checks."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from laws import assert_close, assert_identical, random
from short_runs import CONFIGS, state, train
from torch import Tensor, nn
from twins import TWINS, Kit, examples, trajectory

from hyperopt_id import cli, mup, rules, trees
from hyperopt_id.build.names import SCHEMES, build_multipliers, from_config
from hyperopt_id.build.tasks import PARAMETRIZATIONS, build_task
from hyperopt_id.config import load
from hyperopt_id.config_task_checks import PARAMETRIZED
from hyperopt_id.experiment import run
from hyperopt_id.tasks import models
from hyperopt_id.tasks.models import STANDARD, UNIT_SCALED
from hyperopt_id.trees import Params

BASE, WIDTH = 4, 12
OURS: dict[str, Any] = {
    "mlp": lambda how: models.mlp([6, WIDTH, WIDTH, 3], parametrization=how),
    "cnn": lambda how: models.cnn((1, 6, 6), (WIDTH, WIDTH), 3, how),
    "transformer": lambda how: models.transformer(
        7, length=5, embedding=WIDTH, heads=2, hidden=2 * WIDTH, parametrization=how
    ),
}
RULES: dict[str, tuple[rules.UpdateRule, str, dict[str, float]]] = {  # with the class's name, and natural values
    "adam": (rules.adam(), "MuAdam", {"weight_decay": 0.01}),
    "adamw": (rules.adamw(), "MuAdamW", {"weight_decay": 0.1}),
    "sgd": (rules.sgd(), "MuSGD", {"weight_decay": 0.01, "momentum": 0.9}),
}
COMMON = {"lr": 0.02, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def seeded(make: Any, *arguments: Any) -> Any:
    torch.manual_seed(0)
    return make(*arguments)


def our_trajectory(model: nn.Module, rule: rules.UpdateRule, natural: dict[str, float], name: str) -> list[Params]:
    """Parameters after each of 20 steps of the rule, on the batches that `twins.trajectory` takes."""
    params = {k: p.detach().clone() for k, p in model.named_parameters()}
    hyper = {h: dict.fromkeys(params, torch.tensor(natural[h])) for h in rule.hyperparameters}
    kept, found = rule.init(params), []
    for step in range(20):
        inputs, targets = examples(name, step)
        params = trees.variables(params)
        outputs = torch.func.functional_call(model, params, (inputs,)).flatten(0, -2)
        slopes = torch.autograd.grad(F.cross_entropy(outputs, targets), list(params.values()))
        slopes, params = dict(zip(params, slopes)), trees.detach(params)
        params, kept = rule.update(params, slopes, kept, hyper)
        found.append(params)
    return found


def assert_same_trajectory(found: list[Params], twin: nn.Module, expected: list[Tensor]) -> None:
    """But for biases of keys: their derivative is 0, since attention does not see them, and what Adam makes of rounding
    is any direction."""
    names = [name for name, _ in twin.named_parameters()]
    rows = [torch.cat([params[name].flatten() for name in names]) for params in found]
    seen = {name: torch.ones_like(value, dtype=torch.bool) for name, value in found[0].items()}
    for name in (name for name in names if name.endswith("qkv.bias")):
        seen[name][WIDTH : 2 * WIDTH] = False
    these = torch.cat([seen[name].flatten() for name in names])
    assert_close([row[these] for row in rows], [row[these] for row in expected], 1e-10)


def scheme_of(model: nn.Module, scheme: mup.Scheme, base: int = BASE) -> mup.Multipliers:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    roles: Any = model.roles
    return mup.multipliers(mup.tags(shapes, roles, base), scheme)


# Standard


@pytest.mark.parametrize("name", OURS)
def test_the_standard_parametrization_is_that_of_torch_s_layers(name):
    ours = dict(seeded(OURS[name], STANDARD).named_parameters())
    theirs = dict(seeded(TWINS[name], Kit(nn.Linear, nn.Linear), WIDTH).named_parameters())
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert_identical(ours[key].detach(), theirs[key].detach())


# μP


def package_twin(name: str, **options: Any) -> nn.Module:
    package = pytest.importorskip("mup", reason="the oracle is the package mup")
    kit = Kit(nn.Linear, lambda n, outputs: package.MuReadout(n, outputs, **options))
    twin = seeded(TWINS[name], kit, WIDTH)
    width = dict.fromkeys((WIDTH, 2 * WIDTH, 3 * WIDTH), BASE)  # one base for all, as one number says
    base = {k: [width.get(size, size) for size in p.shape] for k, p in twin.named_parameters()}
    return package.set_base_shapes(twin, base)


@pytest.mark.parametrize("name", OURS)
def test_weights_start_as_the_package_mup_rescales_them(name):
    ours = dict(seeded(OURS[name], models.mup(BASE)).named_parameters())
    theirs = dict(package_twin(name, readout_zero_init=True).named_parameters())
    for key in theirs:
        assert_close(ours[key].detach(), theirs[key].detach(), 1e-15)


@pytest.mark.parametrize("zero", [True, False], ids=["outputs of zero", "random outputs"])
@pytest.mark.parametrize("case", RULES)
@pytest.mark.parametrize("name", OURS)
def test_models_and_scaled_rules_train_as_those_of_the_package_mup(name, case, zero):
    package = pytest.importorskip("mup", reason="the oracle is the package mup")
    rule, method, natural = RULES[case]
    twin, ours = package_twin(name, readout_zero_init=zero), OURS[name](models.mup(BASE))
    ours.load_state_dict(twin.state_dict())
    natural = COMMON | natural
    options = {"betas": (0.9, 0.99)} if case != "sgd" else {"momentum": natural["momentum"]}
    optimizer = getattr(package, method)(
        twin.parameters(), lr=natural["lr"], weight_decay=natural["weight_decay"], **options
    )
    scaled = mup.scaled(rule, scheme_of(ours, mup.sgd if case == "sgd" else mup.adam))
    assert_same_trajectory(our_trajectory(ours, scaled, natural, name), twin, trajectory(twin, optimizer, name))


def test_at_the_base_width_only_the_output_and_attention_are_not_standard():
    for name in ("mlp", "cnn"):
        model, plain = seeded(OURS[name], models.mup(WIDTH)), seeded(OURS[name], STANDARD)
        inputs = examples(name, 0)[0]
        assert not model(inputs).any()
        last = [k for k in plain.state_dict() if k.startswith(("output", "layers.2"))]
        model.load_state_dict({k: plain.state_dict()[k] for k in last}, strict=False)
        assert_close(model(inputs), plain(inputs), 1e-14)
        assert set(scheme_of(model, mup.adam, WIDTH)["lr"].values()) == {1.0}


# u-μP


class UnitLinear(nn.Module):
    """A layer of the package, its bias behind the multiplier."""

    def __init__(self, layer: nn.Module, outputs: int):
        super().__init__()
        unit = sys.modules["unit_scaling"]
        self.weight, self.bias = layer.weight, unit.Parameter(torch.zeros(outputs), "bias")
        self.product = [layer]  # no part of this module: its weight is

    def forward(self, inputs: Tensor) -> Tensor:
        return self.product[0](inputs) + self.bias


def unit_twin(name: str) -> nn.Module:
    """The twin of layers of the package unit_scaling; parameters outside of them get the type that they are of."""
    unit = pytest.importorskip("unit_scaling", reason="the oracle is the package unit_scaling")

    def linear(n: int, outputs: int) -> nn.Module:
        return UnitLinear(unit.Linear(n, outputs), outputs)

    def output(n: int, outputs: int) -> nn.Module:
        return UnitLinear(unit.LinearReadout(n, outputs), outputs)

    twin = TWINS[name](Kit(linear, output, unit.Embedding), WIDTH)
    for key, parameter in twin.named_parameters():
        if not hasattr(parameter, "mup_type"):
            kind = "weight" if key == "positions" else "bias" if key.endswith("bias") else "norm"
            parameter.mup_type, parameter.mup_scaling_depth = kind, None
    return twin


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_models_and_scaled_rules_train_as_those_of_the_package_unit_scaling(name):
    """Its backward pass scales gradients by constants, which Adam does not see (without eps). Its decay of a step does
    not know the learning rate, ours is a share of it, as that is learned."""
    twin, ours = unit_twin(name), seeded(OURS[name], UNIT_SCALED)
    twin.load_state_dict(ours.state_dict())
    natural = COMMON | {"eps": 1e-30, "weight_decay": 0.1}
    unit = sys.modules["unit_scaling"]
    decay = natural["lr"] * natural["weight_decay"]
    optimizer = unit.optim.AdamW(twin.parameters(), lr=natural["lr"], betas=(0.9, 0.99), eps=1e-30, weight_decay=decay)
    scaled = mup.scaled(rules.adamw(), scheme_of(ours, mup.unit_adam, 1))
    assert_same_trajectory(our_trajectory(ours, scaled, natural, name), twin, trajectory(twin, optimizer, name))


def test_unit_scaled_activations_are_of_size_one_at_any_width():
    for width in (64, 1024):
        torch.manual_seed(0)
        model: Any = models.mlp([64, width, width, 10], "tanh", parametrization=UNIT_SCALED)
        inputs = random(200, 64, seed=1)
        hidden = model.layers[0](inputs.t())
        assert hidden.std().item() == pytest.approx(1.0, rel=0.1)
        assert model.layers[1](hidden).std().item() == pytest.approx(1.0, rel=0.15)
        assert model(inputs).std().item() < 1.5 * width**-0.5
        assert not any(p.any() for k, p in model.named_parameters() if k.endswith("bias"))


def test_convolutions_of_images_cannot_be_unit_scaled():
    with pytest.raises(ValueError, match=r"convolutions\.0\.weight: Conv2d has no multiplier"):
        models.cnn((1, 6, 6), (4,), 3, UNIT_SCALED)


# Configs

MUP = ("parametrization=mup", "base_width=16")


def config(*overrides: str, data: str = "digits", algorithm: str = "Ours_LR") -> Any:
    return load([CONFIGS / f"{data}.yaml", CONFIGS / f"{algorithm}.yaml"], overrides)


def test_every_combination_that_configs_allow_has_its_parts():
    pairs = {(name, rule) for name, (_, taken) in PARAMETRIZED.items() for rule in taken}
    assert pairs == set(SCHEMES)
    assert set(PARAMETRIZED) == set(PARAMETRIZATIONS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("parametrization=muP",),
            "given 'muP' (text); allowed: standard, mup, umup; did you mean mup",
        ),
        (("parametrization=mup",), "base_width: missing; mup needs the width at which"),
        (("base_width=8",), "base_width: only parametrization = mup has it, but it is standard; set it to null"),
        ((*MUP, "base_width=0"), "base_width: given 0; allowed: 1 or more"),
        (
            (*MUP, "task.model.name=resnet18"),
            "which task.model.name = resnet18 does not have; take standard, or ",
        ),
        ((*MUP, "task.model.sizes=[64, 10]"), "task.model.sizes = [64, 10] has no hidden layer; insert a width"),
        (
            ("parametrization=umup",),
            "given umup, which inner.rule = sgd does not have; take standard or mup, or one of the rules adam, adamw",
        ),
        (
            ("parametrization=umup", "inner.rule=adamw", "task.model.name=cnn"),
            "which task.model.name = cnn does not have; take standard or mup, or one of the models mlp, transformer",
        ),
    ],
)
def test_combinations_that_cannot_be(overrides, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        config(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_toys_have_no_width():
    with pytest.raises(ValueError, match=r"which task\.name = toy_ridge does not have"):
        config(*MUP, data="toy_ridge")


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
def test_a_config_s_factors_are_of_its_model_and_rule(model):
    for rule, scheme in (("sgd", mup.sgd), ("adamw", mup.adam)):
        found = config(*MUP, f"inner.rule={rule}", f"task.model.name={model}")
        task = build_task(found, torch.device("cpu"))
        shapes = {k: tuple(p.shape) for k, p in task.init(0)[0].items()}
        assert build_multipliers(found, task) == mup.multipliers(mup.tags(shapes, task.roles, 16), scheme)
        assert build_multipliers(config(), task) == {}


@pytest.mark.parametrize("name", ["mup", "umup"])
@pytest.mark.parametrize("lift", ["loop", "vmap"])
def test_runs_under_a_parametrization_learn(name, lift):
    base = ["base_width=16"] if name == "mup" else []
    short = ["inner={rule: adamw, updates: 30, compile: off}", f"population={{runs: 2, sample: false, lift: {lift}}}"]
    model = "task.model.sizes=[64, 32, 32, 10]"
    found = config(f"parametrization={name}", *base, *short, model, "space.lr.init=1e-2", "space.momentum=null")
    parts, plan = from_config(found)
    summary = run(parts, plan)
    assert (summary["final"]["loss/validation"] < 1.5).all()
    assert not summary["diverged"].any()
    assert all(rate != 1e-2 for rate in summary["hyper"]["lr"])


ROLES = models.mlp([64, 8, 8, 10]).roles


def _at(shapes: dict[str, tuple[int, ...]], width: int) -> dict[str, tuple[int, ...]]:
    return {k: tuple(width if size == 32 else size for size in shape) for k, shape in shapes.items()}


def test_a_replay_has_the_factors_of_the_model_that_it_trains(tmp_path: Path):
    """Of the same model it repeats the run; of a wider one it takes the factors of that."""
    options = [*MUP, "dtype=float64", "space.lr.tune=[global]", "hypergradient={engine: neumann, terms: 2}"]
    directory = train(tmp_path / "run", "task.model.sizes=[64, 8, 8, 10]", *options)
    found = {}
    for width in (8, 32):
        place = ["-n", str(width), "-s", f"task.model.sizes=[64, {width}, {width}, 10]"]
        assert cli.main(["replay", str(directory), *place]) == 0
        found[width] = state(tmp_path / str(width))["run"]["z"]
    assert_close(found[8]["params"], state(directory)["run"]["z"]["params"], 1e-10)
    rates = {width: z["state"]["groups"]["lr"][0] for width, z in found.items()}  # a group for each parameter
    shapes = {k: tuple(p.shape[1:]) for k, p in found[32]["params"].items()}
    factors = {w: mup.multipliers(mup.tags(_at(shapes, w), ROLES, 16), mup.sgd)["lr"].values() for w in rates}
    ratio = [wide / narrow for narrow, wide in zip(*factors.values())]
    assert len(set(ratio)) > 1
    assert_close(rates[32] / rates[8], torch.tensor(ratio), 1e-12)


# Coordinates


@pytest.fixture(scope="module")
def check() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts" / "coordinate_check.py"
    spec = importlib.util.spec_from_file_location("coordinate_check", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coordinate_check"] = module
    spec.loader.exec_module(module)
    return module


SLOPES = {"mlp": (64, 256, 1024), "cnn": (64, 128, 256), "transformer": (64, 128, 256)}


@pytest.mark.parametrize("name", SLOPES)
def test_activations_grow_with_the_width_under_the_standard_parametrization_alone(check, name):
    torch.set_default_dtype(torch.float32)
    for how in check.parametrized_by(name):
        slopes = check.measure(name, how, SLOPES[name], seeds=2).slopes()
        if how == "standard":
            assert max(slopes.values()) > 0.7, slopes
        else:
            *hidden, output = slopes.values()
            assert max(map(abs, hidden)) < 0.2, (how, slopes)
            assert abs(output) < 0.3, (how, slopes)


def test_the_figure_of_a_coordinate_check(check, tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    pytest.importorskip("matplotlib", reason="figures need it")
    assert check.main(["--models", "mlp", "--widths", "64", "96", "--seeds", "1", "--out", str(tmp_path)]) == 0
    assert {file.suffix for file in tmp_path.iterdir()} == {".pdf", ".png"}
    assert capsys.readouterr().out.startswith("mlp, standard: slopes after 5 steps: layer 1 ")
