"""Which rendering of the chat template a host serves: the check, and what is said of it.

Three channels: replies and counts of prompt tokens under every rendering (`evidence`, with null and
assumptions), prompts that the endpoint shows (`shown_prompts`), and text completions beside chats
(`completions`). The first alone is evidence; the others name, and decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from verifier.checks.check import (
    CAUSE,
    UNKNOWN_RENDERING,
    Account,
    Asked,
    Aspect,
    Case,
    Check,
    Forecast,
    Remark,
    Session,
    Weighed,
    greedy_is_quiet,
    make_finding,
    scale_of,
)
from verifier.checks.template.completions import ROUNDS as COMPLETED_ROUNDS
from verifier.checks.template.completions import (
    Bypass,
    describe,
    read_bypass,
    to_complete,
)
from verifier.checks.template.evidence import Fitting, TemplateEvidence, weigh_templates
from verifier.checks.template.naming import (
    SURE,
    TEMPLATE_SHARE,
    Named,
    is_unknown,
    leaves_noise,
    may_be_honest,
    named_template,
    replies_fit,
)
from verifier.checks.template.panel import look_at_packed, look_at_template, score_panel
from verifier.checks.template.shown_prompts import Shown, is_valid, read_shown
from verifier.errors import EndpointError
from verifier.evidence.ledger import TEMPLATE
from verifier.evidence.posterior import fits_as_honest, is_rather_a_suspect
from verifier.evidence.prompt_counts import OFFSETS
from verifier.files.run_folder import COMPLETIONS, PANEL, PROBES, SHOWN_EXCHANGES, make_folder
from verifier.host.budget import Amount
from verifier.plan_file import Plan, read_probes, write_probes
from verifier.records import REFERENCE, Decision, Finding, Outcome, Probe
from verifier.reference.loaded import render_as_text
from verifier.reference.renderings.catalogue import Rendering, entries_named
from verifier.scoring.score import score_replies
from verifier.wording import describe_odds, describe_replies, name_noise

RENDERING: Final = Aspect(name="template", label="template", place=110, role="name")
SHOWN_PROMPT: Final = Aspect(name="shown prompt", label="shown prompt", place=100, role="remark")

#: Counts of prompt tokens that favour a fault by this factor are looked into.
SUSPECTED_AT: Final = 20.0

#: What is asked where something looks wrong, at most: the panel and shown prompts, then text
#: completions and strings that tell tokenizers apart.
_LOOKED: Final = Amount(requests=18, prompt_tokens=18 * 4096, completion_tokens=0)
_COMPLETED: Final = Amount(
    requests=COMPLETED_ROUNDS[-1], prompt_tokens=COMPLETED_ROUNDS[-1] * 1024, completion_tokens=0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a run folder holds beside the ledger."""

    shown: Shown | None  # None: the endpoint was not asked for prompts
    completions: Bypass | None  # None: it was asked for no text completions


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of the rendering, before any threshold."""

    templates: TemplateEvidence | None  # None: no other rendering is in the ledger
    kept: Kept


# -- what is asked -----------------------------------------------------------------------------


def read(run: Path, plan: Plan, _outcomes: Mapping[str, Outcome]) -> Kept:
    """Shown prompts, and text completions with their scores."""
    return Kept(shown=read_shown(run), completions=read_bypass(run, plan))


def read_panel(run: Path) -> tuple[Probe, ...]:
    """The probes that tell templates apart, once they are needed."""
    return read_probes(run, name=PANEL)


def suspects_fault(case: Case) -> bool:
    """Whether it pays to score template columns: the counts disagree, or evidence is rising that no
    build accounts for."""
    templates = _weigh(case)
    # one count without a reply may be a filler, which only a second shows
    tells = templates is not None and (len(case.text) > 0 or templates.counted > 1)
    counted = templates.log_e if templates is not None and tells else 0.0
    rising = case.log_e >= math.log(1 / case.plan.alpha) / 2 and case.build is None
    return rising or counted >= math.log(SUSPECTED_AT)


def ask(session: Session, case: Case, _kept: Kept) -> bool:
    """Look at the template once it pays."""
    in_chat = session.endpoint.dialect == "chat"
    if not in_chat or case.report is None or not suspects_fault(case):
        return False
    if not session.finish(CHECK.name):
        return False
    if session.pack is not None:
        look_at_packed(session, session.pack, needed=needed(case))
    else:
        look_at_template(session, needed=needed(case))
    return True


def wants_completions(case: Case) -> bool:
    """Whether text completions may tell a fault of the template from one of the weights.

    Not where all replies have a cause by name, or the weights fit under a named rendering.
    """
    named = any(
        f.aspect in ("substitution", CAUSE.name) and f.decision == "detected"
        for f in case.findings
    )  # fmt: skip
    sought = case.decision == "inconsistent" and case.seeks_cause
    return sought and not named and not greedy_is_quiet(case, case.findings)


def ask_for_completions(session: Session, case: Case, kept: Kept) -> bool:
    """Ask for text completions of rendered prompts, until they tell the weights from the template.

    They lie in a folder of their own: what they say decides no verdict. An endpoint that has none
    is told so by its first refusals.
    """
    if session.pack is not None:  # it renders nothing, and knows no reply to anything else
        return False
    if session.endpoint.dialect != "chat" or session.finished("completions"):
        return False
    if not session.finished("completions begun") and not wants_completions(case):
        return False
    session.finish("completions begun")
    folder = session.run / COMPLETIONS
    if not (folder / PROBES).exists():
        make_folder(folder)
        made = to_complete(read_probes(session.run), max_tokens=session.plan.max_tokens)
        write_probes(folder, made, name=PROBES)
    probes, found = read_probes(folder), kept.completions
    done = session.outcomes(COMPLETIONS)
    size = next((n for n in COMPLETED_ROUNDS if not all(p.id in done for p in probes[:n])), None)
    if size is None or (found is not None and found.settled):
        session.finish("completions")
        return False
    direct = replace(
        session.endpoint, dialect="completions", top_logprobs=0,
        render=render_as_text(session.reference.tokenizer),
    )  # fmt: skip
    try:
        goes_on = session.ask(probes[:size], direct=direct, folder=COMPLETIONS)
    except EndpointError as error:
        session.show.tell(f"text completions: {error}")
        goes_on = False
    score_completions(session)
    if not goes_on:  # the budget's end, or the endpoint's refusal
        session.finish("completions")
    return True


def score(session: Session) -> None:
    """Score a panel's replies, and text completions, where any were asked for."""
    if session.pack is not None:  # every question of it is scored with the ordinary ones
        return
    if read_panel(session.run):
        score_panel(session, needed=max(session.needed(CHECK.name)))
    score_completions(session)


