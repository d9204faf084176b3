"""Alignment: which token ids a reply is, and which of its positions say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from fakes_engine import EOS, TURN, FakeTokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from verifier.records import REFERENCE, Candidate, Reply, ReplyScore, ReportedToken
from verifier.scoring.alignment import (
    Aligned,
    align,
    keep_reading,
    read_past_end,
    reread,
    spells_better,
)
from verifier.scoring.score_file import Scored
from verifier.scoring.spelling import MAX_READINGS, settle_spelling

TOKENIZER = FakeTokenizer()


def token(text: str) -> int:
    """The id of the token that spells `text`."""
    (found,) = TOKENIZER.ids_of_bytes(text.encode())
    return found


THE, OF, IS, SPACE = token(" the"), token(" of"), token(" is"), token(" ")


def make_reply(
    text: str,
    *,
    finish: str | None = "stop",
    logprobs: tuple[ReportedToken, ...] | None = None,
    problem: str | None = None,
) -> Reply:
    return Reply(
        probe_id="p", text=text, finish_reason=finish, prompt_tokens=None, completion_tokens=None,
        logprobs=logprobs, logprobs_problem=problem,
    )  # fmt: skip


def named(text: str, logprob: float = -0.5, *, with_bytes: bool = True) -> Candidate:
    return Candidate(token=text, bytes=text.encode() if with_bytes else None, logprob=logprob)


def told(*tokens: str | Candidate, with_bytes: bool = True) -> tuple[ReportedToken, ...]:
    """Positions that name these tokens and no alternatives."""
    return tuple(
        ReportedToken(chosen=named(t, with_bytes=with_bytes) if isinstance(t, str) else t, top=())
        for t in tokens
    )


def preferring(*top_ids: int) -> ReplyScore:
    """What a model says whose likeliest tokens are these."""
    return ReplyScore(
        logprobs=(), ranks=(), entropies=(), top_ids=top_ids, top_logprobs=(),
        candidate_logprobs=None,
    )  # fmt: skip


def saying(top_ids: Sequence[int], logprobs: Sequence[float]) -> ReplyScore:
    """What a model says of a reading whose likeliest tokens are these."""
    return replace(preferring(*top_ids), logprobs=tuple(logprobs))


def read_text(text: str, *, finish: str = "stop") -> Aligned:
    return align(make_reply(text, finish=finish), TOKENIZER)


def spelled(aligned: Aligned) -> bytes:
    return b"".join(map(TOKENIZER.token_bytes, aligned.reply_ids))


# -- by the tokens that the endpoint names -----------------------------------------------------


@pytest.mark.parametrize("with_bytes", [True, False])
def test_reported_tokens_that_spell_the_text_are_taken_as_they_are(with_bytes: bool) -> None:
    """Even where the text alone would be read as other tokens."""
    reply = make_reply(
        " the of", finish="length", logprobs=told(" ", "the", " of", with_bytes=with_bytes)
    )
    found = align(reply, TOKENIZER)

    assert found.by == "bytes"
    assert found.reply_ids == (SPACE, token("the"), OF)
    assert found.left_out == frozenset()
    assert found.problem is None


def test_tokens_of_part_of_a_character_are_matched_by_their_bytes() -> None:
    """Their text is a replacement sign, their bytes are not."""
    pieces = [Candidate(token="�", bytes=bytes([b]), logprob=-1.0) for b in "語".encode()]
    found = align(make_reply("語", finish="length", logprobs=told(*pieces)), TOKENIZER)

    assert found.by == "bytes"
    assert found.reply_ids == tuple("語".encode())


def test_alternatives_are_kept_by_id_the_chosen_first_and_each_once() -> None:
    """Those the reference does not know are dropped; of two claims the chosen token's counts."""
    position = ReportedToken(
        chosen=named(" of", -0.9),
        top=(named(" the", -0.5), named(" of", -0.8), named(" nonsense", -3.0)),
    )
    found = align(make_reply(" of", finish="length", logprobs=(position,)), TOKENIZER)

    assert found.candidates == ((OF, THE),)
    assert found.reported == ((-0.9, -0.5),)


