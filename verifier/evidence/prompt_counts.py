"""What `usage.prompt_tokens` says of the rendering: a likelihood for each, and the accounting.

Knows numbers only: counts that a host reported, and how long each rendering would have been.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

#: Constants that honest hosts add to every count (BOS or the generation prompt counted or not;
#: Moonshot's verifier accepts up to 3), and how likely each is before anything is seen.
OFFSETS: Final = {0: 0.6, -1: 0.1, 1: 0.1, 2: 0.1, 3: 0.1}

#: Share of hosts whose counts have nothing to do with what they render.
UNRELATED: Final = 0.01

#: Share of hosts that count after one rendering of the catalogue and serve another, for instance a
#: gateway that counts the bare words. It bounds what counts alone can say.
BORROWED: Final = 0.01

#: Share of single counts that are off, whatever the host does.
GLITCH: Final = 0.01

#: An unrelated count is anything up to this, evenly.
LARGEST: Final = 4096

#: Tokens by which unknown words may be read otherwise where other words follow them.
EDGE: Final = 1

#: A hidden prompt of unknown words is longer or shorter than what stands for it by up to this.
FREE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """How the counts of a host relate to one rendering."""

    matched: int  # counts that equal the rendered length plus the offset
    of: int  # counts that could be compared
    offset: int  # the constant that most counts agree on; 0 without counts


@dataclass(frozen=True, slots=True, kw_only=True)
class CountFit:
    """How well one rendering explains the counts of a host, its best constant aside."""

    matched: int  # counts that are its length and the constant
    of: int  # counts that say anything; 0: none does
    constant: int
    example: tuple[int, int] | None  # a count that is not its own, and its length; None: none is

    @property
    def agrees(self) -> bool:
        """Whether every count is its own: what a rendering that differs in one place fails, and a
        host whose counts glitch once in a hundred fails in one panel of nine."""
        return self.matched == self.of

    def fails(self, error: float) -> bool:
        """Whether more counts are off than single glitches explain, at this error rate.

        Null: the host renders so, adds the one constant to every count, and each count is off by
        itself with probability GLITCH. Exact: a binomial tail at this look. Hosts that count after
        another rendering than they serve (BORROWED), or at random (UNRELATED), are lost to it on
        purpose: a name that the counts deny is not said.
        """
        off = self.of - self.matched
        return off > 0 and _tail(off, self.of) <= error


def fit_counts(
    reported: Sequence[int | None], lengths: Sequence[int | None], *, free: bool = False
) -> CountFit:
    """The counts of a host against the lengths of one rendering.

    The constant is one that honest hosts add; where `free`, as for words that only stand for
    unknown ones, any up to FREE, and a token of the words' last may be read with what follows it
    (EDGE). A prompt that the template refuses has no length, and a count of it is not its own.
    Counts that say nothing are to be left out by `speaking_counts`.
    """
    told = [(c, n) for c, n in zip(reported, lengths, strict=True) if c is not None]
    gaps = Counter(count - length for count, length in told if length is not None)
    allowed = [gap for gap in gaps if (abs(gap) <= FREE if free else gap in OFFSETS)]
    edge = EDGE if free else 0

    def near(constant: int) -> int:
        return sum(n for gap, n in gaps.items() if abs(gap - constant) <= edge)

    constant = min(allowed, key=lambda gap: (-near(gap), abs(gap)), default=0)
    others = ((c, n) for c, n in told if n is not None and abs(c - n - constant) > edge)
    matched = near(constant) if allowed else 0
    return CountFit(matched=matched, of=len(told), constant=constant, example=next(others, None))


def speaking_counts(
    reported: Sequence[int | None], rendered: Mapping[str, Sequence[int | None]]
) -> list[int | None]:
    """The counts of a host, none where they say nothing: one number however long prompts are."""
    told = [n for n, count in enumerate(reported) if count is not None]
    if _constant([reported[n] for n in told], rendered, told):
        return [None] * len(reported)
    return list(reported)


def _tail(off: int, of: int) -> float:
    """The probability that so many counts or more are off, each with probability GLITCH."""
    return 1 - sum(math.comb(of, n) * GLITCH**n * (1 - GLITCH) ** (of - n) for n in range(off))


def count_log_likelihoods(
    reported: Sequence[int | None],
    rendered: Mapping[str, Sequence[int | None]],
    *,
    unknown: frozenset[str] = frozenset(),
) -> dict[str, float]:
    """log p(reported counts | each rendering is served), less that of unrelated counts (nats).

    A host counts what it serves and adds one constant to every count; with probability BORROWED it
    counts after another rendering of the catalogue, evenly, and with UNRELATED its counts are
    arbitrary. A single count is off with probability GLITCH. Under each rendering this is one
    distribution of all counts, so ratios are likelihood ratios. `unknown` are renderings that
    stand for others of any length: their constant may be anything up to FREE.

    Counts that are missing, or all alike although no rendering's lengths are, say nothing:
    then every value is 0.
    """
    told = [n for n, count in enumerate(reported) if count is not None]
    if not told or _constant([reported[n] for n in told], rendered, told):
        return dict.fromkeys(rendered, 0.0)
    fits = {
        name: _log_fit(reported, lengths, told, free=name in unknown)
        for name, lengths in rendered.items()
    }
    borrowed = _log_sum([fit - math.log(len(fits)) for fit in fits.values()])
    rest = _log_sum([math.log(BORROWED) + borrowed, math.log(UNRELATED)])
    served = math.log(1 - BORROWED - UNRELATED)
    return {name: _log_sum([served + fit, rest]) for name, fit in fits.items()}


def read_accounting(reported: Sequence[int | None], lengths: Sequence[int | None]) -> Accounting:
    """How counts relate to the lengths of one rendering: the offset most agree on."""
    gaps = Counter(
        count - length
        for count, length in zip(reported, lengths, strict=True)
        if count is not None and length is not None
    )
    if not gaps:
        return Accounting(matched=0, of=0, offset=0)
    offset, matched = min(gaps.items(), key=lambda item: (-item[1], abs(item[0])))
    return Accounting(matched=matched, of=gaps.total(), offset=offset)


def _constant(
    counts: Sequence[int | None],
    rendered: Mapping[str, Sequence[int | None]],
    told: Sequence[int],
) -> bool:
    """Whether a host says one number for prompts that are of different lengths however rendered."""
    if len(counts) < 2 or len(set(counts)) > 1:
        return False
    return all(len({lengths[n] for n in told}) > 1 for lengths in rendered.values())


def _log_fit(
    reported: Sequence[int | None],
    lengths: Sequence[int | None],
    told: Sequence[int],
    *,
    free: bool,
) -> float:
    """log of the likelihood of counts made from these lengths, relative to unrelated counts."""
    gaps = Counter(
        count - length
        for n in told
        if (count := reported[n]) is not None and (length := lengths[n]) is not None
    )
    refused = len(told) - gaps.total()  # the template has no such prompt: then unrelated
    hit = math.log((1 - GLITCH) * LARGEST + GLITCH)
    miss = math.log(GLITCH)
    priors: Mapping[int, float] = OFFSETS
    if free:
        priors = {gap: 1 / (2 * FREE + 1) for gap in gaps if abs(gap) <= FREE}
    terms = [
        math.log(prior) + gaps[offset] * hit + (gaps.total() - gaps[offset] + refused) * miss
        for offset, prior in priors.items()
    ]
    return _log_sum(terms) if terms else len(told) * miss


def _log_sum(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs))
