"""What the pieces of a streamed answer add up to.

Most hosts send with each event what is new. Some send all that was said so far, always or now and
then; some send an event twice, or the whole answer once more at its end; some cut the text anew.
No tokenizer is at hand: the pieces, the host's own counts and the tokens that it names are all
there is to tell by. A text that repeats itself looks like any of these, so the whole stream
decides, and where two texts are left neither is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, Final, Literal

#: What a piece is: something new, all that was said so far (and more), or what came already.
Step = Literal["new", "all", "again"]

#: Pieces that hold all that was said before, and tell more, from which a host is known to do so.
#: One or two may be chance.
_KNOWN_BY: Final = 3

#: Characters that a piece begins with for no chance, where nothing is counted; and how many times
#: longer that is than any piece before it.
_LONG: Final = 24
_FAR_LONGER: Final = 4

#: Readings that are followed at once; a stream that allows more tells nothing.
_MOST_READINGS: Final = 32

#: Characters of a piece at most, where a text was cut anew into pieces smaller than tokens.
_CUT_ANEW: Final = 4

#: And what such a text must not hold, as a part of it may have been sent twice; and how long it is
#: at most, to be looked through.
_SENT_TWICE: Final = re.compile(r"(.{8,}?)\1", re.DOTALL)
_LONGEST: Final = 4096

#: What is seldom said twice in a row, as signs and digits are: words, or letters beside signs; and
#: how far it is looked for.
_WORD: Final = re.compile(
    r"[^\W\d_]{3}|\S\s+\S|\n\s*[^\W\d_]|[^\W\d_]\s*[^\w\s]|[^\w\s]\s*[^\W\d_]"
)

_LOOKED_AT: Final = 256

#: Fields of a thought; hosts that give several repeat it.
_THOUGHTS: Final = ("reasoning", "reasoning_content", "thinking")

#: Tokens of an answer of one, and of its end.
_TOKEN_AND_END: Final = 2

#: A host may count so many tokens less than it sends pieces: one may hold the rest of a character.
_SLACK: Final = 1


class BrokenStream(Exception):
    """The events do not add up to one whole answer; the text says why.

    `said` is what the host put in the place of an event, where it may be an error in plain words.
    """

    def __init__(self, reason: str, *, said: str = "") -> None:
        super().__init__(reason)
        self.said = said


class TwoReadings(Exception):
    """The events add up to more than one text, and nothing tells which; the text says so."""

    def __init__(self) -> None:
        super().__init__("its pieces can be read as more than one text, and nothing tells which")
        self.body: dict[str, Any] = {}  # the answer by one of the readings, for all but its text


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The text of one event, in the order of events."""

    texts: Mapping[str, str]  # what each field holds; none of them is empty
    event: Any  # as it came: equal neighbours may be one that came twice
    count: int | None = None  # tokens, as the host counts with this event
    named: bytes | None = None  # the tokens that it names for this event; None: it names none
    rows: int = 0  # how many those are, those before it that end in no character among them
    telling: bool = False  # whether the numbers beside them are hardly those of two positions


def read_pieces(
    pieces: Sequence[Piece],
    *,
    total: int | None,
    whole: str | None = None,
    at_limit: bool = False,
    after_end: int | None = None,
) -> list[Step]:
    """What each piece is.

    `total` is the host's count of completion tokens, `whole` the text as it says it once more in
    another field, `at_limit` whether the limit ended it, and `after_end` the first piece that came
    after a sign of the end. Raises BrokenStream where no reading agrees with these, and TwoReadings
    where several do.
    """
    total = total or None  # nothing is said in no tokens: a count of 0 is none
    numbered = _numbers(pieces, total)
    steps: list[Step] = [
        "again" if numbered and n and piece.event == pieces[n - 1].event else "new"
        for n, piece in enumerate(pieces)
    ]
    places = [n for n, step in enumerate(steps) if step == "new"]
    kept = [pieces[n] if numbered else replace(pieces[n], count=None) for n in places]
    end = None if after_end is None else sum(n < after_end for n in places)
    for n, step in zip(places, _read(kept, total, whole, at_limit, end), strict=True):
        steps[n] = step
    return steps


