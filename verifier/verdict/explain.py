"""The order among explanations: what accounts for the ordinary replies, and who names the rest.

Template before weights, by its own evidence before what the endpoint shows; a penalty before noise;
text completions, where they fit, before all that is judged of chats; a part of the replies before
all of them, and of these one way of asking. It stands here alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from verifier.checks import CHECKS, request_strata, substitution
from verifier.checks.check import Account, Case
from verifier.checks.template import findings as template
from verifier.checks.template.naming import is_unknown
from verifier.evidence.arrays import Array
from verifier.evidence.e_values import confidence_sequence
from verifier.evidence.ledger import TEMPLATE, TEXT_SCALES
from verifier.evidence.noise import read_text
from verifier.evidence.posterior import Ranked, rank_penalties
from verifier.records import Finding
from verifier.verdict.combine import Combined

_By = Literal["published", "template", "penalty", "completions"]

#: The column of chats that are rendered in no known way.
_UNKNOWN: Final = TEMPLATE


def explain(case: Case, combined: Combined) -> Account:
    """What accounts for the ordinary replies; noise is judged under it."""
    plan, of_template = case.plan, combined.of(template.CHECK)
    bypass = of_template.kept.completions
    decided = math.log(1 / plan.alpha)
    differs = combined.log_e >= decided
    rendered = _rendered(case, of_template, differs=differs)
    column, nearest, penalty = rendered.column, rendered.nearest, None
    if column is None and not rendered.faults and differs:
        penalty = rank_penalties(case.ordinary, plan.bank, plan.calibration.text)
    judged = column if penalty is None else penalty.column
    text, how = _judged_text(case, column, penalty)
    unknown_words, unknown_rendering = rendered.unknown_words, False
    if bypass is not None and bypass.fits and differs:  # the weights, without the template
        text, how, unknown_words = bypass.text, "completions", False
        unknown_rendering = (judged is None or judged == nearest) and not rendered.faults
        judged = _UNKNOWN if unknown_rendering else judged
    account = Account(
        by=how,
        column=judged,
        text=text,
        interval=confidence_sequence(text, TEXT_SCALES, level=1 - plan.beta),
        unknown_words=unknown_words,
        differs=differs,
        greedy_differs=combined.log_e_greedy >= decided,
        penalty=penalty,
        template=rendered.named,
        faults=rendered.faults,
        names=None,
        members=None,
        nearest=nearest,
    )
    return _who_names(case, combined, account, unknown_rendering=unknown_rendering)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rendered:
    """Which rendering accounts for the replies, if one does; names are columns of the ledger."""

    column: str | None  # that they are judged under
    named: str | None  # of a fault that fits
    nearest: str | None  # of one that does not, and is nearer than the published one
    faults: tuple[str, ...]  # that the endpoint's own prompts show
    unknown_words: bool


def _rendered(case: Case, evidence: template.Evidence, *, differs: bool) -> _Rendered:
    """The rendering by its own evidence, before what the endpoint shows of its prompts."""
    fault = template.named_fault(case, evidence)
    named = fault.column if fault is not None and fault.names else None
    nearest = fault.column if fault is not None and not fault.names else None
    faults = template.faults_shown(evidence) if differs else ()
    column = named
    if column is None and faults:
        scored = {name for row in case.ledger.rows for name in row.text}
        column = next((TEMPLATE + name for name in faults if TEMPLATE + name in scored), None)
    unknown_words = is_unknown(column) or (column is None and nearest is not None)
    return _Rendered(
        column=nearest if column is None else column, named=named, nearest=nearest, faults=faults,
        unknown_words=unknown_words,
    )  # fmt: skip


def _judged_text(case: Case, column: str | None, penalty: Ranked | None) -> tuple[Array, _By]:
    """The rows [n, S] that noise is judged on: under what was rendered, or under a penalty."""
    channel = case.plan.calibration.text
    if column is not None:
        return read_text(case.ledger, column, channel), "template"
    if penalty is not None:
        return read_text(case.ordinary, penalty.column, channel), "penalty"
    return case.text, "published"


def _who_names(
    case: Case, combined: Combined, account: Account, *, unknown_rendering: bool
) -> Account:
    """The account, with what is to be named, and of which replies."""
    if account.template is not None:
        return replace(account, names="template")
    if account.faults:
        return replace(account, names="shown prompt")
    if unknown_rendering:
        return replace(account, names="completions")
    if account.nearest is not None:
        return replace(account, names="template")
    if not account.differs:
        return account
    part = substitution.members(case, combined.of(substitution.CHECK))
    if part is not None and account.by == "published":
        return replace(account, names="part", members=part)
    apart = request_strata.members(case, combined.of(request_strata.CHECK))
    return replace(account, names="weights", members=apart)


def headline(findings: Sequence[Finding]) -> str | None:
    """What the replies differ in, where that is not the weights: no cause is sought among these.

    The last check that says so has the word: what is long before what is sampled.
    """
    said = [check.headline(findings) for check in CHECKS]
    return next((line for line in reversed(said) if line is not None), None)
