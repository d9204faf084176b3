"""From the text or tokens of a reply to reference token ids, with the doubtful positions named.

Ids are matched by bytes where the endpoint names its tokens, else the text is tokenized again. A
text has many tokenizations; a position where the published model would have gone on with another
token *of the same text* says nothing about the weights and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

from verifier.records import Candidate, Count, Reply, ReplyScore, ReportedToken, TokenId
from verifier.reference.reader import Vocabulary

#: Bytes of the longest token that is looked for as another spelling.
_LONGEST = 24

#: What stands for bytes that are no character.
REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligned:
    """A reply as reference token ids. `left_out` are positions never scored."""

    reply_ids: tuple[TokenId, ...]
    left_out: frozenset[Count]
    by: Literal["bytes", "text"]
    candidates: tuple[tuple[TokenId, ...], ...] | None  # ids the endpoint named, per position
    reported: tuple[tuple[float, ...], ...] | None  # what it claims for them, parallel
    problem: str | None  # why reported log-probabilities are not used
    unjudged: str | None = None  # why no token of it is known; None: they are
    #: What it claims for the given token among its alternatives; None: it is none of them.
    own: tuple[float | None, ...] | None = None

    @property
    def kept(self) -> list[int]:
        """The positions that are scored."""
        return [t for t in range(len(self.reply_ids)) if t not in self.left_out]

    def without_reports(self) -> Aligned:
        """The same, with nothing of what the endpoint claims for its tokens."""
        return replace(self, candidates=None, reported=None, own=None)


def set_aside(reason: str) -> Aligned:
    """A reply of which no token is known, and why."""
    return Aligned(
        reply_ids=(), left_out=frozenset(), by="text", candidates=None, reported=None,
        problem=None, unjudged=reason,
    )  # fmt: skip


def _is_same(spelled: str, text: str) -> bool:
    return spelled.strip() == text.strip()


def align(
    reply: Reply,
    vocabulary: Vocabulary,
    *,
    is_text: Callable[[str, str], bool] = _is_same,
) -> Aligned:
    """Token ids of a reply: by the reported tokens if they spell its text, else by the text.

    Ids that the endpoint sends are taken as they are, where they spell the text. `is_text` is told
    what the tokens spell and what the text is.
    """
    if not reply.logprobs and reply.token_ids is not None:
        sent = _by_ids(reply, reply.token_ids, vocabulary, is_text)
        if sent is not None:
            return sent
    if not reply.logprobs:
        return _by_text(reply, vocabulary, reply.logprobs_problem)
    ids: list[int] = []
    spelled = b""
    for position, token in enumerate(reply.logprobs):
        raw = _bytes(token.chosen, vocabulary)
        last = position == len(reply.logprobs) - 1
        found = _id(token.chosen, vocabulary)
        if last and reply.finish_reason == "stop" and (not raw or found == vocabulary.eos_id):
            ids.append(vocabulary.eos_id)
            break
        if found is None:
            problem = f"reported token {token.chosen.token!r} is not in the reference vocabulary"
            return _by_text(reply, vocabulary, problem)
        ids.append(found)
        spelled += raw
    if not is_text(spelled.decode("utf-8", "replace"), reply.text):
        return _by_text(reply, vocabulary, "reported tokens do not spell the reply's text")
    named = reply.logprobs[: len(ids)]
    candidates, reported = _named(named, vocabulary)
    own = [_own(token, vocabulary) for token in named]
    if reply.finish_reason == "stop" and ids[-1] != vocabulary.eos_id:
        ids.append(vocabulary.eos_id)
        candidates.append(())
        reported.append(())
        own.append(None)
    return Aligned(
        reply_ids=tuple(ids),
        left_out=frozenset(),
        by="bytes",
        candidates=tuple(candidates),
        reported=tuple(reported),
        problem=None,
        own=tuple(own),
    )


def _named(
    tokens: Sequence[ReportedToken], vocabulary: Vocabulary
) -> tuple[list[tuple[int, ...]], list[tuple[float, ...]]]:
    """Ids that an endpoint names at each position, and what it claims for them."""
    candidates: list[tuple[int, ...]] = []
    reported: list[tuple[float, ...]] = []
    for token in tokens:
        named: dict[int, float] = {}
        for candidate in (token.chosen, *token.top):
            found = _id(candidate, vocabulary)
            if found is not None:
                named.setdefault(found, candidate.logprob)
        candidates.append(tuple(named))
        reported.append(tuple(named.values()))
    return candidates, reported


def _own(token: ReportedToken, vocabulary: Vocabulary) -> float | None:
    """What is claimed for the token that is given, among its alternatives."""
    given = _id(token.chosen, vocabulary)
    listed = (one.logprob for one in token.top if _id(one, vocabulary) == given)
    return None if given is None else next(listed, None)


def _by_ids(
    reply: Reply,
    ids: tuple[int, ...],
    vocabulary: Vocabulary,
    is_text: Callable[[str, str], bool],
) -> Aligned | None:
    """A reply by the ids that the endpoint sends; None when they do not spell its text."""
    if not all(token_id < vocabulary.vocabulary_size for token_id in ids):
        return None
    spelled = b"".join(map(vocabulary.token_bytes, ids)).decode("utf-8", "replace")
    if not is_text(spelled, reply.text):
        return None
    if reply.finish_reason == "stop" and ids[-1] != vocabulary.eos_id:
        ids = (*ids, vocabulary.eos_id)
    return Aligned(
        reply_ids=ids,
        left_out=frozenset(),
        by="bytes",
        candidates=None,
        reported=None,
        problem=reply.logprobs_problem,
    )


def _bytes(candidate: Candidate, vocabulary: Vocabulary) -> bytes:
    if candidate.token_id is not None and candidate.token_id < vocabulary.vocabulary_size:
        return vocabulary.token_bytes(candidate.token_id)
    return candidate.token.encode() if candidate.bytes is None else candidate.bytes


def _id(candidate: Candidate, vocabulary: Vocabulary) -> int | None:
    """The id of a named token, if it is named by id, or its bytes say which one it is."""
    if candidate.token_id is not None:
        return candidate.token_id if candidate.token_id < vocabulary.vocabulary_size else None
    if candidate.bytes is None and REPLACEMENT in candidate.token:
        return None
    special = vocabulary.special_id(candidate.token)
    if special is not None:
        return special
    found = vocabulary.ids_of_bytes(_bytes(candidate, vocabulary))
    return found[0] if len(found) == 1 else None


def _by_text(reply: Reply, vocabulary: Vocabulary, problem: str | None) -> Aligned:
    # bytes that are no character cannot be read back: what follows them is not judged
    text, broken, _ = reply.text.partition(REPLACEMENT)
    ids = vocabulary.encode(text)
    left_out: set[int] = set()
    if reply.finish_reason == "stop" and not broken:
        ids = (*ids, vocabulary.eos_id)
    elif ids:
        # cut in mid-word: the last pieces of the text need not be the last tokens
        left_out.add(len(ids) - 1)
    return Aligned(
        reply_ids=ids,
        left_out=frozenset(left_out),
        by="text",
        candidates=None,
        reported=None,
        problem=problem,
    )


def reread(
    aligned: Aligned,
    score: ReplyScore,
    vocabulary: Vocabulary,
    *,
    settled: Set[int] | None = None,
) -> Aligned | None:
    """Another reading of a text that the published model prefers; None when there is none.

    At the first position where the model's likeliest token differs from the one read, yet spells
    the same text, the model's token is taken and the rest tokenized again. The positions up to
    where both readings agree on a boundary are left out: they were chosen, not observed. Passed
    over are the positions that begin at one of the bytes `settled`, counted from the first that is
    no white space; None: those left out.
    """
    offsets = _offsets(aligned.reply_ids, vocabulary)
    if settled is None:
        passed: Set[int] = aligned.left_out
    else:
        places = from_first_word(aligned.reply_ids, vocabulary)
        passed = {t for t in range(len(aligned.reply_ids)) if places[t] in settled}
    whole = b"".join(vocabulary.token_bytes(i) for i in aligned.reply_ids)
    for t, (read, likeliest) in enumerate(zip(aligned.reply_ids, score.top_ids, strict=True)):
        if read == likeliest or t in passed:
            continue
        end_of_run = _end_of_run(aligned.reply_ids, t, vocabulary)
        rest = whole[offsets[t] : offsets[end_of_run]]
        raw = vocabulary.token_bytes(likeliest)
        if _trimmed_end(t, aligned, vocabulary, likeliest):
            return _leaving_out(aligned, {t})
        if t == 0 and raw[:1].isspace() and rest.startswith(raw.lstrip()):
            raw = raw.lstrip()  # white space that the host trimmed is put back
        if not raw or not rest.startswith(raw):
            continue
        return respelled(aligned, t, likeliest, vocabulary, raw=raw)
    return None


def respelled(
    aligned: Aligned,
    t: int,
    token: TokenId,
    vocabulary: Vocabulary,
    *,
    raw: bytes | None = None,
) -> Aligned:
    """The reading that has another token at `t`, and the rest of the text tokenized again.

    `raw` are the bytes of the text that it stands for; None: those that it spells.
    """
    raw = vocabulary.token_bytes(token) if raw is None else raw
    offsets = _offsets(aligned.reply_ids, vocabulary)
    end_of_run = _end_of_run(aligned.reply_ids, t, vocabulary)
    whole = b"".join(vocabulary.token_bytes(i) for i in aligned.reply_ids)
    try:
        tail = whole[offsets[t] + len(raw) : offsets[end_of_run]].decode()
    except UnicodeDecodeError:
        return _leaving_out(aligned, {t})
    run = (*aligned.reply_ids[:t], token, *vocabulary.encode(tail))
    ids = (*run, *aligned.reply_ids[end_of_run:])
    back = len(vocabulary.token_bytes(token)) - len(raw)
    after = [offset - back for offset in _offsets(ids, vocabulary)]
    common = set(offsets[t + 1 :])
    end = next((n for n in range(t + 1, len(ids)) if after[n] in common), len(ids))
    return replace(
        aligned.without_reports(),
        reply_ids=ids,
        left_out=frozenset(_moved(aligned, offsets, after, t, end_of_run) | set(range(t, end))),
    )


def rivals(aligned: Aligned, vocabulary: Vocabulary) -> tuple[tuple[TokenId, ...], ...]:
    """Of each position the tokens that spell the same text as far as they reach; its own first."""
    offsets = _offsets(aligned.reply_ids, vocabulary)
    whole = b"".join(vocabulary.token_bytes(i) for i in aligned.reply_ids)
    found = []
    for t, own in enumerate(aligned.reply_ids):
        end = offsets[_end_of_run(aligned.reply_ids, t, vocabulary)]
        begun = (
            whole[offsets[t] : n]
            for n in range(offsets[t] + 1, min(offsets[t] + _LONGEST, end) + 1)
        )
        others = (i for raw in begun for i in vocabulary.ids_of_bytes(raw))
        found.append(tuple(dict.fromkeys((own, *others))))
    return tuple(found)


def _end_of_run(ids: tuple[int, ...], t: int, vocabulary: Vocabulary) -> int:
    """Where the text that holds position `t` ends: at a control token, or at the end of all."""
    return next((n for n in range(t, len(ids)) if not vocabulary.token_bytes(ids[n])), len(ids))


def _moved(
    aligned: Aligned, before: list[int], after: list[int], t: int, end_of_run: int
) -> set[int]:
    """Positions left out, in a reading that differs from `t` to the end of its run of text.

    There a token is left out that shares bytes with one that was.
    """
    longer = len(after) - len(before)
    found = {n if n < t else n + longer for n in aligned.left_out if not t <= n < end_of_run}
    for n in (n for n in aligned.left_out if t <= n < end_of_run):
        start, end = before[n], before[n + 1]
        found |= {
            m for m in range(t, end_of_run + longer) if after[m] < end and after[m + 1] > start
        }
    return found


def keep_reading(aligned: Aligned, other: Aligned, vocabulary: Vocabulary) -> Aligned:
    """A reading as it was, without the positions that `other` spells with other tokens.

    Of two spellings of one text the likelier is what was generated: a model's likeliest token may
    begin a word that it would never have gone on with.
    """
    pairs = enumerate(zip(aligned.reply_ids, other.reply_ids, strict=False))
    at = next((t for t, (one, two) in pairs if one != two), None)
    if at is None:
        return other
    offsets = from_first_word(aligned.reply_ids, vocabulary)
    common = set(from_first_word(other.reply_ids, vocabulary)[at + 1 :])
    after = range(at + 1, len(aligned.reply_ids))
    end = next((t for t in after if offsets[t] in common), len(aligned.reply_ids))
    return _leaving_out(aligned, set(range(at, end)))


def spells_better(
    other: Aligned,
    score: ReplyScore,
    aligned: Aligned,
    before: ReplyScore,
    vocabulary: Vocabulary,
    *,
    following: Aligned | None,
) -> bool | None:
    """Whether a reading of a text is at least as likely as the one before it; None: not known yet.

    Judged up to the last boundary they share before the next place that is doubtful in `other`,
    where `following` reads on. What comes after speaks for neither: a model that began with one
    spelling goes on with it, so of two places that are both spelled otherwise than they were
    written, one set right alone makes the other look worse. Where they share no boundary between,
    as in a word of which two pieces are doubtful, what follows must be settled first.
    """
    if following is None:
        return sum(score.logprobs) >= sum(before.logprobs)
    ours, theirs = (from_first_word(a.reply_ids, vocabulary) for a in (other, aligned))
    place = ours[_first_difference(other, following)]
    before_it = set(ours) & {offset for offset in theirs if offset <= place}
    shared = max(before_it, default=None)
    if shared is None or shared <= ours[_first_difference(other, aligned)]:
        return None
    mine, old = score.logprobs[: ours.index(shared)], before.logprobs[: theirs.index(shared)]
    return sum(mine) >= sum(old)


def _first_difference(one: Aligned, other: Aligned) -> int:
    """The first position at which two readings have other tokens, or else leave out another."""
    pairs = enumerate(zip(one.reply_ids, other.reply_ids, strict=False))
    shorter = min(len(one.reply_ids), len(other.reply_ids))
    found = next((t for t, (a, b) in pairs if a != b), shorter)
    same = one.reply_ids == other.reply_ids
    return min(one.left_out ^ other.left_out) if same else found


def read_past_end(aligned: Aligned, score: ReplyScore, vocabulary: Vocabulary) -> Aligned | None:
    """The reading of a host that runs on past the end of the turn; None when nothing changes.

    Control tokens show in no text. At the first position where the model would have written one,
    yet the text goes on, it is put back.
    """
    for t, (read, likeliest) in enumerate(zip(aligned.reply_ids, score.top_ids, strict=True)):
        if read == likeliest or vocabulary.token_bytes(likeliest):
            continue
        return Aligned(
            reply_ids=(*aligned.reply_ids[:t], likeliest, *aligned.reply_ids[t:]),
            left_out=frozenset(n if n < t else n + 1 for n in aligned.left_out),
            by=aligned.by,
            candidates=None,
            reported=None,
            problem=aligned.problem,
        )
    return None


def _offsets(ids: tuple[int, ...], vocabulary: Vocabulary) -> list[int]:
    """Byte offset at which each token begins, and where the last ends."""
    found = [0]
    for token_id in ids:
        found.append(found[-1] + len(vocabulary.token_bytes(token_id)))
    return found


def from_first_word(ids: tuple[int, ...], vocabulary: Vocabulary) -> list[int]:
    """The same, counted from the first byte that is no white space, which hosts trim."""
    whole = b"".join(map(vocabulary.token_bytes, ids))
    lead = len(whole) - len(whole.lstrip())
    return [offset - lead for offset in _offsets(ids, vocabulary)]


def _trimmed_end(t: int, aligned: Aligned, vocabulary: Vocabulary, likeliest: int) -> bool:
    """Whether the model wanted white space just where hosts trim it: at either end of a reply."""
    raw = vocabulary.token_bytes(likeliest)
    if aligned.reply_ids[t] == vocabulary.eos_id:
        return bool(raw) and not raw.strip()
    first = vocabulary.token_bytes(aligned.reply_ids[t])
    return t == 0 and bool(raw) and (not raw.strip() or raw.strip() == first.strip())


def _leaving_out(aligned: Aligned, positions: set[int]) -> Aligned:
    return Aligned(
        reply_ids=aligned.reply_ids,
        left_out=aligned.left_out | positions,
        by=aligned.by,
        candidates=aligned.candidates,
        reported=aligned.reported,
        problem=aligned.problem,
        own=aligned.own,
    )
