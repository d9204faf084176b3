"""Which of the publisher's defaults a host decodes greedily under, as its replies tell.

A request for temperature 0 says nothing of penalties, and servers take these from the publisher's
generation_config. So the honest null of greedy text is a list of columns: the published weights as
they are, and under each such default. One host uses one of them throughout; the likeliest on all
ordinary replies is put in the place of the published column, and everything else is judged by it.

The choice is made after the fact: an e-value by the chosen of K columns is at most the sum of K
e-values, each against its own column at best, so ln K taken off the evidence of an accusation pays
for it. What is excluded is excluded of the column that was chosen. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from verifier.evidence.calibration import Channel
from verifier.evidence.e_values import log_mean_exp
from verifier.evidence.ledger import DEFAULT, SAMPLER, Ledger, Row
from verifier.evidence.noise import read_text
from verifier.records import REFERENCE

#: Why log-probabilities are not used of a host that decodes under a penalty.
BEFORE_OR_AFTER: Final = (
    "the endpoint applies a default penalty of the publisher's, and what it reports may be from "
    "before or after that"
)


def cost_of_choice(defaults: Sequence[str]) -> float:
    """Nats that choosing among the published column and these costs; 0 without any."""
    return math.log(1 + len(defaults))


def judge_by_default(
    ledger: Ledger, defaults: Sequence[str], channel: Channel
) -> tuple[Ledger, str]:
    """The ledger with the likeliest column in the place of the published one, and whose it is; "":
    the published weights' as they are."""
    columns = [DEFAULT + name for name in defaults]
    rows = tuple(row for row in ledger.ordinary.rows if all(c in row.text for c in columns))
    if not columns or not rows:
        return ledger, ""
    both = Ledger(rows=rows)
    scores = {
        column: log_mean_exp(read_text(both, column, channel).sum(axis=0))
        for column in (REFERENCE, *columns)
    }
    best = max(scores, key=lambda column: scores[column])
    if best == REFERENCE:
        return ledger, ""
    judged = tuple(_put(row, best) if best in row.text else row for row in ledger.rows)
    return replace(ledger, rows=judged), best.removeprefix(DEFAULT)


def _put(row: Row, column: str) -> Row:
    """A row of a host that decodes under `column`, which then is no fault by any other name; what
    the host says of its tokens is set aside."""
    same = SAMPLER + column.removeprefix(DEFAULT)
    text = {name: cells for name, cells in row.text.items() if name != same}
    return replace(
        row, text=text | {REFERENCE: row.text[column]}, logprob=None,
        logprob_problem=BEFORE_OR_AFTER, outranked=None,
        choices={REFERENCE: row.choices[column]} if column in row.choices else {},
    )  # fmt: skip
