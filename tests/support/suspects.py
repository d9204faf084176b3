"""Replies of a host that serves another model, of which a suspect is more or less."""

from __future__ import annotations

import numpy as np
from simulate import VOCABULARY
from simulate import _score as score_of

from verifier.evidence.ledger import Row, text_cells
from verifier.records import REFERENCE


def suspected_row(
    rng: np.random.Generator, name: str, *, noise: float, near: float, tokens: int = 30
) -> Row:
    """A reply of a host that serves another model; the suspect is the host but for noise `near`.

    The published model's logits are independent of the host's but for what both share.
    """
    shared = rng.normal(0, 1.5, (tokens, VOCABULARY))
    published = shared + rng.normal(0, noise, shared.shape)
    served = shared + rng.normal(0, noise, shared.shape)
    suspected = served + rng.gumbel(0, near, served.shape) if near else served
    chosen = served.argmax(axis=1)
    return Row(
        probe_id=name, tokens=tokens, left_out=0, logprob=None, logprob_problem=None,
        text={
            REFERENCE: text_cells(score_of(published, chosen), range(tokens)),
            "sibling": text_cells(score_of(suspected, chosen), range(tokens)),
        },
    )  # fmt: skip


def suspected_rows(seed: int, count: int = 4, **settings: float) -> list[Row]:
    """So many of them."""
    rng = np.random.default_rng(seed)
    return [suspected_row(rng, f"p{n}", **settings) for n in range(count)]  # type: ignore[arg-type]
