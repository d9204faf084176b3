"""A tokenizer and an engine small enough to follow by hand: no weights, no torch, no files.

The tokenizer has one token per byte, a few longer ones and two control tokens. The engine is a
language model all the same: its next-token scores are a fixed function of the prompt, the last
tokens and the weights in place, so what it generates and how it scores that agree.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from verifier.errors import ConfigError, RenderingError
from verifier.evidence.samplers import Sampler, distribution, is_plain, penalized, row_cells
from verifier.prompts import make_prompt
from verifier.records import (
    REFERENCE,
    GenerateRequest,
    Generation,
    Message,
    Prompt,
    ReplyScore,
    SamplerRequest,
    ScoreRequest,
)
from verifier.reference.engines import TOP_K
from verifier.reference.variants import VARIANTS

EOS, TURN = 256, 257
WORDS = (
    "the", " the", " of", " and", " is", " model", " weights", " token", " host", " reply",
    " says", " more", " or", " less", " now", " yes", " no", " few", " é", " ü", "日本",
)  # fmt: skip

#: One token, the longest first.
_PIECE = re.compile(
    b"|".join(sorted((w.encode() for w in WORDS), key=len, reverse=True)) + b"|.", re.DOTALL
)

Script = Callable[[tuple[int, ...]], Sequence[int]]


class FakeTokenizer:
    """What `verifier.reference.tokenizer.Tokenizer` offers, over bytes and `WORDS`."""

    def __init__(self) -> None:
        pieces = [bytes([n]) for n in range(256)] + [b"", b""] + [w.encode() for w in WORDS]
        self._bytes = pieces
        self._ids: dict[bytes, tuple[int, ...]] = {}
        for token_id, raw in enumerate(pieces):
            if raw:
                self._ids[raw] = (token_id,)
        self._encoded: dict[str, tuple[int, ...]] = {}

    @property
    def vocabulary_size(self) -> int:
        return len(self._bytes)

    @property
    def eos_id(self) -> int:
        return EOS

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset({EOS, TURN})

    @property
    def template_sha256(self) -> str:
        return hashlib.sha256(b"fake template").hexdigest()

    @property
    def bos(self) -> str:
        return ""

    @property
    def eos(self) -> str:
        return "<eos>"

    @property
    def template(self) -> str:
        return "fake template"

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.encode_prompt(self.render_text(make_prompt(messages)))

    def render_text(self, prompt: Prompt) -> str:
        """One layout of its own; no other template can be read."""
        if prompt.template is not None:
            raise RenderingError("the fake tokenizer reads no template")
        text = "".join(f"<turn>{m['role']}\n{m['content']}<eos>" for m in prompt.messages)
        return text + ("<turn>assistant\n" if prompt.generation_prompt else "")

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        for piece in re.split("(<turn>|<eos>)", text):
            named = self.special_id(piece)
            ids += self.encode(piece) if named is None else [named]
        return tuple(ids)

    def encode_completion(self, text: str) -> tuple[int, ...]:
        return self.encode_prompt(text)

    def encode(self, text: str) -> tuple[int, ...]:
        """Longest token first."""
        if text in self._encoded:  # renderings of one conversation share most of their pieces
            return self._encoded[text]
        ids = tuple(self._ids[raw][0] for raw in _PIECE.findall(text.encode()))
        return self._encoded.setdefault(text, ids)

    def decode_prompt(self, ids: Sequence[int]) -> str:
        return _shown(tuple(ids))

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self._bytes[n] for n in ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id]

    def ids_of_bytes(self, raw: bytes) -> tuple[int, ...]:
        return self._ids.get(raw, ())

    def special_id(self, token: str) -> int | None:
        return {"<eos>": EOS, "<turn>": TURN}.get(token)


_SHOWN = [bytes([n]).decode("utf-8", "replace") for n in range(256)] + ["<eos>", "<turn>", *WORDS]


@lru_cache(maxsize=64)  # the same prompt is asked about at each token of its reply
def _shown(ids: tuple[int, ...]) -> str:
    return "".join([_SHOWN[n] for n in ids if n < len(_SHOWN)])


def wordy_script(prompt_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Five to twelve words that depend on the prompt alone."""
    rng = np.random.default_rng(_digest(prompt_ids))
    length = int(rng.integers(5, 13))
    return tuple(258 + int(n) for n in rng.integers(0, len(WORDS), length))


