"""A look at the template: the panel is asked, until the rendering that is served is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from verifier.checks.check import Session
from verifier.checks.template.evidence import (
    BEHIND,
    ENOUGH,
    TemplateEvidence,
    is_settled,
    still_likely,
    weigh_templates,
)
from verifier.checks.template.naming import (
    NOISY,
    is_unknown,
    leaves_noise,
    named_template,
    needed_to_name,
)
from verifier.checks.template.panel_design import Panel, design_panel
from verifier.checks.template.shown_prompts import ask_for_prompts, read_shown
from verifier.evidence.calibration import Calibration
from verifier.evidence.ledger import TEMPLATE, Ledger, read_ledger
from verifier.evidence.noise import SAMPLED_FROM
from verifier.evidence.posterior import is_rather_a_suspect
from verifier.files.run_folder import PANEL, PROMPTS, write_json
from verifier.files.stored import read_record
from verifier.plan_file import read_probes, write_probes
from verifier.probes import load_pool
from verifier.progress import Show
from verifier.records import REFERENCE, Probe
from verifier.reference.cards import Card
from verifier.reference.loaded import Reference
from verifier.reference.renderings.catalogue import (
    Rendering,
    catalogue,
    entries_named,
    expressible,
    refuse_unknown,
    render_probe,
)
from verifier.reference.weights import check_weights, fetch_weights
from verifier.scoring.loadable import read_suspects

if TYPE_CHECKING:
    from verifier.reference.pack_file import Pack

#: Probes of a panel, and completion tokens of each: renderings that differ, differ early.
PANEL_PROBES = 12
PANEL_TOKENS = 48

#: Replies of a panel scored at each look at the renderings.
ROUNDS = (1, 2, 4, 8, 12)

#: Ordinary replies scored at each further look, where a panel's replies leave a fault unnamed.
FURTHER_ROUNDS = (8, 16, 24, 36, 48)

#: Ordinary replies asked at least where noise of other weights is left.
LEAST_BESIDE_NOISE = 16

#: How close to the pace of a name a lead must keep, where ordinary replies are asked further.
IN_STEP = 0.75


def design_card_panel(card: Card, *, seed: int, size: int, cache: Path, show: Show) -> Panel:
    """The panel of a card for a seed; needs its tokenizer, no engine."""
    from verifier.reference.tokenizer import Tokenizer

    weights = fetch_weights(card, cache=cache, tell=show.tell)
    check_weights(card, weights)
    return design_panel(
        Tokenizer(weights), tuple(catalogue().values()), load_pool(), seed=seed, size=size,
        max_tokens=PANEL_TOKENS,
    )  # fmt: skip


def look_at_template(session: Session, *, needed: float) -> None:
    """Ask the panel, a few probes at a time, until the rendering is known or all are asked.

    The panel is searched for once and kept in the run folder. `needed` is the evidence (nats) of a
    fault that suffices for the verdict.
    """
    run, plan, reference = session.run, session.plan, session.reference
    if not (run / PANEL).exists():
        found = design_panel(
            reference.tokenizer, tuple(reference.catalogue.values()), load_pool(), seed=plan.seed,
            size=PANEL_PROBES, max_tokens=min(PANEL_TOKENS, plan.max_tokens),
        )  # fmt: skip
        write_probes(run, found.probes, name=PANEL)
    ask_for_prompts(
        run, session.endpoint, read_probes(run, name=PANEL), entries=reference.catalogue,
        renderer=reference.tokenizer, purse=session.purse(),
        max_tokens=session.endpoint.least_max_tokens, stopped=session.pace.stopped,
    )  # fmt: skip
    score_panel(session, needed=needed, before=session.ask)


def look_at_packed(session: Session, pack: Pack, *, needed: float) -> None:
    """Ask the panel of a pack, a few probes at a time, until the rendering is known or all are
    asked: every rendering that it knows speaks of every reply. `needed` as above."""
    run, plan = session.run, session.plan
    if not (run / PANEL).exists():
        shortest = (replace(p, max_tokens=min(p.max_tokens, plan.max_tokens)) for p in pack.panel)
        write_probes(run, tuple(shortest), name=PANEL)
    panel = read_probes(run, name=PANEL)
    entries = entries_named(pack.manifest.renderings)
    for size in ROUNDS:
        goes_on = session.ask(panel[: max(size, ENOUGH)])
        ledger = session.score_columns(panel[:size])
        evidence = weigh_templates(ledger, entries, plan.calibration.text)
        if evidence is not None and evidence.scored:
            names = (REFERENCE, *(name for name in entries if TEMPLATE + name in _scored(ledger)))
            if ends_panel(evidence, names, entries, plan.calibration, needed=needed):
                break
        if not goes_on:
            break


def _scored(ledger: Ledger) -> frozenset[str]:
    """Every column of a ledger."""
    return frozenset(name for row in ledger.rows for name in row.text)


def score_panel(
    session: Session,
    *,
    needed: float,
    before: Callable[[tuple[Probe, ...]], object] | None = None,
) -> None:
    """Score a panel's replies under the renderings that are still likely, in a few rounds.

    Where they leave a fault the likeliest and yet unnamed, as noise of other weights does, ordinary
    replies are scored too, under the renderings that are then still likely. Each of these is
    dropped by what it was scored on so far, a stopping time of its own e-process, so the evidence
    against every valid rendering keeps its level. Hidden prompts of unknown words are left to the
    panel: noise of other weights looks like words that nobody knows. Where a suspect, served
    honestly, made the replies, there is no fault of the template to look for.

    `before` is called with the probes that a round needs before they are scored.
    """
    panel, probes = read_probes(session.run, name=PANEL), read_probes(session.run)
    entries, calibration = session.reference.catalogue, session.plan.calibration
    able = expressible(entries.values(), panel, session.reference.tokenizer)
    names = (REFERENCE, *(entry.name for entry in able))

    def look(some: tuple[Probe, ...], names: tuple[str, ...]) -> TemplateEvidence | None:
        ledger = session.score_columns(some, templates=names)
        return weigh_templates(ledger, entries, calibration.text)

    evidence = None
    for size in ROUNDS:
        if before is not None:
            before(panel[: max(size, ENOUGH)])
        evidence = look(panel[:size], names)
        if evidence is None:  # nothing could be judged yet
            continue
        if ends_panel(evidence, names, entries, calibration, needed=needed):
            break
        names = likely_after(evidence, names, entries, calibration)
    if evidence is not None and is_of_a_suspect(session, evidence):
        return

    def look_at_ordinary(size: int, names: tuple[str, ...]) -> TemplateEvidence | None:
        if before is not None:
            before(probes[:size])
        return look(probes[:size], names)

    look_further(evidence, names, entries, calibration, look_at_ordinary, needed=needed)
    write_prompts(session.run, panel, session.reference, calibration)


def look_further(
    evidence: TemplateEvidence | None,
    names: Sequence[str],
    entries: Mapping[str, Rendering],
    calibration: Calibration,
    look: Callable[[int, tuple[str, ...]], TemplateEvidence | None],
    *,
    needed: float,
) -> None:
    """Look at ordinary replies after a panel's, as long as they may yet name a fault.

    `look` is given how many of them, and the names to score them under, and says what there is now.
    """
    likely, asked = tuple(name for name in names if not entries[name].stands_for), 0
    for size in FURTHER_ROUNDS:
        if evidence is None or not evidence.scored:
            break
        if not leaves_a_fault_open(evidence, calibration, ordinary=asked, needed=needed):
            break
        evidence, asked = look(size, likely), size
        if evidence is not None:
            likely = likely_after(evidence, likely, entries, calibration)


def ends_panel(
    evidence: TemplateEvidence,
    names: Sequence[str],
    entries: Mapping[str, Rendering],
    calibration: Calibration,
    *,
    needed: float,
) -> bool:
    """Whether no more of a panel is needed: one name leads by far, and a fault can be said.

    A rendering that is not known is said on the whole panel: what fits may yet come to lead. So is
    one that no counts confirm, and none is said for sure on a few replies: a template that is
    nearly the same fits these as well.
    """
    named = named_template(evidence, calibration, needed=needed)
    confirmed = (
        named is not None and named.names != () and named.certain
        and evidence.fits[named.nearest].counts.of >= ENOUGH
    )  # fmt: skip
    may_be_said = evidence.ranked[0] in evidence.valid or confirmed
    return may_be_said and is_settled(evidence, names, entries)


def is_of_a_suspect(session: Session, evidence: TemplateEvidence) -> bool:
    """Whether a suspect, served honestly, made the ordinary replies, and not a template fault.

    Asked only where a fault is the likeliest rendering and leaves noise beyond honest serving: the
    ordinary replies are then scored under each suspect, under that rendering, which the panel
    chose, and under every valid one, which the evidence against valid renderings needs.
    """
    plan, column = session.plan, evidence.columns[evidence.ranked[0]]
    if evidence.ranked[0] in evidence.valid or not leaves_noise(evidence, plan.calibration):
        return False
    suspects = read_suspects(plan, session.reference, session.show)
    if not suspects:
        return False
    ledger = session.score_columns(
        read_probes(session.run)[: FURTHER_ROUNDS[0]],
        weights=tuple(suspects),
        templates=(column.removeprefix(TEMPLATE), *sorted(evidence.valid)),
    )
    return is_rather_a_suspect(
        ledger, column, plan.calibration.text, bank=plan.bank, suspects=tuple(plan.suspects),
        error=plan.beta,
    )  # fmt: skip


def likely_after(
    evidence: TemplateEvidence,
    names: Sequence[str],
    entries: Mapping[str, Rendering],
    calibration: Calibration,
) -> tuple[str, ...]:
    """The renderings to go on with.

    Beside weights that differ one falls behind by chance: NOISY times as far is allowed there. A
    4-bit host that left the default system prompt out was 25 nats behind a hidden prompt after a
    panel, of which four probes show the difference, and led by 20 after 24 ordinary replies.
    """
    noisy = leaves_noise(evidence, calibration)
    return still_likely(evidence, names, entries, behind=BEHIND * (NOISY if noisy else 1))


def leaves_a_fault_open(
    evidence: TemplateEvidence, calibration: Calibration, *, ordinary: int, needed: float
) -> bool:
    """Whether more replies may yet name a fault: one is the likeliest, or the panel cannot tell.

    Beside other weights a panel cannot: few of its probes show what leaves the system prompt out,
    so LEAST_BESIDE_NOISE ordinary replies are asked, whatever leads.
    After `ordinary` replies hidden prompts of unknown words are left aside, since these are not
    scored under them, and the lead over every valid rendering must have grown in step with IN_STEP
    of what a name needs after the last round. Other weights alone look like some fault for a while.
    """
    named = named_template(evidence, calibration, needed=needed)
    if evidence.scale >= SAMPLED_FROM or named is not None:
        return False  # noise of another model bears no name
    if ordinary < LEAST_BESIDE_NOISE and leaves_noise(evidence, calibration):
        return True
    entries = entries_named(evidence.ranked)
    known = [n for n in evidence.ranked if not ordinary or entries[n].stands_for is None]
    lead = min(evidence.behind[name] for name in evidence.ranked if name in evidence.valid)
    lead -= evidence.behind[known[0]]  # a valid one is always there: the published
    enough = needed_to_name(evidence, calibration, needed=needed)
    return lead > IN_STEP * enough * ordinary / FURTHER_ROUNDS[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """All that `prompts.json` holds: a prompt under two renderings."""

    probe_id: str
    name: str  # of the rendering that is likeliest
    published: str
    served: str


def write_prompts(
    run: Path, panel: tuple[Probe, ...], reference: Reference, calibration: Calibration
) -> None:
    """Keep a prompt as published and as the likeliest rendering makes it: the shortest that shows.

    The likeliest is what the endpoint shows, where it shows a known fault. Nothing is kept when the
    published rendering is the likeliest.
    """
    entries, ledger = reference.catalogue, read_ledger(run)
    evidence, shown = weigh_templates(ledger, entries, calibration.text), read_shown(run)
    if shown is not None and shown.faults:
        name = column = shown.faults[0]
    elif evidence is not None and evidence.ranked[0] != REFERENCE:
        name = evidence.ranked[0]
        column = evidence.columns[name].removeprefix(TEMPLATE)
    else:
        return
    pairs = []
    for probe in panel:
        published = render_probe(entries[REFERENCE], probe, reference.tokenizer)
        served = render_probe(entries[column], probe, reference.tokenizer)
        if published is not None and served is not None and published.text != served.text:
            pairs.append((len(published.text), probe.id, published.text, served.text))
    if pairs:
        _, probe_id, published_text, served_text = min(pairs)
        prompts = Prompts(
            probe_id=probe_id, name=name, published=published_text, served=served_text
        )
        write_json(run / PROMPTS, asdict(prompts))


def read_prompts(run: Path) -> dict[str, str] | None:
    """A prompt as published and as the named rendering makes it, to be shown.

    None where none is kept, or where its words only stand for some that are not known.
    """
    if not (run / PROMPTS).exists():
        return None
    found = read_record(run / PROMPTS, Prompts)
    refuse_unknown([found.name], where=f"{run / PROMPTS}: name")
    return None if is_unknown(TEMPLATE + found.name) else asdict(found)
