"""How the testbed host speaks: OpenAI's chat, text completions and Responses, Anthropic's Messages.

It is no server for people: a stream begins when the whole reply is generated, and a client that
goes away does not stop its generation. Fields it does not know are ignored, as most hosts do.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from verifier.lab.testbed.answers import answer_batch
from verifier.lab.testbed.batches import Batcher
from verifier.lab.testbed.behaviours import Store
from verifier.lab.testbed.deliveries import EVENTS, JSON, body_of, delivery_of, stream_of
from verifier.lab.testbed.dialects import (
    Event,
    MessagesBody,
    ResponsesBody,
    message_error,
    message_events,
    response_events,
    whole_message,
    whole_response,
)
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.wire import (
    Answer,
    Body,
    ChatBody,
    CompletionBody,
    Stamp,
    WireError,
    limit,
    parse_body,
    refuse,
    reply_chunks,
    whole_reply,
)


def create_app(host: Host) -> Starlette:
    """An app over the weights that the host's engine holds.

    Requests that arrive within the host's window after the first are generated as one batch; when
    the engine fails, all of that batch get an HTTP 500 and the app lives on.
    """

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Any]]:
        batcher = Batcher(
            partial(answer_batch, host, Store(host.tricks)),
            max_batch=host.max_batch,
            window_s=host.window_s,
        )
        running_batches = asyncio.create_task(batcher.run())
        yield {
            "host": host,
            "batcher": batcher,
            "replied": itertools.count(),
            "numbers": itertools.count(),
        }
        running_batches.cancel()
        with suppress(asyncio.CancelledError):
            await running_batches

    return Starlette(
        routes=[
            Route("/v1/models", _list_models),
            Route("/v1/chat/completions", _chat, methods=["POST"]),
            Route("/v1/completions", _complete, methods=["POST"]),
            Route("/v1/messages", _message, methods=["POST"]),
            Route("/v1/responses", _respond, methods=["POST"]),
        ],
        lifespan=lifespan,
        exception_handlers={
            WireError: _show_wire_error,
            HTTPException: _show_http_error,
        },
    )


# -- what is asked -----------------------------------------------------------------------------


async def _list_models(request: Request) -> Response:
    _check_key(request)
    listed = {
        "id": request.state.host.model, "object": "model", "created": 0, "owned_by": "testbed",
    }  # fmt: skip
    return JSONResponse({"object": "list", "data": [listed]})


async def _chat(request: Request) -> Response:
    _check_key(request)
    return await _reply(request, parse_body(ChatBody, await request.body()))


async def _complete(request: Request) -> Response:
    _check_key(request)
    body, most = parse_body(CompletionBody, await request.body()), request.state.host.most_logprobs
    if (body.logprobs or 0) > most:
        raise WireError(f"logprobs: at most {most} are offered", param="logprobs")
    return await _reply(request, body)


async def _message(request: Request) -> Response:
    try:
        _check_key(request)
        body = parse_body(MessagesBody, await request.body())
        answer, stamp = await _ask(request, body.chat)
    except WireError as error:
        return JSONResponse(message_error(error.body), status_code=error.status)
    if body.stream:
        return _stream(map(_named_event, message_events(body, answer, stamp)))
    return JSONResponse(whole_message(body, answer, stamp))


async def _respond(request: Request) -> Response:
    _check_key(request)
    body = parse_body(ResponsesBody, await request.body())
    answer, stamp = await _ask(request, body.chat)
    if body.stream:
        return _stream(map(_named_event, response_events(body, answer, stamp)))
    return JSONResponse(whole_response(body, answer, stamp))


async def _reply(request: Request, body: Body) -> Response:
    answer, stamp = await _ask(request, body)
    way = delivery_of(request.state.host.tricks.delivers, next(request.state.replied))
    if body.stream or way.unasked:
        return _stream(stream_of(way, list(reply_chunks(body, answer, stamp))), kind=way.kind)
    return Response(body_of(way, whole_reply(body, answer, stamp)), media_type=JSON)


async def _ask(request: Request, body: Body) -> tuple[Answer, Stamp]:
    """Wait for the answer to a body. Raises WireError when it gets none."""
    host: Host = request.state.host
    if body.model != host.model:
        raise WireError(
            f"model: this host serves {host.model!r}, not {body.model!r}",
            status=404, param="model", code="model_not_found",
        )  # fmt: skip
    refuse(body, host.tricks.refuses)
    limit(next(request.state.numbers), host.tricks.limits)
    several = 1 if "n" in host.tricks.ignores else body.n or 1
    answer, *others = await asyncio.gather(
        *(request.state.batcher.answer(body) for _ in range(several))
    )
    answer = replace(answer, others=tuple(others))
    if not (host.shows_prompts or answer.echoed):
        answer = replace(answer, prompt_ids=(), prompt_text="")
    return answer, Stamp(id=uuid.uuid4().hex, created=int(time.time()))


def _check_key(request: Request) -> None:
    api_key = request.state.host.api_key
    if api_key is None:
        return
    given = request.headers.get("authorization", "")
    if (bare := request.headers.get("x-api-key")) is not None:  # as Anthropic's clients send it
        given = f"Bearer {bare}"
    if not hmac.compare_digest(given.encode(), f"Bearer {api_key}".encode()):
        raise WireError(
            "Authorization: expected 'Bearer' and the key this host was started with",
            status=401, code="invalid_api_key",
        )  # fmt: skip


def _stream(events: Iterable[str], *, kind: str = EVENTS) -> Response:
    # made whole before the first is sent, so that an error here still has its status
    return StreamingResponse(iter(list(events)), media_type=kind)


def _named_event(event: Event) -> str:
    name, carried = event
    return f"event: {name}\n{_event(carried)}"


def _event(chunk: dict[str, Any]) -> str:
    # ASCII only: some clients break lines at U+2028 and its kin, which a reply may hold
    return f"data: {json.dumps(chunk)}\n\n"


async def _show_wire_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, WireError)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _show_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    shown = WireError(f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(shown.body, status_code=error.status_code, headers=error.headers)
