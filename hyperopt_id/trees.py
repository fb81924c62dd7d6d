"""Algebra on trees: nested dicts, lists and (named) tuples whose leaves are tensors.

Trees of one structure form a vector space; every function here is pure and works leaf by leaf. Leaves may carry a
leading axis of R independent runs, which `stack`, `unstack`, `take` and `where` act on. What is neither container nor
tensor (None, a string) is static and travels along. Sums over leaves of half precision are float32: in float16 they
overflow at 65,504, in bfloat16 they stop growing at 256 times an addend. The recursion is written out, for it runs
several times in every training step, and torch's general pytree module takes as long as a small model's arithmetic.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Tree = Any
Params = dict[str, Tensor]  # a flat tree keyed by the dotted names of `state_dict`


HALF = (torch.bfloat16, torch.float16)


class Apart(tuple[Tree, ...]):
    """R trees, one for each run, whose structures may differ and change: instead of leaves with a leading axis. Of a
    single run without that axis there is one."""

    def taken(self, position: Any) -> "Apart":
        if isinstance(position, Tensor):
            return Apart(self[i] for i in position.tolist())
        return Apart(self[position] if isinstance(position, slice) else (self[position],))

    @staticmethod
    def joined(*parts: "Apart") -> "Apart":
        return Apart(member for part in parts for member in part)


def map(  # noqa: A001 - read as `trees.map`
    function: Callable[..., Any], tree: Tree, *others: Tree, apart: Callable[..., Any] | None = None
) -> Tree:
    """Apply `function` to corresponding tensor leaves, and `apart` to what is `Apart` (default: `function` to its
    leaves, too); what is static is taken from the first tree."""
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, dict):
        if not others:  # the commonest case, without a call for each leaf
            return {k: function(v) if isinstance(v, Tensor) else map(function, v, apart=apart) for k, v in tree.items()}
        return {k: map(function, v, *[other[k] for other in others], apart=apart) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        if apart is not None and isinstance(tree, Apart):
            return apart(tree, *others)
        parts = [map(function, *same, apart=apart) for same in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def map_distinct(function: Callable[..., Tensor], *params: Params) -> Params:
    """`map` on flat trees, with one call for entries that are the same objects (under vmap, none are). A compiler finds
    common subexpressions itself, and a program that knows objects would hold for these alone."""
    if torch.compiler.is_compiling():
        return map(function, *params)
    results: dict[tuple[int, ...], Tensor] = {}
    found = {}
    for key in params[0]:
        values = [tree[key] for tree in params]
        same = tuple(id(value) for value in values)
        if same not in results:
            results[same] = function(*values)
        found[key] = results[same]
    return found


def leaves(tree: Tree) -> list[Tensor]:
    """The tensor leaves in a fixed order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        return []
    return [leaf for branch in tree for leaf in leaves(branch)]


def like(tree: Tree, tensors: Iterable[Tensor]) -> Tree:
    """The tree with its tensor leaves replaced, in the order of `leaves`."""
    supply = iter(tensors)
    return map(lambda _: next(supply), tree)


