"""What a module reads from somewhere else than where a run's tensors are put, found by its derivatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hyperopt_id import trees
from hyperopt_id.tasks.dropout import begin_pass
from hyperopt_id.tasks.module_state import Tensors, equal
from hyperopt_id.tasks.outputs import tensors
from hyperopt_id.tasks.template import Instance

if TYPE_CHECKING:
    from hyperopt_id.tasks.functional import FunctionalModule

STEP_SEED = 12345  # of the steps that are tried


def reached(view: FunctionalModule, start: tuple[Tensors, Tensors], arguments: tuple[Any, ...]) -> list[str]:
    """Names of the tensors that forward reads from somewhere else than where others have been put."""
    params, buffers = start
    instance = Instance(view.build(0).train(), view.varying, objects=False)

    def loss() -> Tensor:
        instance.place({**trees.variables(params), **trees.map(torch.clone, buffers)})
        begin_pass(instance.dropouts, torch.tensor(STEP_SEED, device=view.device))
        return polynomial(instance.module(*trees.map(torch.clone, arguments)))

    own = {slot.name: tensor for slot, tensor in zip(instance.slots, instance.own, strict=True)}
    before = {name: own[name].detach().clone() for name in buffers}
    trained = {name: tensor for name, tensor in own.items() if tensor.requires_grad}
    value = loss()
    slopes = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    names = [name for name, slope in zip(trained, slopes, strict=True) if slope is not None]
    names += [name for name, tensor in before.items() if not equal(tensor, own[name])]
    for name in [name for name in own if name not in trained and name in buffers]:
        with torch.no_grad():
            own[name].add_(1)
        if not close(loss().detach(), value.detach()):
            names.append(name)
        with torch.no_grad():
            own[name].sub_(1)
    return names


def refuse_outer(view: FunctionalModule, value: Tensor) -> None:
    """Raises ValueError if a copy still reads the module that it was copied from."""
    named = dict(view.build.original.named_parameters()) if view.build.original is not None else {}
    outer = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    slopes = torch.autograd.grad(value, list(outer.values()), retain_graph=True, allow_unused=True) if outer else ()
    for name in [name for name, slope in zip(outer, slopes, strict=True) if slope is not None]:
        raise ValueError(
            f"forward reads {name} of the module that the function hands out at every call (a closure over it), not "
            "that of its copy: make the module inside the function"
        )


def polynomial(outputs: Any) -> Tensor:
    """A scalar that depends on every number of the outputs, and on no two alike."""
    leaves = tensors(outputs)
    if not leaves:
        raise ValueError(
            f"the model returns {type(outputs).__name__} without a tensor in it: let its forward return a tensor, or "
            "something that holds tensors"
        )
    total: Any = 0.0
    for leaf in leaves:
        real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
        if real.is_floating_point() and real.numel():
            weights = torch.arange(real.numel(), device=real.device).cos().to(real.dtype).reshape(real.shape)
            total = total + (real * (weights + 0.5 * real)).mean()
    if not isinstance(total, Tensor) or not total.requires_grad:
        raise ValueError("the outputs of the model do not depend on any parameter that is trained")
    return total


def close(first: Tensor, second: Tensor) -> bool:
    """Equal up to rounding, relative to the largest number."""
    if first.shape != second.shape:
        return False
    if not (first.is_floating_point() or first.is_complex()):
        return torch.equal(first, second.to(first.dtype))
    if first.dtype == second.dtype and torch.equal(first, second):
        return True
    wide = torch.complex128 if first.is_complex() or second.is_complex() else torch.float64
    tolerance = torch.finfo(first.dtype).eps ** 0.5
    first, second = (torch.where(x != x, 0.0, x.to(wide)) for x in (first, second))
    size = torch.stack([x.abs().amax() for x in (first, second)]).amax() if first.numel() else first.new_zeros(())
    return bool(((first - second).abs() <= tolerance * size).all())
