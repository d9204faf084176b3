"""What is said of hosts that look right while they are not: whole audits, over HTTP, end to end.

Each host of the testbed is audited as a user would, with the switches of a run file that its fault
needs; an honest host is asked in all these ways at once. Nothing is replayed, so these audits are
few: they show what is found and after how many tokens, not how often an honest host is accused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from verifier.audit import audit
from verifier.config import AuditSection, EndpointSection, ReferenceSection, RunFile
from verifier.files.run_folder import append_line, read_lines
from verifier.lab.bench.results import (
    CARD,
    begin_results,
    middle_and_most,
    results_path,
    show_counts,
    tabulate_rows,
    write_results,
)
from verifier.lab.demo import kept_port, local_host
from verifier.progress import Show
from verifier.records import Report
from verifier.reference.loaded import LoadReference

PART: Final = "tricks"
AUDITS_FILE: Final = "audits.jsonl"

#: Audits of each host, unless told otherwise.
AUDITS: Final = 4

_BUILD: Final = "int4-asym-g64"
_VARY: Final = {"vary": True}
_SAMPLED: Final = {"sampler": True}
_LONG: Final = {"context": 600}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trick:
    """A host of the testbed, and how it is asked."""

    fault: str
    aspect: str | None  # the finding that ought to be detected; None: no one
    settings: Mapping[str, Any] = field(default_factory=dict)


HOSTS: Final = (
    Trick(fault="none", aspect=None, settings=_VARY | _SAMPLED | _LONG | {"output": 200}),
    Trick(fault=f"{_BUILD}+spares:first", aspect="strata", settings=_VARY),
    Trick(fault=f"{_BUILD}+spares:streams", aspect="strata", settings=_VARY),
    Trick(fault=f"{_BUILD}+spares:logprobs", aspect="strata", settings=_VARY),
    Trick(fault=f"{_BUILD}+spares:short", aspect="strata", settings=_VARY),
    Trick(fault=f"{_BUILD}+forges:logprobs", aspect="forged"),
    Trick(fault=f"{_BUILD}+sampler:temperature=0.95", aspect="cause", settings=_SAMPLED),
    Trick(fault="cache:same", aspect="repeats", settings=_SAMPLED),
    Trick(fault="cache:alike", aspect="repeats", settings=_SAMPLED),
    Trick(
        fault="ignores:stop,n,logit_bias,seed", aspect="parameters",
        settings={"capabilities": True},
    ),
    Trick(fault="sampler:drop-best=0.02", aspect="sampler"),
    Trick(fault="sampler:rare=0.01", aspect="sampler"),
    Trick(fault="sampler:repetition-penalty=1.1", aspect="sampler"),
    Trick(fault="context:400,front-kept", aspect="context", settings=_LONG),
    Trick(fault="context:400,front,hidden", aspect="context", settings=_LONG),
    Trick(fault="context:400,middle,hidden", aspect="context", settings=_LONG),
    Trick(fault="ceiling:60,hidden", aspect="ceiling", settings={"output": 200}),
)  # fmt: skip


def run_trick_bench(
    out: Path, *, load_reference: LoadReference, show: Show, seed: int, audits: int = AUDITS
) -> Path:
    """Audit every host `audits` times; the path of the results.

    Audits of all hosts go side by side, and each is kept as it ends: a run goes on where an earlier
    one with the same `out` and seed was stopped, and what a stopped one has is even.
    """
    out.mkdir(parents=True, exist_ok=True)
    kept, reference = out / AUDITS_FILE, load_reference()
    for number in range(audits):
        for trick in HOSTS:
            have = {(a["fault"], a["number"]) for a in read_lines(kept)}
            if (trick.fault, number) in have:
                continue
            show.tell(f"audit {number + 1} of {audits}: {trick.fault}")
            run = out / f"{number:03}" / trick.fault.replace(":", "-")
            with local_host(trick.fault, dtype="bfloat16", port=kept_port(run)) as url:
                config = RunFile(
                    endpoint=EndpointSection(base_url=url, model=CARD, timeout_s=300),
                    reference=ReferenceSection(card=CARD),
                    audit=AuditSection(seed=seed + number, **trick.settings),
                    out=run,
                )
                report = audit(config, api_key=None, load_reference=lambda: reference, show=show)
            append_line(kept, describe_audit(trick, number, report))
        write_results(out, PART, sum_up(list(read_lines(kept)), seed=seed))
    return results_path(out, PART)


def describe_audit(trick: Trick, number: int, report: Report) -> dict[str, Any]:
    """What one audit found: its verdict, every finding that was detected, and what it took."""
    return {
        "fault": trick.fault,
        "number": number,
        "wanted": trick.aspect,
        "decision": report.decision,
        "detected": [[f.aspect, f.name] for f in report.findings if f.decision == "detected"],
        "requests": report.usage.requests,
        "replies": report.usage.replies,
        "completion_tokens": report.usage.completion_tokens,
    }


def sum_up(audits: Sequence[Mapping[str, Any]], *, seed: int) -> dict[str, Any]:
    """The results file: every audit."""
    return begin_results(seed=seed) | {"each": list(audits)}


def is_found(one: Mapping[str, Any]) -> bool:
    """Whether the finding that is true was detected; of an honest host, nothing at all."""
    detected = [aspect for aspect, _ in one["detected"]]
    return not detected if one["wanted"] is None else one["wanted"] in detected


def tabulate_tricks(results: Mapping[str, Any]) -> str:
    """The audits as one Markdown table, a row per host."""
    columns = (
        "host", "audits", "verdicts", "what is true", "said", "all that was detected",
        "replies", "tokens",
    )  # fmt: skip
    rows: list[tuple[object, ...]] = []
    for fault in dict.fromkeys(one["fault"] for one in results["each"]):
        of = [one for one in results["each"] if one["fault"] == fault]
        verdicts = Counter(one["decision"] for one in of)
        detected = Counter(aspect for one in of for aspect in {a for a, _ in one["detected"]})
        rows.append((
            fault, len(of), show_counts(verdicts), of[0]["wanted"] or "none",
            sum(map(is_found, of)), show_counts(detected),
            middle_and_most(of, "replies"), middle_and_most(of, "completion_tokens"),
        ))  # fmt: skip
    return tabulate_rows(columns, rows)
