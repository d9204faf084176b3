"""Ways of asking that a host may look at: whether the replies to one of them alone differ.

A host that serves the published weights only to short requests, to those that ask for
log-probabilities, to streams, or to the first ones, is asked in all these ways at random. Null of
the evidence: every reply comes from the published weights at honest noise; each stratum's replies
alone are held against it, and the strata mixed evenly. To *name* a stratum two more things are
asked for. An e-value against "one noise scale for all replies" (universal inference: Wasserman,
Ramdas and Balakrishnan 2020): honest in the rest and more in the stratum, both mixed. And a
permutation test, since strata are drawn at random: under any host that does not look at how it is
asked, a part of whose replies may come from anywhere, labels can be exchanged (Phipson and Smyth
2010). It is looked at after LOOKS replies and nowhere between, each look at its part of NAMED_AT
(Bonferroni), so that it errs at NAMED_AT over all of them. Early and late replies alone are not
drawn at random: a host that changes with time earns these names without looking at anything.
Where a pack is named beside the weights, its questions are one stratum and fresh ones another: a
host that knows the pack answers it well, and differs on what nobody has asked before. Where the
pack was drawn from another pool, its questions are of another kind too, and that is named of none.
The verdict rests on the fresh ones alone, and so does all else: here both halves are at hand.
Assumption: replies are independent. Pure arithmetic.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from verifier.checks.check import Account, Aspect, Case, Check, Planned, Weighed, make_finding
from verifier.config import RunFile
from verifier.evidence.arrays import Array, Mask
from verifier.evidence.calibration import Calibration
from verifier.evidence.e_values import log_e_value, log_mean_exp
from verifier.evidence.ledger import Ledger, Row
from verifier.evidence.noise import read_text
from verifier.plan_file import Plan
from verifier.probes import OF_PACK, SHORT_TOKENS, STRATA
from verifier.records import REFERENCE, Decision, Finding, Probe, Status
from verifier.reference.cards import Card
from verifier.wording import describe_replies

#: Share of the strata in the evidence of an audit that asks in several ways.
STRATA_SHARE: Final = 0.1

STRATUM: Final = Aspect(name="strata", label="way of asking", place=150, role="name")

#: The share of the probes that ask for a short reply: these tell less.
SHORT_SHARE: Final = 0.25

#: Strata of which one says that requests *are* so.
_STATES: Final = ("streamed", "not streamed", "short", "long", "late", "early")

#: Replies after which a stratum may be named; between two of these the first ones alone count.
LOOKS: Final = (16, 22, 30, 38, 46)

#: Probes asked at most to tell which way of asking it is, once something is wrong.
MOST: Final = 48

#: A stratum is named when a random labelling does as well at most so often, over all looks.
NAMED_AT: Final = 0.01

#: Labellings drawn: so many that one in NAMED_AT / len(LOOKS) can be told by two of them.
_LABELLINGS: Final = 999

#: What is said of strata that are no matter of chance.
_IN_TIME: Final = ("late", "early")

_BY_PACK: Final = (*OF_PACK, *OF_PACK.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class StrataEvidence:
    """What the strata say, before any threshold."""

    log_e: float  # of more noise than honest in any one of them
    log_e_apart: float  # of it in one of them and honest noise in the rest, against one for all
    p_value: float  # how often a random labelling parts the first of them as well, over all looks
    best: str  # the stratum whose replies differ; "" where none can be
    replies: int  # of that stratum


def vary(probes: Sequence[Probe], *, seed: int, logprobs: bool) -> tuple[Probe, ...]:
    """Probes asked in ways drawn by the run's secret seed."""
    rng = random.Random(f"{seed}:strata")  # noqa: S311 - a seed is the secret
    found = []
    for probe in probes:
        silent, streamed, short = (rng.random() < p for p in (0.5, 0.5, SHORT_SHARE))
        found.append(
            replace(
                probe, logprobs=not (logprobs and silent), stream=streamed,
                max_tokens=min(SHORT_TOKENS, probe.max_tokens) if short else probe.max_tokens,
            )
        )  # fmt: skip
    return tuple(found)


