"""The best name for replies that differ: a build, another model, a penalty, or noise and its like.

Names are given once the verdict is there; none of them is its ground. Posterior over one half noise
of no known build and one half the columns, evenly (`posterior`); and the best of a list is no fit:
what is named must explain the replies as calibrated stacks explain theirs (`goodness_of_fit`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import compress
from typing import Final

from verifier.checks.check import (
    CAUSE,
    NEAR_SAMPLER,
    SAMPLER,
    SINGLE,
    Account,
    Case,
    Check,
    Session,
    make_finding,
    scale_of,
)
from verifier.evidence.e_values import confidence_sequence
from verifier.evidence.ledger import SAMPLER as PENALTY
from verifier.evidence.ledger import TEXT_SCALES, Ledger
from verifier.evidence.noise import SAMPLED_FROM
from verifier.evidence.posterior import NO_BUILD, Ranked, is_out, rank, scored_among
from verifier.plan_file import read_probes
from verifier.records import REFERENCE, Decision, Finding, Probe, Reply
from verifier.reference.variants import VARIANTS
from verifier.scoring.loadable import nameable
from verifier.wording import BELONGS_AT, describe_odds, describe_replies, name_noise

#: Replies on which a cause is named: more tell little, and each is scored under every build.
NAMING_REPLIES: Final = 24

#: Replies on which builds are screened first, where all replies differ.
SCREENED: Final = 3

#: The cause where no column fits as calibrated stacks fit theirs.
NOTHING_FITS: Final = "not this model as published, and nothing else that we know"

#: The same, where its prompts are counted by another tokenizer.
ANOTHER_FAMILY: Final = "a model of another family"


# -- what is scored ----------------------------------------------------------------------------


def ask(session: Session, case: Case, _kept: None) -> bool:
    """Score the first replies under every build, suspect and penalty, for a name."""
    if session.pack is not None:  # its builds are columns from the first reply on
        return False
    sought = case.seeks_cause and not case.template_is_all and case.build is None
    single = any(f.name == SINGLE and f.decision == "detected" for f in case.findings)
    if case.decision != "inconsistent" or not (sought or single):
        return False
    if not session.finish(CHECK.name):
        return False
    session.score()
    able = session.reference.engine.scores_samplers
    out = fall_out(session) if sought and not suspicious(case) else frozenset()
    score_for_name(session, case, sought=sought, penalties=able, without=out)
    return True


def score_for_name(
    session: Session, case: Case, *, sought: bool, penalties: bool,
    without: Collection[str] = (),
) -> None:  # fmt: skip
    """Score the first replies under penalties and, where a name is `sought`, under other weights,
    `without` those that are out.

    Where only some replies are wrong, they come first: they tell what served them.
    """
    first = suspicious(case)
    weights = nameable(session.plan, session.reference, session.show) if sought else ()
    ranked = sorted(_replied(session), key=lambda probe: probe.id not in first)
    session.score_columns(
        ranked[:NAMING_REPLIES],
        weights=tuple(name for name in weights if name not in without),
        penalties=penalties,
    )


def fall_out(session: Session) -> frozenset[str]:
    """The builds that a few replies show to be none that is served: no more are scored under them.

    For others, that one of these would be named is not lost but by an error of beta.
    """
    plan, engine = session.plan, session.reference.engine
    builds = tuple(name for name in plan.bank if engine.can_load(name))
    ledger = session.score_columns(_replied(session)[:SCREENED], weights=builds).ordinary
    channel = plan.calibration.text
    return frozenset(
        name for name in builds
        if is_out(ledger, name, channel, odds=1 / plan.alpha, error=plan.beta)
    )  # fmt: skip


def _replied(session: Session) -> list[Probe]:
    """The ordinary probes that have a reply, in the order they are asked."""
    outcomes = session.outcomes()
    return [p for p in read_probes(session.run) if isinstance(outcomes.get(p.id), Reply)]


def suspicious(case: Case) -> frozenset[str]:
    """The probes whose replies come from something else, where only a part of all do."""
    found = None if case.report is None else case.report.substitution
    if found is None or not any(f.aspect == "substitution" for f in case.findings):
        return frozenset()
    return frozenset(name for name, chance in found.replies if chance >= BELONGS_AT)


# -- what it says ------------------------------------------------------------------------------


def find(case: Case, _evidence: None, account: Account, _found: Sequence[Finding]) -> list[Finding]:
    """The penalty that greedy replies are made under."""
    return [] if account.penalty is None else [_find_penalty(case, account.penalty)]


def _find_penalty(case: Case, named: Ranked) -> Finding:
    """The sampler finding of a penalty on greedy replies, against all that is not of its kind.

    One that leaves noise beyond honest serving is only the nearest: nothing is named for sure.
    """
    kind = _kind(named.column)
    others = {name: score for name, score in named.scores.items() if _kind(name) != kind}
    second = max(others, key=lambda name: others[name])
    log_odds = named.scores[named.column] - others[second]
    alike = [
        name.rpartition(" ")[2] for name, score in named.scores.items()
        if _kind(name) == kind and score > named.scores[named.column] - math.log(20)
    ]  # fmt: skip
    among = f" ({' or '.join(sorted(alike, key=float))})" if len(alike) > 1 else ""
    runner = second.removeprefix(PENALTY) or NO_BUILD
    near = named.best_fit.fails(case.plan.beta)
    detail = (
        f"in greedy replies; {'explains' if near else 'fits'} {describe_replies(named.replies)} "
        f"better than {runner}, odds {describe_odds(log_odds)} to 1"
    )
    if near:
        detail += f"; even so, noise of a scale of {named.best_fit.scale:.2g} is left"
    name = named.column.removeprefix(PENALTY) + among
    if near:
        return make_finding(SAMPLER, "undecided", NEAR_SAMPLER + name, log_odds, detail)
    return make_finding(SAMPLER, "detected", name, log_odds, detail)


def _kind(column: str) -> str:
    """A column's name without its setting."""
    return column.rpartition(" ")[0] if column.startswith(PENALTY) else column