def _read(
    pieces: Sequence[Piece], total: int | None, whole: str | None, at_limit: bool, end: int | None
) -> list[Step]:
    plain, *others = _follow(pieces, total, at_limit, end)
    if not others:
        if plain.is_over:
            raise BrokenStream("a piece of text came after the end")
        return _read_plain(pieces, plain, total, whole, at_limit)
    cut_anew = total is not None and _is_cut_anew(plain, pieces, total)
    readings = [plain] if not plain.is_over and (plain.fits(total) or cut_anew) else []
    readings += [one for one in others if one.fits(total)]
    most = max((one.grown for one in readings), default=0)
    always = _KNOWN_BY <= most == len(pieces) - 1
    readings = [one for one in readings if most - one.grown < (1 if always else _KNOWN_BY)]
    if not readings:
        raise BrokenStream(f"its pieces say more than {total} tokens can")
    return _choose(readings, pieces, whole).steps


# -- events that came twice ----------------------------------------------------------------------


def _numbers(pieces: Sequence[Piece], total: int | None) -> bool:
    """Whether a running count of tokens numbers the events: an equal neighbour came twice.

    Not where the count stays while other text comes, nor where each event counts its own tokens.
    Raises BrokenStream where the count goes back.
    """
    known = [piece for piece in pieces if piece.count]
    counts = [piece.count or 0 for piece in known]
    if len(known) == len(pieces) and sum(counts) == total:
        return False
    ups = downs = same = 0
    for one, other in pairwise(known):
        before, after = one.count or 0, other.count or 0
        if before == after and one.event != other.event:
            return False
        ups, downs = ups + (after > before), downs + (after < before)
        same += after == before
    if downs:
        raise BrokenStream("its running count of tokens goes back")
    return len(known) == len(pieces) and ups > 1 and same <= ups + 1


def _runs(pieces: Sequence[Piece]) -> list[int]:
    """How often each event comes in a row."""
    runs: list[int] = []
    for n, piece in enumerate(pieces):
        if n and piece.event == pieces[n - 1].event:
            runs[-1] += 1
        else:
            runs.append(1)
    return runs


def _are_pairs(runs: Sequence[int]) -> bool:
    """Whether each event may have come twice."""
    return all(run % 2 == 0 for run in runs)


