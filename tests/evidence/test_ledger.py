"""The ledger: cells of both channels against slow and obvious forms, and its wire form."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import helmert
from scipy.special import log_softmax, softmax
from scipy.stats import binom, multivariate_t
from simulate import simulate_row

from verifier.errors import ConfigError
from verifier.evidence.e_values import best_scale, confidence_sequence
from verifier.evidence.ledger import (
    FLOOR,
    LOGPROB_DF,
    LOGPROB_SCALES,
    TEXT_SCALES,
    Ledger,
    Row,
    differing_cells,
    dropped_cells,
    ledger_from_json,
    ledger_to_json,
    logprob_cells,
    rare_cells,
    text_cells,
)
from verifier.records import ReplyScore

Array = NDArray[np.float64]

VOCABULARY = 30


def logits(tokens: int, *, seed: int, spread: float = 2.0) -> Array:
    return np.random.default_rng(seed).normal(0, spread, (tokens, VOCABULARY))


def score_of(z: Array, chosen: Array, *, k: int = 20) -> ReplyScore:
    """What an engine with the logits z [T, V] says of the tokens `chosen` [T]."""
    logp = log_softmax(z, axis=1)
    at = np.arange(len(z))
    return ReplyScore(
        logprobs=tuple(logp[at, chosen].tolist()),
        ranks=tuple(1 for _ in at),
        entropies=tuple(0.0 for _ in at),
        top_ids=tuple(z.argmax(axis=1).tolist()),
        top_logprobs=tuple(map(tuple, -np.sort(-logp, axis=1)[:, :k])),
        candidate_logprobs=None,
    )


def exact_cells(z: Array, chosen: Array) -> Array:
    """log p at each position and scale [T, S], from the whole vocabulary."""
    found = np.empty((len(z), len(TEXT_SCALES)))
    for t, token in enumerate(chosen):
        sampled = softmax(z[t])[token]
        for s, scale in enumerate(TEXT_SCALES):
            found[t, s] = math.log((1 - FLOOR) * softmax(z[t] / scale)[token] + FLOOR * sampled)
    return found


def every_token(z: Array, *, k: int) -> Array:
    """Probability [V, S] of each token at one position with logits z [V]."""
    cells = [text_cells(score_of(z[None], np.array([y]), k=k), [0]) for y in range(VOCABULARY)]
    return np.exp(np.array(cells))


# -- greedy text -------------------------------------------------------------------------------


def test_text_cells_are_the_softmax_of_the_scaled_logits() -> None:
    """Where the engine names the whole vocabulary, they are exact at every scale."""
    z = logits(8, seed=1)
    chosen = np.random.default_rng(2).integers(0, VOCABULARY, 8)
    found = text_cells(score_of(z, chosen, k=VOCABULARY), range(8))

    np.testing.assert_allclose(found, exact_cells(z, chosen).sum(axis=0), rtol=1e-9)


@pytest.mark.parametrize("spread", [0.3, 2.0, 8.0], ids=["flat", "as usual", "peaked"])
def test_text_cells_from_the_likeliest_tokens_err_within_their_bound(spread: float) -> None:
    """Never above the exact value; below it by no more than the bound on what is not named."""
    z = logits(1, seed=3, spread=spread)
    p, chosen = np.sort(softmax(z[0]))[::-1], z.argmax(axis=1)
    rest = p[5:].sum()
    for s, (scale, found) in enumerate(
        zip(TEXT_SCALES, text_cells(score_of(z, chosen, k=5), [0]), strict=True)
    ):
        exact = exact_cells(z, chosen)[0, s]
        overcount = rest * p[4] ** (1 / scale - 1) / (p ** (1 / scale)).sum()
        assert -1e-9 <= exact - found <= math.log1p(overcount) + 1e-9


def test_text_cells_are_exact_at_scale_one_however_few_tokens_are_named() -> None:
    """There the rest of the mass is known: one less those named."""
    z = logits(6, seed=4)
    chosen = np.random.default_rng(5).integers(0, VOCABULARY, 6)
    found = text_cells(score_of(z, chosen, k=2), range(6))

    assert TEXT_SCALES[-1] == 1.0
    assert found[-1] == pytest.approx(log_softmax(z, axis=1)[np.arange(6), chosen].sum())


def test_text_cells_are_as_good_as_exact_at_small_scales() -> None:
    """Up to 0.2, with 20 of 30 tokens named, to a thousandth of a nat in a reply of 30 tokens."""
    z = logits(30, seed=6)
    chosen = z.argmax(axis=1)
    found = np.array(text_cells(score_of(z, chosen), range(30)))
    error = exact_cells(z, chosen).sum(axis=0) - found

    assert error[TEXT_SCALES <= 0.2].max() < 1e-3


@pytest.mark.parametrize("k", [3, 20, VOCABULARY])
def test_a_text_column_is_a_distribution_over_tokens(k: int) -> None:
    """Sums to 1 over the vocabulary at scale 1 or when all is named, and nowhere to more."""
    total = every_token(logits(1, seed=7)[0], k=k).sum(axis=0)

    assert total.max() <= 1 + 1e-9
    assert total[-1] == pytest.approx(1)
    if k == VOCABULARY:
        np.testing.assert_allclose(total, 1, rtol=1e-9)


def test_a_text_column_without_its_floor_is_the_noise_model_alone() -> None:
    """Take the share of the reference's own distribution away and softmax(z / scale) is left."""
    z = logits(1, seed=8)[0]
    bare = (every_token(z, k=VOCABULARY) - FLOOR * softmax(z)[:, None]) / (1 - FLOOR)

    for s in (0, 13, 26, 40):
        np.testing.assert_allclose(bare[:, s], softmax(z / TEXT_SCALES[s]), atol=1e-12)


