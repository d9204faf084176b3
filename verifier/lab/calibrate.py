"""Calibration: what honest serving and each known variant look like on one card's model.

Half of the honest stacks set the honest scale; the other half only check it. Every number comes
from replies to what an audit asks, rendered, answered and read as over HTTP. Each engine is loaded
once, and variants are put into it in place. A calibration that was stopped goes on where it was, in
the same work folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from verifier.errors import ConfigError, ReferenceMismatch
from verifier.evidence.arrays import Array
from verifier.evidence.calibration import (
    CALIBRATION_SCHEMA,
    Calibration,
    Channel,
    Estimate,
    Machine,
    Measured,
    NoiseClass,
    Role,
)
from verifier.evidence.calibration import Stack as MeasuredStack
from verifier.evidence.e_values import (
    confidence_sequence,
    fit_reading,
    spread_rows,
)
from verifier.evidence.ledger import LOGPROB_SCALES, TEXT_SCALES
from verifier.evidence.stacks import above_floor, with_zone
from verifier.lab.corpus import (
    TOP_LOGPROBS,
    Dtype,
    Progress,
    RememberingEngine,
    Stack,
    is_collected,
    load_host,
    read_stack,
    score_corpus,
)
from verifier.lab.generated import generate_corpus
from verifier.lab.timings import Clock
from verifier.plan_file import read_probes
from verifier.probes import draw, load_pool
from verifier.records import REFERENCE, Probe
from verifier.reference.cards import Card, Thinking
from verifier.reference.defaults import obstacles_to_calibrating
from verifier.reference.describe import Described
from verifier.reference.digests import tensors_sha256
from verifier.reference.engines import Engine
from verifier.reference.tokenizer import Tokenizer
from verifier.reference.variants import CLASS_MARGINS, find_variant, margin_of

#: Coverage of the intervals in a calibration.
LEVEL = 0.99

SPREADS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
LEARNING_RATES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05)

#: Variants are served in the arithmetic that hosts use most.
SERVED_IN: Dtype = "bfloat16"
SERVED_BATCH = 32

#: What has the replies of a stack made: `generate_corpus`, or `collect_corpus` over HTTP.
Answering = Callable[..., None]

#: Engine and precision: what one load serves.
Kind = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many replies each part of a calibration rests on."""

    calibration: int = 128
    held_out: int = 24
    variant: int = 16
    layer: int = 8
    max_tokens: int = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One stack to measure and the probes to ask it."""

    stack: Stack
    role: Role
    family: str | None
    probes: tuple[Probe, ...]


def calibrate(
    card: Card,
    weights: Path,
    *,
    work: Path,
    load_reference: Callable[[], Engine],
    seed: int,
    versions: Mapping[str, str],
    sizes: Sizes,
    tell: Callable[[str], None],
    progress: Progress | None = None,
    scores_like: Kind | None = None,
    engine_args: Mapping[str, Any] | None = None,
    machine: Machine | None = None,
    answer: Answering = generate_corpus,
) -> Calibration:
    """Measure every stack of the card in `work` and fit the calibration.

    `load_reference` loads the engine that audits will score with, once the hosts are done; where
    that is of the kind `scores_like`, a host of this kind scores, and is not loaded twice.
    `engine_args` are vLLM's; None: the card's. `machine` is what it is measured on. Raises
    ConfigError for a card without honest stacks, ReferenceMismatch when honest serving cannot be
    bounded or modelled.
    """
    refuse_card(card)
    tokenizer = Tokenizer(weights)
    items = plan_items(card, seed=seed, sizes=sizes)
    clock = Clock(work)
    args = card.engine_args if engine_args is None else engine_args
    host = _answer(
        items, weights, tokenizer, engine_args=args, thinking=card.thinking,
        work=work, tell=tell, progress=progress, scores_like=scores_like, answer=answer,
        clock=clock, load_reference=load_reference,
    )  # fmt: skip
    reference = RememberingEngine(host)
    scored = partial(
        _score, engine=reference, tokenizer=tokenizer, thinking=card.thinking, work=work,
        tell=tell, progress=progress, clock=clock,
    )  # fmt: skip
    cells = {item.stack.name: scored(item) for item in items}
    text, logprob = _fit(items, cells)
    stacks = tuple(_measure(item, cells[item.stack.name], text, logprob) for item in items)
    made = Calibration(
        schema_version=CALIBRATION_SCHEMA,
        card=card.name,
        tensors_sha256=card.digests.tensors_sha256 or tensors_sha256(weights),
        seed=seed,
        max_tokens=sizes.max_tokens,
        level=LEVEL,
        versions=dict(versions),
        text=text,
        logprob=logprob,
        measured=measured_with(reference.versions),
        machine=machine,
        classes=noise_classes(stacks),
        stacks=stacks,
    )
    refuse_above_floor(made)
    return with_zone(made, TEXT_SCALES, LOGPROB_SCALES)


def _fit(items: Sequence[Item], cells: Mapping[str, _Cells]) -> tuple[Channel, Channel]:
    """How replies are read, by text and by log-probabilities."""
    honest = [i.stack.name for i in items if i.role == "calibration"]
    known = [i.stack.name for i in items if i.role != "held out"]
    text = fit_channel(
        {name: one.text for name, one in cells.items()}, TEXT_SCALES,
        honest=honest, known=known, what="greedy text",
    )  # fmt: skip
    logprob = fit_channel(
        {name: one.logprob for name, one in cells.items()}, LOGPROB_SCALES,
        honest=honest, known=known, what="log-probabilities",
    )  # fmt: skip
    return text, logprob


def refuse_card(card: Card, *, seen: Described | None = None) -> None:
    """Raise ConfigError for a card that cannot be calibrated here, with all that stands against it.

    `seen` is what its weights say, where they are there.
    """
    problems = (*problems_of(card, seen=seen), *lacking_here(card))
    if problems:
        raise ConfigError(f"card {card.name}: {'; and '.join(problems)}")


def problems_of(card: Card, *, seen: Described | None = None) -> tuple[str, ...]:
    """What stands against calibrating a card on any machine, one line each."""
    problems = list(obstacles_to_calibrating(card, seen=seen))
    for name in (*card.calibration_stacks, *card.held_out_stacks):
        problems += _problem(partial(read_stack, name))
    for name in card.bank:
        problems += _problem(partial(find_variant, name, layers=card.layers))
    return tuple(problems)


def lacking_here(card: Card) -> tuple[str, ...]:
    """What its stacks need and this machine lacks, one line each."""
    if find_spec("vllm") is not None:
        return ()
    return tuple(
        f"stack {name}: vLLM is not installed here; install it, or calibrate where it is"
        for name in (*card.calibration_stacks, *card.held_out_stacks) if name.startswith("vllm-")
    )  # fmt: skip


def _problem(look: Callable[[], object]) -> list[str]:
    try:
        look()
    except ConfigError as problem:
        return [str(problem)]
    return []


def measured_with(engine: Mapping[str, str]) -> Measured:
    """What a calibration of all kinds of probes is measured with, by the reference's own words."""
    return Measured(
        engine=engine.get("engine", "unknown"), dtype=engine.get("dtype", "unknown"),
        attention=engine.get("attention"), top_logprobs=TOP_LOGPROBS, versions=dict(engine),
    )  # fmt: skip


