"""From a thought and an answer, as a host shows them, to the tokens that were generated.

A model that thinks writes one stream: a tag, the thought, the closing tag, the answer. Hosts take
it apart and strip white space where they cut. The tags are the card's, and what stands around them
is read off the published template as transformers renders it. Where a host may have stripped, the
stream has several spellings: the published model says which one it would have written, and the
places that were chosen so, not observed, are left out. Where it would have written none of them,
what follows is left out as well.

A thought that the token limit cut off is judged on what is shown: it is the beginning of what was
generated, and a beginning has an exact likelihood like any reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Final, Literal

from verifier.errors import RenderingError
from verifier.host.exchange import CALLED, HIDDEN, THINK_NOT
from verifier.prompts import make_prompt, prompt_of
from verifier.records import Message, Probe, Reply, ReplyScore
from verifier.reference.cards import Thinking
from verifier.reference.reader import Reader
from verifier.scoring.alignment import REPLACEMENT, Aligned, align, set_aside

#: White space that models write around a closing tag, tried beside what the template writes.
_USUAL: Final = ("", "\n", "\n\n", " ")

#: A host may count so many tokens more than it shows, and this share of them: a text is not always
#: tokenized as it was generated, and the end may be counted or not.
_MORE: Final = 2
_MORE_SHARE: Final = 0.02

#: And so many fewer.
_FEWER: Final = 4
_FEWER_SHARE: Final = 0.1

#: Why a reply without thoughts is set aside where the published model would have begun one.
WOULD_THINK: Final = (
    f"{HIDDEN} perhaps: the model would have begun to think, and no thought is shown; {THINK_NOT}"
)

_THOUGHT, _ANSWER = "Step one.", "Step two."

#: Where a prompt leaves the reply: inside a thought, behind one, or before either.
Begins = Literal["inside", "behind", "before"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How one prompt has thoughts written."""

    tags: Thinking
    begins: Begins
    #: White space as the template writes it: behind the tag that opens (less what the prompt holds
    #: already), before the tag that closes, behind it. None: the template shows no thoughts.
    opened: str | None
    closing: str | None
    closed: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One spelling of a reply, and its seams: the places that were chosen for it, not observed."""

    aligned: Aligned
    seams: tuple[tuple[int, ...], ...]  # positions of each, in order; () where nothing was chosen
    behind: tuple[int | None, ...] = ()  # the position behind each, where it tells of white space
    white: tuple[str, ...] = ()  # the white space chosen for each


def spelling_of(thinking: Thinking, probe: Probe, reader: Reader) -> Spelling:
    """How thoughts are written after a probe's prompt. Raises RenderingError."""
    text = reader.render_text(prompt_of(probe))
    bare = text.rstrip()
    opened, closing, closed = _as_rendered(thinking.open, thinking.close, probe.settings, reader)
    begins: Begins = "before"
    if bare.endswith(thinking.open):
        begins, given = "inside", text[len(bare) :]
        opened = None if opened is None else opened.removeprefix(given)
    elif bare.endswith(thinking.close):
        begins = "behind"
    return Spelling(tags=thinking, begins=begins, opened=opened, closing=closing, closed=closed)


@lru_cache(maxsize=64)
def _as_rendered(
    open_tag: str, close_tag: str, settings: tuple[tuple[str, bool | str], ...], reader: Reader
) -> tuple[str | None, str | None, str | None]:
    """White space that the template puts around a thought in the history; None where it shows none.

    The last turn is the assistant's: templates drop the thoughts of earlier ones.
    """
    talk = (
        Message(role="user", content="Count."),
        Message(role="assistant", content=_ANSWER, reasoning=_THOUGHT),
    )
    prompt = replace(make_prompt(talk, settings=dict(settings)), generation_prompt=False)
    try:
        text = reader.render_text(prompt)
    except RenderingError:
        return None, None, None
    before, thought, rest = text.partition(_THOUGHT)
    between, answer, _ = rest.partition(_ANSWER)
    closing, tag, closed = between.partition(close_tag)
    if not (thought and answer and tag) or closing.strip() or closed.strip():
        return None, None, None
    _, tag, opened = before.rpartition(open_tag)
    return (opened if tag and not opened.strip() else None), closing, closed


