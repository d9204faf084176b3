"""What reported prompt tokens say: level under honest accounting, power, known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from verifier.evidence.prompt_counts import (
    BORROWED,
    GLITCH,
    LARGEST,
    OFFSETS,
    UNRELATED,
    Accounting,
    CountFit,
    count_log_likelihoods,
    fit_counts,
    read_accounting,
    speaking_counts,
)

PUBLISHED = (30, 44, 51, 80, 120, 33)
RENDERED = {
    "reference": PUBLISHED,
    "bos-doubled": tuple(n + 1 for n in PUBLISHED),
    "system-ignored": (30, 20, 51, 56, 120, 9),
    "last-turn-only": (30, 44, 31, 40, 41, 33),
    "hidden": tuple(n + 25 for n in PUBLISHED),
}


def log_ratio(reported: list[int | None], name: str) -> float:
    """Evidence for a rendering against the published one."""
    found = count_log_likelihoods(reported, RENDERED, unknown=frozenset({"hidden"}))
    return found[name] - found["reference"]


@pytest.mark.parametrize("offset", sorted(OFFSETS))
def test_a_constant_offset_is_accounting_not_a_fault(offset: int) -> None:
    """BOS counted or not, up to three more: no rendering is favoured beyond that prior."""
    reported: list[int | None] = [n + offset for n in PUBLISHED]

    for name in RENDERED:
        if name not in ("reference", "hidden"):
            assert log_ratio(reported, name) < math.log(6) + 0.1
    assert log_ratio(reported, "hidden") < 0
    assert read_accounting(reported, PUBLISHED) == Accounting(matched=6, of=6, offset=offset)


@pytest.mark.parametrize("name", ["system-ignored", "last-turn-only"])
def test_an_offset_that_varies_names_the_rendering(name: str) -> None:
    """Whatever constant comes on top: power against each that lengths tell apart."""
    for offset in OFFSETS:
        assert log_ratio([n + offset for n in RENDERED[name]], name) > 5


def test_a_hidden_prompt_of_any_length_shows_in_a_larger_constant() -> None:
    """Its words are unknown, so its length is."""
    for more in (5, 18, 60, 700):
        assert log_ratio([n + more for n in PUBLISHED], "hidden") > 4


def test_counts_alone_have_bounded_weight() -> None:
    """A gateway may count by another rendering than is served: then the replies must decide."""
    most = math.log((1 - BORROWED - UNRELATED) * len(RENDERED) / BORROWED) + 0.1

    for name, lengths in RENDERED.items():
        assert abs(log_ratio(list(lengths), name)) <= most


@pytest.mark.parametrize(
    "reported",
    [[None] * 6, [], [7] * 6, [0, 0, None, 0, 0, 0]],
    ids=["null", "none", "constant", "zeros"],
)
def test_missing_and_constant_counts_say_nothing(reported: list[int | None]) -> None:
    """Exactly nothing, for or against any rendering."""
    padded = reported or [None] * 6

    assert set(count_log_likelihoods(padded, RENDERED).values()) == {0.0}


def test_honest_counts_keep_their_level() -> None:
    """Under the stated null a mixture of ratios has mean one: 1 in 20 cross 20 at most."""
    rng = np.random.default_rng(5)
    names = [name for name in RENDERED if name not in ("reference", "hidden")]
    ratios = []
    for _ in range(3000):
        draw = rng.random()
        offset = rng.choice(list(OFFSETS), p=list(OFFSETS.values()))
        base = PUBLISHED
        if draw < BORROWED:
            base = RENDERED[names[int(rng.integers(len(names)))]]
        told = [int(n + offset) for n in base]
        if draw > 1 - UNRELATED:
            told = [int(n) for n in rng.integers(1, LARGEST, 6)]
        told = [
            int(rng.integers(1, LARGEST)) if rng.random() < GLITCH else n for n in told
        ]  # fmt: skip
        found = count_log_likelihoods(
            told, {name: RENDERED[name] for name in ["reference", *names]}
        )
        ratios.append(np.mean([math.exp(found[n] - found["reference"]) for n in names]))

    assert 0 < sum(ratio >= 20 for ratio in ratios) <= 3000 / 20


def test_other_tokenizers_counts_favour_no_fault() -> None:
    """Normalised counts match nothing: a tenth off, at every length, is no evidence."""
    reported: list[int | None] = [round(1.13 * n) + 2 for n in PUBLISHED]

    for name in ("bos-doubled", "system-ignored", "last-turn-only"):
        assert log_ratio(reported, name) < 1


def test_a_single_count_has_the_likelihood_written_out() -> None:
    """One count, two renderings: the formula by hand."""
    found = count_log_likelihoods([30], {"a": [30], "b": [99]})
    hit, miss = (1 - GLITCH) * LARGEST + GLITCH, GLITCH
    fit_a = 0.6 * hit + 0.4 * miss
    rest = BORROWED * (fit_a + miss) / 2 + UNRELATED

    assert found["a"] == pytest.approx(math.log((1 - BORROWED - UNRELATED) * fit_a + rest))
    assert found["b"] == pytest.approx(math.log((1 - BORROWED - UNRELATED) * miss + rest))


def test_a_prompt_that_a_template_refuses_speaks_against_it() -> None:
    """It could not have been served, so its count is unrelated."""
    found = count_log_likelihoods([30, 40], {"a": [30, 40], "b": [30, None]})

    assert found["a"] > found["b"] + 2


def test_accounting_without_counts_is_empty() -> None:
    """Nothing is matched, of nothing."""
    assert read_accounting([None, None], [3, 4]) == Accounting(matched=0, of=0, offset=0)


# -- the fit of one rendering ---------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 12, 40])
def test_a_rendering_that_is_counted_rarely_fails(count: int) -> None:
    """Level: one count in a hundred off, and a constant that honest hosts add."""
    rng, lengths = np.random.default_rng(count), [30 + 9 * n for n in range(count)]
    failed = 0
    for _ in range(400):
        off = np.where(rng.random(count) < GLITCH, rng.integers(1, 50, count), 0)
        told = [int(n) for n in np.array(lengths) + off + int(rng.choice([*OFFSETS]))]
        failed += fit_counts(told, lengths).fails(0.05)

    assert failed <= binom.ppf(0.999, 400, 0.05)


@pytest.mark.parametrize("name", ["reference", "system-ignored", "last-turn-only"])
def test_a_rendering_that_is_not_counted_fails(name: str) -> None:
    """Power: against each that lengths tell apart, on six counts."""
    told: list[int | None] = list(RENDERED[name])

    for other, lengths in RENDERED.items():
        fails = fit_counts(told, lengths).fails(0.05)
        assert fails is (other not in (name, *(("bos-doubled",) if name == "reference" else ())))


@pytest.mark.parametrize(
    ("off", "of", "tail"),
    [(1, 1, 0.01), (1, 5, 1 - 0.99**5), (2, 12, 1 - 0.99**12 - 12 * 0.01 * 0.99**11)],
)
def test_the_tail_of_counts_off_is_known_by_hand(off: int, of: int, tail: float) -> None:
    """Known answers: that so many or more of so many are off, each once in a hundred."""
    fit = CountFit(matched=of - off, of=of, constant=0, example=None)

    assert fit.fails(tail * 1.001)
    assert not fit.fails(tail * 0.999)
    assert not CountFit(matched=of, of=of, constant=0, example=None).fails(0.99)


def test_a_fit_says_which_count_is_not_its_own() -> None:
    """A count of 34 where 114 are rendered; one off in five is more than a glitch."""
    found = fit_counts([34, 121, 140, 99, None], [114, 120, 139, 98, 10])

    assert found == CountFit(matched=3, of=4, constant=1, example=(34, 114))
    assert found.fails(0.05)


def test_only_words_that_nobody_knows_have_a_constant_of_any_size() -> None:
    """And a prompt that the template refuses is no fit."""
    told: list[int | None] = [n + 57 for n in PUBLISHED]

    assert fit_counts(told, PUBLISHED).matched == 0
    assert fit_counts(told, PUBLISHED, free=True).matched == 6
    assert fit_counts([30, 40], [30, None]).matched == 1


def test_one_number_for_all_prompts_says_nothing() -> None:
    """However they are rendered; two prompts of one length are no such case."""
    assert speaking_counts([7, 7], {"a": [30, 40]}) == [None, None]
    assert speaking_counts([7, 9], {"a": [30, 40]}) == [7, 9]
    assert fit_counts([None, None], [30, 40]) == CountFit(matched=0, of=0, constant=0, example=None)
