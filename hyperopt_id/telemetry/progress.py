"""What a person sees while a run goes on: a bar on a terminal or a log line now and then, and ``log.txt``."""

import logging
import time
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hyperopt_id.files import open_to_write
from hyperopt_id.telemetry.measure import typical
from hyperopt_id.terminal import Screen, screen

SECONDS_BETWEEN_LINES = 10.0
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
MODES = ("auto", "bar", "none")
_SHOWN = ("loss/train", "loss/validation", "accuracy/validation")

logger = logging.getLogger("hyperopt_id")


class _ConsoleHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def __init__(self, stream: Screen) -> None:
        super().__init__()
        self._screen = stream

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=self._screen)  # pyright: ignore[reportArgumentType]


class _FileHandler(logging.FileHandler):
    """Drops what cannot be written: a full disk ends no run here."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=open_to_write)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        del record

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class Progress:
    """Shows how far a run of ``total`` hyper-updates (None: nobody knows) is, of which ``done`` were made before; a
    search counts another ``unit``.

    While it is open, messages of the ``hyperopt_id`` loggers go to ``log_file`` and to the terminal (with
    ``none`` only warnings do).
    """

    def __init__(self, mode: str, total: int | None, done: int, log_file: Path, unit: str = "update") -> None:
        if mode not in MODES:
            raise ValueError(f"progress must be one of {', '.join(MODES)}, not {mode!r}")
        self._total, self._unit, self._last_line = total, unit, -float("inf")
        self._first: tuple[float, int] | None = None  # when the first report came, and of which update
        shown: Any = screen()
        with_bar = mode == "bar" or (mode == "auto" and shown.isatty())
        bar = {"total": total, "initial": done, "bar_format": BAR, "dynamic_ncols": True, "file": shown}
        self._bar = tqdm(**bar) if with_bar else None
        self._level_before = logger.level
        logger.setLevel(logging.INFO)
        console = _ConsoleHandler(shown)
        console.setLevel(logging.WARNING if mode == "none" else logging.INFO)
        self._handlers: list[logging.Handler] = [console]
        logger.addHandler(console)
        try:
            file = _FileHandler(log_file, encoding="utf-8")
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            self._handlers.append(file)
            logger.addHandler(file)
        except OSError as error:
            logger.warning("%s cannot be written (%s): the run goes on without it", log_file, error.strerror)

    def begin(self, done: int) -> None:
        """``done`` of the hyper-updates were made before."""
        if self._bar is not None and done:
            self._bar.initial = self._bar.n = done
            self._bar.refresh()

    def note(self, message: str) -> None:
        """Write a message into the log file alone."""
        record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, message, (), None)
        for handler in self._handlers:
            if isinstance(handler, _FileHandler):
                handler.handle(record)

    def show(self, update: int, record: dict[str, Any]) -> None:
        """Show the state after hyper-update ``update``; ``record`` is the line of ``metrics.jsonl``."""
        now = time.monotonic()
        text, left = headline(record), self._left(update, now)
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join([*left, text]), refresh=False)  # a narrow terminal cuts the end off
            self._bar.update(update - self._bar.n)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES or update == self._total:
            self._last_line = now
            of = "" if self._total is None else f"/{self._total}"
            logger.info("%s %d%s: %s", self._unit, update, of, ", ".join([text, *left]))

    def _left(self, update: int, now: float) -> list[str]:
        """The time left at the pace since the first report: what came before it, such as compiling, comes once."""
        began, first = self._first = self._first or (now, update)
        if self._total is None or (update == first and update < self._total):
            return []
        left = (now - began) / max(update - first, 1) * (self._total - update)
        return [f"{tqdm.format_interval(left)} left"]

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(self._level_before)


def headline(record: dict[str, Any]) -> str:
    """``loss/train 0.412, lr 0.0031``: losses and natural hyperparameters, medians where there are many."""
    shown = {name: record[name] for name in _SHOWN if name in record}
    shown |= {name.removeprefix("hyper/"): value for name, value in record.items() if name.startswith("hyper/")}
    return ", ".join(f"{name} {typical(value):.4g}" for name, value in shown.items())
