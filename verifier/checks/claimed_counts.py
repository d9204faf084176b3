"""What an endpoint counts, held against what it was asked and what came.

A count beyond what a request allowed is believed by nobody who pays by it: it is reported as what
it is, and what was asked stands in its place. It decides no verdict: a limit that is not heeded, a
long prompt of the host's own and a wrong count all look alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from verifier.checks.check import Account, Aspect, Case, Check, Remark, make_finding
from verifier.host.budget import believed_completion, believed_prompt
from verifier.host.exchange import HIDDEN, asked_tokens, most_prompt
from verifier.records import Attempt, Decision, Finding, NotJudged, Outcome, Reply

USAGE: Final = Aspect(
    name="usage", label="counts of tokens", place=190, role="remark", without_reference=True
)

#: What the finding is called.
BEYOND = "counts beyond what was asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The counts of one answer, as claimed and as believed; None: the endpoint did not count."""

    probe_id: str
    prompt: int | None
    completion: int | None
    most_prompt: int | None  # that the request can hold; None: there is no request to look at
    allowed: int | None  # completion tokens; None: no request says
    thinks: bool = False  # whether it thought, shown or hidden: some limits count no thoughts

    @property
    def believed_prompt(self) -> int | None:
        """Prompt tokens to report."""
        if self.prompt is None or self.most_prompt is None:
            return self.prompt
        return believed_prompt(self.prompt, self.most_prompt)

    @property
    def believed_completion(self) -> int | None:
        """Completion tokens to report."""
        if self.completion is None or self.allowed is None:
            return self.completion
        return believed_completion(self.completion, self.allowed)


def read_claimed(attempts: Sequence[Attempt], outcomes: Mapping[str, Outcome]) -> dict[str, Claim]:
    """What was counted for each answer, by its probe."""
    asked = {attempt.probe_id: attempt for attempt in attempts}
    found = {}
    for probe_id, outcome in outcomes.items():
        attempt = asked.get(probe_id)
        if isinstance(outcome, Reply | NotJudged):
            found[probe_id] = Claim(
                probe_id=probe_id,
                prompt=outcome.prompt_tokens,
                completion=outcome.completion_tokens,
                most_prompt=None if attempt is None else most_prompt(attempt),
                allowed=None if attempt is None else asked_tokens(attempt) or None,
                thinks=_thinks(outcome),
            )
    return found


def _thinks(outcome: Reply | NotJudged) -> bool:
    if isinstance(outcome, NotJudged):
        return outcome.reason.startswith(f"{HIDDEN},")  # as it says itself
    return outcome.thought is not None


def judge_claimed(claims: Mapping[str, Claim]) -> Finding | None:
    """The finding on counts beyond what was asked; None where there are none."""
    every = claims.values()
    long = [c for c in every if c.completion != c.believed_completion]
    large = [c for c in every if c.prompt != c.believed_prompt]
    if not long and not large:
        return None
    told = []
    if long:
        worst = max(long, key=lambda claim: claim.completion or 0)
        thoughts = ", or does not count thoughts" if any(claim.thinks for claim in long) else ""
        told.append(
            f"{len(long)} of {len(claims)} answers are said to have taken more completion tokens "
            f"than were allowed, {worst.completion:,} of {worst.allowed:,} for {worst.probe_id}: "
            f"a limit that is not heeded{thoughts}, or a wrong count"
        )
    if large:
        worst = max(large, key=lambda claim: claim.prompt or 0)
        told.append(
            f"{len(large)} of {len(claims)} prompts are said to count more than the question can "
            f"hold, {worst.prompt:,} tokens where {worst.most_prompt:,} are the most for "
            f"{worst.probe_id}: a long prompt of the host's own, or a wrong count"
        )
    detail = "; ".join(told) + "; what was asked is reported as spent in their place"
    return make_finding(USAGE, "detected", BEYOND, None, detail)


def name_it(
    case: Case, _evidence: None, _account: Account, _found: Sequence[Finding], _decision: Decision
) -> list[Finding]:
    """Counts beyond what was asked."""
    found = judge_claimed(read_claimed(case.attempts, case.outcomes))
    return [] if found is None else [found]


def remarks(
    _case: Case, _evidence: None, _account: Account, found: Sequence[Finding]
) -> list[Remark]:
    """The same in words."""
    return [Remark(text=f"{f.name}: {f.detail}") for f in found if f.aspect == USAGE.name]


CHECK: Final = Check[None, None](
    name="claimed_counts",
    aspects=(USAGE,),
    name_it=name_it,
    remarks=remarks,
)
