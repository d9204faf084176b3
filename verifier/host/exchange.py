"""What an HTTP exchange means: an answer, an answer that cannot be judged, or a problem.

Pure, and total: whatever bytes a host sends, the result is a value. Sends nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any, Final

from verifier.host.dialects import (
    Unreadable,
    View,
    end_of,
    items,
    kind_of,
    member,
    size_of,
)
from verifier.host.dialects.chat import CHAT
from verifier.host.dialects.completions import COMPLETIONS
from verifier.host.dialects.messages import MESSAGES
from verifier.host.dialects.responses import RESPONSES
from verifier.host.dialects.tokenize import TOKENIZE
from verifier.host.event_stream import MARK, begins_stream
from verifier.host.logprobs import paired, read_claims
from verifier.host.pieces import BrokenStream, TwoReadings
from verifier.host.refusals import (
    Account,
    Meaning,
    Told,
    clean,
    error_in,
    marks_of,
    names_unknown_model,
    of_object,
    of_status,
    of_words,
    plain,
    read_error,
    words_of,
)
from verifier.host.shape import Change, asks_logprobs, proposed
from verifier.records import Attempt, NotJudged, Reply, ReportedToken
from verifier.safety.sieve import REDACTED

#: Other words that hosts use for OpenAI's two; anything else stays as it came.
_FINISH: Final = {
    "eos": "stop", "eos_token": "stop", "end_turn": "stop", "stop_sequence": "stop",
    "max_tokens": "length", "max_output_tokens": "length",
}  # fmt: skip

#: Every way of asking, by its name.
DIALECTS: Final = {d.name: d for d in (CHAT, COMPLETIONS, MESSAGES, RESPONSES, TOKENIZE)}

#: Characters of a model's name that are kept.
_LONGEST_NAME: Final = 120

#: No vocabulary holds an id as large.
_MOST_IDS: Final = 2**31

#: Where a request says how many tokens it allows.
_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")

#: What families of models put around a thought.
_TAGS: Final = re.compile(r"</?(seed:)?think(ing)?>|\[/?THINK\]")

#: How a reason begins where what was generated is not what a text shows.
UNTESTABLE: Final = "not testable by text"

#: And where thoughts were generated that nobody can read.
HIDDEN: Final = f"{UNTESTABLE}: reasoning hidden"

#: Or where the limit ended before anything was shown, as it does inside a hidden thought.
UNSHOWN: Final = "empty content: audit.max_tokens ended before any was shown"

#: How a reply ends that goes on with the call of a tool: what is shown is its beginning.
CALLED: Final = "tool_calls"

#: What to do about thoughts that are not shown as they were generated.
THINK_NOT: Final = "ask with thinking off (audit.template_settings)"

#: A host may count so many tokens more than a text has bytes: no tokenizer makes more than those.
_UNCOUNTED: Final = 16

#: Bytes around the name and the arguments of a call, as models write one.
_AROUND_CALL: Final = 96

#: Tokens around a message at most, beside what the request says of it.
_PER_MESSAGE: Final = 64
#: And around an offer of tools.
_FOR_TOOLS: Final = 1024

_NOT_JSON: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An exchange that brought no answer."""

    status: int | None  # None: no HTTP response at all
    reason: str
    retryable: bool
    rate_limited: bool = False  # the host says that too much was asked of it
    unknown_model: bool = False  # the host says that it has no such model
    #: What the account lacks, which nobody holds against the host; in doubt where `retryable`.
    account: Account | None = None
    refused_whole: bool = False  # nothing was generated, although the status is one of success


