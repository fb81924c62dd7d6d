"""Every optimizer of four packages in a run is the plain loop that anybody writes, to the last bit, or is refused by
name in one line."""

import contextlib
import inspect
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperopt_id import Dataset, population, supervised
from hyperopt_id.experiment import Parts
from hyperopt_id.optim.plain import plain_parts

UPDATES, STEPS = 4, 5
SGD, OPTIMIZER = torch.optim.SGD, torch.optim.Optimizer
PACKAGES = ["torch.optim", "prodigyopt", "schedulefree", "pytorch_optimizer"]
BATCHES = 6


class Holder(nn.Module):
    """A module with these parameters, for optimizers that ask for one."""

    def __init__(self, params: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in params.items():
            self.register_parameter(name.replace(".", "_"), value)  # type: ignore[arg-type]


class Radius:
    def step(self) -> float:
        return 0.05


def tensors(params: dict[str, Tensor]) -> list[Tensor]:
    return list(params.values())


def by_dimensions(params: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Groups as Muon of `pytorch_optimizer` has them."""
    return [
        {"params": [p for p in params.values() if p.ndim == 2], "use_muon": True},
        {"params": [p for p in params.values() if p.ndim < 2], "use_muon": False},
    ]


ARGUMENTS: dict[str, Callable[[Any, dict[str, Tensor]], Any]] = {  # where weights alone will not do
    "torch.optim.LBFGS": lambda kind, w: kind(tensors(w), lr=0.1, max_iter=3),
    "torch.optim.Muon": lambda kind, w: kind([p for p in w.values() if p.ndim == 2]),
    "schedulefree.ScheduleFreeWrapper": lambda kind, w: kind(SGD(tensors(w), lr=0.1)),
    "schedulefree.ScheduleFreeWrapperReference": lambda kind, w: kind(SGD(tensors(w), lr=0.1)),
    "pytorch_optimizer.LBFGS": lambda kind, w: kind(tensors(w), lr=0.1, max_iter=3),
    "pytorch_optimizer.BSAM": lambda kind, w: kind(tensors(w), num_data=30),
    "pytorch_optimizer.GSAM": lambda kind, w: kind(tensors(w), SGD(tensors(w), lr=0.1), Holder(w), Radius()),
    "pytorch_optimizer.SaRA": lambda kind, w: kind(tensors(w), lr=0.1, threshold=0.2),
    "pytorch_optimizer.WSAM": lambda kind, w: kind(Holder(w), tensors(w), SGD, lr=0.1),
    "pytorch_optimizer.Ranger21": lambda kind, w: kind(tensors(w), num_iterations=20),
    "pytorch_optimizer.PCGrad": lambda kind, w: kind(SGD(tensors(w), lr=0.1)),
    "pytorch_optimizer.SafeFP16Optimizer": lambda kind, w: kind(SGD(tensors(w), lr=0.1)),
    "pytorch_optimizer.SpectralSphere": lambda kind, w: kind([p for p in w.values() if p.ndim == 2]),
    "pytorch_optimizer.FAdam": lambda kind, w: kind(tensors(w), momentum_dtype=torch.float64, fim_dtype=torch.float64),
    **{
        f"pytorch_optimizer.{name}": lambda kind, w: kind(tensors(w), SGD, lr=0.1)
        for name in ("SAM", "FriendlySAM", "LookSAM")
    },
    **{
        f"pytorch_optimizer.{name}": lambda kind, w: kind(SGD(tensors(w), lr=0.1, momentum=0.9))
        for name in ("TRAC", "Lookahead", "OrthoGrad", "ScheduleFreeWrapper", "Magma")
    },
    **{
        f"pytorch_optimizer.{name}": lambda kind, w: kind(by_dimensions(w))
        for name in ("AdaGO", "AdaMuon", "DistributedMuon", "Muon", "MuonClip", "NorMuon")
    },
    **{f"pytorch_optimizer.{name}": lambda kind, w: kind(Holder(w)) for name in ("LOMO", "AdaLOMO", "AdamMini")},
}
RANDOM = "draws from the global random generators, so its steps could not be repeated"
REFUSED = {  # by name, with what is said of them
    "torch.optim.SparseAdam": "does not support dense gradients",
    "pytorch_optimizer.DeMo": "process group has not been initialized",
    "pytorch_optimizer.LOMO": "takes no step, with and without a closure: NotImplementedError",
    "pytorch_optimizer.AdaLOMO": "takes no step, with and without a closure: NotImplementedError",
    "pytorch_optimizer.GSAM": "takes no step, with and without a closure",
    "pytorch_optimizer.Magma": "takes no step, with and without a closure: expected dtype double",
    **{
        f"pytorch_optimizer.{name}": RANDOM
        for name in ("AdaHessian", "BSAM", "DASH", "Gravity", "Kron", "SPAM", "SophiaH")
    },
}
UNMADE = {"pytorch_optimizer.DistributedMuon", "pytorch_optimizer.CPUOffloadOptimizer"}  # for processes, CUDA


def classes(package: str) -> dict[str, Any]:
    """Everything that takes steps."""
    module = pytest.importorskip(package)
    return {
        f"{package}.{name}": kind
        for name, kind in sorted(vars(module).items())
        if inspect.isclass(kind) and hasattr(kind, "step") and hasattr(kind, "zero_grad") and kind is not OPTIMIZER
    }


class Net(nn.Module):
    """Its last layer has a gradient in every third step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.other = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), nn.Linear(4, 3)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, inputs: Tensor) -> Tensor:
        step = int(self.steps)
        self.steps += self.training
        return self.layers(inputs) if step % 3 else self.layers(inputs) + self.other(inputs)


