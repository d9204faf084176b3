"""How an audit tells what it does, and keeps step with others beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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


#: The pace of an audit by itself.
ALONE = Pace(begin=lambda _number: None, stopped=lambda: False)
