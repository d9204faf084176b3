"""A reply's text along the known paths of a pack, and how likely every step of it is.

At each place a pack has the likeliest tokens, and all others as one outcome. The reply is followed
while its text says what a known path says. The first place where it leaves all of them is judged
too, by the tokens there that spell what follows, or as none of them; nothing after it is.

That place is a stopping time: whether it has come is told by the text up to it. Let P be the true
distribution of texts, and Q any other. The ways to come to the place and leave there, by each named
token or as none of them, and the ways to come to an end, are disjoint and exhaust all texts. So the
mean under P of Q/P at that place is the sum of Q over these ways, which is 1, or less where Q
leaves some out: the likelihood ratio is as exact as that of whole replies (optional stopping; Ville
1939). Products over replies are e-values at every number of replies; what is lost is power, never
the level. `tests/scoring/test_paths.py` and `tests/checks/test_packed.py` hold it to that by
counting every text.

What is seen is a text, not its tokens, and one text may be spelt in several ways. The event at a
place is that the text goes on as it does up to the end of the longest token that fits; it has the
probability of all spellings of that among the tokens that the pack knows. The likeliest is followed
where it is DOUBT times as likely as all others together, which are then dropped (an error of
1/DOUBT of the place's probability, at scale 1); else the place is judged as that event
and the walk ends there, for nobody can tell where it would go on. A token that is none of the
likeliest and begins as one of them does is taken for that one: honest noise gives such a token no
oftener than the mass beside the likeliest, which is what is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from verifier.evidence.arrays import Array, log_sum_exp
from verifier.evidence.ledger import TEXT_SCALES, event_cells
from verifier.records import Reply
from verifier.reference.pack_file import Pack, Place

#: Spellings whose probabilities differ by less than this factor are both held to be possible. Of 40
#: honest replies of the small model 7 ended at such a place, most at ends of lines; with 1000, 11.
DOUBT: Final = 30.0

#: Tokens in a row at most that spell one token's bytes, or white space before an end.
_DEEP: Final = 16

#: A place: the path, and how far along it; None: it is not known what comes.
_Node = tuple[int, int] | None

Ended = Literal["left", "end of path", "end of text", "doubtful"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One judged place of a reply."""

    place: Place
    begins: int  # bytes of the text before it
    members: tuple[int, ...]  # of the place's tokens, those that it may be; (): none of them
    cells: Array  # log p of this event at every scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """A reply along one path and its branches."""

    steps: tuple[Step, ...]
    text: bytes  # as far as it is known
    end: int  # bytes of the text that are judged
    ended: Ended


def walk(pack: Pack, path: int, reply: Reply) -> Walk:
    """Follow a reply along a path of a pack, up to and including where it leaves it."""
    return _Walker(pack, reply).walk(path)


