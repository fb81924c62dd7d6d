"""Tables from names to data sets and models."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hyperopt_id.build.size import check_batches, check_model
from hyperopt_id.config_schema import MODELS, Config, TaskConfig
from hyperopt_id.tasks import models
from hyperopt_id.tasks.cifar10 import cifar10
from hyperopt_id.tasks.data import Dataset
from hyperopt_id.tasks.diabetes import diabetes
from hyperopt_id.tasks.digits import digits
from hyperopt_id.tasks.fashion_mnist import fashion_mnist
from hyperopt_id.tasks.penn_treebank import penn_treebank
from hyperopt_id.tasks.task import Task, supervised
from hyperopt_id.tasks.toys import noisy_quadratic, ridge
from hyperopt_id.tasks.uci import SOURCES, uci
from hyperopt_id.tasks.user_csv import csv_table

VOCABULARY = 10_000  # words of Penn Treebank
Loader = Callable[[Path, TaskConfig], Dataset]


def _plain(loader: Callable[[Path, float | None], Dataset]) -> Loader:
    return lambda root, task: loader(root, task.validation_fraction)


def _uci(name: str, root: Path, task: TaskConfig) -> Dataset:
    return uci(root, name, task.validation_fraction)


def _csv(root: Path, task: TaskConfig) -> Dataset:
    standardize = (task.standardize.inputs, task.standardize.targets)
    return csv_table(str(task.path), task.splits or (), *standardize, task.loss or "mse", task.validation_fraction)


DATASETS: dict[str, tuple[Loader, str]] = {  # with the loss they are for, unless the config names one
    "digits": (_plain(digits), "cross_entropy"),
    "diabetes": (_plain(diabetes), "mse"),
    "fashion_mnist": (_plain(fashion_mnist), "cross_entropy"),
    "cifar10": (_plain(cifar10), "cross_entropy"),
    "csv": (_csv, "mse"),
    **{f"uci_{name}": (partial(_uci, name), "mse") for name in SOURCES},
}
PARAMETRIZATIONS: dict[str, Callable[[Config], models.Parametrization]] = {
    "mup": lambda config: models.mup(_base_width(config)),
    "umup": lambda config: models.UNIT_SCALED,
}
TOYS: dict[str, Callable[..., Any]] = {"toy_quadratic": noisy_quadratic, "toy_ridge": ridge}


def _base_width(config: Config) -> int:
    assert config.base_width is not None
    return config.base_width


def build_task(config: Config, device: torch.device) -> Task:
    """The task a config describes, with its data on the device."""
    task, dtype = config.task, torch.float64 if config.dtype == "float64" else torch.float32
    if task.name in TOYS:
        check_batches(config)
        return TOYS[task.name](device=device, dtype=dtype).task
    if task.name == "penn_treebank":
        built = _language(config, device, dtype)
    else:
        loader, criterion = DATASETS[task.name]
        data = loader(data_root(config), task).to(device, dtype)
        batch_size = None if task.batch_size == "all" else task.batch_size
        check_model(config, lambda: build_model(config, data), device)
        built = supervised(data, lambda: build_model(config, data), task.loss or criterion, batch_size)
        _check_batch_size(config, built)
    check_batches(config)
    if task.model.init_from is None:
        return built
    path, init = task.model.init_from, built.init
    return replace(built, init=lambda seed: models.load_weights(path, *init(seed)))


def data_root(config: Config) -> Path:
    return Path(config.data_root or os.path.expanduser(os.environ.get("HYPEROPT_ID_DATA") or "data"))


def _language(config: Config, device: torch.device, dtype: torch.dtype) -> Task:
    task = config.task
    make = {"lstm": models.lstm, "transformer": models.transformer}[task.model.name]
    assert task.batch_size != "all"

    def model(vocabulary: int) -> nn.Module:
        return make(vocabulary, **_options(config))

    check_model(config, lambda: model(VOCABULARY), device)
    return penn_treebank(
        data_root(config),
        model,
        task.batch_size,
        validation_fraction=task.validation_fraction,
        device=device,
        dtype=dtype,
    )


def _check_batch_size(config: Config, task: Task) -> None:
    given = config.task.batch_size
    for split in (config.task.train_on, *(["validation"] if config.draws_validation else [])):
        if given != "all" and given > task.sizes[split]:
            raise ValueError(
                f"task.batch_size: given {given}, but the {split} split has {task.sizes[split]} rows; "
                "take fewer, or all for the whole split"
            )


def build_model(config: Config, data: Dataset) -> nn.Module:
    """The model a config describes, for inputs and targets as the data set has them."""
    model, shape = config.task.model, data.inputs.shape[1:]
    outputs = 1 if data.targets.is_floating_point() else int(data.targets.max()) + 1
    options = _options(config)
    if model.name == "mlp":
        sizes = options["sizes"]
        wide_enough = sizes[-1] == outputs if data.targets.is_floating_point() else sizes[-1] >= outputs
        if sizes[0] != shape.numel() or not wide_enough:
            given = f"given {list(sizes)}, but the data need [{shape.numel()}, ..., {outputs}]"
            raise ValueError(f"task.model.sizes: {given}: the number of inputs first, that of outputs last")
        return models.mlp(**options)
    if model.name == "cnn":
        return models.cnn(tuple(shape), classes=outputs, **options)
    if model.name == "resnet18":
        return models.resnet18(outputs)
    assert model.name == "transformer"
    length, features = models.pieces(tuple(shape))
    return models.transformer(features=features, outputs=outputs, length=length, **options)


def _options(config: Config) -> dict[str, Any]:
    """What the config states for the model; the rest keeps the model's own default."""
    model, how = config.task.model, PARAMETRIZATIONS.get(config.parametrization)
    options = {name: value for name in MODELS[model.name] if (value := getattr(model, name)) is not None}
    return options if how is None else options | {"parametrization": how(config)}
