"""What a calibration will do and take: told before anything is fetched, loaded or written.

Minutes are estimates from the card's facts and how fast the machine is; where the work folder holds
how long parts took, what is left is estimated from those.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from verifier.config import Hardware, ReferenceSection
from verifier.errors import ConfigError
from verifier.lab.calibrate import Item, Kind
from verifier.lab.corpus import is_collected
from verifier.lab.timings import Part, Timing, read_timings
from verifier.reference.cards import Card
from verifier.reference.hardware import GIB, Memory, check_fit, plan_memory
from verifier.reference.machine import Speed
from verifier.reference.memory import missing_facts
from verifier.reference.variants import find_variant

#: What software leaves of bandwidth, and of arithmetic while decoding and in whole passes. On CPU
#: measured with the embedded model, on GPUs usual values.
_OF_BANDWIDTH: Final = {True: 0.5, False: 0.35}
_OF_DECODING: Final = {True: 0.3, False: 0.25}
_OF_PASSES: Final = {True: 0.4, False: 0.6}
#: Seconds of a step of decoding that no hardware shortens, a layer.
_STEP_S: Final = {"transformers": 1e-3, "vllm": 1e-4}
#: Seconds that an engine takes to start beside reading weights, and bytes read in a second.
_START_S: Final = {"transformers": 5.0, "vllm": 90.0}
_READ: Final = 1e9
#: Seconds that rounding takes a parameter: on a GPU, on a core, and by a search.
_ROUND_S: Final = {True: 5e-10, False: 5e-9}
_SEARCH_S: Final = 1e-6
#: Passes over a reply until it is scored: vLLM is asked again for tokens that were named.
_PASSES: Final = {"transformers": 1.1, "vllm": 2.0}
#: Tokens that a template adds to a prompt, and characters of a token.
_TEMPLATE_TOKENS: Final = 32
_CHARACTERS: Final = 4
#: Bytes that a work folder holds for a token of a reply.
_KEPT: Final = 1700

ASSUMED: Final = (
    "half of a GPU's bandwidth and 30 to 40 % of its arithmetic are used, a third and 25 to 60 % "
    "of a processor's; weights are read at 1 GB/s, once for each load and each variant; every "
    "reply is as long as it may be"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One stack or variant to measure."""

    stack: str
    role: str
    replies: int
    prompt_tokens: int
    completion_tokens: int
    minutes: float | None  # that are left; None: the card lacks what they are estimated from


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a calibration will do and take."""

    card: str
    speed: str
    steps: tuple[Step, ...]
    loads: int
    minutes: float | None  # that are left, loading included
    once: float | None  # minutes that generating the same replies once takes
    fetched_bytes: int | None  # None: not known
    work_bytes: int
    memory: Memory | None  # of each GPU; None: no GPU is planned for, or the card lacks facts
    memory_note: str
    measured: tuple[str, ...]  # parts whose time this work folder knows
    needs: tuple[str, ...]  # what the machine must have, where it is another than this one
    refusals: tuple[str, ...]

    @property
    def replies(self) -> int:
        """Of all stacks."""
        return sum(step.replies for step in self.steps)


def forecast(
    card: Card,
    items: Sequence[Item],
    *,
    scores_like: Kind,
    speed: Speed,
    hardware: Hardware | None,
    engine_args: Mapping[str, Any],
    work: Path,
    fetches: bool,
    refusals: Sequence[str],
    needs: Sequence[str] = (),
) -> Forecast:
    """Foresee a calibration of these items. Fetches nothing, loads nothing, writes nothing."""
    model = _model_of(card)
    tensor = gpus_of(engine_args, speed)
    takes = _Takes(model=model, speed=speed, gpus=tensor, layers=card.layers)
    timings = read_timings(work)
    estimates = {part: takes.by_part(items, part, scores_like) for part in _PARTS}
    ratios = {part: _ratio(part, estimates[part], timings) for part in _PARTS}
    lacking = {
        item.stack.name for item in items if not is_collected(work / item.stack.name, item.probes)
    }
    scored = {timing.stack for timing in timings if timing.part == "scoring"} - lacking
    steps = tuple(_step(item, estimates, ratios, lacking, scored) for item in items)
    kinds = {item.stack.kind for item in items if item.stack.name in lacking} | {scores_like}
    loading = [estimates["loading"].get(kind[0]) for kind in kinds]
    parts = [*(step.minutes for step in steps), *(_minutes(s, ratios["loading"]) for s in loading)]
    memory, note, problems = _memory(
        card, items, scores_like, speed=speed, hardware=hardware, engine_args=engine_args,
        model=model,
    )  # fmt: skip
    asked = [estimates["asking"].get(item.stack.name) for item in items]
    return Forecast(
        card=card.name,
        speed=speed.words,
        steps=steps,
        loads=len(kinds),
        minutes=_total(parts),
        once=_total([_minutes(one, ratios["asking"]) for one in asked]),
        fetched_bytes=card.architecture.weight_bytes if fetches else 0,
        work_bytes=_KEPT * sum(step.completion_tokens for step in steps),
        memory=memory,
        memory_note=note,
        measured=tuple(part for part in _PARTS if ratios[part] is not None),
        needs=tuple(needs),
        refusals=(*refusals, *problems),
    )


_PARTS: Final[tuple[Part, ...]] = ("loading", "swapping", "asking", "scoring")
_Seconds = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """Weights of a model, in numbers and as bytes."""

    parameters: float
    active: float  # of one token
    stored: float  # bytes
    experts: float = 0.0  # share of the parameters that are routed experts'
    of_experts: float = 1.0  # share of them that a token meets


def _model_of(card: Card) -> _Model | None:
    """The weights by a card's facts; None: it lacks some."""
    facts = card.architecture
    if facts.weight_bytes is None or facts.bits is None:
        return None
    if facts.experts is None:
        parameters = facts.weight_bytes * 8 / facts.bits
        return _Model(parameters=parameters, active=parameters, stored=facts.weight_bytes)
    if facts.hidden_size is None:
        return None
    some = facts.experts
    routed = float(some.layers * some.count * 3 * facts.hidden_size * some.width)
    dense = max(0.0, facts.weight_bytes - routed * some.bits / 8) * 8 / facts.bits
    share = min(1.0, some.per_token / some.count)
    return _Model(
        parameters=dense + routed, active=dense + routed * share, stored=facts.weight_bytes,
        experts=routed / (dense + routed), of_experts=share,
    )  # fmt: skip


