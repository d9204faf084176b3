"""The score step from a pack: replies to rows of the ledger, without weights, engine or tokenizer.

A reply is judged up to and including the first place where it leaves the pack's paths (`paths`).
What a pack cannot read for certain has a row without cells that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from verifier.evidence.arrays import Array
from verifier.evidence.ledger import (
    TEMPLATE,
    TEXT_SCALES,
    Choices,
    Ledger,
    Left,
    Reported,
    Row,
    count_outranked,
    event_cells,
    ledger_to_json,
    logprob_cells,
)
from verifier.evidence.reported import describe_reports
from verifier.files.run_folder import LEDGER, write_json
from verifier.probes import PANEL_KIND, labels_of
from verifier.records import (
    REFERENCE,
    Candidate,
    NotJudged,
    Outcome,
    Probe,
    Reply,
    ReplyScore,
)
from verifier.records import Place as ShownPlace
from verifier.reference.pack_file import STEPS, Pack, Place
from verifier.reference.renderings.catalogue import entries_named
from verifier.scoring.alignment import REPLACEMENT
from verifier.scoring.left_texts import leave_texts
from verifier.scoring.packed_thoughts import read_as_path
from verifier.scoring.paths import Step, Walk, walk
from verifier.scoring.places import question_of, shown_bytes, text_before
from verifier.scoring.score_file import DECIMALS, digest_of

#: Why a reply is not judged from a pack.
OTHER_QUESTION: Final = "the pack has no such question"
NO_PLACE: Final = "its text does not tell a single token for certain"

#: Why reported log-probabilities are not judged.
TEXTS: Final = "of the trusted host texts alone are known"

FEW_KNOWN: Final = "the reference knows few alternatives, and not what the endpoint names"

#: Tokens before the limit of a reply that a thought is not judged by: the tag that opens it, one
#: that closes it, and white space before that.
AT_THE_LIMIT: Final = 3

#: Bytes shown of a text that no known token spells.
_SHOWN: Final = 12


def score_from_pack(
    run: Path,
    probes: Sequence[Probe],
    outcomes: Mapping[str, Outcome],
    *,
    pack: Pack,
    digest: Callable[[Reply | NotJudged], str] = digest_of,
) -> Ledger:
    """Judge every reply, and write the ledger: all of it anew, for it takes milliseconds.

    It has a row for each reply, and for each answer that is not judged and yet counts its prompt.
    """
    rows = []
    for number, probe in enumerate(probes):
        outcome = outcomes.get(probe.id)
        if isinstance(outcome, Reply):
            row = _row(pack, probe, outcome)
        elif isinstance(outcome, NotJudged) and outcome.counts_prompt:
            row = _unjudged(probe.id, outcome.reason)
        else:
            continue
        known = _number(pack, probe)
        rows.append(
            replace(
                row, prompt_tokens=outcome.prompt_tokens,
                rendered={} if known is None else pack.lengths(known),
                panel=probe.kind == PANEL_KIND, strata=labels_of(probe, number),
                reply_sha256=digest(outcome),
            )
        )  # fmt: skip
    engine = {**pack.manifest.engine, "pack": pack.digest}
    ledger = Ledger(rows=tuple(rows), engine=engine)
    write_json(run / LEDGER, {**ledger_to_json(ledger), "engine": engine})
    return ledger


def _number(pack: Pack, probe: Probe) -> int | None:
    """The number of a question, if it is asked as the pack has it."""
    number = pack.index.get(probe.id)
    if number is None:
        return None
    known = pack.probes[number]
    asked = (probe.messages, probe.tools, probe.settings, probe.today, probe.temperature)
    own = (known.messages, known.tools, known.settings, known.today, known.temperature)
    return number if asked == own else None


def _unjudged(probe_id: str, why: str) -> Row:
    return Row(
        probe_id=probe_id, tokens=0, left_out=0, text={}, logprob=None, logprob_problem=None,
        unjudged=why,
    )  # fmt: skip


def _row(pack: Pack, probe: Probe, reply: Reply) -> Row:
    number = _number(pack, probe)
    if number is None:
        return _unjudged(probe.id, OTHER_QUESTION)
    read = read_as_path(pack, reply)
    if isinstance(read, str):
        return _unjudged(probe.id, read)
    reply = read
    if pack.manifest.source == "texts":
        return _left(pack, number, reply)
    own = _walk(pack, pack.paths[number, 0], probe, reply)
    if not own.steps:
        return _unjudged(probe.id, NO_PLACE)
    reports = _read_reports(pack, own, reply)
    doubtful = own.ended == "doubtful"
    return Row(
        probe_id=probe.id,
        tokens=len(own.steps),
        left_out=int(doubtful),
        text={
            REFERENCE: _told(_sum(own.steps)),
            **{name: _told(cells) for name, cells in _builds(pack, own).items()},
            **{
                TEMPLATE + name: _told(cells)
                for name, cells in _renderings(pack, number, own, probe, reply).items()
            },
        },
        logprob=reports.cells,
        logprob_problem=reports.problem,
        outranked=reports.outranked,
        reported=reports.described,
        choices={REFERENCE: _choices(pack, probe, own)},
    )


def _walk(pack: Pack, path: int, probe: Probe, reply: Reply) -> Walk:
    """A reply along one path. Of a thought that the limit may have cut off the last few tokens are
    left alone: of a tag or white space there nobody knows whether it came."""
    own, thinking = walk(pack, path, reply), pack.manifest.thinking
    most = probe.max_tokens - AT_THE_LIMIT
    if thinking is None or thinking.mode == "off" or len(own.steps) <= most:
        return own
    return replace(own, steps=own.steps[:most], end=own.steps[most].begins, ended="end of path")


def _left(pack: Pack, number: int, reply: Reply) -> Row:
    """Where a reply leaves the texts of a trusted host: all that is known of it."""
    found = leave_texts(pack, pack.replies(number), reply)
    if found is None:
        return _unjudged(reply.probe_id, NO_PLACE)
    itself, *second = pack.tensors["leaving"][number].tolist()
    return Row(
        probe_id=reply.probe_id,
        tokens=found.target.exposure,
        left_out=0,
        text={},
        logprob=None,
        logprob_problem=TEXTS,
        left=Left(
            target=found.target.told, alone=found.alone.told, itself=itself,
            second=second[0] if second else None,
        ),
    )  # fmt: skip


def _sum(steps: Sequence[Step]) -> Array:
    """log p of all these steps at every scale."""
    return np.asarray(sum((step.cells for step in steps), np.zeros(len(TEXT_SCALES))))


def _told(cells: Array) -> tuple[float, ...]:
    return tuple(round(float(value), DECIMALS) for value in cells)


# -- the columns -------------------------------------------------------------------------------


def _builds(pack: Pack, own: Walk) -> dict[str, Array]:
    """The same steps under each build: at places that are close, its own words on the two likeliest
    tokens, and all else as published. For a name alone."""
    found = {name: _sum(own.steps) for name in pack.manifest.builds}
    for step in own.steps:
        row = pack.build_rows.get(step.place.number)
        if row is None:
            continue
        for name, two in zip(found, pack.tensors["build_logprobs"][row] / -STEPS, strict=True):
            found[name] = found[name] - step.cells + _under(step, two)
    return found


def _under(step: Step, two: Array) -> Array:
    """log p of a step where the two likeliest tokens have other log-probabilities."""
    place = step.place
    left = max(1 - float(np.exp(two).sum()), 1e-9)
    had = max(1 - float(np.exp(place.logprobs[:2]).sum()), 1e-9)
    shift = np.log(left / had)
    others = [value + shift for value in place.logprobs[2:]]
    return event_cells([*two.tolist(), *others], place.rest + shift, step.members)


def _renderings(pack: Pack, number: int, own: Walk, probe: Probe, reply: Reply) -> dict[str, Array]:
    """The steps of a question of the panel under every rendering.

    A fault is followed along its own path to where that is left, and beyond it as published: one
    distribution of texts. As published, or as another valid rendering, only what both know is
    counted, and all else is taken to be certain, so that no fault leads them by more than it may. A
    text that a fault's path does not name has its share of that, as the published one has it.
    """
    if number < len(pack.ordinary):
        return {}
    found = {}
    entries = entries_named(pack.manifest.renderings)
    for at, name in enumerate(pack.manifest.renderings):
        entry = entries[name]
        if name == REFERENCE or entry.past_end or not pack.tensors["counts"][number, at]:
            continue
        path = pack.paths.get((number, at))
        if path is None:  # its prompt is the published one
            found[name] = _sum(own.steps)
            continue
        other = _walk(pack, path, probe, reply)
        if entry.kind == "valid":
            found[name] = _sum([step for step in other.steps if step.begins < max(own.end, 1)])
            continue
        last = other.steps[-1] if other.steps else None
        known = other.end if last is not None and last.members else (last.begins if last else 0)
        beyond = [step for step in own.steps if step.begins >= known]
        found[name] = _sum(other.steps) + _sum(beyond)
    return found


# -- what the endpoint says of its tokens ------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reports:
    """What the log-probabilities that came with a reply say."""

    cells: tuple[float, ...] | None = None
    problem: str | None = None  # why there are no cells
    outranked: int | None = None
    described: Reported | None = None


def _read_reports(pack: Pack, own: Walk, reply: Reply) -> _Reports:
    """The log-probabilities of the judged places, as far as the endpoint's tokens are those there.

    Tokens that none of a place's are told of are left out, as those of an unknown vocabulary are.
    """
    if not reply.logprobs:
        return _Reports(problem=reply.logprobs_problem)
    if pack.manifest.source != "weights":
        return _Reports(problem=FEW_KNOWN)
    kept, named, told, listed = [], [], [], []
    for step, token in zip(own.steps, reply.logprobs, strict=False):
        if len(step.members) != 1:
            break
        (member,) = step.members
        chosen = _find(pack, step.place, token.chosen)
        ends = pack.token_id(step.place.tokens[member]) == pack.manifest.eos_id
        if chosen != member and not (ends and chosen is None):
            return _Reports(problem="reported tokens do not spell the reply's text")
        others = {member: token.chosen.logprob}
        for one in token.top:
            found = _find(pack, step.place, one)
            if found is not None:
                others.setdefault(found, one.logprob)
        same = (one.logprob for one in token.top if _find(pack, step.place, one) == member)
        kept.append(step)
        named.append(tuple(others))
        told.append(tuple(others.values()))
        listed.append(next(same, None))
    if not kept:
        return _Reports(problem="no token that it reports is one that the pack names")
    known = [
        tuple(step.place.logprobs[n] for n in some) for step, some in zip(kept, named, strict=True)
    ]
    cells = logprob_cells(told, known)
    return _Reports(
        cells=None if isinstance(cells, str) else cells,
        problem=cells if isinstance(cells, str) else None,
        outranked=count_outranked(told),
        described=describe_reports(
            _as_score(pack, kept, known),
            reply_ids=[_ids(pack, step)[step.members[0]] for step in kept],
            candidates=[
                tuple(_ids(pack, step)[n] for n in some)
                for step, some in zip(kept, named, strict=True)
            ],
            reported=told,
            own=listed,
        ),
    )


def _find(pack: Pack, place: Place, candidate: Candidate) -> int | None:
    """Which of a place's tokens an endpoint names; None: none, or it does not say for certain."""
    if candidate.token_id is not None:
        return next(
            (n for n, t in enumerate(place.tokens) if pack.token_id(t) == candidate.token_id), None
        )
    if candidate.bytes is None and REPLACEMENT in candidate.token:
        return None
    raw = candidate.bytes
    if raw is None:
        raw = candidate.token.encode("utf-8", "surrogatepass")
    found = [n for n, token in enumerate(place.tokens) if raw and pack.spell(token) == raw]
    return found[0] if len(found) == 1 else None


