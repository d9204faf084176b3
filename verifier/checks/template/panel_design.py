"""The panel: few conversations, searched for, that tell the renderings of a template apart.

Candidates vary what faults touch: system message, number of turns, tools, reasoning and empty
words in the history, white space, other scripts and digits, and the switches that the template
reads. A greedy search then takes those that separate most pairs of renderings, by the number of
their prompt tokens and by the prompts themselves. Words come from the probe pool, drawn by the
secret seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from verifier.evidence.prompt_counts import OFFSETS
from verifier.probes import PANEL_KIND, TOOLS, Pool, draw
from verifier.prompts import prompt_of
from verifier.records import REFERENCE, Message, Probe, ToolCall
from verifier.reference.reader import Renderer
from verifier.reference.renderings.catalogue import (
    PUBLISHED,
    Rendering,
    prints_a_date,
    render,
    render_probe,
)

#: Candidates that a search looks at.
CANDIDATES: Final = 96

#: What a pair separated by counts is worth, against its prompts differing at all.
_COUNTED: Final = 0.5

#: How much a pair with the published rendering counts: that is what a host is held to.
_PUBLISHED: Final = 4

#: What a request costs beside its prompt, in prompt tokens: the search weighs gain by cost.
_BASE_TOKENS: Final = 60

_KINDS: Final = ("open-question", "instruction", "list")
_LONG_SYSTEM: Final = (
    "You answer people who read on a small screen. Keep sentences short, give the reason before "
    "the advice, name at most 3 things, and say so when something is not known."
)
_CALL: Final = ToolCall(
    id="functions.find_train:0", name="find_train", arguments='{"to":"Bergen","from":"Oslo"}'
)
_SIGNS: Final = (" Ærlig talt, 10 000 kr?", " 谢谢！", " (12.5 %, 2026)", " Danke schön 🙂", " №7?")

Lengths = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Probes that tell renderings apart, and how long each is under each."""

    probes: tuple[Probe, ...]
    names: tuple[str, ...]  # of the renderings, the published one first
    lengths: Lengths  # [names, probes] prompt tokens; NaN where the template refuses
    differing: NDArray[np.int64]  # [names, names] on how many probes two prompts differ

    def confused(self) -> list[tuple[str, str]]:
        """Pairs of renderings that counts cannot tell apart: left to the replies."""
        return self._pairs(~separated(self.lengths))

    def inseparable(self) -> list[tuple[str, str]]:
        """Pairs of renderings whose prompts are the same on every probe."""
        return self._pairs(self.differing == 0)

    def _pairs(self, alike: NDArray[np.bool_]) -> list[tuple[str, str]]:
        found = combinations(range(len(self.names)), 2)
        return [(self.names[i], self.names[j]) for i, j in found if alike[i, j]]


def design_panel(
    renderer: Renderer,
    entries: Sequence[Rendering],
    pool: Pool,
    *,
    seed: int,
    size: int,
    max_tokens: int,
    today: str | None = None,
    candidates: int = CANDIDATES,
) -> Panel:
    """Search for `size` probes; the first ones tell most.

    `entries` are the renderings to tell apart; those that the template cannot express, and those
    that are not searched for, are left out, and the published one is there always. Each step of
    the search takes the candidate that adds most to the pairs separated, for its length. `today` is
    the day that a template with a date prints.
    """
    drafts = draft_probes(
        renderer.template or "", pool, seed=seed, count=candidates, max_tokens=max_tokens,
        today=today,
    )  # fmt: skip
    searched = [entry for entry in entries if entry.searched]
    return search(renderer, searched, drafts, size=size)


