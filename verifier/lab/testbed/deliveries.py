"""How a testbed host delivers what it generated: shapes of streams and bodies that servers send.

The text, the tokens and what is counted of them stay right; only how they travel changes. Pure
functions of chunks and bodies in OpenAI's shapes. Each names where it was seen; where it says "made
up" none was, and it stands for what an audit must read all the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]
Change = Callable[[Json], Json]
Chunks = list[Json]

EVENTS: Final = "text/event-stream"
JSON: Final = "application/json"
_MARK: Final = "\ufeff"
_LOWEST: Final = -9999.0
_NO_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One way to deliver: what it makes of the chunks of a stream, and of a whole body."""

    said: str
    stream: Callable[[Chunks], Chunks] = lambda chunks: chunks
    whole: Change = lambda body: body
    kind: str = EVENTS  # the Content-Type of a stream
    mark: bool = False  # whether a byte order mark comes first
    unasked: bool = False  # whether events come where a whole reply was asked for


def stream_of(delivery: Delivery, chunks: Chunks) -> list[str]:
    """The events of a stream as they travel."""
    # ASCII only: some clients break lines at U+2028 and its kin, which a reply may hold
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in delivery.stream(deepcopy(chunks))]
    return [*([_MARK] if delivery.mark else []), *lines, "data: [DONE]\n\n"]