def test_a_token_far_from_any_choice_costs_a_column_no_more_than_the_floor_allows() -> None:
    """At scale 0.01 a token 30 nats short costs log(1 / FLOOR) over scale 1, not 3000."""
    z = np.zeros((1, VOCABULARY))
    z[0, 1:] = -30.0
    found = text_cells(score_of(z, np.array([3])), [0])

    assert found[-1] - found[0] == pytest.approx(math.log(1 / FLOOR), abs=1e-6)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 5.0, 30.0]), st.integers(1, 30))
def test_the_floor_bounds_what_a_position_says_between_any_two_scales(
    seed: int, spread: float, k: int
) -> None:
    """At most log(1 / FLOOR) and the log of how much a scale can favour the likeliest token."""
    z = logits(1, seed=seed, spread=spread)
    chosen = np.array([seed % VOCABULARY])
    found = text_cells(score_of(z, chosen, k=k), [0])
    favour = math.log((1 - FLOOR) / softmax(z[0]).max() + FLOOR)

    assert max(found) - min(found) <= math.log(1 / FLOOR) + favour + 1e-9


@pytest.mark.parametrize("index", [24, 30, 36])
def test_greedy_tokens_of_noisy_logits_come_as_often_as_their_cell_says(index: int) -> None:
    """Gumbel-max: argmax(z + scale x Gumbel) simulated; bounds at the 99.99 % quantile."""
    draws, scale = 20_000, TEXT_SCALES[index]
    rng = np.random.default_rng(index)
    z = np.array([2.0, 1.8, 1.5, 1.0, 0.0, -1.0] + [-20.0] * (VOCABULARY - 6))
    noisy = z + scale * rng.gumbel(size=(draws, VOCABULARY))
    counts = np.bincount(noisy.argmax(axis=1), minlength=VOCABULARY)
    probabilities = every_token(z, k=VOCABULARY)[:, index]

    for count, p in zip(counts, probabilities, strict=True):
        # FLOOR: the model's own share that no noise brings about
        assert binom.ppf(5e-5, draws, max(p - FLOOR, 0)) <= count
        assert count <= binom.ppf(1 - 5e-5, draws, p + FLOOR)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("spread", [0.3, 2.0, 8.0], ids=["flat", "as usual", "peaked"])
def test_from_few_tokens_no_scale_gains_on_the_true_one(k: int, spread: float) -> None:
    """The mean, over every token there can be, of each column's ratio to that of the host.

    It is 1 but for the share of scale 1, whose weight among the named is not known to the last
    digit: measured 6e-5 at most.
    """
    for seed in range(20):
        z = logits(1, seed=seed, spread=spread)
        truth = every_token(z[0], k=VOCABULARY)  # [V, S]
        cells = np.array([few_cells(z, y, k=k) for y in range(VOCABULARY)])
        means = np.einsum("vs,vas->as", truth, np.exp(cells[:, :, None] - cells[:, None, :]))

        assert means.max() <= 1 + 1e-4
        assert means.min() >= 1 - 1e-4


