"""Long prompts and long replies: what is planned, asked and said of them.

The arithmetic is in `evidence`, with null and assumptions; what is asked and scored is in
`ask_and_score`. Asked last, where the run file says so, since long prompts cost money.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from verifier.checks.check import (
    Account,
    Asked,
    Aspect,
    Case,
    Check,
    Forecast,
    Planned,
    Session,
    Weighed,
    greedy_is_settled,
    make_finding,
)
from verifier.checks.length.ask_and_score import (
    CONTEXT_KIND,
    OUTPUT_KIND,
    Context,
    next_probe,
    read_context,
    score_context,
    score_one,
)
from verifier.checks.length.evidence import (
    CONTEXT_SHARE,
    CONTEXT_TOKENS,
    LIMITED,
    LONG_REPLIES,
    MARKS,
    PLACE_WORDS,
    REQUESTS,
    ContextEvidence,
    bracket,
    weigh_ceiling,
    weigh_context,
)
from verifier.config import RunFile
from verifier.evidence.calibration import Calibration
from verifier.files.run_folder import CONTEXT
from verifier.host.budget import Amount
from verifier.plan_file import Plan, read_probes
from verifier.records import Finding, Outcome, Probe, Reply
from verifier.reference.cards import Card
from verifier.wording import describe_replies

PROMPTS: Final = Aspect(name="context", label="long prompts", place=60, required=True)
REPLIES: Final = Aspect(name="ceiling", label="long replies", place=70, required=True)

_DIFFERS: Final = "the ordinary replies differ already; mend what they show first"


@dataclass(frozen=True, slots=True, kw_only=True)
class LongEvidence:
    """What was asked for at length, and what it says before any threshold."""

    found: Context
    prompts: ContextEvidence | None  # None: no long prompt has a scored reply
    replies: float  # log e-value of a ceiling


# -- what is planned ---------------------------------------------------------------------------


def plan(config: RunFile, _card: Card, _calibration: Calibration | None) -> Planned:
    """How long prompts and replies may be, and what is kept of the budget for them."""
    audit = config.audit
    long = REQUESTS * CONTEXT_TOKENS if audit.context else 0
    long += LONG_REPLIES * (audit.output or 0)
    return Planned(
        fields={"context_tokens": audit.context or 0, "output_tokens": audit.output or 0},
        tokens=long,
        beside=f"the {long} that audit.context and audit.output ask for",
    )


def reserve(plan: Plan) -> Amount:
    """What of the budget is kept for long prompts and long replies."""
    prompts = REQUESTS * CONTEXT_TOKENS if plan.context_tokens else 0
    return Amount(
        requests=0, prompt_tokens=plan.context_tokens,
        completion_tokens=prompts + LONG_REPLIES * plan.output_tokens,
    )  # fmt: skip


def forecast(plan: Plan) -> Forecast:
    """Requests and prompt tokens; their completion tokens are a part of the budget's already."""
    most = REQUESTS * bool(plan.context_tokens) + LONG_REPLIES * bool(plan.output_tokens)
    few = bool(plan.context_tokens) + bool(plan.output_tokens)
    return Forecast(
        expected=Amount(requests=few, prompt_tokens=plan.context_tokens, completion_tokens=0),
        most=Amount(
            requests=most, prompt_tokens=REQUESTS * plan.context_tokens, completion_tokens=0
        ),
    )


def is_planned(plan: Plan) -> bool:
    """Whether long prompts or long replies are asked for."""
    return bool(plan.context_tokens or plan.output_tokens)


# -- what is asked -----------------------------------------------------------------------------


def read(run: Path, plan: Plan, outcomes: Mapping[str, Outcome]) -> Context:
    """What was asked for at length, and came."""
    return read_context(run, outcomes) if is_planned(plan) else CHECK.none


def read_long_probes(run: Path) -> tuple[Probe, ...]:
    """Long prompts, and prompts for long replies, as they were asked."""
    return read_probes(run, name=CONTEXT)


def ready(case: Case) -> bool:
    """Whether only what long prompts and replies say is open: they are asked last."""
    waiting = {f.aspect for f in case.findings if f.decision == "undecided"}
    return (
        is_planned(case.plan)
        and bool(waiting)
        and waiting <= {PROMPTS.name, REPLIES.name}
        and greedy_is_settled(case)
    )


def needed(case: Case) -> float:
    """The evidence of a cut or a ceiling, in nats, that suffices for the verdict by itself."""
    return max(case.needed.get(CHECK.name, (math.log(1 / (case.plan.alpha * CONTEXT_SHARE)),)))


