"""How much memory a run will need, compared with what there is before any of it is taken.

    model    R · (P · (1 + S + 3 E) + buffers) + chunk · P        numbers of the run's precision
    batches  (R + chunk) · T · B row numbers of 8 bytes, and a thousand bytes for each batch of a chunk

with P parameters, S state tensors of the rule for each, E hyperparameters tuned by element (a raw value and two
moments of the meta-optimizer each). That is what is kept from one hyper-update to the next, and one gradient: the
least that a run can do with, so that what is refused could never have trained.
"""

from collections.abc import Callable

import torch
from torch import nn

from hyperopt_id import memory
from hyperopt_id.config_schema import Config, RuleName
from hyperopt_id.population import Feed

STATES: dict[RuleName, int] = {"sgd": 1, "adam": 2, "adamw": 2, "mulo": 4}  # tensors like a parameter
BATCH = 1000  # bytes of the objects that a batch is made of
WORDS = 70  # rows of a batch of text


def check_batches(config: Config) -> None:
    """Raise ValueError if the batches of one hyper-update do not fit into memory."""
    task, population, steps = config.task, config.population, config.inner.steps_per_update
    rows = 0 if task.batch_size == "all" else task.batch_size * (WORDS if task.name == "penn_treebank" else 1)
    drawn = population.runs + min(population.runs, population.chunk)  # those kept, and those that are being drawn
    chunks = -(-population.runs // population.chunk)
    needed = max(steps, Feed.BLOCK) * (8 * drawn * rows + BATCH * chunks)
    what = f"inner.steps_per_update = {steps}, for population.runs = {population.runs},"
    memory.require(needed, what, "take fewer steps per update, or fewer runs")


def check_model(config: Config, make: Callable[[], nn.Module], device: torch.device) -> None:
    """Raise ValueError if the model that `make` makes, and what is kept of it for every run, does not fit into the
    memory of the device. The model is made without memory of its own."""
    what = f"task.model.name = {config.task.model.name}"
    cure = "take a smaller model, or fewer population.runs"
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = make()
    except RuntimeError as error:  # a tensor of more than 2^63 bytes
        raise ValueError(f"{what} has tensors that are too large for any memory; {cure}") from error
    parameters, buffers = (sum(t.numel() for t in tensors) for tensors in (model.parameters(), model.buffers()))
    runs, chunk = config.population.runs, min(config.population.runs, config.population.chunk)
    kept = 1 + STATES[config.inner.rule] + 3 * sum("element" in hyper.tune for hyper in config.space.values())
    numbers = runs * (parameters * kept + buffers) + chunk * parameters
    needed = numbers * (8 if config.dtype == "float64" else 4)
    memory.require(needed, f"{what} with {parameters} parameters, for population.runs = {runs},", cure, device)
