"""vLLM's tokenize endpoint: the prompt that a chat would have, as token ids; nothing is generated.

It stands beside the base URL's version, not below it.
"""

from __future__ import annotations

from typing import Any, Final

from verifier.host.dialects import Ask, Dialect, Unreadable, View, bearer, items
from verifier.host.pieces import BrokenStream
from verifier.prompts import wire_message


def _body(ask: Ask) -> dict[str, Any]:
    messages = [wire_message(message) for message in ask.messages]
    return {"model": ask.model, "messages": messages, "add_generation_prompt": True, **ask.extras}


def _read(body: dict[str, Any]) -> View:
    if not items(body.get("tokens")):
        raise Unreadable("no tokens in the body")
    return View(
        text="",
        finish_reason=None,
        prompt_tokens=body.get("count"),
        completion_tokens=0,
        logprobs=None,
        reasoning=False,
        reasoning_tokens=None,
        refusal=None,
    )


def _assemble(_body: str) -> dict[str, Any]:
    raise BrokenStream("this endpoint streams nothing")


TOKENIZE: Final = Dialect(
    name="tokenize",
    path="/tokenize",
    headers={},
    key_headers=bearer,
    body=_body,
    read=_read,
    assemble=_assemble,
)