def ask(session: Session, case: Case, kept: Context) -> bool:
    """Ask for one long reply or long prompt, and score it; at last measure a cut."""
    run, plan = session.run, session.plan
    if case.decision == "inconsistent" and not session.finished(CHECK.name):
        return False
    session.finish(CHECK.name)
    if not is_planned(plan):
        return False
    reference = session.reference
    for what in ("long replies", "long prompts"):
        if session.finished(what):
            continue
        probe = next_probe(
            run, plan, kept, needed=needed(case), tokenizer=reference.tokenizer,
            replies=what == "long replies",
        )  # fmt: skip
        if probe is not None and _take(session, probe):
            return True
        session.finish(what)  # enough was asked, or the budget does not pay for more
    if not session.finish("long scores"):
        return False
    _score_long(session, needed(case))
    return True


def _take(session: Session, probe: Probe) -> bool:
    """Ask one probe and score its reply; False where the budget does not pay for it."""
    session.ask((probe,))
    outcome, reference = session.outcomes().get(probe.id), session.reference
    if isinstance(outcome, Reply):
        with reference.busy:
            score_one(
                session.run, session.plan, probe, outcome, engine=reference.engine,
                tokenizer=reference.tokenizer,
            )  # fmt: skip
    return outcome is not None


def _score_long(session: Session, needed: float) -> None:
    if is_planned(session.plan):
        with session.reference.busy:
            score_context(
                session.run, session.plan, session.outcomes(), engine=session.reference.engine,
                tokenizer=session.reference.tokenizer, needed=needed,
            )  # fmt: skip


def score(session: Session) -> None:
    """Score what long prompts and long replies brought, where any were asked for."""
    _score_long(session, max(session.needed(CHECK.name), default=math.inf))


# -- what it says ------------------------------------------------------------------------------


def shares(plan: Plan) -> tuple[float, ...]:
    """Prompts and replies, as far as they are asked for."""
    asked = [plan.context_tokens, plan.output_tokens]
    return tuple(CONTEXT_SHARE for tokens in asked if tokens)


def weigh(case: Case, kept: Context) -> Weighed[LongEvidence]:
    """Cuts of long prompts, and a ceiling on replies; see `evidence`."""
    plan, channel = case.plan, case.plan.calibration.text
    prompts = weigh_context(kept.prompts, tokens=plan.context_tokens, channel=channel)
    replies = weigh_ceiling(kept.replies, channel=channel)
    log_e = []
    if plan.context_tokens:
        log_e.append(0.0 if prompts is None else prompts.log_e)
    if plan.output_tokens:
        log_e.append(replies)
    return Weighed(
        evidence=LongEvidence(found=kept, prompts=prompts, replies=replies),
        log_e=tuple(log_e), at_any_noise=tuple(log_e),
    )  # fmt: skip


def find(
    case: Case, evidence: LongEvidence, account: Account, _found: Sequence[Finding]
) -> list[Finding]:
    """What long prompts and long replies say; not where ordinary replies differ already."""
    findings = []
    if case.plan.context_tokens:
        findings.append(_find_in_prompts(case, evidence, differs=account.greedy_differs))
    if case.plan.output_tokens:
        findings.append(_find_in_replies(case, evidence, differs=account.greedy_differs))
    return findings


def _find_in_prompts(case: Case, evidence: LongEvidence, *, differs: bool) -> Finding:
    name = f"prompts of {case.plan.context_tokens} tokens cut"
    found, prompts = evidence.found, evidence.prompts
    if differs and (prompts is None or prompts.log_e < needed(case)):
        return make_finding(PROMPTS, "not run", name, None, _DIFFERS)
    if prompts is None:
        if found.refusals:
            return make_finding(PROMPTS, "not run", name, None, _refused(found))
        why = found.silent[0] if found.silent else "no long prompt was answered yet"
        return make_finding(PROMPTS, "undecided", name, 0.0, why)
    told = f"{describe_replies(prompts.rows)} to prompts of up to {prompts.longest} tokens"
    if prompts.log_e >= needed(case):
        return _name_cut(prompts, told)
    limit = "" if not found.refusals else f"; {_refused(found)}"
    if prompts.log_e_whole >= math.log(1 / case.plan.beta):
        marks = " and ".join(f"{mark:.0%}" for mark in MARKS)
        name = f"prompts of {prompts.longest} tokens cut"
        detail = f"{told} depend on all of it; windows of {marks} are each excluded{limit}"
        return make_finding(PROMPTS, "excluded", name, -prompts.log_e_whole, detail)
    low, high = bracket(found.prompts, case.plan.calibration.text)
    if high is not None:
        shorter = f", those of {low} do" if low else ""
        detail = (
            f"{told}: those of {high} tokens and more do not fit the published weights{shorter}; "
            "no cut that was tried explains it"
        )
        return make_finding(PROMPTS, "undecided", name, prompts.log_e, detail)
    detail = f"{told} do not tell{limit}"
    return make_finding(PROMPTS, "undecided", name, -prompts.log_e_whole, detail)


