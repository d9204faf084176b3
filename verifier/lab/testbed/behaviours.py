"""What a testbed host does to requests and answers beside its weights, template and sampler.

Pure functions of requests and answers; knows nothing of engines or sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from verifier.checks.length.evidence import PLACES, Cut, Place, cut
from verifier.errors import ConfigError
from verifier.lab.testbed.deliveries import DESCRIBED
from verifier.lab.testbed.reporting import HABITS
from verifier.lab.testbed.wire import (
    DEFAULT_MAX_TOKENS,
    Answer,
    Body,
    Limit,
    Refused,
    ShownToken,
    WireError,
    alternatives_asked,
)
from verifier.records import GenerateRequest

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
    "spares:logprobs": "the weights fault spares requests that ask for log-probabilities",
    "spares:streams": "it spares those that ask for a stream",
    "spares:short": "it spares those that ask for at most 16 tokens",
    "spares:first": "it spares the first 8",
    "forges:logprobs": "log-probabilities of the published weights go with the faulty ones' text",
    "cache:same": "a prompt that came before gets its earlier reply, whatever the temperature",
    "cache:alike": "so does one that ends in the same words",
    "seed:1": "what is asked without a seed is drawn by this one, each time",
    "streams:other": "streams count a prompt token less, and never say that a reply has ended",
    "refuses:stream_options": "requests with this field are refused; so may be max_tokens",
    "refuses:continuous_usage_stats": "so are those with this part of that field",
    "refuses:streams": "so are those for a stream",
    "refuses:whole": "so are those for an answer in one piece: it serves streams alone",
    "limits:minute": "every fourth request finds the quota of a minute used up",
    "limits:in-200": "the same, said with HTTP 200 and a code of the host's own",
    **{f"reports:{name}": f"log-probabilities: {said}" for name, (said, _) in HABITS.items()},
    **{f"delivers:{name}": said for name, said in DESCRIBED.items()},
}

#: Requests that a weights fault may spare.
Spared = Literal["logprobs", "streams", "short", "first"]

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
    spares: Spared | None = None  # requests that get the published weights all the same
    forges: bool = False  # whether log-probabilities are those of the published weights
    cache: Literal["same", "alike"] | None = None  # which prompts get an earlier reply
    seed: int | None = None  # of requests that name none; None: each is drawn anew
    streams_differ: bool = False  # whether streams count and end in another way than whole replies
    says_stop: bool = False  # whether a reply cut at the ceiling is said to have ended
    refuses: frozenset[Refused] = frozenset()  # what of a request it does not take
    limits: Limit | None = None  # how it says that a minute is full; None: none ever is
    reports: str | None = None  # how log-probabilities are reported, of `HABITS`; None: right
    delivers: str | None = None  # how chats and completions travel, of `deliveries`; None: as usual


#: A host without any.
PLAIN: Final = Tricks()


def read_trick(kind: str, value: str, tricks: Tricks) -> Tricks:
    """`tricks` with one more, as `--fault` names it. Raises ConfigError for none that is known."""
    found = _READERS[kind](value, tricks) if kind in _READERS else None
    if found is not None:
        return found
    examples = ", ".join(name for name in TRICKS if name.startswith(f"{kind}:"))
    raise ConfigError(f"fault {kind}:{value}: cannot be read; give it as in {examples}")


def _sized(value: str) -> tuple[int, list[str], bool]:
    """A size, the words behind it, and whether the last of all was `hidden`; 0: no size."""
    number, *rest = value.split(",")
    hidden = rest[-1:] == ["hidden"]
    size = int(number) if number.isascii() and number.isdigit() else 0
    return size, rest[:-1] if hidden else rest, hidden


def _read_context(value: str, tricks: Tricks) -> Tricks | None:
    size, rest, hidden = _sized(value)
    if not size or len(rest) != 1:
        return None
    place = next((p for p in PLACES if p == rest[0]), None)
    if place is None and (rest[0] != "refused" or hidden):
        return None
    return replace(tricks, window=size, place=place, counts_all=hidden)


def _read_ceiling(value: str, tricks: Tricks) -> Tricks | None:
    size, rest, hidden = _sized(value)
    return replace(tricks, ceiling=size, says_stop=hidden) if size and not rest else None


def _read_ignores(value: str, tricks: Tricks) -> Tricks | None:
    ignored = frozenset(value.split(","))
    return replace(tricks, ignores=ignored) if ignored <= PARAMETERS else None


def _read_spares(value: str, tricks: Tricks) -> Tricks | None:
    spared: Spared | None = next((one for one in get_args(Spared) if one == value), None)
    return None if spared is None else replace(tricks, spares=spared)


def _read_forges(value: str, tricks: Tricks) -> Tricks | None:
    return replace(tricks, forges=True) if value == "logprobs" else None


def _read_cache(value: str, tricks: Tricks) -> Tricks | None:
    if value not in ("same", "alike"):
        return None
    return replace(tricks, cache="same" if value == "same" else "alike")


def _read_seed(value: str, tricks: Tricks) -> Tricks | None:
    digits = value.isascii() and value.isdigit() and len(value) < 10
    return replace(tricks, seed=int(value)) if digits else None


def _read_streams(value: str, tricks: Tricks) -> Tricks | None:
    return replace(tricks, streams_differ=True) if value == "other" else None


def _read_reports(value: str, tricks: Tricks) -> Tricks | None:
    return replace(tricks, reports=value) if value in HABITS else None


def _read_refuses(value: str, tricks: Tricks) -> Tricks | None:
    known = {one: one for one in get_args(Refused)}
    refused = [known.get(one) for one in value.split(",")]
    return None if None in refused else replace(tricks, refuses=frozenset(filter(None, refused)))


def _read_limits(value: str, tricks: Tricks) -> Tricks | None:
    how: Limit | None = next((one for one in get_args(Limit) if one == value), None)
    return None if how is None else replace(tricks, limits=how)


def _read_delivers(value: str, tricks: Tricks) -> Tricks | None:
    return replace(tricks, delivers=value) if value in DESCRIBED else None


#: What reads each kind of trick; None: it cannot be read.
_READERS: Final[Mapping[str, Callable[[str, Tricks], Tricks | None]]] = {
    "context": _read_context,
    "ceiling": _read_ceiling,
    "ignores": _read_ignores,
    "spares": _read_spares,
    "forges": _read_forges,
    "cache": _read_cache,
    "seed": _read_seed,
    "streams": _read_streams,
    "refuses": _read_refuses,
    "limits": _read_limits,
    "reports": _read_reports,
    "delivers": _read_delivers,
}


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


def answered(
    answer: Answer, tricks: Tricks, *, rendered: int, asked: int, streamed: bool
) -> Answer:
    """An answer as the host shows it; `rendered` is the whole prompt's length."""
    if tricks.counts_all:
        answer = replace(answer, prompt_tokens=rendered)
    at_ceiling = tricks.ceiling is not None and tricks.ceiling < asked
    if tricks.says_stop and at_ceiling and answer.finish_reason == "length":
        answer = replace(answer, finish_reason="stop")
    if tricks.streams_differ and streamed:
        answer = replace(
            answer, finish_reason="length", prompt_tokens=max(0, answer.prompt_tokens - 1)
        )
    return answer