# -- what a host shows -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A reply taken apart."""

    thought: str
    answer: str | None  # None: the thought has no end that is shown
    inline: bool  # it stood in the text, tags and all, so that nothing was stripped between
    cut: bool = False  # what followed cannot be read


def take_apart(reply: Reply, tags: Thinking, *, begins: Begins) -> Shown | None:
    """The thought and the answer of a reply; None when it shows no thought."""
    text = reply.text
    if reply.thought is not None:
        thought = _without_tag(reply.thought, tags.open)
        # without an answer it is not known whether the thought ended: this is how it began
        return Shown(thought=thought, answer=text if text.strip() else None, inline=False)
    opened = text.lstrip().startswith(tags.open)
    before, closed, after = text.partition(tags.close)
    if not opened and not (closed and begins == "inside"):
        return None
    thought = _without_tag(before, tags.open)
    return Shown(thought=thought, answer=after if closed else None, inline=True)


def _readable(shown: Shown, tags: Thinking, reader: Reader) -> Shown:
    """What stands before bytes that are no character, or before another tag.

    What follows cannot be read back: of a tag that is a control token it is not known whether it
    was generated, or its letters were.
    """
    ends = [REPLACEMENT]
    ends += [tag for tag in (tags.open, tags.close) if reader.special_id(tag) is not None]

    def cut(text: str) -> str:
        return text[: min((at for end in ends if (at := text.find(end)) >= 0), default=None)]

    thought = cut(shown.thought)
    if thought != shown.thought:
        return replace(shown, thought=thought, answer=None, cut=True)
    if shown.answer is None or cut(shown.answer) == shown.answer:
        return shown
    return replace(shown, answer=cut(shown.answer), cut=True)


def _without_tag(thought: str, tag: str) -> str:
    """A thought without the tag that opens it, which some hosts leave or put there."""
    bare = thought.lstrip()
    return bare.removeprefix(tag) if bare.startswith(tag) else thought


def readings(
    reply: Reply, probe: Probe, thinking: Thinking | None, reader: Reader
) -> tuple[Reading, ...]:
    """Every spelling of a reply, the likeliest to begin with. One, for most replies.

    Set aside is a reply of which it is not known what was generated: without a card's word on how
    thoughts are written, where thoughts are hidden, or where an answer came with none although the
    prompt asks for them and nothing shows that none was generated.
    """
    if thinking is None:
        if reply.thought is None:
            return (_plain(align(reply, reader)),)
        why = f"the card does not say how thoughts are written; {THINK_NOT}"
        return (_plain(set_aside(f"not testable by text: reasoning shown, and {why}")),)
    if reply.finish_reason == CALLED:
        why = "a tool is called too, and what the endpoint counts is of both"
        return (_plain(set_aside(f"not testable by text: {why}")),)
    spelling = spelling_of(thinking, probe, reader)
    shown = take_apart(reply, spelling.tags, begins=spelling.begins)
    if shown is None:
        return (_plain(_without_thought(reply, spelling, reader)),)
    if spelling.begins == "behind":
        why = "thoughts are shown although the prompt turns them off: the switch is not heeded"
        return (_plain(set_aside(f"not testable by text: {why}")),)
    whole = shown
    named = align(reply, reader, is_text=lambda told, _text: _is_stream(told, whole, spelling))
    if named.by == "bytes" and _holds_tags(named.reply_ids, shown, spelling, reader):
        return (_plain(named),)
    shown = _readable(shown, spelling.tags, reader)
    found = tuple(
        _spell(reply, shown, spelling, white, reader) for white in _white(shown, spelling)
    )
    doubt = why_not_whole(reply, shown, [len(one.aligned.reply_ids) for one in found])
    if doubt is not None:
        return (_plain(set_aside(f"{HIDDEN} perhaps: {doubt}; {THINK_NOT}")),)
    return found


