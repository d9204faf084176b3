"""Which tokens a text was written in: read anew until the weights in place prefer no others.

A text is first read as its tokenizer writes it, and wherever the likeliest token spells the same
text, that is tried. A host that chose the second likeliest of two near ones may have written
another spelling, too, and went on with it; read otherwise, its next token looks like one that no
honest machine would choose. So before such a token counts, spellings nearly as likely as those
read are tried in front of it.

A reply that names its tokens needs none of this. Knows no prompt: readings are scored by a
function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from verifier.records import TokenId
from verifier.reference.reader import Reader
from verifier.scoring.alignment import (
    Aligned,
    from_first_word,
    keep_reading,
    reread,
    respelled,
    rivals,
    spells_better,
)
from verifier.scoring.score_file import Scored

#: How often a text is read anew; what is still doubtful then is left out whole. A list of ten items
#: may need ten: of 48 greedy replies of up to 384 tokens five needed more than 4, one more than 8.
MAX_READINGS = 16

#: By how much a token must be outdone, in nats, until other spellings are tried before it counts:
#: far more than honest noise makes. How much less likely these may be than what was read, and how
#: many tokens before it they may begin.
SURPRISE = 2.0
NEARLY = 2.5
REACH = 3

#: How many such are tried of one reply: of a host whose tokens do surprise few lead anywhere.
MOST_TRIED = 3

#: Spellings whose likelihoods differ by less, in nats, leave open which of them it was.
OPEN = 3.0


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
                spellings[i].take(scored)
    return [spellings[i].settled if i in spellings else scored for i, scored in enumerate(found)]


class _Spelling:
    """One text: its best reading so far, and one that is tried."""

    def __init__(self, scored: Scored, tokenizer: Reader) -> None:
        self.best = scored
        self.tried: Scored | None = None
        self._tokenizer = tokenizer
        #: Where tokens begin that are not doubted again, in bytes from the first word.
        self._settled = set[int]()
        self._settle_what_is_left_out()
        #: What else may stand at each position of the best reading; None: nobody was asked.
        self._rivals: tuple[tuple[TokenId, ...], ...] | None = None
        self._rival: tuple[int, TokenId] | None = None  # what the reading that is tried began with
        self._turned_down = set[tuple[int, TokenId]]()

    @property
    def settled(self) -> Scored:
        """The best reading, without what was only asked to find it."""
        return replace(self.best, score=replace(self.best.score, candidate_logprobs=None))

    def take(self, scored: Scored) -> None:
        """Take the score of what `read_on` gave."""
        if scored.aligned.candidates is None:
            self.tried = scored
            return
        self._rivals = scored.aligned.candidates
        self.best = replace(scored, aligned=scored.aligned.without_reports())

    def read_on(self) -> Aligned | None:
        """The next reading to try, of which no score is known; None: nothing is doubtful."""
        while True:
            last = self.tried or self.best
            other = reread(last.aligned, last.score, self._tokenizer, settled=self._settled)
            if self._turns_down(other):
                continue
            if other is None:
                return self._read_otherwise()
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
        rival, self.tried, self._rival = self._rival, None, None
        if better:
            self.best, self._rivals = tried, None
            return False
        if rival is not None:
            self._turned_down.add(rival)
        if rival is None or sum(tried.score.logprobs) > sum(best.score.logprobs) - OPEN:
            kept = keep_reading(best.aligned, tried.aligned, self._tokenizer)
            self.best = replace(best, aligned=kept)
            self._settle_what_is_left_out()
        return True

    def _read_otherwise(self) -> Aligned | None:
        """A spelling that is nearly as likely, in front of a token that is not; None: none is.

        What else could be spelt is asked for first.
        """
        aligned, score = self.best.aligned, self.best.score
        surprising = [
            t for t in aligned.kept
            if score.top_logprobs[t][0] - score.logprobs[t] > SURPRISE
        ]  # fmt: skip
        if not surprising or len(self._turned_down) >= MOST_TRIED:
            return None
        if self._rivals is None:
            self._rivals = ((),) * len(aligned.reply_ids)  # until they are scored
            return replace(aligned, candidates=rivals(aligned, self._tokenizer))
        places = from_first_word(aligned.reply_ids, self._tokenizer)
        for t in surprising:
            for at in range(t, max(-1, t - REACH), -1):
                for token in self._nearly_as_likely(at):
                    other = respelled(aligned, at, token, self._tokenizer)
                    whole = other.reply_ids != aligned.reply_ids  # not one that cuts a character
                    if whole and (places[at], token) not in self._turned_down:
                        self._rival = places[at], token
                        self._settled.add(places[at])  # or the likeliest would be tried again
                        return other
        return None

    def _nearly_as_likely(self, at: int) -> list[TokenId]:
        """Other tokens of the same text, the likeliest first."""
        assert self._rivals is not None
        ids, score = self.best.aligned.reply_ids, self.best.score
        named = zip(
            self._rivals[at], (score.candidate_logprobs or ((),) * len(ids))[at], strict=False
        )
        near = [
            (logprob, token) for token, logprob in named
            if token != ids[at] and logprob > score.logprobs[at] - NEARLY
        ]  # fmt: skip
        return [token for _, token in sorted(near, reverse=True)]

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
