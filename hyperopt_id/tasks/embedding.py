"""Embeddings whose padding row is not trained, in several runs at once too.

Under vmap, torch merges the tables of all runs into one and leaves the padding row of that, which is the first run's
alone, untrained.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Embedding):
    """`nn.Embedding` with a constant padding row."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        if not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()):
            return super().forward(input)
        rows = torch.arange(self.num_embeddings, device=self.weight.device).unsqueeze(1)
        weight = torch.where(rows == self.padding_idx, self.weight.detach(), self.weight)
        return F.embedding(input, weight, None, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse)
