"""The functional view of a module against the module itself, tried once before training.

Two training steps of gradient descent, from weights of another seed than those that the view's instances were made
with, on real inputs: outputs, gradients and buffers of the view equal those of a live module and `loss.backward()`.
The loss is a fixed polynomial of the outputs. A view that has been used before, with other weights and other rows,
and one that repeats a step give the same.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hyperopt_id import trees
from hyperopt_id.arguments import first_line
from hyperopt_id.tasks import module_checks
from hyperopt_id.tasks.dropout import begin_pass, dropouts_of
from hyperopt_id.tasks.module_state import Slot, Tensors, attributes, divided, equal, has_graph, registered
from hyperopt_id.tasks.outputs import detached, tensors
from hyperopt_id.tasks.references import STEP_SEED, close, polynomial, reached, refuse_outer

if TYPE_CHECKING:
    from hyperopt_id.tasks.functional import FunctionalModule
    from hyperopt_id.tasks.template import Template

Start = tuple[Tensors, Tensors]
RATE = 1e-2


class MismatchError(ValueError):
    """The view is not the module."""


@torch.enable_grad()
def check(view: FunctionalModule, arguments: tuple[Any, ...], shown: tuple[Any, ...]) -> Any:
    """The outputs in evaluation mode for the arguments `shown`.

    Raises ValueError if the view is not a pure function, or not that of the module.
    """
    with module_checks.generators_untouched(view.device):
        arguments, start = trees.map(torch.clone, arguments), view.init(0)
        start = _repeat(view, start, arguments)
        shown_outputs = _evaluate(view, start, shown)
        try:
            _compare(view, start, arguments, shown)
        except MismatchError:
            names = reached(view, start, arguments)
            if not names:
                raise
            view.use_objects(f"forward reads {names[0]} through a plain reference (a list, a closure, ...)")
            _compare(view, start, arguments, shown)
        if "compile" not in view.limits and (why := _untraceable(view, start, arguments)):
            view.limits["compile"] = why
    return shown_outputs


def _untraceable(view: FunctionalModule, start: Start, arguments: tuple[Any, ...]) -> str | None:
    """Why the function that a compiler would trace is not that of the module, or None."""
    if view.training.obstacle is not None:
        return f"it cannot be copied ({view.training.obstacle})"
    params, buffers = start
    params = {name: 1.25 * value + 0.01 for name, value in params.items()}  # not those of any instance
    seed, results = torch.tensor(STEP_SEED, device=view.device), []
    try:
        for function in (view.training, view.training.traced):
            given = {**params, **trees.map(torch.clone, buffers)}
            results.append(tensors(detached(function(given, seed, *trees.map(torch.clone, arguments))[0])))
    except RuntimeError as error:
        return first_line(error)
    return None if all(map(close, *results)) else "a copy of it computes something else (a closure refers to it)"


def _repeat(view: FunctionalModule, start: Start, arguments: tuple[Any, ...]) -> Start:
    """The start, with buffers of the types that a step gives them.

    Raises ValueError if a step that is repeated is another one.
    """
    params, buffers = start
    seed = torch.tensor(STEP_SEED, device=view.device)
    before, results, states = trees.map(torch.clone, arguments), [], []
    for _ in range(2):  # in one instance: nothing keeps a graph
        results.append(_outputs(view, params, buffers, seed, arguments))
        states.append(_attributes(view.training))
        buffers = view.with_types(buffers)
    if not all(map(module_checks.same, trees.leaves(arguments), trees.leaves(before))):
        raise ValueError("forward writes to its inputs, which are the data: let it begin with inputs = inputs.clone()")
    _check_repeated(results, states, "a training step")
    for kept in view.training.own_instances():
        for part, twin in zip(kept.dropouts, dropouts_of(view.training.module), strict=True):
            twin.repeated = part.calls > 1
    return params, buffers


def _outputs(
    view: FunctionalModule, params: Tensors, buffers: Tensors, seed: Tensor, arguments: tuple[Any, ...]
) -> list[Tensor]:
    """Of a training step, which also shows the types that it gives to buffers."""
    variables = trees.variables(params)
    outputs, after = view.training({**variables, **trees.map(torch.clone, buffers)}, seed, *arguments)
    with suppress(RuntimeError):  # which is said where gradients are compared
        torch.autograd.grad(polynomial(outputs), list(variables.values()), allow_unused=True)  # for what hooks do
    for name, value in buffers.items():
        if isinstance(after.get(name), Tensor) and after[name].dtype != value.dtype:
            view.promoted[name] = torch.promote_types(after[name].dtype, value.dtype)
    return tensors(detached(outputs))


def _evaluate(view: FunctionalModule, start: Start, arguments: tuple[Any, ...]) -> Any:
    """The outputs in evaluation mode. Raises ValueError if others come when that is repeated."""
    results, states = [], []
    for _ in range(2):
        results.append(detached(view.evaluate(*start, *trees.map(torch.clone, arguments))))
        states.append(_attributes(view.evaluation))
    _check_repeated([tensors(outputs) for outputs in results], states, "an evaluation")
    return results[0]


def _check_repeated(results: list[list[Tensor]], states: list[dict[str, Any]], what: str) -> None:
    """Raise ValueError if the second of two equal calls has other results, or leaves other attributes."""
    if len(results[0]) != len(results[1]) or not all(map(module_checks.same, *results)):
        raise ValueError(
            f"the model gives other outputs when {what} is repeated, so no step could be: keep what it "
            "remembers in buffers (register_buffer), and let nn.Dropout draw its random numbers"
        )
    for name, value in states[1].items():
        if name not in states[0] or not equal(states[0][name], value):
            raise ValueError(
                f"forward changes the attribute {name} at every call, or a hook does, which is no part of a run's "
                "state and would not be saved, restored or kept apart for several runs: make it a buffer, "
                "register_buffer(...)"
            )


def _attributes(template: Template) -> dict[str, Any]:
    """Copies of what a template's instances of this thread keep beside parameters and buffers."""
    found = {}
    for kept in template.own_instances():
        own = {id(tensor) for tensor in kept.own}
        slots = attributes(kept.module)
        found |= {name: _copy(slot) for name, slot in slots.items() if id(slot.value) not in own}
    return found


