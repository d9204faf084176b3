"""A laboratory instrument: a host that answers from a script, for measuring collectors.

No model takes part. It runs in a process of its own, behind the proxy that spoils answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.request import urlopen

from verifier.lab.testbed.proxy import Answered, Proxy

#: The longest answer, in tokens; each of its words is one.
LONGEST: Final = 48

_WORDS: Final = ("the ", "a ", "cat ", "dog ", "sat ", "ran ", "on ", "under ", "mat ", "tree ")


def script(body: bytes) -> Answered:
    """An answer that depends on the prompt alone: words, log-probabilities, counts."""
    asked = json.loads(body)
    seed = hashlib.sha256(asked["messages"][-1]["content"].encode()).digest()
    rng = random.Random(seed)  # noqa: S311 - a script
    words = [rng.choice(_WORDS) for _ in range(rng.randint(20, LONGEST))]
    top = asked.get("top_logprobs", 0)
    rows = [_position(word, top, rng) for word in words] if asked.get("logprobs") else None
    usage = {"prompt_tokens": 20, "completion_tokens": len(words)}
    head = {"id": seed.hex()[:12], "model": asked["model"]}
    if not asked["stream"]:
        message = {"role": "assistant", "content": "".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        choice["logprobs"] = None if rows is None else {"content": rows}
        whole = head | {"choices": [choice], "usage": usage}
        return Answered(status=200, kind="application/json", body=json.dumps(whole).encode())
    chunks: list[dict[str, Any]] = []
    for n, word in enumerate(words):
        piece: dict[str, Any] = {"index": 0, "delta": {"content": word}, "finish_reason": None}
        if rows is not None:
            piece["logprobs"] = {"content": [rows[n]]}
        count = {"prompt_tokens": 20, "completion_tokens": n + 1}
        chunks.append(head | {"choices": [piece], "usage": count})
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    chunks += [head | {"choices": [end], "usage": usage}]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
    return Answered(status=200, kind="text/event-stream", body="".join(lines).encode())


def _position(word: str, top: int, rng: random.Random) -> dict[str, Any]:
    named = [
        {"token": other, "bytes": list(other.encode()), "logprob": round(-rng.uniform(2, 9), 6)}
        for other in _WORDS
        if other != word
    ]
    mine = {"token": word, "bytes": list(word.encode()), "logprob": round(-rng.random(), 6)}
    return mine | {"top_logprobs": [mine, *named[: max(0, top - 1)]]}


def _serve(send: Any, rates: Mapping[str, float], seed: int, delay_s: float) -> None:
    known: dict[bytes, Answered] = {}

    async def upstream(_method: str, _path: str, body: bytes) -> Answered:
        await asyncio.sleep(delay_s)
        if body not in known:
            known[body] = script(body)
        return known[body]

    async def run() -> None:
        proxy = Proxy(upstream, rates=rates, seed=seed)
        server = await proxy.start()
        send.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def scripted_host(
    *, rates: Mapping[str, float], seed: int = 1, delay_s: float = 0.0
) -> Iterator[str]:
    """The scripted host behind the proxy, in a process of its own; its base URL."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(send, rates, seed, delay_s), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{receive.recv()}/v1"
    finally:
        process.kill()
        process.join()


def count_faults(url: str) -> dict[str, int]:
    """How many answers of a scripted host were spoilt, by fault; "" counts the others."""
    with urlopen(url.removesuffix("/v1") + "/faults") as answer:  # noqa: S310 - our own
        found: dict[str, int] = json.load(answer)
    return found
