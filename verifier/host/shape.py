"""How requests to one host are written, beside what they ask: settled once, by what it refuses.

A refusal is answered by one change, and the same question is asked once more; a change that was
answered holds for all that is asked later. Nothing that changes what is asked is ever left out: a
temperature, a tool, a setting of the template or the host that a router is to ask. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from verifier.host.dialects import items, member
from verifier.host.dialects.responses import LOGPROBS
from verifier.host.refusals import Told

Change = Literal[
    "without logprobs",
    "without stream_options",
    "without stream_options.continuous_usage_stats",
    "without stream",
    "without store",
    "without return_token_ids",
    "without return_tokens_as_token_ids",
    "max_completion_tokens",
    "as a stream",
    "whole",
]
#: All that was changed for a host.
Shape = frozenset[Change]
#: As requests are written where nothing was refused.
AS_WRITTEN: Final[Shape] = frozenset()

#: A part of a field that is refused by hosts which know the whole.
_COUNT: Final = "stream_options.continuous_usage_stats"
_USAGE: Final = "stream_options.include_usage"
#: Further fields that may be left out, by name, with the change.
_OPTIONAL: Final[Mapping[str, Change]] = {
    "store": "without store",
    "return_token_ids": "without return_token_ids",
    "return_tokens_as_token_ids": "without return_tokens_as_token_ids",
}
#: Words of which a message may be made without speaking of the field.
_ORDINARY: Final = frozenset({"stream", "store"})

_LIMIT: Final = "max_tokens"
_OTHER_LIMIT: Final = "max_completion_tokens"

#: Marks and words of a field that is refused as such, and words of a value that is.
_REFUSED_MARKS: Final = frozenset({
    "unsupportedparameter", "unknownparameter", "extraforbidden", "unknownfield",
    "unrecognizedargument", "unsupportedfield",
})  # fmt: skip
_REFUSED_WORDS: Final = re.compile(
    r"unsupported|unknown|unrecogni[sz]ed|unexpected|\bextra\b|forbidden|deprecated|no longer"
    r"|\bnot (?:be )?(?:supported|taken|accepted|allowed|permitted|valid|available|known|used"
    r"|recogni[sz]ed)\b|\b(?:not|n't) (?:support|accept|take|allow)|\binstead\b",
    re.IGNORECASE,
)
_VALUE_WORDS: Final = re.compile(
    r"\btoo (?:large|small|big|long|high|low|many)\b|\bat (?:least|most)\b|\b(?:less|greater|larger"
    r"|smaller|more|fewer) than\b|\bexceed|\b(?:minimum|maximum|between|range|integer)\b",
    re.IGNORECASE,
)
_WANTS_OTHER: Final = re.compile(
    rf"\b(?:use|give|send|set|provide|try)\b.{{0,20}}{_OTHER_LIMIT}"
    rf"|{_OTHER_LIMIT}.{{0,20}}\b(?:required|instead|missing)",
    re.IGNORECASE,
)

_STREAM: Final = r"(?<!non)(?<!non[ _-])\bstream(?:s|ed|ing)?(?: mode)?\b"
_WHOLE: Final = r"\bnon[ _-]?stream(?:ed|ing)?\b"
_NOT: Final = r"(?:\bnot\b|n't\b|\bcannot\b|\bnever\b|\bno longer\b|\bun(?=[sa])|\bdisabled\b)"
_OFFERED: Final = (
    r"(?:support|available|enabled|allow|implemented|possible|offer|permitted|provide|do)"
)
_STREAMS_ALONE: Final = re.compile(
    rf"\b(?:only|just|exclusively)\b.{{0,40}}?{_STREAM}|{_STREAM}[ -]?only\b"
    rf"|{_STREAM}.{{0,20}}\b(?:required|mandatory)\b"
    rf"|{_STREAM}.{{0,20}}\b(?:must|has to|should|needs to) be (?:set )?(?:to )?\W?"
    r"(?:true|enabled|on)\b|\bmust be streamed\b"
    rf"|\brequires? (?:\w+ ){{0,3}}{_STREAM}|\bfor {_WHOLE}|{_WHOLE}.{{0,40}}{_NOT}"
    rf"|{_NOT} ?{_OFFERED}\w*\b.{{0,20}}{_WHOLE}"
    rf"|{_STREAM}\W{{1,4}}false\b.{{0,30}}{_NOT}"
    rf"|\b(?:enable|use)\b.{{0,12}}{_STREAM}|\bset\b.{{0,12}}{_STREAM}.{{0,8}}\btrue\b",
    re.IGNORECASE,
)
_NO_STREAMS: Final = re.compile(
    rf"{_STREAM}.{{0,30}}?{_NOT}(?:[ -]?(?:yet )?(?:be )?{_OFFERED})?"
    rf"|{_NOT} ?(?:{_OFFERED}\w*)?.{{0,12}}?{_STREAM}|\bno {_STREAM}"
    rf"|\bonly\b.{{0,20}}{_WHOLE}"
    rf"|{_STREAM}.{{0,12}}\bmust be (?:set )?(?:to )?\W?(?:false|off|disabled)\b",
    re.IGNORECASE,
)

#: Of the field that is named beside the words.
_BE_TRUE: Final = re.compile(r"\b(?:should|must) be (?:set to )?\W?true\b", re.IGNORECASE)
_BE_FALSE: Final = re.compile(r"\b(?:should|must) be (?:set to )?\W?false\b", re.IGNORECASE)

#: Statuses of a request that is not taken as it is written; some hosts say so with a success.
_REFUSING: Final = frozenset({200, 400, 405, 406, 412, 415, 422, 501})
#: Of these, those that speak of the body's fields: log-probabilities are the first suspect.
_OF_FIELDS: Final = frozenset({400, 422})


def written(body: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """A request as it goes to a host of this shape; streams and log-probabilities are as asked."""
    made = dict(body)
    for change in shape:
        path = change.removeprefix("without ")
        if path == change or path == "logprobs":
            continue
        name, _, part = path.partition(".")
        held = made.pop(name, None)
        if part and isinstance(held, dict):
            made[name] = {key: value for key, value in held.items() if key != part}
    return made


def renamed(body: dict[str, Any], name: str) -> dict[str, Any]:
    """A request that gives its limit under this name, in the same place."""
    return {name if key == _LIMIT else key: value for key, value in body.items()}


def streams(asked: bool, shape: Shape) -> bool:
    """Whether an event stream is asked for, where it is wished for or not."""
    return "as a stream" in shape or (asked and "whole" not in shape)


def limit_name(shape: Shape) -> str:
    """The name of the limit on a chat's length."""
    return _OTHER_LIMIT if _OTHER_LIMIT in shape else _LIMIT