def score_completions(session: Session) -> None:
    """Score the text completions that have arrived."""
    folder, reference = session.run / COMPLETIONS, session.reference
    probes = read_probes(folder)
    if probes:
        with reference.busy:
            score_replies(
                folder, probes, session.outcomes(COMPLETIONS), engine=reference.engine,
                tokenizer=reference.tokenizer, thinking=session.plan.thinking,
                catalogue={REFERENCE: reference.catalogue[REFERENCE]},
                progress=lambda done, of: session.show.step("scoring", done, of),
            )  # fmt: skip


# -- what it says ------------------------------------------------------------------------------


def _weigh(case: Case) -> TemplateEvidence | None:
    names = {name for row in case.ledger.rows for name in row.rendered}
    return weigh_templates(case.ledger, entries_named(names), case.plan.calibration.text)


def weigh(case: Case, kept: Kept) -> Weighed[Evidence]:
    """Every fault against every valid rendering; its share is reserved where none was scored."""
    templates = _weigh(case)
    log_e = -math.inf if templates is None else templates.log_e
    evidence = Evidence(templates=templates, kept=kept)
    return Weighed(evidence=evidence, log_e=(log_e,), at_any_noise=(log_e,))


def needed(case: Case) -> float:
    """The evidence of a fault, in nats, that suffices for the verdict by itself."""
    return max(case.needed[CHECK.name])