def made(name: str, kind: Any, params: dict[str, Tensor]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return ARGUMENTS.get(name, lambda kind, w: kind(tensors(w)))(kind, params)


def in_a_run(make, task) -> dict[str, Tensor]:
    parts = plain_parts(task, make, [3], lambda state: {})
    run = population.split(parts.start(), parts.members, parts.lift)[0]
    for update in range(UPDATES):
        batches = parts.batches("train", [3], update * STEPS, STEPS)
        run, _ = parts.update(run, batches, batches[0], update * STEPS)
        if update == 1:
            whole = stored(parts, population.join([run], 1, parts.lift))
            run = population.split(whole, parts.members, parts.lift)[0]
    return run.z.params


def stored(parts: Parts, run: population.Run) -> population.Run:
    """As after a checkpoint has been written and read."""
    file = io.BytesIO()
    torch.save(population.to_plain(run), file)
    file.seek(0)
    return population.from_plain(parts.adopt(torch.load(file, weights_only=True)))


def by_hand(name: str, kind: Any, data: Dataset, start: dict[str, Tensor]) -> dict[str, Tensor]:
    """The plain loop, with a closure for what demands one, and as many evaluations as hyper-updates."""
    model = Net()
    model.load_state_dict(start, strict=False)
    optimizer = made(name, kind, dict(model.named_parameters()))
    demands = inspect.signature(kind.step).parameters.get("closure", None)
    demands = demands is not None and demands.default is demands.empty

    def closure() -> Tensor:
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data.inputs[:30]), data.targets[:30])
            loss.backward()
        return loss

    for step in range(UPDATES * STEPS):
        if step % STEPS == 0:
            getattr(optimizer, "train", lambda: None)()
        if demands:
            optimizer.step(closure)
        else:
            closure()
            try:
                optimizer.step()
            except Exception:
                optimizer.step(closure)
        if step % STEPS == STEPS - 1:
            getattr(optimizer, "eval", lambda: None)()
    return {key: value.detach() for key, value in model.named_parameters()}


def outcome(name: str, kind: Any, data: Dataset) -> str | None:
    """What is said where it is refused; None where the run is the plain loop."""
    task = supervised(data, Net, "cross_entropy", None)
    try:
        found = in_a_run(lambda params, taken: made(name, kind, params), task)
    except ValueError as error:
        return str(error)
    start, expected = task.init(3)[0], by_hand(name, kind, data, task.init(3)[0])
    assert any(not torch.equal(start[key], value) for key, value in expected.items()), f"{name} has not moved"
    for key, value in expected.items():
        assert torch.equal(found[key], value), f"{name}: {key} is off by {(found[key] - value).abs().max().item()}"
    return None


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("package", "batch"), [(p, b) for p in PACKAGES for b in range(BATCHES if p == "pytorch_optimizer" else 1)]
)
def test_every_optimizer_is_the_plain_loop_or_is_refused_by_name(package, batch):
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    data = Dataset(inputs, inputs[:, :3].argmax(1), {"train": (0, 30), "validation": (30, 45), "test": (45, 60)})
    found = classes(package)
    for name in sorted(found.keys() - UNMADE)[batch :: BATCHES if package == "pytorch_optimizer" else 1]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages
            said = outcome(name, found[name], data)
        if said is None or name not in REFUSED:
            assert said is None, f"{name} is refused: {said}"
            assert name not in REFUSED, f"{name} is not refused any more"
            continue
        assert said.startswith(name.rpartition(".")[2]), said
        assert REFUSED[name] in said
        assert "\n" not in said


def test_there_are_many():
    """So that nothing is left out unnoticed."""
    assert {
        package: len(classes(package)) >= least for package, least in zip(PACKAGES, (15, 1, 11, 135))
    } == dict.fromkeys(PACKAGES, True)
