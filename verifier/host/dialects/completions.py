"""OpenAI's text completions: the prompt is rendered here, and no template of the host's counts."""

from __future__ import annotations

from typing import Any, Final

from verifier.host.dialects import Ask, Dialect, Unreadable, View, bearer, kind_of, member, sampling
from verifier.host.dialects.chat import STREAM_OPTIONS, first_choice
from verifier.host.event_stream import assemble_text


def _body(ask: Ask) -> dict[str, Any]:
    assert ask.prompt is not None, "text completions need a rendered prompt"
    body: dict[str, Any] = {
        "model": ask.model,
        "prompt": ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt),
        "max_tokens": ask.max_tokens,
        **sampling(ask),
        "stream": ask.stream,
    }
    if ask.stream:
        body["stream_options"] = dict(STREAM_OPTIONS)
    if ask.top_logprobs is not None:
        body["logprobs"] = ask.top_logprobs
    return body


def _read(body: dict[str, Any]) -> View:
    choice = first_choice(body)
    text = choice.get("text")
    if not isinstance(text, str):
        raise Unreadable(f"the first choice's text is {kind_of(text)}")
    usage = body.get("usage")
    return View(
        text=text,
        finish_reason=choice.get("finish_reason"),
        prompt_tokens=member(usage, "prompt_tokens"),
        completion_tokens=member(usage, "completion_tokens"),
        logprobs=choice.get("logprobs"),
        reasoning=False,
        reasoning_tokens=member(member(usage, "completion_tokens_details"), "reasoning_tokens"),
        refusal=None,
        token_ids=choice.get("token_ids"),
    )


COMPLETIONS: Final = Dialect(
    name="completions",
    path="/completions",
    headers={},
    key_headers=bearer,
    body=_body,
    read=_read,
    assemble=assemble_text,
)