def _name_cut(prompts: ContextEvidence, told: str) -> Finding:
    """The window that long prompts are cut to, and the place that is left out."""
    assert prompts.best is not None
    assert prompts.windows is not None
    least, most = prompts.windows
    window = f"{least}" if least == most else f"about {prompts.best.window}"
    between = "" if least == most else f" ({least} to {most})"
    counts = ""
    if prompts.counted is not None:
        counts = "; the endpoint's own count of prompt tokens, {1} of {0}, says so too".format(
            *prompts.counted
        )
    detail = f"{told}: {PLACE_WORDS[prompts.best.place]}{counts}"
    said = f"prompts cut to {window} tokens{between}"
    return make_finding(PROMPTS, "detected", said, prompts.log_e, detail)


def _refused(found: Context) -> str:
    reason = found.refusals[-1].reason
    if found.limit is None:
        return f"a long prompt got no answer ({reason})"
    return f"the endpoint refuses prompts above {found.limit} tokens and says so, as is honest"


def _find_in_replies(case: Case, evidence: LongEvidence, *, differs: bool) -> Finding:
    asked = case.plan.output_tokens
    name = f"replies of {asked} tokens cut short"
    found, log_e = evidence.found, evidence.replies
    if differs and log_e < needed(case):
        return make_finding(REPLIES, "not run", name, None, _DIFFERS)
    whole = [row for row in found.replies if row.end is None]
    if whole:
        detail = f"a reply of {whole[0].tokens} tokens came where {whole[0].asked} were asked for"
        return make_finding(REPLIES, "excluded", name, None, detail)
    limited = [row.tokens for row in found.replies if row.is_limited]
    if limited:
        return make_finding(REPLIES, "not run", name, None, _ended(limited))
    if not found.replies:
        why = found.unread[0] if found.unread else "no long reply was asked for yet"
        return make_finding(REPLIES, "undecided", name, 0.0, why)
    sizes = sorted(row.tokens for row in found.replies)
    ends = " and ".join(sorted({row.finish_reason or "nothing" for row in found.replies}))
    told = f"{describe_replies(len(sizes))} ended after {sizes[0]}"
    told += f" to {sizes[-1]} tokens" if sizes[0] != sizes[-1] else " tokens"
    if log_e >= needed(case):
        detail = (
            f"{told}, {asked} asked for, where the published weights go on; said of the end: {ends}"
        )
        said = f"replies cut at {sizes[-1]} tokens"
        return make_finding(REPLIES, "detected", said, log_e, detail)
    return make_finding(
        REPLIES, "undecided", name, log_e, f"{told}, as the published weights may too"
    )


def _ended(limited: Sequence[int]) -> str:
    """What is said where a limit is told: no ground of a verdict, however the weights go on."""
    most = max(limited)
    return f"the endpoint ends replies at {most} tokens and says so ({LIMITED}), as is honest"


def headline(findings: Sequence[Finding]) -> str | None:
    """That what is long is cut without a word."""
    cuts = [
        f.name for f in findings
        if f.aspect in (PROMPTS.name, REPLIES.name) and f.decision == "detected"
    ]  # fmt: skip
    return f"what is long is cut without a word ({' and '.join(cuts)})" if cuts else None


CHECK: Final = Check[Context, LongEvidence](
    name="length",
    read=read,
    none=Context(prompts=(), replies=(), refusals=()),
    aspects=(PROMPTS, REPLIES),
    plan=plan,
    reserve=reserve,
    forecast=forecast,
    shares=shares,
    weigh=weigh,
    find=find,
    headline=headline,
    ready=ready,
    ask={"long": ask},
    score=score,
    asked=(Asked(probes=read_long_probes),),
    own_probes=(CONTEXT_KIND, OUTPUT_KIND),
)
