"""The learned optimizer by the names that the package PyLO has for it.

Its arguments are `hf_key`, a repository on the Hugging Face hub or a folder, `load_from_file`, which comes before it,
and `step_mult`; others are those of `MuLO`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hyperopt_id.optim.mulo import Implementation, MuLO
from hyperopt_id.optim.mulo_weights import Weights


def MuLO_naive(params: Iterable[Any], **options: Any) -> MuLO:  # noqa: N802
    """`MuLO` without kernels."""
    return _made(params, "torch", **options)


def MuLO_CUDA(params: Iterable[Any], **options: Any) -> MuLO:  # noqa: N802
    """`MuLO` by the CUDA kernel."""
    return _made(params, "cuda", **options)


def _made(
    params: Iterable[Any],
    impl: Implementation,
    hf_key: Weights = "btherien/mulo",
    load_from_file: Weights = None,
    step_mult: float = 0.01,
    **options: Any,
) -> MuLO:
    weights = hf_key if load_from_file is None else load_from_file
    return MuLO(params, weights=weights, impl=impl, step_multiplier=step_mult, **options)
