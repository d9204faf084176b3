"""The benchmark of samplers: what is said of hosts whose sampler, or whose weights, are known.

Of each host a corpus of sampled replies is collected over HTTP, and of each weights one of greedy
replies: the same weights answer greedy questions alike whatever their sampler. An audit reads both
in a random order of its own, greedy replies first, with the looks, the budget and the stopping
rules of a real one. The audits of a host share replies, so they say how often names are right, not
how often an honest host would be accused: that is what the level tests are for.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from verifier.checks.check import greedy_is_settled
from verifier.checks.sampling import findings as sampling
from verifier.checks.sampling.ask_and_score import score_sampled
from verifier.config import AuditSection
from verifier.evidence.ledger import Ledger
from verifier.evidence.samplers import LABELS
from verifier.host.collect import read_outcomes
from verifier.lab.bench.precision import plan_audit
from verifier.lab.bench.results import (
    begin_results,
    fetch_measured,
    results_path,
    show_counts,
    tabulate_rows,
    write_results,
)
from verifier.lab.corpus import (
    MAX_ATTEMPTS,
    Stack,
    collect_corpus,
    load_host,
    score_corpus,
)
from verifier.lab.testbed.faults import read_fault
from verifier.plan_file import Plan, batch_ends, read_probes
from verifier.probes import draw, load_pool
from verifier.records import REFERENCE, Report
from verifier.reference.engines.load import load_engine
from verifier.reference.renderings.catalogue import catalogue
from verifier.reference.tokenizer import Tokenizer
from verifier.scoring.sampled_file import read_sampled
from verifier.verdict.case import make_case
from verifier.verdict.decide import decided

PART: Final = "samplers"

HOSTS: Final = (
    "none", "sampler:temperature=0.9", "sampler:top-k=40", "sampler:top-p=0.95", "int4-asym-g64",
)  # fmt: skip
AUDITS: Final = 40

#: Replies that a corpus may have, and that are collected of it unless told otherwise.
GREEDY: Final = 64
MOST_SAMPLED: Final = 384
SAMPLED: Final = 192
MAX_TOKENS: Final = 48
BATCH: Final = 32


def run_sampler_bench(
    out: Path, *, cache: Path, seed: int, tell: Callable[[str], None], replies: int = SAMPLED
) -> Path:
    """Measure every host; the path of the results. Goes on where an earlier run was stopped.

    Hosts of which more or fewer replies lie in `out` already are read as they are.
    """
    card, weights = fetch_measured(cache=cache, tell=tell)
    tokenizer = Tokenizer(weights)
    reference = load_engine("transformers", weights, tokenizer)
    host = load_host(weights, tokenizer, Stack(dtype="bfloat16", batch=BATCH))
    plan = _plan(seed)
    drawn = draw(load_pool(), seed=seed, count=GREEDY + MOST_SAMPLED, max_tokens=MAX_TOKENS)
    sampled = tuple(replace(probe, temperature=1.0) for probe in drawn[GREEDY:])
    each: list[dict[str, Any]] = []
    for name in HOSTS:
        fault = read_fault(name, layers=card.layers, catalogue=catalogue())
        stack = Stack(dtype="bfloat16", batch=BATCH, weights=fault.weights)
        greedy_folder = out / f"greedy-{'none' if fault.weights == REFERENCE else fault.weights}"
        folder = out / f"sampled-{name.replace(':', '-')}"
        tell(f"asking {name}")
        collect_corpus(
            greedy_folder, stack, drawn[:GREEDY], engine=host, tokenizer=tokenizer,
            limit=GREEDY if fault.weights == REFERENCE else BATCH,
        )  # fmt: skip
        have = len(read_outcomes(folder, max_attempts=MAX_ATTEMPTS))
        collect_corpus(
            folder, stack, sampled, engine=host, tokenizer=tokenizer, sampler=dict(fault.sampler),
            limit=have or replies,
        )  # fmt: skip
        tell(f"scoring {name}")
        greedy = score_corpus(
            greedy_folder, engine=reference, tokenizer=tokenizer, with_logprobs=True
        )
        score_sampled(
            folder, read_probes(folder), read_outcomes(folder, max_attempts=MAX_ATTEMPTS),
            engine=reference, tokenizer=tokenizer, samplers=sampling.planned_samplers(plan),
        )  # fmt: skip
        ledger = replace(greedy, sampled=read_sampled(folder))
        outcomes = read_outcomes(greedy_folder, max_attempts=MAX_ATTEMPTS)
        for number in range(AUDITS):
            each.append(replay(plan, ledger, outcomes, fault=name, number=number, seed=seed))
        write_results(out, PART, sum_up(each, seed=seed))
    return results_path(out, PART)


def _plan(seed: int) -> Plan:
    """The plan of a real audit that asks how replies are sampled."""
    return plan_audit(AuditSection(seed=seed, max_tokens=MAX_TOKENS, sampler=True))


def replay(
    plan: Plan, ledger: Ledger, outcomes: Mapping[str, Any], *, fault: str, number: int, seed: int
) -> dict[str, Any]:
    """One audit: greedy replies until they are quiet or differ, then samples until named."""
    rng = np.random.default_rng([seed, number])
    rows = [ledger.rows[i] for i in rng.permutation(len(ledger.rows))]
    sampled = [ledger.sampled[i] for i in rng.permutation(len(ledger.sampled))]
    looks = _looks(plan, rows, sampled, outcomes)
    part, report = next(looks)
    while _tokens(part) + plan.max_tokens <= plan.budget_completion_tokens:
        further = next(looks, None)
        if further is None:
            break
        part, report = further
    found = sampling.weigh(make_case(plan, part), None).evidence.samplers
    assert found is not None
    (finding,) = [f for f in report.findings if f.aspect == "sampler"]
    interval = found.temperature
    return {
        "fault": fault,
        "number": number,
        "decision": report.decision,
        "sampler": finding.decision,
        "said": finding.name,
        "log_e": finding.log_e,
        "greedy_tokens": sum(row.tokens + row.left_out for row in part.rows),
        "sampled_tokens": sum(row.tokens + row.left_out for row in part.sampled),
        "temperature": None if interval is None else [interval.lower, interval.upper],
        "causes": [f.name for f in report.findings if f.aspect == "cause"],
    }


def _looks(
    plan: Plan, rows: Sequence[Any], sampled: Sequence[Any], outcomes: Mapping[str, Any]
) -> Iterator[tuple[Ledger, Report]]:
    """Every look of an audit at the evidence, as `audit` takes them."""

    def look(greedy: int, samples: int) -> tuple[Ledger, Report, bool]:
        part = Ledger(rows=tuple(rows[:greedy]), sampled=tuple(sampled[:samples]))
        asked = {row.probe_id: outcomes[row.probe_id] for row in part.rows}
        report, case = decided(make_case(plan, part, outcomes=asked))
        return part, report, greedy_is_settled(case)

    end, report, settled = 0, None, False
    for end in batch_ends(len(rows)):
        part, report, settled = look(end, 0)
        yield part, report
        if report.decision != "inconclusive" or settled:
            break
    if not settled:
        return
    for samples in batch_ends(len(sampled)):
        part, report, _ = look(end, samples)
        yield part, report
        if not sampling.wants_more(report.findings, report.decision):
            return


def _tokens(part: Ledger) -> int:
    greedy = sum(row.tokens + row.left_out for row in part.rows)
    return greedy + sum(row.tokens + row.left_out for row in part.sampled)


def is_right(audit: Mapping[str, Any]) -> bool:
    """Whether what was said is true: the setting by its name, nothing of an honest sampler."""
    _, _, setting = audit["fault"].partition("sampler:")
    if not setting:
        return bool(audit["sampler"] != "detected")
    name = setting.partition("=")[0].replace("-", "_")
    said = str(audit["said"])
    return audit["sampler"] == "detected" and said.startswith(f"{LABELS[name]} about")


def holds_truth(audit: Mapping[str, Any]) -> bool | None:
    """Whether the temperature interval holds the host's; None: it has none, or no temperature."""
    _, _, setting = audit["fault"].partition("sampler:")
    name, _, value = setting.partition("=")
    if audit["temperature"] is None or (setting and name != "temperature"):
        return None
    lower, upper = audit["temperature"]
    truth = float(value) if setting else 1.0
    return bool(lower <= truth and (upper is None or truth <= upper))