def is_of(labels: Sequence[str], stratum: str) -> bool:
    """Whether a reply with these labels belongs to a stratum, or to what another leaves."""
    return any(
        stratum == (label if label in labels else others)
        for label, others in (STRATA | OF_PACK).items()
    )


def strata_of(plan: Plan) -> Mapping[str, str]:
    """The labels by which an audit asks in several ways, and what the others are called."""
    spot_checked = plan.pack is not None and plan.pack.with_weights
    return (STRATA if plan.varies else {}) | (OF_PACK if spot_checked else {})


def weigh_strata(
    rows: Array, labels: Sequence[Sequence[str]], honest: Mask, *, seed: int,
    strata: Mapping[str, str] = STRATA,
) -> StrataEvidence:  # fmt: skip
    """The evidence of rows [n, S], read as calibrated, with the labels of each.

    `honest` [S] are the scales of honest serving.
    """
    marked = np.array([[label in each for label in strata] for each in labels], dtype=bool)
    marked = marked.reshape(len(labels), len(strata))
    both = np.concatenate([marked, ~marked], axis=1)  # [n, 2 L]
    names = [*strata, *strata.values()]
    alone = [
        log_e_value(totals[~honest], totals[honest])
        for totals in both.T.astype(float) @ rows.reshape(len(labels), len(honest))
    ]
    apart = _apart(rows, both, honest)
    if not len(rows) or not np.isfinite(apart).any():
        return StrataEvidence(
            log_e=log_mean_exp(np.array(alone)), log_e_apart=0.0, p_value=1.0, best="", replies=0
        )
    best = int(apart.argmax())
    log_e_apart = float(np.logaddexp.reduce(apart) - np.log(len(apart)))
    return StrataEvidence(
        log_e=log_mean_exp(np.array(alone)),
        log_e_apart=log_e_apart,
        # where one scale explains all replies nothing is named, and nothing is drawn
        p_value=_p_value(rows, both, honest, seed=seed) if log_e_apart > 0 else 1.0,
        best=names[best],
        replies=int(both[:, best].sum()),
    )


def _p_value(rows: Array, members: Mask, honest: Mask, *, seed: int) -> float:
    """How often a random labelling parts the replies of the last look as well, times the looks.

    1 before the first look. What comes after the last one is not looked at.
    """
    look = max((n for n in LOOKS if n <= len(rows)), default=0)
    rows, members = rows[:look], members[:look]
    if not look:
        return 1.0
    best = float(_apart(rows, members, honest).max())
    rng = np.random.default_rng(seed)
    as_good = 1 + sum(
        float(_apart(rows, members[rng.permutation(look)], honest).max()) >= best
        for _ in range(_LABELLINGS)
    )
    return min(1.0, len(LOOKS) * as_good / (_LABELLINGS + 1))


def _apart(rows: Array, members: Mask, honest: Mask) -> Array:
    """Log e-values [L]: noise in a stratum and none in the rest, against one scale for all.

    -inf for a stratum of no replies, or of all.
    """
    chosen = members.T.astype(float) @ rows  # [L, S]
    whole = rows.sum(axis=0)
    values = (
        np.logaddexp.reduce(chosen[:, ~honest], axis=1) - np.log((~honest).sum())
        + np.logaddexp.reduce((whole - chosen)[:, honest], axis=1) - np.log(honest.sum())
        - whole.max()
    )  # fmt: skip
    sizes = members.sum(axis=0)
    return np.where((sizes > 0) & (sizes < len(rows)), values, -np.inf)


# -- the check ---------------------------------------------------------------------------------


def plan(config: RunFile, _card: Card, _calibration: Calibration | None) -> Planned:
    """Whether requests are asked in ways drawn at random."""
    return Planned(fields={"varies": config.audit.vary})


