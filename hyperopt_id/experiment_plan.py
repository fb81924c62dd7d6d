"""What the loop is given: the parts of a run, as functions, and how long and on what they work."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hyperopt_id import population
from hyperopt_id.arguments import check_whole
from hyperopt_id.compilation import Compilation
from hyperopt_id.dynamics import Batch
from hyperopt_id.population import Lift, Run
from hyperopt_id.runtime import Stopwatch
from hyperopt_id.trees import Params

LEAST = {"updates": 1, "steps_per_update": 1, "report_every": 1, "checkpoint_every": 0, "keep": 1}  # of a plan


@dataclass(frozen=True)
class Parts:
    """What a run is made of, as functions; `build.assemble` makes them.

    start: () -> the initial Run of all R members. update: one hyper-update of a chunk. evaluate: (params, buffers,
    split) -> metrics of a chunk. hyper: Run -> natural values to report, [R] or {parameter: [R, ...]}.
    hypergradient: Record's gradient -> the same, by name. batches: see `population.Feed`. window: steps that the engine
    takes itself. seeds: one for each member. device: where all of it lives. sizes: rows of each split; empty if
    unknown. digests: name -> digest of the data ("data") and of other files that determine the numbers, where known.
    adopt: runs as a checkpoint of this or an earlier version holds them -> as this version does; raises ValueError if
    they cannot be of these parts, where shapes do not tell. growth: bytes that a state may take more than at the start.
    afterwards: what a command does when the run is finished, and nobody waits.
    """

    start: Callable[[], Run]
    update: population.Update
    evaluate: Callable[[Params, Params, str], dict[str, Tensor]]
    hyper: Callable[[Run], dict[str, Any]]
    hypergradient: Callable[[Params], dict[str, Any]]
    batches: Callable[[str, Sequence[int], int, int], list[Batch]]
    window: int
    seeds: Sequence[int]
    members: Sequence[Sequence[int]]
    lift: Lift
    device: torch.device
    compiled: bool = False
    compilation: Compilation | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    sizes: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[tuple[str, float]] = ()
    digests: Callable[[], dict[str, str]] = dict
    adopt: Callable[[dict[str, Any]], dict[str, Any]] = lambda runs: runs
    growth: int = 0
    afterwards: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Plan:
    """How long and on what. `objective` is "validation", or "training" for the next training batch; `reset` puts the
    weights back to their initial values after every hyper-update but the last. Periods are in hyper-updates."""

    updates: int
    steps_per_update: int = 10
    train_split: str = "train"
    objective: str = "validation"
    reset: bool = False
    report_every: int = 1
    report_splits: Sequence[str] = ("validation", "test")
    checkpoint_every: int = 0  # 0: never
    keep: int = 10
    trace_every: int | None = None  # 0: no trace; None: as often as fits (see `telemetry.trace`)

    def reports(self, until: int) -> Iterator[int]:
        """The hyper-updates up to number `until` after which there is a report."""
        yield from range(self.report_every, until + 1, self.report_every)
        if until == self.updates and until % self.report_every:
            yield until

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            check_whole(f"Plan: {name}", getattr(self, name), least)
        if self.trace_every is not None:
            check_whole("Plan: trace_every", self.trace_every, 0)
        if isinstance(self.report_splits, str):
            raise ValueError(f"Plan: report_splits must be a list, such as ('test',), not {self.report_splits!r}")
        if self.objective not in ("validation", "training"):
            raise ValueError(f"the objective is validation or training, not {self.objective!r}")
