"""Single tokens dropped or put in, in greedy replies: told from noise of the weights, and named."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from simulate import VOCABULARY, _score, make_plan, replies, simulate_row

from verifier.decide import decide
from verifier.ledger import (
    TEXT_SCALES,
    Ledger,
    Row,
    dropped_cells,
    rare_cells,
    text_cells,
)
from verifier.ledger import VOCABULARY as TOKENS
from verifier.records import REFERENCE, ReplyScore, Report
from verifier.samplers import DROPPED, RARE
from verifier.weigh import weigh

Kind = Literal["none", "drop", "rare"]


def row(
    rng: np.random.Generator, name: str, *, scale: float, kind: Kind = "none", share: float = 0.0
) -> Row:
    """A greedy reply of forty tokens, with every column of single tokens."""
    # any token of a large vocabulary is unlikelier than any of these forty would be
    logits = rng.normal(0, 6 if kind == "rare" else 2, (40, VOCABULARY))
    served = logits + rng.gumbel(0, scale, logits.shape)
    order = np.argsort(-served, axis=1)
    hit = rng.random(40) < share
    other = order[:, 1] if kind == "drop" else rng.integers(0, VOCABULARY, 40)
    score = _score(logits, np.where(hit, other, order[:, 0]))
    kept = range(40)
    text = {REFERENCE: text_cells(score, kept)}
    for each in DROPPED:
        text[f"sampler:best token dropped {each:g}"] = dropped_cells(score, kept, each)
    for each in RARE:
        text[f"sampler:rare token put in {each:g}"] = rare_cells(score, kept, each)
    made = simulate_row(rng, name, scale=scale, tokens=40)
    return replace(made, text=text, rare=rare_cells(score, kept, 0.01))


def judged(seed: int, *, count: int = 24, **truth: object) -> Report:
    rng = np.random.default_rng(seed)
    rows = [row(rng, f"p{n}", **truth) for n in range(count)]  # type: ignore[arg-type]
    return decide(
        make_plan(bank=()), Ledger(rows=tuple(rows)), engine={}, attempts=[],
        outcomes=replies(rows),
    )  # fmt: skip


def named(report: Report) -> str:
    return " ".join(f.name for f in report.findings if f.aspect == "sampler")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("kind", "share", "said"),
    [("drop", 0.05, "best token dropped"), ("rare", 0.03, "rare token put in")],
)
def test_single_tokens_are_named_and_the_weights_are_not_accused(
    kind: Kind, share: float, said: str, seed: int
) -> None:
    """What is left of the noise under that name is honest."""
    report = judged(seed, scale=0.05, kind=kind, share=share)

    assert report.decision == "inconsistent"
    assert named(report).startswith(said)
    assert not any(f.aspect == "cause" for f in report.findings)
    assert (report.noise_scale.lower or 0) <= report.noise_scale.honest


@pytest.mark.parametrize("scale", [0.2, 0.3, 0.5, 1.0])
def test_noise_of_the_weights_is_not_taken_for_single_tokens(scale: float) -> None:
    """It flips near-ties, where a token that is dropped goes whatever its lead."""
    for seed in range(6):
        report = judged(100 + seed, scale=scale)
        assert report.decision == "inconsistent"
        assert named(report) == ""


def test_a_text_whose_tokens_are_not_named_says_nothing_of_rare_ones() -> None:
    """It may have been tokenized in another way: the blind spot is stated."""
    rng = np.random.default_rng(5)
    rows = [row(rng, f"p{n}", scale=0.05, kind="rare", share=0.03) for n in range(24)]
    plan = make_plan(bank=())

    named, unnamed = (
        weigh(plan, Ledger(rows=tuple(rows))),
        weigh(plan, Ledger(rows=tuple(replace(one, rare=None) for one in rows))),
    )
    assert named.log_e > math.log(1000) > unnamed.log_e


def test_honest_replies_are_not_accused() -> None:
    """The columns are names, and no evidence of their own."""
    for seed in range(6):
        assert judged(seed, scale=0.05).decision == "consistent"


def test_three_tokens_by_hand() -> None:
    """At scale 1, where noise is the distribution itself: 0.6, 0.3 and 0.1."""
    log_p = [math.log(p) for p in (0.6, 0.3, 0.1)]
    score = ReplyScore(
        logprobs=(log_p[0], log_p[1]), ranks=(1, 2), entropies=(0.0, 0.0), top_ids=(0, 0),
        top_logprobs=(tuple(log_p), tuple(log_p)), candidate_logprobs=None,
    )  # fmt: skip
    one = int(np.argmin(np.abs(TEXT_SCALES - 1)))

    best, second = (dropped_cells(score, [t], 0.1)[one] for t in (0, 1))
    assert best == pytest.approx(math.log(0.9 * 0.6))
    assert second == pytest.approx(math.log(0.9 * 0.3 + 0.1 * 0.3 / 0.4))
    assert rare_cells(score, [1], 0.1)[one] == pytest.approx(math.log(0.9 * 0.3 + 0.1 / TOKENS))
    assert dropped_cells(score, [], 0.1)[one] == rare_cells(score, [], 0.1)[one] == 0.0


def test_one_strange_reply_decides_nothing_and_three_do() -> None:
    """Its tokens may have been named wrongly, and an unlikely one is worth any number of nats."""
    rng = np.random.default_rng(21)
    honest = [row(rng, f"p{n}", scale=0.05) for n in range(20)]
    strange = [
        replace(one, rare=tuple(cell + 60.0 for cell in one.text[REFERENCE])) for one in honest
    ]

    one, three = (
        weigh(make_plan(bank=()), Ledger(rows=(*strange[:n], *honest[n:]))).log_e for n in (1, 3)
    )
    assert one < math.log(1000) < three