def generating_s(
    card: Card, speed: Speed, *, engine: str, tokens: int, batch: int, gpus: int = 1
) -> float | None:
    """Seconds that so many tokens take to generate, so many replies at a time, on GPUs that compute
    them together; None: the card lacks what that is estimated from."""
    model = _model_of(card)
    takes = _Takes(model=model, speed=speed, gpus=gpus, layers=card.layers)
    return None if model is None else tokens / batch * takes.step(engine, batch, model)


def scoring_s(
    card: Card, speed: Speed, *, engine: str, tokens: int, builds: Sequence[str], gpus: int = 1
) -> float | None:
    """Seconds that builds take to be put in place, and so many tokens to be scored."""
    model = _model_of(card)
    takes = _Takes(model=model, speed=speed, gpus=gpus, layers=card.layers)
    if model is None:
        return None
    swapped = sum(takes.swapping(name, model) for name in builds)
    return swapped + takes.passing(_PASSES[engine] * tokens, model)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Takes:
    """Seconds that each part takes a stack."""

    model: _Model | None
    speed: Speed
    gpus: int
    layers: int

    def by_part(self, items: Sequence[Item], part: Part, scores_like: Kind) -> dict[str, float]:
        """By the name of a stack, or of an engine where engines are loaded; {}: not known."""
        if self.model is None:
            return {}
        if part == "loading":
            engines = {item.stack.engine for item in items} | {scores_like[0]}
            return {one: _START_S[one] + self._reading(self.model) for one in engines}
        one = {"swapping": self._swapping, "asking": self._asking}.get(part)
        if one is not None:
            return {item.stack.name: one(item, self.model) for item in items}
        return {item.stack.name: self._scoring(item, self.model, scores_like[0]) for item in items}

    def _reading(self, model: _Model) -> float:
        return model.stored / _READ

    def _swapping(self, item: Item, model: _Model) -> float:
        if item.role != "variant":
            return 0.0
        return self.swapping(item.stack.weights, model)

    def swapping(self, name: str, model: _Model) -> float:
        """A build put in place."""
        searched = find_variant(name, layers=self.layers).family == "gguf"
        a_parameter = _SEARCH_S if searched else _ROUND_S[self.speed.gpu]
        return self._reading(model) + a_parameter * model.parameters

    def _asking(self, item: Item, model: _Model) -> float:
        prompts, _ = tokens_of(item)
        whole, rest = divmod(len(item.probes), item.stack.batch)
        sizes = [item.stack.batch] * whole + ([rest] if rest else [])
        steps = max(probe.max_tokens for probe in item.probes)
        decoding = sum(steps * self.step(item.stack.engine, n, model) for n in sizes)
        return decoding + self.passing(prompts, model)

    def step(self, engine: str, batch: int, model: _Model) -> float:
        """One token of each reply of a batch."""
        width = 4 if engine == "transformers" and not self.speed.gpu else None
        held = model.stored if width is None else model.parameters * width
        met = 1 - model.experts * (1 - model.of_experts) ** batch  # experts that some reply meets
        reading = held * met / (self.speed.bandwidth * _OF_BANDWIDTH[self.speed.gpu])
        arithmetic = self.speed.arithmetic * _OF_DECODING[self.speed.gpu]
        computing = 2 * model.active * batch / arithmetic
        return (reading + computing) / self.gpus + _STEP_S[engine] * self.layers

    def passing(self, tokens: float, model: _Model) -> float:
        rate = self.speed.arithmetic * _OF_PASSES[self.speed.gpu] * self.gpus
        return 2 * model.active * tokens / rate

    def _scoring(self, item: Item, model: _Model, engine: str) -> float:
        return self.passing(_PASSES[engine] * sum(tokens_of(item)), model)


