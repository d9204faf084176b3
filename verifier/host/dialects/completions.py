"""OpenAI's text completions: the prompt is rendered here, and no template of the host's counts."""

from __future__ import annotations

from typing import Any, Final

from verifier.host.dialects import Ask, Dialect, Unreadable, View, bearer, kind_of
from verifier.host.dialects.chat import completion_body, completion_view, first_choice
from verifier.host.event_stream import assemble_text


def _body(ask: Ask) -> dict[str, Any]:
    assert ask.prompt is not None, "text completions need a rendered prompt"
    prompt = ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt)
    body = completion_body(ask, {"prompt": prompt})
    if ask.top_logprobs is not None:
        body["logprobs"] = ask.top_logprobs
    return body


def _read(body: dict[str, Any]) -> View:
    choice = first_choice(body)
    text = choice.get("text")
    if not isinstance(text, str):
        raise Unreadable(f"the first choice's text is {kind_of(text)}")
    return completion_view(body, choice, text)


COMPLETIONS: Final = Dialect(
    name="completions",
    path="/completions",
    headers={},
    key_headers=bearer,
    body=_body,
    read=_read,
    assemble=assemble_text,
)
