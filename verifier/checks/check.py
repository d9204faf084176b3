"""The seam: what a check is, and what it is given.

A check is one file or small folder: what it plans, asks, scores, keeps, weighs, finds, names and
remarks, and when it wants more. No check imports another: what it needs of others is in the `Case`
and the `Account`. `checks/README.md` says how to write one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Protocol, TypeVar

from verifier.config import RunFile
from verifier.evidence.arrays import Array, Mask
from verifier.evidence.calibration import Calibration
from verifier.evidence.e_values import Interval, confidence_sequence
from verifier.evidence.ledger import TEXT_SCALES, Ledger, Row
from verifier.evidence.noise import (
    ABOVE,
    SAMPLED_FROM,
    honest_scales,
    log_e_noise,
    noise_scale,
    read_text,
)
from verifier.evidence.posterior import ENOUGH, Ranked, leading_build
from verifier.evidence.reporting import Reports, judge_reports
from verifier.files.run_folder import EXCHANGES
from verifier.host.budget import NOTHING, Amount, Purse
from verifier.host.endpoint import Endpoint
from verifier.plan_file import Plan
from verifier.probes import Pool
from verifier.progress import Pace, Show
from verifier.records import (
    REFERENCE,
    Attempt,
    Decision,
    Finding,
    NoiseScale,
    Outcome,
    Probe,
    Report,
    Request,
    Status,
)
from verifier.reference.cards import Card
from verifier.reference.loaded import Reference

if TYPE_CHECKING:
    from verifier.reference.pack_file import Pack

#: What a check keeps in the run folder, and its evidence.
K = TypeVar("K")
E = TypeVar("E")

#: When a check asks: before the ordinary probes, with them, at temperature 1, for what is long, for
#: the name of what differs, and at last beside a verdict.
Stage = Literal["before", "ordinary", "sampled", "long", "naming", "beside"]
STAGES: Final[tuple[Stage, ...]] = ("before", "ordinary", "sampled", "long", "naming", "beside")

#: The finding's name while it is not known how single tokens of greedy replies come about.
SINGLE: Final = "single tokens other than the likeliest, at temperature 0"

#: How the name of a sampler begins that leads, and does not fit by itself: it names nothing.
NEAR_SAMPLER: Final = "a sampler near "

#: What a rendering is called that explains chats by being no known one.
UNKNOWN_RENDERING: Final = "a rendering that is not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aspect:
    """What findings may be about: everything that is said of them as a kind."""

    name: str  # as it stands in report.json
    label: str  # in words
    place: int  # in the report, ascending
    role: Literal["departure", "name", "remark"] = "departure"
    required: bool = False  # a consistent verdict needs it excluded, unless it was not run
    of_policy: bool = False  # the policy names it: not run, it is not excluded either
    of_weights: bool = False  # quiet greedy replies exclude every one of these
    greedy: bool = False  # decided by greedy replies: nothing else is asked while one is open
    without_reference: bool = False  # holds even where the reference is in doubt
    said: str = ""  # how a summary goes on that names what is detected; "": none does


#: Aspects of which several checks speak.
SAMPLER: Final = Aspect(name="sampler", label="how it samples", place=50, required=True)
CAUSE: Final = Aspect(name="cause", label="cause", place=140, role="name")


@dataclass(frozen=True, kw_only=True)
class Weighed(Generic[E]):
    """One check's evidence, before any threshold.

    `log_e` has one value (nats, against honest serving) for each share of the check, the mean of
    each e-value at most 1 at every stopping time. Planned and not there yet: 0. Asked for on cause
    and not asked: -inf, so that its share is reserved before the data.
    """

    evidence: E
    log_e: tuple[float, ...] = ()
    #: The same against the published weights with noise of *any* scale, which no honest floor is
    #: needed for; (): it has none that is not of noise.
    at_any_noise: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """What a reader must know beside the verdict, and where among the notes it stands."""

    text: str
    at: Literal["first", "evidence", "answers", "beside", "last"] = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What accounts for the ordinary replies; made by `explain`, read by every check."""

    by: Literal["published", "template", "penalty", "completions"]
    column: str | None  # of the ledger, that the replies are judged under; None: as published
    text: Array  # [n, S], read as calibrated
    interval: Interval | None  # of the noise scale of `text`
    unknown_words: bool  # chats have words nobody knows: what is left under it is no noise
    differs: bool  # all evidence reaches 1/alpha
    greedy_differs: bool  # that of the greedy replies alone does
    penalty: Ranked | None  # where `by` says so
    template: str | None  # the column of a template fault that the replies name
    faults: tuple[str, ...]  # that the endpoint's own prompts show, once the replies differ
    #: Who names what differs: the template by its evidence, by what is shown, or as unknown; a part
    #: of the replies; or the weights. None: nothing differs.
    names: Literal["template", "shown prompt", "completions", "part", "weights"] | None
    members: Mask | None  # the replies whose cause is sought, of `Case.text`; None: all of them
    #: The column nearest to a rendering that is not known, where the replies show that there is
    #: one; None: none does, or the rendering is named.
    nearest: str | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run folder, read once between two requests: nothing below reads it again."""

    run: Path
    plan: Plan
    ledger: Ledger
    default: str = ""  # of the publisher's, that it decodes greedily under; "": under none
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    attempts: Sequence[Attempt] = ()
    unanswered: tuple[Request, ...] = ()  # sent, and no attempt on record
    probes: tuple[Probe, ...] = ()  # the ordinary ones, as they are planned
    kept: Mapping[str, Any] = field(default_factory=dict)  # what each check keeps, by its name
    aspects: Mapping[str, Aspect] = field(default_factory=dict)
    needed: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # see `Check.shares`
    reference: str = ""  # how it differs from the calibrated one, see `stacks`; "": it does not
    deadline_s: float | None = None  # at which the last command ended; None: at none
    report: Report | None = None  # as of this reading; None before it is decided
    log_e: float = 0.0  # of everything, against honest serving (nats)
    log_e_any_noise: float = -math.inf  # of what does not rest on the honest floor
    seeks_cause: bool = False  # whether a name is sought for weights that differ

    @cached_property
    def ordinary(self) -> Ledger:
        """The rows of ordinary probes: what calibration speaks of."""
        return self.ledger.ordinary

    @cached_property
    def scored(self) -> tuple[Row, ...]:
        """The ordinary rows that `text` has, in its order."""
        return tuple(row for row in self.ordinary.rows if REFERENCE in row.text)

    @cached_property
    def judged(self) -> int:
        """How many ordinary replies are judged: by their likelihood, or by where they leave those
        of a trusted host."""
        return sum(REFERENCE in row.text or row.left is not None for row in self.ordinary.rows)

    @cached_property
    def text(self) -> Array:
        """Rows [n, S] of ordinary replies under the published weights, read as calibrated."""
        return read_text(self.ordinary, REFERENCE, self.plan.calibration.text)

    @cached_property
    def honest(self) -> Mask:
        """Which scales [S] of the text channel honest serving may have."""
        return honest_scales(TEXT_SCALES, self.plan.calibration.text)

    @cached_property
    def interval(self) -> Interval | None:
        """The confidence sequence of the noise scale, at the policy's beta."""
        return confidence_sequence(self.text, TEXT_SCALES, level=1 - self.plan.beta)

    @cached_property
    def panel(self) -> Array:
        """Rows [n, S] of replies that were asked to tell templates apart, read as calibrated."""
        rows = tuple(r for r in self.ledger.rows if r.panel and REFERENCE in r.text)
        return read_text(replace(self.ledger, rows=rows), REFERENCE, self.plan.calibration.text)

    @cached_property
    def reports(self) -> Reports:
        """What the endpoint reports of the tokens of ordinary replies, and whether it is believed.

        Held against the text under the published weights, at the policy's beta.
        """
        plan = self.plan
        return judge_reports(self.ordinary, self.interval, plan.calibration, level=plan.beta)

    @property
    def tokens_scored(self) -> int:
        """Completion tokens of all scored rows."""
        return sum(row.tokens for row in self.ledger.rows)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of the report; none before there is one."""
        return () if self.report is None else self.report.findings

    @property
    def names_template(self) -> bool:
        """Whether the report names a template fault of the catalogue."""
        return any(f.aspect == "template" and f.name != UNKNOWN_RENDERING for f in self.findings)

    @property
    def template_is_all(self) -> bool:
        """Whether a template fault is named that leaves no noise: no cause beside it is sought."""
        return self.names_template and not any(f.aspect == CAUSE.name for f in self.findings)

    @cached_property
    def build(self) -> str | None:
        """The build that explains the ordinary replies by itself, on ENOUGH of them: no other cause
        need be sought. None: there is none."""
        plan = self.plan
        found = leading_build(
            self.ordinary, plan.bank, plan.calibration.text, odds=1 / plan.alpha, error=plan.beta
        )
        return None if found is None or found.replies < ENOUGH else found.column

    @property
    def decision(self) -> Decision:
        """That of the report; open before there is one."""
        return "inconclusive" if self.report is None else self.report.decision


class Session(Protocol):
    """An audit under way, as a check sees it: asks within the budget, scores, reads the case."""

    @property
    def run(self) -> Path: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def config(self) -> RunFile: ...
    @property
    def reference(self) -> Reference: ...
    @property
    def pack(self) -> Pack | None:
        """What stands in the place of the reference; None: weights are at hand."""

    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def show(self) -> Show: ...
    @property
    def pace(self) -> Pace: ...

    def ask(
        self, probes: tuple[Probe, ...], *, direct: Endpoint | None = None, folder: str = ""
    ) -> bool:
        """Ask as many as the budget pays for; whether to ask more: all have an outcome, and the
        endpoint is not dead. `direct` is another way to ask, `folder` one within the run folder."""

    def outcomes(self, folder: str = "") -> Mapping[str, Outcome]:
        """What has come of each probe so far."""

    def purse(self) -> Purse:
        """What may be spent on requests that are paid one by one."""

    def score(self) -> None:
        """Score what has arrived, as every check does, and write the ledger."""

    def score_columns(
        self,
        probes: Sequence[Probe],
        *,
        weights: Sequence[str] = (),
        templates: Sequence[str] = (),
        penalties: bool = False,
    ) -> Ledger:
        """Score the replies to some probes under the published weights and these columns, and write
        the ledger. `penalties` are those that greedy replies may be made under."""

    def finish(self, what: str) -> bool:
        """Mark something as done in this command; False where it has been already."""

    def finished(self, what: str) -> bool:
        """Whether something has been marked as done in this command."""

    def needed(self, check: str) -> tuple[float, ...]:
        """The evidence (nats) that each share of a check must reach by itself, see `Case`."""

    def wants_ordinary(self, case: Case) -> bool:
        """Whether ordinary replies may still tell: the verdict is open, and no stage's turn has
        come, or a check wants more of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Requests of a check: the probes that a run folder holds, and the file that has the answers.

    Budget and page know by it what was asked, and the forecast what is planned.
    """

    probes: Callable[[Path], tuple[Probe, ...]]
    exchanges: str = EXCHANGES
    folder: str = ""  # within the run folder; "": the run folder itself
    planned: bool = False  # whether they are drawn with the plan
    in_ledger: bool = False  # whether their replies are rows of the ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a check adds to a plan: fields of it, and what it keeps of the budget."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0  # completion tokens that are kept for it
    share: float = 0.0  # of the budget's completion tokens, kept for it
    beside: str = ""  # what a budget that is too small is said to be needed for
    problem: str = ""  # what stands against the budget, where it pays for a verdict otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a check may ask beside the ordinary probes, on top of their forecast."""

    expected: Amount = NOTHING
    most: Amount = NOTHING