def refuse_above_floor(calibration: Calibration) -> None:
    """Raise ReferenceMismatch where a held-out stack is noisier than the floor: it is too low."""
    noisier = above_floor(calibration)
    if noisier:
        raise ReferenceMismatch(
            f"calibration: {', '.join(noisier)} was held out and is noisier than the floor, "
            f"{calibration.text.honest_scale:.2g} from text and "
            f"{calibration.logprob.honest_scale:.2g} from log-probabilities; name it among "
            "calibration_stacks in the card, and measure other stacks as held out"
        )


def _answer(
    items: Sequence[Item],
    weights: Path,
    tokenizer: Tokenizer,
    *,
    engine_args: Mapping[str, Any],
    thinking: Thinking | None,
    work: Path,
    tell: Callable[[str], None],
    progress: Progress | None,
    scores_like: Kind | None,
    answer: Answering,
    clock: Clock,
    load_reference: Callable[[], Engine],
) -> Engine:
    """Have every stack answer what it has not answered yet, one engine after another: what scores.

    The engine that is of the kind that scores comes last and is left loaded.
    """
    for item in items:
        _refuse_other_probes(work / item.stack.name, item.probes)
    kinds = dict.fromkeys(i.stack.kind for i in items)
    for kind in sorted(kinds, key=lambda kind: kind == scores_like):
        alike = [i for i in items if i.stack.kind == kind]
        lacking = [i for i in alike if not is_collected(work / i.stack.name, i.probes)]
        if not lacking:  # so that a finished collection is read without its engines
            continue
        stack = alike[0].stack
        tell(f"loading {stack.engine} in {stack.dtype}")
        with clock.times("loading"):
            engine = load_host(weights, tokenizer, stack, engine_args=engine_args)
        for item in lacking:
            tell(f"asking {item.stack.name} ({len(item.probes)} probes)")
            with clock.times("swapping", item.stack.name):
                engine.load_variant(item.stack.weights)
            with clock.times("asking", item.stack.name):
                answer(
                    work / item.stack.name, item.stack, item.probes, engine=engine,
                    tokenizer=tokenizer, thinking=thinking, progress=progress,
                )  # fmt: skip
        if kind == scores_like:
            engine.load_variant(REFERENCE)
            return engine
        engine.close()
    tell("loading what scores")
    with clock.times("loading"):
        return load_reference()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """What the reference says of the replies of one stack."""

    text: Array  # [n, S]
    logprob: Array  # [m, S] of those that have any
    tokens: int


