"""The standing bet against our own null, over every honest audit that the benchmarks made.

Null: each audit's e-value has mean at most 1 on an honest host, which is all that alpha rests on.
The bet W = prod(1 + STAKE (min(e, MOST) - 1)) then has mean at most 1 too, and reaches REFUTED ever
with probability at most 1/REFUTED (Ville 1939). An audit that accuses multiplies W by 11 at most, a
quiet one takes 1 % at most. Which audits enter and in what order is decided by their probes, never
by their evidence. The audits of the seeds 7 and 20261125 were on record when STAKE and MOST were
fixed; what enters behind them was not.

Audits that share probes or replies may depend on each other, so they enter together, as the mean of
their e-values, which is one whatever they share (Vovk and Wang 2021). What has entered stays as it
is: each line carries a digest of all before it, and audits of probes that have entered come late.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from verifier.files.run_folder import read_json
from verifier.lab.bench import certificate, identity, routing, samplers, templates, tricks, wire
from verifier.lab.bench.results import (
    CARD,
    EACH,
    SCHEMA,
    results_path,
    tabulate_rows,
    write_results,
)

PART: Final = "standing"

#: What is bet on each entry, and what an e-value counts for at most.
STAKE: Final = 0.01
MOST: Final = 1000.0

#: At so much our null is refuted.
REFUTED: Final = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """An audit of an honest host whose e-value is on record."""

    of: str  # part and host, and what was read
    seed: int  # of its probes
    first: int  # of its probes, among those that the seed draws
    replies: int
    log_e: float


def list_audits(part: str, results: Mapping[str, Any]) -> list[Audit]:
    """The honest audits of a part's results, of which e-value and probes are on record."""
    if part == CARD:
        return [
            Audit(
                of=f"precision {figure['figure']}", seed=results["seed"], first=audit["first"],
                replies=audit["replies"], log_e=audit["log_e"],
            )
            for figure in results["figures"] if figure["part"] == "honest"
            for audit in figure[EACH]
        ]  # fmt: skip
    if part == identity.PART:
        return [
            audit for host in results["hosts"] if host["host"] == identity.HONEST
            for audit in _consecutive(f"identity {host['host']}", results["seed"], host[EACH])
        ]  # fmt: skip
    if part == certificate.PART:
        return [
            Audit(
                of=f"certificate {stack['stack']}", seed=results["seed"], first=first,
                replies=replies, log_e=log_e,
            )
            for stack in results["stacks"] for first, replies, _, log_e in stack[EACH]
        ]  # fmt: skip
    return []


def _consecutive(of: str, seed: int, audits: Iterable[Sequence[Any]]) -> Iterable[Audit]:
    """Audits [replies, tokens, log e] of slices one after the other."""
    first = 0
    for replies, _, log_e in audits:
        yield Audit(of=of, seed=seed, first=first, replies=replies, log_e=log_e)
        first += replies


#: Parts with honest audits that cannot enter: how many, and why.
_ABSENT: Final[Mapping[str, tuple[Callable[[Any], int], str]]] = {
    routing.PART: (
        lambda found: sum(line["audits"] for line in found["lines"] if not line["share"]),
        "they share the replies of one host, to probes that have entered",
    ),
    samplers.PART: (
        lambda found: sum(audit["fault"] == "none" for audit in found[EACH]),
        "they share replies, and what is on record is the evidence of samples alone",
    ),
    templates.PART: (
        lambda found: sum(audit["fault"] == "none" for audit in found[EACH]),
        "what is on record is the evidence of templates alone",
    ),
    tricks.PART: (
        lambda found: sum(audit["fault"] == "none" for audit in found[EACH]),
        "no e-value is on record",
    ),
    wire.PART: (lambda found: len(found["verdicts"]), "no e-value is on record"),
}


def append_audits(standing: Mapping[str, Any] | None, found: Mapping[str, Any]) -> dict[str, Any]:
    """The bet with the honest audits of all results `found` that may enter behind what has."""
    entries = [] if standing is None else list(standing[EACH])
    audits = [audit for part in found for audit in list_audits(part, found[part])]
    known = {(seed, first, last, of) for seed, first, last, of, _ in _members(entries)}
    taken = {(seed, first, last) for seed, first, last, _, _ in _members(entries)}
    new, late = [], 0
    for audit in audits:
        key = (audit.seed, audit.first, audit.first + audit.replies)
        if (*key, audit.of) in known:
            continue
        met = any(s == key[0] and key[1] < last and first < key[2] for s, first, last in taken)
        late += met
        if not met:
            new.append(audit)
    for group in _groups(new):
        entries.append(_linked(entries, group))
    absent = {
        part: {"audits": count(found[part]), "why": why}
        for part, (count, why) in _ABSENT.items() if part in found
    }  # fmt: skip
    if late:
        absent["late"] = {"audits": late, "why": "other audits of their probes had entered"}
    bet = {"schema_version": SCHEMA, "stake": STAKE, "most": MOST, "refuted_at": REFUTED}
    return bet | {"absent": absent, EACH: entries}


