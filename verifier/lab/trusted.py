"""Records a pack from a trusted host: its greedy replies, each question asked twice.

The second asking goes over connections of its own, so that the host's own flips are known. Where it
gives log-probabilities the paths have them, and a reply that parted becomes a branch; else the pack
holds texts, and how soon the host left itself. All that is asked lies in a work folder as in a run
folder, so that a kill loses nothing and nothing is paid twice; the pack is written at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from verifier.config import Prices
from verifier.errors import ConfigError, EndpointError
from verifier.evidence.calibration import Calibration
from verifier.evidence.hazards import (
    KINDS,
    WINDOW,
    Kind,
    Leaving,
    hazard_of,
    leave_paths,
    log_e_above,
)
from verifier.evidence.stacks import TRUSTED
from verifier.files.run_folder import make_folder
from verifier.host.budget import (
    Amount,
    Ceiling,
    Priced,
    Purse,
    add_up,
    most_prompt_tokens,
    usual_prompt_tokens,
)
from verifier.host.collect import book, collect, read_attempts, read_outcomes
from verifier.host.endpoint import Endpoint
from verifier.lab.packs import (
    Said,
    Settings,
    begin_work,
    count_prompts,
    lay_out,
    refuse_days,
    thoughts_of,
)
from verifier.probes import Pool, draw
from verifier.progress import Show
from verifier.records import Generation, Probe, Reply
from verifier.reference.cards import Card, Thinking, list_cards, load_card
from verifier.reference.engines.echo import MOST_APART
from verifier.reference.pack_file import PACK_SCHEMA, Numbers
from verifier.reference.reader import Reader
from verifier.reference.renderings.catalogue import Rendering
from verifier.reference.trusted import ModelKind, Trusted, counts_otherwise, describe_prompts
from verifier.scoring.alignment import Aligned, align
from verifier.scoring.readings import published_ids
from verifier.wording import describe_replies

Wanted = Literal["scores", "texts"]

#: Alternatives to ask for, the most first: hosts allow 20, 5 or none.
WIDTHS: Final = (20, 5)

#: Fewer that are named tell next to nothing of a place.
LEAST: Final = 3

#: A step that log-probabilities are rounded to and that drowns honest noise.
COARSE: Final = 0.1

#: Of greedy replies some tokens are always unsure: the embedded model gives four in five of its own
#: a probability below DOUBTED. Where all but none are sure, log-probabilities are those of a
#: distribution that was sharpened: larger models are surer, but not as sure as that.
DOUBTED: Final = 0.9
LEAST_DOUBTED: Final = 0.02
LEAST_PLACES: Final = 200

#: Tokens of a text: one more than are looked at, since the last need not be a token's end.
TEXT_TOKENS: Final = WINDOW + 1

#: Questions between two looks at what came, so that a host that is of no use costs no more.
BATCH: Final = 32

#: More than this share of the questions without two readable replies, and there is no pack.
MAX_LOST: Final = 0.5

#: How rarely a host that is as honest as any is said not to agree with itself.
ALPHA: Final = 0.01

#: Questions by which it is found out what a host gives.
SCOUTS: Final = 3

_FIRST, _AGAIN, _SECOND = "first", "again", "second"


def _scout(width: int) -> str:
    return f"scout-{width}"


#: The folders of what the first host is asked.
_OWN: Final = (*map(_scout, WIDTHS), _FIRST, _AGAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host to ask, and what all of its requests may cost together."""

    endpoint: Endpoint
    ceiling: Ceiling


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What is asked for a pack, and of whom."""

    questions: int
    seed: int
    tokens: int  # of a path at most
    wanted: Wanted | None  # None: log-probabilities where they come
    host: Host
    second: Host | None = None  # another trusted host, of which texts are read
    #: Settings of the template that turn thinking off; (): the model does not think.
    settings: Settings = ()


def counting(asking: Asking, tokenizer: Reader) -> Asking:
    """The same with a tokenizer, by which short answers cost no more than they are."""

    def with_count(host: Host) -> Host:
        count = replace(host.endpoint, count_tokens=lambda text: len(tokenizer.encode(text)))
        return replace(host, endpoint=count)

    second = None if asking.second is None else with_count(asking.second)
    return replace(asking, host=with_count(asking.host), second=second)


def is_measured(card: Card) -> bool:
    """Whether a card's model is the very one whose stacks were measured for its kind."""
    kind, pinned = KINDS[kind_of(card)], card.digests.tensors_sha256
    if card.name != kind.model or pinned is None or kind.model not in list_cards():
        return False
    return load_card(kind.model).digests.tensors_sha256 == pinned


