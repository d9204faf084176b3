"""Single tokens dropped or put in, in greedy replies: told from noise of the weights, and named."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from audits import configure, host_with, run
from simulate import VOCABULARY, _score, case_of, decide, make_plan, replies, simulate_row

from verifier.checks import greedy_tokens
from verifier.checks.check import SINGLE
from verifier.checks.greedy_tokens import GLITCHES, log_e_contradicted, weigh_single
from verifier.evidence.ledger import (
    SAMPLER,
    TEXT_SCALES,
    Ledger,
    Row,
    dropped_cells,
    rare_cells,
    text_cells,
)
from verifier.evidence.ledger import VOCABULARY as TOKENS
from verifier.evidence.samplers import DROPPED, RARE
from verifier.records import REFERENCE, ReplyScore, Report
from verifier.verdict.combine import Combined, combine

RARE_NAMES = [f"rare token put in {share:g}" for share in RARE]
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
    single = {f"best token dropped {each:g}": dropped_cells(score, kept, each) for each in DROPPED}
    single |= {f"rare token put in {each:g}": rare_cells(score, kept, each) for each in RARE}
    text = {REFERENCE: text_cells(score, kept)} | {SAMPLER + n: c for n, c in single.items()}
    made = simulate_row(rng, name, scale=scale, tokens=40)
    return replace(made, text=text, single=single)


def unnamed(one: Row) -> Row:
    """The same reply as a text alone: its tokens are read from it."""
    return replace(one, single={n: c for n, c in one.single.items() if n.startswith("best")})


def bare(one: Row) -> Row:
    """The same reply before it was scored under every sampler of greedy replies."""
    return replace(one, text={REFERENCE: one.text[REFERENCE]})


def judged(seed: int, *, count: int = 24, **truth: object) -> Report:
    rng = np.random.default_rng(seed)
    return decided([row(rng, f"p{n}", **truth) for n in range(count)])  # type: ignore[arg-type]


def decided(rows: list[Row]) -> Report:
    return decide(make_plan(bank=()), Ledger(rows=tuple(rows)), outcomes=replies(rows))


def weigh(rows: Iterable[Row]) -> Combined:
    return combine(case_of(make_plan(bank=()), Ledger(rows=tuple(rows))))


def named(report: Report) -> str:
    return " ".join(f.name for f in report.findings if f.aspect == "sampler")


def ahead(one: Row, nats: float) -> tuple[float, ...]:
    return tuple(cell + nats for cell in one.text[REFERENCE])


# -- level ---------------------------------------------------------------------------------------


def test_honest_hosts_reach_the_evidence_at_most_as_often_as_promised() -> None:
    """At 1 in 20, at the honest scale and with as many contradicted replies as the null allows."""
    rng = np.random.default_rng(35)
    reached = 0
    for _ in range(60):
        rows = [
            replace(row(rng, f"p{n}", scale=0.07), outranked=int(rng.random() < GLITCHES))
            for n in range(12)
        ]
        reached += weigh(rows).of(greedy_tokens.CHECK).log_e >= math.log(20)
    told = rng.random((4000, 60)) < GLITCHES
    crossed = [
        max(log_e_contradicted(one[:n]) for n in range(0, 61, 4)) >= math.log(20)
        for one in told.tolist()
    ]

    assert reached <= 60 / 20 + 4
    assert sum(crossed) <= 4000 / 20


def test_honest_replies_are_not_accused() -> None:
    """The columns are names, and no evidence of their own."""
    for seed in range(6):
        assert judged(seed, scale=0.05).decision == "consistent"


@pytest.mark.parametrize("scale", [0.2, 0.3, 0.5, 1.0])
def test_noise_of_the_weights_is_not_taken_for_single_tokens(scale: float) -> None:
    """It flips near-ties, where a token that is dropped goes whatever its lead."""
    for seed in range(6):
        report = judged(100 + seed, scale=scale)
        assert report.decision == "inconsistent"
        assert named(report) == ""


@pytest.mark.parametrize("scale", [0.12, 0.2, 0.3])
def test_noise_above_the_honest_scale_is_not_called_single_tokens(scale: float) -> None:
    """It explains the replies as well, even where the policy's classes are excluded."""
    rng = np.random.default_rng(34)
    report = decided([bare(row(rng, f"p{n}", scale=scale)) for n in range(60)])

    assert not any(f.aspect == "sampler" for f in report.findings)


# -- power ---------------------------------------------------------------------------------------


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


def test_dropped_tokens_are_found_in_a_text_alone() -> None:
    """Of which nothing else is scored yet: one token in fifty, among forty replies."""
    rng = np.random.default_rng(31)
    rows = [row(rng, f"p{n}", scale=0.05, kind="drop", share=0.02) for n in range(40)]
    report = decided([bare(unnamed(one)) for one in rows])

    assert report.decision == "inconsistent"
    (found,) = [f for f in report.findings if f.aspect == "sampler"]
    assert (found.name, found.decision) == (SINGLE, "detected")
    assert not any(f.aspect in ("cause", "forged") for f in report.findings)