def _ids(pack: Pack, step: Step) -> list[int]:
    return [pack.token_id(token) for token in step.place.tokens]


def _as_score(pack: Pack, steps: Sequence[Step], known: Sequence[tuple[float, ...]]) -> ReplyScore:
    """The judged places as an engine would have scored them."""
    members = [step.members[0] for step in steps]
    places = [step.place for step in steps]
    return ReplyScore(
        logprobs=tuple(p.logprobs[m] for p, m in zip(places, members, strict=True)),
        ranks=tuple(_rank(p, m) for p, m in zip(places, members, strict=True)),
        entropies=tuple(0.0 for _ in steps),
        top_ids=tuple(pack.token_id(place.tokens[0]) for place in places),
        top_logprobs=tuple(tuple(sorted(place.logprobs, reverse=True)) for place in places),
        candidate_logprobs=tuple(known),
    )


def _rank(place: Place, member: int) -> int:
    return 1 + sum(value > place.logprobs[member] for value in place.logprobs)


# -- for readers -------------------------------------------------------------------------------


def _choices(pack: Pack, probe: Probe, own: Walk) -> Choices:
    """How the judged places stand to the weights' own choices."""
    differing = [n for n, step in enumerate(own.steps) if not _is_own(step)]
    expected = sum(
        (
            1 - np.exp(event_cells(s.place.logprobs, s.place.rest, (0,), few=s.place.few))
            for s in own.steps
        ),
        np.zeros(len(TEXT_SCALES)),
    )
    worst = max(differing, key=lambda n: _behind(own.steps[n]), default=None)
    return Choices(
        differing=len(differing),
        expected=_told(expected),
        worst=None if worst is None else _show(pack, probe, own, worst),
    )