class _Walker:
    """One text in one pack."""

    def __init__(self, pack: Pack, reply: Reply) -> None:
        self._pack = pack
        self._text, self._is_whole = known_text(reply)
        self._is_broken = len(self._text) < len(reply.text.encode("utf-8", "surrogatepass"))
        #: Hosts strip what a reply begins and ends with.
        self._is_stripped = not self._text[:1].isspace()
        self._is_trimmed = self._is_whole and not self._text[-1:].isspace()

    def walk(self, path: int) -> Walk:
        steps: list[Step] = []
        node: _Node = (path, 0)
        at, ended = 0, _LEFT
        while node is not None:
            if not self._is_known(node):
                ended = _PATH
                break
            place = self._pack.place(*node)
            if self._is_unshown(place):
                ended = _DOUBT
                break
            if at == len(self._text) and self._is_broken:
                steps.append(_step(place, at, self._breaking(place)))
                ended = _DOUBT
                break
            if at == len(self._text) and not self._is_whole:
                ended = _TEXT
                break
            ways = self._ways(node, place, at)
            if not ways and self._is_torn(place, at):
                ended = _TEXT
                break
            if not ways:
                steps.append(_step(place, at, ()))
                break
            best = max(ways, key=lambda way: float(way.mass[-1]))
            others = [way.mass for way in ways if way is not best]
            if others and _total(others)[-1] > best.mass[-1] - math.log(DOUBT):
                steps.append(_any_of(ways, place, at))
                over = at == len(self._text)  # in however many ways, the reply ends
                at, ended = max(way.end for way in ways), _TEXT if over else _DOUBT
                break
            steps.append(_step(place, at, (best.member,)))
            at, node = best.end, best.after
            if best.ends:
                ended = _TEXT
        return Walk(steps=tuple(steps), text=self._text, end=at, ended=ended)

    def _is_unshown(self, place: Place) -> bool:
        """Whether the path goes on with a control token, which shows in no text: nobody can tell
        then whether it came."""
        return not self._is_end(place, 0) and not self._pack.spell(place.tokens[0])

    def _is_known(self, node: tuple[int, int]) -> bool:
        return node[1] < self._pack.length(node[0])

    def _breaking(self, place: Place) -> tuple[int, ...]:
        """The tokens that show as no character: one of these has come, or none that is named."""
        return tuple(
            member for member, token in enumerate(place.tokens)
            if _is_unknown(self._pack.spell(token).decode("utf-8", "replace")[:1] or "-")
        )  # fmt: skip

    def _is_torn(self, place: Place, at: int) -> bool:
        """Whether the text may end within a token: then nobody knows which."""
        left = self._text[at:]
        return not self._is_whole and any(
            self._pack.spell(token).startswith(left) for token in place.tokens
        )

    def _ways(self, node: tuple[int, int], place: Place, at: int) -> list[_Way]:
        """The tokens that spell what follows, each with the probability that the text goes on so
        until the longest of them ends, or the reply does; those that do not are left out."""
        fits = list(self._fitting(place, at))
        until = max((end for _, end in fits), default=at)
        # a token may have spelt white space too that is stripped only where the reply ends there
        trimmed = any(self._strips(place, member, at) for member, _ in fits)
        for over in (at == len(self._text) or trimmed, at == len(self._text)):
            found = self._ways_until(node, place, fits, until=until, over=over)
            if found:  # else the path ends before that is known
                break
        return found

    def _ways_until(
        self, node: tuple[int, int], place: Place, fits: Sequence[tuple[int, int]], *, until: int,
        over: bool,
    ) -> list[_Way]:  # fmt: skip
        found = []
        for member, end in fits:
            ends = self._is_end(place, member)
            after = None if ends else self._follow(node, place, member)
            rest = self._mass(after, end, until, _DEEP, over=over and not ends)
            if rest is not None:
                mass = _cells(place, (member,)) + rest
                found.append(_Way(member=member, end=end, ends=ends, after=after, mass=mass))
        return found

    def _mass(self, node: _Node, at: int, until: int, deep: int, *, over: bool) -> Array | None:
        """log p at every scale that the text goes on so up to `until`, and where it is `over` that
        the reply ends; None: not known to."""
        if at >= until and not over:
            return _NOTHING
        if node is None or not self._is_known(node) or not deep:
            return None
        place, found = self._pack.place(*node), []
        for member, end in self._fitting(place, at):
            ends = self._is_end(place, member)
            after = None if ends else self._follow(node, place, member)
            rest = self._mass(after, end, until, deep - 1, over=over and not ends)
            if rest is not None:
                found.append(_cells(place, (member,)) + rest)
        return _total(found) if found else None

    def _fitting(self, place: Place, at: int) -> Iterator[tuple[int, int]]:
        """Each token that spells what follows, and where it ends in the text."""
        over = at == len(self._text)
        unshown = (at == 0 and self._is_stripped) or (over and self._is_whole)
        for member, token in enumerate(place.tokens):
            if self._is_end(place, member):
                if over and self._is_whole:
                    yield member, at
                continue
            raw = self._pack.spell(token)
            shown = raw.lstrip() if at == 0 and self._is_stripped else raw
            if shown and self._text.startswith(shown, at):
                yield member, at + len(shown)
            elif self._strips(place, member, at):
                yield member, len(self._text)
            elif unshown and raw.isspace():
                yield member, at

    def _strips(self, place: Place, member: int, at: int) -> bool:
        """Whether a token spells the rest of a reply, and white space that hosts strip there."""
        raw, rest = self._pack.spell(place.tokens[member]), self._text[at:]
        shown = raw.lstrip() if at == 0 and self._is_stripped else raw
        trimmed = shown.rstrip()
        return self._is_trimmed and bool(rest) and trimmed == rest != shown

    def _is_end(self, place: Place, member: int) -> bool:
        return self._pack.token_id(place.tokens[member]) in self._pack.ends

    def _follow(self, node: tuple[int, int], place: Place, member: int) -> _Node:
        """Where a token leads; None: to no known place."""
        path, at = node
        if member == 0:
            return path, at + 1
        branch = self._pack.branches.get((path, at, place.tokens[member]))
        return None if branch is None else (branch, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """One token that spells what follows."""

    member: int
    end: int  # of it in the text
    ends: bool  # the reply
    after: _Node
    mass: Array  # log p at every scale that the text goes on so


#: A sure event.
_NOTHING: Final[Array] = np.zeros(1)

#: What says nothing at any scale.
_UNTOLD: Final[Array] = np.zeros(len(TEXT_SCALES))

_LEFT: Final[Ended] = "left"
_PATH: Final[Ended] = "end of path"
_TEXT: Final[Ended] = "end of text"
_DOUBT: Final[Ended] = "doubtful"


def known_text(reply: Reply) -> tuple[bytes, bool]:
    """A reply's text as far as it tells its bytes, and whether it is all of it, and ended."""
    known = next((n for n, sign in enumerate(reply.text) if _is_unknown(sign)), None)
    return reply.text[:known].encode(), reply.finish_reason == "stop" and known is None


def _is_unknown(sign: str) -> bool:
    """Whether a sign of a text does not tell its bytes."""
    return sign == "\ufffd" or "\ud800" <= sign <= "\udfff"


def _any_of(ways: Sequence[_Way], place: Place, begins: int) -> Step:
    """That one of these has come; of few tokens nobody knows how likely they are together."""
    whole = _UNTOLD if place.few else _total([way.mass for way in ways])
    members = tuple(way.member for way in ways)
    return Step(place=place, begins=begins, members=members, cells=whole)


def _step(place: Place, begins: int, members: tuple[int, ...]) -> Step:
    return Step(place=place, begins=begins, members=members, cells=_cells(place, members))


def _cells(place: Place, members: tuple[int, ...]) -> Array:
    return event_cells(place.logprobs, place.rest, members, few=place.few)


def _total(masses: Sequence[Array]) -> Array:
    return log_sum_exp(np.array(masses), axis=0)
