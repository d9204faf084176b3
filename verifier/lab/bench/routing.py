"""What audits say of hosts that answer some of the requests with another model.

Replies of an honest host and of three others are collected over HTTP once each. A routed host is
made of them by chance, request by request, and replayed as audits with the batches, the budget and
the stopping rule of a real one. No reply occurs twice in one audit; audits share the corpora.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from verifier.checks import substitution
from verifier.checks.substitution import LEVEL
from verifier.config import AuditSection
from verifier.evidence.ledger import Ledger, Row
from verifier.evidence.mixture import Share
from verifier.host.collect import read_outcomes
from verifier.lab.bench.precision import SERVED_BATCH, SERVED_IN, plan_audit, replay
from verifier.lab.bench.results import (
    begin_results,
    count_decisions,
    fetch_measured,
    results_path,
    spread,
    tabulate_rows,
    write_results,
)
from verifier.lab.corpus import (
    MAX_ATTEMPTS,
    Stack,
    collect_corpus,
    is_collected,
    load_host,
    score_corpus,
)
from verifier.plan_file import Plan, read_probes
from verifier.probes import draw, load_pool
from verifier.records import REFERENCE, Decision, Outcome
from verifier.reference.engines import Engine
from verifier.reference.engines.load import load_engine
from verifier.reference.tokenizer import Tokenizer
from verifier.verdict.case import make_case

PART = "routing"

#: Completion tokens of each audit.
BUDGET = 14_000

#: Replies after which the interval of the share is looked at once more, whatever the verdict.
LATER = 150

#: Replies of each host.
CORPORA = {REFERENCE: 400, "drop-1": 128, "int3-g64": 128, "int4-asym-g64": 128}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One routed host."""

    weights: str  # of the host that answers the share
    share: float
    audits: int


