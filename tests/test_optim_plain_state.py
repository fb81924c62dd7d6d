"""Whatever an optimizer keeps of the past, wherever it keeps it, is there after a hyper-update and after a checkpoint:
training in a run is the plain loop to the last bit. What cannot be stored is refused by name."""

import io
import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from laws import assert_identical
from test_optim_plain import quartic, rate
from torch import Tensor, nn

from hyperopt_id import Dataset, Plan, population, supervised, trees
from hyperopt_id.experiment import Parts, hyper_update
from hyperopt_id.experiment_state import state_check
from hyperopt_id.optim.packed import pack, unpack
from hyperopt_id.optim.plain import plain_parts
from hyperopt_id.optim.plain_check import difference

pytestmark = pytest.mark.usefixtures("double")

SGD = torch.optim.SGD


class Base(torch.optim.Optimizer):
    """Gradient descent, times what `factor` makes of what is kept."""

    def __init__(self, params: Any, lr: float = 0.05, **more: Any) -> None:
        super().__init__(params, {"lr": lr, **more})
        self.begin()

    def begin(self) -> None: ...

    def factor(self, weight: Tensor, state: dict[str, Any]) -> Any:
        return 1.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                weight.sub_(group["lr"] * self.factor(weight, self.state[weight]) * weight.grad)


class Global(Base):
    def factor(self, weight, state):
        whole = self.state.setdefault("all", {"norm": 0.0})  # type: ignore[call-overload]
        whole["norm"] = 0.9 * whole["norm"] + weight.grad.norm().item()
        return 1.0 / (1.0 + whole["norm"])


class Counter(Base):
    def begin(self):
        self.count, self.flags = 0, {"odd": False}

    def factor(self, weight, state):
        self.count += 1
        self.flags["odd"] = self.count % 2 == 1
        return 1.0 / self.count if self.flags["odd"] else 0.5


class Histories(Base):
    """Containers of every kind."""

    def begin(self):
        self.recent, self.seen = deque([0.0], maxlen=3), {0}

    def factor(self, weight, state):
        state.setdefault("history", []).append(weight.grad.norm())
        state["pair"] = (len(state["history"]), {"nested": [weight.grad.clone(), None, "text", torch.float64]})
        self.recent.append(weight.grad.sum().item())
        self.seen.add(len(state["history"]))
        return 0.1 + abs(sum(self.recent)) / (len(self.seen) + float(sum(state["history"])))


class Late(Base):
    """Slow weights from the 6th step on."""

    def factor(self, weight, state):
        state["t"] = state.get("t", 0) + 1
        if state["t"] == 6:
            state["slow"] = weight.clone()
        if state["t"] > 6 and state["t"] % 3 == 0:
            weight.copy_(state["slow"].lerp_(weight, 0.5))
        return 1.0


class Average:
    """Part of an optimizer, of a class of its own, that is made when it is first needed."""

    def __init__(self, like: Tensor) -> None:
        self.value, self.count = torch.zeros_like(like), 0

    def update(self, new: Tensor) -> Tensor:
        self.count += 1
        self.value.lerp_(new, 1.0 / self.count)
        return self.value


class OwnObjects(Base):
    def factor(self, weight, state):
        if "average" not in state:
            state["average"] = Average(weight)
        return 1.0 / (1.0 + state["average"].update(weight.grad).abs())


class Shared(Base):
    """Two places that hold one tensor, which only one of them changes."""

    def factor(self, weight, state):
        if not state:
            state["one"] = state["other"] = torch.zeros_like(weight)
        state["one"].add_(weight.grad.abs())
        return 1.0 / (1.0 + state["other"])


class Noise(Base):
    """A random generator of its own."""

    def begin(self):
        self.generator = torch.Generator().manual_seed(5)

    def factor(self, weight, state):
        return torch.rand((), generator=self.generator, dtype=weight.dtype)