def _plain(aligned: Aligned) -> Reading:
    return Reading(aligned=aligned, seams=())


def _without_thought(reply: Reply, spelling: Spelling, reader: Reader) -> Aligned:
    """A reply without thoughts, of a model that thinks: judged only where there were none."""
    if spelling.begins == "inside":
        why = "the prompt begins a thought and none is shown"
        return set_aside(
            f"{HIDDEN}, or cut off before it was told from the answer: {why}; {THINK_NOT}"
        )
    aligned = align(reply, reader)
    doubt = why_not_whole(reply, None, [len(aligned.reply_ids)])
    return aligned if doubt is None else set_aside(f"{HIDDEN} perhaps: {doubt}; {THINK_NOT}")


def begins_to_think(
    probe: Probe, aligned: Aligned, score: ReplyScore, thinking: Thinking, reader: Reader
) -> bool:
    """Whether the published model would have begun a thought where a reply without one begins.

    It may have, and the host hides and counts none of it; or the host has it think not.
    """
    if not score.top_ids or spelling_of(thinking, probe, reader).begins != "before":
        return False
    first = reader.encode_prompt(thinking.open)[:1]
    return first == score.top_ids[:1] and first != aligned.reply_ids[:1]


def why_not_whole(reply: Reply, shown: Shown | None, tokens: Sequence[int]) -> str | None:
    """Why what is shown may not be all that was generated, word for word; None: the counts agree.

    A host may show a summary where a thought is due, or nothing, and only its count tells. `tokens`
    are lengths of what it shows. Of a thought that has no end, more may follow.
    """
    count = reply.completion_tokens
    if count is None:
        return "the endpoint counts no tokens that would tell"
    if shown is not None and shown.cut:
        return None
    ended = shown is None or shown.answer is not None or reply.finish_reason != "stop"
    if ended and count > max(tokens) * (1 + _MORE_SHARE) + _MORE:
        return f"{count} tokens counted, and about {max(tokens)} are shown"
    if count < min(tokens) * (1 - _FEWER_SHARE) - _FEWER:
        return f"{count} tokens counted, and about {min(tokens)} are shown"
    return None


def _is_stream(told: str, shown: Shown, spelling: Spelling) -> bool:
    """Whether tokens that a host names spell the thought and the answer, white space aside."""
    for tag in (spelling.tags.open, spelling.tags.close):
        told = told.replace(tag, "", 1)
    return "".join(told.split()) == "".join((shown.thought + (shown.answer or "")).split())


def _holds_tags(ids: tuple[int, ...], shown: Shown, spelling: Spelling, reader: Reader) -> bool:
    """Whether tokens that a host names include the tags: some leave control tokens out."""
    tags = [] if spelling.begins == "inside" else [spelling.tags.open]
    tags += [] if shown.answer is None else [spelling.tags.close]
    words = b"".join(map(reader.token_bytes, ids))
    found = [reader.special_id(tag) for tag in tags]
    return all(
        tag.encode() in words if control is None else control in ids
        for tag, control in zip(tags, found, strict=True)
    )


# -- spelling it out ---------------------------------------------------------------------------


def _white(shown: Shown, spelling: Spelling) -> list[tuple[str, str, str]]:
    """White space that may have been stripped: behind the opening tag, around the closing one.

    What the template writes comes first; where white space is shown, that none was stripped. That
    it was is tried all the same: some parsers strip line ends and leave spaces.
    """
    if shown.inline:
        return [("", "", "")]

    def choices(rendered: str | None, *, told: bool, usual: tuple[str, ...]) -> list[str]:
        first = [""] if told else []
        return list(dict.fromkeys([*first, *([] if rendered is None else [rendered]), *usual]))

    opened = choices(spelling.opened, told=_begins_blank(shown.thought), usual=("", "\n", " "))
    if shown.answer is None:
        return [(first, "", "") for first in opened]
    closing = choices(spelling.closing, told=_ends_blank(shown.thought), usual=_USUAL)
    closed = choices(spelling.closed, told=_begins_blank(shown.answer), usual=_USUAL)
    return list(product(opened, closing, closed))


