"""Language model: embedding, stacked LSTM, linear output (untied).

    i, f, g, o = W x_t + b + U h_{t-1} + b'
    c_t = σ(f) c_{t-1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)

Written out, because fused recurrences (`nn.LSTM` on a GPU, and anywhere under vmap) have no second
derivative. Names and shapes of the recurrent weights are those of `nn.LSTM`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperopt_id.tasks.models.layers import roles_of

State = dict[str, Tensor]


class Recurrence(nn.Module):
    """`layers` stacked LSTM layers: [B, S, inputs], state h and c [layers, B, hidden] -> [B, S, hidden],
    new state."""

    def __init__(self, inputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.hidden, self.layers = hidden, layers
        for layer in range(layers):
            width = inputs if layer == 0 else hidden
            shapes = {"weight_ih": (4 * hidden, width), "weight_hh": (4 * hidden, hidden)}
            for kind, shape in (shapes | {"bias_ih": (4 * hidden,), "bias_hh": (4 * hidden,)}).items():
                values = torch.empty(shape).uniform_(-1.0 / math.sqrt(hidden), 1.0 / math.sqrt(hidden))
                self.register_parameter(f"{kind}_l{layer}", nn.Parameter(values))

    def forward(self, values: Tensor, state: State) -> tuple[Tensor, State]:
        h_last, c_last = [], []
        for layer in range(self.layers):
            values, h, c = self._layer(layer, values, state["h"][layer], state["c"][layer])
            h_last.append(h)
            c_last.append(c)
        return values, {"h": torch.stack(h_last), "c": torch.stack(c_last)}

    def _layer(self, layer: int, values: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = (getattr(self, f"{kind}_l{layer}") for kind in ("weight_ih", "bias_ih", "weight_hh", "bias_hh"))
        weight_ih, bias_ih, weight_hh, bias_hh = weights
        projected = F.linear(values, weight_ih, bias_ih + bias_hh)  # all steps at once
        outputs = []
        for step in projected.unbind(1):
            i, f, g, o = (step + F.linear(h, weight_hh)).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, dim=1), h, c


class LSTM(nn.Module):
    """Tokens [B, S], state -> logits [B, S, vocabulary], new state."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = Recurrence(embedding, hidden, layers)
        self.output = nn.Linear(hidden, vocabulary)
        matrices = {name: "hidden" for name, value in self.named_parameters() if value.ndim > 1}
        self.roles = roles_of(self, matrices | {"embedding.weight": "embedding", "output.weight": "output"})

    def initial_state(self, streams: int) -> State:
        """Zeros: h and c, each [layers, streams, hidden]."""
        weight = self.output.weight
        zeros = weight.new_zeros(self.lstm.layers, streams, self.lstm.hidden)
        return {"h": zeros, "c": zeros.clone()}

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        values, state = self.lstm(self.embedding(tokens), state)
        return self.output(values), state


def lstm(vocabulary: int, embedding: int = 650, hidden: int = 650, layers: int = 2) -> LSTM:
    """Weights start as in `nn.Embedding`, `nn.LSTM` and `nn.Linear`."""
    return LSTM(vocabulary, embedding, hidden, layers)
