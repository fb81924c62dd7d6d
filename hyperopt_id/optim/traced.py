r"""Optimizers of `torch.optim` whose hyperparameters follow a trace.

.. math:: (w_{t+1}, s_{t+1}) = \mathrm{step}(\nabla L(w_t), w_t, s_t; h_{i(t)}), \qquad
          i(t) = \left\lfloor \frac{t_0 + \lfloor t / F \rfloor}{n} \right\rfloor

with n steps to a row of the trace h, the stretch F, and \(t_0\) the step of the trace to begin at. Values of parameter
tensors are settings of parameter groups, one for each tensor. Values of elements are more than `torch.optim` takes; but
its steps are linear in the learning rate, so that a step of rate 1 is taken and its displacement scaled,

.. math:: w_{t+1} = w_t + \eta \odot (\mathrm{step}_{\eta=1}(w_t) - w_t),

and weight decay is added to the gradient before the step or, where it is decoupled, to the displacement.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hyperopt_id import mulo
from hyperopt_id.mup import Multipliers
from hyperopt_id.optim.mulo import MuLO
from hyperopt_id.optim.plain import Make
from hyperopt_id.trees import Params

Settings = Callable[[dict[str, Any]], dict[str, Any]]  # natural values -> the same as an optimizer names them
Rows = np.ndarray | Mapping[str, np.ndarray]  # [rows], or {parameter: [rows], or [rows, ...] for its elements}
VECTORS = ("theta",)  # hyperparameters that are vectors themselves, with rows [rows, size], and never one per element
NEUTRAL = {"lr": 1.0, "weight_decay": 0.0}  # of a step whose elements have each their own


class Follower(NamedTuple):
    """An optimizer that can follow: how it is made, with settings that the first row replaces, and whether its weight
    decay is no part of the gradient."""

    make: Callable[..., torch.optim.Optimizer]
    settings: Settings
    decoupled: bool = False


def _sgd_settings(natural: dict[str, Any]) -> dict[str, Any]:
    """Momentum 0 would leave out the buffer, which a later row may need."""
    return {**natural, "momentum": natural["momentum"] or sys.float_info.min}


def _adam_settings(natural: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in natural.items() if name not in ("beta1", "beta2")}
    return {**rest, "betas": (natural["beta1"], natural["beta2"])}


FOLLOWERS = {  # by rule
    "sgd": Follower(partial(torch.optim.SGD, lr=1.0, momentum=0.5), _sgd_settings),
    "adam": Follower(torch.optim.Adam, _adam_settings),
    "adamw": Follower(torch.optim.AdamW, _adam_settings, decoupled=True),
    "mulo": Follower(partial(MuLO, weights=torch.zeros(mulo.SIZE), parametrization="standard"), dict, decoupled=True),
}


class Schedule(NamedTuple):
    """The rows of a trace by the name of the hyperparameter, and when which one holds."""

    values: Mapping[str, Rows]
    steps_per_row: int
    stretch: Fraction = Fraction(1)
    first: int = 0

    def row(self, step: int) -> int:
        """The row for step number `step`; the last one also for all later steps."""
        step = self.first + step * self.stretch.denominator // self.stretch.numerator
        return min(step // self.steps_per_row, self.rows - 1)

    @property
    def rows(self) -> int:
        first = next(iter(self.values.values()))
        return len(next(iter(first.values())) if isinstance(first, Mapping) else first)

    def natural(self, step: int, device: torch.device) -> dict[str, Any]:
        """The values for step number `step`, as tensors by name, or by name and parameter."""
        row = self.row(step)

        def value(rows: np.ndarray) -> Tensor:
            return torch.from_numpy(np.array(rows[row])).to(device)

        return {
            name: {k: value(own) for k, own in rows.items()} if isinstance(rows, Mapping) else value(rows)
            for name, rows in self.values.items()
        }


def scaled(schedule: Schedule, multipliers: Multipliers) -> Schedule:
    """The schedule that has those hyperparameters for every parameter by itself, times their factors."""
    own: dict[str, Rows] = {}
    for hyper, factors in multipliers.items():
        rows = schedule.values[hyper]
        own[hyper] = {k: c * (rows[k] if isinstance(rows, Mapping) else rows) for k, c in factors.items()}
    return schedule._replace(values={**schedule.values, **own})


def follow(rule: str, schedule: Schedule, **options: Any) -> Make:
    """Makes the optimizer of `rule` (one of `FOLLOWERS`) with the hyperparameters of the schedule; `options` are
    further arguments of its class. A ValueError where the schedule does not fit a model."""
    follower = FOLLOWERS[rule]

    def make(params: Params, taken: int) -> torch.optim.Optimizer:
        _check(schedule, params)
        groups = _groups(schedule, params)
        optimizer = follower.make([{"params": [params[name] for name in names]} for names in groups], **options)
        steps, now = itertools.count(taken), _Present(params, groups)

        @torch.no_grad()
        def before(*_: Any) -> None:
            if (row := schedule.row(next(steps))) != now.row:
                _load(follower.settings, schedule, row, optimizer, now)
            _prepare(follower.decoupled, now)

        @torch.no_grad()
        def after(*_: Any) -> None:
            _finish(follower.decoupled, optimizer, now)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return optimizer

    return make


def _groups(schedule: Schedule, params: Params) -> list[list[str]]:
    """Names of the parameters that share all settings: each by itself only where something has one for each tensor."""
    mapped = {hyper: rows for hyper, rows in schedule.values.items() if isinstance(rows, Mapping)}
    apart = any(not _of_elements(hyper, own) for hyper, rows in mapped.items() for own in rows.values())
    return [[name] for name in params] if apart else [list(params)]


@dataclass
class _Present:
    """The values of elements that hold now, and the weights before a step that is to be scaled."""

    params: Params
    groups: list[list[str]]
    row: int = -1
    rates: Params = field(default_factory=dict)
    decays: Params = field(default_factory=dict)
    before: Params = field(default_factory=dict)


def _of_elements(hyper: str, rows: np.ndarray) -> bool:
    return rows.ndim > 1 and hyper not in VECTORS


def _load(
    settings: Callable[[dict[str, Any]], dict[str, Any]],
    schedule: Schedule,
    row: int,
    optimizer: torch.optim.Optimizer,
    now: _Present,
) -> None:
    """Let the values of `row` hold."""
    now.row = row
    common = {h: _setting(rows[row]) for h, rows in schedule.values.items() if not isinstance(rows, Mapping)}
    for group, names in zip(optimizer.param_groups, now.groups, strict=True):
        natural = dict(common)
        for hyper, rows in schedule.values.items():
            if not isinstance(rows, Mapping):
                continue
            if not _of_elements(hyper, rows[names[0]]):
                natural[hyper] = _setting(rows[names[0]][row])
                continue
            natural[hyper] = NEUTRAL[hyper]
            elements = {name: torch.from_numpy(np.array(rows[name][row])).to(now.params[name]) for name in names}
            (now.rates if hyper == "lr" else now.decays).update(elements)
        group.update(settings(natural))


def _setting(value: np.ndarray) -> Any:
    """A number, or a vector as a tensor."""
    return torch.from_numpy(np.array(value)) if value.ndim else float(value)


def _prepare(decoupled: bool, now: _Present) -> None:
    """Keep the weights whose step will be scaled or decayed, and decay the gradients of elements."""
    now.before = {name: now.params[name].clone() for name in {*now.rates, *(now.decays if decoupled else ())}}
    for name, decay in now.decays.items() if not decoupled else ():
        gradient = now.params[name].grad
        assert gradient is not None
        gradient.addcmul_(decay, now.params[name])


def _finish(decoupled: bool, optimizer: torch.optim.Optimizer, now: _Present) -> None:
    """Decay the weights of elements, as they were before the step, where it is decoupled; scale the step."""
    if now.decays and decoupled:
        for group, names in zip(optimizer.param_groups, now.groups, strict=True):
            for name in now.decays.keys() & set(names):
                now.params[name].addcmul_(now.decays[name], now.before[name], value=-group["lr"])
    for name, rate in now.rates.items():
        torch.lerp(now.before[name], now.params[name], rate, out=now.params[name])


def _check(schedule: Schedule, params: Params) -> None:
    for hyper, rows in schedule.values.items():
        for name, own in rows.items() if isinstance(rows, Mapping) else ():
            of_elements = _of_elements(hyper, own)
            if of_elements and hyper not in NEUTRAL:
                raise ValueError(
                    f"the trace has {hyper} for every element, but torch.optim takes one for a tensor; replay a run "
                    "that tunes it global or per tensor"
                )
            there = list(params[name].shape) if name in params else "no such parameter"
            if there != list(own.shape[1:]) and (of_elements or name not in params):
                raise ValueError(
                    f"the trace has {hyper} of {name} {list(own.shape[1:])}, but the model has {there}; leave "
                    "task.model as it was"
                )
        if isinstance(rows, Mapping) and (new := params.keys() - rows.keys()):
            raise ValueError(f"the trace has no {hyper} of {min(new)}; leave task.model as it was")