def named_fault(case: Case, evidence: Evidence) -> Named | None:
    """The rendering that explains the replies, known or not; None unless a fault is detected.

    Its own share of the evidence must suffice for the verdict. Not where a suspect explains them
    rather. Words that nobody knows, and a rendering that nobody knows, look like other weights:
    they are not claimed where completions show those. Neither is claimed, nor a known rendering
    that leaves noise, where a build, a suspect or a penalty explains the ordinary replies by
    itself: of a random model in 4 bits, 5 audits in 40 named a fault that its replies hardly show.
    """
    if evidence.templates is None:
        return None
    plan, bypass = case.plan, evidence.kept.completions
    found = named_template(evidence.templates, plan.calibration, needed=needed(case))
    if found is None:
        return None
    rather = is_rather_a_suspect(
        case.ledger, found.column, plan.calibration.text, bank=plan.bank,
        suspects=tuple(plan.suspects), error=plan.beta,
    )  # fmt: skip
    open_ended = not found.names or is_unknown(found.column)
    others = open_ended and bypass is not None and bypass.differs
    open_to_others = not found.names or leaves_noise(evidence.templates, plan.calibration)
    explained = open_to_others and fits_as_honest(
        case.ordinary, (*plan.bank, *plan.suspects), plan.calibration.text, error=plan.beta
    )
    return None if rather or others or explained else found


def faults_shown(evidence: Evidence) -> tuple[str, ...]:
    """The faults that the endpoint's own prompts show, but for those that its own counts deny."""
    shown, templates = evidence.kept.shown, evidence.templates
    known = {} if templates is None else templates.counts
    return tuple(
        name for name in (() if shown is None else shown.faults)
        if name not in known or known[name].agrees
    )  # fmt: skip


def name_it(
    case: Case, evidence: Evidence, account: Account, _found: Sequence[Finding],
    _decision: Decision,
) -> list[Finding]:  # fmt: skip
    """The fault by name, and what noise is left under it; and prompts that the endpoint shows."""
    shown, found = evidence.kept.shown, []
    if shown is not None and shown.differs:  # decides nothing: it may be forged, or a slip
        found.append(_of_shown(shown))
    match account.names:
        case "template":
            found += _name_fault(case, evidence, account)
        case "shown prompt":
            found += _name_shown(case, account)
        case "completions":
            found.append(_name_unknown(account))
    return found


def _of_shown(shown: Shown) -> Finding:
    """What prompts make of which one `differs`."""
    first = next(prompt for prompt in shown.prompts if not is_valid(prompt))
    detail = (
        f"of {len(shown.prompts)} prompts that the endpoint shows, that of {first.probe_id} "
        f"differs from token {first.differs_at} on: published {first.published!r}, shown "
        f"{first.shown!r}"
    )
    names = shown.faults
    if names:
        detail += f". Advice: {entries_named(names)[names[0]].advice}"
    name = " or ".join(names) or "a prompt of no known rendering"
    return make_finding(SHOWN_PROMPT, "detected", name, None, detail)


