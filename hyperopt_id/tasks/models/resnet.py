"""ResNet-18 (He et al. 2015, arXiv 1512.03385), layout and parameter names of torchvision's `resnet18`.

    y = relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x))

Eight such blocks between a 7 × 7 convolution and a linear layer.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from hyperopt_id.tasks.models import twice
from hyperopt_id.tasks.models.layers import roles_of


def convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    return twice.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut, which is a 1 × 1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn1 = twice.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, 3, 1)
        self.bn2 = twice.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(convolution(inputs, outputs, 1, stride), twice.BatchNorm2d(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        values = twice.relu(self.bn1(self.conv1(inputs)))
        shortcut = inputs if self.downsample is None else self.downsample(inputs)
        return twice.relu(self.bn2(self.conv2(values)) + shortcut)


class ResNet18(nn.Module):
    """Images [B, 3, H, W] -> outputs [B, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = convolution(3, 64, 7, 2)
        self.bn1 = twice.BatchNorm2d(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.fc = nn.Linear(512, classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        matrices = {name: "hidden" for name, value in self.named_parameters() if value.ndim > 1}
        self.roles = roles_of(self, matrices | {"conv1.weight": "input", "fc.weight": "output"})

    def forward(self, inputs: Tensor) -> Tensor:
        values = twice.relu(self.bn1(self.conv1(inputs)))
        values = F.max_pool2d(values, 3, stride=2, padding=1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            values = layer(values)
        return self.fc(values.mean(dim=(2, 3)))


def resnet18(classes: int = 10) -> ResNet18:
    """Weights start as in torchvision: He-normal (fan out) convolutions, unit BatchNorm."""
    return ResNet18(classes)
