"""The prompt pool: ordinary questions, drawn by a secret seed from the data files in `probes/`.

Knows nothing of endpoints, tokenizers or models. probes/README.md explains the data files.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from verifier.errors import ConfigError
from verifier.files.strict_yaml import MAX_BYTES, parse_yaml, read_bounded
from verifier.records import Message, Probe, Role, Tool
from verifier.shipped import shipped

#: The kind of a panel's probes: they speak of templates, and are read only for them.
PANEL_KIND: Final = "template"

#: Labels of how a probe is asked, and what the others are called.
STRATA: Final = {
    "without log-probabilities": "with log-probabilities",
    "streamed": "not streamed",
    "short": "long",
    "late": "early",
}

#: The same where some of the questions are a pack's, which a host may know.
OF_PACK: Final = {"of questions of the pack": "of fresh questions"}

#: How the ids of a pack's questions begin where fresh ones are asked beside them.
PACKED: Final = "pack-"

#: Probes at the beginning that are early.
EARLY: Final = 8

#: Tokens of a short reply.
SHORT_TOKENS: Final = 8

#: Tools that questions may offer. Their words hold what writers of JSON spell differently: a slash,
#: a letter beyond ASCII, signs of HTML, an apostrophe, and keys in no order.
TOOLS: Final = (
    Tool(
        name="find_train",
        description="Trains between two stations, e.g. Zürich/Basel",
        parameters='{"type":"object","properties":{"to":{"type":"string"},"from":{"type":"string"}'
        ',"day":{"type":"string"}},"required":["to","from"]}',
    ),
    Tool(
        name="convert",
        description="Converts an amount of money (> 0) at the day's rate",
        parameters='{"type":"object","properties":{"target":{"type":"string"},"amount":'
        '{"type":"number"}},"required":["target","amount"]}',
    ),
)

#: {slot}, or {slot.form} for a filler that has several grammatical forms.
_PLACEHOLDER = re.compile(r"\{(\w+)(?:\.(\w+))?\}")


def _tidy(line: str) -> str:
    if not line or line != line.strip() or re.search(r"\S {2}", line):
        raise ValueError(f"expected text without outer or double spaces, got {line!r}")
    return line


def _distinct(entries: tuple[Any, ...]) -> tuple[Any, ...]:
    for place, entry in enumerate(entries):
        if entry in entries[:place]:
            raise ValueError(f"entry {place} repeats an earlier one ({entry!r}); remove it")
    return entries


def _as_forms(filler: object) -> object:
    return {"": filler} if isinstance(filler, str) else filler


Line = Annotated[str, AfterValidator(_tidy)]
#: One filler of a slot: its text by grammatical form; the only form of a plain filler is "".
Filler = Annotated[dict[str, Line], BeforeValidator(_as_forms)]
Lines = Annotated[tuple[Line, ...], AfterValidator(_distinct)]
SomeLines = Annotated[Lines, Field(min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Group(_Entry):
    """Texts, each of which is put into every frame."""

    frames: SomeLines = ("{text}",)
    casual: Lines = ()  # frames in lower case and without a final mark
    texts: SomeLines

    def templates(self, text: str) -> Iterator[tuple[Style, str]]:
        for frame in self.frames:
            yield "sentence", frame.replace("{text}", text)
        for frame in self.casual:
            yield "casual", frame.replace("{text}", text)


class _Conversation(_Entry):
    """Alternatives for each turn, in the words to send."""

    ask: SomeLines
    answer: SomeLines
    then: Lines = ()


class _Dialogues(_Entry):
    """Conversations that share follow-ups (`then`) and system messages."""

    systems: Lines = ()
    then: SomeLines
    conversations: Annotated[tuple[_Conversation, ...], Field(min_length=1)]


class _File(_Entry):
    """One data file."""

    source: Line
    licence: Line
    kind: Annotated[str, Field(pattern=r"^[a-z]+(-[a-z]+)*$")]
    language: Line
    slots: dict[
        str, Annotated[tuple[Filler, ...], Field(min_length=1), AfterValidator(_distinct)]
    ] = {}
    groups: tuple[_Group, ...] = ()
    dialogues: tuple[_Dialogues, ...] = ()

    @model_validator(mode="after")
    def _placeholders_exist(self) -> Self:
        unused = set(self.slots)
        for name, fillers in self.slots.items():
            for filler in fillers:
                if filler.keys() != fillers[0].keys():
                    raise ValueError(f"slot {name!r}: {filler!r} has other forms than the first")
        for template in (
            template for g in self.groups for t in g.texts for _, template in g.templates(t)
        ):
            if re.search(r"[{}]", _PLACEHOLDER.sub("", template)):
                raise ValueError(f"{template!r}: a brace that is not part of a {{slot}}")
            for name, form in _PLACEHOLDER.findall(template):
                if name not in self.slots:
                    raise ValueError(f"{template!r}: no slot is called {name!r}")
                if form not in self.slots[name][0]:
                    raise ValueError(f"{template!r}: slot {name!r} has no form {form!r}")
                unused.discard(name)
        if unused:
            raise ValueError(f"slot {min(unused)!r} is used by no text")
        return self


#: A piece of a message: literal text, or the number of a choice and the form to put here.
Part = str | tuple[int, str]
Style = Literal["sentence", "casual", "verbatim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One wording with open choices: one conversation per combination of fillers."""

    messages: tuple[tuple[Role, tuple[Part, ...]], ...]
    choices: tuple[tuple[dict[str, str], ...], ...]
    style: Style
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """All variants of one text; the families of a file are drawn equally often."""

    kind: str
    file: str
    variants: tuple[Variant, ...]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Every conversation that can be asked."""

    families: tuple[Family, ...]
    digest: str  # sha256 of the data files, one after the other in the order of their names
    size: int  # number of distinct conversations
    kinds: tuple[str, ...]


@cache
def load_pool() -> Pool:
    """The pool that ships with the package. Raises ConfigError when a data file is wrong."""
    return read_pool(shipped("probes"))


def read_pool(directory: Path) -> Pool:
    """The pool of a directory of data files. Raises ConfigError naming the file and the entry."""
    paths = sorted(directory.glob("*.yaml"), key=lambda path: path.name)
    if not paths:
        raise ConfigError(f"{directory}: expected data files (*.yaml), found none")
    digest = hashlib.sha256()
    families: list[Family] = []
    for path in paths:
        raw = read_bounded(path, limit=MAX_BYTES)
        digest.update(raw)
        families += _families(_parse(path, raw), path.name)
    return Pool(
        families=tuple(families),
        digest=digest.hexdigest(),
        size=sum(family.size for family in families),
        kinds=tuple(sorted({family.kind for family in families})),
    )


def size_of(pool: Pool, kinds: Sequence[str] | None) -> int:
    """How many conversations of these kinds there are; None: of all."""
    wanted = pool.kinds if kinds is None else kinds
    return sum(family.size for family in pool.families if family.kind in wanted)


def draw(
    pool: Pool, *, seed: int, count: int, max_tokens: int, kinds: Sequence[str] | None = None
) -> tuple[Probe, ...]:
    """Draw `count` different conversations, the kinds evenly mixed in every prefix.

    The same pool, seed and kinds give the same probes everywhere, and a shorter draw is the
    beginning of a longer one. Without the seed, earlier probes do not give away later ones.
    Raises ConfigError for an unknown kind, and when the kinds have fewer than `count`.
    """
    wanted = _kinds(pool, kinds)
    decks = {
        kind: _Deck([family for family in pool.families if family.kind == kind]) for kind in wanted
    }
    available = sum(family.size for family in pool.families if family.kind in decks)
    if not 0 <= count <= available:
        raise ConfigError(
            f"probes: count must be 0 to {available} for {', '.join(wanted)}; got {count!r}"
        )
    dice = _Dice(f"{pool.digest}:{seed}")
    seen: set[tuple[Message, ...]] = set()
    probes: list[Probe] = []
    turns: list[str] = []
    while len(probes) < count:
        turns = turns or dice.shuffle(kind for kind in wanted if decks[kind].left)
        if not turns:
            raise ConfigError(f"probes: only {len(seen)} of {available} conversations differ")
        kind = turns.pop()
        messages = decks[kind].deal(dice)
        if messages not in seen:
            seen.add(messages)
            name = f"p{len(seen):04}"
            probes.append(Probe(id=name, kind=kind, messages=messages, max_tokens=max_tokens))
    return tuple(probes)


def conversations(pool: Pool) -> Iterator[tuple[Message, ...]]:
    """Every conversation of the pool, to check that `size` counts different ones."""
    for family in pool.families:
        for variant in family.variants:
            for index in range(variant.size):
                yield _fill(variant, index)


def _kinds(pool: Pool, kinds: Sequence[str] | None) -> tuple[str, ...]:
    """The kinds asked for, in the order of the pool."""
    if kinds is None:
        return pool.kinds
    for kind in kinds or ("",):
        if kind not in pool.kinds:
            raise ConfigError(
                f"probes: expected kinds out of {', '.join(pool.kinds)}; got {kind!r}"
            )
    return tuple(kind for kind in pool.kinds if kind in kinds)


def shuffled(values: Iterable[int], *, seed: int) -> list[int]:
    """Numbers in an order that nobody knows without the seed; the same on every platform."""
    dice = _Dice(f"{seed}:order")
    found = list(values)
    for at in range(len(found) - 1, 0, -1):
        other = dice.below(at + 1)
        found[at], found[other] = found[other], found[at]
    return found


class _Dice:
    """Random integers from a hash keyed by the seed: the same on every platform."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._throws = 0

    def below(self, limit: int) -> int:
        """An integer from 0 to limit - 1; with 256 bits the remainder's bias is negligible."""
        self._throws += 1
        digest = hashlib.sha256(f"{self._key}:{self._throws}".encode()).digest()
        return int.from_bytes(digest, "big") % limit

    def shuffle(self, values: Iterable[str]) -> list[str]:
        """The values in random order."""
        shuffled: list[str] = []
        for value in values:
            shuffled.insert(self.below(len(shuffled) + 1), value)
        return shuffled


