"""Replies to a question that was asked before: whether samples come from a store.

Null: each reply at temperature 1 is drawn anew from the published distribution, so that it is the
very text of an earlier reply to the same words with at most the published probability of that
text, summed over the different earlier texts. Each repeat is a bet on that: with stake s it pays
1 - s + s / p where the text came again and 1 - s where it did not, which has mean at most 1 given
everything before; so has the even mixture over stakes of their products, at every stopping time
(Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting"). The
stake shrinks where the text was likely anyway. Assumptions: replies are independent, and honest
arithmetic and other spellings of one text make it likelier by at most SLACK. Under other weights
or another sampler texts may come again for other reasons, so those are judged first. Pure
arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from verifier.evidence.e_values import log_mean_exp
from verifier.evidence.ledger import Repeat

#: Share of the repeats in the evidence of an audit that asks for samples.
REPEATS_SHARE: Final = 0.02

#: A text may be likelier at an honest host than here by so many nats: 48 tokens of 16-bit
#: arithmetic come to 0.4 (one standard deviation), several spellings of one text to 1 at most.
SLACK: Final = 3.0

#: No token counts for less: a text may have come by likelier tokens than those it is read as.
LEAST_TOKEN: Final = -2.0

#: What stands between the id of a probe and how it is asked again.
AGAIN: Final = "~"
SAME: Final = "same"
OTHERWISE: Final = "otherwise"

#: Of the sampled probes so many apart each is asked again, the first of them at once.
EVERY: Final = 8

_STAKES: Final = (0.1, 0.5, 0.9)


def is_repeat(probe_id: str) -> bool:
    """Whether a probe asks again what another asked."""
    return AGAIN in probe_id


def asked_before(probe_id: str) -> str:
    """What all probes that ask one thing share."""
    return probe_id.partition(AGAIN)[0]


def weigh_repeats(repeats: Sequence[Repeat]) -> float:
    """Log e-value against replies that are drawn anew."""
    totals = np.zeros(len(_STAKES))
    for repeat in repeats:
        chance = math.exp(min(0.0, repeat.log_p + SLACK))
        for n, stake in enumerate(_STAKES):
            at_stake = stake * (1 - chance)
            won = at_stake / max(chance, 1e-300) if repeat.came_again else 0.0
            totals[n] += math.log1p(won - at_stake)
    return log_mean_exp(totals)
