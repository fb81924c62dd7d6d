"""What tests of the learned optimizer share: its recording, random weights of its network, tensors, and steps of the
rule and of the kernel from one state."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hyperopt_id import mulo
from hyperopt_id.kernels.mulo import mulo_step
from hyperopt_id.optim import mulo_steps

with np.load(Path(__file__).parent / "golden" / "mulo_jax.npz") as _recording:
    RECORDED = {name: torch.from_numpy(_recording[name]) for name in _recording.files}
TENSORS = [name.removeprefix("params0/") for name in RECORDED if name.startswith("params0/")]
STEPS = 12
HALF = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}  # the distance of neighboring numbers, relative
RECORDED_NAMES = {"momentum": "momentum_decays", "square": "rms_decays", "factored": "adafactor_decays"}


class Case(NamedTuple):
    """One tensor, its gradient, accumulators from steps before, and (learning rate, weight decay)."""

    param: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    rate: tuple[float, float]


def recorded_theta() -> Tensor:
    names = {part: RECORDED_NAMES.get(part, part) for part in mulo.LAYOUT}
    return mulo.pack(mulo.Theta(**{part: RECORDED[f"theta/{name}"] for part, name in names.items()}))


def random_theta(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """θ none of whose parts is zero."""
    generator = torch.Generator().manual_seed(seed)
    parts = mulo.unpack(mulo.untrained(seed))
    scales = {name: 0.0 if name.startswith("w") else 0.05 if name in mulo.DECAYS else 0.3 for name in mulo.LAYOUT}
    noise = (s * torch.randn(x.shape, generator=generator) for s, x in zip(scales.values(), parts, strict=True))
    return mulo.pack(mulo.Theta(*map(torch.add, parts, noise))).to(dtype)


def case(
    param: Tensor,
    seed: int = 0,
    gradient_dtype: torch.dtype | None = None,
    steps: int = 2,
    decades: float = 1.0,
) -> Case:
    """A tensor's place and size in memory, with random numbers, after some steps of gradients. Every axis has scales of
    its own, over so many decades, so that the statistics of rows and columns all differ."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.promote_types(param.dtype, torch.float32)

    def random() -> Tensor:
        found = torch.randn(param.shape, generator=generator, dtype=dtype)
        for axis, n in enumerate(param.shape):
            scales = 10.0 ** (-decades * torch.rand(n, generator=generator, dtype=dtype))
            found *= scales.reshape(-1, *(1,) * (param.ndim - axis - 1))
        return 10.0 ** (-seed % 3 - 1) * found

    state, beta = mulo_steps.accumulators(param), mulo.decays(mulo.unpack(random_theta(seed, dtype)))
    for _ in range(steps):
        before = mulo.Accumulators(**state)
        after = mulo.accumulate(random().reshape(before.square.shape), before, beta)
        for name, value in after._asdict().items():
            state[name].copy_(value)
    param.copy_(random())
    slope = torch.empty_like(param, dtype=gradient_dtype or param.dtype).copy_(random())
    return Case(param, slope, state, (0.5 + seed % 5, 0.01 * (seed % 4)))


def copied(cases: Sequence[Case]) -> list[Case]:
    """The same numbers in the same order of memory."""
    return [
        c._replace(
            param=_like(c.param), gradient=_like(c.gradient), state={name: _like(x) for name, x in c.state.items()}
        )
        for c in cases
    ]


def _like(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(value)


def in_memory_order(shape: Sequence[int], order: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor whose axes come in memory in this order."""
    places = [list(order).index(axis) for axis in range(len(shape))]
    return torch.empty([shape[axis] for axis in order], dtype=dtype).permute(places)


def arguments(cases: Sequence[Case], theta: Tensor, steps: float = 2.0, step_multiplier: float = 0.01) -> tuple:
    """What `mulo_step` is given, on the device that the tensors are on."""
    device = cases[0].param.device if cases else theta.device
    lists = [[c.param for c in cases], [c.gradient for c in cases]]
    lists += [[c.state[name] for c in cases] for name in mulo.Accumulators._fields]
    rates = torch.tensor([c.rate for c in cases]).reshape(-1, 2)
    return (*lists, theta.to(device), rates, torch.tensor(float(steps), device=device), step_multiplier)


def kernel_step(cases: Sequence[Case], theta: Tensor, steps: int = 2, step_multiplier: float = 0.01) -> None:
    """A step of the kernel, in place."""
    mulo_step(*arguments(cases, theta, steps, step_multiplier))


def rule_step(cases: Sequence[Case], theta: Tensor, steps: int = 2, step_multiplier: float = 0.01) -> None:
    """The same step by the rule, in place."""
    for c in cases:
        leaf = mulo_steps.Leaf(c.param, c.gradient, {**c.state, "step": torch.tensor(float(steps))}, c.rate)
        mulo_steps.by_rule([leaf], theta, step_multiplier)


def error(moved: Tensor, expected: Tensor, before: Tensor) -> float:
    """Of an update, relative to it."""
    update = expected.double() - before.double()
    return float((moved.double() - expected.double()).norm() / update.norm())


def assert_equal(cases: Sequence[Case], others: Sequence[Case]) -> None:
    for one, other in zip(cases, others, strict=True):
        assert torch.equal(one.param, other.param)
        assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())