class Knowing(FakeTokenizer):
    """One that has a token for the replacement sign itself, as large vocabularies do."""

    def ids_of_bytes(self, raw: bytes) -> tuple[int, ...]:
        return (THE,) if raw == "�".encode() else super().ids_of_bytes(raw)


def test_a_replacement_sign_without_bytes_could_be_many_tokens() -> None:
    """It is not taken for the token of that sign."""
    unclear = ReportedToken(
        chosen=named(" of"), top=(Candidate(token="�", bytes=None, logprob=-2.0),)
    )
    found = align(make_reply(" of", finish="length", logprobs=(unclear,)), Knowing())

    assert found.candidates == ((OF,),)


@pytest.mark.parametrize(
    "last",
    [
        named("<eos>"),
        named("<eos>", with_bytes=False),
        named(""),
        Candidate(token="<eos>", bytes=b"", logprob=-0.1),
    ],
    ids=["by name and bytes", "by name", "empty", "by name, no bytes"],
)
def test_a_reported_end_of_turn_is_not_added_again(last: Candidate) -> None:
    """However the endpoint writes it."""
    found = align(make_reply(" of", logprobs=told(" of", last)), TOKENIZER)

    assert found.by == "bytes"
    assert found.reply_ids == (OF, EOS)
    assert found.candidates is not None
    assert len(found.candidates) == 2


def test_an_end_of_turn_that_is_not_reported_is_added_without_claims() -> None:
    """The reply stopped there all the same."""
    found = align(make_reply(" of", logprobs=told(" of")), TOKENIZER)

    assert found.reply_ids == (OF, EOS)
    assert found.candidates == ((OF,), ())
    assert found.reported == ((-0.5,), ())


def test_no_end_of_turn_is_added_to_a_reply_that_was_cut() -> None:
    """By its tokens, the last one is known, so it stays in."""
    found = align(make_reply(" of", finish="length", logprobs=told(" of")), TOKENIZER)

    assert found.reply_ids == (OF,)
    assert found.left_out == frozenset()


def test_white_space_that_the_host_trimmed_from_the_text_is_read_from_the_tokens() -> None:
    """At both ends."""
    reply = make_reply("the of", logprobs=told(" ", "the", " of", "\n"))
    found = align(reply, TOKENIZER)

    assert found.by == "bytes"
    assert found.reply_ids == (SPACE, token("the"), OF, token("\n"), EOS)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (told(" of", " of"), "do not spell"),
        (told(" the"), "do not spell"),
        (told(" of", "<turn>"), "do not spell"),
        (told(" o", "f"), "' o' is not in the reference vocabulary"),
        (told("� of", with_bytes=False), "is not in the reference vocabulary"),
    ],
    ids=["too many", "others", "a control token", "unknown", "no character and no bytes"],
)
def test_reported_tokens_that_do_not_fit_leave_the_text(
    tokens: tuple[ReportedToken, ...], says: str
) -> None:
    """With the reason; what was claimed of them is not used."""
    found = align(make_reply(" of", logprobs=tokens), TOKENIZER)

    assert found.by == "text"
    assert found.reply_ids == (OF, EOS)
    assert (found.candidates, found.reported) == (None, None)
    assert says in (found.problem or "")


# -- by the text -------------------------------------------------------------------------------


def test_what_is_claimed_for_the_given_token_among_its_alternatives_is_kept_apart() -> None:
    """Its own value stands for it in what is reported; the other may be another one."""
    twice = ReportedToken(chosen=named(" of", -0.5), top=(named(" the", -0.9), named(" of", -1.5)))
    alone = ReportedToken(chosen=named(" the", -0.2), top=(named(" of", -2.0),))
    found = align(make_reply(" of the", logprobs=(twice, alone)), TOKENIZER)

    assert found.reported == ((-0.5, -0.9), (-0.2, -2.0), ())
    assert found.own == (-1.5, None, None)
    assert found.without_reports().own is None


