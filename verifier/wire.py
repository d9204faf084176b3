"""What an HTTP exchange means: an answer, an answer that cannot be judged, or a problem.

Pure, and total: whatever bytes a host sends, the result is a value. Sends nothing.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from verifier.records import Attempt, Candidate, NotJudged, Reply, ReportedToken
from verifier.stream import BrokenStream, assemble_chat

MAX_REASON_CHARS: Final = 200

#: Stands where a response repeated the API key.
REDACTED: Final = "[redacted]"

_RETRYABLE: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
#: The request is at fault, whatever the host says of trying again.
_NEVER_RETRYABLE: Final = frozenset({400, 401, 402, 403, 404, 422})
#: "Too many" and "overloaded".
_TOO_MUCH: Final = frozenset({429, 529})
_RATE_LIMITED: Final = re.compile(r"rate.?limit|too.?many", re.IGNORECASE)
_RETRYABLE_NAME: Final = re.compile(
    _RATE_LIMITED.pattern + r"|overload|timeout|unavailable|server.?error|capacity", re.IGNORECASE
)
_UNKNOWN_MODEL: Final = re.compile(
    r"model.?not.?(found|exist)|no such model|not a valid model"
    r"|(invalid|unknown) model( name| id)?\s*[:='\"`]"
    r"|model\b.{0,120}\b(does not exist|doesn't exist|not found)",
    re.IGNORECASE,
)
_REASONING_FIELDS: Final = ("reasoning", "reasoning_content", "reasoning_details", "thinking")
_REASONING_PARTS: Final = ("reasoning", "thinking")
#: Other words that hosts use for OpenAI's two; anything else stays as it came.
_FINISH: Final = {"eos": "stop", "eos_token": "stop", "end_turn": "stop", "max_tokens": "length"}

#: Rounding may lift a log-probability a little above zero; more is nonsense.
_LOGPROB_SLACK: Final = 1e-3
#: Hosts write minus infinity as -9999 or -3.4e38; no token that was chosen is this unlikely.
_LOGPROB_FLOOR: Final = -1000.0
_NOT_JSON: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An exchange that brought no answer."""

    status: int | None  # None: no HTTP response at all
    reason: str
    retryable: bool
    rate_limited: bool = False  # the host says that too much was asked of it
    unknown_model: bool = False  # the host says that it has no such model


def parse(attempt: Attempt) -> Reply | NotJudged | Problem:
    """What came of one attempt."""
    status = attempt.status
    if attempt.error is not None or status is None:
        broken = status is None or 200 <= status <= 299
        return _problem(attempt, attempt.error or "no response", retryable=broken)
    if not 200 <= status <= 299:
        body = _load(attempt.body)
        said = _message_in(body) or _plain(attempt.body)
        retryable = _is_retryable(status, attempt)
        return Problem(
            status=status,
            reason=clean(f"HTTP {status}: {said}" if said else f"HTTP {status}"),
            retryable=retryable,
            rate_limited=status in _TOO_MUCH,
            unknown_model=not retryable and _names_unknown_model(body, said),
        )
    # from here on a body that cannot be an answer is a broken transfer, and is asked for again
    try:
        body = assemble_chat(attempt.body) if _is_stream(attempt) else _load(attempt.body)
    except BrokenStream as broken_stream:
        return _problem(attempt, str(broken_stream), retryable=True)
    if body is _NOT_JSON:
        said = _plain(attempt.body) or "it is empty"
        return _problem(attempt, f"body is not JSON: {said}", retryable=True)
    if not isinstance(body, dict):
        what = f"body is JSON but {_kind(body)}, expected an object"
        return _problem(attempt, what, retryable=True)
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    for holder in (body, choice):
        if isinstance(holder, dict) and holder.get("error"):
            return _error_object(attempt, holder)
    if not isinstance(choice, dict):
        what = f"no choices in the body. {_message_in(body)}"
        return _problem(attempt, what, retryable=True)
    message = choice.get("message")
    if not isinstance(message, dict):
        what = f"the first choice's message is {_kind(message)}"
        return _problem(attempt, what, retryable=True)
    return _answer(attempt, body, choice, message)


def _is_retryable(status: int, attempt: Attempt) -> bool:
    """By the status; the header of OpenAI's and Anthropic's clients may say otherwise."""
    wish = attempt.headers.get("x-should-retry", "").strip().lower()
    if status in _NEVER_RETRYABLE or wish == "false":
        return False
    return status in _RETRYABLE or (wish == "true" and status >= 400)


