"""What came of a trial, of any part of the chaos harness."""

from typing import Literal, NamedTuple

Fault = Literal["wrong numbers", "lost", "traceback", "hang", "outside", "untidy", "not one line"]


class Outcome(NamedTuple):
    """`what` was tried (enough to repeat it), `fault` that it had, None for a right one, with details; `events`: kills,
    losses or damages that happened in it."""

    what: str
    fault: Fault | None = None
    detail: str = ""
    events: int = 1