def arrange(plan: Plan, probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
    """The ordinary probes, asked in such ways."""
    return vary(probes, seed=plan.seed, logprobs=plan.top_logprobs > 0) if plan.varies else probes


def weigh(case: Case, _kept: None) -> Weighed[StrataEvidence | None]:
    """Each stratum alone; no evidence where all is asked in one way."""
    asked = strata_of(case.plan)
    if not asked:
        return Weighed(evidence=None)
    rows = _rows(case)
    text = read_text(Ledger(rows=rows), REFERENCE, case.plan.calibration.text)
    labels = [row.strata for row in rows]
    strata = weigh_strata(text, labels, case.honest, seed=case.plan.seed, strata=asked)
    return Weighed(evidence=strata, log_e=(strata.log_e,), at_any_noise=(strata.log_e_apart,))


def _rows(case: Case) -> tuple[Row, ...]:
    """The replies that are held against each other: those to known questions among them."""
    return tuple(row for row in case.ledger.with_known.rows if REFERENCE in row.text)


def stands_apart(case: Case, strata: StrataEvidence) -> bool:
    """Whether the replies of one stratum differ, and no others."""
    pack = case.plan.pack
    if strata.best in _BY_PACK and (pack is None or not pack.same_pool):
        return False
    return strata.p_value <= NAMED_AT and strata.log_e_apart >= math.log(1 / case.plan.beta)


def members(case: Case, strata: StrataEvidence | None) -> Mask | None:
    """The ordinary replies of the stratum that differs alone; None: none does, or all are of it."""
    if strata is None or not strata.best or strata.best in _BY_PACK:
        return None
    if not stands_apart(case, strata):
        return None
    return np.array([is_of(row.strata, strata.best) for row in case.scored])


def name_it(
    case: Case, strata: StrataEvidence | None, _account: Account, _found: Sequence[Finding],
    decision: Decision,
) -> list[Finding]:  # fmt: skip
    """The way of asking whose replies alone differ, where one stands out."""
    if decision != "inconsistent" or strata is None:
        return []
    if not strata.best or strata.log_e_apart <= 0:
        return []
    name = f"requests {strata.best}"
    if strata.best in _STATES:
        name = f"requests that are {strata.best}"
    told = f"{describe_replies(strata.replies)} asked so differ, others do not"
    chance = f"a random labelling parts them as well with probability {strata.p_value:.2g}"
    if len(_rows(case)) < LOOKS[0]:
        chance = f"fewer than {LOOKS[0]} replies do not tell how often chance does that"
    detail = f"{told}; {chance}"
    if strata.best in _IN_TIME:
        detail += "; what comes late is not drawn at random: a host that changes in time does this"
    if strata.best in _BY_PACK:
        detail += "; " + _on_pack(case)
    said: Status = "detected" if stands_apart(case, strata) else "undecided"
    return [make_finding(STRATUM, said, name, strata.log_e_apart, detail)]


def _on_pack(case: Case) -> str:
    """What a difference between known questions and others says, and what it does not."""
    pack = case.plan.pack
    if pack is not None and not pack.same_pool:
        return "the pack's questions were drawn from another pool, and may differ by themselves"
    return "a host that knows the pack's questions does this"


def more(case: Case) -> bool:
    """Whether more replies may tell which way of asking it is whose replies differ."""
    if not strata_of(case.plan) or case.decision != "inconsistent":
        return False
    found = [f.decision for f in case.findings if f.aspect == STRATUM.name]
    most = MOST if "undecided" in found else LOOKS[0]
    asked = sum(probe.id in case.outcomes for probe in case.probes)
    return "detected" not in found and asked < most


CHECK: Final = Check[None, StrataEvidence | None](
    name="request_strata",
    aspects=(STRATUM,),
    plan=plan,
    arrange=arrange,
    shares=lambda plan: (STRATA_SHARE,) if strata_of(plan) else (),
    weigh=weigh,
    name_it=name_it,
    more=more,
)