def parse(attempt: Attempt, *, claims: bool = True) -> Reply | NotJudged | Problem:
    """What came of one attempt; without what the host claims of its tokens unless `claims`.

    Most of the work is in the claims, and whoever only asks has no use for them.
    """
    status = attempt.status
    if attempt.error is not None or status is None:
        return _broken(attempt)
    if not 200 <= status <= 299:
        return _refusal(attempt, status)
    # from here on a body that cannot be an answer is a broken transfer, and is asked for again
    dialect, request = DIALECTS.get(attempt.dialect, CHAT), _load(attempt.request)
    streamed = _is_stream(attempt, request)
    doubt = None
    try:
        body = dialect.assemble(attempt.body) if streamed else _load(attempt.body)
    except BrokenStream as broken:
        return _unusable(attempt, str(broken), read_error(broken.said))
    except TwoReadings as two_readings:
        body, doubt = two_readings.body, f"{two_readings}: set aside"
    try:
        _refuse_other_json(body, attempt)
        holder = error_in(body)
        if holder is not None:
            found = _error_object(attempt, holder)
            refused = not streamed and not items(body.get("choices"))
            limited = found.rate_limited or found.account is not None
            return replace(found, refused_whole=refused and limited)
        view = dialect.read(body)
    except Unreadable as unreadable:
        said = words_of(body)
        reason = f"{unreadable}. {said}" if said else str(unreadable)
        return _unusable(attempt, reason, read_error(body) if said else Told())
    return _answer(attempt, view, request=request, body=body, claims=claims, doubt=doubt)


def _read_refusal(attempt: Attempt) -> Told:
    """All that an attempt without an answer says of why, with the fields that it names."""
    body = _load(attempt.body)
    if body is not _NOT_JSON:
        return read_error(body)
    if begins_stream(attempt.body):
        try:
            return read_error(DIALECTS.get(attempt.dialect, CHAT).assemble(attempt.body))
        except BrokenStream as broken:
            return read_error(broken.said)
        except TwoReadings:
            return Told()
    return read_error(plain(attempt.body))


def change_for(attempt: Attempt, result: Reply | NotJudged | Problem) -> Change | None:
    """How the same may be asked once more, where it was refused as it was written."""
    if not isinstance(result, Problem) or result.retryable or result.account is not None:
        return None
    told, request = _read_refusal(attempt), request_of(attempt)
    return proposed(request, result.status, told, dialect=attempt.dialect)


def _refusal(attempt: Attempt, status: int) -> Problem:
    """What a status says that is no success."""
    body = _load(attempt.body)
    said = words_of(body) or plain(attempt.body)
    told = read_error(plain(attempt.body) if body is _NOT_JSON else body)
    unnamed = [name for name in told.fields if name and name.rpartition(".")[2] not in said]
    said += f" ({', '.join(unnamed)})" if unnamed else ""
    found = of_status(status, told, attempt.headers)
    unknown = found.account is None and not found.retryable and names_unknown_model(body, said)
    reason = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    return _problem_of(attempt, found, reason, unknown_model=unknown)


def _unusable(attempt: Attempt, reason: str, told: Told) -> Problem:
    """A body that is no answer: it is asked for again, unless it says what the account lacks."""
    return _problem_of(attempt, of_words(told), reason)


def _problem_of(
    attempt: Attempt, found: Meaning, reason: str, *, unknown_model: bool = False
) -> Problem:
    return Problem(
        status=attempt.status,
        reason=clean(reason),
        retryable=found.retryable,
        rate_limited=found.rate_limited,
        unknown_model=unknown_model,
        account=found.account,
    )


def _refuse_other_json(body: object, attempt: Attempt) -> None:
    """Raises Unreadable for a body that is no JSON object."""
    if body is _NOT_JSON:
        raise Unreadable(f"body is not JSON: {plain(attempt.body) or 'it is empty'}")
    if not isinstance(body, dict):
        raise Unreadable(f"body is JSON but {kind_of(body)}, expected an object")


def _is_stream(attempt: Attempt, request: object) -> bool:
    """Whether events came: some hosts send them unasked, some one object although asked.

    The body tells where it can: some name another content type, or none.
    """
    if begins_stream(attempt.body):
        return True
    if attempt.body.removeprefix(MARK).lstrip().startswith("{"):
        return False
    kind = attempt.headers.get("content-type", "").strip().lower()
    return kind.startswith("text/event-stream") if kind else member(request, "stream") is True


def body_of(attempt: Attempt) -> Any:
    """The JSON value of an answer that came in one piece; None when it holds none."""
    body = _load(attempt.body)
    return None if body is _NOT_JSON else body


def request_of(attempt: Attempt) -> Any:
    """The JSON value that was sent; None when it is none."""
    request = _load(attempt.request)
    return None if request is _NOT_JSON else request


def asked_tokens(attempt: Attempt) -> int:
    """How many tokens the request allowed."""
    request = _load(attempt.request)
    asked = (member(request, name) for name in _LIMITS)
    return next((count for count in asked if type(count) is int and count > 0), 0)


