"""The questions that show what an endpoint can do: a table, and what has been answered so far.

Each row tells from the answers before it what to send, or that there is nothing to ask. Nothing is
judged here but what later rows rest on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from verifier.checks.capabilities.parameters import BIAS, several_fields, stop_string
from verifier.files.run_folder import CAPABILITY_EXCHANGES
from verifier.host.budget import Purse
from verifier.host.collect import ask_once, describe_wait
from verifier.host.endpoint import Endpoint
from verifier.host.exchange import Problem, body_of, change_for, parse
from verifier.host.shape import AS_WRITTEN, Change, Shape
from verifier.records import Attempt, Count, Message, NotJudged, Probe, Reply

#: Requests that find out what an endpoint can do, at most.
CAPABILITY_REQUESTS: Final = 16

#: Tries of each at most: a host under load is asked again.
CAPABILITY_TRIES: Final = 3

QUESTION: Final = "Name three rivers in Europe and say in one sentence where each of them ends."
#: Tokens of a whole reply to it.
LONG: Final = 48

#: Tokens of a reply that shows a parameter.
_FEW: Final = 12

#: The fewest tokens that hosts may be asked for: some refuse 1, as OpenAI's Responses do below 16.
_FEWEST: Final = (1, 16)

#: Temperatures tried in turn where 0 is refused; with each, only the likeliest token is asked for.
_SMALLEST: Final = (0.01, 0.1)

#: Further fields that show whether a host gives the prompt's log-probabilities and the reply's ids.
_TELLING: Final = {"prompt_logprobs": 1, "return_token_ids": True}

#: Dialects that have stop strings, several replies and a bias, under these names.
_OPENAI: Final = ("chat", "completions")

#: Seconds between two tries at most.
_LONGEST_WAIT_S: Final = 20.0

#: Changes of a request that would answer what a question is there to find out.
_ASKED_FOR: Final[frozenset[Change]] = frozenset({"whole", "without return_token_ids"})

#: Why a request was not sent.
UNPAID: Final = "not sent, the budget does not pay for it"

Name = Literal[
    "temperature 0", "temperature 0.01", "temperature 0.1", "the same again", "at most 1",
    "at most 16", "streamed", "seed 1", "seed 1 again", "seed 2", "telling", "echo", "text",
    "stop", "n", "logit_bias",
]  # fmt: skip

#: One question in three ways, until it is answered.
_FIRST: Final[tuple[Name, ...]] = ("temperature 0", "temperature 0.01", "temperature 0.1")

#: Statuses of a request that is refused as it is, and may be taken with another temperature.
_OF_REQUESTS: Final = frozenset({200, 400, 422})

#: Limits on the length, in the order in which they are tried.
_LIMITS: Final[Mapping[Name, int]] = {"at most 1": _FEWEST[0], "at most 16": _FEWEST[1]}

#: What is asked of a parameter may be refused, which is honest and no problem.
_PARAMETERS: Final[tuple[Name, ...]] = ("stop", "n", "logit_bias")

Answer = Reply | NotJudged | Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one question sends besides the words that all share."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: Count = LONG
    stream: bool = False
    as_text: bool = False  # to a text completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question that was asked, or would have been had the budget paid for it."""

    request: Request
    answer: Answer  # of the last try
    attempt: Attempt | None  # the last; None: nothing was sent
    came: tuple[Answer, ...]  # of every try
    shape: Shape = AS_WRITTEN  # how the last try was written


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What has been asked so far, in the order of asking."""

    dialect: str
    asked: Mapping[Name, Asked] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        """How requests have to be written, by the answers so far."""
        answered = (one.shape for n, one in self.asked.items() if self.answer(n) is not None)
        return AS_WRITTEN.union(*answered)

    def answer(self, name: Name) -> Reply | NotJudged | None:
        """The answer to a question; None: it failed, or was not asked."""
        one = self.asked.get(name)
        return None if one is None or isinstance(one.answer, Problem) else one.answer

    def body(self, name: Name) -> object:
        """The same, as the JSON that it came in."""
        attempt = None if self.answer(name) is None else self.asked[name].attempt
        return None if attempt is None else body_of(attempt)

    @property
    def first(self) -> Reply | NotJudged | None:
        """The first greedy reply."""
        return next((a for n in _FIRST if (a := self.answer(n)) is not None), None)

    @property
    def greedy(self) -> Mapping[str, float]:
        """What to send for greedy replies; {}: nothing, or nothing was answered."""
        answered = (n for n in _FIRST if self.answer(n) is not None)
        return next((self.asked[n].request.fields for n in answered), {})

    @property
    def is_silent(self) -> bool:
        """Whether the first question was not answered, and no other temperature would be."""
        tried = [self.asked[name].answer for name in _FIRST if name in self.asked]
        if self.first is not None or not tried:
            return False
        last = tried[-1]
        assert isinstance(last, Problem)
        refused = not (last.retryable or last.account or last.unknown_model)
        return len(tried) == len(_FIRST) or not (refused and last.status in _OF_REQUESTS)

    @property
    def honoured(self) -> bool | None:
        """Whether a limit on the length was kept; None: no answer told."""
        told = (honours(self.answer(name), most) for name, most in _LIMITS.items())
        return next((kept for kept in told if kept is not None), None)

    @property
    def least(self) -> int | None:
        """The least limit on the length that was kept."""
        kept = (most for name, most in _LIMITS.items() if honours(self.answer(name), most))
        return next(kept, None)

    @property
    def stop(self) -> str | None:
        """A stop string for the first reply, where it comes again as it was."""
        first = self.first
        return stop_string(first.text) if self.repeats and isinstance(first, Reply) else None

    @property
    def repeats(self) -> bool:
        """Whether the first reply is one, and came again as it was, in OpenAI's own dialects."""
        again = same_text(self.first, self.answer("the same again"))
        return again is True and self.dialect in _OPENAI

    @property
    def problems(self) -> tuple[str, ...]:
        """What failed that should not, and why."""
        return tuple(
            f"request {number}: {one.answer.reason}"
            for number, (name, one) in enumerate(self.asked.items(), 1)
            if isinstance(one.answer, Problem) and name not in _PARAMETERS
        )