def _score(
    item: Item,
    *,
    engine: Engine,
    tokenizer: Tokenizer,
    thinking: Thinking | None,
    work: Path,
    tell: Callable[[str], None],
    progress: Progress | None,
    clock: Clock,
) -> _Cells:
    """Score the replies of one stack: by the tokens that it names, and by their text alone."""
    name = item.stack.name
    tell(f"scoring {name}")
    with clock.times("scoring", name):
        named, plain = (
            score_corpus(
                work / name, engine=engine, tokenizer=tokenizer, with_logprobs=with_logprobs,
                thinking=thinking, progress=progress,
            )
            for with_logprobs in (True, False)
        )  # fmt: skip
    tokens = sum(row.tokens for row in plain.rows)
    return _Cells(text=plain.text(), logprob=named.logprob(), tokens=tokens)


def _measure(item: Item, cells: _Cells, text: Channel, logprob: Channel) -> MeasuredStack:
    """Where one stack stands on both channels."""
    return MeasuredStack(
        name=item.stack.name if item.role != "variant" else item.stack.weights,
        role=item.role,
        family=item.family,
        replies=len(cells.text),
        tokens=cells.tokens,
        text=estimate(cells.text, TEXT_SCALES, text),
        logprob=estimate(cells.logprob, LOGPROB_SCALES, logprob),
    )


def _refuse_other_probes(folder: Path, probes: Sequence[Probe]) -> None:
    """Replies to the probes of another seed would be passed off as those of this one."""
    begun = read_probes(folder)
    common = min(len(begun), len(probes))
    if begun[:common] != tuple(probes[:common]):
        raise ConfigError(
            f"{folder}: holds replies to other probes (another seed, pool or size); remove it or "
            "give another --out"
        )


