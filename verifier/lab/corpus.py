"""Replies of a testbed host whose truth is known, asked for over HTTP as an audit would.

Calibration and benchmark both rest on such corpora. A corpus is a run folder without a verdict;
`generated` makes the same without HTTP.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from verifier.errors import ConfigError
from verifier.evidence.ledger import Ledger
from verifier.evidence.samplers import Sampler
from verifier.files.run_folder import PROBES
from verifier.host.collect import collect, read_outcomes
from verifier.host.endpoint import Endpoint
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host, Thoughts
from verifier.lab.testbed.server import running
from verifier.plan import versions
from verifier.plan_file import read_probes, write_probes
from verifier.probes import load_pool
from verifier.records import (
    REFERENCE,
    GenerateRequest,
    Generation,
    Outcome,
    Probe,
    Reply,
    ReplyScore,
    SamplerRequest,
    ScoreRequest,
)
from verifier.reference.cards import Thinking
from verifier.reference.engines import Engine
from verifier.reference.engines.load import load_engine
from verifier.reference.reader import Suspected
from verifier.reference.renderings.catalogue import PUBLISHED, Rendering
from verifier.reference.tokenizer import Tokenizer
from verifier.scoring.score import score_replies

Progress = Callable[[int, int], None]
Dtype = Literal["float32", "bfloat16", "float16"]
HostEngine = Literal["transformers", "vllm"]

#: Kernels of attention that transformers has wherever it runs.
_KERNELS = ("eager", "sdpa")

MODEL = "reference"
TOP_LOGPROBS = 5
MAX_ATTEMPTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """How a host computes: the precision of its arithmetic, how many replies share a batch, and
    kernel of attention and precision of the cache where they are not the engine's own choice."""

    dtype: Dtype
    batch: int
    weights: str = REFERENCE
    engine: HostEngine = "transformers"
    attention: str | None = None
    cache: str | None = None  # vLLM's alone

    @property
    def name(self) -> str:
        """E.g. bfloat16-batch16, vllm-bfloat16-triton_attn-kv_fp8-batch16, or the variant's name in
        front of it."""
        own = [self.dtype, self.attention, self.cache and f"kv_{self.cache}", f"batch{self.batch}"]
        stack = "-".join(part for part in own if part)
        if self.engine != "transformers":
            stack = f"{self.engine}-{stack}"
        return stack if self.weights == REFERENCE else f"{self.weights}-{stack}"

    @property
    def kind(self) -> tuple[str, str]:
        """Engine and precision, kernel and cache included: what one load serves."""
        own = (self.dtype, self.attention, self.cache)
        return self.engine, "-".join(part for part in own if part)


_STACK = re.compile(
    rf"(?P<vllm>vllm-)?(?P<dtype>{'|'.join(get_args(Dtype))})(-(?P<attention>(?!kv_)[a-z0-9_]+))?"
    r"(-kv_(?P<cache>[a-z0-9_]+))?-batch(?P<batch>[1-9][0-9]*)"
)


def read_stack(name: str) -> Stack:
    """A stack by its name in a card, such as bfloat16-batch16 or vllm-bfloat16-batch16."""
    found = _STACK.fullmatch(name)
    if found is None:
        raise ConfigError(
            f"card: stack {name!r} is not one of {', '.join(get_args(Dtype))} followed by -batch "
            "and a number, nor that after vllm-; between them a kernel of attention may stand, "
            "such as -eager or vLLM's -triton_attn, and vLLM's precision of its cache as -kv_fp8"
        )
    by_vllm = found["vllm"] is not None
    if not by_vllm and (found["cache"] or found["attention"] not in (None, *_KERNELS)):
        raise ConfigError(
            f"card: stack {name!r}: transformers serves {', '.join(_KERNELS)} as kernels, and no "
            "precision of its cache but its own"
        )
    return Stack(
        dtype=cast(Dtype, found["dtype"]), batch=int(found["batch"]),
        engine="vllm" if by_vllm else "transformers", attention=found["attention"],
        cache=found["cache"],
    )  # fmt: skip


