"""Pieces of a stream to the one text that they add up to, or to none where they tell two."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from verifier.host.pieces import BrokenStream, Piece, TwoReadings, read_pieces

WORDS = ("The", " cat", " sat", " on", " the", " mat", ".")
COUNT = len(WORDS)
TEXT = "".join(WORDS)


def so_far(words: Sequence[str] = WORDS) -> list[str]:
    """All that was said up to each word."""
    return ["".join(words[: n + 1]) for n in range(len(words))]


def read(texts: Sequence[str], total: int | None, **how: Any) -> str:
    """The text that pieces add up to; `counts` are running ones, `named` what each is named by."""
    counts, named = how.pop("counts", None), how.pop("named", None)
    pieces = [
        Piece(
            texts={"content": text}, event=(text, counts and counts[n]),
            count=counts and counts[n], named=named and named[n].encode(),
        )
        for n, text in enumerate(texts)
    ]  # fmt: skip
    said = ""
    for piece, step in zip(pieces, read_pieces(pieces, total=total, **how), strict=True):
        text = piece.texts["content"]
        said = said if step == "again" else text if step == "all" else said + text
    return said


# -- honest streams --------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [None, COUNT, COUNT + 1, 0])
def test_an_ordinary_stream_is_what_its_pieces_say(total: int | None) -> None:
    """With the end counted or not, or nothing counted."""
    assert read(WORDS, total) == TEXT


@pytest.mark.parametrize(
    "texts",
    [
        ("ha", " ha", " ha", " ha"),
        ("ha ",) * 12,
        ("1", " ", "1", " ", "1"),
        ("1", "1"),
        ("1", "1", "2", "2"),
        ("\n", "\n", "The", " end"),
        ("a", "b", "a", "b", "a", "b", "."),
        ("no no ",) * 9,
        ("=",) * 40,
        ("我", "我", "们"),
        ("    ", "x", " =", " ", "1", "\n", "    ", "x", " =", " ", "1"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("more", [None, 0, 1])
def test_a_text_that_repeats_itself_is_not_collapsed(
    texts: tuple[str, ...], more: int | None
) -> None:
    """The end is counted, or the limit came first; or nothing is counted, and much was said."""
    total = None if more is None else sum(max(1, len(t.split())) for t in texts) + more
    if total is None and len(texts) == 2:
        with pytest.raises(TwoReadings):
            read(texts, total)
    else:
        assert read(texts, total, at_limit=more == 0) == "".join(texts)


@pytest.mark.parametrize("texts", [("\n", "\n", "The", " end"), ("1", "1"), ("No", " no", " no")])
def test_an_end_that_is_not_counted_leaves_repeated_tokens_in_doubt(texts: tuple[str, ...]) -> None:
    """As many pieces as tokens: one that came twice stands in the place of the end."""
    with pytest.raises(TwoReadings):
        read(texts, len(texts))
    assert read(texts, len(texts), at_limit=True) == "".join(texts)
    assert read(texts, len(texts) + 1) == "".join(texts)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=12), st.booleans())
def test_honest_streams_of_any_pieces_are_read_as_they_are(texts: list[str], ends: bool) -> None:
    """But for pieces that begin with all that was said before them, and words that come twice in a
    row: those may be set aside."""
    phrase = re.compile(r"[^\W\d_]|\S\s+\S")
    assume(all(one != other or not phrase.search(one) for one, other in pairwise(texts)))
    assume(len(texts) < 6 or texts[::2] != texts[1::2])
    said = ""
    for n, text in enumerate(texts):
        is_last = n == len(texts) - 1
        assume(not (said and text.startswith(said) and (text != said or is_last)))
        assume(not (said and is_last and text.strip() == said.strip()))
        said += text
    total = sum(max(1, len(text.split())) for text in texts) + ends

    assert read(texts, total, at_limit=not ends) == "".join(texts)


@settings(max_examples=600, deadline=None)
@given(
    st.text("ab \n", min_size=1, max_size=14), st.sets(st.integers(1, 13)), st.integers(0, 2),
    st.booleans(),
)  # fmt: skip
@example("000", {1}, 0, True)
@example("aab", {1}, 1, True)
def test_no_honest_stream_is_read_as_another_text(
    text: str, cuts: set[int], more: int, counted: bool
) -> None:
    """Whatever repeats, and wherever it is cut: it is what was said, or it is set aside.

    Texts of two letters, cut at random, are as like to what other hosts send as honest texts get.
    """
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    texts = [text[a:b] for a, b in pairwise(places)]
    total = sum(max(1, len(part.split())) for part in texts) + more
    try:
        assert read(texts, total if counted else None) == text
    except TwoReadings:
        said = ""
        doubts = [False]
        for part in texts:
            doubts.append(bool(said) and part.startswith(said))
            said += part
        twice = any(a == b for a, b in pairwise(texts))
        ends_alike = said.strip() == texts[-1].strip() * 2 or text.endswith(texts[-1] * 2)
        assert any(doubts) or twice or ends_alike or len(set("".join(texts).split())) < 3


# -- hosts that say all that was said so far -------------------------------------------------------


@pytest.mark.parametrize("total", [None, COUNT, COUNT + 1])
@pytest.mark.parametrize("again", [0, 1, 3])
def test_pieces_that_hold_all_that_was_said_are_not_added_up(total: int | None, again: int) -> None:
    """The last one is the text, however often it comes."""
    assert read([*so_far(), *[TEXT] * again], total) == TEXT


@pytest.mark.parametrize("every", [2, 3, 5, 7])
def test_now_and_then_is_enough(every: int) -> None:
    """Pieces that hold all stand for what came before them, all others are added."""
    told = [all_ if n % every == 0 else new
            for n, (all_, new) in enumerate(zip(so_far(), WORDS, strict=True), 1)]  # fmt: skip

    assert read(told, COUNT) == TEXT


def test_a_running_count_does_not_hide_it() -> None:
    """It says how much was made up to each event."""
    assert read(so_far(), COUNT, counts=[*range(1, COUNT + 1)]) == TEXT


@pytest.mark.parametrize("words", [("我", "是", "一", "只", "猫"), tuple("12345"), tuple("abcdef")])
def test_texts_without_spaces_are_known_by_how_often_it_happens(words: tuple[str, ...]) -> None:
    """No chance makes four pieces in a row begin with all before them."""
    assert read(so_far(words), len(words) + 1) == "".join(words)


@pytest.mark.parametrize("texts", [("The", "The cat"), ("1", "12", "123")])
def test_two_or_three_pieces_tell_nothing(texts: tuple[str, ...]) -> None:
    """They may be all that was said so far, or what was said next."""
    with pytest.raises(TwoReadings):
        read(texts, 4)


def test_the_tokens_that_a_host_names_tell() -> None:
    """Where they spell one of the two readings alone."""
    assert read(("The", "The cat"), 3, named=("The", " cat")) == "The cat"
    with pytest.raises(TwoReadings):
        read(("The", "The cat"), 4, named=("The", "The cat"))
    assert read(("1", "12"), 3, named=("1", "2")) == "12"


@pytest.mark.parametrize("total", [None, COUNT, COUNT + 1])
def test_cumulative_pieces_of_single_characters(total: int | None) -> None:
    """More pieces than tokens, each with all that was said."""
    assert read(so_far(tuple(TEXT)), total) == TEXT


# -- hosts that say something twice ----------------------------------------------------------------


@pytest.mark.parametrize("total", [COUNT, COUNT + 1])
@pytest.mark.parametrize("again", [TEXT, f" {TEXT}\n"])
def test_the_whole_answer_said_again_is_said_once(total: int, again: str) -> None:
    """As the last piece; white space around it does not matter."""
    assert read([*WORDS, again], total) == TEXT


def test_the_whole_answer_behind_the_end_is_said_once() -> None:
    """No new text comes after the end, so nothing need be counted."""
    assert read([*WORDS, TEXT], None, after_end=COUNT) == TEXT
    with pytest.raises(BrokenStream, match="after the end"):
        read([*WORDS, " More"], None, after_end=COUNT)


def test_what_the_host_says_in_another_field_tells() -> None:
    """Which of two readings is the text."""
    few = WORDS[:3]
    said = "".join(few)
    with pytest.raises(TwoReadings):
        read([*few, said], None)
    assert read([*few, said], None, whole=said) == said
    assert read([*few, said], None, whole=said * 2) == said * 2


def test_a_long_text_that_one_piece_says_whole_again_needs_no_count() -> None:
    """It is far longer than any piece before, and does not repeat itself."""
    words = [*WORDS[:-1], " and", " looked", " at", " them."]
    text = "".join(words)

    assert read([*words, text], None) == text
    assert read([*words[:-1], text], None) == text
    with pytest.raises(TwoReadings):
        read(["no ", "yes "] * 6 + ["no yes " * 6], None)


@pytest.mark.parametrize("total", [None, COUNT, COUNT + 1])
def test_events_that_come_twice_each_are_said_once(total: int | None) -> None:
    """Or set aside where nothing is counted."""
    twice = [word for word in WORDS for _ in range(2)]
    if total is None:
        with pytest.raises(TwoReadings):
            read(twice, total)
    else:
        assert read(twice, total) == TEXT


def test_a_running_count_shows_what_came_twice() -> None:
    """An event with the count and the text of its neighbour is that neighbour."""
    texts = [*WORDS[:3], WORDS[2], *WORDS[3:]]

    assert read(texts, COUNT, counts=[1, 2, 3, 3, 4, 5, 6, 7]) == TEXT
    with pytest.raises(BrokenStream, match="goes back"):
        read(WORDS, COUNT, counts=[1, 3, 2, 4, 5, 6, 7])


@pytest.mark.parametrize(
    "counts", [[4, 4, 4, 4], [0, 0, 0, 4], [1, 1, 1, 1], [1, 1, 1, 4], [2, 1, 1, 1]]
)
def test_counts_that_do_not_run_number_nothing(counts: list[int]) -> None:
    """One number on each, zeros until the last, or each event's own tokens."""
    total = sum(counts) if counts[0] in (1, 2) and counts[-1] == 1 else 4

    assert read(["ha"] * 4, total, counts=counts) == "hahahaha"