def test_a_bound_on_what_is_not_named_would_accuse_honest_hosts() -> None:
    """Why few tokens are read otherwise: among flat ones it favours scale 1 over the true one."""
    z = logits(1, seed=3, spread=0.3)
    truth = every_token(z[0], k=VOCABULARY)
    cells = np.log(every_token(z[0], k=4))
    at = int(np.searchsorted(TEXT_SCALES, 0.14))

    assert truth[:, at] @ np.exp(cells[:, -1] - cells[:, at]) > 1.2


def few_cells(z: Array, token: int, *, k: int) -> Array:
    order = np.argsort(-z[0])
    rank = int(np.flatnonzero(order == token)[0]) + 1
    score = score_of(z, np.array([token]), k=k)
    return np.array(text_cells(replace(score, few=True, ranks=(min(rank, k + 1),)), [0]))


def test_a_token_beyond_the_few_named_says_nothing() -> None:
    """Of no column: neither of noise nor of single tokens."""
    z = logits(1, seed=5)
    last = int(z[0].argmin())
    score = replace(score_of(z, np.array([last]), k=3), few=True, ranks=(4,))

    assert text_cells(score, [0]) == (0.0,) * len(TEXT_SCALES)
    assert dropped_cells(score, [0], 0.1) == rare_cells(score, [0], 0.1) == text_cells(score, [0])
    assert differing_cells(score, [0])[-1] > 0.1


def test_of_all_tokens_few_are_as_good_as_exact() -> None:
    """Where the vocabulary has no more, both readings are one."""
    z = logits(8, seed=1)
    chosen = np.random.default_rng(2).integers(0, VOCABULARY, 8)
    score = score_of(z, chosen, k=VOCABULARY)

    np.testing.assert_allclose(
        text_cells(replace(score, few=True), range(8)), text_cells(score, range(8)), rtol=1e-9
    )


def test_only_the_positions_kept_are_in_a_cell() -> None:
    """A cell is the sum over them; positions left out say nothing."""
    z = logits(5, seed=9)
    chosen = np.random.default_rng(10).integers(0, VOCABULARY, 5)
    score = score_of(z, chosen)
    single = np.array([text_cells(score, [t]) for t in range(5)])

    np.testing.assert_allclose(text_cells(score, [0, 3]), single[[0, 3]].sum(axis=0))
    assert text_cells(score, []) == (0.0,) * len(TEXT_SCALES)


@pytest.mark.parametrize("scale", [0.05, 0.2, 0.6])
def test_the_scale_of_noisy_greedy_text_is_found(scale: float) -> None:
    """Power: within a quarter of the truth after 60 replies."""
    rng = np.random.default_rng(11)
    rows = np.array([simulate_row(rng, "p", scale=scale).text["reference"] for _ in range(60)])

    assert best_scale(rows, TEXT_SCALES) == pytest.approx(scale, rel=0.25)


# -- reported log-probabilities ----------------------------------------------------------------


def reported(
    seed: int, *, scale: float, positions: int = 20, tokens: int = 5
) -> tuple[list[list[float]], list[list[float]]]:
    """Claims that differ from the reference's by Student-t noise of `scale`, and the latter."""
    rng = np.random.default_rng(seed)
    known = -np.sort(rng.exponential(2.0, (positions, tokens)), axis=1)
    noise = scale * multivariate_t(shape=np.eye(tokens), df=LOGPROB_DF, seed=rng).rvs(positions)
    return (known + noise).tolist(), known.tolist()


def cells_of(told: Any, known: Any) -> Array:
    found = logprob_cells(told, known)
    assert not isinstance(found, str), found
    return np.array(found)


def test_logprob_cells_are_the_density_of_a_multivariate_t() -> None:
    """scipy's, in orthonormal coordinates of the differences, up to what no scale changes."""
    told, known = reported(1, scale=0.3)
    told[3], known[3] = told[3][:2], known[3][:2]
    expected = np.zeros(len(LOGPROB_SCALES))
    for claims, truth in zip(told, known, strict=True):
        basis = helmert(len(claims))  # [k - 1, k], rows orthonormal and orthogonal to the shift
        point = basis @ (np.array(claims) - np.array(truth))
        expected += [
            multivariate_t.logpdf(point, shape=np.eye(len(point)) * s**2, df=4)
            for s in LOGPROB_SCALES
        ]
    found = cells_of(told, known)

    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-8)