def _name_fault(case: Case, evidence: Evidence, account: Account) -> list[Finding]:
    """The template fault by name, and what noise is left under it.

    None is told under a hidden prompt of unknown words, nor under the nearest to a rendering that
    is not known: what they leave looks like noise of the weights.
    """
    templates, named = evidence.templates, named_fault(case, evidence)
    assert templates is not None
    assert named is not None
    if not named.names:
        return [_name_nearest(templates, named)]
    first = entries_named(named.names)[named.nearest]
    fits, leaves = _describe_fit(templates.fits[named.nearest], first)
    detail = (
        f"{first.summary}; {_join(fits, leaves)}{_odds(templates, named.names)}"
        f". Advice: {first.advice}"
    )
    names = named.names
    if not named.certain:
        names = (*names, UNKNOWN_RENDERING)
        few = templates.fits[named.nearest].replies < SURE
        lacks = "on so few replies" if few else "without counts of prompt tokens"
        detail = f"{lacks} another template may look the same: {detail}"
    elif len(names) > 1:
        detail = f"these cannot be told apart; the likeliest: {detail}"
    name = " or ".join(names)
    found = [make_finding(RENDERING, "detected", name, templates.log_e, detail)]
    return found if account.unknown_words else [*found, *_noise_left(case, account, named.nearest)]


def _name_nearest(templates: TemplateEvidence, named: Named) -> Finding:
    """That no rendering of the catalogue fits, and what does and does not fit the nearest."""
    nearest = entries_named([named.nearest])[named.nearest]
    fits, leaves = _describe_fit(templates.fits[named.nearest], nearest)
    doubt = "" if replies_fit(templates.fits[named.nearest]) else _OR_WEIGHTS
    detail = (
        f"nothing in the catalogue fits; the nearest is {nearest.name} ({nearest.summary}), which "
        f"{_join(fits, leaves)}{doubt}. Advice: {_COMPARE}"
    )
    return make_finding(RENDERING, "detected", UNKNOWN_RENDERING, templates.log_e, detail)


#: What a host is told whose rendering nobody knows.
_COMPARE: Final = (
    "compare the prompts that chats are rendered to, and what serves them, with the published"
)
_OR_WEIGHTS: Final = "; what it leaves may be other weights too, or instead"


def _odds(templates: TemplateEvidence, names: Sequence[str]) -> str:
    """The odds of the first against the likeliest that is not named."""
    rest = [name for name in templates.ranked if name not in names]
    if not rest or templates.behind[rest[0]] <= templates.behind[names[0]]:
        return ""
    lead = templates.behind[rest[0]] - templates.behind[names[0]]
    return f", odds {describe_odds(lead)} to 1 against {rest[0]}"


def _describe_fit(fitting: Fitting, entry: Rendering) -> tuple[list[str], list[str]]:
    """What a rendering fits, and what it does not."""
    fits, leaves = [], []
    replies, counts = describe_replies(fitting.replies), fitting.counts
    hidden = entry.stands_for is not None
    if replies_fit(fitting):
        fits.append(replies)
    else:
        scale = f"noise of a scale of {fitting.scale:.2g}"
        leaves.append(f"leaves {scale} in {replies}")
    if not counts.agrees:
        apart = "" if counts.example is None else " ({} where it has {})".format(*counts.example)
        leaves.append(f"has not {counts.of - counts.matched} of {_counts(counts.of)}{apart}")
    elif counts.of:
        told = _counts(counts.of)
        fits.append(f"{told} but for one constant" if hidden else told)
    return fits, leaves


def _counts(number: int) -> str:
    return "1 count of prompt tokens" if number == 1 else f"{number} counts of prompt tokens"


def _join(fits: Sequence[str], leaves: Sequence[str]) -> str:
    """Both in words: "fits 8 replies, and has not 5 of 5 counts"."""
    said = [f"fits {' and '.join(fits)}"] if fits else []
    return ", and ".join([*said, *leaves])


def _name_shown(case: Case, account: Account) -> list[Finding]:
    """The template fault that the endpoint's own prompts show, and what noise is left under it."""
    faults = account.faults
    entry = entries_named(faults)[faults[0]]
    detail = f"{entry.summary}, as the prompts that the endpoint shows; advice: {entry.advice}"
    found = [make_finding(RENDERING, "detected", " or ".join(faults), None, detail)]
    judged = account.column is not None and not account.unknown_words
    return [*found, *(_noise_left(case, account, faults[0]) if judged else ())]