def sum_up(each: Sequence[Mapping[str, Any]], *, seed: int) -> dict[str, Any]:
    """The results file: a figure per host, and every audit."""
    figures = []
    for fault in dict.fromkeys(audit["fault"] for audit in each):
        of = [audit for audit in each if audit["fault"] == fault]
        held = [h for h in map(holds_truth, of) if h is not None]
        figures.append(
            {
                "fault": fault,
                "audits": len(of),
                "decisions": dict(Counter(audit["decision"] for audit in of)),
                "sampler": dict(Counter(audit["sampler"] for audit in of)),
                "right": sum(map(is_right, of)),
                "median_sampled_tokens": statistics.median(a["sampled_tokens"] for a in of),
                "median_tokens": statistics.median(
                    a["sampled_tokens"] + a["greedy_tokens"] for a in of
                ),
                "interval_holds": sum(held),
                "intervals": len(held),
                "said": dict(Counter(audit["said"] for audit in of).most_common()),
            }
        )
    return {
        **begin_results(seed=seed),
        "figures": figures,
        "each": list(each),
    }


def tabulate_samplers(results: Mapping[str, Any]) -> str:
    """A Markdown table with a row per host."""
    head = (
        "host", "audits", "verdicts", "sampler", "said rightly", "median tokens, sampled (all)",
        "interval holds",
    )  # fmt: skip
    rows: list[tuple[object, ...]] = []
    for figure in results["figures"]:
        tokens = f"{figure['median_sampled_tokens']:.0f} ({figure['median_tokens']:.0f})"
        intervals = figure["intervals"]
        held = f"{figure['interval_holds']} of {intervals}" if intervals else "-"
        said = show_counts(figure["decisions"]), show_counts(figure["sampler"])
        rows.append((figure["fault"], figure["audits"], *said, figure["right"], tokens, held))
    return tabulate_rows(head, rows)