def tokens_of(item: Item) -> tuple[int, int]:
    """Tokens of the prompts of a stack, by their length, and of its replies at most."""
    said = sum(len(m.content) for probe in item.probes for m in probe.messages)
    prompts = _TEMPLATE_TOKENS * len(item.probes) + math.ceil(said / _CHARACTERS)
    return prompts, sum(probe.max_tokens for probe in item.probes)


def gpus_of(engine_args: Mapping[str, Any], speed: Speed) -> int:
    """GPUs that compute one token together; stages of a pipeline take turns."""
    if not speed.gpu:
        return 1
    asked = engine_args.get("tensor_parallel_size", 1)
    return min(asked, speed.devices) if isinstance(asked, int) and asked > 0 else 1


def _ratio(part: Part, estimates: _Seconds, timings: Sequence[Timing]) -> float | None:
    """How much longer what was done took than was estimated; None: nothing was done."""
    of = [t for t in timings if t.part == part]
    if part == "loading":
        expected = max(estimates.values(), default=0.0) * len(of)
        taken = sum(t.seconds for t in of)
    else:
        known = [t for t in of if estimates.get(t.stack, 0.0) > 0]
        expected, taken = sum(estimates[t.stack] for t in known), sum(t.seconds for t in known)
    return taken / expected if expected > 0 else None


def _minutes(seconds: float | None, ratio: float | None) -> float | None:
    return None if seconds is None else seconds * (1.0 if ratio is None else ratio) / 60


def _total(parts: Sequence[float | None]) -> float | None:
    known = [one for one in parts if one is not None]
    return sum(known) if len(known) == len(parts) else None


def _step(
    item: Item,
    estimates: Mapping[Part, _Seconds],
    ratios: Mapping[Part, float | None],
    lacking: set[str],
    scored: set[str],
) -> Step:
    name = item.stack.name
    left: list[Part] = ["swapping", "asking"] if name in lacking else []
    left += [] if name in scored else ["scoring"]
    prompts, replies = tokens_of(item)
    return Step(
        stack=name, role=item.role, replies=len(item.probes), prompt_tokens=prompts,
        completion_tokens=replies,
        minutes=_total([_minutes(estimates[part].get(name), ratios[part]) for part in left]),
    )  # fmt: skip