_NOTHING_KEPT: Final[Any] = None


def _keeps_nothing(_run: Path, _plan: Plan, _outcomes: Mapping[str, Outcome]) -> Any:
    return _NOTHING_KEPT


def _nothing_planned(_config: RunFile, _card: Card, _calibration: Calibration | None) -> Planned:
    return Planned()


def _draws_nothing(_config: RunFile, _plan: Plan, _pool: Pool, _drawn: int) -> None:
    return None


def _nothing_reserved(_plan: Plan) -> Amount:
    return NOTHING


def _no_forecast(_plan: Plan) -> Forecast:
    return Forecast()


def _no_shares(_plan: Plan) -> tuple[float, ...]:
    return ()


def _no_evidence(_case: Case, _kept: Any) -> Weighed[Any]:
    return Weighed(evidence=None)


def _finds_nothing(*_given: Any) -> list[Finding]:
    return []


def _says_nothing(*_given: Any) -> list[Remark]:
    return []


def _no_headline(_findings: Sequence[Finding]) -> str | None:
    return None


def _nothing_spent(_kept: Any) -> Amount | None:
    return None


def _scores_nothing(_session: Session) -> None:
    return None


def _never(_case: Case) -> bool:
    return False


def _as_it_is(_kept: Any, endpoint: Endpoint) -> Endpoint:
    return endpoint


