"""Command line options that several commands have, each described once, and how commands end."""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Any

from hyperopt_id.files import shorten
from hyperopt_id.interruption import Interrupted, answered
from hyperopt_id.terminal import lasting_streams

FLAGS = {  # options that are short for a key of the config
    "runs": "population.runs",
    "sample": "population.sample",
    "seed": "seed",
    "device": "device",
    "dtype": "dtype",
    "threads": "threads",
    "data_root": "data_root",
    "log_dir": "log.dir",
    "group": "log.group",
    "name": "log.name",
    "progress": "log.progress",
}
MOST = 1000  # characters of a line that is shown
MANY: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "config": (("-c", "--config"), {**MANY, "metavar": "FILE", "help": "YAML files, later ones win"}),
    "set": (("-s", "--set"), {**MANY, "metavar": "K=V", "help": "override one key, dotted"}),
    "seed": (("--seed",), {"type": int, "metavar": "N", "help": "everything random follows from it"}),
    "device": (("--device",), {"choices": ("auto", "cpu", "cuda")}),
    "dtype": (("--dtype",), {"choices": ("float32", "float64", "bfloat16"), "help": "bfloat16: autocast"}),
    "threads": (("--threads",), {"type": int, "metavar": "N", "help": "CPU threads (default: torch's choice)"}),
    "data_root": (
        ("--data-root",),
        {"metavar": "DIR", "help": "where data sets live (default: $HYPEROPT_ID_DATA, else ./data)"},
    ),
    "log_dir": (("-l", "--log-dir"), {"metavar": "DIR", "help": "logs go to DIR/GROUP/NAME (default DIR: runs)"}),
    "group": (("-g", "--group"), {}),
    "name": (("-n", "--name"), {"help": "default: the time"}),
    "progress": (("--progress",), {"choices": ("auto", "bar", "none")}),
}
WHAT = ("config", "set", "seed", "device", "dtype", "threads", "data_root")
WHERE = ("log_dir", "group", "name", "progress")


class Parser(argparse.ArgumentParser):
    """A parser that says where settings belong: `-n first inner.updates=100` has them behind another option."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        options, rest = self.parse_known_args(args, namespace)
        settings = [word for word in rest if "=" in word and not word.startswith("-")]
        if settings:
            self.error(f"settings stand directly behind -s, as in -s {shlex.join(settings)}")
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return options


def add_options(parser: argparse.ArgumentParser, *names: str, **changed: dict[str, Any]) -> None:
    """Add options by name; `changed` has what is another command's own about one, such as its help or default."""
    for name in names:
        flags, settings = OPTIONS[name]
        parser.add_argument(*flags, **{**settings, **changed.get(name, {})})


def given_flags(options: argparse.Namespace) -> list[str]:
    """Overrides that options stand for."""
    return [
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for flag, key in FLAGS.items()
        if (value := getattr(options, flag, None)) is not None
    ]


def ended(command: Callable[[], Any], interrupted: str = "") -> int:
    """Run `command`; the exit status. A mistake of the user, and what the system refuses (a name that is too long, no
    memory), end in a message and 2; Ctrl-C in 130, SIGTERM in 143 and SIGHUP in 129, and a line that says how to go on
    (see `interruption`)."""
    with lasting_streams():
        return _ended(command, interrupted)


def _ended(command: Callable[[], Any], interrupted: str) -> int:
    try:
        with answered():
            command()
    except (ValueError, OSError, MemoryError) as error:
        if not (isinstance(error, OSError) and getattr(error, "__notes__", ())):  # the log of a run has said it
            print("\n".join(shorten(line, MOST) for line in _message(error).split("\n")), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else 0
        if said := interrupted if number else str(error) or interrupted:
            print(said, file=sys.stderr)
        return 128 + (number or signal.SIGINT)
    return 0


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"error: {error.strerror}{f': {error.filename}' if error.filename is not None else ''}"
    return f"error: {error}" if str(error) else "error: there is not enough memory"
