"""How hard one host may be asked: what its headers say of its limits, and what follows from them.

Knows nothing of requests, probes or HTTP clients.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

#: A host that asks for a longer pause is asked again after this; its own wish may be a mistake.
MAX_WAIT_S: Final = 60.0

_UNITS_S: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|[dhms]))+")
_PIECE: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|us|[dhms])")
#: Larger numbers are moments: seconds, or milliseconds, since 1970.
_EPOCH_S: Final = 1e8
_EPOCH_MS: Final = 1e11
#: Names of "what is left" and "when there is more"; the second may stand without a kind.
_WINDOWS: Final = tuple(
    (f"{family}-remaining{kind}", f"{family}-reset{kind}")
    for family in ("x-ratelimit", "ratelimit", "x-tokenlimit", "anthropic-ratelimit")
    for kind in ("", "-requests", "-tokens")
) + tuple(
    (f"anthropic-ratelimit-{kind}-remaining", f"anthropic-ratelimit-{kind}-reset")
    for kind in ("requests", "tokens", "input-tokens", "output-tokens")
)


def retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Seconds the host asks to wait, at most a minute: `retry-after-ms`, else `Retry-After`.

    A date is read against the host's own `Date`, so that its clock may be wrong; one that is past
    says nothing. None: the host does not say.
    """
    for value, unit_s in (
        (headers.get("retry-after-ms"), 0.001),
        (headers.get("retry-after"), 1.0),
    ):
        wait = None if value is None else _seconds(value, unit_s, headers, now)
        if wait is not None:
            return min(wait, MAX_WAIT_S)
    return None


def _seconds(value: str, unit_s: float, headers: Mapping[str, str], now: datetime) -> float | None:
    try:
        wait = float(value) * unit_s
    except ValueError:
        moment = _moment(value)
        if moment is None:
            return None
        wait = (moment - (_moment(headers.get("date", "")) or now)).total_seconds()
        return wait if wait > 0 else None
    return wait if wait >= 0 else None  # a comparison that NaN fails


def _moment(value: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def exhausted_for_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Seconds until a used-up window of requests or tokens opens again; None: none is used up.

    Reads `x-ratelimit-remaining-requests` and its kin, with resets given as seconds, as durations
    such as 2m59.5s, as seconds or milliseconds since 1970, or in ISO 8601. At most a minute.
    """
    waits = [
        wait
        for remaining, reset in _WINDOWS
        if _is_used_up(headers.get(remaining))
        and (wait := _until(headers.get(reset), headers, now)) is not None
    ]
    return min(max(waits), MAX_WAIT_S) if waits else None


def _is_used_up(remaining: str | None) -> bool:
    try:
        return remaining is not None and float(remaining) < 1
    except ValueError:
        return False


def _until(reset: str | None, headers: Mapping[str, str], now: datetime) -> float | None:
    if reset is None:
        return None
    reset = reset.strip()
    if _DURATION.fullmatch(reset):
        return sum(float(number) * _UNITS_S[unit] for number, unit in _PIECE.findall(reset))
    host_now = (_moment(headers.get("date", "")) or now).timestamp()
    try:
        number = float(reset)
    except ValueError:
        try:
            number = datetime.fromisoformat(reset).timestamp()
        except (ValueError, OverflowError):
            return None
    if number >= _EPOCH_MS:
        number /= 1000
    wait = number - host_now if number >= _EPOCH_S else number
    return wait if math.isfinite(wait) and wait >= 0 else None


class Slots:
    """How many probes may be under way: halved when the host says "too many", then regained.

    Additive increase by about one for each round of answers, multiplicative decrease (Chiu and
    Jain 1989), once for each round: a burst of refusals is one sign of too much.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._taken = 0
        self._lowered_at = -math.inf
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """One place; waits until there is one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._taken < int(self._limit))
            self._taken += 1
        try:
            yield
        finally:
            async with self._changed:
                self._taken -= 1
                self._changed.notify_all()

    def fewer(self, *, asked_at: float, now: float) -> None:
        """Halve, for a request sent at `asked_at`, unless that was done since it was sent."""
        if asked_at >= self._lowered_at:
            self._limit = max(1.0, self._limit / 2)
            self._lowered_at = now

    def more(self) -> None:
        """Regain a little, for an answer."""
        self._limit = min(float(self._most), self._limit + 1 / self._limit)


class Gate:
    """Until when nobody may ask: a pause that a host asks one worker for holds for all of them."""

    def __init__(self) -> None:
        self._until = -math.inf

    def close(self, *, until: float) -> None:
        """Nobody may ask before this moment of the loop's clock; the latest moment counts."""
        self._until = max(self._until, until)

    def left_s(self, *, since: float) -> float:
        """Seconds from `since` until everyone may ask."""
        return max(0.0, self._until - since)
