"""Sampled replies with a known truth: drawn by a sampler from a model of a few contexts."""

from __future__ import annotations

from functools import cache

import numpy as np
from simulate import make_plan

from verifier.evidence.ledger import SampledRow
from verifier.evidence.samplers import (
    Sampler,
    changed,
    honest_samplers,
    name_of,
    probabilities,
    row_cells,
    sampler_columns,
)
from verifier.plan_file import Plan

COLUMNS = sampler_columns({})
HONEST = tuple(map(name_of, honest_samplers({})))

#: The simulated model: contexts that differ in doubt, each with a prompt and what was said before.
CONTEXTS, VOCABULARY, TOKENS = 36, 100, 20


@cache
def contexts() -> tuple[tuple[np.ndarray, tuple[int, ...], tuple[int, ...]], ...]:
    """Logits, a prompt, and what was said before."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(CONTEXTS):
        logits = rng.normal(0, rng.uniform(1, 4), VOCABULARY)
        likely = np.argsort(-logits)[:12]
        before = tuple(rng.choice(likely, 6).tolist())
        found.append((logits, tuple(rng.integers(0, VOCABULARY, 4).tolist()), before))
    return tuple(found)


@cache
def cells() -> np.ndarray:
    """Cells [contexts, V, H] of every token that may follow."""
    return np.array(
        [
            [
                row_cells(
                    np.broadcast_to(logits, (len(before) + 1, VOCABULARY)), prompt_ids=prompt,
                    reply_ids=(*before, token), kept=(len(before),),
                    samplers=tuple(COLUMNS.values()),
                )
                for token in range(VOCABULARY)
            ]
            for logits, prompt, before in contexts()
        ]
    )  # fmt: skip


@cache
def chances(at: int, sampler: Sampler) -> np.ndarray:
    """What an honest host with a sampler draws from in a context."""
    logits, prompt, before = contexts()[at]
    return probabilities(logits, prompt_ids=prompt, reply_ids=before, sampler=sampler)


def sample_rows(
    rng: np.random.Generator, sampler: Sampler, count: int, *, noise: float = 0.0
) -> list[SampledRow]:
    """Replies drawn from the published weights, with Gumbel noise on their logits, by a sampler."""
    rows = []
    for n in range(count):
        total = np.zeros(len(COLUMNS))
        for at in rng.integers(0, CONTEXTS, TOKENS).tolist():
            p = chances(at, sampler)
            if noise:
                logits, prompt, before = contexts()[at]
                served = logits + rng.gumbel(0, noise, VOCABULARY)
                p = probabilities(served, prompt_ids=prompt, reply_ids=before, sampler=sampler)
            total += cells()[at, rng.choice(VOCABULARY, p=p)]
        rows.append(sampled_row(f"s{n}", dict(zip(COLUMNS, total.tolist(), strict=True))))
    return rows


def sampled_row(name: str, row: dict[str, float], problem: str | None = None) -> SampledRow:
    """A sampled row with these cells."""
    return SampledRow(probe_id=name, tokens=TOKENS, left_out=0, cells=row, problem=problem)


def sampler_plan() -> Plan:
    """A plan that asks for samples."""
    return make_plan(
        samplers={n: changed(s) for n, s in COLUMNS.items()}, honest_samplers=HONEST,
        budget_sampled_tokens=1000,
    )  # fmt: skip