@pytest.mark.parametrize("logprobs", [None, ()])
def test_without_reported_tokens_the_text_is_tokenized(
    logprobs: tuple[ReportedToken, ...] | None,
) -> None:
    """And why there are none is kept."""
    reply = make_reply(" the of", logprobs=logprobs, problem="the host returned none")
    found = align(reply, TOKENIZER)

    assert found == Aligned(
        reply_ids=(THE, OF, EOS), left_out=frozenset(), by="text", candidates=None, reported=None,
        problem="the host returned none",
    )  # fmt: skip


@pytest.mark.parametrize("finish", ["length", None])
def test_the_last_token_of_a_text_that_was_cut_is_left_out(finish: str | None) -> None:
    """The text may have been cut within a word."""
    found = align(make_reply(" the of", finish=finish), TOKENIZER)

    assert found.reply_ids == (THE, OF)
    assert found.left_out == {1}


@pytest.mark.parametrize("finish", ["length", "stop"])
def test_a_text_is_judged_only_up_to_a_broken_character(finish: str) -> None:
    """What follows cannot be read back; the last token before it may have been another."""
    found = align(make_reply(" the of� is", finish=finish), TOKENIZER)

    assert found.reply_ids == (THE, OF)
    assert found.left_out == {1}


@pytest.mark.parametrize("finish", ["length", "stop"])
def test_a_text_that_begins_with_a_broken_character_has_no_tokens(finish: str) -> None:
    """Nothing to judge, and no end of turn in its place."""
    found = align(make_reply("� the", finish=finish), TOKENIZER)

    assert found.reply_ids == ()
    assert found.left_out == frozenset()


# -- reading again -----------------------------------------------------------------------------


def test_a_reading_that_the_model_agrees_with_stands() -> None:
    """None: nothing to read again."""
    assert reread(read_text(" is the"), preferring(IS, THE, EOS), TOKENIZER) is None


@pytest.mark.parametrize(
    "other", [OF, token("\n"), EOS, TURN], ids=["word", "space", "end", "control"]
)
def test_a_model_that_wanted_another_text_is_no_reason_to_read_again(other: int) -> None:
    """That is the evidence."""
    assert reread(read_text(" is the"), preferring(IS, other, EOS), TOKENIZER) is None


def test_a_reading_that_is_kept_leaves_out_what_another_spells_otherwise() -> None:
    """From the first token that differs to the next common boundary; another spelling's own end."""
    before = read_text(" is the of")
    other = reread(before, preferring(IS, SPACE, OF, EOS), TOKENIZER)
    assert other is not None

    kept = keep_reading(before, other, TOKENIZER)
    assert (kept.reply_ids, kept.left_out) == (before.reply_ids, {1})
    back = keep_reading(other, before, TOKENIZER)
    assert (back.reply_ids, back.left_out) == (other.reply_ids, {1, 2})
    assert keep_reading(before, replace(before, left_out=frozenset({2})), TOKENIZER).left_out == {2}


def twice_otherwise() -> tuple[Aligned, Aligned]:
    """A text read with two words as one token each, and with the first of them as two."""
    before = read_text(" is the of the")
    other = reread(before, preferring(IS, SPACE, OF, THE, EOS), TOKENIZER)
    assert other is not None
    assert other.reply_ids == (IS, SPACE, token("the"), OF, THE, EOS)
    return before, other


@pytest.mark.parametrize(
    ("first", "better"), [(-1.0, True), (-5.0, True), (-5.1, False)], ids=["more", "same", "less"]
)
def test_a_spelling_is_judged_up_to_the_next_place_that_is_doubtful(
    first: float, better: bool
) -> None:
    """One of two words set right makes the other look worse; the second is judged by itself."""
    before, other = twice_otherwise()
    old = saying((IS, SPACE, OF, THE, EOS), (0, -5, 0, -1, 0))
    new = saying((IS, SPACE, token("the"), OF, SPACE, EOS), (0, first, 0, 0, -20, 0))

    following = reread(other, new, TOKENIZER)
    found = spells_better(other, new, before, old, TOKENIZER, following=following)
    assert found is better