class _Deck:
    """What is not dealt yet of one kind.

    A file is drawn first, then a family, then one of its conversations: large families do not
    crowd out small ones.
    """

    def __init__(self, families: Sequence[Family]) -> None:
        self._stacks: dict[str, list[_Stack]] = {}
        for family in families:
            self._stacks.setdefault(family.file, []).append(_Stack(family))

    @property
    def left(self) -> bool:
        """Whether anything can be dealt."""
        return bool(self._stacks)

    def deal(self, dice: _Dice) -> tuple[Message, ...]:
        """The next conversation."""
        file = list(self._stacks)[dice.below(len(self._stacks))]
        stacks = self._stacks[file]
        stack = stacks[dice.below(len(stacks))]
        messages = stack.deal(dice)
        if not stack.left:
            stacks.remove(stack)
        if not stacks:
            del self._stacks[file]
        return messages


class _Stack:
    """The conversations of a family, dealt by a Fisher-Yates shuffle that keeps only the moves."""

    def __init__(self, family: Family) -> None:
        self._variants = family.variants
        self._moved: dict[int, int] = {}
        self.left = family.size

    def deal(self, dice: _Dice) -> tuple[Message, ...]:
        """The next conversation; each that is left is equally likely."""
        chosen = dice.below(self.left)
        self.left -= 1
        index = self._moved.get(chosen, chosen)
        self._moved[chosen] = self._moved.pop(self.left, self.left)
        for variant in self._variants:
            if index < variant.size:
                break
            index -= variant.size
        return _fill(variant, index)