def taken(request: GenerateRequest, tricks: Tricks) -> GenerateRequest:
    """A request less what the host ignores, and with its own seed where none is named.

    Several replies are the server's to ignore.
    """
    plain: dict[str, Any] = {
        "seed": None, "stop": (), "logit_bias": (), "max_tokens": DEFAULT_MAX_TOKENS,
    }  # fmt: skip
    request = replace(request, **{n: v for n, v in plain.items() if n in tricks.ignores})
    return replace(request, seed=tricks.seed) if request.seed is None else request


def is_spared(body: Body, limit: int, number: int, tricks: Tricks) -> bool:
    """Whether the weights fault spares the `number`-th request, counted from 0."""
    match tricks.spares:
        case None:
            return False
        case "logprobs":
            return alternatives_asked(body) is not None
        case "streams":
            return bool(body.stream)
        case "short":
            return limit <= _SHORT
        case "first":
            return number < _FIRST


_SHORT: Final = 16
_FIRST: Final = 8


class Store:
    """Earlier answers of a host: some give them again, some report what belongs to them."""

    def __init__(self, tricks: Tricks) -> None:
        self._tricks = tricks
        self._asked = 0
        self._known: dict[tuple[str, int], Answer] = {}
        self._told: tuple[ShownToken, ...] = ()  # of the answer before

    def count(self) -> int:
        """The number of one more request."""
        self._asked += 1
        return self._asked - 1

    def reported(self, answer: Answer) -> Answer:
        """An answer with its tokens as the host reports them."""
        if self._tricks.reports is None:
            return answer
        _, habit = HABITS[self._tricks.reports]
        tokens, self._told = habit(answer.tokens, self._told), answer.tokens
        return replace(answer, tokens=tokens)

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
