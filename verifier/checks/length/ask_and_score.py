"""Long prompts and long replies: whether the endpoint reads and writes as much as it is held to.

Asked after the ordinary probes, where the run file says so, since long prompts cost money: a
register of rooms, of which the first line, the middle one and the last are to be copied. A prompt
that does not fit the published weights is halved towards the longest that does; the window between
them is then measured by scoring the replies under prompts that are cut, without another request. An
endpoint that refuses a long prompt, or says that a limit ended a reply, says so honestly: that is a
limit, and no fault.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Final, cast

from pydantic import Discriminator, Tag

from verifier.checks.length.evidence import (
    CONTEXT_TOKENS,
    LONG_REPLIES,
    MARKS,
    PLACES,
    REQUESTS,
    WHOLE,
    CeilingRow,
    Cut,
    LongRow,
    bracket,
    cut,
    fits,
    limit_said,
    narrow,
    near_best,
    next_length,
    read_cut,
    weigh_context,
)
from verifier.errors import ConfigError
from verifier.evidence.ledger import TextCells, text_cells
from verifier.files.run_folder import CONTEXT, CONTEXT_SCORES, append_line
from verifier.files.stored import read_rows
from verifier.plan_file import Plan, read_probes
from verifier.prompts import prompt_of
from verifier.records import (
    REFERENCE,
    Count,
    Failure,
    Message,
    Outcome,
    Probe,
    Reply,
    ScoreRequest,
    TokenId,
)
from verifier.reference.engines import Engine
from verifier.reference.reader import Reader
from verifier.reference.renderings.catalogue import PUBLISHED, template_ends
from verifier.scoring.alignment import align
from verifier.scoring.readings import published_ids, read_and_score
from verifier.scoring.score_file import digest_of, refuse_others

#: Kinds of the probes that ask for long prompts and for long replies.
CONTEXT_KIND: Final = "context"
OUTPUT_KIND: Final = "output"

#: Windows tried at once in the bracket that requests leave, and again around the best of them.
_GRID: Final = 8

_FIRST: Final = (
    "amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "hazel", "ivory", "jade",
    "karst", "lemon", "maple", "north", "ocean", "pearl", "quartz", "river", "slate", "tulip",
    "umber", "violet", "willow", "yarrow", "zephyr",
)  # fmt: skip
#: Lines are asked for by name: a model of 135 million parameters that is asked for the line in the
#: middle answers from the first and the last, so five of its replies excluded no cut of the middle
#: (3.1 nats of 6.9), where one to copy three lines does by 7 to 28.
_QUESTION: Final = "Copy these three lines of the list, with their numbers: {}."
_LONG: Final = (
    "Write down the numbers from {start} to {end}, each on a line of its own, and nothing else.",
    "Tell a story about {first} and {second}, of {words} words or more. Do not end it early.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A long prompt that got no answer."""

    status: int | None  # None: no response at all
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What long prompts and long replies brought."""

    prompts: tuple[LongRow, ...]
    replies: tuple[CeilingRow, ...]
    refusals: tuple[Refusal, ...]  # of long prompts
    silent: tuple[str, ...] = ()  # why answers to long prompts tell nothing
    unread: tuple[str, ...] = ()  # and those that were to be long

    @property
    def asked(self) -> int:
        """Long prompts that have an outcome."""
        return len(self.prompts) + len(self.refusals) + len(self.silent)

    @property
    def limit(self) -> int | None:
        """The window that a refusal names; None: there is none, or it names none."""
        return None if not self.refusals else limit_said(self.refusals[-1].reason)


def add_room(rooms: dict[str, str], rng: random.Random) -> None:
    """Add a room and its number, unless the name that is drawn is taken; half of all names are free
    at least, whatever the length of the register."""
    words = next(k for k in count(2) if len(_FIRST) ** k > 2 * len(rooms))
    name = f"Room {' '.join(rng.choices(_FIRST, k=words))}"
    rooms.setdefault(name, str(rng.randint(1000, 9999)))


def context_probe(plan: Plan, number: int, length: int, renderer: Reader) -> Probe:
    """A probe of at most `length` prompt tokens, its question included.

    Its register is drawn by the run's secret seed, so no answer can be prepared.
    """
    rng = random.Random(f"{plan.seed}:context:{number}")  # noqa: S311 - a seed is the secret
    rooms: dict[str, str] = {}

    def made(lines: int) -> Probe:
        while len(rooms) < lines:
            add_room(rooms, rng)
        names = list(rooms)[:lines]
        asked = "; ".join(names[at] for at in (0, lines // 2, lines - 1))
        listed = [f"{name}: {rooms[name]}" for name in names]
        question = _QUESTION.format(asked)
        content = "\n".join(["Here is a list of rooms.", "", *listed, "", question])
        return Probe(
            id=f"context-{number}", kind=CONTEXT_KIND, max_tokens=CONTEXT_TOKENS,
            messages=(Message(role="user", content=content),), settings=_settings(plan),
        )  # fmt: skip

    def size(lines: int) -> int:
        return len(published_ids(made(lines), renderer))

    low, high = 1, 2
    while size(high) <= length:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= length else (low, middle)
    return made(low)


def output_probe(plan: Plan, number: int) -> Probe:
    """A probe whose reply is to be longer than what is asked for."""
    rng = random.Random(f"{plan.seed}:output:{number}")  # noqa: S311 - a seed is the secret
    start, (first, second) = rng.randint(100, 900), rng.sample(_FIRST, 2)
    content = _LONG[(number - 1) % len(_LONG)].format(
        start=start, end=start + plan.output_tokens, first=first, second=second,
        words=2 * plan.output_tokens,
    )  # fmt: skip
    return Probe(
        id=f"output-{number}", kind=OUTPUT_KIND, max_tokens=plan.output_tokens,
        messages=(Message(role="user", content=content),), settings=_settings(plan),
    )  # fmt: skip


def _settings(plan: Plan) -> tuple[tuple[str, bool | str], ...]:
    found = plan.configuration.get("audit", {}).get("template_settings", {})
    return tuple(found.items())


def next_probe(
    run: Path, plan: Plan, found: Context, *, needed: float, tokenizer: Reader, replies: bool = True
) -> Probe | None:
    """What is asked next: long replies first, then long prompts; None: enough was asked.

    It follows from what is in the run folder, so an audit that was stopped goes on, and is kept
    there. `needed` is the evidence (nats) that suffices for the verdict; without `replies` no long
    ones are asked for.
    """
    probe = None
    number = len(found.replies) + len(found.unread) + 1
    settled = any(row.end is None or row.is_limited for row in found.replies)
    if replies and plan.output_tokens and number <= LONG_REPLIES and not settled:
        probe = _kept(run, f"output-{number}") or output_probe(plan, number)
    elif plan.context_tokens:
        number, length = found.asked + 1, _next(plan, found, needed)
        if length is not None and number <= REQUESTS:
            kept = _kept(run, f"context-{number}")
            probe = kept or context_probe(plan, number, length, tokenizer)
    if probe is not None and _kept(run, probe.id) is None:
        append_line(run / CONTEXT, asdict(probe))
    return probe


def score_one(
    run: Path, plan: Plan, probe: Probe, reply: Reply, *, engine: Engine, tokenizer: Reader
) -> None:
    """Score the reply to one long prompt, or where a long reply ends."""
    engine.load_variant(REFERENCE)
    _score(run, plan, probe, reply, engine, tokenizer)


def score_context(
    run: Path,
    plan: Plan,
    outcomes: Mapping[str, Outcome],
    *,
    engine: Engine,
    tokenizer: Reader,
    needed: float,
) -> None:
    """Score the long prompts and replies of a run folder that are not scored, and measure a cut.

    Raises ConfigError for a malformed line of the scores.
    """
    read_context(run, outcomes)  # which refuses such a line
    probes = read_probes(run, name=CONTEXT)
    if not probes:
        return
    engine.load_variant(REFERENCE)
    for probe in probes:
        outcome = outcomes.get(probe.id)
        if isinstance(outcome, Reply):
            _score(run, plan, probe, outcome, engine, tokenizer)
    _measure(run, plan, engine, tokenizer, outcomes, needed)


def _next(plan: Plan, found: Context, needed: float) -> int | None:
    """The length of the next prompt: the longest that the host does not say it refuses."""
    tokens = plan.context_tokens
    if found.refusals:
        limit = found.limit
        if limit is None or len(found.refusals) > 1 or limit <= 2 * CONTEXT_TOKENS:
            return None
        tokens = min(tokens, limit - CONTEXT_TOKENS)
    if len(found.silent) > 1:
        return None
    return next_length(
        found.prompts, tokens=tokens, channel=plan.calibration.text,
        needed=needed, excluded=math.log(1 / plan.beta),
    )  # fmt: skip


def _kept(run: Path, probe_id: str) -> Probe | None:
    return next((p for p in read_probes(run, name=CONTEXT) if p.id == probe_id), None)


def _score(
    run: Path, plan: Plan, probe: Probe, reply: Reply, engine: Engine, tokenizer: Reader
) -> None:
    """Score a reply whole, and under the cuts that it must exclude; or where it ends.

    What is scored already, before a kill, is not scored again.
    """
    scored = _scored(run)
    known = probe.id in scored.whole or probe.id in scored.ends
    if probe.kind == OUTPUT_KIND:
        if not known:
            append_line(run / CONTEXT_SCORES, _score_end(probe, reply, engine, tokenizer))
        return
    if not known:
        append_line(run / CONTEXT_SCORES, _score_whole(plan, probe, reply, engine, tokenizer))
    rows = _rows(run, {probe.id: reply})
    (row,) = [row for row in rows if row.probe_id == probe.id]
    cuts = []
    if row.counted is not None and row.counted < row.length - narrow(plan.context_tokens):
        cuts = [Cut(place=place, window=row.counted) for place in PLACES]
    elif fits(row, plan.calibration.text):
        longest = rows[0].length  # one window for all, so that their evidence adds up
        of = [longest] if row.length > MARKS[0] * longest else [longest, row.length]
        cuts = [Cut(place=p, window=int(m * n)) for n in of for m in MARKS for p in PLACES]
    _score_cuts(run, probe, cuts, engine, tokenizer)


def _score_whole(
    plan: Plan, probe: Probe, reply: Reply, engine: Engine, tokenizer: Reader
) -> dict[str, Any]:
    """One line of the scores: a reply after its whole prompt."""
    (scored,) = read_and_score([(probe, reply)], engine, tokenizer, plan.thinking)
    aligned = scored.aligned
    return {
        "probe_id": probe.id,
        "length": len(published_ids(probe, tokenizer)),
        "reply_ids": list(aligned.reply_ids),
        "kept": aligned.kept,
        "whole": text_cells(scored.score, aligned.kept),
        "reply_sha256": digest_of(reply),
    }


def _score_end(probe: Probe, reply: Reply, engine: Engine, tokenizer: Reader) -> dict[str, Any]:
    """One line of the scores: how likely a long reply ends where it does."""
    ids = align(reply, tokenizer).reply_ids
    ids = ids[:-1] if ids and ids[-1] == tokenizer.eos_id else ids
    end = None
    if len(ids) < WHOLE * probe.max_tokens:
        request = ScoreRequest(
            prompt_ids=published_ids(probe, tokenizer), reply_ids=(*ids, tokenizer.eos_id)
        )
        (score,) = engine.score([request])
        end = text_cells(score, [len(ids)])
    return {
        "probe_id": probe.id, "tokens": len(ids), "asked": probe.max_tokens, "end": end,
        "reply_sha256": digest_of(reply),
    }  # fmt: skip


def _score_cuts(
    run: Path, probe: Probe, cuts: Sequence[Cut], engine: Engine, tokenizer: Reader
) -> None:
    """Score a reply under cut prompts, and keep what is new."""
    line = _scored(run).whole[probe.id]
    ids = published_ids(probe, tokenizer)
    head, tail = template_ends(PUBLISHED, prompt_of(probe), tokenizer)
    new = [
        how for how in dict.fromkeys(cuts)
        if how.name not in line.cuts and head + tail < how.window < len(ids)
    ]  # fmt: skip
    for how in new:  # one by one: prompts are long
        shorter = cut(ids, how, head=head, tail=tail)
        request = ScoreRequest(prompt_ids=shorter, reply_ids=line.of.reply_ids)
        (score,) = engine.score([request])
        append_line(
            run / CONTEXT_SCORES,
            {
                "probe_id": probe.id,
                "cut": how.name,
                "cells": text_cells(score, line.of.kept),
                "reply_sha256": line.of.reply_sha256,
            },
        )


def _measure(
    run: Path, plan: Plan, engine: Engine, tokenizer: Reader, outcomes: Mapping[str, Outcome],
    needed: float,
) -> None:  # fmt: skip
    """Score replies under cuts between the lengths that requests left.

    Coarse on the first prompt that does not fit, then what is near the best there on the others,
    then fine, at the places that are left. Those that fit count too: a cut must explain every
    reply.
    """
    found, channel = read_context(run, outcomes), plan.calibration.text
    if not found.prompts:
        return
    low, high = bracket(found.prompts, channel)
    evidence = weigh_context(found.prompts, tokens=plan.context_tokens, channel=channel)
    if high is None or evidence is None or evidence.log_e >= needed:
        return
    probes = {probe.id: probe for probe in read_probes(run, name=CONTEXT)}
    rows = sorted(found.prompts, key=lambda row: fits(row, channel))
    low = int(MARKS[0] * low)  # what was cut less than that was not told from whole
    step = max(1, (high - low) // _GRID)
    windows, places = [*range(low, high, step)], PLACES
    for _ in range(3):
        cuts = [Cut(place=place, window=n) for place in places for n in windows]
        for row in rows:
            _score_cuts(run, probes[row.probe_id], cuts, engine, tokenizer)
            now = next(r for r in _rows(run, outcomes) if r.probe_id == row.probe_id)
            cuts = near_best(cuts, now)
        after = read_context(run, outcomes)
        weighed = weigh_context(after.prompts, tokens=plan.context_tokens, channel=channel)
        if weighed is None or weighed.best is None or step == 1:
            return
        left = {weighed.best.place, *(how.place for how in cuts)}
        places = tuple(place for place in PLACES if place in left)
        centre, step = weighed.best.window, max(1, step // 4)
        windows = [centre + step * n for n in (-3, -2, -1, 1, 2, 3)]


# -- what is in the run folder -----------------------------------------------------------------


def read_context(run: Path, outcomes: Mapping[str, Outcome]) -> Context:
    """What long prompts and replies brought so far. Raises ConfigError for a malformed line.

    `outcomes` are those of the run folder.
    """
    lost = [
        (probe, outcome) for probe in read_probes(run, name=CONTEXT)
        if (outcome := outcomes.get(probe.id)) is not None and not isinstance(outcome, Reply)
    ]  # fmt: skip
    scored = _scored(run)
    carried = [(line.of.probe_id, line.of.reply_sha256) for line in scored.whole.values()]
    carried += [(line.probe_id, line.reply_sha256) for line in scored.ends.values()]
    carried += [(line.probe_id, line.reply_sha256) for line in scored.cuts]
    refuse_others(carried, outcomes, where=run / CONTEXT_SCORES)
    long = [(probe, outcome) for probe, outcome in lost if probe.kind == CONTEXT_KIND]
    return Context(
        prompts=_rows(run, outcomes),
        replies=tuple(
            CeilingRow(
                probe_id=line.probe_id, asked=line.asked, tokens=line.tokens, end=line.end,
                finish_reason=_finish(outcomes.get(line.probe_id)),
            )
            for line in scored.ends.values()
        ),
        refusals=tuple(
            Refusal(status=outcome.status, reason=outcome.reason)
            for _, outcome in long if isinstance(outcome, Failure)
        ),
        silent=tuple(o.reason for _, o in long if not isinstance(o, Failure)),
        unread=tuple(o.reason for probe, o in lost if probe.kind == OUTPUT_KIND),
    )  # fmt: skip


def _finish(outcome: Outcome | None) -> str | None:
    return outcome.finish_reason if isinstance(outcome, Reply) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeScore:
    """A line of the scores: a reply after its whole prompt."""

    probe_id: str
    length: Count  # of the prompt, in tokens
    reply_ids: tuple[TokenId, ...]
    kept: tuple[Count, ...]  # positions that are scored
    whole: TextCells
    reply_sha256: str | None = None  # of the reply, see `score_file`; None: an older version's line


@dataclass(frozen=True, slots=True, kw_only=True)
class CutScore:
    """A line of the scores: the same reply after a cut prompt."""

    probe_id: str
    cut: str
    cells: TextCells
    reply_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndScore:
    """A line of the scores: how likely a long reply ends where it does."""

    probe_id: str
    tokens: Count
    asked: Count
    end: TextCells | None  # None: it is as long as was asked
    reply_sha256: str | None = None


def _kind_of_line(line: object) -> str:
    keys = line if isinstance(line, dict) else ()
    return "cut" if "cut" in keys else "ended" if "asked" in keys else "whole"


ContextScore = Annotated[
    Annotated[WholeScore, Tag("whole")]
    | Annotated[CutScore, Tag("cut")]
    | Annotated[EndScore, Tag("ended")],
    Discriminator(_kind_of_line),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """A reply to a long prompt, and what it is under cuts, by their names."""

    of: WholeScore
    cuts: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scores:
    """The lines of the scores by probe."""

    whole: dict[str, _Whole] = field(default_factory=dict)
    ends: dict[str, EndScore] = field(default_factory=dict)
    cuts: list[CutScore] = field(default_factory=list)


def _scored(run: Path) -> _Scores:
    """What the scores of a run folder hold; of a probe that is scored twice, the first."""
    path, found = run / CONTEXT_SCORES, _Scores()
    advice = "remove the file and run `verifier score` again"
    lines: Iterator[ContextScore] = read_rows(path, cast(Any, ContextScore), advice=advice)
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        match line:
            case WholeScore():
                if any(at >= len(line.reply_ids) for at in line.kept):
                    raise ConfigError(f"{where}: kept: beyond the end of reply_ids; {advice}")
                found.whole.setdefault(line.probe_id, _Whole(of=line))
            case EndScore():
                found.ends.setdefault(line.probe_id, line)
            case CutScore():
                if line.probe_id not in found.whole:
                    said = "of a probe without a score of its whole prompt"
                    raise ConfigError(f"{where}: cut: {said}; {advice}")
                try:
                    name = read_cut(line.cut).name
                except ValueError as error:
                    raise ConfigError(f"{where}: cut: {error}; {advice}") from error
                found.whole[line.probe_id].cuts[name] = line.cells
                found.cuts.append(line)
    return found


def _rows(run: Path, outcomes: Mapping[str, Outcome]) -> tuple[LongRow, ...]:
    return tuple(
        LongRow(
            probe_id=probe_id, length=line.of.length, counted=_counted(outcomes.get(probe_id)),
            whole=line.of.whole, cuts=line.cuts,
        )
        for probe_id, line in _scored(run).whole.items()
    )  # fmt: skip


def _counted(outcome: Outcome | None) -> int | None:
    return outcome.prompt_tokens if isinstance(outcome, Reply) else None
