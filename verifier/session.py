"""An audit under way: asks within the budget, scores what comes, reads the case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final

from verifier.checks import CHECKS
from verifier.checks.cause import NAMING_REPLIES
from verifier.checks.check import STAGES, Case, Check, Stage, is_between, tells_no_more
from verifier.config import RunFile
from verifier.evidence.ledger import Ledger
from verifier.evidence.samplers import made, penalty_columns
from verifier.files.run_folder import DEADLINE, EXCHANGES, LEDGER, write_json
from verifier.host.budget import Ceiling, Purse
from verifier.host.collect import STOP_AFTER_FAILURES, Record, collect
from verifier.host.endpoint import Endpoint
from verifier.plan_file import Plan
from verifier.progress import ALONE, Meter, Pace, Show, seldom
from verifier.records import Failure, Outcome, Probe, Report
from verifier.reference.loaded import LoadReference, Reference
from verifier.scoring.loadable import read_suspects
from verifier.scoring.score import score_replies
from verifier.scoring.score_file import Digests, ScoreBook
from verifier.verdict.case import read_case
from verifier.verdict.combine import needed
from verifier.verdict.decide import decided, publish
from verifier.wording import describe_about, describe_replies

if TYPE_CHECKING:
    from verifier.reference.pack_file import Pack

#: In these stages what was kept for the checks of so many stages is theirs.
_BEGUN: Final[Mapping[Stage, frozenset[Stage]]] = {
    "sampled": frozenset({"sampled"}),
    "long": frozenset({"sampled", "long"}),
    "beside": frozenset({"beside"}),
}


class Session:
    """One command on a run folder; `Session` of `checks.check` says what checks use of it."""

    def __init__(
        self,
        run: Path,
        plan: Plan,
        show: Show,
        *,
        config: RunFile | None = None,
        endpoint: Endpoint | None = None,
        load_reference: LoadReference | None = None,
        pack: Pack | None = None,
        pace: Pace = ALONE,
    ) -> None:
        """Without an endpoint nothing can be asked, without a reference or a pack nothing scored.

        `load_reference` is called whenever the reference is needed: it loads once.
        """
        self.run, self.plan, self.show, self.pace, self.pack = run, plan, show, pace, pack
        self._config = config
        self._endpoint, self._load_reference = endpoint, load_reference
        self._case: Case | None = None
        self._records: dict[tuple[str, str], Record] = {}
        self._digests = Digests()
        self._book: ScoreBook | None = None
        self._ledger: Ledger | None = None
        self._finished: set[str] = set()
        self._stage: Stage = STAGES[0]
        self._told = -1
        self._tell_of_waits = seldom(show.tell)
        self._meter = Meter(monotonic)  # by reply token and column

    # -- what checks use -----------------------------------------------------------------------

    @property
    def config(self) -> RunFile:
        """What was asked for."""
        assert self._config is not None
        return self._config

    @property
    def reference(self) -> Reference:
        """The local weights, loaded."""
        assert self._load_reference is not None
        return self._load_reference()

    @property
    def endpoint(self) -> Endpoint:
        """Where to ask, only for what works there, and as it is taken there."""
        assert self._endpoint is not None
        history = self._record("").history(max_attempts=self.plan.max_attempts)
        endpoint = replace(self._endpoint, shape=history.shape)
        for check in CHECKS if self._case is not None else ():
            endpoint = check.tune(self._kept(check), endpoint)
        return endpoint

    def _kept(self, check: Check[object, object]) -> object:
        return check.none if self._case is None else self._case.kept[check.name]

    def ask(
        self, probes: tuple[Probe, ...], *, direct: Endpoint | None = None, folder: str = ""
    ) -> bool:
        """Ask as many of `probes` as the budget pays for; short replies leave room for more.

        Whether to ask more: not when probes were left unasked, or all fail of late.
        """
        endpoint = self.endpoint if direct is None else direct
        every, record = self._probes_of(folder), self._record(folder)
        ceiling = self._less_reserved(self._ceiling_beside(folder))
        before = -1
        while (settled := len(self.outcomes(folder))) != before:
            collect(
                self.run / folder, endpoint, probes, record=record, ceiling=ceiling, every=every,
                progress=lambda done, of: self.show.step("asking", done, of),
                tell=self._tell_of_waits, stopped=self.pace.stopped,
            )  # fmt: skip
            before = settled
        outcomes = self.outcomes(folder)
        latest = list(outcomes.values())[-STOP_AFTER_FAILURES:]
        dead = len(latest) == STOP_AFTER_FAILURES and all(isinstance(o, Failure) for o in latest)
        return not dead and all(probe.id in outcomes for probe in probes)

    def outcomes(self, folder: str = "") -> Mapping[str, Outcome]:
        """What has come of each probe so far."""
        return self._record(folder).outcomes(max_attempts=self.plan.max_attempts)

    def purse(self) -> Purse:
        """What is left after every request so far, less what is kept for later."""
        purse = Purse(self._less_reserved(self._ceiling_beside("")))
        probes, count = self._probes_of(""), self.endpoint.count_tokens
        self._record("").book(purse, probes, count=count)
        return purse

    def score(self) -> None:
        """Score what has arrived, as every check does, and write the ledger."""
        for check in CHECKS:
            check.score(self)
        self.score_columns(())

    def score_columns(
        self,
        probes: Sequence[Probe],
        *,
        weights: Sequence[str] = (),
        templates: Sequence[str] = (),
        penalties: bool = False,
    ) -> Ledger:
        """Score the replies to some probes under these columns, and write the ledger.

        A pack has all of its columns at once, and says nothing under any other.
        """
        every = tuple(
            probe for check in CHECKS for asked in check.asked if asked.in_ledger
            for probe in asked.probes(self.run)
        )  # fmt: skip
        if self.pack is not None:
            from verifier.scoring.packed import score_from_pack

            self._ledger = score_from_pack(
                self.run, every, self.outcomes(), pack=self.pack, digest=self._digests
            )
            return self._ledger
        reference, plan = self.reference, self.plan
        others = set(weights) & set(plan.suspects)
        suspects = read_suspects(plan, reference, self.show) if others else {}
        if self._book is None:
            self._book = ScoreBook(self.run, digest=self._digests)
        with reference.busy, self._meter.running(self._cells):
            self._ledger = score_replies(
                self.run, probes, self.outcomes(), every=every, engine=reference.engine,
                tokenizer=reference.tokenizer, weights=weights, templates=templates,
                catalogue=reference.catalogue, thinking=plan.thinking, book=self._book,
                suspects={name: one for name, one in suspects.items() if name in others},
                penalties=penalty_columns() if penalties else {},
                defaults={name: made(of) for name, of in plan.greedy_defaults.items()},
                progress=lambda done, of: self.show.step("scoring", done, of),
            )  # fmt: skip
        return self._ledger

    def finish(self, what: str) -> bool:
        """Mark something as done in this command; False where it has been already."""
        new = what not in self._finished
        self._finished.add(what)
        return new

    def finished(self, what: str) -> bool:
        """Whether something has been marked as done in this command."""
        return what in self._finished

    def needed(self, check: str) -> tuple[float, ...]:
        """The evidence (nats) that each share of a check must reach by itself."""
        return needed(self.plan)[check]

    def wants_ordinary(self, case: Case) -> bool:
        """Whether ordinary replies may still tell: the verdict is open, and no stage's turn has
        come, or a check wants more of them."""
        no_more = tells_no_more(case) and case.judged >= self.plan.min_replies
        between = no_more and is_between(case)
        ended = (case.decision != "inconclusive" or no_more) and not (
            self.pace.wanted() or (not between and any(c.more(case) for c in CHECKS))
        )
        return not (ended or any(c.ready(case) for c in CHECKS) or self.pace.late())

    # -- what the audit uses -------------------------------------------------------------------

    def begin(self, stage: Stage) -> None:
        """Come to a stage."""
        self._stage = stage

    def read(self) -> Case:
        """Read the run folder, decide and publish it, once anything is scored."""
        scored = (self.run / LEDGER).exists()
        case = read_case(
            self.run, plan=self.plan, record=self._record(""), digest=self._digests,
            ledger=self._ledger if scored else Ledger(rows=()),
        )  # fmt: skip
        if scored:
            report, case = decided(case)
            if self.pace.late() and case.decision == "inconclusive" and case.deadline_s is None:
                write_json(self.run / DEADLINE, {"deadline_s": self.pace.deadline_s})
                report, case = decided(replace(case, deadline_s=self.pace.deadline_s))
            self._tell(publish(self.run, report, case), len(case.attempts))
        self._case = case
        return case

    def _tell(self, report: Report, attempts: int) -> None:
        """Where the audit stands, in one line, once more has been asked."""
        if attempts == self._told or self._stage not in ("ordinary", "sampled", "long"):
            return
        self._told = attempts
        counts = [
            f"{sum(f.decision == status for f in report.findings)} {status}"
            for status in ("detected", "excluded", "undecided")
        ]
        replies = describe_replies(report.usage.replies)
        tokens = report.usage.completion_tokens
        self.show.tell(f"{replies}, {tokens} tokens: {', '.join(counts)}")
        if report.decision == "inconsistent" and self.finish("inconsistent told"):
            left_s = self._meter.seconds(self._left_to_name())
            how_long = "" if left_s is None else f", {describe_about(left_s)}"
            self.show.tell(
                f"inconsistent, and that stands: now looking for the cause{how_long} (Ctrl-C keeps "
                "the verdict; the same command goes on)"
            )

    def _cells(self) -> int:
        """Reply tokens that are scored, once for each of their columns."""
        assert self._book is not None
        columns = (one for some in self._book.by_probe.values() for one in some.values())
        return sum(len(one.aligned.reply_ids) for one in columns)

    def _left_to_name(self) -> int:
        """Reply tokens that may still be scored under a build or a suspect, for a name."""
        if self.pack is not None:
            return 0
        rows = () if self._ledger is None else self._ledger.ordinary.rows[:NAMING_REPLIES]
        names = [
            name for name in (*self.plan.bank, *self.plan.suspects)
            if self.reference.engine.can_load(name)
        ]  # fmt: skip
        return sum(row.tokens * sum(name not in row.text for name in names) for row in rows)

    # -- the budget ----------------------------------------------------------------------------

    def _record(self, folder: str, name: str = EXCHANGES) -> Record:
        """A file of exchanges as it is now."""
        record = self._records.setdefault((folder, name), Record(self.run / folder, name=name))
        record.update()
        return record

    def _probes_of(self, folder: str, name: str = EXCHANGES) -> tuple[Probe, ...]:
        """Every probe whose attempts lie in one file of exchanges."""
        return tuple(
            probe for check in CHECKS for asked in check.asked
            if (asked.folder, asked.exchanges) == (folder, name)
            for probe in asked.probes(self.run / folder)
        )  # fmt: skip

    def _ceiling_beside(self, folder: str) -> Ceiling:
        """What is left for the probes of `folder` after everything that was asked beside them."""
        purse, count = Purse(self.plan.ceiling), self.endpoint.count_tokens
        every = dict.fromkeys((a.folder, a.exchanges) for check in CHECKS for a in check.asked)
        for where, name in every:
            if (where, name) != (folder, EXCHANGES):
                probes = self._probes_of(where, name)
                self._record(where, name).book(purse, probes, count=count)
        spent = purse.spent
        return self.plan.ceiling.less(spent.completion_tokens, prompt_tokens=spent.prompt_tokens)

    def _less_reserved(self, ceiling: Ceiling) -> Ceiling:
        """The same without what is kept for checks whose stage is still to come."""
        begun = _BEGUN.get(self._stage, frozenset())
        for check in CHECKS:
            if not check.ask.keys() & begun:
                kept = check.reserve(self.plan)
                ceiling = ceiling.less(kept.completion_tokens, prompt_tokens=kept.prompt_tokens)
        return ceiling
