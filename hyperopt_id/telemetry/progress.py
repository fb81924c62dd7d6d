"""What a person sees while a run goes on: a bar on a terminal or a log line now and then, and ``log.txt``."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hyperopt_id.telemetry.measure import typical

SECONDS_BETWEEN_LINES = 10.0
MODES = ("auto", "bar", "none")
_SHOWN = ("loss/train", "loss/validation", "accuracy/validation")

logger = logging.getLogger("hyperopt_id")


class _ConsoleHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class Progress:
    """Shows how far a run of ``total`` hyper-updates is, of which ``done`` were made before.

    While it is open, messages of the ``hyperopt_id`` loggers go to ``log_file`` and to the terminal (with
    ``none`` only warnings do).
    """

    def __init__(self, mode: str, total: int, done: int, log_file: Path) -> None:
        if mode not in MODES:
            raise ValueError(f"progress must be one of {', '.join(MODES)}, not {mode!r}")
        self._total, self._done = total, done
        self._started, self._last_line = time.monotonic(), -float("inf")
        with_bar = mode == "bar" or (mode == "auto" and sys.stderr.isatty())
        self._bar = tqdm(total=total, initial=done, unit="update", dynamic_ncols=True) if with_bar else None
        self._level_before = logger.level
        logger.setLevel(logging.INFO)
        file, console = logging.FileHandler(log_file, encoding="utf-8"), _ConsoleHandler()
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        console.setLevel(logging.WARNING if mode == "none" else logging.INFO)
        self._handlers = [file, console]
        for handler in self._handlers:
            logger.addHandler(handler)

    def show(self, update: int, record: dict[str, Any]) -> None:
        """Show the state after hyper-update ``update``; ``record`` is the line of ``metrics.jsonl``."""
        text = headline(record)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(update - self._bar.n)
        now = time.monotonic()
        if self._bar is None and (now - self._last_line >= SECONDS_BETWEEN_LINES or update == self._total):
            self._last_line = now
            left = (now - self._started) / max(update - self._done, 1) * (self._total - update)
            logger.info("update %d/%d: %s, %s left", update, self._total, text, tqdm.format_interval(left))

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
