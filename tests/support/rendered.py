"""Replies of simulated hosts that render in one way of a few, as rows of a ledger."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from verifier.evidence.calibration import Channel
from verifier.evidence.ledger import TEMPLATE, Ledger, Row, text_cells
from verifier.records import REFERENCE, ReplyScore

CHANNEL: Final = Channel(honest_scale=0.1, spread=0.0, learning_rate=1.0)

#: Faults of these hosts, and how long a short prompt is under each.
NAMES = ("bos-doubled", "system-ignored", "no-template", "space-added", "history-cut-front")
LENGTHS = {REFERENCE: 40, "bos-doubled": 41, "system-ignored": 28, "no-template": 19,
           "space-added": 43, "history-cut-front": 25}  # fmt: skip


def make_row(
    rng: np.random.Generator,
    number: int,
    *,
    served: str,
    scale: float,
    apart: float = 1.0,
    strays: float = 0.0,
    tokens: int = 12,
    counts: bool = False,
    columns: tuple[str, ...] = NAMES,
) -> Row:
    """A greedy reply of a host that renders as `served`, with Gumbel noise of `scale`.

    The logits after another rendering differ from the published ones by `apart`. A host that
    `strays` so far renders in a way that nobody knows, and `served` is the nearest.
    """
    base = rng.normal(0, 2, (tokens, 40))
    logits = {name: base + apart * rng.normal(0, 1, base.shape) for name in NAMES}
    logits[REFERENCE] = base
    own = logits[served]
    if strays:
        own = own + strays * rng.normal(0, 1, base.shape)
    chosen = (own + rng.gumbel(0, scale, base.shape)).argmax(axis=1)
    extra = number % 4  # prompts are of different lengths, and faults touch them differently
    lengths = {name: n + extra * (n % 7) for name, n in LENGTHS.items()}
    cells = {
        REFERENCE if name == REFERENCE else TEMPLATE + name: text_cells(
            score_of(logits[name], chosen), range(tokens)
        )
        for name in (REFERENCE, *columns)
    }
    return Row(
        probe_id=f"t{number:02}", tokens=tokens, left_out=0, text=cells, logprob=None,
        logprob_problem="none", prompt_tokens=lengths[served] if counts else None,
        rendered=lengths, panel=True,
    )  # fmt: skip


def score_of(logits: Any, chosen: Any) -> ReplyScore:
    """What an engine with these logits says of these tokens."""
    logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    top = -np.sort(-logp, axis=1)[:, :20]
    picked = np.take_along_axis(logp, chosen[:, None], axis=1)[:, 0]
    return ReplyScore(
        logprobs=tuple(picked.tolist()), ranks=(1,) * len(chosen), entropies=(0.0,) * len(chosen),
        top_ids=tuple(logits.argmax(axis=1).tolist()), top_logprobs=tuple(map(tuple, top.tolist())),
        candidate_logprobs=None,
    )  # fmt: skip


def make_ledger(seed: int, *, rows: int = 8, **host: Any) -> Ledger:
    """So many replies of such a host."""
    rng = np.random.default_rng(seed)
    return Ledger(rows=tuple(make_row(rng, n, **host) for n in range(rows)))
