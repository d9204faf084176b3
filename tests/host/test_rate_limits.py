"""What hosts say of their limits, and how a collector gives way to them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from verifier.host.rate_limits import Gate, Slots, exhausted_for_s, retry_after_s

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "3600"}, 60.0),
        ({"retry-after": "inf"}, 60.0),
        ({"retry-after": "Fri, 02 Jan 2026 03:04:15 GMT"}, 10.0),
        ({"retry-after": "Fri, 02 Jan 2026 03:04:15 -0000"}, 10.0),
        ({"retry-after": "Thu, 01 Jan 2026 00:00:00 GMT"}, None),
        (
            {
                "retry-after": "Thu, 01 Jan 2026 00:00:04 GMT",
                "date": "Thu, 01 Jan 2026 00:00:00 GMT",
            },
            4.0,
        ),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "later"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_every_form_of_retry_after_is_read(headers: dict[str, str], expected: float | None) -> None:
    """Milliseconds, seconds, fractions, dates by the host's own clock; at most a minute.

    Nonsense, and a date gone by, say nothing.
    """
    assert retry_after_s(headers, now=NOW) == expected


@pytest.mark.parametrize(
    ("left", "reset", "expected"),
    [
        ("0", "1s", 1.0),
        ("0", "120ms", 0.12),
        ("0", "0m2.5s", 2.5),
        ("0", "6m0s", 60.0),
        ("0", "7.5", 7.5),
        ("0", str(int(NOW.timestamp()) + 9), 9.0),
        ("0", str((int(NOW.timestamp()) + 9) * 1000), 9.0),
        ("0", "2026-01-02T03:04:08Z", 3.0),
        ("0.4", "2s", 2.0),
        ("1", "2s", None),
        ("many", "2s", None),
        ("0", "soon", None),
        ("0", "-3", None),
        ("0", "nan", None),
        ("0", "2026-01-01T00:00:00Z", None),
    ],
)
def test_a_used_up_window_says_when_it_opens(left: str, reset: str, expected: float | None) -> None:
    """Durations, seconds, moments in seconds or milliseconds, ISO dates; at most a minute."""
    headers = {"x-ratelimit-remaining-requests": left, "x-ratelimit-reset-requests": reset}

    assert exhausted_for_s(headers, now=NOW) == expected


@pytest.mark.parametrize(
    "names",
    [
        ("x-ratelimit-remaining", "x-ratelimit-reset"),
        ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
        ("ratelimit-remaining", "ratelimit-reset"),
        ("x-tokenlimit-remaining", "x-tokenlimit-reset"),
        ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ],
)
def test_the_names_that_hosts_use_are_known(names: tuple[str, str]) -> None:
    """Requests and tokens, with and without a kind, in several families."""
    assert exhausted_for_s({names[0]: "0", names[1]: "3"}, now=NOW) == 3.0


def test_the_longest_of_several_windows_counts() -> None:
    """Requests may be free again while tokens are not."""
    headers = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "5s",
    }

    assert exhausted_for_s(headers, now=NOW) == 5.0


def room(slots: Slots) -> int:
    """How many places there are."""

    async def count() -> int:
        taken = 0
        async with asyncio.TaskGroup() as group:

            async def take() -> None:
                nonlocal taken
                async with slots.slot():
                    taken += 1
                    await never.wait()

            never = asyncio.Event()
            for _ in range(20):
                group.create_task(take())
            await asyncio.sleep(0.01)
            found = taken
            never.set()
        return found

    return asyncio.run(count())


def test_one_burst_of_refusals_halves_once() -> None:
    """Requests that were under way when the number fell say nothing new."""
    slots = Slots(8)
    for _ in range(5):
        slots.fewer(asked_at=1.0, now=2.0)

    assert room(slots) == 4


def test_refusals_of_later_requests_halve_again_but_leave_one() -> None:
    """A host that is always full is asked one thing at a time."""
    slots = Slots(8)
    for moment in range(5):
        slots.fewer(asked_at=moment, now=moment)

    assert room(slots) == 1


def test_answers_bring_the_places_back() -> None:
    """About one place for each round of answers, up to what was allowed."""
    found = []
    for answers in (5, 100):
        slots = Slots(8)
        slots.fewer(asked_at=0.0, now=0.0)
        for _ in range(answers):
            slots.more()
        found.append(room(slots))

    assert found == [5, 8]


def test_the_latest_pause_counts_for_everyone() -> None:
    """A shorter wish does not open the gate before a longer one."""
    gate = Gate()
    assert gate.left_s(since=0.0) == 0.0
    gate.close(until=10.0)
    gate.close(until=4.0)

    assert gate.left_s(since=7.0) == 3.0
    assert gate.left_s(since=11.0) == 0.0