def same_text(one: object, other: object) -> bool | None:
    """Whether two replies say the same; None: one of them is none."""
    if not (isinstance(one, Reply) and isinstance(other, Reply)):
        return None
    return (one.thought, one.text) == (other.thought, other.text)


def honours(short: Reply | NotJudged | None, most: int) -> bool | None:
    """Whether a reply is as short as asked; None: it is not known."""
    if short is None or short.completion_tokens is None:
        return None
    return short.completion_tokens <= most


# -- the table ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One row: what is sent, given what is known; None: there is nothing to ask."""

    name: Name
    request: Callable[[Known], Request | None]


def _smaller(temperature: float, known: Known) -> Request | None:
    fields = {"temperature": temperature, "top_k": 1}
    return Request(fields=fields) if known.first is None else None


def _at_most_16(known: Known) -> Request | None:
    before = known.answer("at most 1")
    if before is not None and honours(before, _FEWEST[0]) is not False:
        return None
    return Request(fields=known.greedy, max_tokens=_FEWEST[1])


def _sampled(seed: int, _known: Known) -> Request:
    return Request(fields={"temperature": 1.0, "seed": seed})


def _telling(known: Known) -> Request:
    return Request(fields={**known.greedy, **_TELLING}, max_tokens=known.least or _FEWEST[1])


def _echo(known: Known) -> Request:
    return Request(fields={"echo": True}, max_tokens=known.least or _FEWEST[1], as_text=True)


def _text(known: Known) -> Request | None:
    if known.answer("echo") is not None:
        return None
    return Request(max_tokens=known.least or _FEWEST[1], as_text=True)


def _stop(known: Known) -> Request | None:
    stop = known.stop
    return None if stop is None else Request(fields={**known.greedy, "stop": [stop]})


def _several(known: Known) -> Request | None:
    return Request(fields=several_fields(), max_tokens=_FEW) if known.repeats else None


def _biased(known: Known) -> Request | None:
    fields = {**known.greedy, "logit_bias": BIAS}
    return Request(fields=fields, max_tokens=_FEW) if known.repeats else None


