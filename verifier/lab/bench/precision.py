"""The benchmark: error rates and tokens to a verdict, on hosts whose truth is known.

For each host one corpus of replies is collected over HTTP; disjoint consecutive slices of it are
then replayed as audits, each with the batches, the budget and the stopping rule of a real one. No
reply serves two audits of one figure. Thresholds come from the card's calibration alone, whose
replies are to other probes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from verifier.checks.check import tells_no_more
from verifier.config import (
    LEAST_REPLIES,
    AuditSection,
    EndpointSection,
    ReferenceSection,
    RunFile,
    Suspect,
)
from verifier.errors import ConfigError
from verifier.evidence.calibration import Calibration
from verifier.evidence.e_values import best_scale
from verifier.evidence.ledger import TEXT_SCALES, Ledger
from verifier.host.collect import read_outcomes
from verifier.lab.bench.results import (
    CARD,
    begin_results,
    count_decisions,
    fetch_measured,
    results_path,
    show_counts,
    spread,
    tabulate_rows,
    write_results,
)
from verifier.lab.corpus import (
    MAX_ATTEMPTS,
    Dtype,
    RememberingEngine,
    Stack,
    collect_corpus,
    load_host,
    read_stack,
    score_corpus,
)
from verifier.plan import draw_stop, least_for, make_plan
from verifier.plan_file import BATCHES, Plan, batch_ends, read_probes
from verifier.probes import draw, load_pool
from verifier.records import REFERENCE, Decision, Outcome, Reply
from verifier.reference.calibrations import load_calibration
from verifier.reference.cards import Thinking, load_card
from verifier.reference.engines import Engine
from verifier.reference.engines.load import load_engine
from verifier.reference.tokenizer import Tokenizer
from verifier.verdict.case import make_case
from verifier.verdict.combine import combine
from verifier.verdict.decide import decide, decided

#: Replies collected between two looks at how many audits a corpus gives.
CHUNK = 32

#: Tokens of a reply at most, as an audit asks.
MAX_TOKENS = 48

#: Replies of a corpus at most.
MOST_REPLIES = 1024

SERVED_IN: Dtype = "bfloat16"
SERVED_BATCH = 32

_HONEST = {
    "bfloat16-batch32": 40,
    "float32-batch32": 32,
    "float16-batch32": 22,
    "bfloat16-batch1": 4,  # slow: one reply at a time
    "float32-batch1": 4,
}
_IN_BANK = (
    "int4-sym-g64", "int4-asym-g64", "int4-sym-g96", "int4-asym-g96", "int4-sym-g192",
    "int4-asym-g192", "int4-sym-channel", "int4-asym-channel", "nf4-g64", "int3-g64", "drop-1",
)  # fmt: skip
_OUT_OF_BANK = ("int4-asym-g48", "int4-rotated-g64")
_FP8 = ("fp8-channel", "fp8-tensor")
_FAULT_AUDITS = 40

#: Faults whose cause is named, in a few audits each: every reply is scored under the whole bank.
_NAMED = ("int4-asym-g64", "int4-asym-g48")
_NAMED_AUDITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure: a host, what is read of its replies, and the policy."""

    part: str
    stack: Stack
    policy: str
    with_logprobs: bool
    audits: int

    @property
    def name(self) -> str:
        channel = "logprobs" if self.with_logprobs else "text"
        causes = "/causes" if self.part == "causes" else ""
        return f"{self.stack.name}/{self.policy}/{channel}{causes}"

    def at_most(self, audits: int) -> Figure:
        return replace(self, audits=min(self.audits, audits))


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """How one replayed audit ended."""

    first: int  # index of its first reply in the corpus
    replies: int
    completion_tokens: int
    decision: Decision
    log_e: float
    lower: float | None  # of the noise scale
    upper: float | None  # None: not bounded


