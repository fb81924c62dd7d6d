"""Telemetry: what a run leaves behind and shows while it goes on.

    directory/config.yaml        the resolved config
    directory/config.json        the same for programs, and the values that hyperparameters start at
    directory/environment.json   versions, commit, command, device
    directory/metrics.jsonl      one report per line: the source of truth
    directory/events.out.*       the same for TensorBoard
    directory/trace/             hyperparameters as training used them (see ``trace``)
    directory/log.txt            messages
    directory/summary.json       written last, so a readable one means that the run is finished

Order of work after a hyper-update: report it, have that on the disk, save the checkpoint. A run resumed from
the checkpoint of update u drops the reports after u, so its ``metrics.jsonl`` equals that of an uninterrupted
run in everything but ``time``.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hyperopt_id.files import naming
from hyperopt_id.interruption import Interrupted
from hyperopt_id.telemetry.directory import (
    OccupiedError,
    claim,
    describe_environment,
    first_device,
    is_finished,
    keep_until,
    read_json,
    records,
    remove_temporary,
    remove_traces,
    synchronize,
    write_json,
    write_text,
)
from hyperopt_id.telemetry.events import Board
from hyperopt_id.telemetry.measure import as_json, dump, measure
from hyperopt_id.telemetry.progress import Progress, logger

__all__ = [
    "OccupiedError",
    "Telemetry",
    "as_json",
    "first_device",
    "is_finished",
    "measure",
    "read_json",
    "records",
    "synchronize",
]


class Telemetry:
    """The reports of R runs that go on together; use as a context manager.

    ``config`` (plain nested data) becomes the columns of TensorBoard's HPARAMS tab, with ``initial`` =
    {name: R numbers} beside it to tell members apart; both go to ``config.json``, ``config_text`` to
    ``config.yaml``, when the run is new; without it, the command line cannot resume the run. ``total`` counts
    hyper-updates.
    ``resume_at`` is the hyper-update of the loaded checkpoint, None for a new run. Where it is not known yet
    (``continued``), the directory is locked and messages are logged, and the rest is for ``begin``.

    ``seconds`` is the time spent in here so far. ``ValueError``: see ``directory.claim`` and ``keep_until``.
    """

    def __init__(
        self,
        directory: str | Path,
        config: Mapping[str, Any],
        *,
        config_text: str = "",
        device: str = "cpu",
        runs: int = 1,
        total: int | None = None,
        progress: str = "auto",
        resume_at: int | None = None,
        continued: bool = False,
        initial: Mapping[str, Any] | None = None,
    ) -> None:
        began = self._opened_at = time.perf_counter()
        self.directory, self._runs, self._closed = Path(directory), runs, False
        self._config, self._initial, self._device = config, initial or {}, device
        self._resumable, self._board = bool(config_text), None
        self._metrics = claim(self.directory, continued or resume_at is not None)
        with ExitStack() as opened:
            opened.enter_context(self._metrics)
            if not continued and resume_at is None:
                write_json(self.directory / "config.json", {**config, "start": self._initial})
                write_text(self.directory / "config.yaml", config_text)
            self._progress = Progress(progress, total, resume_at or 0, self.directory / "log.txt")
            opened.callback(self._progress.close)
            if not continued:
                self.begin(resume_at)
            self._opened = opened.pop_all()
        self.seconds = time.perf_counter() - began

    def begin(self, resume_at: int | None, reports: Iterable[int] | None = None, digest: str | None = None) -> None:
        """Go on after hyper-update ``resume_at``: later reports are dropped. ``reports`` are the hyper-updates up to it
        that must have one, ``digest`` is that of their lines (None: not known). Raises ValueError, and has changed
        nothing, if they are others."""
        last, self._digest = keep_until(self._metrics, -1 if resume_at is None else resume_at, reports, digest)
        remove_temporary(self.directory)
        write_json(self.directory / "environment.json", describe_environment(self.directory, self._device))
        self._progress.begin(resume_at or 0)
        purge_step = None if resume_at is None else (0 if last is None else last["step"] + 1)
        self._board = self._boarded(lambda: Board(self.directory, self._config, self._runs, purge_step, self._initial))
        # a resumed run goes on counting where the kept reports end
        self._origin = time.monotonic() - (0.0 if last is None else last["time"])

    def report(self, update: int, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the report after hyper-update ``update`` and training step ``step``; return its line.

        A value is a number that all runs share, a tensor [R], or {parameter: tensor [R, ...]}; a tensor
        with further axes is written as ``{"min", "p10", "median", "p90", "max"}`` over them. A number that
        is not finite is null.
        """
        began = time.perf_counter()
        measured = {name: measure(value, self._runs) for name, value in values.items()}
        record: dict[str, Any] = {"step": step, "update": update, "time": time.monotonic() - self._origin}
        record |= {name: as_json(value, self._runs == 1) for name, value in measured.items()}
        line = dump(record).encode() + b"\n"
        try:
            with naming(self._metrics.name):
                self._metrics.write(line)
                self._metrics.flush()
        except OSError:
            with suppress(OSError):  # what is left to be written is tried once more
                self._metrics.close()
            raise
        self._digest.update(line)
        self._boarded(lambda: self._board and self._board.write(step, measured))
        self._progress.show(update, record)
        self.seconds += time.perf_counter() - began
        return record

    @property
    def digest(self) -> str:
        """SHA-256 of all reports so far."""
        return self._digest.hexdigest()

    def note(self, message: str, said_at: float) -> None:
        """Have a message in the log that was said at a time of ``time.perf_counter()``, if it was not open by then."""
        if said_at < self._opened_at:
            self._progress.note(message)

    def _boarded(self, work: Callable[[], Any]) -> Any:
        """Do something for TensorBoard, which no run needs."""
        try:
            return work()
        except OSError as error:
            logger.warning("TensorBoard's files cannot be written (%s): the run goes on without them", error.strerror)
            if self._board is not None:
                self._board.drop()
            self._board = None

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """End the run; with a ``summary`` (nested data, tensors allowed) it is finished. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with self._opened:
            self._boarded(lambda: self._board and self._board.close(finished=summary is not None))
            if summary is not None:
                write_json(self.directory / "summary.json", summary)
                logger.info("finished; results are in %s", self.directory)

    def discard(self) -> None:
        """End a run that never began: its files go, and the directory with them if it holds nothing else."""
        self.close()
        remove_traces(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not self._closed:
            reason = str(error) if isinstance(error, Interrupted) else f"{type(error).__name__}: {error}".rstrip(": ")
            cure = f"; continue with --resume {self.directory}" if self._resumable else ""
            logger.error("stopped by %s%s", reason, cure)
            error.add_note("said in the log")
        self.close()