def test_a_spelling_that_nothing_doubtful_follows_is_judged_whole() -> None:
    """What a model goes on to say speaks for the spelling that it follows."""
    before, other = twice_otherwise()
    old = saying((IS, SPACE, OF, THE, EOS), (0, -5, 0, -1, 0))
    settled = (IS, SPACE, token("the"), OF, THE, EOS)

    for last, better in ((-4.0, True), (-20.0, False)):
        new = saying(settled, (0, -1, 0, 0, last, 0))
        following = reread(other, new, TOKENIZER)
        found = spells_better(other, new, before, old, TOKENIZER, following=following)
        assert found is better


def test_white_space_put_back_at_the_start_moves_no_boundary() -> None:
    """A host trims it: the readings agree from the first word on, and where they agree counts."""
    before, no, w = read_text("now of the"), token(" no"), token("w")
    other = reread(before, preferring(no, token("o"), w, OF, THE, EOS), TOKENIZER)
    assert other is not None
    assert (other.reply_ids, other.left_out) == ((no, w, OF, THE, EOS), {0})

    old = saying((no, token("o"), w, OF, THE, EOS), (-5, 0, 0, 0, -1, 0))
    new = saying((no, w, OF, SPACE, EOS), (-1, 0, 0, -20, 0))
    following = reread(other, new, TOKENIZER)
    assert spells_better(other, new, before, old, TOKENIZER, following=following)
    assert keep_reading(before, other, TOKENIZER).left_out == {0, 1}


def test_a_tokenization_of_the_same_text_that_the_model_prefers_is_taken() -> None:
    """From there to the next common boundary the positions are chosen, so left out."""
    found = reread(read_text(" is the of"), preferring(IS, SPACE, OF, EOS), TOKENIZER)

    assert found == Aligned(
        reply_ids=(IS, SPACE, token("the"), OF, EOS), left_out=frozenset({1, 2}), by="text",
        candidates=None, reported=None, problem=None,
    )  # fmt: skip


def test_a_preferred_longer_token_leaves_out_only_itself() -> None:
    """The readings meet at its end."""
    short = Aligned(
        reply_ids=(IS, SPACE, token("the"), OF, EOS), left_out=frozenset(), by="text",
        candidates=None, reported=None, problem="why",
    )  # fmt: skip
    found = reread(short, preferring(IS, THE, token("the"), OF, EOS), TOKENIZER)

    assert found is not None
    assert found.reply_ids == (IS, THE, OF, EOS)
    assert found.left_out == {1}
    assert found.problem == "why"


def test_another_reading_of_a_text_that_was_cut_leaves_out_its_new_last_token() -> None:
    """And all that was left out before the change."""
    before = Aligned(
        reply_ids=(IS, OF, THE, THE, THE), left_out=frozenset({0, 4}), by="text", candidates=None,
        reported=None, problem=None,
    )  # fmt: skip
    found = reread(before, preferring(THE, SPACE, THE, THE, THE), TOKENIZER)

    assert found is not None
    assert found.reply_ids == (IS, SPACE, token("o"), token("f"), THE, THE, THE)
    assert found.left_out == {0, 1, 2, 3, 6}


def test_positions_left_out_are_not_read_again() -> None:
    """They were settled, and reading them for ever would never end."""
    found = align(make_reply(" is the", finish="length"), TOKENIZER)

    assert found.left_out == {1}
    assert reread(found, preferring(IS, SPACE), TOKENIZER) is None


def test_a_preferred_part_of_a_character_leaves_its_position_out() -> None:
    """What follows it is no text, so it cannot be tokenized."""
    first = "日本".encode()[0]
    found = reread(read_text(" is日本"), preferring(IS, first, EOS), TOKENIZER)

    assert found is not None
    assert found.reply_ids == (IS, token("日本"), EOS)
    assert found.left_out == {1}


@pytest.mark.parametrize("wanted", [" ", "\n", " the"])
def test_white_space_that_hosts_trim_at_the_start_leaves_the_first_token_out(wanted: str) -> None:
    """The model wanted it, and the text cannot show it."""
    found = reread(read_text("the of"), preferring(token(wanted), OF, EOS), TOKENIZER)

    assert found is not None
    assert found.reply_ids == (token("the"), OF, EOS)
    assert found.left_out == {0}


