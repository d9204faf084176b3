"""What reported prompt tokens say: level under honest accounting, power, known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from verifier.evidence.prompt_counts import (
    BORROWED,
    GLITCH,
    LARGEST,
    OFFSETS,
    UNRELATED,
    Accounting,
    count_log_likelihoods,
    read_accounting,
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