def heeds(request: object, change: Change) -> bool:
    """Whether a request was written with a change."""
    match change:
        case "max_completion_tokens":
            return member(request, _OTHER_LIMIT) is not None
        case "as a stream":
            return member(request, "stream") is True
        case "whole":
            return member(request, "stream") is not True
        case "without logprobs":
            return not asks_logprobs(request)
    return not _has(request, change.removeprefix("without "))


def asks_logprobs(request: object) -> bool:
    """Whether a request asks for log-probabilities."""
    asked = member(request, "logprobs")
    return asked is True or type(asked) is int or LOGPROBS in items(member(request, "include"))


def proposed(request: object, status: int | None, told: Told, *, dialect: str) -> Change | None:
    """The change that a refusal of a request asks for; None: it asks for none that may be made.

    Whether it is a refusal at all, and not a trouble that passes, is the caller's to know.
    """
    if status not in _REFUSING:
        return None
    change = _of_optional(request, told) or _of_streams(request, told)
    if change is not None:
        return change
    if dialect == "chat" and _has(request, _LIMIT) and _refuses_limit(told):
        return "max_completion_tokens"
    if not asks_logprobs(request):
        return None
    if any(_names(told, name) for name in ("logprobs", "top_logprobs", "include")):
        return "without logprobs"
    if status in _OF_FIELDS and "temperature" not in told.fields:
        return "without logprobs"
    return None


def _of_optional(request: object, told: Told) -> Change | None:
    """A field to be left out, or a part of one."""
    wants_no_usage = _names(told, _USAGE)
    if _has(request, _COUNT) and _names(told, _COUNT) and not wants_no_usage:
        return "without stream_options.continuous_usage_stats"
    if _has(request, "stream_options") and (wants_no_usage or _names(told, "stream_options")):
        return "without stream_options"
    found = (c for name, c in _OPTIONAL.items() if _has(request, name) and _names(told, name))
    return next(found, None)


def _of_streams(request: object, told: Told) -> Change | None:
    """A change of how the answer is to come."""
    named = "stream" in told.fields
    if member(request, "stream") is True:
        refused = _NO_STREAMS.search(told.words) and not _STREAMS_ALONE.search(told.words)
        return "whole" if refused or (named and _BE_FALSE.search(told.words)) else None
    if _STREAMS_ALONE.search(told.words) or (named and _BE_TRUE.search(told.words)):
        return "as a stream"
    unknown = named and _is_refused(told)
    return "without stream" if unknown and _has(request, "stream") else None


def _refuses_limit(told: Told) -> bool:
    """Whether it is the limit's name that is refused, and not how much it allows."""
    if _WANTS_OTHER.search(told.words) or _OTHER_LIMIT in told.fields:
        return _VALUE_WORDS.search(told.words) is None or bool(told.marks & _REFUSED_MARKS)
    if not _names(told, _LIMIT):
        return False
    if told.marks & _REFUSED_MARKS:
        return True
    return _is_refused(told) and not _VALUE_WORDS.search(told.words)


def _is_refused(told: Told) -> bool:
    return bool(told.marks & _REFUSED_MARKS) or _REFUSED_WORDS.search(told.words) is not None


def _names(told: Told, path: str) -> bool:
    """Whether an error names a field: beside its words, or among them."""
    name = path.rpartition(".")[2]
    if any(f".{path}." in f".{one}." for one in told.fields):  # a union's member may stand before
        return True
    around = r"['\"`]" if name in _ORDINARY else r"\b"
    return re.search(rf"{around}{re.escape(name)}{around}", told.words) is not None


def _has(request: object, path: str) -> bool:
    """Whether a request holds a field."""
    for name in path.split("."):
        if not (isinstance(request, dict) and name in request):
            return False
        request = request[name]
    return True
