"""Starting from given weights."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def load_weights(path: Path | str, params: Tensors, buffers: Tensors) -> tuple[Tensors, Tensors]:
    """(params, buffers) with the values of an npz archive, names and shapes as in `state_dict`; device and
    type stay those of `params`. Every parameter must be there; buffers may be left out. A missing file, a
    wrong name or a wrong shape is a ValueError that says which."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"init_from: there is no file {path}")
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"init_from: {path} is not a readable npz archive of arrays ({error})") from error
    known = {**params, **buffers}
    missing = [name for name in params if name not in arrays]
    unknown = [name for name in arrays if name not in known]
    if missing or unknown:
        raise ValueError(
            f"init_from: {path} does not fit the model: "
            f"missing {missing or 'nothing'}, unknown {unknown or 'nothing'}; the model has {list(known)}"
        )
    for name, array in arrays.items():
        if array.shape != tuple(known[name].shape):
            raise ValueError(
                f"init_from: {path}: {name} has shape {array.shape}, the model needs {tuple(known[name].shape)}"
            )

        if array.dtype.kind not in "fiub":
            raise ValueError(f"init_from: {path}: {name} holds {array.dtype}, real numbers are needed")

    def given(tensors: Tensors) -> Tensors:
        return {
            name: torch.from_numpy(np.array(arrays[name])).to(value.device, value.dtype) if name in arrays else value
            for name, value in tensors.items()
        }

    return given(params), given(buffers)
