"""How replies at temperature 1 are sampled: as asked, by another sampler, or from a store.

The arithmetic is in `evidence` and `stored_replies`, with null and assumptions. Asked once the
greedy replies exclude other weights, since noise flattens distributions as a temperature does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from verifier.checks.check import (
    NEAR_SAMPLER,
    SAMPLER,
    Account,
    Asked,
    Aspect,
    Case,
    Check,
    Planned,
    Remark,
    Session,
    Weighed,
    greedy_is_quiet,
    greedy_is_settled,
    make_finding,
)
from verifier.checks.sampling.ask_and_score import NO_TOKENS, score_repeats, score_sampled
from verifier.checks.sampling.evidence import (
    SAMPLER_SHARE,
    UNNAMED,
    SamplerEvidence,
    describe_sampler,
    weigh_samplers,
)
from verifier.checks.sampling.stored_replies import (
    AGAIN,
    EVERY,
    OTHERWISE,
    REPEATS_SHARE,
    SAME,
    weigh_repeats,
)
from verifier.config import RunFile
from verifier.evidence.calibration import Calibration
from verifier.evidence.samplers import (
    Sampler,
    changed,
    greedy_defaults,
    honest_samplers,
    made,
    name_of,
    sampler_columns,
)
from verifier.files.run_folder import SAMPLED
from verifier.host.budget import Amount
from verifier.plan_file import SPARE_PROBES, Plan, batch_ends, read_probes
from verifier.probes import Pool, draw, size_of
from verifier.records import Finding, Probe
from verifier.reference.cards import Card
from verifier.reference.engines import NO_DISTRIBUTION
from verifier.wording import describe_replies

REPEATS: Final = Aspect(name="repeats", label="asked again", place=80)

#: What samples are called that come again: in other words too, in the same words alone, and before
#: the two are told apart.
STORED: Final = "replies from a store"
SAME_WORDS: Final = "the same reply to the same words"
COME_AGAIN: Final = "replies that come again"

#: Share of the token budget that is kept for sampled replies, where they are asked for. What greedy
#: replies leave over is theirs as well.
BUDGET: Final = 0.5

#: Sampled replies of which none can be read, before it is said that none can.
MIN_SET_ASIDE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingEvidence:
    """What samples say, before any threshold."""

    samplers: SamplerEvidence | None  # None: the plan asks for no samples
    repeats: float  # log e-value against replies that are drawn anew
    otherwise: float  # the same of those alone that were asked in other words


def planned_samplers(plan: Plan) -> dict[str, Sampler]:
    """The samplers of a plan by name."""
    return {name: made(settings) for name, settings in plan.samplers.items()}


# -- what is planned ---------------------------------------------------------------------------


def plan(config: RunFile, card: Card, _calibration: Calibration | None) -> Planned:
    """The samplers that replies are held against, and what is kept of the budget."""
    audit = config.audit
    silent = greedy_defaults(card.sampling, config.endpoint.extra_body)
    defaults = {"greedy_defaults": {name: changed(sampler) for name, sampler in silent.items()}}
    if not audit.sampler:
        return Planned(fields=defaults)
    columns = sampler_columns(card.sampling)
    return Planned(
        fields=defaults
        | {
            "budget_sampled_tokens": int(BUDGET * audit.budget_completion_tokens),
            "samplers": {name: changed(sampler) for name, sampler in columns.items()},
            "honest_samplers": tuple(map(name_of, honest_samplers(card.sampling))),
        },
        share=BUDGET,
        beside="the samples that audit.sampler asks for",
    )


def draw_sampled(
    config: RunFile, plan: Plan, pool: Pool, drawn: int
) -> tuple[str, tuple[Probe, ...]] | None:
    """The probes asked at temperature 1, drawn after the `drawn` greedy ones."""
    audit = config.audit
    if not plan.samplers:
        return None
    count = min(
        SPARE_PROBES * (plan.budget_completion_tokens // audit.max_tokens),
        size_of(pool, audit.kinds) - drawn,
    )
    probes = draw(
        pool, seed=plan.seed, count=drawn + count, max_tokens=audit.max_tokens, kinds=audit.kinds
    )
    settings = tuple(audit.template_settings.items())
    found: list[Probe] = []
    for n, probe in enumerate(probes[drawn:]):
        once = replace(probe, settings=settings, temperature=1.0)
        found.append(once)
        if n % EVERY == 0:  # asked again at once, and in other words: a store would show
            found.append(replace(once, id=f"{once.id}{AGAIN}{SAME}"))
            found.append(_otherwise(once))
    return SAMPLED, tuple(found)


def _otherwise(probe: Probe) -> Probe:
    """The same question in slightly other words, which a store may take for the same."""
    *before, last = probe.messages
    asked = replace(last, content=f"Please help me with this. {last.content}")
    return replace(probe, id=f"{probe.id}{AGAIN}{OTHERWISE}", messages=(*before, asked))


def reserve(plan: Plan) -> Amount:
    """What of the budget is kept for samples."""
    return Amount(requests=0, prompt_tokens=0, completion_tokens=plan.budget_sampled_tokens)


# -- what is asked -----------------------------------------------------------------------------


def read_sampled_probes(run: Path) -> tuple[Probe, ...]:
    """The probes asked at temperature 1."""
    return read_probes(run, name=SAMPLED)


def ready(case: Case) -> bool:
    """Whether samples can be judged."""
    return bool(case.plan.samplers) and greedy_is_settled(case)


def wants_more(findings: Sequence[Finding], decision: str) -> bool:
    """Whether more samples may decide: none is decided, or what was found has no name yet."""
    named = any(
        (f.aspect == REPEATS.name and f.decision == "detected" and f.name != COME_AGAIN)
        or (f.aspect == SAMPLER.name and f.name != UNNAMED)
        for f in findings
    )
    return decision == "inconclusive" or (decision == "inconsistent" and not named)


def ask(session: Session, case: Case, _kept: None) -> bool:
    """Ask the next batch at temperature 1, until it is decided how replies are sampled."""
    if case.report is None or not ready(case):
        return False
    sampled = read_sampled_probes(session.run)
    able = session.reference.engine.scores_samplers and session.endpoint.top_logprobs > 0
    if not able:
        sampled = sampled[:3]  # one reply says why none can be judged; it is asked again, too
    settled = next(
        (n for n, probe in enumerate(sampled) if probe.id not in case.outcomes), len(sampled)
    )
    if settled and able and not wants_more(case.findings, case.decision):
        return False
    end = next((end for end in batch_ends(len(sampled)) if end > settled), 0)
    if not end or not session.finish(f"samples up to {end}"):
        return False
    goes_on = session.ask(sampled[:end])
    session.score()
    if not goes_on:  # the next batch is not to be asked either
        for later in batch_ends(len(sampled)):
            session.finish(f"samples up to {later}")
    return True


def score(session: Session) -> None:
    """Score sampled replies under each sampler, and repeated ones by their chance."""
    probes, outcomes = read_sampled_probes(session.run), session.outcomes()
    if session.pack is not None:  # of which no plan asks for samples
        return
    reference, thinking = session.reference, session.plan.thinking
    with reference.busy:
        score_sampled(
            session.run, probes, outcomes, engine=reference.engine, tokenizer=reference.tokenizer,
            samplers=planned_samplers(session.plan), thinking=thinking,
            progress=lambda done, of: session.show.step("scoring", done, of),
        )  # fmt: skip
        score_repeats(
            session.run, probes, outcomes, engine=reference.engine, tokenizer=reference.tokenizer
        )


# -- what it says ------------------------------------------------------------------------------


def shares(plan: Plan) -> tuple[float, ...]:
    """The samplers, and the repeats."""
    return (SAMPLER_SHARE, REPEATS_SHARE) if plan.samplers else ()


def weigh(case: Case, _kept: None) -> Weighed[SamplingEvidence]:
    """Samplers other than asked, and texts that come again; see `evidence`, `stored_replies`."""
    repeats = weigh_repeats(case.ledger.repeats)
    otherwise = weigh_repeats([one for one in case.ledger.repeats if one.otherwise])
    if not case.plan.samplers:
        evidence = SamplingEvidence(samplers=None, repeats=repeats, otherwise=otherwise)
        return Weighed(evidence=evidence)
    samplers = weigh_samplers(
        case.ledger.sampled, planned_samplers(case.plan), case.plan.honest_samplers,
        level=1 - case.plan.beta, noise=None if case.interval is None else case.interval.upper,
    )  # fmt: skip
    return Weighed(
        evidence=SamplingEvidence(samplers=samplers, repeats=repeats, otherwise=otherwise),
        log_e=(samplers.log_e, repeats),
        at_any_noise=(min(samplers.log_e, samplers.log_e_named), repeats),
    )


def find(
    case: Case, evidence: SamplingEvidence, account: Account, found: Sequence[Finding]
) -> list[Finding]:
    """Whether samples are drawn as asked, and whether they are drawn anew.

    Not beside a penalty of greedy replies, which is what the sampler does.
    """
    findings = []
    if account.penalty is None and evidence.samplers is not None:
        findings.append(_find_sampler(case, evidence.samplers, account, found))
    if case.ledger.repeats:
        findings.append(_find_repeats(case, evidence, account))
    return findings


def _find_sampler(
    case: Case, found: SamplerEvidence, account: Account, others: Sequence[Finding]
) -> Finding:
    """Whether sampled replies are drawn as asked; a sampler is named once the greedy replies are
    quiet.

    Noise in the weights flattens distributions as a temperature does, so samples are not judged
    where the greedy replies leave open, or show, that other weights are served.
    """
    name, needed = UNNAMED, math.log(1 / case.plan.beta)
    if account.greedy_differs:
        detail = "the greedy replies differ already; mend what they show first"
        return make_finding(SAMPLER, "not run", name, None, detail)
    if found.set_aside and not found.rows:
        reason = max(found.set_aside, key=lambda why: found.set_aside[why])
        enough = sum(found.set_aside.values()) >= MIN_SET_ASIDE
        if not enough and reason not in (NO_DISTRIBUTION, NO_TOKENS):
            return make_finding(SAMPLER, "undecided", name, 0.0, reason)
        return make_finding(SAMPLER, "not run", name, None, reason)
    if not found.rows:
        return make_finding(SAMPLER, "undecided", name, 0.0, "no sampled reply was scored")
    told = f"{describe_replies(found.rows)} sampled at temperature 1, {found.tokens} tokens"
    if found.log_e >= needed:
        if not greedy_is_quiet(case, others) or found.log_e_named < needed:
            detail = (
                f"{told}: they are not drawn as asked from the published weights; whether that is "
                "the sampler or the weights is open while the greedy replies leave noise possible"
            )
            return make_finding(SAMPLER, "undecided", name, found.log_e, detail)
        said = describe_sampler(found, planned_samplers(case.plan))
        detail = f"{told}: so drawn rather than as asked; the greedy replies fit the weights"
        if said == UNNAMED:
            detail += f"; most like {' or '.join(found.names[:3])}"
        return make_finding(SAMPLER, "detected", said, found.log_e_named, detail)
    return _find_as_asked(found, told, needed)


def _find_as_asked(found: SamplerEvidence, told: str, needed: float) -> Finding:
    """Whether every marked sampler is excluded, where none is detected."""
    interval, name = found.temperature, UNNAMED
    assert interval is not None
    upper = "more" if interval.upper is None else f"{interval.upper:g}"
    within = f"{told}: temperature {interval.lower:g} to {upper}"
    if found.log_e_honest >= needed:
        return make_finding(SAMPLER, "excluded", name, -found.log_e_honest, within)
    leading = found.log_e_honest
    more = math.ceil((needed - leading) * found.tokens / leading) if leading > 0 else None
    detail = f"{within}; {found.hardest} is not yet excluded"
    return make_finding(SAMPLER, "undecided", name, -leading, detail, more)


def _find_repeats(case: Case, evidence: SamplingEvidence, account: Account) -> Finding:
    """Whether samples come again more often than chance has it; other causes come first."""
    log_e, name, repeats = evidence.repeats, STORED, case.ledger.repeats
    again = [repeat for repeat in repeats if repeat.came_again]
    told = f"{len(again)} of {describe_replies(len(repeats))} to what was asked before came again"
    if log_e < needed_of_repeats(case):
        return make_finding(REPEATS, "undecided", name, log_e, told)
    samplers = evidence.samplers
    other = samplers is not None and samplers.log_e >= math.log(1 / case.plan.beta)
    if account.greedy_differs or other:
        detail = f"{told}; other weights or another sampler may be why: mend these first"
        return make_finding(REPEATS, "not run", name, None, detail)
    words = sum(repeat.otherwise for repeat in again)
    detail = f"{told} word by word at temperature 1, {words} of them asked in other words"
    name, why = _how_they_come_again(case, evidence)
    return make_finding(REPEATS, "detected", name, log_e, f"{detail}: {why}")


def _how_they_come_again(case: Case, evidence: SamplingEvidence) -> tuple[str, str]:
    """What is said of samples that come again, and why: a seed needs the very words, and a store
    may not. To other words with the same seed another text comes, unless it is short."""
    if evidence.otherwise >= needed_of_repeats(case):
        return STORED, "no seed does that"
    otherwise = [one.came_again for one in case.ledger.repeats if one.otherwise]
    if otherwise and not any(otherwise):
        return SAME_WORDS, (
            "a seed that is the same each time explains it, and so does a store of the very words"
        )
    return COME_AGAIN, "whether from a store or by a seed is not told yet"


def remarks(
    case: Case, _evidence: SamplingEvidence, _account: Account, _found: Sequence[Finding]
) -> list[Remark]:
    """What the endpoint decodes greedily under, where that is not the weights alone."""
    if not case.default:
        return []
    told = (
        f"the greedy replies are those of the publisher's default {case.default}, which the "
        "endpoint applies where a request says nothing of it, as is honest: they are judged so"
    )
    return [Remark(text=told, at="evidence")]


def needed_of_repeats(case: Case) -> float:
    """The evidence of repeats that suffices for the verdict by itself, in nats."""
    needed = case.needed.get(CHECK.name, ())
    return needed[1] if needed else math.log(1 / (case.plan.alpha * REPEATS_SHARE))


def headline(findings: Sequence[Finding]) -> str | None:
    """What samples differ in; repeats come before the sampler."""
    again = [f.name for f in findings if f.aspect == REPEATS.name and f.decision == "detected"]
    if again:
        return f"samples are not drawn anew ({again[0]})"
    said = [f for f in findings if f.aspect == SAMPLER.name and not f.name.startswith(NEAR_SAMPLER)]
    if any(f.decision in ("detected", "undecided") for f in said):
        return f"the replies are not sampled as asked ({' and '.join(f.name for f in said)})"
    return None


CHECK: Final = Check[None, SamplingEvidence](
    name="sampling",
    aspects=(SAMPLER, REPEATS),
    plan=plan,
    draw=draw_sampled,
    reserve=reserve,
    shares=shares,
    weigh=weigh,
    find=find,
    remarks=remarks,
    headline=headline,
    ready=ready,
    ask={"sampled": ask},
    score=score,
    asked=(Asked(probes=read_sampled_probes, planned=True),),
)