def list_figures() -> list[Figure]:
    """Every figure of the benchmark, in the order they are measured."""

    def served(name: str) -> Stack:
        return Stack(dtype=SERVED_IN, batch=SERVED_BATCH, weights=name)

    found = []
    for part, policy, stacks in (
        ("honest", "screen", {read_stack(name): audits for name, audits in _HONEST.items()}),
        ("faults", "screen", {served(n): _FAULT_AUDITS for n in (*_IN_BANK, *_OUT_OF_BANK)}),
        ("fp8", "standard", {served(name): _FAULT_AUDITS for name in _FP8}),
    ):
        for stack, audits in stacks.items():
            # with log-probabilities first: scores made for them serve the text alone too
            for with_logprobs in (True, False):
                found.append(
                    Figure(
                        part=part,
                        stack=stack,
                        policy=policy,
                        with_logprobs=with_logprobs,
                        audits=audits,
                    )
                )
    for name in _NAMED:
        found.append(
            Figure(
                part="causes",
                stack=served(name),
                policy="standard",
                with_logprobs=False,
                audits=_NAMED_AUDITS,
            )
        )
    return found


def run_bench(
    out: Path,
    *,
    cache: Path,
    parts: Sequence[str],
    seed: int,
    tell: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Measure the figures of `parts` (all when empty) in `out`; the path of the results.

    Goes on where an earlier run with the same `out` and seed was stopped. Raises ConfigError for
    a part that there is not.
    """
    figures = list_figures()
    known = list(dict.fromkeys(figure.part for figure in figures))
    for part in parts:
        if part not in known:
            raise ConfigError(f"bench: no part {part!r}; there are {', '.join(known)}")
    _, weights = fetch_measured(cache=cache, tell=tell)
    bench = Bench(out=out, weights=weights, seed=seed, tell=tell, progress=progress)
    results: dict[str, Any] = begin_results(seed=seed) | {"figures": []}
    out.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        if parts and figure.part not in parts:
            continue
        tell(f"measuring {figure.name}")
        results["figures"].append(bench.measure(figure, make_bench_plan(figure, seed=seed)))
        write_results(out, CARD, results)
    return results_path(out, CARD)


class Bench:
    """Engines, loaded once each, and the corpora of one model's hosts."""

    def __init__(
        self,
        *,
        out: Path,
        weights: Path,
        seed: int,
        tell: Callable[[str], None],
        progress: Callable[[int, int], None] | None,
        thinking: Thinking | None = None,
        answer: Callable[..., None] = collect_corpus,
        checkpoints: Mapping[str, Callable[[], Path]] | None = None,
    ) -> None:
        """`checkpoints` are other weights that hosts serve; `answer` has replies made."""
        self._out = out
        self._weights = weights
        self._tokenizer = Tokenizer(weights)
        self._seed = seed
        self._tell = tell
        self._progress = progress
        self._thinking = thinking
        self._answer = answer
        self._checkpoints = checkpoints
        self._reference = RememberingEngine(load_engine("transformers", weights, self._tokenizer))
        self._host: tuple[tuple[str, str], Engine] | None = None

    def close(self) -> None:
        """Free the engines."""
        self._reference.close()
        if self._host is not None:
            self._host[1].close()

    def measure(self, figure: Figure, plan: Plan) -> dict[str, Any]:
        """Collect until the corpus gives the audits wanted, and sum them up."""
        folder = self._out / figure.stack.name
        outcomes: Mapping[str, Outcome] = read_outcomes(folder, max_attempts=MAX_ATTEMPTS)
        wanted = max(CHUNK, len(outcomes))
        while True:
            ledger, outcomes = self._corpus(folder, figure, wanted, outcomes)
            audits = replay(plan, ledger, outcomes, most=figure.audits)
            if len(audits) >= figure.audits or wanted >= MOST_REPLIES:
                break
            self._tell(f"{figure.name}: {len(audits)} audits from {len(ledger.rows)} replies")
            wanted += CHUNK if figure.stack.batch > 1 else CHUNK // 4
        named = {}
        if figure.part == "causes":
            named = self._name_causes(plan, folder, audits, ledger, outcomes)
        return sum_up(figure, plan, audits, ledger, named)

    def _corpus(
        self, folder: Path, figure: Figure, wanted: int, outcomes: Mapping[str, Outcome]
    ) -> tuple[Ledger, Mapping[str, Outcome]]:
        """So many replies of a host, collected beyond the `outcomes` that are there, and scored."""
        probes = draw(load_pool(), seed=self._seed, count=MOST_REPLIES, max_tokens=MAX_TOKENS)
        if not all(probe.id in outcomes for probe in probes[:wanted]):
            self._answer(
                folder, figure.stack, probes, limit=wanted, engine=self._engine(figure.stack),
                tokenizer=self._tokenizer, thinking=self._thinking, progress=self._progress,
            )  # fmt: skip
            outcomes = read_outcomes(folder, max_attempts=MAX_ATTEMPTS)
        ledger = score_corpus(
            folder, engine=self._reference, tokenizer=self._tokenizer,
            with_logprobs=figure.with_logprobs, limit=wanted, thinking=self._thinking,
            progress=self._progress, outcomes=outcomes,
        )  # fmt: skip
        return ledger, outcomes

    def _engine(self, stack: Stack) -> Engine:
        if self._host is None or self._host[0] != stack.kind:
            if self._host is not None:
                self._host[1].close()  # freed before the next is loaded
            host = load_host(
                self._weights, self._tokenizer, stack, checkpoints=self._checkpoints
            )  # fmt: skip
            self._host = (stack.kind, host)
        return self._host[1]

    def _name_causes(
        self,
        plan: Plan,
        folder: Path,
        audits: Sequence[Audit],
        replayed: Ledger,
        outcomes: Mapping[str, Outcome],
    ) -> dict[str, int]:
        """How often each cause was named, over the audits that ended inconsistent."""
        chosen = [audit for audit in audits if audit.decision == "inconsistent"]
        if not chosen:
            return {}
        last = replayed.rows[max(audit.first + audit.replies for audit in chosen) - 1].probe_id
        asked = [probe.id for probe in read_probes(folder)]
        ledger = score_corpus(
            folder, engine=self._reference, tokenizer=self._tokenizer, with_logprobs=False,
            limit=asked.index(last) + 1, weights=load_card(CARD).bank, progress=self._progress,
        )  # fmt: skip
        named: dict[str, int] = {}
        for audit in chosen:
            rows = ledger.rows[audit.first : audit.first + audit.replies]
            own = {row.probe_id: outcomes[row.probe_id] for row in rows}
            report = decide(make_case(plan, Ledger(rows=rows), outcomes=own))
            cause = report.findings[-1]
            name = cause.name if cause.decision == "detected" else f"unnamed: {cause.name}"
            named[name] = named.get(name, 0) + 1
        return named


def make_bench_plan(figure: Figure, *, seed: int) -> Plan:
    """The plan that a real audit of this figure would have."""
    logprobs = 5 if figure.with_logprobs else 0
    return plan_audit(AuditSection(policy=figure.policy, seed=seed, top_logprobs=logprobs))


def plan_audit(
    section: AuditSection,
    *,
    suspects: Sequence[Suspect] = (),
    card: str = CARD,
    calibration: Calibration | None = None,
) -> Plan:
    """The plan of a real audit of a card with these settings; under its own calibration unless one
    is given."""
    found = load_card(card)
    config = RunFile(
        endpoint=EndpointSection(base_url="http://127.0.0.1/v1", model=found.name),
        reference=ReferenceSection(card=card, suspects=tuple(suspects)),
        audit=section,
        out=Path(),
    )
    plan, _, _ = make_plan(config, found, calibration or load_calibration(card, found), load_pool())
    return plan


def stop_anew(plan: Plan, number: int) -> Plan:
    """The plan of the next audit: with a stopping point of its own, as each seed draws one.

    Where the run file gives one, that is kept.
    """
    if plan.configuration.get("audit", {}).get("min_replies", LEAST_REPLIES) is not None:
        return plan
    stop = draw_stop(plan.seed + number, least=least_for(plan.policy, beta=plan.beta))
    return plan.model_copy(update={"min_replies": stop})


def replay(
    plan: Plan, ledger: Ledger, outcomes: Mapping[str, Outcome], *, most: int
) -> list[Audit]:
    """Audits from disjoint consecutive slices of a corpus; one that runs out of it is dropped."""
    audits: list[Audit] = []
    first = 0
    while len(audits) < most:
        audit = _replay_one(stop_anew(plan, first), ledger, outcomes, first)
        if audit is None:
            return audits
        audits.append(audit)
        first += audit.replies
    return audits


def _replay_one(
    plan: Plan, ledger: Ledger, outcomes: Mapping[str, Outcome], first: int
) -> Audit | None:
    available = len(ledger.rows) - first
    taken = spent = 0
    # the last may be cut short
    whole = batch_ends(available + BATCHES[-1], stop=plan.min_replies)
    for end in (end for end in whole if end <= available):
        affordable = (plan.budget_completion_tokens - spent) // plan.max_tokens
        taken = min(end, taken + affordable)
        rows = ledger.rows[first : first + taken]
        asked = {row.probe_id: outcomes[row.probe_id] for row in rows}
        slice_ = Ledger(rows=rows)
        report, case = decided(make_case(plan, slice_, outcomes=asked))
        spent = sum(_tokens(outcome, plan) for outcome in asked.values())
        over = tells_no_more(case) and taken >= plan.min_replies
        if report.decision == "inconclusive" and taken == end and not over:
            continue
        return Audit(
            first=first,
            replies=len(rows),
            completion_tokens=spent,
            decision=report.decision,
            log_e=round(combine(case).log_e, 3),
            lower=report.noise_scale.lower,
            upper=report.noise_scale.upper,
        )
    return None


def _tokens(outcome: Outcome, plan: Plan) -> int:
    """What a reply cost; without a count, its full length."""
    found = outcome.completion_tokens if isinstance(outcome, Reply) else 0
    return plan.max_tokens if found is None else found


def sum_up(
    figure: Figure, plan: Plan, audits: Sequence[Audit], ledger: Ledger, named: Mapping[str, int]
) -> dict[str, Any]:
    """One figure with its audits, so that it can be summed up anew."""
    scale = best_scale(make_case(plan, ledger).text, TEXT_SCALES)
    covered = [
        (audit.lower or 0) <= scale * 1.0001
        and (audit.upper is None or scale <= audit.upper * 1.0001)
        for audit in audits
    ]
    return {
        "figure": figure.name,
        "part": figure.part,
        "fault": None if figure.stack.weights == REFERENCE else figure.stack.weights,
        "in_bank": figure.stack.weights in plan.bank,
        "policy": figure.policy,
        "channels": ["text", "logprob"] if figure.with_logprobs else ["text"],
        "alpha": plan.alpha,
        "audits": len(audits),
        "decisions": count_decisions(audit.decision for audit in audits),
        "completion_tokens": spread([audit.completion_tokens for audit in audits]),
        "corpus_replies": len(ledger.rows),
        "noise_scale": round(scale, 5),
        "noise_scale_covered": sum(covered),
        "named": dict(named),
        "each": [asdict(audit) for audit in audits],
    }


def tabulate(results: Mapping[str, Any]) -> str:
    """The figures of a results file as Markdown tables: verdicts, then the causes named."""
    head = ("host", "policy", "read", "audits", "consistent", "inconsistent", "inconclusive",
            "median tokens (90 % within)", "scale", "in its interval")  # fmt: skip
    verdicts: list[tuple[object, ...]] = []
    causes: list[tuple[object, ...]] = []
    for figure in results["figures"]:
        decisions, tokens = figure["decisions"], figure["completion_tokens"]
        host, policy, audits = figure["figure"].split("/")[0], figure["policy"], figure["audits"]
        if figure["part"] == "causes":
            causes.append((host, policy, audits, show_counts(figure["named"])))
            continue
        verdicts.append(
            (
                host,
                policy,
                "text, logprobs" if "logprob" in figure["channels"] else "text",
                audits,
                *(decisions[name] for name in ("consistent", "inconsistent", "inconclusive")),
                f"{tokens['median']:.0f} ({tokens['p90']:.0f})" if audits else "-",
                f"{figure['noise_scale']:.2g}",
                f"{figure['noise_scale_covered']} of {audits}",
            )
        )
    tables = [tabulate_rows(head, verdicts)]
    if causes:
        tables.append(tabulate_rows(("host", "policy", "audits", "named"), causes))
    return "\n\n".join(tables)