def _name_unknown(account: Account) -> Finding:
    """That chats are rendered or routed in a way that is not known."""
    assert account.interval is not None
    detail = (
        f"{describe_replies(len(account.text))} to the same prompts, completed as text without the "
        f"endpoint's template, fit the published weights (noise scale "
        f"{account.interval.estimate:.2g}), and chats do not"
    )
    if account.nearest is not None:
        detail += f"; the nearest that is known is {account.nearest.removeprefix(TEMPLATE)}"
    detail += f". Advice: {_COMPARE}"
    return make_finding(RENDERING, "detected", UNKNOWN_RENDERING, None, detail)


def _noise_left(case: Case, account: Account, name: str) -> list[Finding]:
    """The weights' own fault under a named rendering; none where the noise left is honest."""
    calibration = case.plan.calibration
    if account.interval is None or may_be_honest(account.interval.lower, calibration):
        return []
    like = name_noise(scale_of(case, account.interval))
    detail = f"judged under {name}: no build was scored after that rendering"
    return [make_finding(CAUSE, "undecided", like, None, detail)]


def remarks(
    _case: Case, evidence: Evidence, _account: Account, _found: Sequence[Finding]
) -> list[Remark]:
    """How the endpoint counts, what it shows, and what text completions say."""
    found, templates, kept = [], evidence.templates, evidence.kept
    counts = None if templates is None else templates.accounting
    constant = counts is not None and counts.of and counts.matched == counts.of
    if counts is not None and constant and counts.offset in OFFSETS and counts.offset:
        text = (
            f"the endpoint counts {counts.offset:+d} prompt tokens on every request against "
            "what the published template renders: an accounting difference"
        )
        found.append(Remark(text=text, at="evidence"))
    if counts is not None and templates is not None and templates.counted:
        text = (
            "their counts of prompt tokens still speak of the template: of all counts "
            f"{counts.matched} in {counts.of} are those of the published one"
        )
        found.append(Remark(text=text, at="answers"))
    shown = kept.shown
    if shown is not None and shown.prompts and not shown.differs:
        text = (
            f"{len(shown.prompts)} prompts that the endpoint shows are rendered as published; what "
            "is shown can be forged, so it acquits none"
        )
        found.append(Remark(text=text, at="beside"))
    if kept.completions is not None:
        found.append(Remark(text=describe(kept.completions), at="beside"))
    return found


def spent(kept: Kept) -> Amount | None:
    """What prompts and completions cost, as far as the endpoint counts."""
    records = [record for record in (kept.shown, kept.completions) if record is not None]
    if not records:
        return None
    return Amount(
        requests=sum(record.requests for record in records),
        prompt_tokens=sum(record.prompt_tokens for record in records),
        completion_tokens=sum(record.completion_tokens for record in records),
    )


def forecast(_plan: Plan) -> Forecast:
    """What comes where something looks wrong, at most."""
    return Forecast(
        most=Amount(
            requests=_LOOKED.requests + _COMPLETED.requests,
            prompt_tokens=_LOOKED.prompt_tokens + _COMPLETED.prompt_tokens, completion_tokens=0,
        )
    )  # fmt: skip


CHECK: Final = Check[Kept, Evidence](
    name="template",
    read=read,
    none=Kept(shown=None, completions=None),
    aspects=(SHOWN_PROMPT, RENDERING, CAUSE),
    forecast=forecast,
    shares=lambda _plan: (TEMPLATE_SHARE,),
    weigh=weigh,
    name_it=name_it,
    remarks=remarks,
    ask={"ordinary": ask, "beside": ask_for_completions},
    score=score,
    asked=(
        Asked(probes=read_panel, in_ledger=True),
        Asked(probes=read_panel, exchanges=SHOWN_EXCHANGES),
        Asked(probes=read_probes, folder=COMPLETIONS),
    ),
    spent=spent,
)
