"""What was asked, when, and what was spent, by what the endpoint counts and by what came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from verifier.checks import CHECKS
from verifier.checks.check import Case
from verifier.checks.claimed_counts import read_claimed
from verifier.host.budget import OWN_END, Amount
from verifier.plan_file import cost_usd
from verifier.records import Asked, Attempt, Failure, NotJudged, Reply, Usage

#: How the ids of probes begin whose outcomes a finding of their own speaks of.
_OWN_FINDING: Final = tuple(prefix for check in CHECKS for prefix in check.own_probes)


def count_usage(case: Case) -> Usage:
    """What was asked and spent, what was asked for other ends than scoring included.

    Where the endpoint does not count tokens, ours are counted, and where it counts what cannot be,
    what was asked. Requests without an answer on record were sent, so they count as requests.
    """
    ledger, outcomes = case.ledger, case.outcomes
    prompt, completion = _claimed(case)
    beside = [check.spent(case.kept[check.name]) for check in CHECKS]
    others: list[Amount] = [amount for amount in beside if amount is not None]
    prompt += sum(amount.prompt_tokens for amount in others)
    completion += sum(amount.completion_tokens for amount in others)
    set_aside = [
        row for row in ledger.rows
        if row.unjudged is not None and isinstance(outcomes.get(row.probe_id), Reply)
    ]  # fmt: skip
    counted = {name: o for name, o in outcomes.items() if not has_own_finding(name)}
    return Usage(
        requests=len(case.attempts)
        + len(case.unanswered)
        + sum(amount.requests for amount in others),
        replies=sum(row.unjudged is None for row in ledger.rows),
        failures=sum(isinstance(o, Failure) for o in counted.values()),
        not_judged=sum(isinstance(o, NotJudged) for o in counted.values()) + len(set_aside),
        prompt_tokens=prompt,
        completion_tokens=completion,
        tokens_scored=case.tokens_scored,
        tokens_left_out=sum(row.left_out for row in ledger.rows),
        cost_usd=cost_usd(case.plan.prices, prompt_tokens=prompt, completion_tokens=completion),
    )


def when_asked(attempts: Sequence[Attempt]) -> Asked | None:
    """When the first and the last of these were asked; times that cannot be read are left out."""
    times = []
    for attempt in attempts:
        with suppress(ValueError, OverflowError):
            moment = datetime.fromisoformat(attempt.started_at)
            moment = moment.replace(tzinfo=moment.tzinfo or UTC)
            times.append(moment.astimezone(UTC).replace(microsecond=0))
    if not times:
        return None
    return Asked(first=min(times).isoformat(), last=max(times).isoformat())


def _claimed(case: Case) -> tuple[int, int]:
    """Prompt and completion tokens of the answers on record, as far as counts are believed."""
    ours = {row.probe_id: row.tokens + row.left_out for row in case.ledger.rows}
    ours |= {row.probe_id: row.tokens + row.left_out for row in case.ledger.sampled}
    claims = read_claimed(case.attempts, case.outcomes)
    completion = 0
    for probe_id, claim in claims.items():
        counted, own = claim.believed_completion, ours.get(probe_id, 0)
        # an endpoint need not count the end of a turn
        completion += own if counted is None else max(counted, own - OWN_END)
    return sum(claim.believed_prompt or 0 for claim in claims.values()), completion


def has_own_finding(probe_id: str) -> bool:
    """Whether a finding of its own says what came of a probe."""
    return probe_id.startswith(_OWN_FINDING)


def why_not_judged(case: Case) -> Mapping[str, str]:
    """Why an answer says nothing about the weights, by probe: as it came, or once it was read."""
    rows = case.ledger.rows
    found = {row.probe_id: row.unjudged for row in rows if row.unjudged is not None}
    answers = case.outcomes.values()
    return found | {o.probe_id: o.reason for o in answers if isinstance(o, NotJudged)}
