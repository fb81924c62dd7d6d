"""Multilayer perceptron.

    h_0 = x,   h_i = dropout(φ(norm_i(a_i W_i h_{i-1} + b_i))),   y = a_L W_L h_{L-1} + b_L

Normalization and dropout are optional; the constants a are 1 under the standard parametrization.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from hyperopt_id.tasks.models import twice
from hyperopt_id.tasks.models.layers import ColumnLinear, Dropout, activation_function, roles_of
from hyperopt_id.tasks.models.parametrization import STANDARD, Parametrization, parametrize


class MLP(nn.Module):
    """Inputs [B, ...] (flattened to sizes[0] columns) -> outputs [B, sizes[-1]]."""

    def __init__(
        self, sizes: Sequence[int], activation: str, batch_norm: bool, dropout: float, parametrization: Parametrization
    ) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(
                f"mlp sizes must be at least two positive widths, such as [784, 50, 10], got {list(sizes)}"
            )
        hidden = len(sizes) - 2
        self.activation = activation_function(activation)
        # BatchNorm subtracts the mean, so a bias before it would have no effect and a zero gradient.
        self.layers = nn.ModuleList(
            ColumnLinear(sizes[i], sizes[i + 1], bias=not (batch_norm and i < hidden)) for i in range(hidden + 1)
        )
        self.norms = nn.ModuleList(twice.BatchNorm1d(width) for width in sizes[1:-1]) if batch_norm else None
        self.dropouts = nn.ModuleList(Dropout(dropout, i) for i in range(hidden)) if dropout else None
        matrices = {f"layers.{i}.weight": "hidden" for i in range(hidden + 1)}
        matrices |= {"layers.0.weight": "input", f"layers.{hidden}.weight": "output"}
        self.roles = roles_of(self, matrices)
        parametrize(self, self.roles, parametrization)

    def forward(self, inputs: Tensor) -> Tensor:
        columns = inputs.flatten(1).t()
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            columns = layer(columns)
            if i == last:
                break
            if self.norms is not None:
                columns = self.norms[i](columns.t()).t()
            columns = self.activation(columns)
            if self.dropouts is not None:
                columns = self.dropouts[i](columns)
        return columns.t()


def mlp(
    sizes: Sequence[int],
    activation: str = "relu",
    batch_norm: bool = False,
    dropout: float = 0.0,
    parametrization: Parametrization = STANDARD,
) -> MLP:
    """`sizes`: widths from inputs to outputs; `activation`: relu, tanh or gelu; linear layers start as in
    `nn.Linear`, but for what `parametrization` changes, and are named layers.0, layers.1, ..."""
    return MLP(sizes, activation, batch_norm, dropout, parametrization)
