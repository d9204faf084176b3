"""Streams against whole replies: the same greedy question, asked both ways.

Facts of a few pairs, no statistics: counts of the prompt, finish reasons and the fields that come
must be the same either way; texts and counts of the reply are compared only where the host gives
the same text when it is asked the same way twice. None of it says anything of the weights, so it
decides no verdict. Asked last, where the run file says so (`audit.streaming`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from verifier.checks.check import (
    Account,
    Asked,
    Aspect,
    Case,
    Check,
    Forecast,
    Planned,
    Session,
    make_finding,
)
from verifier.config import RunFile
from verifier.evidence.calibration import Calibration
from verifier.host.budget import Amount
from verifier.host.dialects import member
from verifier.host.exchange import Problem, parse, request_of
from verifier.plan_file import Plan, read_probes, write_probes
from verifier.records import Decision, Failure, Finding, Outcome, Probe, Reply
from verifier.reference.cards import Card

PARITY: Final = Aspect(
    name="streaming", label="streams against whole replies", place=200, role="remark",
    without_reference=True,
)  # fmt: skip

#: Questions that are asked both ways.
PAIRS: Final = 3

#: The probes of the check in the run folder, and how their ids begin: `stream-1-again` asks the
#: first question as before, `stream-1-other` the other way.
PROBES: Final = "streaming.jsonl"
PREFIX: Final = "stream-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The questions that were asked both ways: the ordinary probe of each, by its number."""

    of: Mapping[int, str]


def read(run: Path, _plan: Plan, _outcomes: Mapping[str, Outcome]) -> Kept:
    """Which questions were asked both ways."""
    numbered = {
        (probe.messages, probe.max_tokens): int(probe.id.split("-")[1])
        for probe in read_streaming_probes(run)
    }
    ordinary = read_probes(run) if numbered else ()
    found = {(probe.messages, probe.max_tokens): probe.id for probe in reversed(ordinary)}
    return Kept(of={number: found[asked] for asked, number in numbered.items() if asked in found})


def read_streaming_probes(run: Path) -> tuple[Probe, ...]:
    """The probes of the check, once they are asked."""
    return read_probes(run, name=PROBES)


def ask(session: Session, case: Case, _kept: Kept) -> bool:
    """Ask a few answered questions again, the same way and the other."""
    if not _tokens(session.plan) or not session.finish(CHECK.name):
        return False
    probes = read_streaming_probes(session.run) or tuple(_again(case))
    if not probes:
        return False
    write_probes(session.run, probes, name=PROBES)
    session.ask(tuple(probe for probe in probes if probe.id.endswith("again")))
    other = replace(session.endpoint, stream=not session.endpoint.stream)
    session.ask(tuple(probe for probe in probes if probe.id.endswith("other")), direct=other)
    return True


def _again(case: Case) -> Iterator[Probe]:
    answered = [
        probe for probe in case.probes
        if isinstance(case.outcomes.get(probe.id), Reply) and not probe.stream and probe.logprobs
    ]  # fmt: skip
    for number, probe in enumerate(answered[:PAIRS], 1):
        yield replace(probe, id=f"{PREFIX}{number}-again")
        yield replace(probe, id=f"{PREFIX}{number}-other")


def name_it(
    case: Case, _evidence: None, _account: Account, _found: Sequence[Finding], _decision: Decision
) -> list[Finding]:
    """What differs between a stream and a whole reply."""
    kept: Kept = case.kept[CHECK.name]
    streams = member(case.plan.configuration.get("endpoint"), "stream") is True
    asked = [
        (
            case.outcomes.get(probe),
            _asked(case, f"{PREFIX}{n}-again", stream=streams),
            _asked(case, f"{PREFIX}{n}-other", stream=not streams),
        )
        for n, probe in sorted(kept.of.items())
    ]
    failed = [other for *_, other in asked if isinstance(other, Failure)]
    pairs = [three for three in asked if all(isinstance(one, Reply) for one in three)]
    name = PARITY.label
    way = "whole" if streams else "as a stream"
    if failed and not pairs:
        detail = f"asked {way}, {len(failed)} of {len(asked)} questions fail: {failed[0].reason}"
        return [make_finding(PARITY, "detected", f"no answer {way}", None, detail)]
    if not pairs:
        return []
    repeats = all(_said(first) == _said(again) for first, again, _ in pairs)
    told = [dict(_differences(again, other, texts=repeats)) for _, again, other in pairs]
    fields = list(dict.fromkeys(field for one in told for field in one))
    if not fields:
        texts = "texts included" if repeats else "but for texts, as asking twice gives others"
        detail = f"{len(pairs)} questions asked both ways are answered alike, {texts}"
        return [make_finding(PARITY, "excluded", name, None, detail)]
    shown = "; ".join(
        f"{field} in {sum(field in one for one in told)} of {len(pairs)}: "
        + next(one[field] for one in told if field in one)
        for field in fields
    )  # fmt: skip
    said = f"streams differ from whole replies: {', '.join(fields)}"
    return [make_finding(PARITY, "detected", said, None, f"asked {way}: {shown}")]