def test_a_shift_of_a_whole_position_changes_no_logprob_cell() -> None:
    """Log-probabilities are logits up to a constant, and a host may leave it out."""
    told, known = reported(2, scale=0.2)
    shifted = [[v + 3.0 * n for v in row] for n, row in enumerate(told)]

    np.testing.assert_allclose(cells_of(shifted, known), cells_of(told, known), atol=1e-6)


def test_the_order_in_which_tokens_are_named_changes_no_logprob_cell() -> None:
    """The density is the same in every direction."""
    told, known = reported(3, scale=0.2)
    turned = cells_of([row[::-1] for row in told], [row[::-1] for row in known])

    np.testing.assert_allclose(turned, cells_of(told, known))


def test_positions_that_name_fewer_than_two_tokens_are_passed_over() -> None:
    """One value is only a shift."""
    told, known = reported(4, scale=0.2)

    np.testing.assert_array_equal(
        cells_of([[], [-1.0], *told], [[], [-7.0], *known]), cells_of(told, known)
    )


@pytest.mark.parametrize("told", [[], [[]], [[-0.1], [-0.2], []]])
def test_too_few_named_tokens_are_a_reason_and_no_cells(told: list[list[float]]) -> None:
    """Unknown is not zero."""
    assert logprob_cells(told, told) == "fewer than two tokens named at every position"


def test_the_interval_of_the_logprob_scale_keeps_its_level() -> None:
    """Coverage over looks after each reply, on claims with noise of a known scale."""
    truth, ever = float(LOGPROB_SCALES[30]), 0
    for seed in range(100):
        rows = np.array(
            [cells_of(*reported(100 * seed + n, scale=truth, positions=4)) for n in range(8)]
        )
        found = [confidence_sequence(rows[:n], LOGPROB_SCALES, level=0.9) for n in range(1, 9)]
        ever += any(f is not None and not f.lower <= truth <= (f.upper or math.inf) for f in found)

    assert ever <= binom.ppf(0.999, 100, 0.1)


@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
def test_the_scale_of_reported_logprobs_is_found(scale: float) -> None:
    """Power: within a fifth of the truth from 200 positions."""
    told, known = reported(5, scale=scale, positions=200)

    assert best_scale(cells_of(told, known)[None], LOGPROB_SCALES) == pytest.approx(scale, rel=0.2)


@pytest.mark.parametrize("temperature", [0.01, 0.3, 0.7, 1.5, 2.0])
def test_logprobs_divided_by_a_temperature_are_a_reason(temperature: float) -> None:
    """They are processed, not raw, and say nothing of the weights; the reason names the slope."""
    told, known = reported(6, scale=0.02)
    scaled = [[v / temperature for v in row] for row in told]
    found = logprob_cells(scaled, known)

    assert isinstance(found, str)
    said = re.search(r"scaled by about ([\d.]+),", found)
    assert said is not None
    assert float(said[1]) == pytest.approx(1 / temperature, rel=0.03)


def test_one_hot_logprobs_are_a_reason() -> None:
    """Certain of the first token and of nothing else: sampled at temperature 0."""
    _, known = reported(7, scale=0.0)
    found = logprob_cells([[0.0] + [-100.0] * 4 for _ in known], known)

    assert isinstance(found, str)
    assert "not the model's own" in found


def test_logprobs_that_are_all_alike_are_a_reason() -> None:
    """A filler is not noise."""
    _, known = reported(8, scale=0.0)
    found = logprob_cells([[-0.5] * 5 for _ in known], known)

    assert isinstance(found, str)
    assert "all alike" in found


@pytest.mark.parametrize("scale", [0.0, 0.01, 0.1, 0.5, 1.0, 3.0])
def test_noise_alone_is_never_taken_for_processing(scale: float) -> None:
    """However large, it gives cells: else a worse host would be harder to accuse."""
    for seed in range(30):
        told, known = reported(seed, scale=scale)
        assert not isinstance(logprob_cells(told, known), str)


# -- rows and the wire form --------------------------------------------------------------------


def make_row(name: str, seed: int, *, logprob: bool = True, builds: tuple[str, ...] = ()) -> Row:
    rng = np.random.default_rng(seed)
    return simulate_row(
        rng, name, scale=0.2, tokens=5, builds=builds, logprob_scale=0.1 if logprob else None
    )


LEDGER = Ledger(
    rows=(
        make_row("a", 1, builds=("int4",)),
        make_row("b", 2, logprob=False),
        make_row("c", 3, builds=("int4", "fp8")),
    )
)