def _memory(
    card: Card,
    items: Sequence[Item],
    scores_like: Kind,
    *,
    speed: Speed,
    hardware: Hardware | None,
    engine_args: Mapping[str, Any],
    model: _Model | None,
) -> tuple[Memory | None, str, list[str]]:
    """What each GPU needs, that in words where there is no table, and what cannot fit."""
    kinds = {item.stack.kind for item in items} | {scores_like}
    if speed.gpu and any(engine == "vllm" for engine, _ in kinds):
        missing = missing_facts(card)
        if missing:
            return None, f"not planned, because the card lacks {', '.join(missing)}", []
        section = ReferenceSection(
            card=card.name, engine="vllm", engine_args=dict(engine_args), hardware=hardware
        )
        most = max((p.max_tokens for item in items for p in item.probes), default=1)
        found: list[Memory] = []
        problems = _told(lambda: found.append(plan_memory(card, section, max_tokens=most)))
        if found and hardware is not None:
            problems += _told(lambda: check_fit(found[0], hardware))
        if not found:
            return None, "not planned", problems
        needed = found[0].inside / GIB
        return found[0], f"{needed:.1f} GiB of each of {found[0].layout.gpus} GPUs", problems
    if model is None:
        return None, "not known, because the card lacks architecture.weight_bytes or bits", []
    wide = any(engine == "transformers" for engine, _ in kinds)
    needed = model.parameters * (4 if wide else 2)
    note = f"{needed / GIB:,.1f} GiB for weights in {'float32' if wide else '16 bits'}"
    if needed <= speed.memory:
        return None, note, []
    where = "a GPU" if speed.gpu else "this machine"
    problem = (
        f"memory: {note}, but {where} has {speed.memory / GIB:,.0f} GiB; name the GPUs of "
        "another machine (--gpus, --gpu-memory), or calibrate where they fit"
    )
    return None, note, [problem]


def _told(look: Callable[[], object]) -> list[str]:
    try:
        look()
    except ConfigError as problem:
        return [str(problem)]
    return []


def lacking_room(found: Forecast, *, work: Path, cache: Path) -> tuple[str, ...]:
    """What the disks of these folders, which may be one, have no room for: one line each.

    What is not known is passed over. Writes nothing: of a folder that is not there yet the nearest
    that is counts.
    """
    wanted: dict[int, tuple[Path, Path, int]] = {}
    for folder, size in ((cache, found.fetched_bytes or 0), (work, found.work_bytes)):
        there = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
        disk = there.stat().st_dev
        before = wanted[disk][2] if disk in wanted else 0
        wanted[disk] = (folder, there, before + size)
    lacking = []
    for folder, there, size in wanted.values():
        free = shutil.disk_usage(there).free
        if free < size:
            lacking.append(
                f"{folder}: {size / 1e9:,.1f} GB would be written, and {free / 1e9:,.1f} GB of its "
                "disk are free; make room, or work where there is some"
            )
    return tuple(lacking)


# -- in words ----------------------------------------------------------------------------------


def describe_forecast(found: Forecast) -> list[str]:
    """A line for each stack, and one each for what all of it takes."""
    lines = [f"calibration of {found.card} on {found.speed}"]
    lines += [
        f"{step.role} {step.stack}: {step.replies} replies, {step.completion_tokens:,} tokens at "
        f"most after {step.prompt_tokens:,} of prompts, {_spelled(step.minutes)}"
        for step in found.steps
    ]
    tokens = sum(step.completion_tokens for step in found.steps)
    prompts = sum(step.prompt_tokens for step in found.steps)
    fetched = "?" if found.fetched_bytes is None else f"{found.fetched_bytes / 1e9:,.1f} GB"
    loads = "1 load" if found.loads == 1 else f"{found.loads} loads"
    whole = f"{found.replies:,} replies, {tokens:,} tokens at most after {prompts:,} of prompts"
    once = f"generating the replies once: {_spelled(found.once)}"
    lines.append(f"in all: {whole}; {loads} of an engine, variants put in in place")
    lines.append(f"time left: {_spelled(found.minutes)} ({once}); an estimate: {ASSUMED}")
    lines.append(f"disk: {fetched} to fetch, {found.work_bytes / 1e6:,.0f} MB in the work folder")
    lines.append(f"memory: {found.memory_note}")
    if found.measured:
        lines.append(f"as measured in the work folder: {', '.join(found.measured)}")
    return [*lines, *(f"needs: {need}" for need in found.needs)]


def _spelled(minutes: float | None) -> str:
    if minutes is None:
        return "? minutes"
    return f"{minutes:,.1f} minutes" if minutes < 10 else f"{minutes:,.0f} minutes"