@dataclass(frozen=True, kw_only=True)
class Check(Generic[K, E]):
    """Everything about one check. What it leaves out has a default that does nothing."""

    name: str
    read: Callable[[Path, Plan, Mapping[str, Outcome]], K] = _keeps_nothing
    # What it keeps in the run folder beside probes, exchanges and scores, checked: a folder may
    # come from a stranger. Raises ConfigError. The outcomes are those of the run folder.
    none: K = _NOTHING_KEPT  # what `read` gives where nothing was asked
    aspects: tuple[Aspect, ...] = ()

    plan: Callable[[RunFile, Card, Calibration | None], Planned] = _nothing_planned
    # Raises ConfigError for what the card cannot serve.
    arrange: Callable[[Plan, tuple[Probe, ...]], tuple[Probe, ...]] = lambda _plan, probes: probes
    # The ordinary probes as it needs them asked.
    draw: Callable[[RunFile, Plan, Pool, int], tuple[str, tuple[Probe, ...]] | None] = (
        _draws_nothing
    )
    # A file of further probes, drawn from the pool behind as many ordinary ones.
    reserve: Callable[[Plan], Amount] = _nothing_reserved
    # What of the budget is kept until its stage.
    forecast: Callable[[Plan], Forecast] = _no_forecast

    shares: Callable[[Plan], tuple[float, ...]] = _no_shares
    # Of all evidence, fixed in the plan. `Case.needed` has what each must reach by itself, in nats.
    weigh: Callable[[Case, K], Weighed[E]] = _no_evidence
    # Null, assumptions, error controlled, source: pure, the only place of its arithmetic.
    find: Callable[[Case, E, Account, Sequence[Finding]], list[Finding]] = _finds_nothing
    # Its departures, before there is a decision; earlier findings are at hand.
    name_it: Callable[[Case, E, Account, Sequence[Finding], Decision], list[Finding]] = (
        _finds_nothing
    )
    # Names and remarks, once there is a decision; none of them is its ground.
    remarks: Callable[[Case, E, Account, Sequence[Finding]], list[Remark]] = _says_nothing
    headline: Callable[[Sequence[Finding]], str | None] = _no_headline
    # What the replies differ in, where that is not the weights: no cause is sought among these.

    tune: Callable[[K, Endpoint], Endpoint] = _as_it_is
    # The endpoint, asked for what works alone.
    ask: Mapping[Stage, Callable[[Session, Case, K], bool]] = field(default_factory=dict)
    # Ask one round through the session, and score it; False once it has had enough, or nothing more
    # may be spent.
    score: Callable[[Session], None] = _scores_nothing
    # Score what has arrived and lacks it; idempotent.
    ready: Callable[[Case], bool] = _never
    # Whether its stage's turn has come, although the verdict is open.
    more: Callable[[Case], bool] = _never
    # Whether more ordinary replies may tell it something, although there is a verdict.

    asked: tuple[Asked, ...] = ()
    spent: Callable[[K], Amount | None] = _nothing_spent
    # What was asked for other ends than scoring, as it counts; None: nothing was.
    own_probes: tuple[str, ...] = ()
    # How the ids of probes begin whose outcomes its own finding speaks of.