class Wrapper:
    """No optimizer by class; the slow weights of one that it wraps."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups, self.state, self.steps = inner, inner.param_groups, inner.state, 0
        self.slow = [weight.detach().clone() for group in self.param_groups for weight in group["params"]]

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        self.inner.step()
        self.steps += 1
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for slow, weight in zip(self.slow, weights) if self.steps % 3 == 0 else ():
            weight.copy_(slow.lerp_(weight, 0.5))


def second_group(weights):
    optimizer = SGD([{"params": weights[:2]}, {"params": weights[2:], "scale": 1.0}], lr=0.1)

    def hook(optimizer, *_):
        optimizer.param_groups[1]["scale"] *= 0.8
        optimizer.param_groups[1]["lr"] = 0.1 * optimizer.param_groups[1]["scale"]

    optimizer.register_step_pre_hook(hook)
    return optimizer


def changing_betas(weights):
    optimizer = torch.optim.Adam(weights, lr=1e-2)

    def hook(optimizer, *_):
        (group,) = optimizer.param_groups
        group["betas"] = (0.95 * group["betas"][0], group["betas"][1])

    optimizer.register_step_pre_hook(hook)
    return optimizer


def tensor_rate(weights):
    optimizer = SGD(weights, lr=torch.tensor(0.1))

    def hook(optimizer, *_):
        optimizer.param_groups[0]["lr"].mul_(0.9)

    optimizer.register_step_pre_hook(hook)
    return optimizer


def scheduler_in_a_hook(weights):
    optimizer = SGD(weights, lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.5)
    optimizer.register_step_post_hook(lambda *_: scheduler.step())
    return optimizer


def variables_of_a_hook(weights):
    optimizer, count, past = SGD(weights, lr=0.1), 0, {"rates": [0.1]}

    def hook(optimizer, *_):
        nonlocal count
        count += 1
        past["rates"].append(0.1 / count)
        optimizer.param_groups[0]["lr"] = sum(past["rates"][-3:])

    optimizer.register_step_pre_hook(hook)
    return optimizer


class Warmup:
    def __init__(self) -> None:
        self.count = 0

    def step(self, optimizer: Any, *_: Any) -> None:
        self.count += 1
        optimizer.param_groups[0]["lr"] = 0.01 * self.count

    __call__ = step


def method_as_a_hook(weights):
    optimizer = SGD(weights, lr=0.1)
    optimizer.register_step_pre_hook(Warmup().step)
    return optimizer


def object_as_a_hook(weights):
    optimizer = SGD(weights, lr=0.1)
    optimizer.register_step_pre_hook(Warmup())
    return optimizer


KEEPERS: dict[str, Callable[[list[Tensor]], Any]] = {
    "what belongs to no parameter": Global,
    "attributes": Counter,
    "containers": Histories,
    "entries that appear later": Late,
    "objects that appear later": OwnObjects,
    "one tensor in two places": Shared,
    "a generator": Noise,
    "another optimizer": lambda weights: Wrapper(torch.optim.Adam(weights, lr=0.02)),
    "a setting of the second group": second_group,
    "a tuple that changes": changing_betas,
    "a rate that is a tensor": tensor_rate,
    "a scheduler": scheduler_in_a_hook,
    "variables of a hook": variables_of_a_hook,
    "an object whose method is a hook": method_as_a_hook,
    "an object that is a hook": object_as_a_hook,
    "steps with a closure": lambda weights: torch.optim.LBFGS(weights, lr=0.2, max_iter=4, history_size=5),
    "a line search": lambda weights: torch.optim.LBFGS(weights, max_iter=4, line_search_fn="strong_wolfe"),
}


def data() -> Dataset:
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Dataset(inputs, inputs[:, :3].argmax(1), {"train": (0, 30), "validation": (30, 45), "test": (45, 60)})


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def task():
    return supervised(data(), net, "cross_entropy", None)


def by_name(make):
    return lambda params, taken: make(list(params.values()))


def through_a_file(parts: Parts, plan: Plan, chunks: list[population.Run], update: int) -> list[population.Run]:
    """As a checkpoint is written, read, checked, and resumed from."""
    run = population.to_plain(population.join(chunks, len(parts.seeds), parts.lift))
    file = io.BytesIO()
    torch.save({"run": run, "update": update, "best": {}, "final": {}, "seconds": {}}, file)
    check, most = state_check(parts, plan)
    assert file.tell() <= most
    file.seek(0)
    found = check(torch.load(file, weights_only=True))
    return population.split(population.from_plain(found["run"]), parts.members, parts.lift)


def train(parts: Parts, plan: Plan, stops: tuple[int, ...] = ()) -> list[population.Run]:
    chunks = population.split(parts.start(), parts.members, parts.lift)
    for update in range(plan.updates):
        chunks = [hyper_update(parts, plan, update, *each)[0] for each in zip(chunks, parts.members)]
        if update in stops:
            chunks = through_a_file(parts, plan, chunks, update + 1)
    return chunks


def by_hand(make, seed: int, steps: int) -> dict[str, Tensor]:
    """The plain loop on a live module; `closure` for what demands one."""
    model, rows = net(), data()
    model.load_state_dict({k: v for part in task().init(seed) for k, v in part.items()})
    optimizer = make(list(model.parameters()))

    def closure():
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(rows.inputs[:30]), rows.targets[:30])
            loss.backward()
        return loss

    for _ in range(steps):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize("name", KEEPERS)
def test_it_is_the_plain_loop_to_the_last_bit_also_after_checkpoints(name):
    """Also statistics of BatchNorm, which count every call of a closure, and with company."""
    parts = plain_parts(task(), by_name(KEEPERS[name]), [7, 2], lambda state: {})
    plan = Plan(updates=4, steps_per_update=5, objective="training")
    for run, seed in zip(train(parts, plan, stops=(0, 2)), (7, 2)):
        assert_identical({**run.z.params, **run.z.buffers}, by_hand(KEEPERS[name], seed, 20))


COUNT = itertools.count(1)


class Elsewhere(Base):
    """Remembers in the module, and asks how often it has been asked."""

    def factor(self, weight, state):
        return 1.0 / next(COUNT)


class Views(Base):
    """Momentum of all weights in one buffer, of which those of single ones are views."""

    def begin(self):
        weights = self.param_groups[0]["params"]
        self.flat = torch.zeros(sum(weight.numel() for weight in weights))
        self.parts = self.flat.split([weight.numel() for weight in weights])

    def factor(self, weight, state):
        self.flat.add_(1.0)
        return 1.0 / (1.0 + sum(part.sum() for part in self.parts))


class Iterators(Base):
    def factor(self, weight, state):
        return 1.0 / next(state.setdefault("count", itertools.count(1)))


class Graphs(Base):
    def factor(self, weight, state):
        with torch.enable_grad():
            state["loss"] = weight.square().sum()
        return 1.0


class Addresses(Base):
    """Keeps by the address of a parameter."""

    def begin(self):
        self.counts = {}

    def factor(self, weight, state):
        self.counts[id(weight)] = self.counts.get(id(weight), 0) + 1
        return 1.0 / self.counts[id(weight)]


class Fixed(Base):
    """Has an entry for each address from the start, and looks for no other."""

    def begin(self):
        self.rates = {id(weight): 1.0 for group in self.param_groups for weight in group["params"]}

    def factor(self, weight, state):
        return self.rates[id(weight)]


class Random(Base):
    def factor(self, weight, state):
        return torch.rand(())


class LateRandom(Base):
    def factor(self, weight, state):
        state["t"] = state.get("t", 0) + 1
        return torch.rand(()) if state["t"] > 25 else 1.0


def not_a_step(weights):
    class Broken(Base):
        def step(self, closure=None):
            raise RuntimeError("needs a GPU\nand more")

    return Broken(weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Elsewhere, r"Elsewhere cannot be stored with a run, for restored, it takes another step number 1"),
        (Views, r"Views cannot be stored with a run, for restored, it takes another step"),
        (
            Iterators,
            r"Iterators cannot be stored with a run, for state\[\.\.\.\]\[count\] is of a kind that a checkpoint",
        ),
        (Graphs, r"Graphs cannot be stored with a run, for state\[0.weight\]\['loss'\] is part of an autograd graph"),
        (Addresses, r"Addresses cannot be stored with a run, for"),
        (Fixed, r"Fixed cannot be stored with a run, for restored, its step raises KeyError"),
        (Random, r"Random draws from the global random generators, so its steps could not be repeated"),
        (not_a_step, r"Broken takes no step, with and without a closure: needs a GPU$"),
        (torch.optim.SparseAdam, r"SparseAdam takes no step, with and without a closure: SparseAdam does not support"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        plain_parts(task(), by_name(make), [0], lambda state: {})
    assert "\n" not in str(raised.value)


def test_random_numbers_that_are_drawn_later_end_the_run():
    parts = plain_parts(task(), by_name(LateRandom), [0], lambda state: {})
    with pytest.raises(ValueError, match="LateRandom draws from the global random generators"):
        train(parts, Plan(6, 5))


def test_the_trial_leaves_random_numbers_alone():
    before = torch.get_rng_state()
    plain_parts(task(), by_name(torch.optim.Adam), [0], lambda state: {})
    assert torch.equal(before, torch.get_rng_state())


def test_a_member_that_diverges_keeps_what_its_optimizer_has_kept_until_then():
    """Others have entries by then that it does not have."""
    plan = Plan(4, 5, objective="training")
    parts = plain_parts(quartic(), lambda params, taken: Late(params.values(), lr=0.05), [1, 1000, 2], rate)
    whole = population.to_plain(trees.stack(train(parts, plan, stops=(1,))))
    assert (whole["diverged_at"] >= 0).tolist() == [False, True, False]
    assert whole["z"]["state"]["step"].tolist() == [20, 0, 20]
    for member, seed in ((0, 1), (2, 2)):
        alone = plain_parts(quartic(), lambda params, taken: Late(params.values(), lr=0.05), [seed], rate)
        (run,) = train(alone, plan)
        found = whole["z"]["state"]["optimizer"]["apart"][member]
        assert difference(found, population.to_plain(run)["z"]["state"]["optimizer"]["apart"][0], "") is None


def earlier(optimizer: Any, params: dict[str, Tensor], steps: int) -> dict[str, Any]:
    """The state of one run as versions before stored it, with the axis of runs."""

    def tensor(value: Any) -> Tensor:
        return value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)

    numbers = [k for k, v in optimizer.param_groups[0].items() if isinstance(v, bool | int | float)]
    groups = {key: tensor([group[key] for group in optimizer.param_groups]) for key in numbers}
    parameters = {name: {k: tensor(v) for k, v in optimizer.state[w].items()} for name, w in params.items()}
    return trees.stack([{"step": torch.tensor(steps), "groups": groups, "parameters": parameters}])


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: SGD(weights, lr=0.1, momentum=0.9, nesterov=True),
        lambda weights: torch.optim.Adam(weights, lr=0.02, amsgrad=True),
        lambda weights: torch.optim.NAdam(weights, lr=0.02),
        lambda weights: torch.optim.Rprop(weights, lr=0.02),
    ],
)
def test_a_checkpoint_of_an_earlier_version_is_resumed(make):
    parts = plain_parts(task(), by_name(make), [7], lambda state: {})
    plan = Plan(4, 5, objective="training")
    chunks = train(parts, Plan(2, 5, objective="training"))
    params = {k: nn.Parameter(v.clone()) for k, v in task().init(7)[0].items()}
    buffers, optimizer = task().init(7)[1], make(list(params.values()))
    for batch in parts.batches("train", [7], 0, 10):
        optimizer.zero_grad()
        loss, (buffers, _) = task().loss(params, buffers, batch)
        loss.backward()
        optimizer.step()
    (chunk,) = chunks
    assert_identical(chunk.z.params, trees.detach(params))
    tree = population.to_plain(population.join(chunks, 1, parts.lift))
    tree["z"]["state"] = earlier(optimizer, params, 10)
    check, _ = state_check(parts, plan)
    found = check({"run": tree, "update": 2, "best": {}, "final": {}, "seconds": {}})
    (run,) = population.split(population.from_plain(found["run"]), parts.members, parts.lift)
    for update in (2, 3):
        run, _ = hyper_update(parts, plan, update, run, parts.members[0])
    assert_identical({**run.z.params, **run.z.buffers}, by_hand(make, 7, 20))


@pytest.mark.parametrize("damage", ["another optimizer", "shapes", "nothing", "a name", "text"])
def test_a_state_that_is_damaged_is_refused_in_one_line(damage):
    parts = plain_parts(task(), by_name(torch.optim.Adam), [7], lambda state: {})
    tree = population.to_plain(population.join(train(parts, Plan(1, 5)), 1, parts.lift))
    (own,) = tree["z"]["state"]["optimizer"]["apart"]
    whole = unpack(own)
    first = whole["attributes"]["state"]["items"][0]
    if damage == "another optimizer":
        other = plain_parts(task(), by_name(torch.optim.Adagrad), [7], lambda state: {})
        tree["z"]["state"] = population.to_plain(population.join(train(other, Plan(1, 5)), 1, "loop"))["z"]["state"]
    elif damage == "shapes":
        first[1]["exp_avg"] = torch.zeros(7)
    elif damage == "nothing":
        whole = None
    elif damage == "a name":
        first[0]["name"] = "9.weight"
    else:
        first[1]["exp_avg"] = "text"
    if damage != "another optimizer":
        own.update(pack(whole))
    check, _ = state_check(parts, Plan(4, 5))
    with pytest.raises(ValueError, match=r"^it: ") as raised:
        check({"run": tree, "update": 1, "best": {}, "final": {}, "seconds": {}})
    assert "\n" not in str(raised.value)


def test_values_to_report_are_numbers_of_groups():
    parts = plain_parts(task(), by_name(second_group), [7], lambda state: {"lr": state["groups"]["lr"]})
    (run,) = train(parts, Plan(1, 5))
    assert parts.hyper(run)["lr"].tolist() == [0.1, 0.1 * math.prod([0.8] * 5)]
