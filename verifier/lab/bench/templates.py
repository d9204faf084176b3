"""The benchmark of template names: which fault is said of hosts whose fault is known.

An audit is one panel, searched for with a seed of its own and asked over HTTP: twelve requests at
most. The same panels are asked of every host, so the replies of all hosts to a probe are scored
together and each rendered prompt is computed once. Every audit is read with and without the counts
of prompt tokens, and with counts that are all one too high: those of a host that counts a BOS which
the template lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

from verifier.checks.check import UNKNOWN_RENDERING
from verifier.checks.template.evidence import (
    ENOUGH,
    TemplateEvidence,
    weigh_templates,
)
from verifier.checks.template.findings import CHECK as TEMPLATE_CHECK
from verifier.checks.template.naming import Named, named_template
from verifier.checks.template.panel import (
    FURTHER_ROUNDS,
    PANEL_PROBES,
    PANEL_TOKENS,
    ROUNDS,
    ends_panel,
    likely_after,
    look_further,
)
from verifier.checks.template.panel_design import Panel, design_panel
from verifier.evidence.e_values import confidence_sequence
from verifier.evidence.ledger import TEMPLATE, TEXT_SCALES, Ledger
from verifier.evidence.noise import read_rows
from verifier.files.run_folder import append_line, read_lines
from verifier.host.collect import read_outcomes
from verifier.lab.bench.results import (
    begin_results,
    fetch_measured,
    middle_and_most,
    results_path,
    tabulate_rows,
    write_results,
)
from verifier.lab.corpus import (
    MAX_ATTEMPTS,
    RememberingEngine,
    Stack,
    collect_corpus,
    load_host,
)
from verifier.lab.testbed.faults import Fault, read_fault
from verifier.plan_file import Plan
from verifier.probes import draw, load_pool
from verifier.records import REFERENCE, Failure, NotJudged, Probe, Reply, ScoreRequest
from verifier.reference.cards import Thinking
from verifier.reference.engines import Engine
from verifier.reference.engines.load import load_engine
from verifier.reference.renderings.catalogue import (
    SERVED_HIDDEN,
    Rendering,
    catalogue,
    entries_named,
    expressible,
    render_probe,
)
from verifier.reference.tokenizer import Tokenizer
from verifier.scoring.score import score_replies
from verifier.scoring.score_file import read_scores
from verifier.verdict.combine import needed

PART: Final = "templates"
AUDITS: Final = "audits.jsonl"

FAULT_AUDITS: Final = 20
HONEST_AUDITS: Final = 50  # of each of the two hosts whose weights are right too

#: How the counts of prompt tokens of an audit are read.
READINGS: Final = ("with counts", "without counts", "with counts one too high")
_WEIGHTS: Final = "int4-sym-g64"

#: Hosts that render as they should: one of them in another valid way, one of them badly rounded.
RIGHT: Final = ("none", "template:leading-whitespace-stripped", _WEIGHTS)
BOTH: Final = f"{_WEIGHTS}+template:default-system-dropped"

#: What was answered: what is not judged counts its prompt all the same.
_Answer = Reply | NotJudged

#: Names so few nats apart have the same likelihood.
_TIED: Final = 1e-6

#: What is said when no fault is named.
NONE: Final = "no template fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A testbed host of the benchmark."""

    fault: str  # as the testbed names it
    audits: int
    missing: frozenset[str] = frozenset()  # entries that the catalogue lacks when it is audited

    @property
    def weights_fault(self) -> bool:
        """Whether its weights are at fault: then names take more than a panel."""
        return self.fault.startswith(_WEIGHTS)

    @property
    def truth(self) -> str:
        """What ought to be said of its template."""
        if self.fault in RIGHT:
            return NONE
        return self.fault.partition("template:")[2]

    def served(self, number: int) -> str:
        """The testbed's name of it in one audit: hidden prompts have other words in each."""
        words = number % len(SERVED_HIDDEN)
        other = words and self.truth == "system-injected"
        return f"{self.fault}-{words + 1}" if other else self.fault


