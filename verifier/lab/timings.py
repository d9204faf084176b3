"""How long the parts of a calibration took, kept in its work folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from verifier.files.run_folder import append_line, make_folder
from verifier.files.stored import read_rows

#: The file of a work folder.
TIMINGS: Final = "timings.jsonl"

#: Loading an engine, putting weights in place, having replies made, scoring them.
Part = Literal["loading", "swapping", "asking", "scoring"]

#: Parts that took less, such as a stack that was there already, tell nothing of the next.
_LEAST_S: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One part, from its beginning to its end."""

    part: Part
    stack: str  # "": of several
    seconds: float


class Clock:
    """Notes how long parts take; one that breaks off is not noted."""

    def __init__(self, work: Path) -> None:
        self._work = work

    @contextmanager
    def times(self, part: Part, stack: str = "") -> Iterator[None]:
        """Time what is done within."""
        start = time.monotonic()
        yield
        seconds = round(time.monotonic() - start, 3)
        if seconds >= _LEAST_S:
            make_folder(self._work)
            timing = Timing(part=part, stack=stack, seconds=seconds)
            append_line(self._work / TIMINGS, asdict(timing))


def read_timings(work: Path) -> list[Timing]:
    """What a work folder says; none where nothing was done yet."""
    return list(read_rows(work / TIMINGS, Timing, advice="remove that file"))