def _is_stream(attempt: Attempt) -> bool:
    """Whether events came: some hosts send them unasked, some one object although asked."""
    kind = attempt.headers.get("content-type", "").strip().lower()
    if kind:
        return kind.startswith("text/event-stream")
    request = _load(attempt.request)
    asked = isinstance(request, dict) and request.get("stream") is True
    return asked and not attempt.body.lstrip().startswith("{")


def asked_logprobs(attempt: Attempt) -> bool:
    """Whether the request asked for log-probabilities."""
    request = _load(attempt.request)
    return isinstance(request, dict) and request.get("logprobs") is True


def clean(text: str, limit: int = MAX_REASON_CHARS) -> str:
    """One line of at most `limit` characters, without control, format or unpaired signs."""
    shown = "".join(
        " " if sign.isspace() else sign
        for sign in text[: 8 * limit]
        if sign.isspace() or unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    )
    line = " ".join(shown.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _answer(
    attempt: Attempt, body: dict[str, Any], choice: dict[str, Any], message: dict[str, Any]
) -> Reply | NotJudged | Problem:
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt_tokens = _count(usage.get("prompt_tokens"))
    completion_tokens = _count(usage.get("completion_tokens"))
    finish = choice.get("finish_reason")
    finish = _FINISH.get(finish.lower(), finish) if isinstance(finish, str) else None
    text = _text(message.get("content"))
    reason = _why_not_judged(message, usage, finish, text)
    if reason is not None:
        return NotJudged(
            probe_id=attempt.probe_id,
            reason=clean(reason),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )
    if text is None:
        what = f"content is {_kind(message['content'])}, expected text"
        return _problem(attempt, what, retryable=True)
    asked = asked_logprobs(attempt)
    logprobs = _logprobs(choice.get("logprobs"), completion_tokens) if asked else None
    return Reply(
        probe_id=attempt.probe_id,
        text=text,
        finish_reason=None if finish is None else clean(finish, 40),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        logprobs=None if isinstance(logprobs, str) else logprobs,
        logprobs_problem=clean(logprobs) if isinstance(logprobs, str) else None,
    )


def _why_not_judged(
    message: dict[str, Any], usage: dict[str, Any], finish: str | None, text: str | None
) -> str | None:
    """Why this answer says nothing about the weights; None when it may."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    shown = any(
        value.strip() if isinstance(value, str) else value
        for value in (message.get(name) for name in _REASONING_FIELDS)
    ) or any(isinstance(part, dict) and part.get("type") in _REASONING_PARTS for part in parts)
    if shown:
        return "reasoning shown beside the answer, not testable yet"
    details = usage.get("completion_tokens_details")
    hidden = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else None
    if hidden:
        return f"{hidden} hidden reasoning tokens, not testable yet"
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        return f"refusal: {refusal}"
    if finish == "content_filter":
        return "stopped by the host's content filter"
    if text is not None and REDACTED in text:
        return f"the text holds {REDACTED}: it may have repeated the API key"
    if text is not None and not text.strip():
        return "empty content"
    return None


def _text(content: object) -> str | None:
    """The reply's text; None when the content is neither text nor a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else None
    return _paired(content) if isinstance(content, str) else None


def _logprobs(value: object, completion_tokens: int | None) -> tuple[ReportedToken, ...] | str:
    """What the host claims at each position, or why that cannot be used."""
    if value is None:
        return "the host returned none"
    if not isinstance(value, dict):
        return f"logprobs is {_kind(value)}, expected an object"
    rows = value.get("content")
    if rows is None and isinstance(value.get("tokens"), list):
        rows = _native_rows(value)
    if not isinstance(rows, list) or not rows:
        return "the host returned no positions"
    # some hosts count the end-of-turn token and give no position for it, or the reverse
    if completion_tokens is not None and abs(len(rows) - completion_tokens) > 1:
        return f"{len(rows)} positions for {completion_tokens} completion tokens"
    found: list[ReportedToken] = []
    for position, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            return f"position {position} is {_kind(row)}, expected an object"
        chosen = _candidate(row)
        if isinstance(chosen, str) or chosen.logprob <= _LOGPROB_FLOOR:
            problem = chosen if isinstance(chosen, str) else _nonsense(chosen.logprob)
            return f"position {position}: {problem}"
        top: list[Candidate] = []
        for other in _alternatives(row.get("top_logprobs")):
            candidate = _candidate(other)
            if isinstance(candidate, str):
                return f"position {position}, an alternative: {candidate}"
            if candidate.logprob > _LOGPROB_FLOOR:
                top.append(candidate)
        found.append(ReportedToken(chosen=chosen, top=tuple(top)))
    return tuple(found)


def _native_rows(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the older shape: parallel lists of tokens, log-probabilities and alternatives."""
    columns = [
        column if isinstance(column, list) else []
        for column in (value["tokens"], value.get("token_logprobs"), value.get("top_logprobs"))
    ]
    return [
        {"token": token, "logprob": logprob, "top_logprobs": top}
        for token, logprob, top in zip_longest(*columns)
    ]


def _alternatives(top: object) -> list[dict[str, Any]]:
    """Alternatives at one position, given as a list of objects or as {token: logprob}."""
    if isinstance(top, dict):
        return [{"token": token, "logprob": logprob} for token, logprob in top.items()]
    return [row for row in top if isinstance(row, dict)] if isinstance(top, list) else []


def _candidate(row: dict[str, Any]) -> Candidate | str:
    """A token with its claimed log-probability, or why it has none."""
    token, logprob, raw = row.get("token"), row.get("logprob"), row.get("bytes")
    if not isinstance(token, str):
        return f"token is {_kind(token)}, expected text"
    if isinstance(logprob, bool) or not isinstance(logprob, int | float):
        return f"logprob is {_kind(logprob)}, expected a number"
    try:
        number = float(logprob)
    except OverflowError:
        return "logprob is an integer too large for a number"
    if not number <= _LOGPROB_SLACK:  # NaN fails it too
        return _nonsense(number)
    return Candidate(token=_paired(token), bytes=_read_bytes(raw), logprob=number)


def _read_bytes(raw: object) -> bytes | None:
    """The bytes of a token; None unless they are a list of them."""
    if not isinstance(raw, list) or bool in map(type, raw):
        return None
    try:
        return bytes(raw)
    except (TypeError, ValueError):
        return None


def _nonsense(number: float) -> str:
    return f"{number:g} is not the log-probability of a chosen token"


def _problem(attempt: Attempt, reason: str, *, retryable: bool = False) -> Problem:
    return Problem(status=attempt.status, reason=clean(reason), retryable=retryable)


def _error_object(attempt: Attempt, holder: dict[str, Any]) -> Problem:
    """An error that came with a status of success."""
    error = holder["error"]
    said = _message_in(holder)
    marks = [error.get("code"), error.get("type")] if isinstance(error, dict) else []
    words = " ".join(clean(str(mark), 60) for mark in marks if isinstance(mark, str | int))
    codes = {int(word) for word in words.split() if re.fullmatch(r"[1-5][0-9]{2}", word)}
    retryable = bool(codes & _RETRYABLE) if codes else bool(_RETRYABLE_NAME.search(words))
    return Problem(
        status=attempt.status,
        reason=clean(f"HTTP {attempt.status} with an error object: {words} {said}"),
        retryable=retryable,
        rate_limited=bool(codes & _TOO_MUCH) or _RATE_LIMITED.search(words) is not None,
        unknown_model=not retryable and _names_unknown_model(holder, said),
    )


def _names_unknown_model(body: object, said: str) -> bool:
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return _UNKNOWN_MODEL.search(f"{code if isinstance(code, str) else ''} {said}") is not None


def _message_in(body: object) -> str:
    """The host's own words in an error body of any of the usual shapes; "" when it has none."""
    if not isinstance(body, dict):
        return ""
    for name in ("error", "message", "detail", "reason"):
        value = body.get(name)
        if isinstance(value, dict):
            value = value.get("message") or value.get("detail") or value.get("code")
        if isinstance(value, list):
            rows = [row.get("msg") if isinstance(row, dict) else row for row in value[:3]]
            value = "; ".join(row for row in rows if isinstance(row, str))
        if isinstance(value, str) and value.strip():
            return clean(value)
    return ""


def _plain(body: str) -> str:
    """The start of a body that is no JSON; of a web page, its title."""
    if body.lstrip()[:1] == "<":
        title = re.search(r"<title>([^<]{1,200})", body[:20_000], re.IGNORECASE)
        return f"a web page{f' titled {clean(title[1])!r}' if title else ''}"
    return clean(body)


def _load(text: str) -> Any:
    """The value of a JSON text, NaN and infinities included; `_NOT_JSON` when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _count(value: object) -> int | None:
    """A token count; None for anything that cannot be one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= 10**9 else None


def _kind(value: object) -> str:
    """What a JSON value is, in words; short text is shown."""
    if isinstance(value, str):
        return f"the text {clean(value, 40)!r}"
    names = {type(None): "null", bool: "a boolean", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _paired(text: str) -> str:
    """Text with unpaired surrogates replaced: JSON can carry them, tokenizers cannot."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