def list_hosts(panel: Panel, entries: Mapping[str, Rendering]) -> list[Host]:
    """Every host whose fault the template can express, the right ones first."""
    able = [
        name for name in panel.names
        if entries[name].kind == "fault" and entries[name].stands_for in (None, name)
    ]  # fmt: skip
    right = [Host(fault=fault, audits=HONEST_AUDITS) for fault in RIGHT[:2]]
    right += [Host(fault=fault, audits=FAULT_AUDITS) for fault in (_WEIGHTS, BOTH)]
    return [*right, *(Host(fault=f"template:{name}", audits=FAULT_AUDITS) for name in able)]


def run_template_bench(
    out: Path,
    *,
    cache: Path,
    seed: int,
    tell: Callable[[str], None],
    faults: Sequence[str] = (),
    audits: int | None = None,
) -> Path:
    """Measure `faults` (all when empty), `audits` of each at most; the path of the results.

    Every audit is kept as it ends, and a run goes on where an earlier one with the same `out` and
    seed was stopped. Audits of all hosts go side by side, so that what a stopped run has is even.
    """
    bench, tokenizer, entries = open_panels(out, cache=cache, seed=seed, batch=1, tell=tell)
    first = design(tokenizer, entries, seed)
    hosts = [h for h in list_hosts(first, entries) if not faults or h.fault in faults]
    most = max(min(h.audits, audits or h.audits) for h in hosts)
    for number in range(most):
        wanted = [h for h in hosts if number < min(h.audits, audits or h.audits)]
        bench.measure(number, wanted, design(tokenizer, entries, seed + number))
        write_results(out, PART, sum_up(bench.done(), seed=seed))
        tell(f"audit {number + 1} of {most}: {len(wanted)} hosts")
    return results_path(out, PART)


def design(tokenizer: Tokenizer, entries: Mapping[str, Rendering], seed: int) -> Panel:
    """The panel of an audit with this seed."""
    return design_panel(
        tokenizer, tuple(entries.values()), load_pool(), seed=seed, size=PANEL_PROBES,
        max_tokens=PANEL_TOKENS,
    )  # fmt: skip