def test_a_channel_holds_the_rows_that_have_it_in_their_order() -> None:
    """What was not scored is missing, not zero."""
    a, b, c = LEDGER.rows

    np.testing.assert_array_equal(LEDGER.text(), [r.text["reference"] for r in (a, b, c)])
    np.testing.assert_array_equal(LEDGER.text("int4"), [r.text["int4"] for r in (a, c)])
    np.testing.assert_array_equal(LEDGER.logprob(), [a.logprob, c.logprob])


def test_an_empty_channel_has_no_rows_but_all_its_scales() -> None:
    """So that sums over it are zeros of the right shape."""
    assert LEDGER.text("int2").shape == (0, len(TEXT_SCALES))
    assert Ledger(rows=()).logprob().shape == (0, len(LOGPROB_SCALES))


def test_a_ledger_comes_back_from_json_as_it_was() -> None:
    """To the last bit, through text."""
    text = json.dumps(ledger_to_json(LEDGER), allow_nan=False)

    assert ledger_from_json(json.loads(text), "here") == LEDGER


def test_scales_that_differ_in_their_last_digits_are_the_same_scales() -> None:
    """Powers are not rounded alike on every machine."""
    value = ledger_to_json(LEDGER)
    value["text_scales"] = [s * (1 + 1e-14) for s in value["text_scales"]]

    assert ledger_from_json(value, "here") == LEDGER


@pytest.mark.parametrize(
    ("place", "put", "says"),
    [
        (["schema_version"], 2, "schema_version: this version reads 1, got 2"),
        (["schema_version"], None, "schema_version: input should be a valid integer, got None"),
        (["text_scales", 3], 0.5, "text_scales are not the 41 from 0.01 to 1"),
        (["text_scales", 3], 0.0142, "text_scales"),
        (["text_scales"], [0.01, 1.0], "text_scales"),
        (["text_scales"], None, "text_scales: input should be a list, got None"),
        (["text_scales", 3], "wide", "text_scales"),
        (["logprob_scales", 0], 0.5, "logprob_scales are not the 61 from 0.00316 to 3.16"),
        (["rows"], None, "rows: input should be a list, got None"),
        (["rows", 0], "row", "rows[0]: input should be an object, got 'row'"),
        (["rows", 0, "tokens"], "many", "rows[0].tokens: input should be a valid integer"),
        (["rows", 0, "tokens"], -1, "rows[0].tokens: input should be greater than or equal to 0"),
        (["rows", 0, "text"], [1.0], "rows[0].text: input should be an object"),
        (["rows", 0, "text", "reference"], [0.0], "rows[0].text.reference: "),
        (["rows", 0, "text", "reference", 5], math.nan, "reference[5]: input should be a finite"),
        (["rows", 0, "text", "reference", 5], 1e300, "reference[5]: input should be less than"),
        (["rows", 0, "logprob"], [0.0] * 60, "rows[0].logprob: "),
        (["rows", 0, "logprob", 5], -math.inf, "rows[0].logprob[5]: input should be a finite"),
        (["rows", 0, "logprob", 5], None, "rows[0].logprob[5]: input should be a valid number"),
        (["rows", 0, "surprise"], 1, "rows[0].surprise: unknown key"),
    ],
)
def test_a_ledger_that_is_not_ours_is_refused(place: list[Any], put: Any, says: str) -> None:
    """With the place and what to do, in one line."""
    value = copy.deepcopy(ledger_to_json(LEDGER))
    value["rows"] = json.loads(json.dumps(value["rows"]))
    inner: Any = value
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = put

    with pytest.raises(ConfigError, match=r"^run/ledger\.json: ") as raised:
        ledger_from_json(value, "run/ledger.json")
    assert says in str(raised.value)
    assert "score" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["probe_id", "tokens", "left_out", "text", "logprob"])
def test_a_row_that_lacks_a_field_is_refused(key: str) -> None:
    """Missing is not a default."""
    value = ledger_to_json(LEDGER)
    del value["rows"][1][key]

    with pytest.raises(ConfigError, match=rf"^here: rows\[1\]\.{key}: missing"):
        ledger_from_json(value, "here")


def test_a_row_is_written_as_its_fields_are() -> None:
    """As `asdict` has them, in their order."""
    row = simulate_row(np.random.default_rng(0), "p", scale=0.1, habit="right", builds=("b",))
    (written,) = ledger_to_json(Ledger(rows=(row,)))["rows"]

    assert row.reported is not None
    assert json.dumps(written) == json.dumps(asdict(row))
