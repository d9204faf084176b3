"""How an audit tells what it does, and keeps step with others beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """Where progress goes. `tell` gets a line, `step` a name, how much is done, and of how much."""

    tell: Callable[[str], None]
    step: Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How an audit keeps step with others beside it."""

    begin: Callable[[int], None]  # called with a batch's number before it is asked; may wait
    stopped: Callable[[], bool]  # whether to give up what is being asked
    began: float | None = None  # by the monotonic clock, when the command did; None: just now
    deadline_s: float = math.inf  # after `began`, when what is under way is given up
    late: Callable[[], bool] = lambda: False  # whether that has come
    #: Whether others beside it need one more batch of its ordinary replies, although it has a
    #: verdict; asked before each batch.
    wanted: Callable[[], bool] = lambda: False


#: Seconds between two lines on waits.
_SELDOM_S: Final = 5.0


def seldom(tell: Callable[[str], None]) -> Callable[[str], None]:
    """`tell`, less the lines that come within a few seconds of another."""
    told_at = -math.inf

    def now_and_then(line: str) -> None:
        nonlocal told_at
        now = time.monotonic()
        if now - told_at >= _SELDOM_S:
            told_at = now
            tell(line)

    return now_and_then


#: The pace of an audit by itself.
ALONE = Pace(begin=lambda _number: None, stopped=lambda: False)


def until(pace: Pace, deadline_s: float) -> Pace:
    """The pace, given up once so many seconds have passed since the command began."""
    ends_at = (time.monotonic() if pace.began is None else pace.began) + deadline_s

    def late() -> bool:
        return time.monotonic() >= ends_at

    return replace(pace, deadline_s=deadline_s, late=late, stopped=lambda: pace.stopped() or late())
