r"""Attention whose dropout draws from the batch's seed, for `nn.MultiheadAttention` and torch's transformer layers.

.. math:: \mathrm{out} = W_o\, \mathrm{drop}\big(\mathrm{softmax}(Q K^\top / \sqrt{d} + \mathrm{mask})\big) V

Without dropout, and in evaluation mode, torch's own forward is used.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperopt_id.tasks.dropout import Stateless, dropped


class MultiheadAttention(nn.MultiheadAttention, Stateless):
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Raises ValueError for `add_bias_kv` and `add_zero_attn`."""
        if not self.training or self.dropout == 0.0:
            masks: dict[str, Any] = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}
            options: dict[str, Any] = {"average_attn_weights": average_attn_weights, "is_causal": is_causal}
            return super().forward(query, key, value, need_weights=need_weights, **masks, **options)
        if self.bias_k is not None or self.bias_v is not None or self.add_zero_attn:
            raise ValueError("attention with add_bias_kv or add_zero_attn has no dropout here: set dropout=0")
        unbatched = query.ndim == 2
        rows = [
            x.unsqueeze(0) if unbatched else x if self.batch_first else x.transpose(0, 1) for x in (query, key, value)
        ]
        q, k, v = (self._heads(x) for x in self._projected(*rows))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        for mask in (_expanded(attn_mask, scores), _padding(key_padding_mask, unbatched)):
            if mask is not None:
                scores = scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        weights = scores.softmax(-1)
        weights = dropped(self, weights, self.dropout, weights.shape)
        outputs = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        weights = weights.mean(1) if average_attn_weights else weights
        if unbatched:
            outputs, weights = outputs.squeeze(0), weights.squeeze(0)
        elif not self.batch_first:
            outputs = outputs.transpose(0, 1)
        return outputs, weights if need_weights else None

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        if self.in_proj_weight is not None:
            matrices = self.in_proj_weight.chunk(3)
        else:
            matrices = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip((query, key, value), matrices, biases, strict=True)]

    def _heads(self, x: Tensor) -> Tensor:
        """[B, S, E] -> [B, heads, S, E / heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _expanded(mask: Tensor | None, scores: Tensor) -> Tensor | None:
    """A mask [L, S], or [B · heads, L, S], for scores [B, heads, L, S]."""
    return mask if mask is None or mask.ndim == 2 else mask.reshape(scores.shape)


def _padding(mask: Tensor | None, unbatched: bool) -> Tensor | None:
    """A mask [B, S] of keys, or [S], for scores [B, heads, L, S]."""
    return None if mask is None else (mask.unsqueeze(0) if unbatched else mask)[:, None, None, :]
