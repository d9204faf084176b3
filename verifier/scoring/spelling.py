"""Which tokens a text was written in: read anew until the weights in place prefer no others.

A reply that names its tokens needs none of this. Knows no prompt: readings are scored by a
function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from verifier.reference.reader import Reader
from verifier.scoring.alignment import (
    Aligned,
    from_first_word,
    keep_reading,
    reread,
    spells_better,
)
from verifier.scoring.score_file import Scored

#: How often a text is read anew; what is still doubtful then is left out whole. A list of ten items
#: may need ten: of 48 greedy replies of up to 384 tokens five needed more than 4, one more than 8.
MAX_READINGS = 16


def settle_spelling(
    found: list[Scored],
    limits: Sequence[int],
    score: Callable[[Sequence[int], Sequence[Aligned]], list[Scored]],
    tokenizer: Reader,
) -> list[Scored]:
    """Read texts anew until the weights in place prefer no other tokens for them.

    `score` scores readings of the replies with the numbers it is given.
    """
    spellings = {
        i: _Spelling(scored, tokenizer)
        for i, scored in enumerate(found)
        if scored.aligned.by == "text" and not scored.aligned.unjudged
    }
    doubtful = list(spellings)
    for reading in range(MAX_READINGS + 1):
        wanted = {i: spellings[i].read_on() for i in doubtful}
        others = {i: cut_to(other, limits[i]) for i, other in wanted.items() if other is not None}
        doubtful = list(others)
        if reading == MAX_READINGS:
            for i in doubtful:
                spellings[i].leave_out_whole()
        elif doubtful:
            for i, scored in zip(doubtful, score(doubtful, list(others.values())), strict=True):
                spellings[i].tried = scored
    return [spellings[i].best if i in spellings else scored for i, scored in enumerate(found)]


class _Spelling:
    """One text: its best reading so far, and one that is tried."""

    def __init__(self, scored: Scored, tokenizer: Reader) -> None:
        self.best = scored
        self.tried: Scored | None = None
        self._tokenizer = tokenizer
        #: Where tokens begin that are not doubted again, in bytes from the first word.
        self._settled = set[int]()
        self._settle_what_is_left_out()

    def read_on(self) -> Aligned | None:
        """The next reading to try, of which no score is known; None: nothing is doubtful."""
        while True:
            last = self.tried or self.best
            other = reread(last.aligned, last.score, self._tokenizer, settled=self._settled)
            if self._turns_down(other):
                continue
            if other is None:
                return None
            if other.reply_ids != last.aligned.reply_ids:
                return other
            self._leave_out(other)

    def leave_out_whole(self) -> None:
        """What is still doubtful says nothing."""
        aligned, self.tried = self.best.aligned, None
        whole = frozenset(range(len(aligned.reply_ids)))
        self.best = replace(self.best, aligned=replace(aligned, left_out=whole))

    def _turns_down(self, following: Aligned | None) -> bool:
        """Judge the reading that is tried, where it can be: whether it is not taken."""
        if self.tried is None:
            return False
        tried, best = self.tried, self.best
        better = spells_better(
            tried.aligned, tried.score, best.aligned, best.score, self._tokenizer,
            following=following,
        )  # fmt: skip
        if better is None:
            return False
        self.tried = None
        if better:
            self.best = tried
            return False
        kept = keep_reading(best.aligned, tried.aligned, self._tokenizer)
        self.best = replace(best, aligned=kept)
        self._settle_what_is_left_out()
        return True

    def _leave_out(self, other: Aligned) -> None:
        """Take a reading that only leaves out a place more: its tokens are scored already."""
        last = self.tried or self.best
        places = from_first_word(other.reply_ids, self._tokenizer)
        self._settled |= {places[t] for t in other.left_out - last.aligned.left_out}
        if self.tried is not None:
            self.tried = replace(self.tried, aligned=other)
        else:
            self.best = replace(self.best, aligned=other)

    def _settle_what_is_left_out(self) -> None:
        places = from_first_word(self.best.aligned.reply_ids, self._tokenizer)
        self._settled |= {places[t] for t in self.best.aligned.left_out}


def cut_to(aligned: Aligned, limit: int) -> Aligned:
    """No more than was asked for: a host that ignores max_tokens must not cost hours."""
    return replace(
        aligned,
        reply_ids=aligned.reply_ids[:limit],
        left_out=frozenset(t for t in aligned.left_out if t < limit),
        candidates=None if aligned.candidates is None else aligned.candidates[:limit],
        reported=None if aligned.reported is None else aligned.reported[:limit],
        own=None if aligned.own is None else aligned.own[:limit],
    )