def make_finding(
    aspect: Aspect,
    decision: Status,
    name: str,
    log_e: float | None,
    detail: str,
    tokens_needed: int | None = None,
) -> Finding:
    """A finding on an aspect; `log_e` (nats) is that of the e-value for the departure."""
    return Finding(
        aspect=aspect.name,
        decision=decision,
        name=name,
        log_e=None if log_e is None else round(log_e + 0.0, 4),
        detail=detail,
        tokens_needed=tokens_needed,
    )


def make_weighed(
    case: Case, aspect: Aspect, name: str, *, towards: float, against: float,
    excluded: str, detected: str, undecided: str,
) -> Finding:  # fmt: skip
    """A finding from the log e-values towards and against a departure, each needed to reach 1/beta.

    The three texts are its detail in each case.
    """
    needed = math.log(1 / case.plan.beta)
    if against >= needed:
        return make_finding(aspect, "excluded", name, -against, excluded)
    if towards >= needed:
        return make_finding(aspect, "detected", name, towards, detected)
    leading = max(against, towards)
    more = math.ceil((needed - leading) * case.tokens_scored / leading) if leading > 0 else None
    log_e = towards if towards > against else -against
    return make_finding(aspect, "undecided", name, log_e, undecided, more)


def greedy_is_quiet(case: Case, findings: Sequence[Finding]) -> bool:
    """Whether the greedy replies exclude every departure of the weights that could be judged."""
    judged = [
        f.decision for f in findings
        if case.aspects[f.aspect].of_weights and f.decision != "not run"
    ]  # fmt: skip
    return bool(judged) and all(decision == "excluded" for decision in judged)