def _asked(case: Case, probe_id: str, *, stream: bool) -> Outcome | None:
    """What came of a question that was asked this way; a Failure where the host refused it so."""
    outcome = case.outcomes.get(probe_id)
    tries = [attempt for attempt in case.attempts if attempt.probe_id == probe_id]
    if not tries or outcome is None or isinstance(outcome, Failure):
        return outcome
    if (member(request_of(tries[-1]), "stream") is True) == stream:
        return outcome
    first = parse(tries[0], claims=False)
    reason = first.reason if isinstance(first, Problem) else "the host refuses it"
    return Failure(probe_id=probe_id, status=None, reason=reason, attempts=len(tries))


def _said(reply: object) -> tuple[str | None, str] | None:
    return (reply.thought, reply.text) if isinstance(reply, Reply) else None


def _differences(one: object, other: object, *, texts: bool) -> Iterator[tuple[str, str]]:
    """What differs between two answers to one question, by field; `texts`: the texts may count."""
    assert isinstance(one, Reply)
    assert isinstance(other, Reply)
    for field in ("finish_reason", "prompt_tokens"):
        before, after = getattr(one, field), getattr(other, field)
        if before != after:
            yield field, f"{_shown(before)} before, {_shown(after)} now"
    for field in ("logprobs", "token_ids", "thought"):
        before, after = getattr(one, field) is None, getattr(other, field) is None
        if before != after:
            yield field, "given before, not now" if after else "not given before, now it is"
    if texts and _said(one) != _said(other):
        yield "text", "another text"
    elif texts and one.completion_tokens != other.completion_tokens:
        before, after = one.completion_tokens, other.completion_tokens
        yield "completion_tokens", f"{_shown(before)} before, {_shown(after)} now"


def _shown(value: object) -> str:
    return "none" if value is None else f"{value}"[:40]


def _tokens(plan: Plan) -> int:
    """Completion tokens that its questions may take; 0 where it is not wished for."""
    wished = member(plan.configuration.get("audit"), "streaming") is True
    return 2 * PAIRS * plan.max_tokens if wished else 0


def plan(config: RunFile, _card: Card, _calibration: Calibration | None) -> Planned:
    """What is kept of the budget."""
    tokens = 2 * PAIRS * config.audit.max_tokens if config.audit.streaming else 0
    return Planned(tokens=tokens, beside=f"the {tokens} that audit.streaming asks for")


def reserve(plan: Plan) -> Amount:
    """Kept until all else is asked."""
    return Amount(requests=0, prompt_tokens=0, completion_tokens=_tokens(plan))


def forecast(plan: Plan) -> Forecast:
    """Its requests, whose completion tokens are a part of the budget's already."""
    requests = 2 * PAIRS if _tokens(plan) else 0
    asked = Amount(requests=requests, prompt_tokens=1024 * requests, completion_tokens=0)
    return Forecast(expected=asked, most=asked)


CHECK: Final = Check[Kept, None](
    name="streaming",
    read=read,
    none=Kept(of={}),
    aspects=(PARITY,),
    plan=plan,
    reserve=reserve,
    forecast=forecast,
    name_it=name_it,
    ask={"beside": ask},
    asked=(Asked(probes=read_streaming_probes),),
    own_probes=(PREFIX,),
)