def name_it(
    case: Case, _evidence: None, account: Account, found: Sequence[Finding], decision: Decision
) -> list[Finding]:
    """The best name, of the replies that the account singles out or of all.

    Where nothing fits, prompts that are counted as by another tokenizer tell another family from
    roundings that nobody knows.
    """
    if decision != "inconsistent" or account.names not in ("part", "weights"):
        return []
    plan, ledger, text = case.plan, case.ordinary, case.text
    if account.members is not None:
        ledger = Ledger(rows=tuple(compress(case.scored, account.members)))
        text = text[account.members]
        if account.names == "part" and not ledger.rows:
            return []
    scale = scale_of(case, confidence_sequence(text, TEXT_SCALES, level=1 - plan.beta))
    like = name_noise(scale) if len(text) else "reported log-probabilities"
    known = scored_among(ledger, (*plan.bank, *plan.suspects))
    named = rank(ledger, known, plan.calibration.text)
    if named is None:
        return [make_finding(CAUSE, "undecided", like, None, "no build was scored")]
    if named.stands_out:
        return [_name_best(case, named)]
    counted = next(
        (f.name for f in found if f.aspect == "tokenizer" and f.decision == "detected"), None
    )
    far = scale.estimate is not None and scale.estimate >= SAMPLED_FROM
    unread = [name for name in plan.suspects if name not in known]
    return [_name_none(case, named, like, counted=counted, far=far, unread=unread)]


def _name_none(
    case: Case, named: Ranked, like: str, *, counted: str | None, far: bool, unread: Sequence[str]
) -> Finding:
    """What noise of no known build is like; `far` from the weights, that nothing fits."""
    detail = f"no build of the bank fits better; the nearest is {named.column or named.second}"
    if far and all(fit.fails(case.plan.beta) for fit in named.fits):
        like = NOTHING_FITS if counted is None else f"{ANOTHER_FAMILY}: {counted}"
        detail = _how_far(named)
    if far:
        detail += "; another model, another prompt, or sampling in spite of temperature 0"
    if unread:
        detail += f"; not compared with {', '.join(unread)}"
    return make_finding(CAUSE, "undecided", like, None, detail)


def _name_best(case: Case, named: Ranked) -> Finding:
    """The column that stands out; one that does not fit is only the nearest."""
    best, suspects = named.column, case.plan.suspects
    what = VARIANTS[best].summary if best in VARIANTS else "a checkpoint that the card names"
    own = named.best_fit
    near = own.fails(case.plan.beta)
    detail = (
        f"{suspects.get(best, what)}; {'explains' if near else 'fits'} "
        f"{describe_replies(named.replies)} better than "
        f"{named.second or NO_BUILD}, odds {describe_odds(named.log_odds)} to 1"
    )
    if near:
        detail += (
            f"; even so, noise of a scale of {own.scale:.2g} is left, {own.divergence:.2g} "
            "nats per token beyond honest serving of it"
        )
    if best in suspects:
        replies = "the replies are nearest to" if near else "the replies are those of"
        detail = f"{replies} {best}: {detail}"
    if near:  # to be near weights is not to be those weights
        name = f"a {'model' if best in suspects else 'build'} near {best}"
        return make_finding(CAUSE, "undecided", name, None, detail)
    return make_finding(CAUSE, "detected", best, named.log_odds, detail)


def _how_far(named: Ranked) -> str:
    """How far the replies are from every column."""
    away = {fit.column: f"{fit.divergence:.2g}" for fit in named.fits}
    nearest = next(fit.column for fit in named.fits if fit.column != REFERENCE)
    return (
        f"{away[REFERENCE]} nats per token from the published weights and {away[nearest]} "
        f"from the nearest build, {nearest}, each beyond honest serving"
    )


CHECK: Final = Check[None, None](
    name="cause",
    aspects=(SAMPLER, CAUSE),
    find=find,
    name_it=name_it,
    ask={"naming": ask},
)
