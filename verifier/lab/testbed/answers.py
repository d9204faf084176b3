"""From request bodies to answers: what the testbed host generates, and how it shows it.

All of it runs in the one thread in which the engine and the tokenizer are used. Knows no sockets.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from verifier.errors import RenderingError
from verifier.lab.testbed.behaviours import Store, answered, is_spared, read_whole_or_cut, taken
from verifier.lab.testbed.host import Host, Thoughts
from verifier.lab.testbed.wire import (
    Answer,
    Body,
    ChatBody,
    CompletionBody,
    ShownToken,
    WireError,
    request_of,
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
from verifier.reference.engines import Engine
from verifier.reference.renderings.catalogue import render, template_ends
from verifier.reference.tokenizer import Tokenizer

#: Settings that mean nothing where the likeliest token is taken.
_OF_SAMPLES: Final = ("temperature", "top_k", "top_p", "min_p")


def answer_batch(host: Host, store: Store, bodies: Sequence[Body]) -> list[Answer | WireError]:
    """Answer a batch in the order given; a prompt that cannot be read fails alone."""
    asked = [_read(body, host) for body in bodies]
    requests = [_tricked(r, b, host) for r, b in zip(asked, bodies, strict=True)]
    ready = [_resampled(r, host.sampler) for r in requests if isinstance(r, GenerateRequest)]
    spared = [
        is_spared(body, request.max_tokens, store.count(), host.tricks)
        for body, request in zip(bodies, asked, strict=True) if isinstance(request, GenerateRequest)
    ]  # fmt: skip
    found = iter(_generate(host, ready, spared))
    answers: list[Answer | WireError] = []
    for body, whole, request in zip(bodies, asked, requests, strict=True):
        if not (isinstance(request, GenerateRequest) and isinstance(whole, GenerateRequest)):
            answers += [e for e in (request, whole) if isinstance(e, WireError)][:1]
            continue
        answer = _read_answer(request, next(found), host)
        length = len(whole.prompt_ids)
        answer = answered(
            answer, host.tricks, rendered=length, asked=whole.max_tokens,
            streamed=bool(body.stream),
        )  # fmt: skip
        answer = store.reported(answer)
        if isinstance(body, CompletionBody) and body.echo:
            answer = _echoing(answer, request.prompt_ids, host, body.logprobs)
        answers.append(store.again(_words(body), whole.max_tokens, answer))
    return answers


#: Positions of a prompt whose whole distributions are held at once.
_HELD: Final = 32


def _echoing(answer: Answer, ids: tuple[int, ...], host: Host, alternatives: int | None) -> Answer:
    """The answer with its prompt to be repeated, and scored where log-probabilities are asked for.

    Nothing is known of the first token.
    """
    tokenizer, vocabulary = host.tokenizer, range(host.tokenizer.vocabulary_size)
    if host.weights is not None:
        host.engine.load_variant(host.weights)
    said: list[tuple[float, tuple[tuple[int, float], ...]]] = [(0.0, ())]
    for start in range(1, 1 if alternatives is None else len(ids), _HELD):
        reply = ids[start : start + _HELD]
        asked = ScoreRequest(
            prompt_ids=ids[:start], reply_ids=reply, candidates=(tuple(vocabulary),) * len(reply)
        )
        (score,) = host.engine.score([asked])
        for logprob, row in zip(score.logprobs, score.candidate_logprobs or (), strict=True):
            best = sorted(vocabulary, key=row.__getitem__, reverse=True)[: alternatives or 0]
            said.append((logprob, tuple((i, row[i]) for i in best)))
    shown, start = [], 0
    for token_id, (logprob, top) in zip(ids, said, strict=False):
        raw = _prompt_bytes(token_id, tokenizer)
        named = tuple((_prompt_bytes(i, tokenizer), value) for i, value in top)
        shown.append(ShownToken(raw=raw, start=start, logprob=logprob, top=named))
        start += len(raw.decode("utf-8", "ignore"))
    return replace(answer, echoed=tuple(shown), prompt_text=tokenizer.decode_prompt(ids))


def _prompt_bytes(token_id: int, tokenizer: Tokenizer) -> bytes:
    """What a token spells, control tokens by their names."""
    return tokenizer.token_bytes(token_id) or tokenizer.decode_prompt([token_id]).encode()


def _generate(
    host: Host, requests: Sequence[GenerateRequest], spared: Sequence[bool]
) -> list[Generation]:
    """Generate under the host's weights, and under the published ones what is spared."""
    engine, weights, forges = host.engine, host.weights, host.tricks.forges
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
    request: GenerateRequest | WireError, body: Body, host: Host
) -> GenerateRequest | WireError:
    """A request as a host with tricks takes it: its prompt cut, its length bounded."""
    if isinstance(request, WireError):
        return request
    tricks = host.tricks
    head = tail = 0
    if tricks.window is not None and isinstance(body, ChatBody):
        head, tail = template_ends(host.rendering, body.prompt, host.tokenizer)
    try:
        ids = read_whole_or_cut(request.prompt_ids, tricks, head=head, tail=tail)
    except WireError as error:
        return error
    most = request.max_tokens if tricks.ceiling is None else tricks.ceiling
    return taken(replace(request, prompt_ids=ids, max_tokens=min(request.max_tokens, most)), tricks)


def _read(body: Body, host: Host) -> GenerateRequest | WireError:
    """The request that a body makes, its prompt rendered; or what is said of one that makes none.

    Control tokens are recognised in a text to complete.
    """
    rendering, tokenizer = host.rendering, host.tokenizer
    if isinstance(body, ChatBody) or (host.completes_as_chat and isinstance(body.prompt, str)):
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


def _read_answer(request: GenerateRequest, made: Generation, host: Host) -> Answer:
    """Turn ids into text cut before the first stop string, and into the tokens in that text.

    A token that the cut goes through is shown whole.
    """
    tokenizer, thoughts = host.tokenizer, host.thoughts
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