def body_of(delivery: Delivery, body: Json) -> str:
    """A whole reply as it travels."""
    whole = delivery.whole(deepcopy(body))
    plain = json.dumps(whole, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return (_MARK if delivery.mark else "") + plain


# -- what chunks hold ----------------------------------------------------------------------------


def _choice(chunk: Json) -> Json:
    """The choice of a chunk; one of its own where it has none."""
    found: Json = chunk["choices"][0] if chunk["choices"] else {}
    return found


def _text(chunk: Json) -> str:
    """The text of a chunk; "" for none."""
    choice = _choice(chunk)
    found: str = choice.get("text") or choice.get("delta", {}).get("content") or ""
    return found


def _with_text(chunk: Json, text: str) -> Json:
    """A copy of a chunk with another text."""
    made = deepcopy(chunk)
    holder, name = (made["choices"][0], "text") if "text" in _choice(chunk) else (
        made["choices"][0]["delta"], "content"
    )  # fmt: skip
    holder[name] = text
    return made


def _uncounted(chunks: Chunks) -> Chunks:
    """Without the running counts, which few servers send."""
    for chunk in chunks:
        if chunk["choices"]:
            chunk.pop("usage", None)
    return chunks


def _last(chunks: Chunks) -> int:
    """Where the last text is."""
    return max((n for n, chunk in enumerate(chunks) if _text(chunk)), default=0)


def _each(change: Callable[[Json], None]) -> Callable[[Chunks], Chunks]:
    """A change to each chunk of its own."""

    def changed(chunks: Chunks) -> Chunks:
        for chunk in chunks:
            change(chunk)
        return chunks

    return changed


# -- pieces --------------------------------------------------------------------------------------


def _cumulative(every: int) -> Callable[[Chunks], Chunks]:
    def tell_all(chunks: Chunks) -> Chunks:
        said, count, made = "", 0, []
        for chunk in _uncounted(chunks):
            said += _text(chunk)
            count += bool(_text(chunk))
            again = bool(_text(chunk)) and count % every == 0
            made.append(_with_text(chunk, said) if again else chunk)
        return made

    return tell_all


def _cumulative_whole_rows(chunks: Chunks) -> Chunks:
    """All that was said so far, its log-probabilities as well."""
    rows: list[Any] = []
    for chunk in (made := _cumulative(1)(chunks)):
        claims = _choice(chunk).get("logprobs") or {}
        if "content" in claims:
            rows += claims["content"]
            claims["content"] = list(rows)
    return made


def _said_again(chunks: Chunks) -> Chunks:
    at, said = _last(chunks), "".join(map(_text, chunks))
    again = _with_text(_uncounted(chunks)[at], said)
    _choice(again)["logprobs"] = None
    return [*chunks[: at + 1], again, *chunks[at + 1 :]]


def _said_again_at_the_end(chunks: Chunks) -> Chunks:
    said = "".join(map(_text, chunks))
    return [
        _with_text(chunk, said) if _choice(chunk).get("finish_reason") else chunk
        for chunk in _uncounted(chunks)
    ]


def _said_again_behind_the_end(chunks: Chunks) -> Chunks:
    *before, tail = _said_again(chunks)
    at = _last(before)
    return [*before[:at], *before[at + 1 :], before[at], tail]


def _message_again(chunks: Chunks) -> Chunks:
    said = "".join(map(_text, chunks))
    for chunk in chunks:
        if _choice(chunk).get("finish_reason"):
            _choice(chunk)["message"] = {"role": "assistant", "content": said}
    return chunks


def _message_alone(chunks: Chunks) -> Chunks:
    said = "".join(map(_text, chunks))
    (end,) = [chunk for chunk in chunks if _choice(chunk).get("finish_reason")]
    choice = _choice(end)
    if "delta" not in choice:
        return [_with_text(end, said), chunks[-1]]
    choice["message"] = {"role": "assistant", "content": said}
    del choice["delta"]
    return [end, *([] if chunks[-1] is end else chunks[-1:])]


def _each_twice(chunks: Chunks) -> Chunks:
    return [one for chunk in _uncounted(chunks) for one in [chunk] * (2 if _text(chunk) else 1)]


def _one_twice(chunks: Chunks) -> Chunks:
    texts = [n for n, chunk in enumerate(chunks) if _text(chunk)]
    at = texts[len(texts) // 2] if texts else 0
    return [*chunks[: at + 1], *chunks[at:]]


def _characters(chunks: Chunks) -> Chunks:
    made = []
    for chunk in _uncounted(chunks):
        _choice(chunk)["logprobs"] = None
        made += [_with_text(chunk, sign) for sign in _text(chunk)] or [chunk]
    return made


# -- ends and counts -----------------------------------------------------------------------------


def _ends(word: str) -> Callable[[Chunks], Chunks]:
    def end(chunk: Json) -> None:
        choice = _choice(chunk)
        if choice and choice.get("finish_reason") is None:
            choice["finish_reason"] = word

    return _each(end)


def _zeros(chunks: Chunks) -> Chunks:
    total = chunks[-1].get("usage")
    for chunk in chunks:
        if chunk["choices"]:
            chunk["usage"] = dict(_NO_USAGE)
    if total is not None:
        chunks[_last(chunks)]["usage"] = total
    return chunks[:-1] if total is not None else chunks


def _zeros_at_last(chunks: Chunks) -> Chunks:
    return [*_zeros(chunks), {**chunks[0], "choices": [], "usage": dict(_NO_USAGE)}]


def _usage_in_choice(chunks: Chunks) -> Chunks:
    total = chunks[-1].pop("usage", None)
    for chunk in _uncounted(chunks):
        if _choice(chunk).get("finish_reason"):
            _choice(chunk)["usage"] = total
    return chunks


def _anthropic_usage(holder: Json) -> None:
    usage = holder.get("usage")
    if usage:
        holder["usage"] = {
            "input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"],
        }  # fmt: skip


# -- what is reported of tokens ------------------------------------------------------------------


def _empty_list(holder: Json) -> None:
    for choice in holder["choices"]:
        choice["logprobs"] = []


def _bare_end(holder: Json) -> None:
    """A row without bytes for the end of the turn, beside the rows of the text."""
    for choice in holder["choices"]:
        rows = (choice.get("logprobs") or {}).get("content")
        end = {"token": "", "bytes": [], "logprob": _LOWEST, "top_logprobs": []}
        if choice.get("finish_reason") == "stop" and rows is not None:
            rows.append(end)


def _bare_end_chunk(chunks: Chunks) -> Chunks:
    asked = any((_choice(chunk).get("logprobs") or {}).get("content") for chunk in chunks)
    for chunk in chunks:
        if asked and _choice(chunk).get("finish_reason") == "stop":
            _choice(chunk)["logprobs"] = {"content": []}
            _bare_end(chunk)
    return chunks


def _in_body(change: Callable[[Json], None]) -> Change:
    def changed(body: Json) -> Json:
        change(body)
        return body

    return changed


# -- names ---------------------------------------------------------------------------------------


def _named(how: str) -> Delivery:
    """`NAME` in `how` stands for the name that was asked for."""

    def name(holder: Json) -> None:
        holder["model"] = how.replace("NAME", holder["model"])

    said = f"replies name the model {how}"
    return Delivery(said=said, stream=_each(name), whole=_in_body(name))


def _from(said: str, stream: Callable[[Chunks], Chunks]) -> Delivery:
    return Delivery(said=said, stream=stream)


#: Deliveries by name.
DELIVERIES: Final[Mapping[str, Delivery]] = {
    "cumulative": _from(
        "each piece holds all that was said so far: DashScope (QwenLM/qwen-code#3896)",
        _cumulative(1),
    ),
    "cumulative-rows": _from(
        "the same, with log-probabilities of all of it (made up)", _cumulative_whole_rows
    ),
    "cumulative-now-and-then": _from(
        "every third piece does (QwenLM/qwen-code#3896, #3279)", _cumulative(3)
    ),
    "cumulative-uncounted": _from(
        "each piece does, and nothing is counted: Gemini's thinking models behind a proxy "
        "(tashfeenahmed/freellmapi#1007)",
        lambda chunks: [chunk for chunk in _cumulative(1)(chunks) if chunk["choices"]],
    ),
    "said-again": _from(
        "a last piece says the whole answer again (infiniflow/ragflow#15286)", _said_again
    ),
    "said-again-at-the-end": _from(
        "the chunk that ends it does (go-kratos/blades#189)", _said_again_at_the_end
    ),
    "said-again-behind-the-end": _from(
        "a chunk after that does (made up)", _said_again_behind_the_end
    ),
    "message-again": _from(
        "the last chunk has the whole as a message (abundantbeing/hermes-browser-extension#11)",
        _message_again,
    ),
    "message-alone": _from(
        "one chunk has the whole as a message: streams made of a reply that was kept "
        "(diegosouzapw/OmniRoute#3112)",
        _message_alone,
    ),
    "empty-message": _from(
        "an empty message beside each piece: ModelScope (VicBilibily/GCMP#407)",
        _each(lambda chunk: _choice(chunk).setdefault("message", {"role": None, "content": ""})),
    ),
    "response-too": _from(
        "each piece twice in one chunk, under another name: Workers AI (cloudflare/ai#615)",
        _each(lambda chunk: chunk.setdefault("response", _text(chunk))),
    ),
    "each-twice": _from("each piece comes twice (openclaw/openclaw#1284)", _each_twice),
    "one-twice": _from("one event comes twice, with its running count (made up)", _one_twice),
    "one-twice-uncounted": _from(
        "one event comes twice, and nothing numbers it (made up)",
        lambda chunks: _one_twice(_uncounted(chunks)),
    ),
    "characters": _from("cut anew into single characters (made up)", _characters),
    "null-ends": _from("finish_reason 'null' until the end: KoboldCpp (PowerShell/AIShell#350)",
        _ends("null")),
    "empty-ends": _from("finish_reason '' until the end: SGLang (sgl-project/sglang#3912)",
        _ends("")),
    "none-ends": _from("finish_reason 'None' until the end (made up)", _ends("None")),
    "stop-on-each": _from("finish_reason 'stop' on each chunk (lhenault/simpleAI#39)",
        _ends("stop")),
    "zero-counts": _from(
        "zeros on every chunk, the counts on the last piece (router-for-me/CLIProxyAPI#3076)",
        _zeros,
    ),
    "zero-counts-at-last": _from(
        "and zeros again in the end (openai/openai-agents-js#1474)", _zeros_at_last
    ),
    "usage-in-choice": Delivery(
        said="counts in the choice: Moonshot", stream=_usage_in_choice,
    ),
    "anthropic-usage": Delivery(
        said="counts by Anthropic's names (jayson-yxj/relaycheck)",
        stream=_each(_anthropic_usage), whole=_in_body(_anthropic_usage),
    ),
    "called-text": Delivery(
        said="events as text/plain (Wei-Shaw/sub2api#2826)", kind="text/plain",
    ),
    "called-json": Delivery(
        said="events as application/json (tinyhumansai/tinyagents#56)", kind=JSON,
    ),
    "unasked": Delivery(
        said="events where none were asked for (Wei-Shaw/sub2api#2826)", unasked=True,
    ),
    "mark": Delivery(
        said="a byte order mark in front (openai/openai-python#3819)", mark=True,
    ),
    "empty-list": Delivery(
        said="logprobs is an empty list (epam/ai-dial-sdk#254)",
        stream=_each(_empty_list), whole=_in_body(_empty_list),
    ),
    "bare-end": Delivery(
        said="a row without bytes at -9999 for the end: vLLM (vllm-project/vllm#17637)",
        stream=_bare_end_chunk, whole=_in_body(_bare_end),
    ),
    "default-model": _named("someone/another-model-7b"),  # icebear0828/codex-proxy#660
    "placeholder": _named("gpt-3.5-turbo"),  # ggml-org/llama.cpp#11069
    "owner": _named("Owner/NAME:free"),
    "dated": _named("NAME-2507"),
    "rounded-name": _named("NAME-FP8"),
}  # fmt: skip

#: Deliver in each of these ways in turn.
IN_TURN: Final = "in-turn"


def delivery_of(name: str | None, number: int) -> Delivery:
    """How the `number`-th request is answered, counted from 0; None: as usual."""
    if name is None:
        return Delivery(said="")
    if name == IN_TURN:
        return [*DELIVERIES.values()][number % len(DELIVERIES)]
    return DELIVERIES[name]


#: What each does, in a line.
DESCRIBED: Final = {name: one.said for name, one in DELIVERIES.items()} | {
    IN_TURN: "all of these in turn"
}