#: Every question, in the order of asking.
QUESTIONS: Final = (
    Question(name="temperature 0", request=lambda _: Request()),
    Question(name="temperature 0.01", request=partial(_smaller, _SMALLEST[0])),
    Question(name="temperature 0.1", request=partial(_smaller, _SMALLEST[1])),
    Question(name="the same again", request=lambda known: Request(fields=known.greedy)),
    Question(name="at most 1", request=lambda k: Request(fields=k.greedy, max_tokens=_FEWEST[0])),
    Question(name="at most 16", request=_at_most_16),
    Question(name="streamed", request=lambda known: Request(fields=known.greedy, stream=True)),
    Question(name="seed 1", request=partial(_sampled, 1)),
    Question(name="seed 1 again", request=partial(_sampled, 1)),
    Question(name="seed 2", request=partial(_sampled, 2)),
    Question(name="telling", request=_telling),
    Question(name="echo", request=_echo),
    Question(name="text", request=_text),
    Question(name="stop", request=_stop),
    Question(name="n", request=_several),
    Question(name="logit_bias", request=_biased),
)


# -- asking ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks: where to, from which purse, and until when."""

    run: Path
    endpoint: Endpoint
    purse: Purse
    sleep: Callable[[float], object]
    stopped: Callable[[], bool]
    tell: Callable[[str], None]

    def ask_all(self, probes: Sequence[Probe]) -> Known | None:
        """Ask all there is to ask, each as the next of `probes`; None once `stopped` says so.

        Where the first is not answered, no other is asked.
        """
        known = Known(dialect=self.endpoint.dialect)
        for question in QUESTIONS:
            if self.stopped():
                return None
            request = None if known.is_silent else question.request(known)
            if request is not None:
                one = self._ask(request, probes[len(known.asked)], known)
                known = replace(known, asked={**known.asked, question.name: one})
        return None if self.stopped() else known

    def _ask(self, request: Request, probe: Probe, known: Known) -> Asked:
        """Ask one question, again where the host is under load or wants it written otherwise."""
        probe = replace(probe, max_tokens=request.max_tokens)
        fields = {**self.endpoint.extra_body, **request.fields}
        endpoint = replace(self.endpoint, stream=request.stream, extra_body=fields)
        if request.as_text:
            endpoint = replace(endpoint, dialect="completions", render=_as_text)
        came: list[Answer] = []
        attempt: Attempt | None = None
        shape, tries = known.shape, 0
        while True:
            made = ask_once(
                self.run, CAPABILITY_EXCHANGES, endpoint, probe, number=len(came) + 1,
                purse=self.purse, shape=shape, stopped=self.stopped,
                logprobs=endpoint.top_logprobs > 0 and "without logprobs" not in shape,
            )  # fmt: skip
            if made is None:
                unpaid = Problem(status=None, reason=UNPAID, retryable=False)
                return Asked(request=request, answer=unpaid, attempt=attempt, came=tuple(came))
            attempt, found = made.attempt, parse(made.attempt)
            came.append(found)
            change = _change_for(attempt, found, known)
            if change is not None and change not in shape and not self.stopped():
                shape |= {change}
                continue
            tries += 1
            # a host under load must not look like one that refuses what it was asked
            again = isinstance(found, Problem) and found.retryable and found.status is not None
            if self.stopped() or not again or tries == CAPABILITY_TRIES:
                break
            wait_s = min(_LONGEST_WAIT_S, made.retry_after_s or 2.0**tries)
            assert isinstance(found, Problem)
            what = f", try {tries + 1} of {CAPABILITY_TRIES}"
            self.tell(describe_wait(endpoint.host, found.reason, wait_s, what=what))
            self.sleep(wait_s)
        return Asked(
            request=request, answer=came[-1], attempt=attempt, came=tuple(came), shape=shape
        )


def _change_for(attempt: Attempt, found: Answer, known: Known) -> Change | None:
    """How the host wants the same to be written, as far as the question is not about that."""
    change = change_for(attempt, found)
    if change in _ASKED_FOR or (change == "without logprobs" and known.first is not None):
        return None
    return change


def _as_text(messages: tuple[Message, ...]) -> str:
    """A prompt for a text completion: no template is known here, and none is needed."""
    return messages[-1].content
