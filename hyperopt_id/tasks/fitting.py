"""Whether a module, a data set and a criterion suit each other, tried on a few rows when a task is built."""

from contextlib import suppress
from typing import Any

from hyperopt_id.arguments import first_line
from hyperopt_id.tasks import losses
from hyperopt_id.tasks.data import Dataset
from hyperopt_id.tasks.functional import FunctionalModule
from hyperopt_id.tasks.losses import Criterion

CHECKED_ROWS, MOST_CHECKED_ROWS = 8, 1024


def fitted(module: FunctionalModule, dataset: Dataset, criterion: Criterion, batch_size: int | None) -> Criterion:
    """The criterion for the module's outputs. Raises ValueError if the module does not take the inputs, if its outputs
    do not suit the targets, or if its steps could not be repeated."""
    try:
        outputs = _checked(module, dataset, batch_size)
    except ValueError:
        raise
    except Exception as error:  # whatever a forward raises that does not suit the inputs
        shape, why = list(dataset.inputs.shape[1:]), first_line(error)
        raise ValueError(f"the model does not take the data's inputs, of shape {shape} each: {why}") from error
    return losses.fitted(criterion, outputs, dataset.targets[:2], dataset)


def _checked(module: FunctionalModule, dataset: Dataset, batch_size: int | None) -> Any:
    """Outputs for two rows of a module that has been checked on a few, or else on a batch, as one needs that has a
    buffer with a row for each example."""
    shown = (dataset.inputs[:2],)
    try:
        return module.check(dataset.inputs[:CHECKED_ROWS], shown=shown)
    except Exception as error:
        first, last = dataset.bounds("train")
        rows = min(last - first, batch_size or last)
        if rows == CHECKED_ROWS or rows > MOST_CHECKED_ROWS:
            raise
        with suppress(Exception):
            return module.check(dataset.inputs[first : first + rows], shown=shown)
        raise error
