"""Layers of torch that are given another forward: they draw from the batch's seed, or can be vectorized.

A layer remains the object that it is, whoever refers to it: it only changes its class, to one derived from its own.
"""

import types

from torch import nn

from hyperopt_id.tasks import dropout
from hyperopt_id.tasks.attention import MultiheadAttention
from hyperopt_id.tasks.dropout import Stateless, dropouts_of, make_stateless
from hyperopt_id.tasks.embedding import Embedding

DRAWING: dict[type[nn.Module], type[Stateless]] = {
    nn.Dropout: dropout.Dropout,
    nn.Dropout1d: dropout.Dropout1d,
    nn.Dropout2d: dropout.Dropout2d,
    nn.Dropout3d: dropout.Dropout3d,
    nn.AlphaDropout: dropout.AlphaDropout,
    nn.FeatureAlphaDropout: dropout.FeatureAlphaDropout,
}
OWN = ("seed", "stream", "calls", "repeated", "keep")  # what `Stateless` layers keep


def substituted(module: nn.Module) -> nn.Module:
    """Let what torch draws dropout with draw from the batch's seed, each layer from a stream of its own, and embeddings
    have dense gradients and keep their padding row in several runs at once. A subclass keeps the forward that it has,
    and what it calls of `nn.Dropout` by `super()` draws from the batch's seed.

    Raises ValueError if a recurrent layer has dropout.
    """
    for name, part in module.named_modules():
        kind = type(part)
        drawing = DRAWING.get(kind) or _derived(part)
        if isinstance(part, nn.MultiheadAttention) and part.dropout > 0:
            drawing = MultiheadAttention if kind is nn.MultiheadAttention else None
        if drawing is not None:
            object.__setattr__(part, "__class__", drawing)
            make_stateless(part)
        elif isinstance(part, nn.Embedding | nn.EmbeddingBag):
            part.sparse = False  # the same gradient, as the dense tensor that rules need
            if kind is nn.Embedding and (part.padding_idx is not None or part.scale_grad_by_freq):
                object.__setattr__(part, "__class__", Embedding)
        elif isinstance(part, nn.RNNBase) and part.dropout > 0 and part.num_layers > 1:
            what, each = kind.__name__, f"{kind.__name__} for each of its {part.num_layers} layers"
            raise ValueError(
                f"{name or 'the model'} ({what}) draws dropout from a global generator, so no step could be repeated: "
                f"make a {each}, with nn.Dropout between them"
            )
    for number, part in enumerate(dropouts_of(module)):
        part.stream = number
    return module


def _derived(part: nn.Module) -> type[Stateless] | None:
    """For an instance of a subclass of dropout: the class with our layer between it and torch's."""
    kind = type(part)
    drawing = next((ours for theirs, ours in DRAWING.items() if isinstance(part, theirs)), None)
    if drawing is None or isinstance(part, Stateless) or any(hasattr(part, name) for name in OWN):
        return None
    return types.new_class(
        kind.__name__, (kind, drawing), exec_body=lambda body: body.update(__module__=kind.__module__)
    )
