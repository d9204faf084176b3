"""What is said of a template that the catalogue lacks: each entry left out once, and served.

A host serves the published weights after one rendering, and its audit has a catalogue without that
entry, and without any that is the same text on every probe of the panel. It ought to be called a
rendering that is not known; another entry's name for sure is wrong. Audits are panels, made and
read as those of `templates`: the search for them knew all entries, which parts them no worse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from verifier.checks.check import UNKNOWN_RENDERING
from verifier.checks.template.panel import PANEL_PROBES
from verifier.checks.template.panel_design import Panel
from verifier.lab.bench.results import (
    begin_results,
    results_path,
    tabulate_rows,
    write_results,
)
from verifier.lab.bench.templates import NONE, READINGS, Host, design, open_panels
from verifier.reference.reader import Renderer
from verifier.reference.renderings.catalogue import (
    Rendering,
    expressible,
    render_probe,
)

PART: Final = "left-out"

#: Audits of each entry, unless told otherwise.
AUDITS: Final = 20


def list_left_out(
    panel: Panel, entries: Mapping[str, Rendering], renderer: Renderer, *, audits: int = AUDITS
) -> list[Host]:
    """A host for every fault that shows on a panel, with what its catalogue lacks.

    Of entries that are the same text on all its probes one is served, and all are left out; so are
    all texts that stand for one hidden prompt.
    """
    able = [
        entry for entry in expressible(entries.values(), panel.probes, renderer)
        if entry.kind == "fault"
    ]  # fmt: skip
    prompts = {
        entry.name: tuple(render_probe(entry, probe, renderer) for probe in panel.probes)
        for entry in able
        if not entry.past_end
    }
    hosts, served = [], set[str]()
    for entry in able:
        if entry.stands_for not in (None, entry.name) or entry.name in served:
            continue
        twins = {
            other.name for other in able
            if other.name == entry.name or other.stands_for == entry.name
            or (entry.name in prompts and prompts.get(other.name) == prompts[entry.name])
        }  # fmt: skip
        served |= twins
        hosts.append(Host(fault=f"template:{entry.name}", audits=audits, missing=frozenset(twins)))
    return hosts


def run_left_out_bench(
    out: Path,
    *,
    cache: Path,
    seed: int,
    tell: Callable[[str], None],
    faults: Sequence[str] = (),
    audits: int | None = None,
) -> Path:
    """Leave out each entry, or those of `faults`, in so many audits; the path of the results.

    Every audit is kept as it ends, and a run goes on where an earlier one with the same `out` and
    seed was stopped.
    """
    bench, tokenizer, entries = open_panels(
        out, cache=cache, seed=seed, batch=PANEL_PROBES, tell=tell
    )
    most = AUDITS if audits is None else audits
    for number in range(most):
        panel = design(tokenizer, entries, seed + number)
        hosts = list_left_out(panel, entries, tokenizer, audits=most)
        wanted = [host for host in hosts if not faults or host.fault in faults]
        bench.measure(number, wanted, panel)
        write_results(out, PART, sum_up(bench.done(), seed=seed))
        tell(f"audit {number + 1} of {most}: {len(wanted)} entries left out")
    return results_path(out, PART)


def sum_up(audits: Sequence[Mapping[str, Any]], *, seed: int) -> dict[str, Any]:
    """The results file: what was said in all, by how counts are read, and every audit."""
    return {
        **begin_results(seed=seed),
        "said": {key: dict(Counter(call(a[key]) for a in audits)) for key in READINGS},
        "each": list(audits),
    }  # fmt: skip


def call(read: Mapping[str, Any]) -> str:
    """What was said of a rendering that the catalogue lacks."""
    said = read["said"]
    if UNKNOWN_RENDERING in said:
        return "not known" if len(said) == 1 else "another, or not known"
    return "another" if said else NONE


def tabulate_left_out(results: Mapping[str, Any]) -> str:
    """Two Markdown tables: what was said in all, and what of entries that were called otherwise."""
    calls = ("not known", "another, or not known", NONE, "another")
    totals = [
        (key, len(results["each"]), *(results["said"][key].get(one, 0) for one in calls))
        for key in READINGS
    ]  # fmt: skip
    otherwise = [
        (audit["truth"], key, audit[key])
        for audit in results["each"] for key in READINGS if call(audit[key]) != "not known"
    ]  # fmt: skip
    wrong = [
        (name, key, " or ".join(read["said"]) or NONE, read.get("scale_left", "-"))
        for name, key, read in otherwise
    ]
    first = tabulate_rows(("read", "audits", *calls), totals)
    head = ("left out and served", "read", "called", "noise scale left")
    return f"{first}\n\n{tabulate_rows(head, wrong)}" if wrong else first