def most_prompt(attempt: Attempt) -> int:
    """The most tokens that the prompt of a request can count: no tokenizer makes more than bytes.

    Of plain messages it is what `budget` pays for; of all else no less.
    """
    request = _load(attempt.request)
    messages = items(member(request, "messages"))
    if not messages:
        return len(attempt.request.encode("utf-8", "replace")) + _PER_MESSAGE
    tools = member(request, "tools")
    return sum(map(_size, messages)) + (size_of(tools) + _FOR_TOOLS if tools else 0)


def _size(message: object) -> int:
    """Tokens that a message can count at most."""
    plain = isinstance(message, dict) and set(message) <= {"role", "content"}
    return size_of(member(message, "content") if plain else message) + _PER_MESSAGE


def who_answered(body: dict[str, Any]) -> str | None:
    """The host that a router says it asked; None when it does not say (or is none).

    OpenRouter names it in `provider`, and in the metadata that a header asks for.
    """
    named = body.get("provider")
    if isinstance(named, str) and named.strip():
        return named
    tried = items(member(member(body.get("openrouter_metadata"), "endpoints"), "available"))
    chosen = [member(one, "provider") for one in tried if member(one, "selected") is True]
    return next((name for name in chosen if isinstance(name, str)), None)


def _named_model(body: dict[str, Any]) -> str | None:
    """The model that the endpoint says gave an answer; None: it does not say."""
    named = body.get("model")
    return clean(named, _LONGEST_NAME) or None if isinstance(named, str) else None


def _another_host(request: object, body: dict[str, Any]) -> str | None:
    """Why a router's answer is set aside: it came from another host than was asked for.

    The request names a host by its tag (novita/fp8), the answer by its name (Novita).
    """
    wanted = next(iter(items(member(member(request, "provider"), "only"))), None)
    if not isinstance(wanted, str):
        return None
    answered = who_answered(body)
    if answered is None:
        return f"the router did not say who answered, {wanted!r} was asked for: set aside"
    if _bare_name(answered) != _bare_name(wanted.partition("/")[0]):
        return f"{answered!r} answered, not {wanted!r}: set aside"
    return None


def _bare_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _answer(
    attempt: Attempt,
    view: View,
    *,
    request: object,
    body: dict[str, Any],
    claims: bool,
    doubt: str | None,
) -> Reply | NotJudged:
    """What an answer says; `doubt` is why its text is not known for certain."""
    prompt_tokens = _count(view.prompt_tokens)
    completion_tokens = _count(view.completion_tokens)
    finish = _finish_of(view)
    text = None if view.text is None else paired(view.text)
    thought = None if view.thought is None else paired(view.thought)
    elsewhere = _another_host(request, body)
    reason = elsewhere or doubt or _why_not_judged(view, finish, text, thought, completion_tokens)
    if reason is not None or text is None:
        return NotJudged(
            probe_id=attempt.probe_id,
            reason=clean(reason or "no text"),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            # a filter may have stopped the prompt before it was rendered
            counts_prompt=bool(prompt_tokens) and elsewhere is None and finish != "content_filter",
            named=_named_model(body),
        )
    wanted = claims and asks_logprobs(request)
    claimed = _claims_of(view, completion_tokens) if wanted else None
    return Reply(
        probe_id=attempt.probe_id,
        text=text,
        finish_reason=None if finish is None else clean(finish, 40),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        logprobs=None if isinstance(claimed, str) else claimed,
        logprobs_problem=clean(claimed) if isinstance(claimed, str) else None,
        thought=thought,
        token_ids=None if view.calls else _read_ids(view.token_ids, completion_tokens),
        named=_named_model(body),
    )


def _finish_of(view: View) -> str | None:
    """Why an answer ended, in OpenAI's words where they are known."""
    finish = end_of(view.finish_reason)
    if finish is None:
        return None
    finish = _FINISH.get(finish.lower(), finish)
    # the turn did not end behind the text
    return CALLED if view.calls and finish == "stop" else finish


def _claims_of(view: View, completion_tokens: int | None) -> tuple[ReportedToken, ...] | str:
    """What the host claims of the tokens of the text, or why that cannot be used."""
    if view.calls:
        return "they speak of the call of a tool, too"
    return read_claims(view.logprobs, completion_tokens)