def test_the_first_token_is_left_out_besides_the_last_of_a_text_that_was_cut() -> None:
    """What was left out before stays so."""
    found = reread(read_text("the of", finish="length"), preferring(SPACE, OF), TOKENIZER)

    assert found is not None
    assert found.left_out == {0, 1}


def test_another_first_word_is_not_trimmed_white_space() -> None:
    """That is the evidence."""
    assert reread(read_text("the of"), preferring(THE + 1, OF, EOS), TOKENIZER) is None


@pytest.mark.parametrize("wanted", [" ", "\n"])
def test_white_space_that_hosts_trim_at_the_end_leaves_the_end_of_turn_out(wanted: str) -> None:
    """The model would have gone on with it before it stopped."""
    found = reread(read_text(" is of"), preferring(IS, OF, token(wanted)), TOKENIZER)

    assert found is not None
    assert found.reply_ids == (IS, OF, EOS)
    assert found.left_out == {2}


@pytest.mark.parametrize("wanted", [THE, TURN], ids=["word", "control"])
def test_a_model_that_would_not_have_stopped_is_not_trimmed_white_space(wanted: int) -> None:
    """An early end of turn is evidence."""
    assert reread(read_text(" is of"), preferring(IS, OF, wanted), TOKENIZER) is None


# -- any reply ---------------------------------------------------------------------------------

token_ids = st.lists(
    st.one_of(
        st.integers(258, TOKENIZER.vocabulary_size - 1),
        st.sampled_from([*b" \n\taethofsi", EOS, TURN]),
        st.integers(0, 255),
    ),
    max_size=25,
)
finishes = st.sampled_from(["stop", "length", None])


def model_of(seed: int, aligned: Aligned) -> ReplyScore:
    """A model whose likeliest token is a function of what precedes, often of the same text."""
    whole, found = spelled(aligned), []
    for t in range(len(aligned.reply_ids)):
        before = aligned.reply_ids[:t]
        rest = whole[sum(len(TOKENIZER.token_bytes(i)) for i in before) :]
        fitting = [i for size in range(1, 8) for i in TOKENIZER.ids_of_bytes(rest[:size])]
        rng = np.random.default_rng([seed, *before])
        others = [SPACE, EOS, int(rng.integers(TOKENIZER.vocabulary_size))]
        found.append(int(rng.choice(fitting * 3 + others)))
    return preferring(*found)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(token_ids, finishes, st.integers(0, 2**32))
@example([*"日本".encode()[:4]], "stop", 0)
@example([], "stop", 0)
def test_any_text_is_read_and_read_again_without_losing_a_byte(
    ids: list[int], finish: str | None, seed: int
) -> None:
    """Every reading spells the text up to a broken character, and reading again ends."""
    text = TOKENIZER.decode(ids)
    whole = text.partition("�")[0].encode()
    found = align(make_reply(text, finish=finish), TOKENIZER)
    readings = [found]
    while (better := reread(readings[-1], model_of(seed, readings[-1]), TOKENIZER)) is not None:
        readings.append(better)
        assert len(readings) <= len(whole) + 2

    for reading in readings:
        assert spelled(reading) == whole
        assert reading.left_out <= set(range(len(reading.reply_ids)))
        assert reading.reply_ids.count(EOS) == (finish == "stop" and "�" not in text)
        if whole and EOS not in reading.reply_ids:
            assert len(reading.reply_ids) - 1 in reading.left_out


