"""A laboratory instrument: an OpenAI-compatible host whose weights, and so whose faults, are known.

It exists so that audits can be measured against hosts of which the truth is known. It listens on
the loopback interface only and is no server for people: a stream begins when the whole reply is
generated, and a client that goes away does not stop its generation.
"""

from __future__ import annotations

import asyncio
import codecs
import hmac
import json
import signal
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from verifier.errors import ConfigError, RenderingError
from verifier.evidence.samplers import read_sampler
from verifier.lab.testbed.behaviours import (
    KINDS,
    PLAIN,
    TRICKS,
    Store,
    Tricks,
    answered,
    ignoring,
    is_spared,
    read_trick,
    read_whole_or_cut,
)
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
from verifier.lab.testbed.wire import (
    Answer,
    Body,
    ChatBody,
    CompletionBody,
    ShownToken,
    Stamp,
    WireError,
    parse_body,
    reply_chunks,
    request_of,
    whole_reply,
)
from verifier.prompts import make_prompt
from verifier.records import (
    REFERENCE,
    GenerateRequest,
    Generation,
    Message,
    Prompt,
    ScoreRequest,
)
from verifier.reference.cards import Thinking
from verifier.reference.engines import Engine
from verifier.reference.renderings.catalogue import (
    PUBLISHED,
    Rendering,
    catalogue,
    render,
    served,
    template_ends,
)
from verifier.reference.tokenizer import Tokenizer
from verifier.reference.variants import VARIANTS, find_variant

_LOOPBACK: Final = "127.0.0.1"
_GRACE_S: Final = 5  # how long requests under way may go on once the server is told to stop
_NOT_STARTED: Final = "the testbed host did not start: its app failed while starting"


#: How the names of faults begin that are no variants (a directory follows the last), and what
#: stands between faults served together.
_TEMPLATE: Final = "template:"
_SAMPLER: Final = "sampler:"
_MODEL: Final = "weights:"
_PREFIXES: Final = (_TEMPLATE, _SAMPLER, _MODEL, *(f"{kind}:" for kind in KINDS))
_AND: Final = "+"

#: Sampler faults that `list_faults` shows; any other number may be given.
_SAMPLERS: Final = {
    "temperature=0.9": "samples are drawn at this temperature, whatever was asked",
    "top-k=40": "samples are drawn from so many tokens, whatever was asked",
    "top-p=0.95": "samples are drawn from this share of the distribution",
    "min-p=0.05": "tokens below this share of the likeliest are never drawn",
    "repetition-penalty=1.1": "tokens of prompt and reply are penalized, in greedy replies too",
    "presence-penalty=0.5": "tokens of the reply are penalized once, in greedy replies too",
    "frequency-penalty=0.5": "tokens of the reply are penalized each time, in greedy replies too",
    "drop-best=0.02": "the likeliest token is passed over now and then, in greedy replies too",
    "rare=0.01": "any token at all is put in now and then, in greedy replies too",
}

