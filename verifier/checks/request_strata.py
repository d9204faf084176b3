"""Ways of asking that a host may look at: whether the replies to one of them alone differ.

A host that serves the published weights only to short requests, to those that ask for
log-probabilities, to streams, or to the first ones, is asked in all these ways at random. Null of
the evidence: every reply comes from the published weights at honest noise; each stratum's replies
alone are held against it, and the strata mixed evenly. To *name* a stratum two more things are
asked for. An e-value against "one noise scale for all replies" (universal inference: Wasserman,
Ramdas and Balakrishnan 2020): honest in the rest and more in the stratum, both mixed. And a
permutation test, since strata are drawn at random: under any host that does not look at how it is
asked, a part of whose replies may come from anywhere, labels can be exchanged (Phipson and Smyth
2010). Assumption: replies are independent. Pure arithmetic.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from verifier.evidence.e_values import log_e_value, log_mean_exp
from verifier.probes import SHORT_TOKENS, STRATA
from verifier.records import Probe

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Share of the strata in the evidence of an audit that varies how it asks.
STRATA_SHARE: Final = 0.1

#: Share of the probes that ask for a short reply: they tell less.
SHORT_SHARE: Final = 0.25

#: A stratum is named when a random labelling does as well at most so often.
NAMED_AT: Final = 0.01
_LABELLINGS: Final = 499


@dataclass(frozen=True, slots=True, kw_only=True)
class StrataEvidence:
    """What the strata say, before any threshold."""

    log_e: float  # of more noise than honest in any one of them
    log_e_apart: float  # of it in one of them and honest noise in the rest, against one for all
    p_value: float  # how often a random labelling parts them as well
    best: str  # the stratum whose replies differ; "" where none can be
    replies: int  # of that stratum


def vary(probes: Sequence[Probe], *, seed: int, logprobs: bool) -> tuple[Probe, ...]:
    """Probes asked in ways drawn by the run's secret seed."""
    rng = random.Random(f"{seed}:strata")  # noqa: S311 - a seed is the secret
    found = []
    for probe in probes:
        silent, streamed, short = (rng.random() < p for p in (0.5, 0.5, SHORT_SHARE))
        found.append(
            replace(
                probe, logprobs=not (logprobs and silent), stream=streamed,
                max_tokens=min(SHORT_TOKENS, probe.max_tokens) if short else probe.max_tokens,
            )
        )  # fmt: skip
    return tuple(found)


def is_of(labels: Sequence[str], stratum: str) -> bool:
    """Whether a reply with these labels belongs to a stratum, or to what another leaves."""
    return any(
        stratum == (label if label in labels else others) for label, others in STRATA.items()
    )


def weigh_strata(
    rows: Array, labels: Sequence[Sequence[str]], honest: Mask, *, seed: int
) -> StrataEvidence:
    """The evidence of rows [n, S], read as calibrated, with the labels of each.

    `honest` [S] are the scales of honest serving.
    """
    marked = np.array([[label in each for label in STRATA] for each in labels], dtype=bool)
    marked = marked.reshape(len(labels), len(STRATA))
    both = np.concatenate([marked, ~marked], axis=1)  # [n, 2 L]
    names = [*STRATA, *STRATA.values()]
    alone = [
        log_e_value(totals[~honest], totals[honest])
        for totals in both.T.astype(float) @ rows.reshape(len(labels), len(honest))
    ]
    apart = _apart(rows, both, honest)
    if not len(rows) or not np.isfinite(apart).any():
        return StrataEvidence(
            log_e=log_mean_exp(np.array(alone)), log_e_apart=0.0, p_value=1.0, best="", replies=0
        )
    best = int(apart.argmax())
    rng = np.random.default_rng(seed)
    as_good = 1 + sum(
        float(_apart(rows, both[rng.permutation(len(both))], honest).max()) >= apart[best]
        for _ in range(_LABELLINGS)
    )
    return StrataEvidence(
        log_e=log_mean_exp(np.array(alone)),
        log_e_apart=float(np.logaddexp.reduce(apart) - np.log(len(apart))),
        p_value=as_good / (_LABELLINGS + 1),
        best=names[best],
        replies=int(both[:, best].sum()),
    )


def _apart(rows: Array, members: Mask, honest: Mask) -> Array:
    """Log e-values [L]: noise in a stratum and none in the rest, against one scale for all.

    -inf for a stratum of no replies, or of all.
    """
    chosen = members.T.astype(float) @ rows  # [L, S]
    whole = rows.sum(axis=0)
    values = (
        np.logaddexp.reduce(chosen[:, ~honest], axis=1) - np.log((~honest).sum())
        + np.logaddexp.reduce((whole - chosen)[:, honest], axis=1) - np.log(honest.sum())
        - whole.max()
    )  # fmt: skip
    sizes = members.sum(axis=0)
    return np.where((sizes > 0) & (sizes < len(rows)), values, -np.inf)
