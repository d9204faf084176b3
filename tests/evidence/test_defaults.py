"""What a host decodes greedily under where no request says so: told by replies, and paid for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from simulate import VOCABULARY, _score, make_calibration

from verifier.evidence.defaults import BEFORE_OR_AFTER, cost_of_choice, judge_by_default
from verifier.evidence.ledger import DEFAULT, LOGPROB_SCALES, TEXT_SCALES, Ledger, Row, text_cells
from verifier.evidence.noise import log_e_noise
from verifier.evidence.samplers import Sampler, greedy_defaults
from verifier.records import REFERENCE

CHANNEL = make_calibration().text
NAME = "presence penalty 1"
TOKENS = 24


def drawn(rng: np.random.Generator, name: str, *, penalty: float, scale: float) -> Row:
    """A greedy reply under a presence penalty, scored without one and under one of 1."""
    logits = rng.normal(0, 1.5, (TOKENS, VOCABULARY))
    logits += 3 * (np.arange(VOCABULARY) < 4)  # few words that come again
    noisy = logits + rng.gumbel(0, scale, logits.shape)
    said, before, chosen = np.zeros(VOCABULARY), [], []
    for at in range(TOKENS):
        before.append(said.copy())
        chosen.append(int((noisy[at] - penalty * said).argmax()))
        said[chosen[-1]] = 1
    picked, seen = np.array(chosen), np.array(before)
    text = {
        REFERENCE: text_cells(_score(logits, picked), range(TOKENS)),
        DEFAULT + NAME: text_cells(_score(logits - seen, picked), range(TOKENS)),
    }
    return Row(
        probe_id=name, tokens=TOKENS, left_out=0, text=text, logprob=None, logprob_problem="none",
        outranked=3,
    )  # fmt: skip


def ledger_of(rng: np.random.Generator, count: int, *, penalty: float, scale: float) -> Ledger:
    return Ledger(
        rows=tuple(drawn(rng, f"p{n}", penalty=penalty, scale=scale) for n in range(count))
    )


def evidence(ledger: Ledger) -> float:
    """Of noise above the honest scale, by the column that was chosen, and paid for."""
    judged, _ = judge_by_default(ledger, [NAME], CHANNEL)
    return log_e_noise(judged.text(), TEXT_SCALES, CHANNEL) - cost_of_choice([NAME])


# -- level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_an_honest_host_is_accused_at_most_at_the_rate_promised(penalty: float) -> None:
    """With the publisher's default or without, at the edge of honest noise and the worst look."""
    rng = np.random.default_rng(2)
    accused, audits = 0, 80
    for _ in range(audits):
        ledger = ledger_of(rng, 10, penalty=penalty, scale=CHANNEL.honest_scale)
        looks = [Ledger(rows=ledger.rows[:n]) for n in (1, 2, 4, 6, 10)]
        accused += max(map(evidence, looks)) >= math.log(20)

    assert accused <= audits / 20 + 5


# -- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_other_weights_are_found_beside_a_default(penalty: float) -> None:
    """And so is what the host decodes under."""
    rng = np.random.default_rng(3)
    found = [ledger_of(rng, 4, penalty=penalty, scale=0.6) for _ in range(10)]

    assert all(evidence(ledger) >= math.log(1000) for ledger in found)
    chosen = [judge_by_default(ledger, [NAME], CHANNEL)[1] for ledger in found]
    assert chosen.count(NAME if penalty else "") >= 9


def test_a_penalty_that_the_publisher_does_not_have_is_found() -> None:
    """It is neither the weights as they are nor the default."""
    ledger = ledger_of(np.random.default_rng(4), 8, penalty=3.0, scale=0.05)

    assert evidence(ledger) >= math.log(1000)


# -- known answer --------------------------------------------------------------------------------


def test_the_likeliest_column_takes_the_place_of_the_published_one() -> None:
    """By hand: a nat likelier at every scale; what the host says of its tokens is set aside."""
    flat = tuple(-3.0 for _ in TEXT_SCALES)
    better, same = tuple(-2.0 for _ in TEXT_SCALES), "sampler:presence penalty 1"
    row = Row(
        probe_id="a", tokens=5, left_out=0, text={REFERENCE: flat, DEFAULT + NAME: better,
        same: better}, logprob=tuple(0.0 for _ in LOGPROB_SCALES), logprob_problem=None,
        outranked=1,
    )  # fmt: skip
    judged, name = judge_by_default(Ledger(rows=(row,)), [NAME], CHANNEL)
    (put,) = judged.rows

    assert name == NAME
    assert put.text == {REFERENCE: better, DEFAULT + NAME: better}
    assert (put.logprob, put.logprob_problem, put.outranked) == (None, BEFORE_OR_AFTER, None)
    worse = replace(row, text={REFERENCE: better, DEFAULT + NAME: flat})
    unscored = replace(row, text={REFERENCE: flat})
    for ledger in (Ledger(rows=(worse,)), Ledger(rows=(unscored,)), Ledger(rows=())):
        assert judge_by_default(ledger, [NAME], CHANNEL) == (ledger, "")
    assert cost_of_choice([]) == 0
    assert cost_of_choice([NAME]) == pytest.approx(math.log(2))


def test_what_a_host_may_decode_under_is_what_the_publisher_has_and_no_request_says() -> None:
    """Each alone and all together; nothing else moves the likeliest token."""
    card = {"temperature": 0.7, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1}

    assert greedy_defaults({"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.0}) == {}
    assert greedy_defaults(card) == {"repetition penalty 1.1": Sampler(repetition_penalty=1.1)}
    assert list(greedy_defaults(card | {"presence_penalty": 0.5})) == [
        "repetition penalty 1.1", "presence penalty 0.5",
        "repetition penalty 1.1, presence penalty 0.5",
    ]  # fmt: skip
    assert greedy_defaults(card, sent=["repetition_penalty"]) == {}