#: Settings that mean nothing where the likeliest token is taken.
_OF_SAMPLES: Final = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a host serves: weights of the bank, a rendering of the catalogue, sampler and tricks.

    The weights are those of another model where `directory` names one.
    """

    weights: str
    rendering: Rendering
    sampler: tuple[tuple[str, float], ...] = ()  # settings that stand for what was asked
    directory: Path | None = None  # of a whole other model; None: the published one
    tricks: Tricks = PLAIN


def list_faults() -> list[tuple[str, str]]:
    """Name and one-line summary of everything the testbed can serve; "none" is honest.

    One fault of each kind can be served together, with a plus sign between them.
    """
    honest = ("none", "the published weights, as they are")
    other = (f"{_MODEL}DIR", "the model of a directory, with its own tokenizer and template")
    weights = [(variant.name, variant.summary) for variant in VARIANTS.values()]
    renderings = [
        (_TEMPLATE + entry.name, entry.summary)
        for entry in catalogue().values()
        if entry.name != REFERENCE and entry.stands_for in (None, entry.name)
    ]
    samplers = [(_SAMPLER + name, summary) for name, summary in _SAMPLERS.items()]
    return [honest, *weights, other, *renderings, *samplers, *TRICKS.items()]


def read_fault(name: str, *, layers: int, catalogue: Mapping[str, Rendering]) -> Fault:
    """A fault by its name, such as int4-sym-g64+template:bos-doubled.

    Raises ConfigError for a name that is not there, or two of one kind.
    """
    found: dict[str, str] = {}
    for part in name.split(_AND):
        prefix = next((p for p in _PREFIXES if part.startswith(p)), "")
        kind = "model" if prefix == _MODEL else prefix.removesuffix(":") or "weights"
        if kind in found:
            raise ConfigError(f"fault {name!r}: names two of the kind {kind}; give one of each")
        found[kind] = part.removeprefix(prefix)
    weights, tricks = found.get("weights", "none"), PLAIN
    for kind in KINDS:
        tricks = read_trick(kind, found[kind], tricks) if kind in found else tricks
    return Fault(
        directory=Path(found["model"]) if "model" in found else None,
        weights=REFERENCE if weights == "none" else find_variant(weights, layers=layers).name,
        rendering=served(found.get("template", REFERENCE), catalogue),
        sampler=tuple(read_sampler(found["sampler"]).items()) if "sampler" in found else (),
        tricks=tricks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Thoughts:
    """How a host of a model that thinks reports its thoughts.

    Apart from the answer, in the text with their tags, apart with the white space around thought
    and answer stripped, or not at all: then only their tokens are counted.
    """

    tags: Thinking
    shown: Literal["apart", "inline", "stripped", "hidden"]


# -- from bodies to answers: the worker thread -------------------------------------------------


def _answer_batch(
    engine: Engine,
    tokenizer: Tokenizer,
    rendering: Rendering,
    sampler: Mapping[str, float],
    completes_as_chat: bool,
    thoughts: Thoughts | None,
    tricks: Tricks,
    weights: str | None,
    store: Store,
    bodies: Sequence[Body],
) -> list[Answer | WireError]:
    """Answer a batch in the order given; a prompt that cannot be read fails alone."""
    asked = [
        _read(body, tokenizer, rendering, completes_as_chat=completes_as_chat) for body in bodies
    ]
    requests = [
        _tricked(r, b, tokenizer, rendering, tricks) for r, b in zip(asked, bodies, strict=True)
    ]
    ready = [_resampled(r, sampler) for r in requests if isinstance(r, GenerateRequest)]
    spared = [
        is_spared(body, request.max_tokens, store.count(), tricks)
        for body, request in zip(bodies, asked, strict=True) if isinstance(request, GenerateRequest)
    ]  # fmt: skip
    found = iter(_generate(engine, ready, spared, weights, forges=tricks.forges))
    answers: list[Answer | WireError] = []
    for body, whole, request in zip(bodies, asked, requests, strict=True):
        if not (isinstance(request, GenerateRequest) and isinstance(whole, GenerateRequest)):
            answers += [e for e in (request, whole) if isinstance(e, WireError)][:1]
            continue
        answer = _read_answer(request, next(found), tokenizer, thoughts)
        answer = answered(answer, tricks, rendered=len(whole.prompt_ids), asked=whole.max_tokens)
        answers.append(store.again(_words(body), whole.max_tokens, answer))
    return answers


def _generate(
    engine: Engine,
    requests: Sequence[GenerateRequest],
    spared: Sequence[bool],
    weights: str | None,
    *,
    forges: bool,
) -> list[Generation]:
    """Generate under `weights`, and under the published ones what is spared."""
    if weights is None or not (forges or any(spared)):
        if weights is not None:
            engine.load_variant(weights)
        return engine.generate(requests) if requests else []
    made: dict[int, Generation] = {}
    for name, kind in ((REFERENCE, True), (weights, False)):
        some = [n for n, one in enumerate(spared) if one == kind]
        if some:
            engine.load_variant(name)
            made |= zip(some, engine.generate([requests[n] for n in some]), strict=True)
    whole = [made[n] for n in range(len(requests))]
    return _forged(engine, requests, whole) if forges else whole


def _forged(
    engine: Engine, requests: Sequence[GenerateRequest], made: Sequence[Generation]
) -> list[Generation]:
    """The same replies, with what the published weights say of their tokens."""
    engine.load_variant(REFERENCE)
    scores = engine.score(
        [
            ScoreRequest(prompt_ids=request.prompt_ids, reply_ids=one.token_ids)
            for request, one in zip(requests, made, strict=True)
        ]
    )
    forged = []
    for one, score in zip(made, scores, strict=True):
        top = tuple(
            tuple({best: values[0], given: own}.items())
            for best, values, given, own in zip(
                score.top_ids, score.top_logprobs, one.token_ids, score.logprobs, strict=True
            )
        )
        forged.append(replace(one, logprobs=score.logprobs, top=top if one.top else ()))
    return forged


def _words(body: Body) -> str:
    """What a prompt says, its last message last."""
    if isinstance(body, ChatBody):
        return "\n".join(message.text for message in body.messages)
    return body.prompt if isinstance(body.prompt, str) else " ".join(map(str, body.prompt))


def _tricked(
    request: GenerateRequest | WireError,
    body: Body,
    tokenizer: Tokenizer,
    rendering: Rendering,
    tricks: Tricks,
) -> GenerateRequest | WireError:
    """A request as a host with tricks takes it: its prompt cut, its length bounded."""
    if isinstance(request, WireError):
        return request
    head = tail = 0
    if tricks.window is not None and isinstance(body, ChatBody):
        head, tail = template_ends(rendering, body.prompt, tokenizer)
    try:
        ids = read_whole_or_cut(request.prompt_ids, tricks, head=head, tail=tail)
    except WireError as error:
        return error
    most = request.max_tokens if tricks.ceiling is None else tricks.ceiling
    return ignoring(
        replace(request, prompt_ids=ids, max_tokens=min(request.max_tokens, most)), tricks
    )


def _read(
    body: Body, tokenizer: Tokenizer, rendering: Rendering, *, completes_as_chat: bool
) -> GenerateRequest | WireError:
    if isinstance(body, ChatBody) or (completes_as_chat and isinstance(body.prompt, str)):
        try:
            ids = render(rendering, _prompt(body), tokenizer).ids
            return request_of(body, ids, past_end=rendering.past_end)
        except WireError as error:
            return error
        except RenderingError as error:
            return WireError(f"messages: {error}", param="messages")
    if isinstance(body.prompt, str):
        return request_of(body, tokenizer.encode_completion(body.prompt))
    known = range(tokenizer.vocabulary_size)
    strange = next((token_id for token_id in body.prompt if token_id not in known), None)
    if strange is not None:
        return WireError(f"prompt: no token has the id {strange}", param="prompt")
    return request_of(body, body.prompt)


def _prompt(body: Body) -> Prompt:
    """What is rendered of a body; a text to complete becomes the words of a user."""
    if isinstance(body, ChatBody):
        return body.prompt
    assert isinstance(body.prompt, str)
    return make_prompt((Message(role="user", content=body.prompt),))


def _resampled(request: GenerateRequest, sampler: Mapping[str, float]) -> GenerateRequest:
    """The request as a host with a sampler fault takes it: greedy ones stay greedy."""
    greedy = request.temperature == 0
    settings = {n: v for n, v in sampler.items() if not (greedy and n in _OF_SAMPLES)}
    changes: dict[str, Any] = settings
    return replace(request, **changes)


def _read_answer(
    request: GenerateRequest, made: Generation, tokenizer: Tokenizer, thoughts: Thoughts | None
) -> Answer:
    """Turn ids into text cut before the first stop string, and into the tokens in that text.

    A token that the cut goes through is shown whole.
    """
    tags = () if thoughts is None else (thoughts.tags.open, thoughts.tags.close)
    text = _decode(made.token_ids, tokenizer, tags)
    cut = min((at for stop in request.stop if (at := text.find(stop)) >= 0), default=None)
    tokens = tuple(_shown_tokens(made, tokenizer, tags))
    if cut is not None:
        text, tokens = text[:cut], tuple(token for token in tokens if token.start < cut)
    prompt = tokenizer.decode_prompt(request.prompt_ids)
    answer = Answer(
        text=text,
        tokens=tokens,
        finish_reason=made.finish_reason if cut is None else "stop",
        prompt_tokens=len(request.prompt_ids),
        completion_tokens=len(made.token_ids),
        prompt_ids=request.prompt_ids,
        prompt_text=prompt,
    )
    return answer if thoughts is None else _report(answer, thoughts)


def _report(answer: Answer, thoughts: Thoughts) -> Answer:
    """The answer with its thought reported as the host does, where it has one."""
    tags = thoughts.tags
    inside = answer.prompt_text.rstrip().endswith(tags.open)
    if thoughts.shown == "inline" or not (inside or answer.text.startswith(tags.open)):
        return answer
    thought, closed, text = answer.text.partition(tags.close)
    start = len(thought) + len(closed)
    within = tuple(token for token in answer.tokens if token.start < start)
    behind = tuple(replace(t, start=t.start - start) for t in answer.tokens[len(within) :])
    thought = thought.removeprefix(tags.open)
    answer = replace(answer, text=text, tokens=behind, reasoning_tokens=len(within))
    if thoughts.shown == "hidden":
        return answer
    if thoughts.shown == "apart":
        return replace(answer, thought=thought, thought_tokens=within)
    ahead = len(text) - len(text.lstrip())
    bare = text.strip()
    shown = tuple(
        replace(t, start=max(0, t.start - ahead)) for t in behind if t.start - ahead < len(bare)
    )
    return replace(answer, thought=thought.strip(), text=bare, tokens=shown)


def _decode(ids: Sequence[int], tokenizer: Tokenizer, tags: Sequence[str]) -> str:
    """Text of ids, with these tags where they are control tokens, which texts do not show."""
    named = {tokenizer.special_id(tag): tag for tag in tags}
    text, start = "", 0
    for position, token_id in enumerate(ids):
        if token_id in named:
            text += tokenizer.decode(ids[start:position]) + named[token_id]
            start = position + 1
    return text + tokenizer.decode(ids[start:])


def _shown_tokens(
    made: Generation, tokenizer: Tokenizer, tags: Sequence[str]
) -> Iterator[ShownToken]:
    names = {tokenizer.special_id(tag): tag.encode() for tag in tags}
    hidden = tokenizer.special_ids - names.keys()
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    start = 0
    for position, token_id in enumerate(made.token_ids):
        if token_id in hidden:
            continue
        raw = names.get(token_id) or tokenizer.token_bytes(token_id)
        top = made.top[position] if made.top else ()
        yield ShownToken(
            raw=raw,
            start=start,
            logprob=made.logprobs[position],
            top=tuple((tokenizer.token_bytes(other), logprob) for other, logprob in top),
        )
        start += len(characters.decode(raw))


class _Batcher:
    """Gathers requests into batches and answers them in one worker thread.

    Neither the engine nor the tokenizer bears two threads, so both are used only there.
    """

    def __init__(
        self, answer_batch: Callable[[Sequence[Body]], list[Answer | WireError]], *,
        max_batch: int, window_s: float,
    ) -> None:  # fmt: skip
        self._answer_batch = answer_batch
        self._max_batch = max_batch
        self._window_s = window_s
        self._waiting: asyncio.Queue[tuple[Body, asyncio.Future[Answer | WireError]]]
        self._waiting = asyncio.Queue()

    async def answer(self, body: Body) -> Answer:
        """Wait for this request's answer. Raises WireError when it gets none."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((body, future))
        found: Answer | WireError = await future
        if isinstance(found, WireError):
            raise found
        return found

    async def run(self) -> None:
        """Answer batch after batch until cancelled; the batch under way is then finished first."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="testbed") as worker:
            while True:
                batch = await self._gather()
                work = partial(self._answer_batch, [body for body, _ in batch])
                try:
                    found = await loop.run_in_executor(worker, work)
                except Exception as error:  # noqa: BLE001 - a host outlives whatever its engine raises
                    found = [_engine_failure(error) for _ in batch]
                for (_, future), answer in zip(batch, found, strict=True):
                    if not future.done():  # cancelled when the server was told to stop
                        future.set_result(answer)

    async def _gather(self) -> list[tuple[Body, asyncio.Future[Answer | WireError]]]:
        """At least one request, and those that come within the window after it."""
        batch = [await self._waiting.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._window_s):
                while len(batch) < self._max_batch:
                    batch.append(await self._waiting.get())
        return batch


def _engine_failure(error: Exception) -> WireError:
    text = " ".join(str(error).split())
    return WireError(f"the engine failed: {type(error).__name__}: {text}", status=500)


# -- the app -----------------------------------------------------------------------------------


def create_app(
    engine: Engine,
    tokenizer: Tokenizer,
    *,
    model: str,
    rendering: Rendering = PUBLISHED,
    sampler: Mapping[str, float] | None = None,
    tricks: Tricks = PLAIN,
    weights: str | None = None,
    api_key: str | None = None,
    max_batch: int = 16,
    window_s: float = 0.02,
    shows_prompts: bool = False,
    completes_as_chat: bool = False,
    thoughts: Thoughts | None = None,
) -> Starlette:
    """An app over the weights the engine holds, under the name `model`.

    It speaks OpenAI's chat, text completions and Responses, and Anthropic's Messages.

    Chats are rendered by `rendering`: the published template, or a template fault. With
    `shows_prompts` what was rendered is shown to who asks, as vLLM does. The settings
    of `sampler` stand for those that are asked for. `thoughts` says how a model that thinks is
    reported; without it what it writes is the text. `tricks` are what else the host does.
    Tricks that serve two weights need the name of the faulty ones, `weights`.

    Requests that arrive within `window_s` seconds of the first, `max_batch` at most, are generated
    as one batch; when the engine fails, all of that batch get an HTTP 500 and the app lives on.
    Fields it does not know are ignored, as most hosts do. Control tokens are recognised in a text
    to complete; with `completes_as_chat` it is silently made into a chat.
    """

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Any]]:
        batcher = _Batcher(
            partial(
                _answer_batch,
                engine,
                tokenizer,
                rendering,
                sampler or {},
                completes_as_chat,
                thoughts,
                tricks,
                weights,
                Store(tricks),
            ),
            max_batch=max_batch,
            window_s=window_s,
        )
        running_batches = asyncio.create_task(batcher.run())
        yield {"batcher": batcher}
        running_batches.cancel()
        with suppress(asyncio.CancelledError):
            await running_batches

    async def list_models(request: Request) -> Response:
        _check_key(request, api_key)
        listed = {"id": model, "object": "model", "created": 0, "owned_by": "testbed"}
        return JSONResponse({"object": "list", "data": [listed]})

    async def chat(request: Request) -> Response:
        _check_key(request, api_key)
        return await reply(request, parse_body(ChatBody, await request.body()))

    async def complete(request: Request) -> Response:
        _check_key(request, api_key)
        return await reply(request, parse_body(CompletionBody, await request.body()))

    async def message(request: Request) -> Response:
        try:
            _check_key(request, api_key)
            body = parse_body(MessagesBody, await request.body())
            answer, stamp = await ask(request, body.chat)
        except WireError as error:
            return JSONResponse(message_error(error.body), status_code=error.status)
        if body.stream:
            return _stream(map(_named_event, message_events(body, answer, stamp)))
        return JSONResponse(whole_message(body, answer, stamp))

    async def respond(request: Request) -> Response:
        _check_key(request, api_key)
        body = parse_body(ResponsesBody, await request.body())
        answer, stamp = await ask(request, body.chat)
        if body.stream:
            return _stream(map(_named_event, response_events(body, answer, stamp)))
        return JSONResponse(whole_response(body, answer, stamp))

    async def reply(request: Request, body: Body) -> Response:
        answer, stamp = await ask(request, body)
        if not body.stream:
            return JSONResponse(whole_reply(body, answer, stamp))
        chunks = map(_event, reply_chunks(body, answer, stamp))
        return _stream(chain(chunks, ["data: [DONE]\n\n"]))

    async def ask(request: Request, body: Body) -> tuple[Answer, Stamp]:
        if body.model != model:
            raise WireError(
                f"model: this host serves {model!r}, not {body.model!r}",
                status=404, param="model", code="model_not_found",
            )  # fmt: skip
        count = 1 if "n" in tricks.ignores else body.n or 1
        answer, *others = await asyncio.gather(
            *(request.state.batcher.answer(body) for _ in range(count))
        )
        answer = replace(answer, others=tuple(others))
        if not shows_prompts:
            answer = replace(answer, prompt_ids=(), prompt_text="")
        return answer, Stamp(id=uuid.uuid4().hex, created=int(time.time()))

    return Starlette(
        routes=[
            Route("/v1/models", list_models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/messages", message, methods=["POST"]),
            Route("/v1/responses", respond, methods=["POST"]),
        ],
        lifespan=lifespan,
        exception_handlers={
            WireError: _show_wire_error,
            HTTPException: _show_http_error,
        },
    )


def _check_key(request: Request, api_key: str | None) -> None:
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


def _stream(events: Iterable[str]) -> Response:
    # made whole before the first is sent, so that an error here still has its status
    return StreamingResponse(iter(list(events)), media_type="text/event-stream")


def _named_event(event: Event) -> str:
    name, carried = event
    return f"event: {name}\n{_event(carried)}"


def _event(chunk: dict[str, Any]) -> str:
    # ASCII only: some clients break lines at U+2028 and its kin, which a reply may hold
    return f"data: {json.dumps(chunk)}\n\n"


async def _show_wire_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, WireError)
    return JSONResponse(error.body, status_code=error.status)


async def _show_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    shown = WireError(f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(shown.body, status_code=error.status_code, headers=error.headers)


# -- the server --------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """Tells its base URL once it listens."""

    def __init__(self, app: Starlette, listening: socket.socket, announce: Callable[[str], None]):
        super().__init__(
            uvicorn.Config(
                app, lifespan="on", ws="none", log_config=None, log_level="critical",
                access_log=False, timeout_keep_alive=60, timeout_graceful_shutdown=_GRACE_S,
            )
        )  # fmt: skip
        self._listening = listening
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce(f"http://{_LOOPBACK}:{self._listening.getsockname()[1]}/v1")

    def run_here(self) -> None:
        """Serve until `should_exit` is set; returns at once, not `started`, if the app fails to."""
        with suppress(SystemExit):  # uvicorn's answer to an app that does not start
            self.run(sockets=[self._listening])


def _listen(port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off for sockets that name TCP; it costs 40 ms per reply
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((_LOOPBACK, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(
            f"port: {_LOOPBACK}:{port} cannot be listened on ({error}); "
            "choose another, or 0 for a free one"
        ) from error
    return listening


def serve(app: Starlette, *, port: int, announce: Callable[[str], None]) -> None:
    """Serve on the loopback interface until SIGTERM or SIGINT, then return.

    Port 0 picks a free one; `announce` gets the base URL once the host listens. When told to stop,
    requests under way have five seconds left and the batch being generated is finished. Call it
    from the main thread, where signals arrive. Raises ConfigError when the port cannot be had.
    """
    with _listen(port) as listening:
        server = _Server(app, listening, announce)

        def stop(_signal: int, _frame: object) -> None:
            server.should_exit = True

        # uvicorn raises the signal again when it is done, and that would end the process
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            server.run_here()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if not server.started:
            raise RuntimeError(_NOT_STARTED)


@contextmanager
def running(app: Starlette) -> Iterator[str]:
    """Serve on a free port in a background thread; yields the base URL, stops on leaving."""
    with _listen(0) as listening:
        urls: list[str] = []
        started = threading.Event()

        def announce(url: str) -> None:
            urls.append(url)
            started.set()

        server = _Server(app, listening, announce)

        def run() -> None:
            try:
                server.run_here()
            finally:
                started.set()

        thread = threading.Thread(target=run, name="testbed-server")
        thread.start()
        try:
            started.wait()
            if not server.started:
                raise RuntimeError(_NOT_STARTED)
            yield urls[0]
        finally:
            server.should_exit = True
            thread.join()
