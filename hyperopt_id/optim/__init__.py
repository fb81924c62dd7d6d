"""Between `torch.optim` and this package: optimizers of the one inside the other.

For live modules: the learned optimizer (`MuLO`, `load_weights`, `save_weights`, and by the names of the package PyLO
`MuLO_naive`, `MuLO_CUDA`), μP by the names of the package mup (`MuAdam`, `MuAdamW`, `MuSGD`), u-μP by those of the
package unit_scaling (`Adam`, `AdamW`, `SGD`, `scaled_parameters`, `lr_scale_...`).
"""

from hyperopt_id.optim.mulo import MuLO
from hyperopt_id.optim.mulo_weights import load_weights, save_weights
from hyperopt_id.optim.mup import MuAdam, MuAdamW, MuSGD
from hyperopt_id.optim.pylo import MuLO_CUDA, MuLO_naive
from hyperopt_id.optim.tags import tag_parameters
from hyperopt_id.optim.unit_scaling import (
    SGD,
    Adam,
    AdamW,
    lr_scale_for_depth,
    lr_scale_func_adam,
    lr_scale_func_sgd,
    scaled_parameters,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "MuAdam",
    "MuAdamW",
    "MuLO",
    "MuLO_CUDA",
    "MuLO_naive",
    "MuSGD",
    "load_weights",
    "lr_scale_for_depth",
    "lr_scale_func_adam",
    "lr_scale_func_sgd",
    "save_weights",
    "scaled_parameters",
    "tag_parameters",
]
