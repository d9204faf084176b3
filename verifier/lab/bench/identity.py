"""What audits say of hosts that serve another model under the published name.

The other models are made here from the published one, in minutes on a CPU: a fine-tune of 100
steps, a merge that holds a tenth of it, and a model of half the layers; one of another family with
another tokenizer is given as a directory. Replies of each host are collected over HTTP once, and
disjoint slices replayed as audits. Each is decided with every model among the suspects, and again
without the one that is served: then no name is the right one.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from verifier.config import (
    AuditSection,
    Relation,
    Suspect,
)
from verifier.evidence.ledger import Ledger, Row
from verifier.host.collect import read_outcomes
from verifier.lab.bench.precision import SERVED_BATCH, SERVED_IN, Audit, plan_audit, replay
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
    is_collected,
    load_host,
    score_corpus,
)
from verifier.plan_file import Plan, read_probes
from verifier.probes import draw, load_pool
from verifier.prompts import make_prompt
from verifier.records import Message, Outcome, Probe
from verifier.reference.digests import vocabulary_sha256
from verifier.reference.engines.load import load_engine
from verifier.reference.reader import Suspected
from verifier.reference.tokenizer import Tokenizer
from verifier.verdict.case import make_case
from verifier.verdict.decide import decide

PART: Final = "identity"
AUDITS: Final = 40

#: Audits of each host whose cause is named: every reply of theirs is scored under each column.
NAMED: Final = 12

MAX_TOKENS: Final = 48

#: The honest host's name, and that of the host of another family.
HONEST, FAMILY = "none", "another-family"

#: The other models, and what each is to the published one.
SUSPECTS: Final[Mapping[str, Relation]] = {
    "fine-tune": "fine-tune",
    "merge-tenth": "merged",
    "half-the-layers": "another size",
    FAMILY: "another family",
}

#: Replies collected of each host.
REPLIES: Final = {
    HONEST: 400, "fine-tune": 64, "merge-tenth": 160, "half-the-layers": 64, FAMILY: 48,
}  # fmt: skip

#: Builds that compete with the suspects for the name.
BUILDS: Final = ("int4-asym-g64", "int3-g64", "drop-1")

#: How much of the fine-tune the merge holds.
SHARE: Final = 0.1


def run_identity_bench(
    out: Path,
    *,
    cache: Path,
    family: Path | None,
    seed: int,
    tell: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Measure every host; the path of the results. Goes on where an earlier run was stopped.

    Without a directory of another family its host is left out.
    """
    _, weights = fetch_measured(cache=cache, tell=tell)
    made = make_models(weights, out / "models", seed=seed, tell=tell)
    if family is not None:
        made[FAMILY] = family
    hosts = {**made, HONEST: weights}
    probes = draw(load_pool(), seed=seed, count=max(REPLIES.values()), max_tokens=MAX_TOKENS)
    for name, directory in hosts.items():
        _collect(out / name, directory, probes, limit=REPLIES[name], tell=tell, progress=progress)
    plan = make_identity_plan(tuple(made), seed=seed)
    tokenizer = Tokenizer(weights)
    reference = load_engine(
        "transformers", weights, tokenizer,
        checkpoints={name: partial(Path, directory) for name, directory in made.items()},
    )  # fmt: skip
    published = vocabulary_sha256(weights)
    suspects = {
        name: Suspected(
            tokenizer=Tokenizer(directory), same=vocabulary_sha256(directory) == published
        )
        for name, directory in made.items()
    }
    results: dict[str, Any] = {
        **begin_results(seed=seed),
        "policy": plan.policy_name,
        "alpha": plan.alpha,
        "builds": list(BUILDS),
        "suspects": dict(plan.suspects),
        "hosts": [],
    }
    score = partial(
        score_corpus, engine=reference, tokenizer=tokenizer, with_logprobs=False,
        progress=progress,
    )  # fmt: skip
    for name in hosts:
        tell(f"scoring {name}")
        results["hosts"].append(_audit_host(out / name, name, plan, score, suspects))
        write_results(out, PART, results)
    reference.close()
    return results_path(out, PART)


