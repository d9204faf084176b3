"""The evidence of sampled replies: whether they were drawn as asked, and from what if not.

Null: the replies were drawn from the published weights by one of the honest samplers of the plan:
temperature 1 within a small tolerance, or with the publisher's defaults for what was not asked. The
evidence against it is a mixture of every other sampler, with weights fixed in advance, against the
best honest one (`stats.log_e_value` explains why that is an e-value at every stopping time).
Assumptions: replies are independent, and the weights are the published ones up to the honest logit
noise. The second is not taken for granted: noise flattens distributions, so a sampler is named
only where the greedy replies exclude other weights, and only where no temperature explains the
samples that the noise still possible would bring about.

Pure arithmetic; knows nothing of models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from verifier.evidence.arrays import Array
from verifier.evidence.e_values import Interval, confidence_sequence, log_mean_exp
from verifier.evidence.ledger import SampledRow
from verifier.evidence.samplers import LABELS, SEVERAL, TOLERANCE, Sampler, changed, kind_of

#: Share of the samplers in the evidence of an audit that asks for them.
SAMPLER_SHARE: Final = 0.25

#: The finding's name while no one kind of sampler stands out.
UNNAMED: Final = "sampling other than asked"

#: What must be excluded before it is said that samples are drawn as asked: from here on outwards.
#: Milder settings stay open: they take more tokens than an audit has.
MARKS: Final[Mapping[str, tuple[float, float]]] = {  # label: up to the first, or from the second
    "temperature": (0.9, 1.1),
    "top_k": (40, math.inf),
    "top_p": (0.95, math.inf),
    "min_p": (-1, 0.05),
    "repetition_penalty": (-1, 1.1),
    "presence_penalty": (-3, 0.5),
    "frequency_penalty": (-3, 0.5),
}

#: Prior weights of kinds that are not 1: several settings at once, and what no API offers.
KIND_WEIGHTS: Final[Mapping[str, float]] = {
    SEVERAL: 0.2, LABELS["drop_best"]: 0.2, LABELS["rare"]: 0.2
}  # fmt: skip

#: A kind of sampler is named when its posterior probability reaches this.
NAMED_AT: Final = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerEvidence:
    """What the sampled rows say, before any threshold."""

    rows: int  # scored
    tokens: int  # of them
    set_aside: Mapping[str, int]  # why replies were not scored, and how many
    log_e: float  # any other sampler against the best honest one
    log_e_named: float  # the same, with the temperatures that noise mimics among the honest
    log_e_honest: float  # the honest ones against the marked sampler that is hardest to exclude
    hardest: str  # that sampler; "" without rows
    temperature: Interval | None
    one_kind: bool  # whether one kind of sampler stands out
    names: tuple[str, ...]  # the likeliest that are not honest, of one kind where one stands out


def weigh_samplers(
    rows: Sequence[SampledRow],
    samplers: Mapping[str, Sampler],
    honest: Sequence[str],
    *,
    noise: float | None,
    level: float,
) -> SamplerEvidence:
    """The evidence of sampled rows.

    `noise` is the largest scale of logit noise that the greedy replies leave open; None: any.
    """
    scored = [row for row in rows if row.cells]
    aside = Counter(row.problem or "" for row in rows if not row.cells)
    if not scored:
        return SamplerEvidence(
            rows=0, tokens=0, set_aside=dict(aside), log_e=0.0, log_e_named=0.0, log_e_honest=0.0,
            hardest="", temperature=None, one_kind=False, names=(),
        )  # fmt: skip
    names = list(samplers)
    totals = np.array([[row.cells[name] for name in names] for row in scored]).sum(axis=0)
    allowed = np.array([name in honest for name in names])
    mimicked = allowed | np.array([_mimics(samplers[name], noise) for name in names])
    marked = [n for n, name in enumerate(names) if not allowed[n] and is_marked(samplers[name])]
    hardest = max(marked, key=lambda n: totals[n])
    likeliest = _likeliest(totals, samplers, mimicked)
    return SamplerEvidence(
        rows=len(scored),
        tokens=sum(row.tokens for row in scored),
        set_aside=dict(aside),
        log_e=_against(totals, samplers, allowed),
        log_e_named=_against(totals, samplers, mimicked),
        log_e_honest=log_mean_exp(totals[allowed]) - float(totals[hardest]),
        hardest=names[hardest],
        temperature=_temperature(scored, samplers, level),
        one_kind=len({kind_of(samplers[name]) for name in likeliest}) == 1,
        names=likeliest,
    )


@lru_cache(maxsize=1024)
def is_marked(sampler: Sampler) -> bool:
    """Whether a sampler is as far from what was asked as MARKS say, in any of its settings."""
    return any(
        value <= MARKS[name][0] or value >= MARKS[name][1]
        for name, value in changed(sampler).items()
        if name in MARKS
    )


def _mimics(sampler: Sampler, noise: float | None) -> bool:
    """Whether logit noise up to a scale would look like this sampler: a temperature above 1.

    Gumbel noise of scale s on the logits before one draws is close to temperature sqrt(1 + s^2).
    """
    if set(changed(sampler)) - {"temperature"} or sampler.temperature < 1:
        return False
    most = math.inf if noise is None else (1 + TOLERANCE) * math.sqrt(1 + noise**2)
    return sampler.temperature <= most


def _log_weights(samplers: Mapping[str, Sampler], others: NDArray[np.bool_]) -> Array:
    """Log prior weights of `others`: kinds as KIND_WEIGHTS say, their members evenly."""
    kinds = [kind_of(sampler) for sampler in samplers.values()]
    members = Counter(kind for kind, other in zip(kinds, others, strict=True) if other)
    weights = {kind: KIND_WEIGHTS.get(kind, 1.0) for kind in members}
    total = sum(weights.values())
    return np.array(
        [
            math.log(weights[kind] / total / members[kind]) if other else -np.inf
            for kind, other in zip(kinds, others, strict=True)
        ]
    )


def _against(totals: Array, samplers: Mapping[str, Sampler], null: NDArray[np.bool_]) -> float:
    weights = _log_weights(samplers, ~null)
    return float(np.logaddexp.reduce(totals + weights) - totals[null].max())


def _likeliest(
    totals: Array, samplers: Mapping[str, Sampler], null: NDArray[np.bool_]
) -> tuple[str, ...]:
    """The names that hold the posterior: those of one kind if it stands out, likeliest first."""
    posterior = totals + _log_weights(samplers, ~null)
    posterior = np.exp(posterior - np.logaddexp.reduce(posterior))
    names, kinds = list(samplers), [kind_of(sampler) for sampler in samplers.values()]
    by_kind: Counter[str] = Counter()
    for kind, share in zip(kinds, posterior, strict=True):
        by_kind[kind] += share
    best, share = by_kind.most_common(1)[0]
    chosen = {best} if share >= NAMED_AT else set(kinds)
    ranked = sorted(range(len(names)), key=lambda n: (-posterior[n], n))
    held, found = 0.0, []
    for n in ranked:
        if kinds[n] in chosen:
            found.append(names[n])
            held += posterior[n]
            if held >= NAMED_AT * (share if len(chosen) == 1 else 1.0):
                break
    return tuple(found)


def _temperature(
    scored: Sequence[SampledRow], samplers: Mapping[str, Sampler], level: float
) -> Interval | None:
    """A confidence sequence for the temperature, of what is a temperature and nothing else."""
    plain = {
        sampler.temperature: name
        for name, sampler in samplers.items()
        if not set(changed(sampler)) - {"temperature"}
    }
    grid = sorted(plain)
    rows = np.array([[row.cells[plain[value]] for value in grid] for row in scored])
    return confidence_sequence(rows, np.array(grid), level=level)


def describe_sampler(evidence: SamplerEvidence, samplers: Mapping[str, Sampler]) -> str:
    """The sampler that the samples speak for, e.g. temperature about 0.9 (0.86 to 0.94)."""
    first = samplers[evidence.names[0]]
    settings = changed(first)
    if not evidence.one_kind:
        return UNNAMED
    if len(settings) != 1:
        return evidence.names[0]
    ((name, value),) = settings.items()
    if name == "temperature" and evidence.temperature is not None:
        interval = evidence.temperature
        upper = "more" if interval.upper is None else f"{interval.upper:g}"
        return f"temperature about {interval.estimate:g} ({interval.lower:g} to {upper})"
    values = sorted(getattr(samplers[other], name) for other in evidence.names)
    among = f" ({values[0]:g} to {values[-1]:g})" if len(values) > 1 else ""
    return f"{LABELS[name]} about {value:g}{among}"
