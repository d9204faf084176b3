"""How an audit tells what it does, and keeps step with others beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


class Meter:
    """How long a unit of work takes, by what was done so far."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._work, self._seconds = 0, 0.0

    @contextmanager
    def running(self, work: Callable[[], int]) -> Iterator[None]:
        """Take in what is done meanwhile: `work` says how much there is of it, before and after."""
        before, began = work(), self._clock()
        yield
        done = work() - before
        if done > 0:  # what was found on disk tells nothing
            self._work += done
            self._seconds += self._clock() - began

    def seconds(self, work: int) -> float | None:
        """What so much work may take; None: nothing is known yet."""
        return self._seconds / self._work * work if self._work else None


#: The pace of an audit by itself.
ALONE = Pace(begin=lambda _number: None, stopped=lambda: False)


def until(pace: Pace, deadline_s: float) -> Pace:
    """The pace, given up once so many seconds have passed since the command began."""
    ends_at = (time.monotonic() if pace.began is None else pace.began) + deadline_s

    def late() -> bool:
        return time.monotonic() >= ends_at

    return replace(pace, deadline_s=deadline_s, late=late, stopped=lambda: pace.stopped() or late())