def axes(tree: Tree) -> Tree:
    """`in_dims` of `torch.vmap` for a tree whose tensors all have the leading axis R."""
    if isinstance(tree, dict):
        return {key: axes(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        parts = [axes(branch) for branch in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return 0 if isinstance(tree, Tensor) else None


def precision(tree: Tree) -> torch.dtype:
    """The type to compute in with these numbers: float64 if one of them has it, else float32."""
    return (
        torch.float64
        if any(leaf.dtype in (torch.float64, torch.complex128) for leaf in leaves(tree))
        else torch.float32
    )


def is_of(params: Params, dtype: torch.dtype) -> bool:
    """Whether all parameters have this real type."""
    return all(value.dtype is dtype for value in params.values())


def cast(tree: Tree, dtype: torch.dtype) -> Tree:
    """Floating-point leaves in this type, of complex ones both parts, [..., 2]; others as they are."""

    def own(leaf: Tensor) -> Tensor:
        leaf = torch.view_as_real(leaf) if leaf.is_complex() else leaf
        return leaf.to(dtype) if leaf.is_floating_point() else leaf

    return map(own, tree)


def cast_like(tree: Tree, model: Tree) -> Tree:
    """The inverse of `cast`: leaves in the types that those of `model` have."""

    def own(leaf: Tensor, other: Tensor) -> Tensor:
        if other.is_complex() and not leaf.is_complex():
            leaf = torch.view_as_complex(leaf.contiguous())
        return leaf.to(other.dtype)

    return map(own, tree, model)


def wide(leaf: Tensor) -> Tensor:
    """The leaf in float32 where it is of half precision, else itself."""
    return leaf.float() if leaf.dtype in HALF else leaf


def zeros(tree: Tree) -> Tree:
    return map(torch.zeros_like, tree)


def detach(tree: Tree) -> Tree:
    return map(Tensor.detach, tree)


def variables(tree: Tree) -> Tree:
    """Fresh leaves of the autograd graph that hold the same numbers."""
    return map(lambda leaf: leaf.detach().requires_grad_(), tree)


def add(left: Tree, right: Tree) -> Tree:
    return map(torch.add, left, right)


def take(tree: Tree, position: Any) -> Tree:
    """Index every leaf with `[position]`: one run of R, one step of T, or a permutation of either."""
    return map(lambda leaf: leaf[position], tree, apart=lambda part: part.taken(position))


def stack(members: Sequence[Tree]) -> Tree:
    """R trees of one structure -> one tree with a leading axis R."""
    return map(lambda *same: torch.stack(same), members[0], *members[1:], apart=Apart.joined)


def unstack(tree: Tree) -> list[Tree]:
    """The inverse of `stack`: one tree for each entry of the leading axis."""
    columns = zip(*(leaf.unbind() for leaf in leaves(tree)), strict=True)
    return [like(tree, column) for column in columns]


def concatenate(chunks: Sequence[Tree]) -> Tree:
    """Join trees along their leading axis R."""
    return map(lambda *same: torch.cat(same), chunks[0], *chunks[1:], apart=Apart.joined)


def where(condition_R: Tensor, yes: Tree, no: Tree) -> Tree:
    """Per run: the leaf of `yes` where the condition holds, that of `no` elsewhere.

    `condition_R` has shape [R], or [] for a single run without the leading axis, for which the structures may differ.
    """
    if condition_R.ndim == 0:
        return yes if bool(condition_R) else no

    def chosen(yes: Apart, no: Apart) -> Apart:
        return Apart(a if c else b for c, a, b in zip(condition_R.tolist(), yes, no))

    return map(lambda a, b: torch.where(per_run(condition_R, a), a, b), yes, no, apart=chosen)


def per_run(values_R: Tensor, leaf: Tensor) -> Tensor:
    """One value a run, shaped to broadcast against a leaf [R, ...]; a scalar for a single run."""
    if values_R.ndim == 0:
        return values_R
    return values_R.reshape(values_R.shape + (1,) * (leaf.ndim - values_R.ndim))


def inner(left: Tree, right: Tree, run_axes: int = 0) -> Tensor:
    """Sum of products over all leaves; the first `run_axes` axes are kept."""
    pairs = zip(leaves(left), leaves(right), strict=True)
    return torch.stack([contract(a, b, run_axes) for a, b in pairs]).sum(0)


def contract(left: Tensor, right: Tensor, axes: int) -> Tensor:
    """The product of two tensors of one shape, summed over all but the first `axes` axes, in the order of BLAS."""
    left, right = wide(left), wide(right)
    if left.ndim == axes:  # the same, in one pass instead of two
        return left * right
    return torch.linalg.vecdot(_rows(left, axes), _rows(right, axes))


def _rows(leaf: Tensor, run_axes: int) -> Tensor:
    """[..., N]: the run axes, and everything else in a row."""
    return leaf.reshape((*leaf.shape[:run_axes], -1))


def norm(tree: Tree, run_axes: int = 0) -> Tensor:
    """The Euclidean norm over all leaves; the first `run_axes` axes are kept."""
    if not run_axes:
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(wide(leaf)) for leaf in leaves(tree)]))
    parts = [torch.linalg.vector_norm(_rows(wide(leaf), run_axes), dim=-1) for leaf in leaves(tree)]
    return torch.linalg.vector_norm(torch.stack(parts), dim=0)


def total(tree: Tree, run_axes: int = 0) -> Tensor:
    """Sum of all real and complex numbers (of these, both parts); the first `run_axes` axes are kept. It is finite iff
    they are, but for overflow."""
    detached = [leaf.detach() for leaf in leaves(tree)]
    numbers = [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in detached]
    sums = [_rows(wide(leaf), run_axes).sum(-1) for leaf in numbers if leaf.is_floating_point()]
    return torch.stack(sums).sum(0)