LINES = (
    Line(weights=REFERENCE, share=0.0, audits=100),
    Line(weights="drop-1", share=0.3, audits=40),
    *(Line(weights=name, share=0.1, audits=40) for name in ("drop-1", "int3-g64", "int4-asym-g64")),
    Line(weights="drop-1", share=0.05, audits=40),
    Line(weights="int3-g64", share=0.05, audits=40),
    Line(weights="int4-asym-g64", share=0.05, audits=40),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The scored replies of one host."""

    rows: Sequence[Row]
    outcomes: Mapping[str, Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedAudit:
    """How one audit of a routed host ended, and the interval of the share then and later."""

    replies: int
    routed: int  # of them, answered by the other model
    completion_tokens: int
    decision: Decision
    log_e: float
    estimate: float
    lower: float
    upper: float
    later: tuple[float, float]  # the interval after LATER replies


def run_routing_bench(
    out: Path,
    *,
    cache: Path,
    seed: int,
    tell: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Measure every line in `out`; the path of the results. Goes on where it was stopped."""
    _, weights = fetch_measured(cache=cache, tell=tell)
    corpora = _corpora(out, weights, seed=seed, tell=tell, progress=progress)
    plan = make_routing_plan(seed=seed)
    results: dict[str, Any] = {
        **begin_results(seed=seed),
        "policy": "routing",
        "alpha": plan.alpha,
        "beta": plan.beta,
        "budget_completion_tokens": plan.budget_completion_tokens,
        "level": LEVEL,
        "later": LATER,
        "corpora": {name: len(corpus.rows) for name, corpus in corpora.items()},
        "lines": [],
    }
    for number, line in enumerate(LINES):
        tell(f"auditing a host that routes {line.share:g} to {line.weights}")
        audits = audit_routed(plan, corpora, line, seed=(seed, number))
        results["lines"].append(sum_up_routed(line, audits))
        write_results(out, PART, results)
    return results_path(out, PART)


def make_routing_plan(*, seed: int) -> Plan:
    """The plan of a real audit under the policy routing, from text alone."""
    return plan_audit(
        AuditSection(policy="routing", seed=seed, top_logprobs=0, budget_completion_tokens=BUDGET)
    )


def _corpora(
    out: Path,
    weights: Path,
    *,
    seed: int,
    tell: Callable[[str], None],
    progress: Callable[[int, int], None] | None,
) -> dict[str, Corpus]:
    """Each host's replies, asked for over HTTP and scored under the reference, once."""
    tokenizer = Tokenizer(weights)
    probes = draw(load_pool(), seed=seed, count=max(CORPORA.values()), max_tokens=48)
    host: Engine | None = None
    for name, count in CORPORA.items():
        stack = _stack(name)
        begun = read_probes(out / stack.name) if (out / stack.name).is_dir() else ()
        if begun and is_collected(out / stack.name, begun[:count]):
            continue
        tell(f"asking {stack.name}")
        host = host or load_host(weights, tokenizer, stack)
        collect_corpus(
            out / stack.name, stack, probes, limit=count, engine=host, tokenizer=tokenizer,
            progress=progress,
        )  # fmt: skip
    if host is not None:
        host.close()  # freed before the reference is loaded
    reference = load_engine("transformers", weights, tokenizer)
    found = {}
    for name, count in CORPORA.items():
        folder = out / _stack(name).name
        tell(f"scoring {folder.name}")
        ledger = score_corpus(
            folder, engine=reference, tokenizer=tokenizer, with_logprobs=False, limit=count,
            progress=progress,
        )  # fmt: skip
        outcomes = read_outcomes(folder, max_attempts=MAX_ATTEMPTS)
        found[name] = Corpus(rows=ledger.rows, outcomes=outcomes)
    reference.close()
    return found


def _stack(weights: str) -> Stack:
    return Stack(dtype=SERVED_IN, batch=SERVED_BATCH, weights=weights)


def audit_routed(
    plan: Plan, corpora: Mapping[str, Corpus], line: Line, *, seed: tuple[int, int]
) -> list[RoutedAudit]:
    """Audits of a host that answers each request with the other model by chance."""
    found = []
    for number in range(line.audits):
        rng = np.random.default_rng((*seed, number))
        corpus, routed = route(corpora[REFERENCE], corpora[line.weights], line.share, rng=rng)
        ledger = Ledger(rows=tuple(corpus.rows))
        (audit,) = replay(plan, ledger, corpus.outcomes, most=1)
        at_end = _share(plan, ledger.rows[: audit.replies])
        later = _share(plan, ledger.rows[:LATER])
        found.append(
            RoutedAudit(
                replies=audit.replies,
                routed=sum(routed[: audit.replies]),
                completion_tokens=audit.completion_tokens,
                decision=audit.decision,
                log_e=audit.log_e,
                estimate=at_end.estimate,
                lower=at_end.lower,
                upper=at_end.upper,
                later=(later.lower, later.upper),
            )
        )
    return found


def _share(plan: Plan, rows: tuple[Row, ...]) -> Share:
    evidence = substitution.weigh(make_case(plan, Ledger(rows=rows)), None).evidence
    if evidence.share is None:
        raise ValueError("no rows to estimate a share from")
    return evidence.share


def route(
    honest: Corpus, other: Corpus, share: float, *, rng: np.random.Generator
) -> tuple[Corpus, list[bool]]:
    """Replies of a routed host, as many as the corpora give, and which the other model made."""
    rows: list[Row] = []
    routed: list[bool] = []
    outcomes: dict[str, Outcome] = {}
    left = {
        False: list(rng.permutation(len(honest.rows))),
        True: list(rng.permutation(len(other.rows))),
    }
    while True:
        to_other = bool(rng.random() < share)
        if not left[to_other]:
            return Corpus(rows=rows, outcomes=outcomes), routed
        source = other if to_other else honest
        row = source.rows[int(left[to_other].pop())]
        name = f"r{len(rows):04}"  # both hosts were asked the same probes
        rows.append(replace(row, probe_id=name))
        outcomes[name] = replace(source.outcomes[row.probe_id], probe_id=name)
        routed.append(to_other)


def sum_up_routed(line: Line, audits: Sequence[RoutedAudit]) -> dict[str, Any]:
    """One line with its audits, so that it can be summed up anew."""
    ends = [audit for audit in audits if line.share == 0 or audit.decision == "inconsistent"]
    return {
        "weights": None if line.weights == REFERENCE else line.weights,
        "share": line.share,
        "audits": len(audits),
        "decisions": count_decisions(audit.decision for audit in audits),
        "replies": spread([audit.replies for audit in ends]),
        "completion_tokens": spread([audit.completion_tokens for audit in ends]),
        "covered": sum(audit.lower <= line.share <= audit.upper for audit in audits),
        "covered_later": sum(a.later[0] <= line.share <= a.later[1] for a in audits),
        "width_later": float(np.median([a.later[1] - a.later[0] for a in audits]))
        if audits
        else None,
        "each": [asdict(audit) for audit in audits],
    }


def tabulate_routing(results: Mapping[str, Any]) -> str:
    """The lines of a results file as a Markdown table."""
    head = ("other model", "share", "audits", "inconsistent", "consistent", "inconclusive",
            "replies until then (90 % within)", "tokens (90 % within)", "interval holds the share",
            "after 150 replies", "its width then")  # fmt: skip
    rows: list[tuple[object, ...]] = []
    for line in results["lines"]:
        decisions, replies, tokens = line["decisions"], line["replies"], line["completion_tokens"]
        audits = line["audits"]
        rows.append(
            (
                line["weights"] or "none",
                f"{line['share']:g}",
                audits,
                *(decisions[d] for d in ("inconsistent", "consistent", "inconclusive")),
                "-"
                if replies["median"] is None
                else f"{replies['median']:.0f} ({replies['p90']:.0f})",
                "-"
                if tokens["median"] is None
                else f"{tokens['median']:,.0f} ({tokens['p90']:,.0f})",
                f"{line['covered']} of {audits}",
                f"{line['covered_later']} of {audits}",
                f"{line['width_later']:.2f}",
            )
        )
    return tabulate_rows(head, rows)