def _fill(variant: Variant, index: int) -> tuple[Message, ...]:
    """Conversation number `index` of a variant: the digits of the number are the fillers."""
    fillers: list[dict[str, str]] = []
    for choice in variant.choices:
        index, digit = divmod(index, len(choice))
        fillers.append(choice[digit])
    return tuple(
        Message(
            role=role,
            content=_style(
                "".join(p if isinstance(p, str) else fillers[p[0]][p[1]] for p in parts),
                variant.style,
            ),
        )
        for role, parts in variant.messages
    )


def _style(text: str, style: Style) -> str:
    if style == "sentence":
        return text[:1].upper() + text[1:]
    if style == "casual":
        return text.lower().rstrip(" .?!")  # French sets a space before the mark
    return text


def _parse(path: Path, raw: bytes) -> _File:
    values = parse_yaml(raw, where=path.name, aliases=True)
    try:
        return _File.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(str(step) for step in first["loc"]) or "file"
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path.name}: {entry}: {reason}") from error


def _families(file: _File, name: str) -> Iterator[Family]:
    """One family per text; per conversation two, without and with a system message."""

    def family(variants: Sequence[Variant]) -> Family:
        size = sum(variant.size for variant in variants)
        return Family(kind=file.kind, file=name, variants=tuple(variants), size=size)

    for group in file.groups:
        for text in group.texts:
            yield family(
                [_wording(file, style, template) for style, template in group.templates(text)]
            )
    for dialogue in file.dialogues:
        for talk in dialogue.conversations:
            turns: list[tuple[Role, Lines]] = [
                ("user", talk.ask),
                ("assistant", talk.answer),
                ("user", (*talk.then, *dialogue.then)),
            ]
            yield family([_exchange(turns)])
            if dialogue.systems:
                yield family([_exchange([("system", dialogue.systems), *turns])])


def _wording(file: _File, style: Style, template: str) -> Variant:
    names: list[str] = []
    parts: list[Part] = []
    end = 0
    for found in _PLACEHOLDER.finditer(template):
        name, form = found.group(1), found.group(2) or ""
        if name not in names:
            names.append(name)
        parts += [template[end : found.start()], (names.index(name), form)]
        end = found.end()
    choices = tuple(file.slots[name] for name in names)
    return Variant(
        messages=(("user", (*parts, template[end:])),),
        choices=choices,
        style=style,
        size=math.prod(map(len, choices)),
    )


def _exchange(turns: Sequence[tuple[Role, Lines]]) -> Variant:
    choices = tuple(tuple({"": line} for line in lines) for _, lines in turns)
    return Variant(
        messages=tuple((role, ((number, ""),)) for number, (role, _) in enumerate(turns)),
        choices=choices,
        style="verbatim",
        size=math.prod(map(len, choices)),
    )


def labels_of(probe: Probe, number: int) -> tuple[str, ...]:
    """The labels of the probe that is asked as the `number`-th, counted from 0."""
    marks = (
        not probe.logprobs, probe.stream, probe.max_tokens <= SHORT_TOKENS, number >= EARLY,
    )  # fmt: skip
    found = [label for label, marked in zip(STRATA, marks, strict=True) if marked]
    return (*found, *(OF_PACK if probe.id.startswith(PACKED) else ()))