def above_floor(case: Case, interval: Interval | None) -> bool:
    """Whether noise is shown to be above what any measured stack reaches."""
    floor = case.plan.calibration.text.honest_scale
    return interval is not None and interval.lower > floor * ABOVE


def is_between(case: Case) -> bool:
    """Whether the noise is shown to lie above the floor, and below what is held against anyone.

    More replies change nothing then: there is no verdict.
    """
    found, end = case.interval, case.plan.calibration.text.tolerated
    below = found is not None and found.upper is not None and found.upper <= end * ABOVE
    return below and above_floor(case, found)


def beyond_reach(plan: Plan) -> tuple[str, ...]:
    """The departures of the policy that no audit on this card excludes, for its honest noise hides
    them: classes within the floor, and shares of such as are within what is tolerated."""
    channel, scales = plan.calibration.text, {c.name: c.scale for c in plan.calibration.classes}
    floor, end = channel.honest_scale * ABOVE, channel.tolerated * ABOVE
    return (
        *(name for name in plan.policy.noise if scales[name] <= floor),
        *(f"shares of {name}" for name in plan.policy.routed if scales[name] <= end),
    )


def tells_no_more(case: Case) -> bool:
    """Whether more ordinary replies change nothing, though there is no verdict.

    The noise is between floor and what is tolerated; or all that the policy names is settled, but
    for what is beyond reach on this card.
    """
    settled = not any(
        f.decision in ("undecided", "detected")
        for f in case.findings if case.aspects[f.aspect].of_policy
    )  # fmt: skip
    quiet = case.report is not None and greedy_is_quiet(case, case.findings)
    return is_between(case) or bool(beyond_reach(case.plan) and settled and quiet)


def panel_is_quiet(case: Case) -> bool:
    """Whether replies that were asked to tell templates apart may come from honest serving."""
    log_e = log_e_noise(case.panel, TEXT_SCALES, case.plan.calibration.text)
    return log_e < math.log(1 / case.plan.beta)


def greedy_is_settled(case: Case) -> bool:
    """Whether the greedy replies are many enough, and exclude all else, so that it is the turn of
    what is asked at a cost: samples, and long prompts."""
    assert case.report is not None
    decided = all(
        f.decision != "undecided"
        for f in case.findings
        if case.aspects[f.aspect].greedy or f.name == SINGLE
    )
    enough = case.judged >= case.plan.min_replies
    return greedy_is_quiet(case, case.findings) and decided and enough


def is_far(case: Case) -> bool:
    """Whether greedy replies are as far from the published weights as another model's would be."""
    estimate = None if case.report is None else case.report.noise_scale.estimate
    return estimate is not None and estimate >= SAMPLED_FROM


def scale_of(case: Case, interval: Interval | None) -> NoiseScale:
    """The noise scale of a report, beside what is known of the builds of the plan."""
    plan = case.plan
    return noise_scale(interval, plan.calibration, bank=plan.bank, level=1 - plan.beta)
