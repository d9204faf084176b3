"""Spoilt answers of every dialect, whole and streamed, through parsing and the exchanges file."""

from __future__ import annotations

import json
import random
import time
import unicodedata
from collections.abc import Iterator
from typing import Any

from attacks.lab import Lab, Tally
from attacks.mutate import spoil, spoil_bytes, to_json
from verifier.files.run_folder import EXCHANGES, append_lines
from verifier.host.collect import attempt_to_json, read_attempts
from verifier.host.exchange import DIALECTS, Problem, parse
from verifier.records import Attempt, NotJudged, Reply

TOKEN = {"token": "Hi", "logprob": -0.25, "bytes": [72, 105],
         "top_logprobs": [{"token": "Hi", "logprob": -0.25, "bytes": [72, 105]}]}  # fmt: skip
WHOLE: dict[str, dict[str, Any]] = {
    "chat": {
        "id": "x", "provider": "Novita", "choices": [{
            "index": 0, "finish_reason": "stop", "logprobs": {"content": [TOKEN]},
            "message": {"role": "assistant", "content": "Hi", "reasoning": "So.", "refusal": None,
                        "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]},
        }],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2,
                  "completion_tokens_details": {"reasoning_tokens": 1}},
        "error": None,
    },
    "completions": {
        "choices": [{"text": "Hi", "finish_reason": "length", "logprobs": {
            "tokens": ["Hi"], "token_logprobs": [-0.25], "top_logprobs": [{"Hi": -0.25}],
            "text_offset": [0]}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 1},
    },
    "messages": {
        "type": "message", "role": "assistant", "stop_reason": "end_turn",
        "content": [{"type": "thinking", "thinking": "So.", "signature": "x"},
                    {"type": "text", "text": "Hi"}],
        "usage": {"input_tokens": 7, "output_tokens": 2},
    },
    "responses": {
        "object": "response", "status": "completed", "error": None, "incomplete_details": None,
        "output": [{"type": "reasoning", "summary": [], "content": []},
                   {"type": "message", "role": "assistant", "content": [
                       {"type": "output_text", "text": "Hi", "logprobs": [TOKEN]}]}],
        "usage": {"input_tokens": 7, "output_tokens": 2,
                  "output_tokens_details": {"reasoning_tokens": 0}},
    },
    "tokenize": {"count": 3, "max_model_len": 4096, "tokens": [1, 2, 3], "token_strs": ["a", "b", "c"]},
}  # fmt: skip
EVENTS: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": "H"}, "logprobs": {"content": [TOKEN]}}]},
        {"choices": [{"delta": {"content": "i", "reasoning": "So."}}], "usage": {"completion_tokens": 1}},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}},
    ],
    "completions": [
        {"choices": [{"text": "H"}]}, {"choices": [{"text": "i", "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}},
    ],
    "messages": [
        {"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ],
    "responses": [
        {"type": "response.created", "sequence_number": 0, "response": {"status": "in_progress"}},
        {"type": "response.output_text.delta", "sequence_number": 1, "delta": "Hi"},
        {"type": "response.completed", "sequence_number": 2, "response": WHOLE["responses"]},
    ],
    "tokenize": [{"count": 3, "tokens": [1, 2, 3]}],
}  # fmt: skip
STATUSES = (200,) * 12 + (201, 204, 302, 400, 401, 404, 418, 429, 500, 503, 999)


def make_attempt(rng: random.Random, number: int) -> Attempt:
    """One spoilt exchange."""
    dialect = rng.choice(sorted(DIALECTS))
    stream = rng.random() < 0.5
    if stream:
        events = EVENTS.get(dialect, EVENTS["chat"])
        values = spoil(rng, events, rng.choice([1, 1, 2, 4]))
        values = values if isinstance(values, list) else [values]
        end = rng.choice(["\n\n", "\r\n\r\n", "\r\r", "\n\n"])
        names = [v.get("type") if isinstance(v, dict) else None for v in values]
        raw = b"".join(
            (f"event: {name}\n".encode("utf-8", "replace") if isinstance(name, str) and "\n" not in name else b"")
            + b"data: " + to_json(value) + end.encode()
            for name, value in zip(names, values, strict=True)
        )  # fmt: skip
        raw += rng.choice([b"data: [DONE]\n\n", b"data: [DONE]", b""])
    else:
        raw = to_json(spoil(rng, WHOLE.get(dialect, WHOLE["chat"]), rng.choice([1, 1, 2, 4])))
    if rng.random() < 0.25:
        raw = spoil_bytes(rng, raw)
    provider = {"provider": {"only": ["novita/fp8"]}} if rng.random() < 0.1 else {}
    return Attempt(
        probe_id=f"p{number}", number=1, started_at="2026-01-01T00:00:00.000+00:00", elapsed_s=0.1,
        request=json.dumps({"max_tokens": 12, "stream": stream, "logprobs": True} | provider),
        status=rng.choice(STATUSES), body=raw.decode("utf-8", "surrogateescape"), error=None,
        headers={"content-type": rng.choice(["text/event-stream" if stream else "application/json", ""])},
        dialect=dialect,
    )  # fmt: skip


def strings_of(result: Reply | NotJudged | Problem) -> list[str]:
    """What of a result is shown as it is: words for people, not what the model wrote."""
    if isinstance(result, Reply):
        return [text for text in (result.finish_reason, result.logprobs_problem) if text]
    return [result.reason]


def wrong_with(result: object) -> str | None:
    """What is not sound in a result; None when all is."""
    if not isinstance(result, Reply | NotJudged | Problem):
        return f"is {type(result).__name__}"
    for text in strings_of(result):
        odd = [s for s in text if unicodedata.category(s) in ("Cc", "Cf", "Cs", "Co", "Cn")]
        if odd or len(text) > 300:
            return f"a message is not one clean short line: {text[:80]!r}"
    if isinstance(result, Reply):
        for name in ("prompt_tokens", "completion_tokens"):
            count = getattr(result, name)
            if count is not None and not 0 <= count <= 10**9:
                return f"{name} is {count}"
    return None


def attack_bodies(lab: Lab) -> Iterator[Tally]:
    rng = lab.rng("bodies")
    total = lab.size(200_000, 8_000)
    through = Tally(attack="spoilt bodies of five dialects, whole and streamed, are read as values")
    back = Tally(attack="the same read back from the exchanges file give the same")
    done = 0
    while done < total:
        group = [make_attempt(rng, done + n) for n in range(500)]
        done += len(group)
        results = []
        for attempt in group:
            began = time.monotonic()
            try:
                result = parse(attempt)
                problem = wrong_with(result)
            except Exception as error:  # noqa: BLE001 - whatever comes is the finding
                result, problem = None, f"raised {type(error).__name__}: {error}"
            took = time.monotonic() - began
            if problem is None and took > 1:
                problem = f"took {took:.1f} s"
            results.append(result)
            through.note(
                f"{attempt.dialect} {attempt.status} {attempt.body[:250]!r}", problem, took
            )
        folder = lab.folder("bodies")
        append_lines(folder / EXCHANGES, [attempt_to_json(attempt) for attempt in group])
        read = read_attempts(folder)
        for attempt, again, result in zip(group, read, results, strict=True):
            same = again == attempt and (result is None or repr(parse(again)) == repr(result))
            back.note(
                f"{attempt.dialect} {attempt.body[:250]!r}", None if same else "reads otherwise"
            )
        (folder / EXCHANGES).unlink()
    yield through
    yield back