def kind_of(card: Card) -> ModelKind:
    """Of model, by which pairs of stacks were measured."""
    return "dense" if card.architecture.experts is None else "experts"


# -- what it costs -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What recording takes of one host: as expected, and at most."""

    host: Host
    expected: Priced
    most: Priced


def foresee(asking: Asking, probes: Sequence[Probe]) -> list[Forecast]:
    """What recording takes of each host. Asks nothing. Raises ConfigError for a budget that is
    smaller."""
    tokens = min(asking.tokens, TEXT_TOKENS) if asking.wanted == "texts" else asking.tokens
    scouts = 0 if asking.wanted == "texts" else len(WIDTHS)
    twice = _foresee(asking.host, probes, times=2, tokens=tokens, scouts=scouts)
    found = [twice]
    if asking.second is not None:
        tokens = min(asking.tokens, TEXT_TOKENS)
        found.append(_foresee(asking.second, probes, times=1, tokens=tokens, scouts=0))
    for one in found:
        _refuse_small_budget(one)
    return found


def _foresee(
    host: Host, probes: Sequence[Probe], *, times: int, tokens: int, scouts: int
) -> Forecast:
    usual, most = (
        times * sum(map(of, probes)) + scouts * sum(map(of, probes[:SCOUTS]))
        for of in (usual_prompt_tokens, most_prompt_tokens)
    )
    requests = times * len(probes) + scouts * len(probes[:SCOUTS])
    prices = host.ceiling.prices
    return Forecast(
        host=host,
        expected=_priced(requests, usual, requests * tokens, prices),
        most=_priced(requests, most, requests * tokens, prices),
    )


def _priced(requests: int, prompt: int, completion: int, prices: Prices | None) -> Priced:
    amount = Amount(requests=requests, prompt_tokens=prompt, completion_tokens=completion)
    return Priced(amount=amount, usd=amount.usd(prices))


def _refuse_small_budget(found: Forecast) -> None:
    tokens, ceiling = found.most.amount.completion_tokens, found.host.ceiling
    if tokens > ceiling.completion_tokens:
        raise ConfigError(
            f"audit.budget_completion_tokens: {ceiling.completion_tokens:,}, and recording takes "
            f"up to {tokens:,} of {found.host.endpoint.host}; allow that in its run file, or ask "
            "fewer questions"
        )
    if ceiling.usd is not None and found.most.usd is not None and found.most.usd > ceiling.usd:
        raise ConfigError(
            f"audit.budget_usd: {ceiling.usd:g}, and recording takes up to {found.most.usd:.2f} "
            f"dollars at {found.host.endpoint.host}; allow that in its run file, or ask fewer "
            "questions"
        )


def describe(found: Sequence[Forecast], *, questions: int) -> list[str]:
    """A forecast in lines, one for each host and one for the dollars."""
    lines = [
        f"{one.host.endpoint.host} as {one.host.endpoint.model}: {one.most.amount.requests:,} "
        f"requests for {questions:,} questions, about {one.expected.amount.prompt_tokens:,} and at "
        f"most {one.most.amount.prompt_tokens:,} prompt tokens, at most "
        f"{one.most.amount.completion_tokens:,} completion tokens"
        for one in found
    ]
    expected, most = (add_up([getattr(one, n) for one in found]).usd for n in ("expected", "most"))
    if expected is None or most is None:
        return [*lines, "cost not known: no prices were given"]
    return [*lines, f"about USD {expected:,.4f}, at most USD {most:,.4f}"]