def search(
    renderer: Renderer, entries: Sequence[Rendering], drafts: Sequence[Probe], *, size: int
) -> Panel:
    """The greedy search among given candidates, of the entries that the template can express.

    Raises RenderingError when the published template refuses them all.
    """
    names = (REFERENCE, *(e.name for e in entries if e.name != REFERENCE))
    by_name = {entry.name: entry for entry in entries}
    by_name.setdefault(REFERENCE, PUBLISHED)
    if all(render_probe(by_name[REFERENCE], probe, renderer) is None for probe in drafts):
        render(by_name[REFERENCE], prompt_of(drafts[0]), renderer)  # raises, and says why
    kinds: dict[tuple[int, ...] | None, int] = {None: -1}
    lengths = np.full((len(names), len(drafts)), np.nan)
    marks = np.zeros((len(names), len(drafts)), dtype=int)  # equal marks: equal prompts
    for i, name in enumerate(names):
        for j, probe in enumerate(drafts):
            found = render_probe(by_name[name], probe, renderer)
            if found is not None:
                lengths[i, j] = len(found.ids)
            key = None if found is None else found.ids
            if by_name[name].past_end:
                key = (-1, *(key or ()))
            marks[i, j] = kinds.setdefault(key, len(kinds))
    able = [0, *(i for i in range(1, len(names)) if (marks[i] != marks[0]).any())]
    names = tuple(names[i] for i in able)
    lengths, marks = lengths[able], marks[able]
    usable = [j for j in range(len(drafts)) if not np.isnan(lengths[0, j])]
    chosen: list[int] = []
    while usable and len(chosen) < size:
        so_far = _worth(chosen, lengths, marks)
        gains = {
            j: (_worth([*chosen, j], lengths, marks) - so_far) / (_BASE_TOKENS + lengths[0, j])
            for j in usable
        }
        best = max(usable, key=lambda j: gains[j])
        usable.remove(best)
        chosen.append(best)
    return Panel(
        probes=tuple(
            replace(drafts[j], id=f"t{n:02}", kind=PANEL_KIND) for n, j in enumerate(chosen, 1)
        ),
        names=names,
        lengths=lengths[:, chosen],
        differing=_differing(marks[:, chosen]),
    )


def separated(lengths: Lengths) -> NDArray[np.bool_]:
    """Which pairs [names, names] the counts tell apart, whatever constant a host adds to them."""
    gaps = lengths[:, None, :] - lengths[None, :, :]  # [n, n, probes]
    refused = np.isnan(gaps)
    low = np.where(refused, np.inf, gaps).min(axis=2)
    high = np.where(refused, -np.inf, gaps).max(axis=2)
    most = max(OFFSETS) - min(OFFSETS)
    one_refuses = (np.isnan(lengths)[:, None, :] != np.isnan(lengths)[None, :, :]).any(axis=2)
    return np.asarray(one_refuses | (high > low) | ((np.abs(low) > most) & np.isfinite(low)))


def _worth(chosen: Sequence[int], lengths: Lengths, marks: NDArray[Any]) -> float:
    if not chosen:
        return 0.0
    counted = separated(lengths[:, chosen])
    shown = 1 - 0.5 ** _differing(marks[:, chosen])  # each further prompt adds half as much
    shown[0] *= _PUBLISHED
    return float(_COUNTED * counted.sum() + shown.sum())