def _members(entries: Iterable[Any]) -> Iterable[tuple[int, int, int, str, float]]:
    """Seed, first and last probe, name and log e of every audit that has entered."""
    for seed, audits, _ in entries:
        for of, first, replies, log_e in audits:
            yield seed, first, first + replies, of, log_e


def _groups(audits: Iterable[Audit]) -> list[list[Audit]]:
    """Audits that share probes, directly or by others, together; in the order of probes."""
    groups: list[list[Audit]] = []
    end = -1
    for audit in sorted(audits, key=lambda audit: (audit.seed, audit.first, audit.of)):
        if groups and groups[-1][0].seed == audit.seed and audit.first < end:
            groups[-1].append(audit)
            end = max(end, audit.first + audit.replies)
        else:
            groups.append([audit])
            end = audit.first + audit.replies
    return groups


def _linked(entries: Sequence[Any], group: Sequence[Audit]) -> list[Any]:
    """The line of a group behind others: seed, audits, and the digest of all so far."""
    audits = [[audit.of, audit.first, audit.replies, audit.log_e] for audit in group]
    return [group[0].seed, audits, link(entries[-1][2] if entries else "", group[0].seed, audits)]


def link(before: str, seed: int, audits: Sequence[Any]) -> str:
    """The digest of a line and, by that of the line before it, of all lines so far."""
    line = json.dumps([before, seed, audits], separators=(",", ":"))
    return hashlib.sha256(line.encode()).hexdigest()[:16]


def is_whole(standing: Mapping[str, Any]) -> bool:
    """Whether no line was changed, taken out or put in after another had been linked to it."""
    before = ""
    for seed, audits, said in standing[EACH]:
        before = link(before, seed, audits)
        if before != said:
            return False
    return True


def wealth(standing: Mapping[str, Any]) -> list[float]:
    """W after each entry."""
    e_values = [
        float(np.mean([min(MOST, math.exp(log_e)) for *_, log_e in audits]))
        for _, audits, _ in standing[EACH]
    ]
    return [float(value) for value in np.cumprod([1 + STAKE * (e - 1) for e in e_values])]


def keep_standing(out: Path, parts: Iterable[str]) -> dict[str, Any]:
    """Let the results of `parts` that lie in `out` enter the bet that lies there too."""
    found = {
        part: read_json(results_path(out, part))
        for part in parts if results_path(out, part).exists()
    }  # fmt: skip
    path = results_path(out, PART)
    made = append_audits(read_json(path) if path.exists() else None, found)
    write_results(out, PART, made)
    return made


def summarize_standing(standing: Mapping[str, Any]) -> str:
    """One sentence on where the bet stands."""
    worth = wealth(standing)
    audits = sum(len(entry[1]) for entry in standing[EACH])
    said = "it never came near" if max(worth, default=1.0) < REFUTED else "it was reached"
    return (
        f"A standing bet against our own error rate is worth {(worth or [1.0])[-1]:.2g} of its "
        f"stake after {audits:,} honest audits in {len(worth)} independent groups, at most "
        f"{max(worth, default=1.0):.2g}; at {REFUTED:,.0f} alpha would be refuted, and {said}."
    )


def tabulate_standing(standing: Mapping[str, Any]) -> str:
    """What entered, by seed and host, and what did not."""
    hosts: dict[tuple[int, str], list[float]] = {}
    for seed, _, _, of, log_e in _members(standing[EACH]):
        hosts.setdefault((seed, of), []).append(log_e)
    rows: list[tuple[object, ...]] = [
        (of, seed, len(found), f"{np.median(found):.1f}", f"{max(found):.1f}", "")
        for (seed, of), found in hosts.items()
    ]
    rows += [
        (part, "", one["audits"], "", "", f"not entered: {one['why']}")
        for part, one in standing["absent"].items()
    ]
    head = ("audits of", "seed", "audits", "median log e", "largest", "")
    return f"{summarize_standing(standing)}\n\n{tabulate_rows(head, rows)}"
