"""A reply along the paths of a pack: where it is followed, where it leaves, and at what level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from toy_pack import ToyPack, every_text, say

from verifier.evidence.ledger import FLOOR, TEXT_SCALES, event_cells, text_cells
from verifier.records import ReplyScore
from verifier.reference.pack_file import TOP
from verifier.scoring.paths import DOUBT, walk


def follow(pack: Any, text: str, finish: str = "length") -> Any:
    return walk(pack, 0, say(text, finish))


def names(pack: Any, walked: Any) -> list[list[str]]:
    """The tokens of each step."""
    return [[pack.names[s.place.tokens[m]] for m in s.members] for s in walked.steps]


PLAIN = ToyPack([[{"The": 0.9, "A": 0.05}, {" cat": 0.6, " dog": 0.3}, {"eos": 0.8, " sat": 0.1}]])


def test_a_reply_that_follows_the_path_is_judged_to_its_end() -> None:
    """Every place, and the end of the turn as a token of its own."""
    walked = follow(PLAIN, "The cat", "stop")

    assert names(PLAIN, walked) == [["The"], [" cat"], ["eos"]]
    assert walked.ended == "end of text"


def test_the_place_where_a_reply_leaves_is_judged_and_nothing_after_it() -> None:
    """By the token among the likeliest that spells what follows."""
    walked = follow(PLAIN, "The dog barks")

    assert names(PLAIN, walked) == [["The"], [" dog"]]
    assert walked.ended == "left"
    assert walked.end == len("The dog")


def test_what_none_of_the_likeliest_spells_is_one_outcome() -> None:
    """Its probability is what is left beside them, at scale 1."""
    walked = follow(PLAIN, "The house")

    assert names(PLAIN, walked) == [["The"], []]
    assert np.exp(walked.steps[1].cells[-1]) == pytest.approx(0.1)


def test_a_reply_that_ends_where_the_path_goes_on_is_judged_as_such() -> None:
    """That the turn ends is an event too."""
    walked = follow(PLAIN, "The", "stop")

    assert names(PLAIN, walked) == [["The"], []]


def test_a_reply_that_is_cut_says_nothing_of_what_would_have_come() -> None:
    """As `max_tokens` cuts one, between two tokens; a part of a token tells none."""
    assert names(PLAIN, follow(PLAIN, "The")) == [["The"]]
    assert names(PLAIN, follow(PLAIN, "The ca")) == [["The"]]
    assert follow(PLAIN, "The ca").ended == "end of text"


def test_a_branch_is_followed_where_the_pack_has_one() -> None:
    """A near-tie that fell the other way costs its own odds, and no more."""
    pack = ToyPack(
        [
            [{"Yes": 0.5, "No": 0.45}, {"!": 0.9}],
            [{"pe": 0.7, ".": 0.2}, {"eos": 0.9}],
        ],
        {(0, 0, "No"): 1},
    )

    walked = follow(pack, "Nope", "stop")

    assert names(pack, walked) == [["No"], ["pe"], ["eos"]]


def test_the_longest_token_that_fits_is_taken() -> None:
    """A text that begins with a shorter one is spelt by the longer, as tokenizers do."""
    pack = ToyPack([[{" the": 0.6, " there": 0.2, " t": 0.01}, {" cat": 0.9}]])

    assert names(pack, follow(pack, " there are")) == [[" there"]]
    assert names(pack, follow(pack, " the cat")) == [[" the"], [" cat"]]


def test_a_path_that_spells_the_same_in_other_tokens_is_kept() -> None:
    """Two line ends that the weights write one by one are not the token of two."""
    pack = ToyPack([[{"\n": 0.97, "\n\n": 1e-4}, {"\n": 0.97}, {"Hi": 0.9}]])

    walked = follow(pack, "x"[:0] + "\n\nHi")

    assert names(pack, walked) == [["\n"], ["\n"], ["Hi"]]


def test_two_spellings_that_are_about_as_likely_end_the_walk_as_one_event() -> None:
    """Nobody can tell which came: what both have together is what is judged."""
    pack = ToyPack([[{"\n": 0.5, "\n\n": 0.3}, {"\n": 0.9}, {"Hi": 0.9}]])

    walked = follow(pack, "\n\nHi")

    assert walked.ended == "doubtful"
    assert names(pack, walked) == [["\n", "\n\n"]]
    assert np.exp(walked.steps[0].cells[-1]) == pytest.approx(0.5 * 0.9 + 0.3)


@pytest.mark.parametrize("text", ["Hello", " Hello"])
def test_white_space_in_front_may_have_been_stripped(text: str) -> None:
    """Many hosts strip it; the weights wrote it all the same."""
    pack = ToyPack([[{" Hello": 0.9}, {" you": 0.8}]])

    assert names(pack, follow(pack, f"{text} you")) == [[" Hello"], [" you"]]


def test_white_space_at_the_end_may_have_been_stripped() -> None:
    """The path ends the turn after a line end that nobody sees."""
    pack = ToyPack([[{"Done": 0.9}, {"\n": 0.8, "eos": 0.1}, {"eos": 0.9}]])

    walked = follow(pack, "Done", "stop")

    assert names(pack, walked) == [["Done"], ["\n", "eos"]]
    assert np.exp(walked.steps[1].cells[-1]) == pytest.approx(0.8 * 0.9 + 0.1)
    assert walked.ended == "end of text"


def test_a_last_token_may_have_held_white_space_that_was_stripped() -> None:
    """Full stop and line end are one token in many vocabularies, and another one alone."""
    pack = ToyPack([[{"Done": 0.9}, {".\n": 0.9, ".": 0.02, "!": 0.05}, {"eos": 0.9}]])

    assert names(pack, follow(pack, "Done.", "stop")) == [["Done"], [".\n"], ["eos"]]
    assert names(pack, follow(pack, "Done.\n", "stop")) == [["Done"], [".\n"], ["eos"]]
    assert names(pack, follow(pack, "Done. No")) == [["Done"], ["."]]


def test_where_the_path_ends_with_such_a_token_it_is_taken_all_the_same() -> None:
    """Nothing is known of what comes after it."""
    pack = ToyPack([[{"Done": 0.9}, {".\n": 0.9, ".": 0.02}]])

    assert names(pack, follow(pack, "Done.", "stop")) == [["Done"], [".\n"]]


@pytest.mark.parametrize("dot", [0.02, 0.3])
def test_ends_that_are_stripped_keep_the_mean_of_the_ratio(dot: float) -> None:
    """Every text of up to two tokens and an end, shown as hosts strip it: the mean of the ratio of
    one scale to another is at most 1, but for what is dropped where one spelling is likelier."""
    ends = [{"eos": 0.6, "b": 0.3}, {"eos": 0.3, "b": 0.6}, {"eos": 0.9, "b": 0.05}]
    pack = ToyPack([[{".\n": 0.6, ".": dot}, ends[0]], [ends[1]]], {(0, 0, "."): 1})
    for null, other in ((10, 30), (30, 10), (5, 35)):
        total = 0.0
        for (first, node), after in product(
            [((".\n",), (0, 1)), ((".",), (1, 0)), ((), None)], ["eos", "b", ""]
        ):
            place = pack.place(0, 0)
            log_p = _log_p(pack, place, first, null)
            if node is not None:
                log_p += _log_p(pack, pack.place(*node), (after,) if after else (), null)
            elif after != "eos":  # whatever comes after what is not named is one text
                continue
            text = "".join(first) + {"eos": "", "b": "b", "": "?"}[after] if node else "?"
            reply = (text.strip(), "stop") if after == "eos" and node else (text, "length")
            cells = sum(step.cells for step in follow(pack, *reply).steps)
            total += float(np.exp(log_p + cells[other] - cells[null]))
        assert total <= 1 + 1.5 / DOUBT


def _log_p(pack: Any, place: Any, tokens: tuple[str, ...], scale: int) -> float:
    """That one of these tokens comes, or with () none that is named."""
    members = [n for n, t in enumerate(place.tokens) if pack.names[t] in tokens]
    return float(event_cells(place.logprobs, place.rest, members)[scale])


def test_signs_that_are_no_character_are_one_event_and_the_last() -> None:
    """A token of single bytes shows as U+FFFD, like any other such."""
    pack = ToyPack([[{"Hi": 0.9}, {"\xf0\x9f": 0.6, "\xe2": 0.1, "!": 0.2}, {"\x99\x82": 0.9}]])

    walked = follow(pack, "Hi\ufffd\ufffd")

    assert names(pack, walked) == [["Hi"], ["\xf0\x9f", "\xe2"]]
    assert walked.ended == "doubtful"


def test_a_path_that_goes_on_unseen_is_judged_up_to_there() -> None:
    """Control tokens, such as the tag of a thought, show in no text, and hosts hide them."""
    pack = ToyPack([[{"Hi": 0.9}, {"": 0.9}, {"!": 0.9}]])

    walked = follow(pack, "Hi there")

    assert names(pack, walked) == [["Hi"]]
    assert walked.ended == "doubtful"


def test_the_cells_of_a_path_are_those_of_whole_scores() -> None:
    """A pack and the weights say the same of a place, at every scale."""
    place = PLAIN.place(0, 1)
    score = ReplyScore(
        logprobs=(place.logprobs[1],), ranks=(2,), entropies=(0.0,), top_ids=(0,),
        top_logprobs=(tuple(sorted(place.logprobs, reverse=True)),), candidate_logprobs=None,
    )  # fmt: skip

    assert follow(PLAIN, "The dog").steps[1].cells == pytest.approx(text_cells(score, [0]))


def test_all_outcomes_of_a_place_together_are_sure() -> None:
    """The likeliest, one by one, and all others as one: a distribution at every scale."""
    place = PLAIN.place(0, 0)
    every = [event_cells(place.logprobs, place.rest, (n,)) for n in range(TOP)]
    every.append(event_cells(place.logprobs, place.rest, ()))

    assert np.exp(every).sum(axis=0) == pytest.approx(1.0, abs=1e-6)


def test_few_tokens_speak_among_themselves_alone() -> None:
    """As a score of few does; one that is not named says nothing at any scale."""
    place = ToyPack([[{"a": 0.5, "b": 0.3, "c": 0.05}]], few=True).place(0, 0)
    score = ReplyScore(
        logprobs=(place.logprobs[1],), ranks=(2,), entropies=(0.0,), top_ids=(0,),
        top_logprobs=(place.logprobs,), candidate_logprobs=None, few=True,
    )  # fmt: skip
    every = [event_cells(place.logprobs, place.rest, (n,), few=True) for n in range(3)]

    assert every[1] == pytest.approx(text_cells(score, [0]))
    assert np.exp(every).sum(axis=0) == pytest.approx(1.0, abs=1e-9)
    assert not event_cells(place.logprobs, place.rest, (), few=True).any()


def test_two_spellings_of_few_tokens_say_nothing() -> None:
    """How likely both are together nobody knows."""
    pack = ToyPack([[{"\n": 0.5, "\n\n": 0.3}, {"\n": 0.9}, {"Hi": 0.9}]], few=True)

    walked = follow(pack, "\n\nHi")

    assert walked.ended == "doubtful"
    assert not walked.steps[0].cells.any()


# -- the level, by counting every text ---------------------------------------------------------


def _mean_ratio(pack: Any, spelled: Sequence[str], *, null: int, other: int) -> float:
    texts = every_text(pack, spelled, 3, null)
    total = 0.0
    for text, p in texts:
        cells = sum(step.cells for step in follow(pack, text).steps)
        total += p * float(np.exp(cells[other] - cells[null]))
    assert sum(p for _, p in texts) == pytest.approx(1, abs=1e-6)
    return total


@pytest.mark.parametrize(("null", "other"), [(10, 30), (15, 40), (30, 10), (0, 25)])
def test_the_ratio_of_two_scales_has_mean_one_at_the_place_where_replies_leave(
    null: int, other: int
) -> None:
    """Null: replies with noise of one scale. Every text is counted, along a path with a branch."""
    pack = ToyPack(
        [
            [{"a": 0.5, "b": 0.4}, {"b": 0.6, "c": 0.2}, {"a": 0.7, "b": 0.1}],
            [{"c": 0.4, "a": 0.3}, {"a": 0.5, "b": 0.4}],
        ],
        {(0, 0, "b"): 1},
    )

    assert _mean_ratio(pack, "abc", null=null, other=other) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("null", "other"), [(10, 30), (15, 40), (20, 25)])
def test_texts_with_several_spellings_keep_the_level_too(null: int, other: int) -> None:
    """Tokens that begin with one another, and lines that end in two ways."""
    pack = ToyPack(
        [
            [{"a": 0.5, "ab": 0.3}, {"b": 0.3, "c": 0.5}, {"a": 0.7, "b": 0.1}],
            [{"c": 0.4, "a": 0.3}, {"a": 0.5, "b": 0.4}],
        ],
        {(0, 0, "ab"): 1},
    )

    assert _mean_ratio(pack, ["a", "ab", "b", "c"], null=null, other=other) <= 1 + 1e-3


#: What a host says at three places, and the token that nobody was told of.
_LAWS = (
    {"a": 0.45, "?": 0.35, "b": 0.2},
    {"b": 0.5, "c": 0.2, "a": 0.2, "?": 0.1},
    {"?": 0.6, "a": 0.3, "b": 0.1},
)


@pytest.mark.parametrize(
    ("null", "other", "few"),
    [(10, 30, True), (15, 40, True), (30, 10, True), (25, 35, True), (15, 40, False)],
)
def test_few_tokens_keep_the_level_whatever_is_not_named(null: int, other: int, few: bool) -> None:
    """Null: noise of one scale over all tokens, of which a likely one is never named, and at the
    last place the likeliest of all. To take those that are named for the likeliest fails."""
    pack = ToyPack([[{t: p for t, p in law.items() if t != "?"} for law in _LAWS]], few=few)
    total = 0.0

    def go_on(text: str, chance: float) -> None:
        nonlocal total
        at, left = (
            len(text),
            any(sign != next(iter(pack._paths[0][n])) for n, sign in enumerate(text)),
        )
        if left or at == len(_LAWS):
            cells = sum((s.cells for s in follow(pack, text).steps), np.zeros(len(TEXT_SCALES)))
            total += chance * float(np.exp(cells[other] - cells[null]))
            return
        values = np.log(list(_LAWS[at].values()))
        noisy = np.exp(values / TEXT_SCALES[null])
        for token, p in zip(_LAWS[at], noisy / noisy.sum(), strict=True):
            go_on(text + token, chance * float(p))

    go_on("", 1.0)

    assert (total <= 1 + 2 * FLOOR) == few