@settings(deadline=None, derandomize=True, max_examples=200)
@given(token_ids, finishes, st.integers(0, 2**32))
def test_any_spelling_is_settled_without_losing_a_byte(
    ids: list[int], finish: str | None, seed: int
) -> None:
    """Whatever a model prefers, and however likely it says that readings are."""
    text = TOKENIZER.decode(ids)
    whole = text.partition("�")[0].encode()
    asked = 0

    def score(some: Sequence[int], texts: Sequence[Aligned]) -> list[Scored]:
        nonlocal asked
        asked += 1
        rng = np.random.default_rng([seed, asked])
        return [
            Scored(probe_id=f"p{i}", weights=REFERENCE, aligned=aligned, score=replace(
                model_of(seed, aligned),
                logprobs=tuple(-2 * rng.exponential(size=len(aligned.reply_ids))),
                top_logprobs=((0.0,),) * len(aligned.reply_ids),
                candidate_logprobs=None if aligned.candidates is None else tuple(
                    tuple(-2 * rng.exponential(size=len(ids))) for ids in aligned.candidates
                ),
            ))
            for i, aligned in zip(some, texts, strict=True)
        ]  # fmt: skip

    found = align(make_reply(text, finish=finish), TOKENIZER)
    (settled,) = settle_spelling(score([0], [found]), [10_000], score, TOKENIZER)

    assert asked <= 1 + MAX_READINGS
    assert settled.score.candidate_logprobs is None
    assert spelled(settled.aligned) == whole
    assert settled.aligned.left_out <= set(range(len(settled.aligned.reply_ids)))
    assert len(settled.score.logprobs) == len(settled.aligned.reply_ids)
    if whole and EOS not in settled.aligned.reply_ids:
        assert len(settled.aligned.reply_ids) - 1 in settled.aligned.left_out


@settings(deadline=None, derandomize=True, max_examples=100)
@given(token_ids, finishes, st.booleans())
def test_any_reported_tokens_that_spell_their_text_are_taken(
    ids: list[int], finish: str | None, trimmed: bool
) -> None:
    """With one candidate for each of them, and an end of turn where the reply stopped."""
    ids = [i for i in ids if i not in (EOS, TURN)]
    text = TOKENIZER.decode(ids)
    tokens = [
        Candidate(token=TOKENIZER.decode([i]), bytes=TOKENIZER.token_bytes(i), logprob=-1.0)
        for i in ids
    ]
    reply = make_reply(text.strip() if trimmed else text, finish=finish, logprobs=told(*tokens))
    found = align(reply, TOKENIZER)
    if not ids:
        assert found.by == "text"
        return

    assert found.by == "bytes"
    assert found.reply_ids == (*ids, *([EOS] if finish == "stop" else []))
    assert found.candidates is not None
    assert found.candidates[: len(ids)] == tuple((i,) for i in ids)
    assert len(found.candidates) == len(found.reply_ids)


# -- running on past the end -------------------------------------------------------------------


def test_a_control_token_is_put_back_where_the_model_wrote_one() -> None:
    """The text goes on behind it; positions that were left out stay left out."""
    aligned = read_text(" the of", finish="length")
    (the, of) = aligned.reply_ids
    longer = read_past_end(aligned, preferring(the, EOS), TOKENIZER)

    assert longer is not None
    assert longer.reply_ids == (the, EOS, of)
    assert longer.left_out == {2}


def test_ordinary_differences_put_nothing_back() -> None:
    """Another word is no control token, and an end that was read is no news."""
    aligned = read_text(" the of")

    assert read_past_end(aligned, preferring(OF, THE, EOS), TOKENIZER) is None


def test_ids_that_the_endpoint_sends_are_taken_as_they_are() -> None:
    """Also where the text would be tokenized otherwise: nothing is ambiguous."""
    other = (THE, *TOKENIZER.encode("o"), *TOKENIZER.encode("f"))
    text = " theof"
    found = align(replace(make_reply(text), token_ids=other), TOKENIZER)
    cut = align(replace(make_reply(text, finish="length"), token_ids=other), TOKENIZER)

    assert found.reply_ids == (*other, EOS)
    assert cut.reply_ids == other
    assert (found.by, found.left_out, cut.left_out) == ("bytes", frozenset(), frozenset())


@pytest.mark.parametrize("ids", [(OF, OF), (THE, 10**6)])
def test_ids_that_do_not_spell_the_text_are_not_taken(ids: tuple[int, ...]) -> None:
    """Those of another text, or of another vocabulary."""
    found = align(replace(make_reply(" the of"), token_ids=ids), TOKENIZER)

    assert found.by == "text"
