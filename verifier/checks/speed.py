"""Speed and billing, as an audit sees them: how fast the endpoint answers, and what it counts.

Quantiles of what was recorded, no statistics, and no load test: a handful of requests, few at once.
What is billed is held against the tokens that the published tokenizer makes of what is shown, so a
host that hides thoughts bills more than it shows. It decides no verdict, and asks nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from verifier.checks.check import Account, Aspect, Case, Check, Remark, Session, make_finding
from verifier.files.run_folder import append_line
from verifier.files.stored import read_rows
from verifier.host.dialects import member
from verifier.host.exchange import Problem, body_of, parse
from verifier.plan_file import Plan, read_probes
from verifier.records import (
    REFERENCE,
    Attempt,
    Count,
    Decision,
    Finding,
    NotJudged,
    Outcome,
    Reply,
)

BILLING: Final = Aspect(
    name="billing", label="tokens billed", place=210, role="remark", without_reference=True
)

#: What the published tokenizer makes of each reply: one line each, append-only.
SHOWN_TOKENS: Final = "shown_tokens.jsonl"

#: Tokens of a reply that are not shown although nothing is hidden: its end, and marks of a thought.
UNSHOWN: Final = 4

#: More than this share beyond what is shown is remarked.
BEYOND: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTokens:
    """Tokens of one reply as it is shown, by the published tokenizer."""

    probe_id: str
    thought: Count
    answer: Count


def _is_wished(plan: Plan) -> bool:
    return member(plan.configuration.get("audit"), "speed") is True


def read(run: Path, plan: Plan, _outcomes: Mapping[str, Outcome]) -> tuple[ShownTokens, ...]:
    """Tokens of the replies. Raises ConfigError for a bad line."""
    if not _is_wished(plan):
        return ()
    advice = "remove the file and run `verifier score` again"
    return tuple(read_rows(run / SHOWN_TOKENS, ShownTokens, advice=advice))


def score(session: Session) -> None:
    """Count the tokens of ordinary replies that are new."""
    if not _is_wished(session.plan):
        return
    known = {row.probe_id for row in read(session.run, session.plan, {})}
    outcomes, encode = session.outcomes(), session.reference.tokenizer.encode
    for probe in read_probes(session.run):
        reply = outcomes.get(probe.id)
        if isinstance(reply, Reply) and probe.id not in known:
            row = ShownTokens(
                probe_id=probe.id, thought=len(encode(reply.thought or "")),
                answer=len(encode(reply.text)),
            )  # fmt: skip
            append_line(session.run / SHOWN_TOKENS, asdict(row))


def name_it(
    case: Case, _evidence: None, _account: Account, _found: Sequence[Finding], _decision: Decision
) -> list[Finding]:
    """That more completion tokens are billed than are shown."""
    billed, shown, replies = _billed(case)
    if not replies or billed <= (1 + BEYOND) * shown + UNSHOWN * replies:
        return []
    detail = (
        f"{billed:,} completion tokens are counted for {replies} replies, of which {shown:,} are "
        "shown, by the published tokenizer: thoughts that are hidden, or a wrong count"
    )
    return [make_finding(BILLING, "detected", "more tokens billed than shown", None, detail)]


def _billed(case: Case) -> tuple[int, int, int]:
    """Completion tokens as counted and as shown, of the replies that were counted."""
    kept: tuple[ShownTokens, ...] = case.kept[CHECK.name]
    billed = shown = replies = 0
    for row in kept:
        outcome = case.outcomes.get(row.probe_id)
        if isinstance(outcome, Reply) and outcome.completion_tokens is not None:
            billed += outcome.completion_tokens
            shown += row.thought + row.answer
            replies += 1
    return billed, shown, replies


def remarks(
    case: Case, _evidence: None, _account: Account, _found: Sequence[Finding]
) -> list[Remark]:
    """How fast it was, what went wrong, and what was billed."""
    if not _is_wished(case.plan) or not case.attempts:
        return []
    told = [*_on_speed(case), *_on_errors(case), *_on_billing(case)]
    return [Remark(text=text) for text in told]


def _on_speed(case: Case) -> Iterator[str]:
    answered = [a for a in case.attempts if a.status == 200 and a.error is None and a.elapsed_s > 0]
    if not answered:
        return
    whole = _quantiles([a.elapsed_s for a in answered], unit="s")
    told = f"speed, of {len(answered)} answers in this audit, which is no load test: {whole} each"
    streams = [a.first_s for a in answered if a.first_s is not None and _is_stream(a)]
    if streams:
        told += f"; first bytes of {len(streams)} streams after {_quantiles(streams, unit='s')}"
    rates = list(_rates(case, answered))
    if rates:
        told += f"; {_quantiles(rates, unit='completion tokens a second')}"
    yield told


def _is_stream(attempt: Attempt) -> bool:
    return attempt.body.lstrip("\ufeff").startswith(("data:", "event:", ":"))


def _rates(case: Case, answered: Sequence[Attempt]) -> Iterator[float]:
    """Completion tokens a second of each reply, as far as the endpoint counts."""
    for attempt in answered:
        outcome = case.outcomes.get(attempt.probe_id)
        if isinstance(outcome, Reply | NotJudged) and outcome.completion_tokens:
            yield outcome.completion_tokens / attempt.elapsed_s


def _quantiles(values: Sequence[float], *, unit: str) -> str:
    """The median, and between what nine in ten lie."""
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    return f"{middle:.3g} {unit} (9 in 10 between {low:.3g} and {high:.3g})"


def _on_errors(case: Case) -> Iterator[str]:
    results = [parse(attempt, claims=False) for attempt in case.attempts]
    problems = [
        result for result in results if isinstance(result, Problem)
        and (result.account is None or result.retryable)  # else it is no matter of the host's
    ]  # fmt: skip
    kinds = Counter(
        "no response" if problem.status is None else f"HTTP {problem.status}"
        for problem in problems
    )
    if kinds:
        again = sum(attempt.number > 1 for attempt in case.attempts)
        shown = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
        yield (
            f"{len(problems)} of {len(results)} requests brought no answer ({shown}); "
            f"{again} were tries of what had been asked before"
        )


def _on_billing(case: Case) -> Iterator[str]:
    kept: tuple[ShownTokens, ...] = case.kept[CHECK.name]
    billed, shown, replies = _billed(case)
    if not replies:
        return
    counted = {row.probe_id for row in kept}
    rows = [row for row in case.ordinary.rows if row.probe_id in counted]
    pairs = [(row.prompt_tokens, row.rendered.get(REFERENCE)) for row in rows]
    prompts = [(told, own) for told, own in pairs if told is not None and own is not None]
    told = (
        f"billed for {replies} replies: {billed:,} completion tokens, where what is shown makes "
        f"{shown:,} (answers {sum(row.answer for row in kept):,}, thoughts "
        f"{sum(row.thought for row in kept):,})"
    )
    if prompts:
        told += (
            f"; {sum(told for told, _ in prompts):,} prompt tokens, where the published template "
            f"makes {sum(own for _, own in prompts):,}"
        )
    cached = sum(filter(None, map(_cached, case.attempts)))
    yield f"{told}; {cached:,} said to be cached" if cached else told


def _cached(attempt: Attempt) -> int | None:
    """Prompt tokens that an answer says were cached."""
    details = member(member(body_of(attempt), "usage"), "prompt_tokens_details")
    count = member(details, "cached_tokens")
    return count if type(count) is int and 0 < count < 10**9 else None


CHECK: Final = Check[tuple[ShownTokens, ...], None](
    name="speed",
    read=read,
    none=(),
    aspects=(BILLING,),
    name_it=name_it,
    remarks=remarks,
    score=score,
)
