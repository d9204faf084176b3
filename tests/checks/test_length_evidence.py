"""Cuts of long prompts and replies: the evidence keeps its level, has power, and known answers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from simulate import VOCABULARY, _score, make_calibration

from verifier.checks.length.evidence import (
    BEHIND,
    PLACES,
    REQUESTS,
    CeilingRow,
    Cut,
    LongRow,
    bracket,
    cut,
    limit_said,
    near_best,
    next_length,
    read_cut,
    tells,
    weigh_ceiling,
    weigh_context,
)
from verifier.evidence.calibration import Channel
from verifier.evidence.ledger import TEXT_SCALES, text_cells

CHANNEL: Channel = make_calibration().text
TOKENS = 4000
NEEDED = math.log(1 / 0.01)


def row(
    rng: np.random.Generator,
    *,
    scale: float,
    served: str = "",
    length: int = TOKENS,
    tokens: int = 20,
) -> LongRow:
    """A reply to a long prompt of a host that reads it whole, or under the cut `served`."""
    logits = {"": rng.normal(0, 2, (tokens, VOCABULARY))}
    for place in PLACES:
        for window in (1000, 2000):
            logits[f"{place}@{window}"] = rng.normal(0, 2, (tokens, VOCABULARY))
    z = logits[served]
    chosen = (z + rng.gumbel(0, scale, z.shape)).argmax(axis=1)
    cells = {name: text_cells(_score(z, chosen), range(tokens)) for name, z in logits.items()}
    return LongRow(
        probe_id="context-1", length=length, counted=None, whole=cells.pop(""), cuts=cells
    )


# -- level ---------------------------------------------------------------------------------------


def test_whole_prompts_are_accused_at_most_at_the_rate_promised() -> None:
    """At any noise, of any number of replies up to the look that is worst."""
    rng = np.random.default_rng(1)
    accused = 0
    audits = 150
    for _ in range(audits):
        scale = float(rng.choice([0.02, 0.1, 0.3, 1.0]))
        rows = [row(rng, scale=scale) for _ in range(3)]
        looks = [weigh_context(rows[: n + 1], tokens=8, channel=CHANNEL) for n in range(3)]
        accused += any(look is not None and look.log_e >= NEEDED for look in looks)

    assert accused <= audits * 0.01 + 3 * math.sqrt(audits * 0.01)


@pytest.mark.parametrize("limit", [50, 30])
def test_honest_ends_are_accused_at_most_at_the_rate_promised(limit: int) -> None:
    """A model that ends with any probability at each token is seldom said to be cut, nor is a host
    with a limit of its own that says so."""
    rng = np.random.default_rng(3)
    accused, audits = 0, 4000
    for _ in range(audits):
        chance = float(rng.choice([0.001, 0.01, 0.1]))
        rows = []
        for name in ("a", "b"):
            size = int(rng.geometric(chance))
            said, size = ("length", limit) if size > limit else ("stop", size)
            end = None if size >= 50 else tuple(math.log(chance) for _ in TEXT_SCALES)
            rows.append(
                CeilingRow(probe_id=name, asked=50, tokens=size, finish_reason=said, end=end)
            )
        accused += weigh_ceiling(rows, channel=CHANNEL) >= math.log(1 / 0.05)

    assert accused <= audits * 0.05 + 3 * math.sqrt(audits * 0.05)


# -- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.05, 0.3])
def test_a_cut_is_found_and_named(scale: float) -> None:
    """In one reply of twenty tokens, behind other noise too; a whole prompt is told from it."""
    rng = np.random.default_rng(2)
    found = [
        weigh_context([row(rng, scale=scale, served="middle@2000")], tokens=TOKENS, channel=CHANNEL)
        for _ in range(20)
    ]

    assert all(e is not None and e.log_e >= NEEDED for e in found)
    assert {e.best for e in found if e is not None} == {Cut(place="middle", window=2000)}
    whole = weigh_context([row(rng, scale=0.05)], tokens=TOKENS, channel=CHANNEL)
    assert whole is not None
    assert whole.log_e_whole >= NEEDED


# -- known answer --------------------------------------------------------------------------------


def test_the_evidence_is_the_mixture_over_all_windows_and_places() -> None:
    """By hand: one cut scored, a nat likelier at every scale than the best of the whole prompt."""
    flat = tuple(-3.0 for _ in TEXT_SCALES)
    better = tuple(-2.0 for _ in TEXT_SCALES)
    one = LongRow(probe_id="a", length=900, counted=700, whole=flat, cuts={"front@500": better})
    found = weigh_context([one], tokens=1000, channel=CHANNEL)

    assert found is not None
    assert found.log_e == pytest.approx(1.0 - math.log(5 * 1000))
    assert found.counted == (900, 700)
    shorter = LongRow(probe_id="b", length=400, counted=None, whole=flat, cuts={})
    both = weigh_context([one, shorter], tokens=1000, channel=CHANNEL)  # it is not cut at all
    assert both is not None
    assert both.log_e == pytest.approx(found.log_e)


def test_ends_are_held_to_how_likely_they_are() -> None:
    """By hand: 1 in 200 places to end at, and exp(-20) that the model ends there.

    Of a second, half of it within two tokens of the first.
    """
    end = tuple(-20.0 for _ in TEXT_SCALES)
    early = CeilingRow(probe_id="a", asked=200, tokens=90, finish_reason=None, end=end)
    whole = CeilingRow(probe_id="b", asked=200, tokens=200, finish_reason="length", end=None)

    assert weigh_ceiling([early], channel=CHANNEL) == pytest.approx(20 - math.log(200))
    again = CeilingRow(probe_id="b", asked=200, tokens=92, finish_reason="stop", end=end)
    both = 40 - math.log(200) + math.log(0.5 / 200 + 0.5 / 5)
    assert weigh_ceiling([early, again], channel=CHANNEL) == pytest.approx(both)
    assert weigh_ceiling([early, whole], channel=CHANNEL) < 0
    said = CeilingRow(probe_id="b", asked=200, tokens=90, finish_reason="length", end=end)
    assert weigh_ceiling([early, said], channel=CHANNEL) < 0
    assert weigh_ceiling([], channel=CHANNEL) == 0


# -- what is asked next, and read ----------------------------------------------------------------


def test_a_cut_that_some_longer_prompt_was_not_scored_under_says_nothing() -> None:
    """Else cuts could be dropped where they do badly."""
    flat = tuple(-3.0 for _ in TEXT_SCALES)
    better = tuple(9.0 for _ in TEXT_SCALES)
    rows = [
        LongRow(probe_id="a", length=900, counted=None, whole=flat, cuts={"front@500": better}),
        LongRow(probe_id="b", length=900, counted=None, whole=flat, cuts={}),
    ]

    found = weigh_context(rows, tokens=1000, channel=CHANNEL)
    assert found is not None
    assert found.best is None
    assert found.log_e < 0


def test_lengths_are_halved_towards_the_longest_that_fits() -> None:
    """The window is known to within the stated width after few prompts, and then none is asked."""
    window, rows, asked = 1234, [], []
    likely, unlikely = 0.0, -30.0
    quiet = tuple(likely if s <= 0.2 else unlikely for s in TEXT_SCALES)
    loud = tuple(unlikely if s <= 0.5 else likely for s in TEXT_SCALES)
    while True:
        length = next_length(rows, tokens=TOKENS, channel=CHANNEL, needed=9, excluded=9)
        if length is None:
            break
        asked.append(length)
        cells = quiet if length <= window else loud
        far = {f"middle@{length // 2}": tuple(unlikely for _ in TEXT_SCALES)}
        cuts = far if length <= window else {}  # cuts are scored of what fits
        rows.append(
            LongRow(probe_id=str(length), length=length, counted=None, whole=cells, cuts=cuts)
        )

    low, high = bracket(rows, CHANNEL)
    assert low <= window < (high or 0)
    assert (high or 0) - low <= 80
    assert asked[0] == TOKENS
    assert len(asked) <= REQUESTS


def test_a_reply_that_fits_a_cut_as_well_does_not_measure_a_window() -> None:
    """It may be the reply of a host that cut the prompt; one near the longest ended a search."""
    quiet = tuple(0.0 if s <= 0.2 else -30.0 for s in TEXT_SCALES)
    loud = tuple(-30.0 if s <= 0.5 else 0.0 for s in TEXT_SCALES)
    alike, far = quiet, tuple(-30.0 for _ in TEXT_SCALES)

    def one(length: int, whole: tuple[float, ...], cut: tuple[float, ...]) -> LongRow:
        cuts = {f"middle@{length // 2}": cut}
        return LongRow(probe_id=str(length), length=length, counted=None, whole=whole, cuts=cuts)

    cut_short = replace(one(2000, loud, far), cuts={})
    blind = [one(1995, quiet, alike), cut_short]
    assert not tells(blind[0], CHANNEL)
    assert bracket(blind, CHANNEL) == (0, 2000)
    assert next_length(blind, tokens=2000, channel=CHANNEL, needed=9, excluded=9) == 1000
    seeing = [one(1995, quiet, far), cut_short]
    assert tells(seeing[0], CHANNEL)
    assert bracket(seeing, CHANNEL) == (1995, 2000)
    assert not tells(replace(seeing[0], cuts={}), CHANNEL)


def test_a_window_is_known_to_what_was_scored_around_it() -> None:
    """Between two that were scored nothing is known, and at their edge nothing beyond."""

    def windows(**nats: float) -> tuple[int, int] | None:
        cuts = {f"end@{name[1:]}": tuple(n for _ in TEXT_SCALES) for name, n in nats.items()}
        far = tuple(-50.0 for _ in TEXT_SCALES)
        cuts["front@150"] = far
        one = LongRow(probe_id="a", length=900, counted=None, whole=far, cuts=cuts)
        found = weigh_context([one], tokens=1000, channel=CHANNEL)
        assert found is not None
        return found.windows

    assert windows(w100=-20, w200=-1, w300=0, w400=-20) == (101, 399)
    assert windows(w200=-1, w300=0, w400=-20) == (200, 399)
    assert windows(w100=-20, w300=0) == (101, 300)


def test_only_cuts_near_the_best_are_tried_on_more_prompts() -> None:
    """At any noise; one that a prompt is too short for is as good as the whole prompt there."""
    far = 2 * BEHIND
    best, near, behind, longer = (Cut(place="front", window=n) for n in (300, 340, 500, 1000))
    cuts = {
        best.name: (-far, -1.0),
        near.name: (-1.0 - BEHIND, -far),
        behind.name: (-1.1 - BEHIND, -far),
    }
    read = LongRow(probe_id="a", length=900, counted=None, whole=(-2.0, -far), cuts=cuts)

    assert near_best([best, near, behind, longer], read) == [best, near, longer]
    unread = replace(read, whole=(-1.1 - BEHIND, -far))
    assert near_best([best, near, behind, longer], unread) == [best, near]
    assert near_best([], read) == []


def test_cuts_keep_what_they_say() -> None:
    """By hand, of ten tokens of which two and one are the template's."""
    ids = tuple(range(10))
    kept = {p: cut(ids, Cut(place=p, window=6), head=2, tail=1) for p in PLACES}

    assert kept["front"] == (4, 5, 6, 7, 8, 9)
    assert kept["front-kept"] == (0, 1, 6, 7, 8, 9)
    assert kept["middle"] == (0, 1, 2, 7, 8, 9)
    assert kept["end"] == (0, 1, 2, 3, 4, 5)
    assert kept["end-kept"] == (0, 1, 2, 3, 4, 9)
    assert cut(ids, Cut(place="end", window=10), head=2, tail=1) == ids


@pytest.mark.parametrize(
    ("reason", "limit"),
    [
        ("HTTP 400: This model's maximum context length is 8192 tokens. However, your", 8192),
        ("HTTP 400: prompt is too long: 200,001 tokens > limit of 131,072", 131072),
        ("HTTP 413: Request Entity Too Large", None),
        ("HTTP 500: internal error 12345", None),
    ],
)
def test_a_limit_is_read_from_the_words_of_a_refusal(reason: str, limit: int | None) -> None:
    """As hosts word it."""
    assert limit_said(reason) == limit


@pytest.mark.parametrize("name", ["back@5", "front", "front@", "front@x", "front@²"])
def test_no_other_name_is_a_cut(name: str) -> None:
    """A run folder may come from a stranger."""
    with pytest.raises(ValueError, match="no cut"):
        read_cut(name)