def scripted(text: str) -> Script:
    """Always the same reply."""
    ids = FakeTokenizer().encode(text)
    return lambda _prompt_ids: ids


class FakeEngine:
    """A deterministic engine that prefers a script, `margin` logits above standard normal noise.

    Greedy replies follow the script, then end the turn. `noise` gives the scale of Gaussian logit
    noise that a variant adds (1.0 where it says nothing). It keeps what it was asked in `batches`
    and `threads`, raises what `failures` holds one call at a time, and refuses two callers at once.
    """

    def __init__(
        self,
        *,
        script: Script = wordy_script,
        margin: float = 8.0,
        noise: dict[str, float] | None = None,
    ) -> None:
        self._tokenizer = FakeTokenizer()
        self._script = script
        self._margin = margin
        self._noise = noise or {}
        self._busy = threading.Lock()
        self.loaded = REFERENCE
        self._drawn: Counter[tuple[int, ...]] = Counter()
        self.batches: list[tuple[GenerateRequest, ...]] = []
        self.threads: set[str] = set()
        self.failures: list[Exception] = []

    @property
    def versions(self) -> dict[str, str]:
        return {"engine": "fake"}

    def can_load(self, name: str) -> bool:
        return name == REFERENCE or name in VARIANTS

    def load_variant(self, name: str) -> None:
        if name != REFERENCE and name not in VARIANTS:
            raise ConfigError(f"no weights variant {name!r}")
        self.loaded = name

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        return [self._score(request) for request in requests]

    @property
    def scores_samplers(self) -> bool:
        return True

    def score_samplers(
        self, requests: Sequence[SamplerRequest], samplers: Sequence[Sampler]
    ) -> list[tuple[float, ...]]:
        return [
            row_cells(
                np.array(
                    [
                        self.logprobs(request.prompt_ids, request.reply_ids[:t])
                        for t in range(len(request.reply_ids))
                    ]
                ),
                prompt_ids=request.prompt_ids,
                reply_ids=request.reply_ids,
                kept=request.kept,
                samplers=samplers,
            )
            for request in requests
        ]

    def score_penalized(
        self, requests: Sequence[ScoreRequest], samplers: Sequence[Sampler]
    ) -> list[tuple[ReplyScore, ...]]:
        return [
            tuple(self._score(replace(request, candidates=None), sampler) for sampler in samplers)
            for request in requests
        ]

    def close(self) -> None:
        self.closed = True

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        if not self._busy.acquire(blocking=False):
            raise AssertionError("two callers at once")
        try:
            self.batches.append(tuple(requests))
            self.threads.add(threading.current_thread().name)
            if self.failures:
                raise self.failures.pop(0)
            return [self._generate(request) for request in requests]
        finally:
            self._busy.release()

    def logprobs(self, prompt_ids: tuple[int, ...], reply_ids: Sequence[int]) -> np.ndarray:
        """Log-probabilities [V] of the token after these, at temperature 1 (nats)."""
        script = (*self._script(prompt_ids), EOS)
        done = len(reply_ids)
        seed = _digest((-1, done, *reply_ids[-3:]), after=prompt_ids)
        size = self._tokenizer.vocabulary_size
        logits = np.random.default_rng(seed).normal(size=size)
        logits[script[min(done, len(script) - 1)]] = self._margin
        if self.loaded != REFERENCE:
            other = np.random.default_rng([seed, _digest(tuple(self.loaded.encode()))])
            logits += self._noise.get(self.loaded, 1.0) * other.normal(size=size)
        return logits - np.logaddexp.reduce(logits)

    def _score(self, request: ScoreRequest, sampler: Sampler | None = None) -> ReplyScore:
        rows = [
            self.logprobs(request.prompt_ids, request.reply_ids[:t])
            for t in range(len(request.reply_ids))
        ]
        if sampler is not None:
            for t, row in enumerate(rows):
                said = Counter(request.reply_ids[:t])
                logits = penalized(row, request.prompt_ids, said, sampler)
                rows[t] = logits - np.logaddexp.reduce(logits)
        chosen = list(zip(rows, request.reply_ids, strict=True))
        top = [np.argsort(-row, kind="stable")[:TOP_K] for row in rows]
        candidates = None
        if request.candidates is not None:
            pairs = zip(rows, request.candidates, strict=True)
            candidates = tuple(tuple(float(row[i]) for i in ids) for row, ids in pairs)
        return ReplyScore(
            logprobs=tuple(float(row[i]) for row, i in chosen),
            ranks=tuple(int((row > row[i]).sum()) + 1 for row, i in chosen),
            entropies=tuple(float(-(np.exp(row) * row).sum()) for row in rows),
            top_ids=tuple(int(ids[0]) for ids in top),
            top_logprobs=tuple(
                tuple(float(row[i]) for i in ids) for row, ids in zip(rows, top, strict=True)
            ),
            candidate_logprobs=candidates,
        )

    def _generate(self, request: GenerateRequest) -> Generation:
        self._drawn[request.prompt_ids] += 1  # without a seed each draw is another, yet repeatable
        nth = [_digest(request.prompt_ids), self._drawn[request.prompt_ids]]
        rng = np.random.default_rng(nth if request.seed is None else request.seed)
        ids: list[int] = []
        logprobs: list[float] = []
        top: list[tuple[tuple[int, float], ...]] = []
        while True:
            row = self.logprobs(request.prompt_ids, ids)
            for token_id, bias in request.logit_bias:
                row[token_id % len(row)] += bias
            token = _sample(row, request, rng, ids)
            ids.append(token)
            logprobs.append(float(row[token]))
            if request.top_logprobs:
                best = np.argsort(-row, kind="stable")[: request.top_logprobs]
                top.append(tuple((int(i), float(row[i])) for i in best))
            text = self._tokenizer.decode(ids)
            stopped = (token == EOS and not request.past_end) or any(
                stop in text for stop in request.stop
            )
            if stopped or len(ids) >= request.max_tokens:
                return Generation(
                    token_ids=tuple(ids),
                    finish_reason="stop" if stopped else "length",
                    logprobs=tuple(logprobs),
                    top=tuple(top),
                )


