r"""Hyperparameters live in an unconstrained raw space: natural = transform(sum of raw values over granularities).

Raw values are a flat dict: `lr/global` (0-d, always present; it carries the initial value), and, where tuned,
`lr/tensor/<parameter>` (0-d) and `lr/element/<parameter>` (the parameter's shape), which start at zero. Under
\(10^r\) the natural values of several granularities therefore multiply. A hyperparameter may be a tensor itself, as the
weights of a learned optimizer are; its values for all parameters, or for one, have its shape then.

Raw and natural values are float32, or float64 if a parameter is, whatever the precision of the model: in bfloat16 a
learning rate of 0.001 does not notice a change of its logarithm by 0.005, and Adam's 0.999 is 1.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.arguments import check_kind
from hyperopt_id.trees import Params

GRANULARITIES = ("global", "tensor", "element")


class Transform(NamedTuple):
    """`natural(raw)` on tensors and its inverse `raw(natural)` on Python numbers from the lowest to the highest."""

    natural: Callable[[Tensor], Tensor]
    raw: Callable[[float], float]
    lowest: float = -math.inf
    highest: float = math.inf


def _log10(value: float) -> float:
    return math.log10(value) if value > 0.0 else -math.inf  # 10^-inf = 0: switched off, and staying so


def _logit(value: float) -> float:
    value = min(max(value, 1e-12), 1.0 - 1e-12)
    return math.log(value) - math.log1p(-value)


LOG10 = Transform(lambda raw: 10.0**raw, _log10, lowest=0.0)
LOGIT = Transform(torch.sigmoid, _logit, lowest=0.0, highest=1.0)
IDENTITY = Transform(lambda raw: raw, float)


@dataclass(frozen=True)
class Hyper:
    """One hyperparameter, described in natural units.

    `tune` lists the granularities that are learned (empty: fixed). `bounds` clip the natural value. `sample` is the
    range of random starts: uniform in raw space under LOG10, else uniform in the natural value. Values that the
    transform does not have, and an `init` outside `bounds`, are a ValueError. An `init` that is a tensor is under
    IDENTITY, without ranges, and not tuned by element.
    """

    init: float | Tensor
    transform: Transform = IDENTITY
    bounds: tuple[float, float] | None = None
    sample: tuple[float, float] | None = None
    tune: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.tune, str) or not set(self.tune) <= set(GRANULARITIES):
            raise ValueError(
                f'Hyper: tune={self.tune!r}; allowed: any of {", ".join(GRANULARITIES)}, as in tune=("element",)'
            )
        check_kind("Hyper: transform", self.transform, Transform, "LOG10, LOGIT or IDENTITY")
        init = self.init
        if isinstance(init, Tensor):
            self._check_tensor()
            return
        for name, limits in (("init", (init, init)), ("bounds", self.bounds), ("sample", self.sample)):
            if limits is not None:
                pair = isinstance(limits, tuple | list) and len(limits) == 2
                if not pair or not all(isinstance(limit, Real) for limit in limits):
                    what = "a number" if name == "init" else "two numbers, (lowest, highest)"
                    raise ValueError(f"Hyper: {name} must be {what}, not {getattr(self, name)!r}")
                self._check(name, *limits)
        if self.bounds is not None and not self.bounds[0] <= init <= self.bounds[1]:
            raise ValueError(f"Hyper: init={self.init} is outside bounds={self.bounds}; change one of them")

    def starting_at(self, natural: float) -> "Hyper":
        """The same with another `init`; raises ValueError if it cannot have it."""
        return replace(self, init=natural)

    def _check_tensor(self) -> None:
        ranged = self.bounds is not None or self.sample is not None
        if self.transform is not IDENTITY or ranged or "element" in self.tune:
            raise ValueError(
                "Hyper: a tensor as init has transform=IDENTITY, no bounds, no sample, and tune of global and tensor "
                f"alone; given tune={self.tune!r}, bounds={self.bounds}, sample={self.sample}"
            )

    def _check(self, name: str, low: float, high: float) -> None:
        """Limits are in order and natural values of the transform; where a run may start, raw values are finite."""
        lowest, highest = self.transform.lowest, self.transform.highest
        if not lowest <= low <= high <= highest:
            allowed = f"natural values from {lowest:g} to {highest:g} under this transform, the lower first"
            raise ValueError(f"Hyper: {name}={getattr(self, name)}; allowed: {allowed}")
        off = name == "init" and low == 0.0 and not self.tune  # a value that stays 0 needs no logarithm
        finite = all(math.isfinite(self.transform.raw(value)) for value in (low, high))
        if name != "bounds" and not finite and not off:
            what = "a value to be tuned" if name == "init" else "a range to draw from"
            raise ValueError(f"Hyper: {name}={getattr(self, name)}; {what} is finite, and above 0 under LOG10")


@dataclass(frozen=True)
class Space:
    """The hyperparameters of one update rule, by name."""

    hypers: Mapping[str, Hyper]

    def __post_init__(self) -> None:
        check_kind("Space", self.hypers, Mapping, "a mapping from name to Hyper")
        for name, hyper in self.hypers.items():
            check_kind(f"Space: {name}", hyper, Hyper, "a Hyper, such as Hyper(0.1, LOG10)")

    def draw(self, seed: int) -> dict[str, float]:
        """Random natural values of those that are numbers. Each hyperparameter has a stream of its own, so runs of one
        seed share their starting values whatever else the space holds or tunes."""
        numbers = {name: hyper for name, hyper in self.hypers.items() if not isinstance(hyper.init, Tensor)}
        return {name: _draw(hyper, f"{seed}/{name}") for name, hyper in numbers.items()}

    def init(self, params: Params, natural: Mapping[str, float] | None = None) -> Params:
        """Raw values for a model with these parameters, starting at `natural` (default: each `Hyper.init`)."""
        device, dtype = next(iter(params.values())).device, trees.precision(params)
        self._check_elements(params)
        raw = {}
        for name, hyper in self.hypers.items():
            start = hyper.init if natural is None else natural.get(name, hyper.init)
            value = start if isinstance(start, Tensor) else hyper.transform.raw(start)
            common = torch.as_tensor(value, dtype=dtype, device=device)
            raw[f"{name}/global"] = common
            if "tensor" in hyper.tune:
                raw |= {f"{name}/tensor/{k}": torch.zeros_like(common) for k in params}
            if "element" in hyper.tune:
                raw |= {f"{name}/element/{k}": torch.zeros_like(p, dtype=dtype) for k, p in params.items()}
        return raw

    def _check_elements(self, params: Params) -> None:
        """Raises ValueError if values are tuned by element of a complex parameter, of which there are two."""
        fine = [name for name, hyper in self.hypers.items() if "element" in hyper.tune]
        if fine and (of := [k for k, value in params.items() if value.is_complex()]):
            raise ValueError(f"{fine[0]} is tuned by element, but the parameter {of[0]} is complex; tune it by tensor")

    def is_tuned(self, key: str) -> bool:
        name, granularity = key.split("/")[:2]
        return granularity in self.hypers[name].tune

    def tuned(self, raw: Params) -> Params:
        """The part of `raw` that is learned."""
        return {key: value for key, value in raw.items() if self.is_tuned(key)}

    def constrain(self, raw: Params, params: Params) -> dict[str, Params]:
        """Natural values as a dict keyed like `params` for each hyperparameter; 0-d unless tuned per element."""
        return {name: self._natural(name, hyper, raw, params) for name, hyper in self.hypers.items()}

    @staticmethod
    def _natural(name: str, hyper: Hyper, raw: Params, params: Params) -> Params:
        natural, common = hyper.transform.natural, raw[f"{name}/global"]
        if not {"tensor", "element"} & set(hyper.tune):
            return dict.fromkeys(params, natural(common))
        totals = dict.fromkeys(params, common)
        for granularity in hyper.tune:
            if granularity != "global":
                totals = {k: total + raw[f"{name}/{granularity}/{k}"] for k, total in totals.items()}
        return {k: natural(total) for k, total in totals.items()}

    def project(self, raw: Params) -> Params:
        """Clip so that every natural value is within its bounds: first the global raw value, then the sum with the
        tensor's, then the sum with the element's. Works with or without a leading axis R on every value."""
        raw = dict(raw)
        for name, hyper in self.hypers.items():
            if hyper.bounds is None or not hyper.tune:
                continue
            low, high = (hyper.transform.raw(bound) for bound in hyper.bounds)
            common = raw[f"{name}/global"] = raw[f"{name}/global"].clamp(low, high)
            for key in [key for key in raw if key.startswith(f"{name}/tensor/")]:
                raw[key] = (common + raw[key]).clamp(low, high) - common
            for key in [key for key in raw if key.startswith(f"{name}/element/")]:
                base = common + raw.get(key.replace("/element/", "/tensor/"), torch.zeros_like(common))
                base = trees.per_run(base, raw[key])
                raw[key] = (base + raw[key]).clamp(low, high) - base
        return raw


def _draw(hyper: Hyper, stream: str) -> float:
    if hyper.sample is None:
        assert not isinstance(hyper.init, Tensor)
        return hyper.init
    low, high = hyper.sample
    uniform = _uniform(stream)
    if hyper.transform is LOG10:
        return 10.0 ** (math.log10(low) + uniform * (math.log10(high) - math.log10(low)))
    return low + uniform * (high - low)


def _uniform(stream: str) -> float:
    """A number in [0, 1) that is a pure function of the stream's name."""
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "big") / 2.0**64