class RememberingEngine:
    """An engine that scores no reply twice: the two ways of reading a corpus mostly agree.

    Ask with candidates first: what is remembered with them also serves a request without.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._weights = REFERENCE
        self._known: dict[tuple[str, tuple[int, ...], tuple[int, ...]], ReplyScore] = {}

    @property
    def versions(self) -> dict[str, str]:
        return self._engine.versions

    def can_load(self, name: str) -> bool:
        return self._engine.can_load(name)

    def load_variant(self, name: str) -> None:
        self._engine.load_variant(name)
        self._weights = name

    def close(self) -> None:
        self._engine.close()

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        return self._engine.generate(requests)

    @property
    def scores_samplers(self) -> bool:
        return self._engine.scores_samplers

    def score_samplers(
        self, requests: Sequence[SamplerRequest], samplers: Sequence[Sampler]
    ) -> list[tuple[float, ...]]:
        return self._engine.score_samplers(requests, samplers)

    def score_penalized(
        self, requests: Sequence[ScoreRequest], samplers: Sequence[Sampler]
    ) -> list[tuple[ReplyScore, ...]]:
        return self._engine.score_penalized(requests, samplers)

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        keys = [(self._weights, request.prompt_ids, request.reply_ids) for request in requests]
        new = [
            n for n, request in enumerate(requests)
            if request.candidates is not None or keys[n] not in self._known
        ]  # fmt: skip
        found = self._engine.score([requests[n] for n in new])
        self._known |= {keys[n]: score for n, score in zip(new, found, strict=True)}
        return [
            self._known[key]
            if request.candidates is not None
            else replace(self._known[key], candidate_logprobs=None)
            for key, request in zip(keys, requests, strict=True)
        ]


def describe_run(*, seed: int) -> dict[str, Any]:
    """What a file of results says of how it came about: pool, seed, versions, machine."""
    return {
        "pool_sha256": load_pool().digest,
        "seed": seed,
        "versions": versions(),
        "machine": {"machine": platform.machine(), "cores": os.cpu_count(), "gpu": False},
    }


def load_host(
    weights: Path,
    tokenizer: Tokenizer,
    stack: Stack,
    *,
    engine_args: Mapping[str, Any] | None = None,
    checkpoints: Mapping[str, Callable[[], Path]] | None = None,
) -> Engine:
    """The weights of a directory, ready to be served as a stack says; `engine_args` are vLLM's.

    `checkpoints` are other weights that may be put in their place, by name.
    """
    args = {**(engine_args or {})}
    if stack.attention is not None:
        args["attention_backend"] = stack.attention.upper()
    if stack.cache is not None:
        args["kv_cache_dtype"] = stack.cache
    return load_engine(
        stack.engine, weights, tokenizer, dtype=stack.dtype, engine_args=args,
        attention=stack.attention, checkpoints=checkpoints,
    )  # fmt: skip


def is_collected(folder: Path, probes: Sequence[Probe]) -> bool:
    """Whether every one of `probes` has its outcome in a corpus."""
    settled = read_outcomes(folder, max_attempts=MAX_ATTEMPTS)
    return all(probe.id in settled for probe in probes)


def collect_corpus(
    folder: Path,
    stack: Stack,
    probes: Sequence[Probe],
    *,
    engine: Engine,
    tokenizer: Tokenizer,
    rendering: Rendering = PUBLISHED,
    sampler: Mapping[str, float] | None = None,
    thinking: Thinking | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Serve `stack` on a free port and ask it those of `probes` that have no reply yet.

    A corpus that was begun goes on with its own probes; `limit` asks only the first of them.
    A model of which `thinking` says how it writes thoughts has them shown apart from its answers.
    """
    probes = begin_corpus(folder, probes, limit=limit)
    if is_collected(folder, probes):
        return
    engine.load_variant(stack.weights)
    host = make_host(
        stack, engine=engine, tokenizer=tokenizer, rendering=rendering, sampler=sampler,
        thinking=thinking,
    )  # fmt: skip
    with running(create_app(host)) as base_url:
        collect(folder, make_endpoint(base_url, stack), probes, progress=progress)


def begin_corpus(
    folder: Path, probes: Sequence[Probe], *, limit: int | None = None
) -> tuple[Probe, ...]:
    """The probes of a corpus: its own where it was begun, else these; the first `limit` of them."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / PROBES).exists():
        write_probes(folder, tuple(probes))
    return read_probes(folder)[:limit]


def make_host(
    stack: Stack,
    *,
    engine: Engine,
    tokenizer: Tokenizer,
    rendering: Rendering = PUBLISHED,
    sampler: Mapping[str, float] | None = None,
    thinking: Thinking | None = None,
) -> Host:
    """A host that serves what an engine holds as a stack says."""
    return Host(
        engine=engine,
        tokenizer=tokenizer,
        model=MODEL,
        rendering=rendering,
        sampler=sampler or {},
        thoughts=None if thinking is None else Thoughts(tags=thinking, shown="apart"),
        max_batch=stack.batch,
    )


def make_endpoint(base_url: str, stack: Stack) -> Endpoint:
    """How a host of a stack is asked."""
    return Endpoint(
        base_url=base_url,
        model=MODEL,
        concurrency=stack.batch,
        timeout_s=600,
        max_attempts=MAX_ATTEMPTS,
        top_logprobs=TOP_LOGPROBS,
    )


def score_corpus(
    folder: Path,
    *,
    engine: Engine,
    tokenizer: Tokenizer,
    with_logprobs: bool,
    limit: int | None = None,
    weights: Sequence[str] = (),
    suspects: Mapping[str, Suspected] | None = None,
    thinking: Thinking | None = None,
    progress: Progress | None = None,
    outcomes: Mapping[str, Outcome] | None = None,
) -> Ledger:
    """The ledger of a corpus, with or without what the host said of its own tokens.

    `thinking` says how the model writes thoughts. The two ways of reading are kept in folders of
    their own. `outcomes` are those of the corpus, where they were read.
    """
    if outcomes is None:
        outcomes = read_outcomes(folder, max_attempts=MAX_ATTEMPTS)
    if not with_logprobs:
        outcomes = {
            name: replace(outcome, logprobs=None, logprobs_problem=None)
            if isinstance(outcome, Reply)
            else outcome
            for name, outcome in outcomes.items()
        }
    probes = read_probes(folder)[:limit]
    scored = folder / ("with-logprobs" if with_logprobs else "text-only")
    scored.mkdir(exist_ok=True)
    return score_replies(
        scored, probes, outcomes, engine=engine, tokenizer=tokenizer, weights=weights,
        suspects=suspects, thinking=thinking, progress=progress,
    )  # fmt: skip
