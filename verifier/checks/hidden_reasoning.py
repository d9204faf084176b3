"""Where a host hides a model's thoughts: what is left unasked is asked with thinking off.

Only where the card knows a setting that turns it off. Whether the host heeds it shows in what it
counts: an answer that comes with more tokens than it shows is set aside as before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from verifier.checks.check import Account, Case, Check, Remark, Session
from verifier.evidence.ledger import Ledger
from verifier.host.dialects import member
from verifier.host.exchange import HIDDEN, UNSHOWN
from verifier.plan_file import Plan, read_probes, write_probes
from verifier.records import Finding, NotJudged, Outcome, Probe


def hides_thoughts(
    plan: Plan, probes: tuple[Probe, ...], ledger: Ledger, outcomes: Mapping[str, Outcome]
) -> bool:
    """Whether every answer so far came without the thought that it follows."""
    found = {row.probe_id: row.unjudged for row in ledger.rows}
    found |= {o.probe_id: o.reason for o in outcomes.values() if isinstance(o, NotJudged)}
    reasons = [found.get(probe.id) for probe in probes if probe.id in outcomes]
    return can_turn_off(plan, probes) and bool(reasons) and all(map(_is_hidden, reasons))


def can_turn_off(plan: Plan, probes: tuple[Probe, ...]) -> bool:
    """Whether thinking can be turned off, and has not been."""
    if plan.thinking is None or not plan.thinking.switch_off:
        return False
    in_chat = member(plan.configuration.get("endpoint"), "dialect") == "chat"
    return in_chat and not any(map(_names(plan), probes))


def turn_off(run: Path, plan: Plan, *, asked: frozenset[str]) -> tuple[Probe, ...]:
    """Ask what has not been `asked` with thinking off; all probes as they stand then."""
    assert plan.thinking is not None
    off = plan.thinking.switch_off
    probes = tuple(
        probe
        if probe.id in asked
        else replace(probe, settings=tuple({**dict(probe.settings), **off}.items()))
        for probe in read_probes(run)
    )
    write_probes(run, probes)
    return probes


def _names(plan: Plan) -> Callable[[Probe], bool]:
    """Whether a probe says how to think."""
    assert plan.thinking is not None
    names = plan.thinking.switch_off.keys()
    return lambda probe: bool(dict(probe.settings).keys() & names)


def _is_hidden(reason: str | None) -> bool:
    return reason is not None and reason.startswith((HIDDEN, UNSHOWN))


# -- the check ---------------------------------------------------------------------------------


def _turn_off(session: Session, case: Case) -> bool:
    asked = frozenset(attempt.probe_id for attempt in case.attempts)
    turn_off(session.run, session.plan, asked=asked)
    return True


def ask_before(session: Session, case: Case, _kept: None) -> bool:
    """Turn thinking off before anything is asked, where the endpoint was found to hide it."""
    if session.pack is not None:
        return False
    known = case.kept.get("capabilities")  # its check says how thoughts show
    hidden = getattr(known, "reasoning", None) == "hidden"
    return hidden and can_turn_off(session.plan, case.probes) and _turn_off(session, case)


def ask(session: Session, case: Case, _kept: None) -> bool:
    """Turn thinking off, where every answer so far came without the thought that it follows."""
    if session.pack is not None:  # its questions are asked as they are, or not at all
        return False
    if not hides_thoughts(case.plan, case.probes, case.ledger, case.outcomes):
        return False
    session.show.tell("the endpoint hides thoughts: going on with thinking off")
    return _turn_off(session, case)


def remarks(
    case: Case, _evidence: None, _account: Account, _found: Sequence[Finding]
) -> list[Remark]:
    """That thinking was turned off; nothing where it was left as it was asked for."""
    plan = case.plan
    if plan.thinking is None or (plan.pack is not None and plan.pack.thinking == "off"):
        return []
    wished = member(plan.configuration.get("audit"), "template_settings")
    if any(member(wished, name) is not None for name in plan.thinking.switch_off):
        return []
    if not any(map(_names(plan), case.probes)):
        return []
    settings = ", ".join(f"{name}: {value}" for name, value in plan.thinking.switch_off.items())
    text = (
        "the endpoint hides what the model thinks, so further probes were asked with thinking off "
        f"({settings}): the verdict speaks of replies without thoughts"
    )
    return [Remark(text=text, at="first")]


CHECK: Final = Check[None, None](
    name="hidden_reasoning",
    remarks=remarks,
    ask={"before": ask_before, "ordinary": ask},
)