def _begins_blank(text: str) -> bool:
    return text[:1].isspace()


def _ends_blank(text: str) -> bool:
    return text[-1:].isspace()


def _spell(
    reply: Reply, shown: Shown, spelling: Spelling, white: tuple[str, str, str], reader: Reader
) -> Reading:
    """One spelling as token ids, its seams named and left out.

    Left out with them are the tokens beside a seam where white space may have been stripped: they
    may have held some.
    """
    ids, chosen, beside, behind = _encode(_parts(shown, spelling, white), reader)
    left_out = {*chosen, *beside}
    if reply.finish_reason == "stop" and shown.answer is not None and not shown.cut:
        ids = (*ids, reader.eos_id)
    elif ids:
        left_out.add(len(ids) - 1)  # cut in mid-word
    return Reading(
        aligned=Aligned(
            reply_ids=ids,
            left_out=frozenset(left_out),
            by="text",
            candidates=None,
            reported=None,
            problem=reply.logprobs_problem or "the thought was put together again from its text",
        ),
        seams=tuple(
            tuple(t for t, seam in sorted(chosen.items()) if seam == n) for n in range(len(white))
        ),
        behind=tuple(behind.get(n) for n in range(len(white))),
        white=white,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A piece of the stream."""

    text: str
    tag: bool = False
    seam: int | None = None  # which seam it was chosen for; None: it is shown
    behind: int | None = None  # the seam that it stands behind; None: it was shown so
    first_open: bool = False  # its first token may have begun with white space that was stripped
    last_open: bool = False  # its last may have ended with some


def _parts(shown: Shown, spelling: Spelling, white: tuple[str, str, str]) -> list[_Part]:
    """The pieces of a stream in order: tags, white space, thought and answer."""
    opened, closing, closed = white
    tags, thought, answer = spelling.tags, shown.thought, shown.answer
    # nothing was stripped, and so nothing chosen, where the thought stood in the text
    first, second, third = (None, None, None) if shown.inline else (0, 1, 2)
    wants_end = bool(closing) or not _ends_blank(thought)
    parts = [
        _Part(text=tags.open if spelling.begins == "before" else "", tag=True, seam=first),
        _Part(text=opened, seam=first),
        _Part(
            text=thought,
            behind=first,
            first_open=bool(opened) or not _begins_blank(thought),
            last_open=not shown.inline and answer is not None and wants_end,
        ),
    ]
    if answer is None:
        return parts
    begun = bool(closed) or not _begins_blank(answer)
    return [
        *parts,
        _Part(text=closing, seam=second),
        _Part(text=tags.close, tag=True, seam=second),
        _Part(text=closed, seam=third),
        _Part(text=answer, behind=third, first_open=begun),
    ]


def _encode(
    parts: Sequence[_Part], reader: Reader
) -> tuple[tuple[int, ...], dict[int, int], set[int], dict[int, int]]:
    """Ids of a stream; the seam that a position belongs to; positions beside seams where white
    space may have been stripped; and the position behind each seam.

    Tags that are control tokens part the text; others are words of it, and tokenized with it.
    """
    ids: list[int] = []
    chosen: dict[int, int] = {}
    beside: set[int] = set()
    behind: dict[int, int] = {}
    for run in _runs(parts, reader):
        control = reader.special_id(run[0].text) if run[0].tag else None
        if control is not None:
            if run[0].seam is not None:
                chosen[len(ids)] = run[0].seam
            ids.append(control)
            continue
        whole = "".join(part.text for part in run)
        found = reader.encode(whole)
        spelled = [len(reader.token_bytes(token_id)) for token_id in found]
        at = len(whole.encode()) - sum(spelled)  # some tokenizers put a space in front
        spans, start = [], 0
        for part in run:
            end = start + len(part.text.encode())
            spans.append((start, end, part))
            start = end
        for token_id, length in zip(found, spelled, strict=True):
            first, last, position = max(at, 0), at + length, len(ids)
            for start, end, part in spans:
                if first < end and last > start:  # they share a byte
                    if part.seam is not None:
                        chosen[position] = max(part.seam, chosen.get(position, 0))
                    if part.last_open and last >= end:
                        beside.add(position)
                    if part.behind is not None and first <= start:
                        behind[part.behind] = position
                        beside |= {position} if part.first_open else set()
            ids.append(token_id)
            at = last
    return tuple(ids), chosen, beside, behind


def _runs(parts: Sequence[_Part], reader: Reader) -> list[list[_Part]]:
    """Parts that are tokenized together."""
    runs: list[list[_Part]] = []
    joins = False
    for part in parts:
        if not part.text:
            continue
        control = part.tag and reader.special_id(part.text) is not None
        if joins and not control:
            runs[-1].append(part)
        else:
            runs.append([part])
        joins = not control
    return runs


# -- choosing ----------------------------------------------------------------------------------


def doubtful_seam(reading: Reading, score: ReplyScore) -> int | None:
    """The first seam at which another spelling may be likelier; None: there is none.

    The published model would have written it otherwise, or would have gone on otherwise behind it.
    """
    ids = reading.aligned.reply_ids
    for number, (seam, behind) in enumerate(zip(reading.seams, reading.behind, strict=True)):
        places = [*seam, *([] if behind is None else [behind])]
        if any(score.top_ids[t] != ids[t] for t in places if t < len(ids)):
            return number
    return None


def open_seam(reading: Reading, score: ReplyScore, reader: Reader) -> int | None:
    """The first seam that is not what the published model would have written; None: all are.

    The token behind a seam tells too: where white space was the likeliest there, more of it may
    have been stripped.
    """
    ids = reading.aligned.reply_ids
    for number, (seam, behind) in enumerate(zip(reading.seams, reading.behind, strict=True)):
        if any(score.top_ids[t] != ids[t] for t in seam if t < len(ids)):
            return number
        if behind is None or behind >= len(ids) or behind in seam:
            continue
        if _wants_white(score.top_ids[behind], ids[behind:], reader):
            return number
    return None


def differing_at(seam: int, reading: Reading, others: Sequence[Reading]) -> list[Reading]:
    """Those of `others` that differ from a reading in the white space of one seam alone."""

    def rest(one: Reading) -> tuple[str, ...]:
        return one.white[:seam] + one.white[seam + 1 :]

    return [o for o in others if o.white != reading.white and rest(o) == rest(reading)]


def log_p_up_to(seam: int, reading: Reading, score: ReplyScore) -> float:
    """log p of a reading as far as its seams up to this one decide it.

    What follows depends on seams that are yet to be chosen: the thought ends where the seam around
    the closing tag begins, and that seam with the tag.
    """
    end: int | None = None
    if reading.seams[1:2] and reading.seams[1]:
        end = {0: reading.seams[1][0], 1: reading.seams[1][-1] + 1}.get(seam)
    return sum(score.logprobs[:end])


def settle(reading: Reading, score: ReplyScore, reader: Reader) -> Aligned:
    """The reading, without what follows a seam that the published model would not have written."""
    seam = open_seam(reading, score, reader)
    if seam is None:
        return reading.aligned
    starts = (*reading.seams[seam][:1], reading.behind[seam])
    start = next(at for at in starts if at is not None)
    rest = range(start, len(reading.aligned.reply_ids))
    return replace(reading.aligned, left_out=reading.aligned.left_out | set(rest))


def _wants_white(likeliest: int, rest: Sequence[int], reader: Reader) -> bool:
    """Whether white space was wanted here that is not shown: alone, or before what is read."""
    wanted = reader.token_bytes(likeliest)
    if likeliest == rest[0] or not wanted[:1].isspace():
        return False
    shown = b"".join(map(reader.token_bytes, rest[: len(wanted)]))
    return not wanted.strip() or shown.startswith(wanted.strip())