def _digest(ids: tuple[int, ...], *, after: tuple[int, ...] = ()) -> int:
    """A number made of some ids, or of these after others, which often come again."""
    digest = _beginning(after).copy() if after else hashlib.blake2b(digest_size=8)
    digest.update(",".join(map(str, ids)).encode())
    return int.from_bytes(digest.digest(), "big")


@lru_cache(maxsize=64)
def _beginning(ids: tuple[int, ...]) -> hashlib.blake2b:
    return hashlib.blake2b("".join(f"{n}," for n in ids).encode(), digest_size=8)


def _sample(
    row: np.ndarray, request: GenerateRequest, rng: np.random.Generator, said: Sequence[int]
) -> int:
    """Greedy at temperature 0, else temperature, then top-k, then top-p; or as a fault has it."""
    if not is_plain(request):
        return int(rng.choice(len(row), p=distribution(row, request, said)))
    if request.temperature == 0:
        return int(row.argmax())
    weights = np.exp((row - row.max()) / request.temperature)
    order = np.argsort(-weights, kind="stable")[: request.top_k or None]
    kept = weights[order] / weights[order].sum()
    kept = np.where(np.cumsum(kept) - kept < request.top_p, kept, 0)
    return int(rng.choice(order, p=kept / kept.sum()))