# -- asking ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Where and how one host is asked, and what of it is read."""

    host: Host
    folders: tuple[str, ...]  # of its requests, which one ceiling bounds together
    work: Path
    show: Show

    def ask(self, folder: str, probes: Sequence[Probe]) -> dict[str, Reply]:
        """The replies of a folder to these questions, asked where they were not.

        Raises EndpointError where the host or its budget ends before all were asked.
        """
        path, host = self.work / folder, self.host
        make_folder(path)
        spent = Purse(host.ceiling)
        for other in self.folders:
            if other != folder:
                book(self.work / other, spent, probes, count=host.endpoint.count_tokens)
        collect(
            path, host.endpoint, probes,
            ceiling=host.ceiling.less(
                spent.spent.completion_tokens, prompt_tokens=spent.spent.prompt_tokens
            ),
            progress=lambda done, of: self.show.step(folder, done, of), tell=self.show.tell,
        )  # fmt: skip
        found = read_outcomes(path, max_attempts=host.endpoint.max_attempts)
        asked = sum(probe.id in found for probe in probes)
        if asked < len(probes):
            raise EndpointError(
                f"{host.endpoint.host}: answered {asked} of {len(probes)} questions, then failed "
                "too often in a row or the budget of its run file ended; see to that, and the same "
                "command goes on"
            )
        return {name: one for name, one in found.items() if isinstance(one, Reply)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """What a trusted host said to one question, asked twice, and a second host once."""

    number: int  # of the question
    first: Aligned
    again: Aligned
    second: Aligned | None
    prompt_tokens: int | None  # as the host counts


def _read_pairs(
    probes: Sequence[Probe], told: Sequence[Mapping[str, Reply]], tokenizer: Reader,
    source: Wanted, tags: Thinking | None,
) -> list[_Pair]:  # fmt: skip
    """The questions of which every reply can be read."""
    found = []
    for number, probe in enumerate(probes):
        replies = [some.get(probe.id) for some in told]
        read = [_read(one, probe, tokenizer, tags) for one in replies if one is not None]
        scored = source == "texts" or all(one.candidates is not None for one in read[:2])
        if len(read) == len(told) and scored and all(one.reply_ids for one in read):
            second = read[2] if len(read) > 2 else None
            told_of = replies[0].prompt_tokens if replies[0] is not None else None
            found.append(
                _Pair(
                    number=number, first=read[0], again=read[1], second=second,
                    prompt_tokens=told_of,
                )
            )  # fmt: skip
    return found


def _read(reply: Reply, probe: Probe, tokenizer: Reader, tags: Thinking | None = None) -> Aligned:
    """A reply's tokens as far as they are known for sure; none of one that shows a thought, apart
    or between `tags`."""
    read = align(reply, tokenizer)
    sure = min(read.left_out, default=len(read.reply_ids))
    inline = tags is not None and (tags.open in reply.text or tags.close in reply.text)
    ids = () if reply.thought or inline else read.reply_ids[: min(sure, probe.max_tokens)]
    return replace(read, reply_ids=ids)


# -- what a host is good for ---------------------------------------------------------------------


def find_source(
    asking: Asking, probes: Sequence[Probe], tokenizer: Reader, *, work: Path, show: Show
) -> tuple[Wanted, int]:
    """What a host gives, and how many alternatives to ask for, by its first replies.

    Raises ConfigError in one line for what cannot be used as it was wanted.
    """
    if asking.wanted == "texts":
        return "texts", 0
    host, where, first = asking.host, asking.host.endpoint.host, probes[:SCOUTS]
    why = "it gives none"
    for width in WIDTHS:
        own = replace(host, endpoint=replace(host.endpoint, top_logprobs=width))
        asked = _Asked(host=own, folders=_OWN, work=work, show=show)
        replies = asked.ask(_scout(width), first)
        if not replies:
            raise EndpointError(
                f"{where}: none of the first {len(first)} questions has a reply that can be read; "
                "take another host or model"
            )
        scored = [probe for probe in first if probe.id in replies and replies[probe.id].logprobs]
        if scored:
            _refuse_scores(replies, scored, tokenizer, where=where)
            _refuse_second(asking.second)
            return "scores", width
        why = next(iter(replies.values())).logprobs_problem or why
    if asking.wanted == "scores":
        raise ConfigError(
            f"{where}: no log-probabilities, which --scores wants ({why}); leave it out to record "
            "texts alone, or take another host"
        )
    show.tell(f"{where} gives no log-probabilities: its texts alone are recorded")
    return "texts", 0


_OR_TEXTS: Final = "take another host, or record its texts alone (--texts)"


def _refuse_second(second: Host | None) -> None:
    if second is not None:
        raise ConfigError(
            f"--second: {second.endpoint.host}: the first host gives log-probabilities, which need "
            "no second one; leave it out, or record texts alone (--texts)"
        )


def _refuse_scores(
    replies: Mapping[str, Reply], probes: Sequence[Probe], tokenizer: Reader, *, where: str
) -> None:
    """Raise ConfigError for log-probabilities that say too little."""
    read = [_read(replies[probe.id], probe, tokenizer) for probe in probes]
    told = [one for one in read if one.candidates is not None]
    if not told:
        raise ConfigError(
            f"{where}: {read[0].problem}: another tokenizer than the card's; {_OR_TEXTS}"
        )
    most = max((len(some) for one in told for some in one.candidates or ()), default=0)
    if most < LEAST:
        raise ConfigError(
            f"{where}: names {most} tokens at a place at most, and it takes {LEAST}; {_OR_TEXTS}"
        )
    values = [value for one in told for some in one.reported or () for value in some]
    if all(abs(value / COARSE - round(value / COARSE)) < 1e-6 for value in values):
        raise ConfigError(
            f"{where}: its log-probabilities are rounded to {COARSE:g}, more than honest hosts "
            f"differ by; {_OR_TEXTS}"
        )


def _refuse_unsteady(pairs: Sequence[_Pair], source: Wanted, kind: Kind, *, where: str) -> None:
    """Raise ConfigError for a host that does not agree with itself as any honest stack does."""
    rows = _leave_itself(pairs)
    pin = "pin one deployment of the model, or take another host"
    if log_e_above(rows, kind.tolerated) >= math.log(1 / ALPHA):
        raise ConfigError(
            f"{where}: does not agree with itself: asked twice, it left its own reply in "
            f"{sum(row.left for row in rows)} of {len(rows)} questions, at {hazard_of(rows):.1%} a "
            f"token (honest hosts: {kind.upper:.1%} at most); {pin}"
        )
    beside = [
        leave_paths([one.first.reply_ids], one.second.reply_ids)
        for one in pairs if one.second is not None
    ]  # fmt: skip
    if log_e_above(beside, kind.tolerated) >= math.log(1 / ALPHA):
        raise ConfigError(
            f"--second: leaves the replies of {where} at {hazard_of(beside):.1%} a token (honest "
            f"hosts: {kind.upper:.1%} at most): one of the two serves something else; trust others"
        )
    apart = _apart(pairs) if source == "scores" else 0.0
    if apart > MOST_APART:
        raise ConfigError(
            f"{where}: does not agree with itself: asked twice, its log-probabilities lie "
            f"{apart:.2g} nats apart (at most {MOST_APART:g}); {pin}"
        )


def _refuse_sharpened(pairs: Sequence[_Pair], *, where: str) -> None:
    """Raise ConfigError for log-probabilities that were divided by a temperature near 0: near-ties
    would look like clear choices, and honest hosts, which decide them otherwise, be accused."""
    tops = [_top(pair.first, at) for pair in pairs for at in range(len(pair.first.reply_ids))]
    first = [top[0][1] for top in tops if top]
    doubted = sum(value < math.log(DOUBTED) for value in first)
    if len(first) >= LEAST_PLACES and doubted < LEAST_DOUBTED * len(first):
        raise ConfigError(
            f"{where}: gives {len(first) - doubted} of {len(first)} tokens a probability above "
            f"{DOUBTED:g}: these are not its model's own, but of a temperature near 0; {_OR_TEXTS}"
        )


def _leave_itself(pairs: Sequence[_Pair]) -> list[Leaving]:
    return [leave_paths([one.first.reply_ids], one.again.reply_ids) for one in pairs]


def _apart(pairs: Sequence[_Pair]) -> float:
    """How far the values of the two likeliest tokens lie apart, where both replies are alike so
    far: root mean square."""
    squares = []
    for pair in pairs:
        for at, _ in enumerate(pair.first.reply_ids):
            if pair.first.reply_ids[:at] != pair.again.reply_ids[:at]:
                break
            one, other = _top(pair.first, at), dict(_top(pair.again, at))
            squares += [(v - other[t]) ** 2 for t, v in one[:2] if t in other]
    return math.sqrt(math.fsum(squares) / len(squares)) if squares else 0.0


def _top(read: Aligned, at: int) -> list[tuple[int, float]]:
    """What is named at a place of a reply, the likeliest first."""
    if read.candidates is None or read.reported is None or at >= len(read.candidates):
        return []
    named = zip(read.candidates[at], read.reported[at], strict=True)
    return sorted(named, key=lambda one: (-one[1], one[0]))


# -- the pack ------------------------------------------------------------------------------------


def draw_asked(pool: Pool, asking: Asking) -> tuple[Probe, ...]:
    """The questions, by the seed."""
    found = draw(pool, seed=asking.seed, count=asking.questions, max_tokens=asking.tokens)
    return tuple(replace(probe, settings=asking.settings) for probe in found)


def record_pack(
    asking: Asking,
    card: Card,
    pool: Pool,
    entries: Mapping[str, Rendering],
    *,
    calibration: Calibration,
    same_model: bool,
    tokenizer: Reader,
    versions: Mapping[str, str],
    made_on: str,
    work: Path,
    show: Show,
) -> tuple[dict[str, Any], tuple[Probe, ...], dict[str, Numbers]]:
    """Manifest, questions and tensors of a pack; goes on where `work` was left.

    `same_model`: whether the card's is the one that stands for its kind in `hazards.KINDS`. Raises
    ConfigError or EndpointError, in one line, for a host that is of no use.
    """
    kind = kind_of(card)
    thoughts = _thoughts_of(asking, card, pool, tokenizer)
    source, probes, pairs = _ask_for(
        asking, card, pool, KINDS[kind], tokenizer=tokenizer, work=work, show=show
    )
    kept = tuple(probes[pair.number] for pair in pairs)
    counts = count_prompts(probes, entries, tokenizer, work=work, show=show)
    counts = counts[[pair.number for pair in pairs]]
    made = (_scored if source == "scores" else _texts)(pairs, kept, tokenizer)
    paths, said = [path for path, _ in made], [one for _, one in made]
    tensors = lay_out(kept, paths, said, (), np.zeros((0, 0, 2)), counts, tokenizer)
    if source == "texts":
        tensors["leaving"] = _leaving(pairs)
    trusted = _describe(asking, pairs, source, kind, same_model, counts=counts, work=work)
    show.tell(summarise(trusted))
    if counts_otherwise(trusted):
        show.tell(describe_prompts(trusted))
    manifest = {
        "schema_version": PACK_SCHEMA,
        "source": source,
        "trusted": trusted.model_dump(mode="json"),
        "made_on": made_on,
        "card": card.model_dump(mode="json"),
        "calibration": calibration.model_dump(mode="json"),
        "engine": {"engine": TRUSTED, "host": trusted.host, "model": trusted.model},
        "versions": dict(versions),
        "pool_sha256": pool.digest,
        "seed": asking.seed,
        "questions": len(kept),
        "panel": 0,
        "max_tokens": probes[0].max_tokens,
        "branch_margin": 0.0,
        "branch_tokens": probes[0].max_tokens,
        "eos_id": tokenizer.eos_id,
        "renderings": list(entries),
        "builds": [],
        **thoughts,
    }
    return manifest, kept, tensors


def _thoughts_of(asking: Asking, card: Card, pool: Pool, tokenizer: Reader) -> dict[str, Any]:
    """What a manifest says of thoughts. Raises ConfigError where the template closes none."""
    mode: Literal["off"] | None = "off" if asking.settings else None
    found = thoughts_of(mode, card, draw_asked(pool, asking)[0], tokenizer)
    return {} if found is None else {"thinking": found.model_dump(mode="json")}


def _ask_for(
    asking: Asking, card: Card, pool: Pool, kind: Kind, *, tokenizer: Reader, work: Path, show: Show
) -> tuple[Wanted, tuple[Probe, ...], list[_Pair]]:
    """What kind of pack it will be, every question as it is asked for that, and what came."""
    probes = draw_asked(pool, asking)
    refuse_days(probes[0], tokenizer)
    _begin(work, asking, card)
    source, width = find_source(asking, probes, tokenizer, work=work, show=show)
    tokens = min(asking.tokens, TEXT_TOKENS) if source == "texts" else asking.tokens
    probes = tuple(replace(probe, max_tokens=tokens) for probe in probes)
    pairs = _ask_all(
        asking, probes, source, width, kind, tags=card.thinking, tokenizer=tokenizer, work=work,
        show=show,
    )  # fmt: skip
    return source, probes, pairs


def _begin(work: Path, asking: Asking, card: Card) -> None:
    hosts = [asking.host, *([] if asking.second is None else [asking.second])]
    wanted = {
        "card_sha256": card.digest, "questions": asking.questions, "seed": asking.seed,
        "tokens": asking.tokens, "wanted": asking.wanted,
        "settings": [list(setting) for setting in asking.settings],
        "hosts": [[host.endpoint.base_url, host.endpoint.model] for host in hosts],
    }  # fmt: skip
    begin_work(work, wanted)


def _ask_all(
    asking: Asking, probes: Sequence[Probe], source: Wanted, width: int, kind: Kind, *,
    tags: Thinking | None, tokenizer: Reader, work: Path, show: Show,
) -> list[_Pair]:  # fmt: skip
    """Every question twice, and once of a second host, with a look at what came now and then."""
    own = replace(asking.host, endpoint=replace(asking.host.endpoint, top_logprobs=width))
    asked = _Asked(host=own, folders=_OWN, work=work, show=show)
    beside = None
    if asking.second is not None:
        other = replace(asking.second.endpoint, top_logprobs=0)
        beside = _Asked(
            host=replace(asking.second, endpoint=other), folders=(_SECOND,), work=work, show=show
        )
    pairs: list[_Pair] = []
    where = own.endpoint.host
    for end in chain(range(BATCH, len(probes), BATCH), [len(probes)]):
        some = probes[:end]
        told = [asked.ask(_FIRST, some), asked.ask(_AGAIN, some)]
        if beside is not None:
            short = [replace(p, max_tokens=min(p.max_tokens, TEXT_TOKENS)) for p in some]
            told.append(beside.ask(_SECOND, short))
        pairs = _read_pairs(some, told, tokenizer, source, tags)
        _refuse_lost(pairs, end, source, where=where, off=bool(asking.settings))
        _refuse_unsteady(pairs, source, kind, where=where)
        if source == "scores":
            _refuse_sharpened(pairs, where=where)
    return pairs


def _refuse_lost(
    pairs: Sequence[_Pair], asked: int, source: Wanted, *, where: str, off: bool
) -> None:
    """Raise ConfigError where too few questions have replies that can be read; `off`: with thinking
    turned off, so that one that shows a thought cannot."""
    if len(pairs) < max(1, (1 - MAX_LOST) * asked):
        what = "with log-probabilities of the card's tokens" if source == "scores" else "as text"
        what += ", without a thought" if off else ""
        raise ConfigError(
            f"{where}: only {len(pairs)} of {asked} questions were answered twice so that it can "
            f"be read {what}; take another host"
        )


def _describe(
    asking: Asking, pairs: Sequence[_Pair], source: Wanted, kind: ModelKind, same_model: bool, *,
    counts: Numbers, work: Path,
) -> Trusted:  # fmt: skip
    """The hosts, and how the first agrees with itself."""
    rows = _leave_itself(pairs)
    attempts = [one for name in (_FIRST, _AGAIN) for one in read_attempts(work / name)]
    days = sorted(attempt.started_at[:10] for attempt in attempts)
    second = None if asking.second is None else asking.second.endpoint
    named = [len(some) for pair in pairs for some in pair.first.candidates or ()]
    return Trusted(
        host=asking.host.endpoint.host,
        model=asking.host.endpoint.model,
        first_asked=days[0],
        last_asked=days[-1],
        questions=len(rows),
        repeated=sum(not row.left for row in rows),
        hazard=round(hazard_of(rows), 6),
        kind=kind,
        same_model=same_model,
        alternatives=max(named, default=0) if source == "scores" else 0,
        other_prompts=sum(
            pair.prompt_tokens not in (None, int(made))
            for pair, made in zip(pairs, counts[:, 0], strict=True)
        ),
        second_host=None if second is None else second.host,
        second_model=None if second is None else second.model,
    )


_Made = list[tuple[Said, Generation]]


def _scored(pairs: Sequence[_Pair], probes: Sequence[Probe], tokenizer: Reader) -> _Made:
    """First replies with what is named at each place, then a branch where the second parted."""
    prompts = [published_ids(probe, tokenizer) for probe in probes]
    made: _Made = []
    for number, pair in enumerate(pairs):
        path = Said(
            question=number, rendering=0, prompt=prompts[number], tokens=probes[0].max_tokens
        )
        made.append((path, _generation(pair.first, pair.first.reply_ids, 0)))
    for number, pair in enumerate(pairs):
        first, again = pair.first.reply_ids, pair.again.reply_ids
        at = next((n for n, (a, b) in enumerate(zip(first, again, strict=False)) if a != b), None)
        if at is None or len(again) <= at + 1 or again[at] not in dict(_top(pair.first, at)):
            continue
        branch = replace(made[number][0], parent=number, at=at, token=again[at])
        made.append((branch, _generation(pair.again, again, at + 1)))
    return made


def _generation(read: Aligned, ids: Sequence[int], start: int) -> Generation:
    """A reply from a place on; where nothing is named the token is alone, and says nothing."""
    tops = []
    for at in range(start, len(ids)):
        named = dict(_top(read, at))
        tops.append(tuple(named.items()) if ids[at] in named else ((ids[at], 0.0),))
    return Generation(
        token_ids=tuple(ids[start:]), finish_reason="length", logprobs=(), top=tuple(tops)
    )


def _texts(pairs: Sequence[_Pair], probes: Sequence[Probe], tokenizer: Reader) -> _Made:
    """First replies, then whatever else was said to the same questions."""
    made: _Made = []
    others: _Made = []
    for number, pair in enumerate(pairs):
        path = Said(
            question=number, rendering=0, prompt=published_ids(probes[number], tokenizer),
            tokens=TEXT_TOKENS,
        )  # fmt: skip
        known: list[tuple[int, ...]] = []
        for read in (pair.first, pair.again, pair.second):
            ids = () if read is None else read.reply_ids
            if ids and ids not in known:
                (others if known else made).append((path, _alone(ids)))
                known.append(ids)
    return [*made, *others]


def _alone(ids: Sequence[int]) -> Generation:
    top = tuple(((token, 0.0),) for token in ids)
    return Generation(token_ids=tuple(ids), finish_reason="length", logprobs=(), top=top)


def _leaving(pairs: Sequence[_Pair]) -> Numbers:
    """How the host asked again, and a second host, stand to its first reply, a row a question."""
    rows = [
        [
            leave_paths([pair.first.reply_ids], read.reply_ids).told
            for read in (pair.again, pair.second) if read is not None
        ]
        for pair in pairs
    ]  # fmt: skip
    return np.array(rows, dtype=np.int16)


def summarise(trusted: Trusted) -> str:
    """How a host agreed with itself, in a line."""
    return (
        f"{trusted.host}: asked twice, it repeated {trusted.repeated} of "
        f"{describe_replies(trusted.questions)}, and left itself at {trusted.hazard:.1%} a token"
    )