def _copy(slot: Slot) -> Any:
    value = slot.value
    return value.detach().clone() if isinstance(value, Tensor) else value.copy() if hasattr(value, "copy") else value


def _compare(view: FunctionalModule, start: Start, arguments: tuple[Any, ...], shown: tuple[Any, ...]) -> None:
    """Raises ValueError if training steps of the view and of the module differ, or an evaluation after them."""
    live = view.another()
    params, buffers = divided(live, view.varying)
    buffers = view.with_types(buffers)
    seed = torch.tensor(STEP_SEED, device=view.device)
    view.train(*start, seed, *trees.map(_other_rows, arguments))
    begin_pass(dropouts_of(live), seed)
    for step in range(2):
        inputs = trees.map(torch.clone, arguments)

        def live_step(inputs: tuple[Any, ...] = inputs) -> tuple[Any, Tensors]:
            return _live_step(live, seed, inputs)

        wanted, expected = live_step() if step else module_checks.check_writes(live, {*buffers}, live_step)
        outputs, slopes, buffers = _view_step(view, params, buffers, seed, arguments)
        first, second = tensors(outputs), tensors(wanted)
        if len(first) != len(second) or not all(map(close, first, second)):
            raise MismatchError(_message("outputs of the model differ"))
        for name, slope in slopes.items():
            if not slope.any() and expected[name].any():
                raise ValueError(
                    f"the gradient of {name} is lost where torch.autograd.grad takes it: activation checkpointing "
                    "needs use_reentrant=False"
                )
            if not close(slope, expected[name]):
                raise MismatchError(_message(f"the gradient of {name} differs"))
        params = {name: value - RATE * slopes[name] for name, value in params.items()}
        with torch.no_grad():
            for name, parameter in live.named_parameters():
                if name in params:
                    parameter.copy_(params[name])
    state = {slot.name: slot.value for slot in registered(live)}
    for name, value in buffers.items():
        if name in state and not close(value, state[name].detach()):
            raise MismatchError(_message(f"the buffer {name} differs after a step"))
    wanted = tensors(live.eval()(*trees.map(torch.clone, shown)))
    found = tensors(detached(view.evaluate(params, buffers, *trees.map(torch.clone, shown))))
    if len(found) != len(wanted) or not all(map(close, found, map(torch.detach, wanted))):
        raise MismatchError(_message("outputs of the model in evaluation mode differ"))


def _message(what: str) -> str:
    return (
        f"{what} from that of the module itself: it depends on something that is no parameter, buffer or attribute "
        "(what a closure or a hook refers to, a global, what a first call keeps); make it a buffer, "
        "register_buffer(...), and read it as self.name"
    )


def _live_step(live: nn.Module, seed: Tensor, arguments: tuple[Any, ...]) -> tuple[Any, Tensors]:
    """Outputs and gradients of an ordinary training step."""
    begin_pass(dropouts_of(live), seed)
    live.zero_grad()
    outputs = live(*arguments)
    value = polynomial(outputs)
    value.backward()
    for slot in registered(live):
        if has_graph(slot.value):  # a buffer is carried as a constant
            slot.store[slot.key] = slot.value.detach()
    trained = [(name, p) for name, p in live.named_parameters() if p.requires_grad]
    return detached(outputs), {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained}


def _view_step(
    view: FunctionalModule, params: Tensors, buffers: Tensors, seed: Tensor, arguments: tuple[Any, ...]
) -> tuple[Any, Tensors, Tensors]:
    """Outputs, gradients and buffers of the view."""
    variables = trees.variables(params)
    outputs, buffers = view.train(variables, buffers, seed, *arguments)
    value = polynomial(outputs)
    refuse_outer(view, value)
    try:
        slopes = torch.autograd.grad(value, list(variables.values()), allow_unused=True)
    except RuntimeError as error:
        why, cure = first_line(error), "activation checkpointing needs use_reentrant=False"
        if "does not require grad" in why:
            cure = "forward may not change requires_grad: let it use weight.detach(), or freeze the parameter for good"
        raise ValueError(f"torch.autograd.grad cannot differentiate the model: {why} ({cure})") from error
    for name in [name for name, slope in zip(params, slopes, strict=True) if slope is not None and slope.is_sparse]:
        raise ValueError(f"the gradient of {name} is a sparse tensor, which no rule takes: set sparse=False")
    filled = (torch.zeros_like(x) if slope is None else slope for slope, x in zip(slopes, params.values(), strict=True))
    return detached(outputs), dict(zip(params, filled, strict=True)), buffers


def _other_rows(tensor: Tensor) -> Tensor:
    """Another batch of the same shape: half of its rows, twice."""
    return tensor if tensor.ndim == 0 else tensor[torch.arange(len(tensor), device=tensor.device) // 2]