def _sent_once(pieces: Sequence[Piece], runs: Sequence[int], *, several: int) -> list[_Reading]:
    """The reading in which each of several events came twice, or one alone did; [] if none can."""
    if len(runs) >= several and _are_pairs(runs):
        kept = [run // 2 for run in runs]
    elif [run for run in runs if run > 1] == [2]:
        kept = [1] * len(runs)
    else:
        return []
    found = _Reading(is_counted=True)
    at = 0
    for run, new in zip(runs, kept, strict=True):
        for n in range(run):
            if n < new:
                found.add(pieces[at + n])
            else:
                found.steps.append("again")
        at += run
    return [found]


# -- streams of what is new alone ----------------------------------------------------------------


def _read_plain(
    pieces: Sequence[Piece], plain: _Reading, total: int | None, whole: str | None, at_limit: bool
) -> list[Step]:
    """A stream in which no event holds all that was said; some may have come twice."""
    telling = [b.telling and a.event == b.event for a, b in pairwise(pieces)]
    if any(telling):
        return _read_by_rows(pieces, plain, [False, *telling], total, at_limit)
    count, runs = len(pieces), _runs(pieces)
    if total is None or count <= total:
        if not _looks_sent_twice(pieces, runs, total, at_limit):
            return plain.steps
        once = _sent_once(pieces, runs, several=_KNOWN_BY)
        once = [one for one in once if one.fits(total)]
        if not once:
            raise TwoReadings
        return _choose([*([plain] if plain.fits(total) else []), *once], pieces, whole).steps
    if count <= total + _SLACK:
        if len(runs) < count:
            raise TwoReadings
        return plain.steps
    return _read_too_many(pieces, plain, runs, total, whole)


def _read_too_many(
    pieces: Sequence[Piece], plain: _Reading, runs: Sequence[int], total: int, whole: str | None
) -> list[Step]:
    """A stream of more pieces than tokens: some came twice, or all are smaller than those."""
    found = [one for one in _sent_once(pieces, runs, several=1) if one.fits(total)]
    all_twice = len(runs) >= _KNOWN_BY and _are_pairs(runs)  # no text is spelled so
    if not all_twice and _is_cut_anew(plain, pieces, total):
        if _SENT_TWICE.search(plain.text):
            raise TwoReadings
        found.append(plain)
    if not found:
        raise BrokenStream(f"{len(pieces)} pieces for {total} tokens")
    return _choose(found, pieces, whole).steps


def _read_by_rows(
    pieces: Sequence[Piece],
    plain: _Reading,
    twice: Sequence[bool],
    total: int | None,
    at_limit: bool,
) -> list[Step]:
    """Neighbours with the very numbers of each other: one event, or a text that runs in a circle.

    How many positions come tells which: one for each token, but for the end's.
    """
    if total is None or not all(piece.rows for piece in pieces):
        raise TwoReadings
    rows = sum(piece.rows for piece in pieces)
    if rows < total or (rows == total and at_limit):
        return plain.steps
    fewer = sum(piece.rows for piece, again in zip(pieces, twice, strict=True) if not again)
    if rows > total and total - 1 <= fewer <= total:
        return ["again" if again else "new" for again in twice]
    raise TwoReadings


def _looks_sent_twice(
    pieces: Sequence[Piece], runs: Sequence[int], total: int | None, at_limit: bool
) -> bool:
    """Whether equal neighbours may be no words that were said twice.

    Where each piece is one token they are, as is counted: with the end, or without one. Else each
    event having one speaks against it, and so does a single one that is a word or more: texts
    repeat signs and digits, or go on repeating.
    """
    if len(runs) == len(pieces):
        return False
    words = [_words(piece) for piece in pieces]
    if total is not None and len(pieces) >= total - 1 and max(words) == 1:
        return len(pieces) == total and not at_limit and 2 in runs
    if len(runs) >= _KNOWN_BY and _are_pairs(runs):
        return True
    ends = accumulate(runs)
    twice = [pieces[end - 1] for run, end in zip(runs, ends, strict=True) if run == 2]
    return any(_WORD.search(text[:_LOOKED_AT]) for piece in twice for text in piece.texts.values())


def _is_cut_anew(plain: _Reading, pieces: Sequence[Piece], total: int) -> bool:
    """Whether a text came in pieces smaller than tokens, and as much of it as is counted."""
    if any(len(text) > _CUT_ANEW for piece in pieces for text in piece.texts.values()):
        return False
    text = plain.text
    return len(text) <= _LONGEST and len(text.split()) <= total + _SLACK


# -- readings ------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Reading:
    """One way to read the pieces so far."""

    said: dict[str, list[str]] = field(default_factory=dict)  # by field, what adds up to its text
    sizes: dict[str, int] = field(default_factory=dict)  # how many characters those are
    least: dict[str, int] = field(default_factory=dict)  # and tokens at least
    steps: list[Step] = field(default_factory=list)
    longest: int = 0  # characters of a new piece at most
    grown: int = 0  # events that hold all that was said, and tell more
    is_over: bool = False  # whether it says something after the end
    is_plain: bool = False  # whether every piece of it is new
    is_counted: bool  # whether the host counts tokens

    @property
    def text(self) -> str:
        """All that is said, in the order of its fields."""
        return "".join(part for parts in self.said.values() for part in parts)

    def fits(self, total: int | None) -> bool:
        """Whether it takes no more tokens than were counted. A thought in two fields is one."""
        thoughts = [self.least.get(name, 0) for name in _THOUGHTS]
        least = sum(self.least.values()) - sum(thoughts) + max(thoughts)
        return total is None or least <= total + _SLACK

    def copy(self) -> _Reading:
        """The same, to go on in another way."""
        said = {name: list(parts) for name, parts in self.said.items()}
        return replace(
            self, said=said, sizes=dict(self.sizes), least=dict(self.least),
            steps=list(self.steps), is_plain=False,
        )  # fmt: skip

    def read_on(self, piece: Piece, *, last: bool, over: bool) -> list[_Reading]:
        """The ways to read one more piece, this one among them where it goes on.

        `last` is whether no more comes in its fields, `over` whether it came after the end.
        """
        found = []
        if self.is_in(piece, last=last or over):
            known = self.grown >= _KNOWN_BY
            other = self if known else self.copy()
            other.take_all(piece)
            if not over or other.steps[-1] == "again":
                found.append(other)
            if known:
                return found
        if self.is_plain or not over:
            self.add(piece)
            self.is_over = self.is_over or over
            found.append(self)
        return found

    def is_in(self, piece: Piece, *, last: bool) -> bool:
        """Whether a piece begins with all that was said in its fields.

        The last one may say just that: then white space around it does not matter, and before it
        only where the host is known to say again what it said.
        """
        known = [name for name in piece.texts if name in self.said]
        if not known or (not last and any(len(piece.texts[n]) < self.sizes[n] for n in known)):
            return False
        said = {name: "".join(self.said[name]) for name in known}
        if last and all(piece.texts[name].strip() == said[name].strip() for name in known):
            return True
        begins = all(piece.texts[name].startswith(said[name]) for name in known)
        return begins and (self.grown > 1 or any(said.get(n) != t for n, t in piece.texts.items()))

    def add(self, piece: Piece) -> None:
        """Take a piece as new."""
        for name, text in piece.texts.items():
            self.said.setdefault(name, []).append(text)
            self.sizes[name] = self.sizes.get(name, 0) + len(text)
            self.longest = max(self.longest, len(text))
            self.least[name] = self.least.get(name, 0) + max(1, len(text.split()))
        self.steps.append("new")

    def take_all(self, piece: Piece) -> None:
        """Take a piece as all that was said so far, and more of it if it tells more."""
        more = grew = False
        for name, text in piece.texts.items():
            said = "".join(self.said.get(name, ()))
            if not self.is_counted and self.grown < _KNOWN_BY and self._is_no_chance(said):
                self.grown += _KNOWN_BY
            if text == said or not text.startswith(said):
                continue  # the same, but for white space
            more = True
            # what goes round in a circle begins with what was said whether it was sent anew or not
            grew = grew or bool(said and text != (said * (len(text) // len(said) + 1))[: len(text)])
            self.said[name], self.sizes[name] = [text], len(text)
            self.least[name] = max(1, len(text.split()))
        self.grown += grew
        self.steps.append("all" if more else "again")

    def _is_no_chance(self, said: str) -> bool:
        """Whether no piece can begin with all of `said` by chance: it came in many, each far
        shorter, and does not repeat itself."""
        long = len(said) >= max(_LONG, _FAR_LONGER * self.longest)
        return long and said.find(said[: len(said) // 2], 1) < 0


def _follow(
    pieces: Sequence[Piece], total: int | None, at_limit: bool, end: int | None
) -> list[_Reading]:
    """Every reading in which some pieces hold all that was said, behind the plain one.

    Raises TwoReadings where there are too many to follow.
    """
    last = {name: n for n, piece in enumerate(pieces) for name in piece.texts}
    plain = _Reading(is_plain=True, is_counted=total is not None)
    readings = [plain]
    for n, piece in enumerate(pieces):
        is_last = all(last[name] == n for name in piece.texts)
        over = end is not None and n >= end
        found = [new for one in readings for new in one.read_on(piece, last=is_last, over=over)]
        count = piece.count or total
        readings = [plain, *(one for one in found if not one.is_plain and one.fits(count))]
        if len(readings) > _MOST_READINGS:
            raise TwoReadings
    most = 1 if at_limit else _TOKEN_AND_END
    one_token = total is None or total <= most
    return [plain, *(r for r in readings[1:] if plain.is_over or one_token or _says_enough(r))]


def _says_enough(one: _Reading) -> bool:
    """Whether what is said again can be an answer of several tokens."""
    if "all" in one.steps:
        return True
    parts = [part.strip() for parts in one.said.values() for part in parts]
    kinds = {"letter" if s.isalpha() else "digit" if s.isdigit() else "" for s in parts[0]}
    return len(parts) > 1 or len(kinds) > 1


def _words(piece: Piece) -> int:
    """Words of a piece, and so tokens at least: no usual vocabulary has one for parts of two."""
    return max(1, *(len(text.split()) for text in piece.texts.values()))


def _choose(readings: Sequence[_Reading], pieces: Sequence[Piece], whole: str | None) -> _Reading:
    """The reading of the one text that is left, by what the host says elsewhere if need be."""
    left = {tuple("".join(parts) for parts in one.said.values()): one for one in readings}
    found = list(left.values())
    if len(found) > 1 and whole is not None:
        found = [one for one in found if one.text.strip() == whole.strip()] or found
    if len(found) > 1:
        found = [one for one in found if _is_spelled(one, pieces)] or found
    if len(found) > 1:
        raise TwoReadings
    return found[0]


def _is_spelled(one: _Reading, pieces: Sequence[Piece]) -> bool:
    """Whether the tokens that the host names spell a reading."""
    spelled = b""
    for piece, step in zip(pieces, one.steps, strict=True):
        if piece.named is None:
            return False
        if step == "new" or (step == "all" and not piece.named.startswith(spelled)):
            spelled += piece.named
        elif step == "all":
            spelled = piece.named
    return spelled.decode("utf-8", "replace").strip() == one.text.strip()
