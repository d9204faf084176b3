"""Replies of a local engine: the same rows as over HTTP, taken up where they were left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes_engine import FakeEngine, FakeTokenizer
from models import EOS_ID

from verifier.errors import ConfigError
from verifier.evidence.ledger import Ledger
from verifier.files.run_folder import EXCHANGES, SENT
from verifier.host.collect import read_attempts, read_outcomes, read_requests
from verifier.lab.corpus import (
    MAX_ATTEMPTS,
    Stack,
    collect_corpus,
    is_collected,
    load_host,
    score_corpus,
)
from verifier.lab.generated import generate_corpus
from verifier.probes import draw, load_pool
from verifier.records import GenerateRequest, Generation, Probe, Reply
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.tokenizer import Tokenizer

STACK = Stack(dtype="float32", batch=4)
TOKENIZER: Any = FakeTokenizer()


def probes(count: int, *, max_tokens: int = 12) -> tuple[Probe, ...]:
    return draw(load_pool(), seed=5, count=count, max_tokens=max_tokens)


def replies(folder: Path) -> dict[str, Reply]:
    found = read_outcomes(folder, max_attempts=MAX_ATTEMPTS)
    assert all(isinstance(one, Reply) for one in found.values())
    return {name: one for name, one in found.items() if isinstance(one, Reply)}


def hold_same(one: Path, other: Path, *, by: Ledger, of: Ledger, within: float) -> None:
    """Texts, tokens, ends and counts alike, and cells as far as batches may differ."""
    here, asked = replies(one), replies(other)
    assert here.keys() == asked.keys()
    for name, reply in here.items():
        like = asked[name]
        assert (reply.text, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == (
            like.text, like.finish_reason, like.prompt_tokens, like.completion_tokens,
        )  # fmt: skip
        assert reply.logprobs is not None
        assert like.logprobs is not None
        assert [t.chosen.token for t in reply.logprobs] == [t.chosen.token for t in like.logprobs]
    assert [row.probe_id for row in by.rows] == [row.probe_id for row in of.rows]
    assert [row.tokens for row in by.rows] == [row.tokens for row in of.rows]
    np.testing.assert_allclose(by.text(), of.text(), atol=within)
    np.testing.assert_allclose(by.logprob(), of.logprob(), atol=within)


def hold_both(
    folder: Path, stack: Stack, asked: Sequence[Probe], *, host: Any, scorer: Any, tokenizer: Any,
    within: float,
) -> None:  # fmt: skip
    """Both ways of answering the same probes lead to the same rows."""
    ledgers = {}
    for way, made in (("here", generate_corpus), ("asked", collect_corpus)):
        made(folder / way, stack, asked, engine=host, tokenizer=tokenizer)
        ledgers[way] = score_corpus(
            folder / way, engine=scorer, tokenizer=tokenizer, with_logprobs=True
        )
    hold_same(
        folder / "here", folder / "asked", by=ledgers["here"], of=ledgers["asked"], within=within
    )


def test_both_ways_give_the_same_rows(tmp_path: Path) -> None:
    """To the last bit, where the engine does not care how many share a batch."""
    engine = FakeEngine()

    hold_both(
        tmp_path, STACK, probes(10), host=engine, scorer=engine, tokenizer=TOKENIZER, within=0
    )
    here, asked = tmp_path / "here", tmp_path / "asked"
    for one, other in zip(
        sorted(read_attempts(here), key=lambda a: a.probe_id),
        sorted(read_attempts(asked), key=lambda a: a.probe_id), strict=True,
    ):  # fmt: skip
        assert (one.probe_id, one.number, one.request, one.status, one.dialect) == (
            other.probe_id, other.number, other.request, other.status, other.dialect,
        )  # fmt: skip
        told, like = (
            {**json.loads(attempt.body), "id": "", "created": 0} for attempt in (one, other)
        )
        assert told == like


def test_both_ways_give_the_same_rows_of_a_model(tmp_path: Path, tiny: Path) -> None:
    """Of a random model in bfloat16, scored in float32."""
    tokenizer = Tokenizer(tiny)
    stack = Stack(dtype="bfloat16", batch=4)

    hold_both(
        tmp_path, stack, probes(4), host=load_host(tiny, tokenizer, stack),
        scorer=TransformersEngine(tiny, eos_ids=(EOS_ID,)), tokenizer=tokenizer, within=0.05,
    )  # fmt: skip


@pytest.mark.slow
def test_both_ways_give_the_same_rows_of_the_embedded_model(tmp_path: Path, embedded: Path) -> None:
    """In batches of one, whose arithmetic does not hang on who came with whom."""
    tokenizer = Tokenizer(embedded)
    stack = Stack(dtype="float32", batch=1)
    engine = load_host(embedded, tokenizer, stack)

    hold_both(
        tmp_path, stack, probes(3), host=engine, scorer=engine, tokenizer=tokenizer, within=1e-3
    )


class Batches(FakeEngine):
    """Remembers how many replies were generated together, and breaks down when told to."""

    def __init__(self, *, last: int = 10**6) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self._last = last

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        if len(self.sizes) == self._last:
            raise ConfigError("out of memory")
        self.sizes.append(len(requests))
        return super().generate(requests)


def test_replies_are_generated_in_whole_batches(tmp_path: Path) -> None:
    """As many at once as the stack says; the rest is the last."""
    engine = Batches()

    generate_corpus(tmp_path, STACK, probes(10), engine=engine, tokenizer=TOKENIZER)

    assert engine.sizes == [4, 4, 2]
    assert is_collected(tmp_path, probes(10))
    assert [r.probe_id for r in read_requests(tmp_path)] == [p.id for p in probes(10)]


def test_what_was_generated_is_kept(tmp_path: Path) -> None:
    """A batch that was finished is not made again, and what an engine says is told."""
    with pytest.raises(ConfigError, match="out of memory"):
        generate_corpus(tmp_path, STACK, probes(10), engine=Batches(last=1), tokenizer=TOKENIZER)
    before = (tmp_path / EXCHANGES).read_bytes()
    engine = Batches()
    generate_corpus(tmp_path, STACK, probes(10), engine=engine, tokenizer=TOKENIZER)

    assert before.count(b"\n") == 4
    assert engine.sizes == [4, 2]
    assert (tmp_path / EXCHANGES).read_bytes().startswith(before)
    assert (tmp_path / SENT).read_bytes().count(b"\n") == 10


def test_a_corpus_that_was_begun_over_http_goes_on_here(tmp_path: Path) -> None:
    """Files and form are the same; the other way about, too."""
    asked, engine = probes(6), FakeEngine()
    collect_corpus(tmp_path, STACK, asked, engine=engine, tokenizer=TOKENIZER, limit=2)
    generate_corpus(tmp_path, STACK, asked, engine=engine, tokenizer=TOKENIZER, limit=4)
    collect_corpus(tmp_path, STACK, asked, engine=engine, tokenizer=TOKENIZER)

    assert replies(tmp_path).keys() == {probe.id for probe in asked}
    assert len(read_attempts(tmp_path)) == 6


class Nothing(FakeEngine):
    """Says NaN of every token."""

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        from dataclasses import replace

        made = super().generate(requests)
        return [replace(m, logprobs=tuple(float("nan") for _ in m.logprobs)) for m in made]


def test_what_is_no_reply_is_a_failure(tmp_path: Path) -> None:
    """As it is over HTTP: it is tried as often, and never scored."""
    generate_corpus(tmp_path, STACK, probes(2), engine=Nothing(), tokenizer=TOKENIZER)

    attempts = read_attempts(tmp_path)
    assert {attempt.status for attempt in attempts} == {500}
    assert len(attempts) == 2 * MAX_ATTEMPTS
    assert is_collected(tmp_path, probes(2))