def _collect(
    folder: Path,
    directory: Path,
    probes: Sequence[Probe],
    *,
    limit: int,
    tell: Callable[[str], None],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Ask a host that serves the model of a directory what it has not answered yet."""
    begun = read_probes(folder) if folder.is_dir() else ()
    if begun and is_collected(folder, begun[:limit]):
        return
    tell(f"asking {folder.name}")
    tokenizer, stack = Tokenizer(directory), Stack(dtype=SERVED_IN, batch=SERVED_BATCH)
    host = load_host(directory, tokenizer, stack)
    collect_corpus(
        folder, stack, probes, limit=limit, engine=host, tokenizer=tokenizer, progress=progress
    )
    host.close()  # freed before the next is loaded


def _audit_host(
    folder: Path,
    name: str,
    plan: Plan,
    score: Callable[..., Ledger],
    suspects: Mapping[str, Suspected],
) -> dict[str, Any]:
    """Replay audits of one host; those that accuse it are scored under every suspect too."""
    outcomes = read_outcomes(folder, max_attempts=MAX_ATTEMPTS)
    ledger = score(folder, limit=REPLIES[name])
    audits = replay(plan, ledger, outcomes, most=AUDITS)
    accused = [audit for audit in audits if audit.decision == "inconsistent"][:NAMED]
    if accused:
        last = ledger.rows[max(a.first + a.replies for a in accused) - 1].probe_id
        asked = [probe.id for probe in read_probes(folder)]
        ledger = score(
            folder, limit=asked.index(last) + 1, weights=(*suspects, *BUILDS), suspects=suspects
        )
    return sum_up_host(name, plan, audits, ledger, outcomes)


def make_models(
    weights: Path, folder: Path, *, seed: int, tell: Callable[[str], None]
) -> dict[str, Path]:
    """The directories of the models that are derived from the published one, made once."""
    from verifier.lab.derived_models import fine_tune, merge, prune

    tokenizer = Tokenizer(weights)

    def render(question: str) -> str:
        return tokenizer.render_text(make_prompt([Message(role="user", content=question)]))

    tune = partial(fine_tune, render=render, encode=tokenizer.encode_prompt, seed=seed)
    made = {name: folder / name for name in SUSPECTS if name != FAMILY}
    recipes: dict[str, Callable[[Path], None]] = {
        "fine-tune": lambda out: tune(weights, out),
        "merge-tenth": lambda out: merge(weights, made["fine-tune"], out, share=SHARE),
        "half-the-layers": lambda out: prune(weights, out),
    }
    for name, directory in made.items():
        if not directory.is_dir():
            tell(f"making {name}")
            partial_directory = directory.with_suffix(".partial")
            recipes[name](partial_directory)
            partial_directory.rename(directory)
    return made


def make_identity_plan(suspects: Sequence[str], *, seed: int) -> Plan:
    """The plan of a real audit from text alone, with these models among the suspects."""
    named = [Suspect(name=name, path=Path(), relation=SUSPECTS[name]) for name in suspects]
    section = AuditSection(seed=seed, top_logprobs=0, max_tokens=MAX_TOKENS)
    return plan_audit(section, suspects=named)


def sum_up_host(
    name: str,
    plan: Plan,
    audits: Sequence[Audit],
    ledger: Ledger,
    outcomes: Mapping[str, Outcome],
) -> dict[str, Any]:
    """One host with its audits, and what each that ended inconsistent was said to be."""
    named: list[str] = []
    without: list[str] = []
    for audit in [audit for audit in audits if audit.decision == "inconsistent"][:NAMED]:
        rows = ledger.rows[audit.first : audit.first + audit.replies]
        named.append(_name(plan, rows, outcomes))
        others = plan.model_copy(
            update={"suspects": {n: t for n, t in plan.suspects.items() if n != name}}
        )
        less = tuple(
            replace(row, text={n: c for n, c in row.text.items() if n != name}) for row in rows
        )
        without.append(_name(others, less, outcomes))
    replies = [audit.replies for audit in audits]
    tokens = [audit.completion_tokens for audit in audits]
    return {
        "host": name,
        "audits": len(audits),
        "decisions": dict(Counter(audit.decision for audit in audits)),
        "replies": {"median": statistics.median(replies), "max": max(replies)},
        "tokens": {"median": statistics.median(tokens), "max": max(tokens)},
        "named": dict(Counter(named)),
        "named_without_it": dict(Counter(without)),
        "each": [[audit.replies, audit.completion_tokens, audit.log_e] for audit in audits],
    }


def _name(plan: Plan, rows: Sequence[Row], outcomes: Mapping[str, Outcome]) -> str:
    """The cause that is said of these replies; in brackets where it is not said for sure."""
    asked = {row.probe_id: outcomes[row.probe_id] for row in rows}
    report = decide(make_case(plan, Ledger(rows=tuple(rows)), outcomes=asked))
    cause = report.findings[-1]
    return cause.name if cause.decision == "detected" else f"({cause.name})"


_HEAD: Final = (
    "host", "audits", "inconsistent", "median replies (most)", "median tokens (most)", "named",
    "named where it is no suspect",
)  # fmt: skip


def tabulate_identity(results: Mapping[str, Any]) -> str:
    """The hosts as one Markdown table."""
    rows: list[tuple[object, ...]] = []
    for host in results["hosts"]:
        replies, tokens = host["replies"], host["tokens"]
        rows.append((
            host["host"], host["audits"], host["decisions"].get("inconsistent", 0),
            f"{replies['median']:g} ({replies['max']})", f"{tokens['median']:g} ({tokens['max']})",
            show_counts(host["named"]), show_counts(host["named_without_it"]),
        ))  # fmt: skip
    return tabulate_rows(_HEAD, rows)