def plan_items(card: Card, *, seed: int, sizes: Sizes) -> list[Item]:
    """What to measure. Held-out stacks get probes that no other stack gets.

    Variants are served by transformers where an honest stack is, else by vLLM as those are.
    """
    pool = load_pool()
    honest = [read_stack(name) for name in card.calibration_stacks]
    by_vllm = bool(honest) and all(stack.engine == "vllm" for stack in honest)
    shared, own = sizes.calibration, sizes.held_out
    held_out = [read_stack(name) for name in card.held_out_stacks]
    probes = draw(pool, seed=seed, count=shared + own * len(held_out), max_tokens=sizes.max_tokens)
    items = [
        Item(stack=stack, role="calibration", family=None, probes=probes[:shared])
        for stack in honest
    ]
    for n, stack in enumerate(held_out):
        start = shared + n * own
        items.append(
            Item(stack=stack, role="held out", family=None, probes=probes[start : start + own])
        )
    for name in (*card.bank, *(f"drop-layer-{n}" for n in dropped_layers(card.layers))):
        variant = find_variant(name, layers=card.layers)
        count = sizes.variant if name in card.bank else sizes.layer
        stack = Stack(
            dtype=SERVED_IN, batch=SERVED_BATCH, weights=name,
            engine="vllm" if by_vllm else "transformers",
        )  # fmt: skip
        items.append(
            Item(stack=stack, role="variant", family=variant.family, probes=probes[:count])
        )
    return items


def dropped_layers(layers: int) -> tuple[int, ...]:
    """The layers that are left out one at a time: those a quarter, half and three quarters down.

    The first and the last of a model are seldom the mildest to miss, and those between are alike:
    so a fixed few stand for all, however deep it is.
    """
    return tuple(sorted({layers // 4, layers // 2, 3 * layers // 4}))


def fit_channel(
    rows: Mapping[str, Array],
    scales: Array,
    *,
    honest: Sequence[str],
    known: Sequence[str],
    what: str,
) -> Channel:
    """Fit spread, learning rate and honest scale of one channel.

    Spread and learning rate are fitted over all `known` stacks, so that intervals keep their
    level for faults too; the honest scale is the next grid point above the largest upper limit of
    the `honest` stacks.
    """
    enough = [rows[name] for name in known if len(rows[name]) > 1]
    try:
        spread, rate = fit_reading(enough, scales, spreads=SPREADS, rates=LEARNING_RATES)
    except ValueError as error:
        raise ReferenceMismatch(f"calibration of {what}: {error}") from error
    channel = Channel(honest_scale=float(scales[-1]), spread=spread, learning_rate=rate)
    uppers = [
        found.upper if (found := estimate(rows[n], scales, channel)) else None for n in honest
    ]
    known_uppers = [upper for upper in uppers if upper is not None]
    if len(known_uppers) < len(honest) or max(known_uppers) >= scales[-2]:
        raise ReferenceMismatch(
            f"calibration of {what}: honest serving is not bounded; ask for more replies"
        )
    above = int(np.searchsorted(scales, max(known_uppers) * (1 + 1e-9)))
    return channel.model_copy(update={"honest_scale": float(scales[above])})


def estimate(rows: Array, scales: Array, channel: Channel) -> Estimate | None:
    """The scale of one stack with its interval at LEVEL; None without rows."""
    read = channel.learning_rate * spread_rows(rows, scales, channel.spread)
    found = confidence_sequence(read, scales, level=LEVEL)
    if found is None:
        return None
    return Estimate(estimate=found.estimate, lower=found.lower, upper=found.upper)


def noise_classes(stacks: Sequence[MeasuredStack]) -> tuple[NoiseClass, ...]:
    """The scale below which each class of departures is excluded: a margin of its mildest member.

    The margins and their reasons are in `variants`.
    """
    classes = []
    for name, (families, _) in CLASS_MARGINS.items():
        members = [s for s in stacks if s.family in families and s.text is not None]
        if not members:
            continue
        margin = margin_of(name, [one.name for one in members])
        mildest = min(members, key=lambda s: s.text.estimate if s.text else np.inf)
        assert mildest.text is not None
        classes.append(
            NoiseClass(
                name=name,
                scale=float(f"{margin * mildest.text.estimate:.4g}"),
                basis=f"{margin:g} of {mildest.name}, the mildest of {len(members)} builds",
            )
        )
    classes.append(
        NoiseClass(
            name="another model",
            scale=1.0,
            basis="at 1, greedy replies are as far off as samples at temperature 1",
        )
    )
    return tuple(classes)