def test_what_the_endpoint_reports_of_its_own_tokens_is_evidence() -> None:
    """Greedy text that fits the weights, of which seven replies in twenty are contradicted."""
    rng = np.random.default_rng(32)
    told = [replace(bare(row(rng, f"p{n}", scale=0.05)), outranked=0) for n in range(20)]
    contradicted = [replace(one, outranked=int(n % 3 == 0)) for n, one in enumerate(told)]
    honest, found = decided(told), decided(contradicted)

    assert (honest.decision, found.decision) == ("consistent", "inconsistent")
    (single,) = [f for f in found.findings if f.aspect == "sampler"]
    assert (single.name, single.decision) == (SINGLE, "detected")
    assert "in 7 of 20 replies another token is given" in single.detail
    assert not any(f.aspect == "forged" for f in found.findings)


# -- known answer --------------------------------------------------------------------------------


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


def test_contradicted_replies_by_hand() -> None:
    """One of two replies, against one in two hundred: the mean over five bets."""
    bets = (0.05, 0.1, 0.2, 0.4, 0.8)
    expected = sum(bet / 0.005 * (1 - bet) / 0.995 for bet in bets) / 5

    assert log_e_contradicted([True, False]) == pytest.approx(math.log(expected))
    assert log_e_contradicted([]) == 0.0


def test_the_evidence_is_the_mean_of_what_each_kind_says() -> None:
    """Two columns of one kind, one of another, and no words of the endpoint's own."""
    honest = np.array([True, False])
    plain = np.array([[-1.0, -2.0]])
    columns = {name: (plain + gain, plain) for name, gain in {"a": 1.0, "b": 3.0, "c": 9.0}.items()}
    found = weigh_single(columns, {"a": "x", "b": "x", "c": "y"}, honest, [])

    of_x = (math.exp(1) + math.exp(3)) / 2
    assert found.log_e == pytest.approx(math.log((of_x + 1000 + 1) / 3))
    of_x, of_y = (math.exp(1) + math.exp(3)) / 2, math.exp(9)
    assert found.log_e_named == pytest.approx(math.log((of_x + of_y + 1) / 3))
    assert (found.contradicted, found.told) == (0, 0)


# -- one audit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [False, True])
def test_a_token_passed_over_now_and_then_keeps_an_audit_going_until_it_is_named(
    card: Path, tmp_path: Path, sampler: bool
) -> None:
    """The greedy replies exclude other weights long before; samples wait until this is settled."""
    with host_with("sampler:drop-best=0.05") as url:
        # a seed by which a token is passed over before the replies end
        report = run(configure(url, card, tmp_path / "run", sampler=sampler, seed=7))
    (finding,) = [f for f in report.findings if f.aspect == "sampler"]

    assert (report.decision, finding.decision) == ("inconsistent", "detected")
    assert finding.name.startswith("best token dropped 0.05")
    assert all(f.decision == "excluded" for f in report.findings if f.aspect == "noise")
    assert not [f for f in report.findings if f.aspect in ("cause", "forged")]


# -- what is said --------------------------------------------------------------------------------


def test_a_text_whose_tokens_are_not_named_says_nothing_of_rare_ones() -> None:
    """It may have been tokenized in another way: the blind spot is stated."""
    rng = np.random.default_rng(5)
    rows = [row(rng, f"p{n}", scale=0.05, kind="rare", share=0.03) for n in range(24)]

    told, read = (weigh(some).log_e for some in (rows, map(unnamed, rows)))
    assert told > math.log(1000) > read


def test_one_strange_reply_decides_nothing_and_three_do() -> None:
    """Its tokens may have been named wrongly, and an unlikely one is worth any number of nats."""
    rng = np.random.default_rng(21)
    honest = [row(rng, f"p{n}", scale=0.05) for n in range(20)]
    strange = [
        replace(one, single=one.single | dict.fromkeys(RARE_NAMES, ahead(one, 60)))
        for one in honest
    ]

    one, three = (weigh([*strange[:n], *honest[n:]]).log_e for n in (1, 3))
    assert one < math.log(1000) < three


def test_suspected_tokens_withhold_the_verdict_until_more_replies_settle_them() -> None:
    """Two contradicted replies of twelve are no proof, and ten clean ones no certificate."""
    rng = np.random.default_rng(33)
    rows = [replace(bare(row(rng, f"p{n}", scale=0.05)), outranked=int(n < 2)) for n in range(60)]
    suspected, settled = decided(rows[:12]), decided(rows)

    assert suspected.decision == "inconclusive"
    assert "undecided" in [f.decision for f in suspected.findings if f.name == SINGLE]
    assert settled.decision == "consistent"
    assert "undecided" not in [f.decision for f in settled.findings if f.name == SINGLE]
