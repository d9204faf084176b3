"""Replies of a local engine, kept as if they had been asked for over HTTP.

A corpus as `corpus` reads it, of the same host: what is rendered, generated and answered is the
testbed's, and only the sockets between are left out.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from verifier.files.run_folder import EXCHANGES, SENT, append_lines
from verifier.host.collect import (
    attempt_to_json,
    keepable,
    read_attempts,
    read_outcomes,
    request_to_json,
)
from verifier.host.endpoint import request_body
from verifier.host.shape import AS_WRITTEN
from verifier.lab.corpus import (
    MAX_ATTEMPTS,
    Progress,
    Stack,
    begin_corpus,
    make_endpoint,
    make_host,
)
from verifier.lab.testbed.answers import answer_batch
from verifier.lab.testbed.behaviours import Store
from verifier.lab.testbed.deliveries import body_of, delivery_of
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.wire import (
    Answer,
    Body,
    ChatBody,
    Stamp,
    WireError,
    parse_body,
    whole_reply,
)
from verifier.records import Attempt, Probe
from verifier.reference.cards import Thinking
from verifier.reference.engines import Engine
from verifier.reference.tokenizer import Tokenizer

#: What the requests would have been sent to.
_NOWHERE: Final = "http://127.0.0.1/v1"


def generate_corpus(
    folder: Path,
    stack: Stack,
    probes: Sequence[Probe],
    *,
    engine: Engine,
    tokenizer: Tokenizer,
    thinking: Thinking | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Have `engine` answer those of `probes` that have no outcome yet, in batches of the stack's.

    A batch is on disk before the next is begun. What an engine raises is raised: it is this
    machine's, not a host's.
    """
    probes = begin_corpus(folder, probes, limit=limit)
    for _ in range(MAX_ATTEMPTS):
        settled = read_outcomes(folder, max_attempts=MAX_ATTEMPTS)
        lacking = [probe for probe in probes if probe.id not in settled]
        if not lacking:
            return
        engine.load_variant(stack.weights)
        host = make_host(stack, engine=engine, tokenizer=tokenizer, thinking=thinking)
        tried = [attempt.probe_id for attempt in read_attempts(folder)]
        for start in range(0, len(lacking), stack.batch):
            batch = lacking[start : start + stack.batch]
            numbers = [tried.count(probe.id) + 1 for probe in batch]
            attempts = _answer(host, stack, batch, numbers)
            noted = zip(batch, numbers, strict=True)
            append_lines(folder / SENT, [request_to_json(EXCHANGES, p, n) for p, n in noted])
            append_lines(folder / EXCHANGES, [attempt_to_json(keepable(a)) for a in attempts])
            if progress is not None:
                progress(len(probes) - len(lacking) + start + len(batch), len(probes))


def _answer(
    host: Host, stack: Stack, batch: Sequence[Probe], numbers: Sequence[int]
) -> list[Attempt]:
    """One batch, as the attempts that asking for it would have left."""
    endpoint = make_endpoint(_NOWHERE, stack)
    requests = [
        request_body(endpoint, probe, logprobs=True, shape=AS_WRITTEN) for probe in batch
    ]  # fmt: skip
    bodies = [parse_body(ChatBody, request) for request in requests]
    started_at, start = datetime.now(UTC).isoformat(timespec="milliseconds"), time.monotonic()
    answers = answer_batch(host, Store(host.tricks), bodies)
    elapsed = round(time.monotonic() - start, 6)
    told = [_told(body, answer) for body, answer in zip(bodies, answers, strict=True)]
    return [
        Attempt(
            probe_id=probe.id, number=number, started_at=started_at,
            elapsed_s=elapsed, first_s=elapsed, request=request.decode(), status=status, body=body,
            error=None, dialect=endpoint.dialect,
        )
        for probe, number, request, (status, body) in zip(
            batch, numbers, requests, told, strict=True
        )
    ]  # fmt: skip


def _told(body: Body, answer: Answer | WireError) -> tuple[int, str]:
    """Status and body of a response."""
    way = delivery_of(None, 0)
    try:
        if isinstance(answer, WireError):
            raise answer
        stamp = Stamp(id=uuid.uuid4().hex, created=int(time.time()))
        return 200, body_of(way, whole_reply(body, answer, stamp))
    except WireError as error:
        return error.status, body_of(way, error.body)