def _is_own(step: Step) -> bool:
    return any(_rank(step.place, member) == 1 for member in step.members)


def _behind(step: Step) -> float:
    return max(step.place.logprobs) - _plain(step)


def _plain(step: Step) -> float:
    """log p of a step without noise."""
    some = [step.place.logprobs[member] for member in step.members] or [step.place.rest]
    return float(np.logaddexp.reduce(some))


def _show(pack: Pack, probe: Probe, own: Walk, at: int) -> ShownPlace:
    step = own.steps[at]
    served: str | None = shown_bytes(own.text[step.begins : step.begins + _SHOWN])
    if step.members:
        served = _show_token(pack, step.place.tokens[step.members[0]])
    elif step.begins == len(own.text):
        served = None
    return ShownPlace(
        probe_id=probe.id,
        asked=question_of(probe),
        position=at,
        after=text_before(own.text[: step.begins]),
        published=_show_token(pack, step.place.tokens[0]),
        log_p_published=max(step.place.logprobs),
        served=served,
        log_p_served=_plain(step),
    )


def _show_token(pack: Pack, token: int) -> str | None:
    if pack.token_id(token) == pack.manifest.eos_id:
        return None
    raw = pack.spell(token)
    return shown_bytes(raw) if raw else f"token {pack.token_id(token)}"
