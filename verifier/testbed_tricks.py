"""What a testbed host does to requests and answers beside its weights, template and sampler.

Pure functions of requests and answers; knows nothing of engines or sockets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from verifier.errors import ConfigError
from verifier.records import GenerateRequest
from verifier.testbed_wire import DEFAULT_MAX_TOKENS, Answer, WireError
from verifier.window import PLACES, Cut, Place, cut

#: Tricks by the beginning of their names, with examples and what they do.
TRICKS: Final = {
    "context:1024,front": "of longer prompts the last 1024 tokens are read, and nothing is said",
    "context:1024,front-kept": "the same, and the template stands whole around them",
    "context:1024,middle": "of longer prompts the middle is cut to 1024 tokens",
    "context:1024,end": "of longer prompts the first 1024 tokens are read",
    "context:1024,end-kept": "the same, and the template stands whole around them",
    "context:1024,front,hidden": "the same, and prompt tokens are counted as if all were read",
    "context:1024,refused": "longer prompts are refused with the limit named, as is honest",
    "ceiling:64": "replies end at 64 tokens at most, whatever was asked",
    "ceiling:64,hidden": "the same, and they are said to have ended by themselves",
    "ignores:stop": "stop strings are taken and ignored; so may be seed, n, logit_bias, max_tokens",
    "ignores:n,logit_bias": "several parameters are",
    "cache:same": "a prompt that came before gets its earlier reply, whatever the temperature",
    "cache:alike": "so does one that ends in the same words",
}

#: Parameters that a host may ignore.
PARAMETERS: Final = frozenset({"seed", "stop", "n", "logit_bias", "max_tokens"})

#: How the names of tricks begin.
KINDS: Final = tuple(dict.fromkeys(name.partition(":")[0] for name in TRICKS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tricks:
    """Everything a host does beside serving its weights."""

    window: int | None = None  # tokens of a prompt that are read; None: all
    place: Place | None = None  # where longer prompts are cut; None: they are refused
    counts_all: bool = False  # whether prompt tokens are counted as if nothing was cut
    ceiling: int | None = None  # tokens of a reply at most
    ignores: frozenset[str] = frozenset()  # parameters that are taken and ignored
    cache: Literal["same", "alike"] | None = None  # which prompts get an earlier reply
    says_stop: bool = False  # whether a reply cut at the ceiling is said to have ended


#: A host without any.
PLAIN: Final = Tricks()


def read_trick(kind: str, value: str, tricks: Tricks) -> Tricks:
    """`tricks` with one more, as `--fault` names it. Raises ConfigError for none that is known."""
    number, *rest = value.split(",")
    hidden = rest[-1:] == ["hidden"]
    rest = rest[:-1] if hidden else rest
    size = int(number) if number.isascii() and number.isdigit() else 0
    if kind == "context" and size and len(rest) == 1:
        place = next((p for p in PLACES if p == rest[0]), None)
        if place is not None or (rest[0] == "refused" and not hidden):
            return replace(tricks, window=size, place=place, counts_all=hidden)
    if kind == "ceiling" and size and not rest:
        return replace(tricks, ceiling=size, says_stop=hidden)
    if kind == "ignores" and {number, *value.split(",")} <= PARAMETERS:
        return replace(tricks, ignores=frozenset(value.split(",")))
    if kind == "cache" and value in ("same", "alike"):
        return replace(tricks, cache="same" if value == "same" else "alike")
    examples = ", ".join(name for name in TRICKS if name.startswith(f"{kind}:"))
    raise ConfigError(f"fault {kind}:{value}: cannot be read; give it as in {examples}")


def read_whole_or_cut(
    ids: tuple[int, ...], tricks: Tricks, *, head: int, tail: int
) -> tuple[int, ...]:
    """A prompt as the host reads it. Raises WireError where it refuses a long one."""
    if tricks.window is None or len(ids) <= tricks.window:
        return ids
    if tricks.place is None:
        raise WireError(
            f"This model's maximum context length is {tricks.window} tokens. However, your "
            f"messages resulted in {len(ids)} tokens. Please reduce their length.",
            param="messages", code="context_length_exceeded",
        )  # fmt: skip
    return cut(ids, Cut(place=tricks.place, window=tricks.window), head=head, tail=tail)


def answered(answer: Answer, tricks: Tricks, *, rendered: int, asked: int) -> Answer:
    """An answer as the host shows it; `rendered` is the whole prompt's length."""
    if tricks.counts_all:
        answer = replace(answer, prompt_tokens=rendered)
    at_ceiling = tricks.ceiling is not None and tricks.ceiling < asked
    if tricks.says_stop and at_ceiling and answer.finish_reason == "length":
        answer = replace(answer, finish_reason="stop")
    return answer


def ignoring(request: GenerateRequest, tricks: Tricks) -> GenerateRequest:
    """A request less what the host ignores; several replies are the server's to ignore."""
    plain: dict[str, Any] = {
        "seed": None, "stop": (), "logit_bias": (), "max_tokens": DEFAULT_MAX_TOKENS,
    }  # fmt: skip
    return replace(request, **{n: v for n, v in plain.items() if n in tricks.ignores})


class Store:
    """Earlier answers of a host that gives them again."""

    def __init__(self, tricks: Tricks) -> None:
        self._tricks = tricks
        self._known: dict[tuple[str, int], Answer] = {}

    def again(self, words: str, limit: int, answer: Answer) -> Answer:
        """What an earlier prompt got that is the same or ends alike; `answer` if there was none."""
        match self._tricks.cache:
            case None:
                return answer
            case "same":
                return self._known.setdefault((words, limit), answer)
            case "alike":
                return self._known.setdefault((words[-_ALIKE:], limit), answer)


#: Characters at its end by which a prompt is taken for another.
_ALIKE: Final = 24