def open_panels(
    out: Path, *, cache: Path, seed: int, batch: int, tell: Callable[[str], None]
) -> tuple[Panels, Tokenizer, Mapping[str, Rendering]]:
    """What measures panels in `out`, on a host in bfloat16; its tokenizer, and the catalogue."""
    card, weights = fetch_measured(cache=cache, tell=tell)
    tokenizer, entries = Tokenizer(weights), catalogue()
    bench = Panels(
        out=out, plan=bench_plan(seed), tokenizer=tokenizer, entries=entries,
        reference=load_engine("transformers", weights, tokenizer),
        host=load_host(weights, tokenizer, Stack(dtype="bfloat16", batch=batch)),
        layers=card.layers,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    return bench, tokenizer, entries


def bench_plan(seed: int) -> Plan:
    """What audits are planned by."""
    from verifier.lab.bench.precision import Figure, make_bench_plan

    stack = Stack(dtype="bfloat16", batch=PANEL_PROBES)
    figure = Figure(part="templates", stack=stack, policy="screen", with_logprobs=False, audits=1)
    return make_bench_plan(figure, seed=seed)


class Panels:
    """Two engines, one to serve and one to score, and what they measured."""

    def __init__(
        self, *, out: Path, plan: Plan, tokenizer: Tokenizer, entries: Mapping[str, Rendering],
        reference: Engine, host: Engine, layers: int, thinking: Thinking | None = None,
        further: bool = False,
    ) -> None:  # fmt: skip
        """`thinking` says how the model that is served writes thoughts; with `further`, a panel
        that leaves a fault open is followed by ordinary replies, as in an audit."""
        self._out = out
        self._plan = plan
        (self._needed,) = needed(self._plan)[TEMPLATE_CHECK.name]
        self._tokenizer = tokenizer
        self._entries = entries
        self._engine = reference
        self._reference = RememberingEngine(reference)
        self._host = host
        self._layers = layers
        self._thinking = thinking
        self._further = further

    def close(self) -> None:
        """Free the engines."""
        self._engine.close()
        self._host.close()

    def done(self) -> list[dict[str, Any]]:
        """Every audit so far."""
        return list(read_lines(self._out / AUDITS))

    def measure(self, number: int, hosts: Sequence[Host], panel: Panel) -> None:
        """One audit of each host that lacks it, over the same panel."""
        have = {(audit["fault"], audit["number"]) for audit in self.done()}
        hosts = [host for host in hosts if (host.fault, number) not in have]
        self._reference = RememberingEngine(self._engine)  # what one panel needs, another does not
        replies: dict[str, dict[str, _Answer]] = {}
        able = expressible(self._entries.values(), panel.probes, self._tokenizer)
        likely = {
            h.fault: (REFERENCE, *(e.name for e in able if e.name not in h.missing)) for h in hosts
        }
        settled: set[str] = set()
        ledgers: dict[str, Ledger] = {}
        asked = 0
        for size in ROUNDS:
            open_ = [host for host in hosts if host.fault not in settled]
            most = max(size, ENOUGH)
            replies |= {h.fault: self._ask(number, h, panel.probes, most=most) for h in open_}
            self._score_together(number, open_, panel.probes[asked:size], replies, likely)
            for host in open_:
                names = likely[host.fault]
                ledger, found = self._look(number, host, panel.probes[:size], replies, names)
                ledgers[host.fault] = ledger
                if found is None:  # nothing could be judged yet
                    continue
                if ends_panel(
                    found, names, self._entries, self._plan.calibration, needed=self._needed
                ):
                    settled.add(host.fault)
                likely[host.fault] = likely_after(
                    found, names, self._entries, self._plan.calibration
                )
            asked = size
        for host in hosts:
            of_panel = len(ledgers[host.fault].rows)
            if host.weights_fault or (self._further and host.fault not in settled):
                ledgers[host.fault] = self._go_on(number, host, panel, replies, likely[host.fault])
            audit = self._read(host, number, ledgers[host.fault], replies[host.fault])
            append_line(self._out / AUDITS, audit | {"panel_requests": of_panel})

    def _go_on(
        self, number: int, host: Host, panel: Panel, replies: dict[str, dict[str, _Answer]],
        names: tuple[str, ...],
    ) -> Ledger:  # fmt: skip
        """Ordinary replies after a panel's, as an audit asks where other weights blur the name."""
        ordinary = draw(
            load_pool(), seed=self._plan.seed + number, count=FURTHER_ROUNDS[-1],
            max_tokens=self._plan.max_tokens,
        )  # fmt: skip
        ledger, found = self._look(number, host, panel.probes, replies, names)

        def look(size: int, names: tuple[str, ...]) -> TemplateEvidence | None:
            nonlocal ledger
            replies[host.fault] |= self._ask(number, host, ordinary, most=size, kind="ordinary")
            asked = (*panel.probes, *ordinary[:size])
            ledger, found = self._look(number, host, asked, replies, names)
            return found

        look_further(found, names, self._entries, self._plan.calibration, look, needed=self._needed)
        return ledger

    def _look(
        self, number: int, host: Host, probes: Sequence[Probe],
        replies: Mapping[str, Mapping[str, _Answer]], names: tuple[str, ...],
    ) -> tuple[Ledger, TemplateEvidence | None]:  # fmt: skip
        """Score a host's replies under renderings, and weigh them without their counts."""
        folder = self._folder(number, host)
        ledger = score_replies(
            folder, probes, replies[host.fault], engine=self._reference,
            tokenizer=self._tokenizer, templates=names, catalogue=self._known(host),
            thinking=self._thinking,
        )  # fmt: skip
        found = weigh_templates(_uncounted(ledger), self._entries, self._plan.calibration.text)
        return ledger, found

    def _known(self, host: Host) -> Mapping[str, Rendering]:
        """The catalogue that an audit of this host has."""
        return {name: e for name, e in self._entries.items() if name not in host.missing}

    def _folder(self, number: int, host: Host) -> Path:
        return self._out / f"{number:03}" / host.fault.replace(":", "-")

    def _ask(
        self, number: int, host: Host, probes: Sequence[Probe], *, most: int, kind: str = "panel"
    ) -> dict[str, _Answer]:
        fault: Fault = read_fault(host.served(number), layers=self._layers, catalogue=self._entries)
        folder = self._folder(number, host) / kind
        stack = Stack(dtype="bfloat16", batch=PANEL_PROBES, weights=fault.weights)
        collect_corpus(
            folder, stack, probes, engine=self._host, tokenizer=self._tokenizer,
            rendering=fault.rendering, limit=most, thinking=self._thinking,
        )  # fmt: skip
        outcomes = read_outcomes(folder, max_attempts=MAX_ATTEMPTS)
        return {
            name: replace(found, logprobs=None, logprobs_problem=None)
            if isinstance(found, Reply) else found
            for name, found in outcomes.items()
            if not isinstance(found, Failure)
        }  # fmt: skip

    def _score_together(
        self,
        number: int,
        hosts: Sequence[Host],
        probes: Sequence[Probe],
        replies: Mapping[str, Mapping[str, _Answer]],
        likely: Mapping[str, tuple[str, ...]],
    ) -> None:
        """Score what the hosts' ledgers will need at once: rendered prompts are then shared."""
        wanted: dict[ScoreRequest, None] = {}
        for host in hosts:
            folder = self._folder(number, host)
            score_replies(  # under the published rendering: it decides how a text is read
                folder, probes, replies[host.fault], engine=self._reference,
                tokenizer=self._tokenizer, thinking=self._thinking,
            )  # fmt: skip
            asked = {probe.id: probe for probe in probes}
            scored = read_scores(folder)
            done = {(s.probe_id, s.weights) for s in scored}
            read = {s.probe_id: s.aligned.reply_ids for s in scored if s.weights == REFERENCE}
            for name, (probe_id, ids) in product(likely[host.fault], read.items()):
                if probe_id not in asked or (probe_id, TEMPLATE + name) in done:
                    continue
                made = render_probe(self._entries[name], asked[probe_id], self._tokenizer)
                if made is not None:
                    wanted[ScoreRequest(prompt_ids=made.ids, reply_ids=ids)] = None
        self._reference.load_variant(REFERENCE)
        self._reference.score(list(wanted))

    def _read(
        self, host: Host, number: int, ledger: Ledger, replies: Mapping[str, _Answer]
    ) -> dict[str, Any]:
        asked = {row.probe_id for row in ledger.rows}
        read = dict(zip(READINGS, (ledger, _uncounted(ledger), _counted_on(ledger)), strict=True))
        return {
            "fault": host.fault,
            "truth": host.truth,
            "number": number,
            "requests": len(asked),
            "completion_tokens": sum(replies[name].completion_tokens or 0 for name in asked),
            **{key: self._name(some) for key, some in read.items()},
        }

    def _name(self, ledger: Ledger) -> dict[str, Any]:
        evidence = weigh_templates(ledger, self._entries, self._plan.calibration.text)
        if evidence is None:  # no reply could be judged
            return {"said": [], "ranked": [], "log_odds": None, "log_e": 0.0, "noise_lower": None}
        named = named_template(evidence, self._plan.calibration, needed=self._needed)
        column = None if named is None else named.column
        rows = read_rows(ledger.text(column or REFERENCE), TEXT_SCALES, self._plan.calibration.text)
        interval = confidence_sequence(rows, TEXT_SCALES, level=1 - self._plan.beta)
        second = evidence.behind[evidence.ranked[1]] if len(evidence.ranked) > 1 else None
        own = evidence.fits[evidence.ranked[0]]
        return {
            "said": said_of(named),
            "ranked": list(evidence.ranked[:3]),
            "log_odds": second,
            "log_e": evidence.log_e,
            "noise_lower": None if interval is None else interval.lower,
            "log_e_of_fit": round(own.misfit, 4),
            "scale_left": round(own.scale, 4),
            "counts_off": [own.counts.of - own.counts.matched, own.counts.of],
        }


def said_of(named: Named | None) -> list[str]:
    """The names that a report gives, the one of a rendering that is not known among them."""
    if named is None:
        return []
    return [*named.names, *(() if named.names and named.certain else (UNKNOWN_RENDERING,))]


def _uncounted(ledger: Ledger) -> Ledger:
    return Ledger(rows=tuple(replace(row, prompt_tokens=None) for row in ledger.rows))


def _counted_on(ledger: Ledger) -> Ledger:
    return Ledger(
        rows=tuple(
            replace(row, prompt_tokens=None if row.prompt_tokens is None else row.prompt_tokens + 1)
            for row in ledger.rows
        )
    )


def sum_up(audits: Sequence[Mapping[str, Any]], *, seed: int) -> dict[str, Any]:
    """The results file: confusion matrices, names true by names said, and every audit."""
    return {
        **begin_results(seed=seed),
        "confusion": {key: _confusion(audits, key) for key in READINGS},
        "each": list(audits),
    }  # fmt: skip


def _confusion(audits: Sequence[Mapping[str, Any]], key: str) -> dict[str, dict[str, int]]:
    """For each host, how often each name or group of names was said."""
    found: dict[str, Counter[str]] = {}
    for audit in audits:
        said = " or ".join(audit[key]["said"]) or NONE
        found.setdefault(audit["fault"], Counter())[said] += 1
    return {fault: dict(said.most_common()) for fault, said in found.items()}


def tabulate_templates(results: Mapping[str, Any]) -> str:
    """The audits as one Markdown table, a row per host: what was said, and what ranked first."""
    heads = [f"{what}, {key}" for key in READINGS for what in ("said rightly", "ranked first")]
    columns = ["host", "audits", *heads, "requests", "tokens", "said otherwise"]
    rows: list[tuple[object, ...]] = []
    for fault in results["confusion"][READINGS[0]]:
        of = [audit for audit in results["each"] if audit["fault"] == fault]
        counts = [
            sum(is_so(audit, key) for audit in of)
            for key in READINGS for is_so in (is_said, _is_first)
        ]  # fmt: skip
        spent = [middle_and_most(of, what) for what in ("requests", "completion_tokens")]
        wrong = Counter(
            f"{' or '.join(audit[key]['said']) or 'nothing'}, {key}"
            for key in READINGS for audit in of if not is_said(audit, key)
        )  # fmt: skip
        said = "; ".join(f"{name} {count}" for name, count in wrong.most_common()) or "-"
        rows.append((fault, len(of), *counts, *spent, said))
    return tabulate_rows(columns, rows)


def is_said(audit: Mapping[str, Any], key: str) -> bool:
    """Whether what is true was said: alone, or in a group; nothing, of a right template."""
    said = audit[key]["said"]
    return not said if audit["truth"] == NONE else audit["truth"] in said


def _is_first(audit: Mapping[str, Any], key: str) -> bool:
    """Whether the true rendering is the likeliest, said or not; ties count."""
    ranked, odds = audit[key]["ranked"], audit[key]["log_odds"]
    first = ranked[:2] if odds is not None and odds < _TIED else ranked[:1]
    if audit["truth"] == NONE:
        entries = entries_named(first)
        return any(entries[name].kind == "valid" for name in first)
    return audit["truth"] in first