def test_one_piece_too_many_is_set_aside_where_one_may_have_come_twice() -> None:
    """The count allows for one that is not counted, too."""
    with pytest.raises(TwoReadings):
        read([*WORDS[:3], WORDS[2], *WORDS[3:]], COUNT)


@pytest.mark.parametrize("total", [None, 20])
def test_a_phrase_that_comes_twice_is_set_aside(total: int | None) -> None:
    """In a stream of several tokens a piece, where nothing numbers them; and a word is."""
    for twice in (" on the", " bookkeeping"):
        with pytest.raises(TwoReadings):
            read(["The cat sat", twice, twice, " mat today."], total)


# -- texts that are cut anew -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pieces_smaller_than_tokens_are_added_up(size: int) -> None:
    """More pieces than tokens; text and count are right."""
    text = "Yesterday all committees assessed bookkeepers' balloons."
    texts = [text[n : n + size] for n in range(0, len(text), size)]

    assert read(texts, 9) == text


def test_a_text_cut_anew_that_came_twice_is_not_added_up() -> None:
    """Half of it is not what was counted, or may not be."""
    with pytest.raises((BrokenStream, TwoReadings)):
        read(list(TEXT) * 2, COUNT)


def test_a_stream_that_began_again_does_not_add_up() -> None:
    """Its words came twice, and nothing numbers them."""
    with pytest.raises(BrokenStream, match="14 pieces for 7 tokens"):
        read(WORDS * 2, COUNT)


# -- bounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts",
    [
        ["x"] * 30_000,
        ["=" * n for n in range(1, 1500)],
        ["ab" * n for n in range(1, 800)],
        so_far(tuple("abcdefghij" * 120)),
        ["a"] + ["ab"] * 20_000,
    ],
    ids=["one sign", "growing", "growing twos", "cumulative", "idle"],
)
def test_no_stream_takes_long(texts: list[str]) -> None:
    """Whatever repeats in it: a host cannot keep an audit busy."""
    began = time.process_time()
    with suppress(TwoReadings):
        read(texts, None)
    assert time.process_time() - began < 30  # it takes one, where what is quadratic takes hundreds
