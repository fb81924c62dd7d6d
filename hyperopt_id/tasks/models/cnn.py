"""A small convolutional network with BatchNorm.

    h_i = relu(norm(conv3x3(h_{i-1}, stride 2))),   y = a W · mean over positions(h) + b

Strides instead of pooling: every layer is smooth but for the relu.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from hyperopt_id.tasks.models import twice
from hyperopt_id.tasks.models.layers import Linear, image_shape, roles_of
from hyperopt_id.tasks.models.parametrization import STANDARD, Parametrization, parametrize


class CNN(nn.Module):
    """Images [B, C, H, W], or rows [B, C·H·W] that are reshaped to `image` -> outputs [B, classes]."""

    def __init__(
        self, image: Sequence[int], channels: Sequence[int], classes: int, parametrization: Parametrization
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("cnn needs channels: the width of each layer")
        self.image = image_shape(image)
        widths = [self.image[0], *channels]
        # No bias before BatchNorm: it would have no effect.
        self.convolutions = nn.ModuleList(
            twice.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1, bias=False) for i in range(len(channels))
        )
        self.norms = nn.ModuleList(twice.BatchNorm2d(width) for width in channels)
        self.output = Linear(channels[-1], classes)
        matrices = {f"convolutions.{i}.weight": "hidden" for i in range(len(channels))}
        self.roles = roles_of(self, matrices | {"convolutions.0.weight": "input", "output.weight": "output"})
        parametrize(self, self.roles, parametrization)

    def forward(self, inputs: Tensor) -> Tensor:
        values = inputs.reshape(-1, *self.image)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            values = twice.relu(norm(convolution(values)))
        return self.output(values.mean(dim=(2, 3)))


def cnn(
    image: Sequence[int] = (1, 28, 28),
    channels: Sequence[int] = (16, 32),
    classes: int = 10,
    parametrization: Parametrization = STANDARD,
) -> CNN:
    """`image`: [channels, height, width] of the inputs, or [pixels] of flattened square images in one
    channel; `channels`: the width of each layer; `parametrization`: standard or mup."""
    return CNN(image, channels, classes, parametrization)
