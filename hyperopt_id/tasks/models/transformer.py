"""Pre-norm transformer (Vaswani et al. 2017, arXiv 1706.03762; normalization before each part as in Xiong
et al. 2020).

    h ← h + W_o attention(norm(h)),   h ← h + W_2 φ(W_1 norm(h)),   attention = softmax(q kᵀ / s) v

with s = √d for heads of width d under the standard parametrization. Attention is written out: the fused kernels have no
second derivative.
"""

import math

import torch
from torch import Tensor, nn

from hyperopt_id.tasks.models.layers import Dropout, Linear, activation_function, roles_of
from hyperopt_id.tasks.models.parametrization import STANDARD, Parametrization, parametrize


class Block(nn.Module):
    """[B, S, D] -> [B, S, D]; with `causal`, position s sees positions up to s. Logits are divided by `divisor`."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        activation: str,
        causal: bool,
        dropout: float,
        divisor: float,
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.divisor = heads, causal, divisor
        self.activation = activation_function(activation)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.projection = Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = Linear(width, hidden)
        self.linear2 = Linear(hidden, width)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        values = values + self.dropout1(self._attention(self.norm1(values)))
        return values + self.dropout2(self.linear2(self.activation(self.linear1(self.norm2(values)))))

    def _attention(self, values: Tensor) -> Tensor:
        batch, length, width = values.shape
        q, k, v = self.qkv(values).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) / self.divisor
        if self.causal:
            future = torch.ones(length, length, dtype=torch.bool, device=values.device).triu(1)
            logits = logits.masked_fill(future, -math.inf)
        mixed = torch.softmax(logits, dim=-1) @ v
        return self.projection(mixed.transpose(1, 2).reshape(batch, length, width))


class Transformer(nn.Module):
    """With a vocabulary: tokens [B, S] -> logits [B, S, vocabulary]. Without: rows [B, S · features] (or
    any shape that flattens to it), cut into S pieces -> outputs [B, outputs] of the mean over positions."""

    def __init__(
        self,
        vocabulary: int | None,
        features: int | None,
        outputs: int,
        length: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        activation: str,
        causal: bool,
        dropout: float,
        parametrization: Parametrization,
    ) -> None:
        super().__init__()
        self.features, self.length = features, length
        self.embedding = Linear(features, width) if features else nn.Embedding(vocabulary or 0, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        options = (width, heads, hidden, activation, causal, dropout, parametrization.attention(width // heads))
        self.blocks = nn.ModuleList(Block(*options) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.output = Linear(width, outputs)
        matrices = {name: "hidden" for name, value in self.named_parameters() if value.ndim > 1}
        matrices |= {"positions": "embedding", "embedding.weight": "input" if features else "embedding"}
        self.roles = roles_of(self, matrices | {"output.weight": "output"})
        parametrize(self, self.roles, parametrization)

    def forward(self, inputs: Tensor) -> Tensor:
        pieces = inputs.reshape(len(inputs), -1, self.features) if self.features else inputs
        values = self.embedding(pieces) + self.positions[: pieces.shape[1]]
        for block in self.blocks:
            values = block(values)
        values = self.norm(values)
        return self.output(values.mean(dim=1) if self.features else values)


def transformer(
    vocabulary: int | None = None,
    features: int | None = None,
    outputs: int | None = None,
    length: int = 70,
    embedding: int = 64,
    layers: int = 2,
    heads: int = 4,
    hidden: int | None = None,
    activation: str = "relu",
    causal: bool | None = None,
    dropout: float = 0.0,
    parametrization: Parametrization = STANDARD,
) -> Transformer:
    """Give `vocabulary` for a language model (causal unless told otherwise) or `features`, the size of a
    piece of the input row, with `outputs` for a classifier or regression. `length`: the largest number of
    positions; `embedding`: the width D; `hidden`: the width inside a block (4 D by default);
    `activation`: relu, tanh or gelu; `parametrization` changes how weights start, and multipliers."""
    if (vocabulary is None) == (features is None):
        raise ValueError("transformer needs exactly one of vocabulary (tokens) and features (size of an input piece)")
    if features is not None and outputs is None:
        raise ValueError("transformer with features needs outputs: the number of classes, or 1 for a regression")
    if embedding % heads:
        raise ValueError(f"transformer: embedding {embedding} must be a multiple of heads {heads}")
    return Transformer(
        vocabulary,
        features,
        outputs or vocabulary or 0,
        length,
        embedding,
        layers,
        heads,
        hidden or 4 * embedding,
        activation,
        vocabulary is not None if causal is None else causal,
        dropout,
        parametrization,
    )
