"""Text completions: what the weights say where no template of the host's stands in front of them.

Asked where chats differ and neither a build nor a rendering explains it: ordinary prompts, rendered
here as published, are sent to be completed as text. An endpoint that answers those as the published
weights do, and chats otherwise, has its fault in how chats are rendered or routed.

Null of `fits`, for each class of noise that the policy names: the completions come from weights
with at least that noise; it is rejected at the policy's beta. Null of `differs`: they come from the
published weights served honestly; rejected at its alpha. Both by the e-values of `e_values`, valid
at any stopping time. Assumes what the audit of a chat does. A prompt that was silently made into a
chat looks like noise, so `differs` also needs counts of prompt tokens that show the prompts arrived
as they were sent; `fits` does not, since no such noise hides. Neither decides a verdict.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from verifier.checks.template.naming import may_be_honest
from verifier.evidence.arrays import Array
from verifier.evidence.e_values import log_e_against_scales, log_e_value
from verifier.evidence.ledger import TEXT_SCALES, Ledger, read_ledger
from verifier.evidence.noise import ABOVE, honest_scales, read_rows
from verifier.evidence.prompt_counts import OFFSETS
from verifier.files.run_folder import COMPLETIONS, LEDGER
from verifier.host.budget import believed_completion, believed_prompt
from verifier.host.collect import read_attempts, read_outcomes
from verifier.host.exchange import Problem, asked_tokens, most_prompt, parse
from verifier.plan_file import Plan
from verifier.records import REFERENCE, NotJudged, Probe, Reply
from verifier.scoring.score_file import refuse_others
from verifier.wording import describe_replies

#: Completions asked for, in so many at a time, and tokens of each.
ROUNDS: Final = (4, 8, 12, 16, 20, 24)
TOKENS: Final = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Bypass:
    """What completions say, before any finding."""

    text: Array  # [n, S], read as calibrated
    fits: bool  # every class of noise of the policy is excluded
    differs: bool  # honest serving is, of prompts that arrived as they were sent
    turned: int  # answers to prompts that arrived as something longer, made into a chat
    problem: str | None  # why there is no answer to judge
    requests: int
    prompt_tokens: int  # as far as the host counted
    completion_tokens: int

    @property
    def settled(self) -> bool:
        """Whether more of them would tell nothing new."""
        return self.fits or self.differs or self.turned > 0 or self.problem is not None


def to_complete(probes: Sequence[Probe], *, max_tokens: int) -> tuple[Probe, ...]:
    """The first ordinary probes, to be asked as completions; template settings stay."""
    tokens = min(TOKENS, max_tokens)
    return tuple(replace(probe, max_tokens=tokens) for probe in probes[: ROUNDS[-1]])


def read_bypass(run: Path, plan: Plan) -> Bypass | None:
    """What the completions of a run folder say; None when none were asked for."""
    folder = run / COMPLETIONS
    if not (folder / LEDGER).exists():
        return None
    ledger = read_ledger(folder)
    outcomes = read_outcomes(folder, max_attempts=plan.max_attempts)
    carried = ((row.probe_id, row.reply_sha256) for row in ledger.rows)
    refuse_others(carried, outcomes, where=folder / LEDGER)
    attempts = read_attempts(folder)
    results = [parse(attempt) for attempt in attempts]
    found = judge_completions(plan, ledger, results)
    counted = [
        (
            believed_prompt(result.prompt_tokens or 0, most_prompt(attempt)),
            believed_completion(result.completion_tokens or 0, asked_tokens(attempt)),
        )
        for attempt, result in zip(attempts, results, strict=True)
        if not isinstance(result, Problem)
    ]
    return replace(
        found, prompt_tokens=sum(prompt for prompt, _ in counted),
        completion_tokens=sum(completion for _, completion in counted),
    )  # fmt: skip


def judge_completions(
    plan: Plan, ledger: Ledger, results: Sequence[Reply | NotJudged | Problem]
) -> Bypass:
    """What scored completions say, and what came of each request.

    Replies whose prompts became chats are set aside.
    """
    arrived = {row.probe_id: _arrived(row.prompt_tokens, row.rendered) for row in ledger.rows}
    turned = sum(one is False for one in arrived.values())
    kept = Ledger(rows=tuple(r for r in ledger.rows if arrived[r.probe_id] is not False))
    channel = plan.calibration.text
    text = read_rows(kept.text(), TEXT_SCALES, channel)
    honest = honest_scales(TEXT_SCALES, channel)
    totals = text.sum(axis=0)
    towards = log_e_value(totals[~honest], totals[honest]) if len(text) else 0.0
    counted = all(arrived[row.probe_id] for row in kept.rows)
    answers = [result for result in results if not isinstance(result, Problem)]
    reasons = Counter(result.reason for result in results if not isinstance(result, Reply))
    return Bypass(
        text=text,
        fits=len(text) > 0 and not turned and _excludes_all(plan, text),
        differs=counted and not turned and towards >= math.log(1 / plan.alpha),
        turned=turned,
        problem=reasons.most_common(1)[0][0] if reasons and not ledger.rows else None,
        requests=len(results),
        prompt_tokens=sum(answer.prompt_tokens or 0 for answer in answers),
        completion_tokens=sum(answer.completion_tokens or 0 for answer in answers),
    )


def describe(bypass: Bypass) -> str:
    """What completions showed, for the notes of a report."""
    told = (
        f"{describe_replies(len(bypass.text))} completed as text, without the endpoint's template"
    )
    if bypass.turned:
        return (
            f"text completions were not judged: {bypass.turned} of {bypass.requests} prompts "
            "arrived longer or shorter than they were sent, as if they had been made into chats"
        )
    if bypass.problem is not None:
        return f"text completions were not judged: {bypass.problem}"
    if bypass.fits:
        return f"{told}, fit the published weights: the fault is in how chats are served"
    if bypass.differs:
        return f"{told}, differ from the published weights too: the template is not the only cause"
    return f"{told}, speak neither for nor against the weights yet"


def _arrived(counted: int | None, rendered: Mapping[str, int]) -> bool | None:
    """Whether a prompt arrived as it was sent, by its count; None: nobody counted."""
    known = rendered.get(REFERENCE)
    return None if counted is None or known is None else counted - known in OFFSETS


def _excludes_all(plan: Plan, text: Array) -> bool:
    """Whether every class of noise that the policy names, and text can show, is excluded."""
    known = {found.name: found for found in plan.calibration.classes}
    named = [known[name] for name in plan.policy.noise]
    scales = [
        found.to_exclude for found in named if not may_be_honest(found.scale, plan.calibration)
    ]
    return bool(scales) and all(
        log_e_against_scales(text, np.asarray(scale <= TEXT_SCALES * ABOVE))
        >= math.log(1 / plan.beta)
        for scale in scales
    )
