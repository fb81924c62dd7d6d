"""Embeddings whose gradient is not that of the loss: a padding row is not trained, rows are scaled by their frequency.

Torch treats second derivatives alike, as if outputs did not depend on a padding row, which weight decay changes. Here a
hook changes what is trained with, and nothing else. Under vmap, torch merges the tables of all runs into one and leaves
the padding row of that, which is the first run's alone, untrained; there the row is a constant.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperopt_id import derivatives


class Embedding(nn.Embedding):
    """`nn.Embedding` with a padding row or rows scaled by their frequency."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        weight = self.weight
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            if self.padding_idx is not None and derivatives.applies_hooks():
                rows = torch.arange(self.num_embeddings, device=weight.device).unsqueeze(1)
                weight = torch.where(rows == self.padding_idx, weight.detach(), weight)
            by_frequency = self.scale_grad_by_freq and derivatives.applies_hooks()
            return F.embedding(input, weight, None, self.max_norm, self.norm_type, by_frequency)
        if derivatives.applies_hooks() and not derivatives.differentiates_twice():
            return super().forward(input)
        if derivatives.applies_hooks() and weight.requires_grad:
            weight = weight.view_as(weight)
            weight.register_hook(derivatives.first_time(partial(self._trained_with, input)))
        return F.embedding(input, weight, None, self.max_norm, self.norm_type)

    def _trained_with(self, tokens: Tensor, gradient: Tensor) -> Tensor:
        """What trains the table, from the gradient of the loss."""
        if self.scale_grad_by_freq:
            rows = tokens.flatten()
            counts = gradient.new_zeros(len(gradient)).index_add(0, rows, gradient.new_ones(len(rows)))
            gradient = gradient / counts.clamp_min(1).unsqueeze(1)
        return (
            gradient
            if self.padding_idx is None
            else gradient.index_fill(0, torch.tensor(self.padding_idx, device=gradient.device), 0.0)
        )