def _read_ids(value: object, completion_tokens: int | None) -> tuple[int, ...] | None:
    """Token ids of a reply; None unless they are ids, as many as the host counts."""
    ids = tuple(items(value))
    if not ids or not all(type(one) is int and 0 <= one < _MOST_IDS for one in ids):
        return None
    agree = completion_tokens is None or abs(len(ids) - completion_tokens) <= 1
    return ids if agree else None


def _why_not_judged(
    view: View,
    finish: str | None,
    text: str | None,
    thought: str | None,
    completion_tokens: int | None,
) -> str | None:
    """Why this answer says nothing about the weights; None when it may.

    An answer that the limit cut off in the middle of its thought may: what is shown of a thought is
    the beginning of what was generated, and a beginning has an exact likelihood like any reply.
    """
    if view.reasoning:
        why = "what is shown of it is a summary, encrypted or out of its place"
        return f"{HIDDEN}: {why}; {THINK_NOT}"
    hidden = _count(view.reasoning_tokens)
    if hidden and thought is None and not holds_thought(text):
        return f"{HIDDEN}, {hidden} tokens of it; {THINK_NOT}"
    if view.refusal is not None:
        return f"refusal: {view.refusal}"
    if finish == "content_filter":
        return "stopped by the host's content filter"
    if view.calls and not (text or "").strip():
        return f"{_name_calls(view.calls)}: not judged, since calls are not scored yet"
    if any(REDACTED in words for words in (text, thought) if words is not None):
        return f"the text holds {REDACTED}: it may have repeated the API key"
    if thought is not None or text is None:
        return None
    if not text.strip():
        if finish == "length":
            return f"{UNSHOWN}; raise it, or {THINK_NOT}"
        return "empty content"
    return _why_not_all(view, text, completion_tokens)


def _why_not_all(view: View, text: str, completion_tokens: int | None) -> str | None:
    """Why a text may not be all that was generated: more is counted than it can hold."""
    shown = len(text.encode("utf-8", "replace"))
    if view.calls:
        named = sum(len(name.encode("utf-8", "replace")) for name in view.calls)
        shown += named + view.call_bytes + _AROUND_CALL * len(view.calls)
    if completion_tokens is not None and completion_tokens > shown + _UNCOUNTED:
        return f"{HIDDEN}: {completion_tokens} tokens counted for {shown} bytes; {THINK_NOT}"
    return None


def _name_calls(names: tuple[str, ...]) -> str:
    """What an answer calls, in words."""
    told = [repr(name) for name in dict.fromkeys(clean(name, 40) for name in names) if name]
    if not told:
        return "calls a tool"
    more = f" and {len(told) - 2} more" if len(told) > 2 else ""
    return f"calls the tool{'s' * (len(told) > 1)} {', '.join(told[:2])}{more}"


def holds_thought(text: str | None) -> bool:
    """Whether a thought stands in the text itself: some hosts count it and leave it there."""
    return text is not None and _TAGS.search(text) is not None


def _broken(attempt: Attempt) -> Problem:
    """An exchange that did not end as it should; a status of failure says what it says."""
    status = attempt.status
    failed = status is not None and not 200 <= status <= 299
    return Problem(
        status=status,
        reason=clean(attempt.error or "no response"),
        retryable=not failed,
        account=of_status(status, Told(), {}).account if failed and status is not None else None,
    )


def _error_object(attempt: Attempt, holder: dict[str, Any]) -> Problem:
    """An error that came with a status of success."""
    said, words = words_of(holder), marks_of(holder)
    found = of_object(holder, read_error(holder), attempt.headers)
    unknown = found.account is None and not found.retryable and names_unknown_model(holder, said)
    return _problem_of(
        attempt,
        found,
        f"HTTP {attempt.status} with an error object: {words} {said}",
        unknown_model=unknown,
    )


def _load(text: str) -> Any:
    """The value of a JSON text, NaN and infinities included; `_NOT_JSON` when it is none."""
    try:
        return json.loads(text.removeprefix(MARK))
    except (ValueError, RecursionError):
        return _NOT_JSON


def _count(value: object) -> int | None:
    """A token count; None for anything that cannot be one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= 10**9 else None