def _differing(marks: NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray((marks[:, None, :] != marks[None, :, :]).sum(axis=2), dtype=np.int64)


# -- candidates --------------------------------------------------------------------------------


def draft_probes(
    source: str, pool: Pool, *, seed: int, count: int, max_tokens: int, today: str | None = None
) -> tuple[Probe, ...]:
    """Candidates for a template with this source, in words of the pool."""
    rng = np.random.default_rng(seed)
    asked = [p.messages[-1].content for p in _draw(pool, seed, 2 * count, _KINDS)]
    talks = [p.messages for p in _draw(pool, seed, 3 * count, ("multi-turn",))]
    made = (
        _draft(source, rng, asked[n % len(asked)], talks, number=n, today=today)
        for n in range(count)
    )
    return tuple(replace(probe, max_tokens=max_tokens) for probe in made)


def _draw(pool: Pool, seed: int, count: int, kinds: tuple[str, ...]) -> tuple[Probe, ...]:
    held = tuple(kind for kind in kinds if kind in pool.kinds)
    size = sum(family.size for family in pool.families if family.kind in held)
    return draw(pool, seed=seed, count=min(count, size // 2), max_tokens=1, kinds=held)


def _draft(
    source: str,
    rng: np.random.Generator,
    question: str,
    talks: Sequence[tuple[Message, ...]],
    *,
    number: int,
    today: str | None,
) -> Probe:
    """One candidate; every choice is made by `rng`, so that a seed gives a panel."""
    reasons = "reasoning" in source or "think" in source
    messages = _history(rng, talks, reasons=reasons)
    tools = TOOLS[: int(rng.integers(0, 3))] if "tools" in source else ()
    if tools and _chance(rng, 0.6):
        messages += _tool_turn(reasons=reasons)
    ends_with_tool = bool(tools) and bool(messages) and messages[-1].role == "tool"
    if not ends_with_tool or _chance(rng, 0.5):
        messages.append(Message(role="user", content=_roughened(question, rng)))
    return Probe(
        id=f"c{number}",
        kind=PANEL_KIND,
        messages=(*_system(rng, talks), *messages),
        max_tokens=1,
        tools=tools,
        settings=_settings(source, rng),
        today=today if prints_a_date(source) else None,
    )


def _chance(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


def _history(
    rng: np.random.Generator, talks: Sequence[tuple[Message, ...]], *, reasons: bool
) -> list[Message]:
    """Earlier turns, of which some were answered with nothing."""
    messages: list[Message] = []
    for _ in range(int(rng.choice([0, 0, 1, 1, 1, 2, 3, 4]))):
        talk = talks[int(rng.integers(len(talks)))]
        asked, said = (next(m.content for m in talk if m.role == r) for r in ("user", "assistant"))
        empty = _chance(rng, 0.25)
        messages += [
            Message(role="user", content=_roughened(asked, rng)),
            Message(
                role="assistant",
                content="" if empty else f"{said.partition('. ')[0].rstrip('.')}.",
                reasoning="They want 1 plain answer." if reasons and _chance(rng, 0.5) else None,
            ),
        ]
    return messages


def _tool_turn(*, reasons: bool) -> list[Message]:
    """A question that a tool was called for, and what it gave."""
    thought = "I look it up." if reasons else None
    return [
        Message(role="user", content="Is there a train from Oslo to Bergen?"),
        Message(role="assistant", content="", reasoning=thought, tool_calls=(_CALL,)),
        Message(role="tool", content='{"leaves": "8:25"}', tool_call_id=_CALL.id),
    ]


def _system(rng: np.random.Generator, talks: Sequence[tuple[Message, ...]]) -> tuple[Message, ...]:
    """A system message: empty, short, long, or none."""
    kind = ("", None, "short", "long", "short", None)[int(rng.integers(6))]
    if kind is None:
        return ()
    systems = [m.content for talk in talks for m in talk if m.role == "system"]
    short = systems[int(rng.integers(len(systems)))] if systems else "Be concise."
    words = {"": "", "short": short, "long": _LONG_SYSTEM}[kind]
    return (Message(role="system", content=words),)


def _settings(source: str, rng: np.random.Generator) -> tuple[tuple[str, bool | str], ...]:
    """Settings that a template reads, most of them set."""
    settings: list[tuple[str, bool | str]] = [
        (name, _chance(rng, 0.5)) for name in ("enable_thinking", "thinking")
        if f"{name} " in source and _chance(rng, 0.7)
    ]  # fmt: skip
    if "reasoning_effort" in source:
        settings.append(("reasoning_effort", str(rng.choice(["low", "high"]))))
    return tuple(settings)


def _roughened(text: str, rng: np.random.Generator) -> str:
    """The same words, at times with white space around them, other scripts or digits."""
    choice = int(rng.integers(8))
    if choice == 0:
        return f" {text}"
    if choice in (1, 2):
        return f"{text}{(' ', chr(10))[choice - 1]}"
    if choice == 3:
        return f"{text}{_SIGNS[int(rng.integers(len(_SIGNS)))]}"
    return text
