"""Where a reply's text leaves the texts of a trusted host: no likelihood, no tokenizer.

Places are the tokens of the trusted host's replies. A reply leaves one of them at the token within
which the first byte differs. Whether it had begun to leave one token before, by a longer token that
begins as the known one does, no text tells: so of that place both ends are kept, and each question
takes the end that spares. "It differs" has a target leave as late as it may have, "it is alike" as
early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verifier.evidence.hazards import WINDOW, Leaving
from verifier.records import Reply
from verifier.reference.pack_file import Pack
from verifier.scoring.paths import known_text


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftTexts:
    """How a reply stands to what is known of its question."""

    target: Leaving  # beside all replies of trusted hosts, left as late as may be
    alone: Leaving  # beside the first of them, left as early as may be


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beside:
    """A reply beside one path: places at risk, at most and at least."""

    most: int
    least: int
    left: bool


def leave_texts(pack: Pack, paths: Sequence[Sequence[int]], reply: Reply) -> LeftTexts | None:
    """Where a reply leaves these paths, tokens of a pack's table; None: it tells of no token."""
    text, is_whole = known_text(reply)
    # behind it stands a sign that tells no bytes: it is no character of one byte, for sure
    broken = len(text) < len(reply.text.encode("utf-8", "surrogatepass"))
    found = [_Spelled(pack, path).beside(text, is_whole=is_whole, broken=broken) for path in paths]
    stayed = [one.most for one in found if not one.left]
    target = Leaving(exposure=max(one.most for one in found), left=True)
    if stayed:
        target = Leaving(exposure=max(stayed), left=False)
    first = found[0]
    alone = Leaving(exposure=first.least, left=first.left)
    if not target.exposure:
        return None
    return LeftTexts(target=target.within(WINDOW), alone=alone.within(WINDOW))


class _Spelled:
    """One path: the bytes of its tokens, and whether it ended of itself."""

    def __init__(self, pack: Pack, path: Sequence[int]) -> None:
        self._ended = pack.token_id(path[-1]) == pack.manifest.eos_id
        self._tokens = [pack.spell(token) for token in path[: len(path) - self._ended]]

    def beside(self, text: bytes, *, is_whole: bool, broken: bool) -> _Beside:
        """How a text stands to it; white space at either end, which hosts strip, tells nothing."""
        tokens, text = _stripped(self._tokens), text.lstrip()
        own = b"".join(tokens)
        shared = next(
            (n for n, (a, b) in enumerate(zip(own, text, strict=False)) if a != b),
            min(len(own), len(text)),
        )
        known, said, at = own[shared:], text[shared:], _before(tokens, shared)
        if not known:  # nothing is known beyond a path that was cut
            goes_on = self._ended and bool(said.strip())
            whole = self._ended and is_whole
            return _leave(at, early=at) if goes_on else _stay(at + whole)
        if not said and is_whole and not known.strip():
            return _stay(len(tokens) + 1 if self._ended else at)
        if not said and is_whole:  # it ended, perhaps behind white space that is not shown
            late = _before(tokens, len(own) - len(known.lstrip()))
            return _leave(late, early=at)
        if not said and not (broken and known[:1].isascii()):
            return _stay(at)
        on_edge = shared == sum(map(len, tokens[:at]))
        return _leave(at, early=at - on_edge)


def _leave(late: int, *, early: int) -> _Beside:
    """It left at the token of this number at the latest, and at the earliest."""
    return _Beside(most=late + 1, least=max(early, 0) + 1, left=True)


def _stay(places: int) -> _Beside:
    return _Beside(most=places, least=places, left=False)


def _before(tokens: Sequence[bytes], end: int) -> int:
    """How many tokens end at or before this byte."""
    at = 0
    for n, token in enumerate(tokens):
        at += len(token)
        if at > end:
            return n
    return len(tokens)


def _stripped(tokens: Sequence[bytes]) -> list[bytes]:
    """The tokens without the white space that they begin with."""
    left = list(tokens)
    for n, token in enumerate(left):
        left[n] = token.lstrip()
        if left[n]:
            break
    return left
