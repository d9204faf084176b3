"""Request parameters by their effect: stop strings, several replies, a bias on tokens, and others.

Facts of a handful of requests, no statistics: a parameter is honoured when its effect shows,
ignored when the answer comes as if it had not been sent, and refused when the host says so. A
refusal is honest. None of it says anything of the weights, so it decides no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from verifier.checks.check import Aspect, make_finding
from verifier.host.dialects import items, member
from verifier.host.exchange import Problem, body_of
from verifier.records import Attempt, Finding, Reply

Effect = Literal["honoured", "ignored", "refused", "not run"]

#: How many replies are asked for at once.
SEVERAL: Final = 2
#: A token that any vocabulary has, wanted so much that nothing else can come.
BIAS: Final = {"1000": 100}
#: Ignored without a word, these are departures; an unkept seed is none: few hosts promise one.
OWED: Final = ("max_tokens", "stop", "n", "logit_bias")

#: A stop string begins after this share of a reply.
_INTO: Final = 0.3
#: A reply under the bias is one token again and again: it has so few different words.
_FEW: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """What came of one parameter."""

    name: str
    effect: Effect
    detail: str  # one short sentence


def stop_string(text: str) -> str | None:
    """A word of a reply that comes once, after its beginning; None: there is none."""
    words = text.split()
    for word in words[int(_INTO * len(words)) :]:
        if len(word) >= 3 and text.count(word) == 1:
            return word
    return None


def judge_stop(plain: str, stop: str, answer: object) -> Parameter:
    """Whether a reply ends before `stop`, where the same reply without it goes on."""
    if (early := _no_answer("stop", answer)) is not None:
        return early
    assert isinstance(answer, Reply)
    before = plain.partition(stop)[0].strip()
    told = answer.text.strip().removesuffix(stop).strip()  # some show the string, some do not
    if told == before:
        return _of("stop", "honoured", "the reply ends there")
    if stop in told:
        return _of("stop", "ignored", "the reply goes on past the string")
    return _of("stop", "not run", "the reply is another than before")


def judge_n(attempt: Attempt | None, answer: object) -> Parameter:
    """Whether as many replies come as were asked for."""
    if (early := _no_answer("n", answer)) is not None:
        return early
    body = None if attempt is None else body_of(attempt)
    if body is None:
        return _of("n", "not run", "the answer came as a stream of events")
    count = len(items(member(body, "choices")))
    if count == SEVERAL:
        return _of("n", "honoured", f"{count} replies came")
    return _of("n", "ignored", f"{count} came where {SEVERAL} were asked for")


def judge_bias(plain: str, answer: object) -> Parameter:
    """Whether a token comes that is wanted above all, and nothing else."""
    if (early := _no_answer("logit_bias", answer)) is not None:
        return early
    assert isinstance(answer, Reply)
    if answer.text.strip() and plain.startswith(answer.text.rstrip()):
        return _of("logit_bias", "ignored", "the reply is the same as without it")
    if len(set(answer.text.split())) <= _FEW:
        return _of("logit_bias", "honoured", "the token that was wanted comes again and again")
    return _of("logit_bias", "not run", "the reply is another, and not the token that was wanted")


def judge_flag(name: str, kept: bool | None, *, honoured: str, ignored: str) -> Parameter:
    """A parameter whose effect is known already; None: nothing could be told."""
    if kept is None:
        return _of(name, "not run", "no answer told")
    return _of(name, "honoured" if kept else "ignored", honoured if kept else ignored)


def judge_parameters(found: Sequence[Parameter], aspect: Aspect) -> Finding | None:
    """Parameters that are taken and ignored; None: there are none."""
    ignored = [one for one in found if one.effect == "ignored" and one.name in OWED]
    if not ignored:
        return None
    name = f"ignored: {', '.join(one.name for one in ignored)}"
    detail = "; ".join(f"{one.name}: {one.detail}" for one in ignored)
    return make_finding(aspect, "detected", name, None, detail)


def several_fields() -> dict[str, Any]:
    """What is sent to get several replies."""
    return {"n": SEVERAL, "temperature": 1.0}


def _no_answer(name: str, answer: object) -> Parameter | None:
    if isinstance(answer, Problem):
        status = answer.status
        if status is not None and 400 <= status <= 499 and not answer.rate_limited:
            return _of(name, "refused", answer.reason)
        return _of(name, "not run", answer.reason)
    return None if isinstance(answer, Reply) else _of(name, "not run", "no reply came")


def _of(name: str, effect: Effect, detail: str) -> Parameter:
    return Parameter(name=name, effect=effect, detail=detail)
