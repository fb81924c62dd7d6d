"""Models whose training step is twice differentiable, vmap-able and compilable, and that say the role of each
parameter in plain data (`module.roles`)."""

from hyperopt_id.tasks.models.cnn import cnn
from hyperopt_id.tasks.models.layers import ACTIVATIONS, Dropout, image_shape, pieces
from hyperopt_id.tasks.models.lstm import lstm
from hyperopt_id.tasks.models.mlp import mlp
from hyperopt_id.tasks.models.parametrization import STANDARD, UNIT_SCALED, Parametrization, mup
from hyperopt_id.tasks.models.resnet import resnet18
from hyperopt_id.tasks.models.transformer import transformer
from hyperopt_id.tasks.models.weights import load_weights

__all__ = [
    "ACTIVATIONS",
    "STANDARD",
    "UNIT_SCALED",
    "Dropout",
    "Parametrization",
    "cnn",
    "image_shape",
    "load_weights",
    "lstm",
    "mlp",
    "mup",
    "pieces",
    "resnet18",
    "transformer",
]
