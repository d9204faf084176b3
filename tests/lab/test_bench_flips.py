"""Flips of arithmetic: margins, tails and what routers do, on numbers that are made here."""

from __future__ import annotations

import numpy as np
import pytest

from verifier.lab.bench.flips import flip_margins, shares_of_routing, tabulate_flips, tail_of


def test_a_flip_is_as_large_as_what_the_exact_choice_has_over_the_other() -> None:
    """By the exact log-probabilities; nothing where both choose alike."""
    exact = np.array([[-0.1, -2.6, -9.0], [-1.0, -1.2, -1.4], [-3.0, -0.2, -4.0]])
    other = np.array([[-3.0, -0.5, -9.0], [-1.2, -1.3, -1.1], [-5.0, -0.1, -4.0]])
    margins = flip_margins(exact, other)

    assert margins == pytest.approx([2.5, 0.4, 0.0])
    assert tail_of(margins) == [0.66667, 0.33333, 0.33333, 0.33333]


def test_rerouting_is_counted_by_layer_and_by_position() -> None:
    """Another order of the same experts is none; two positions, two layers, four experts."""
    exact = np.array([[[4.0, 3.0, 1.0, 0.0]] * 2, [[0.0, 1.0, 2.0, 3.0]] * 2])
    other = exact.copy()
    other[0, 0] = [3.0, 4.0, 1.0, 0.0]
    other[1, 1] = [0.0, 2.5, 2.0, 3.0]
    found = shares_of_routing(exact, other, top_k=2)

    assert (found["rerouted"], found["positions"]) == (0.25, 0.5)
    assert found["near"] == 0.0
    assert found["evenness"] == pytest.approx(1.0)  # each expert is taken once in each layer


def test_a_near_tie_is_one_that_bfloat16_may_turn() -> None:
    """Between the last expert taken and the first left out; no other pair counts."""
    far = [8.0, 4.0, 3.9, 0.0]  # 0.1 apart, beside a rounding of 1/64
    near = [8.0, 4.0, 3.99, 0.0]
    equal = [8.0, 8.0, 3.0, 0.0]  # both are taken
    logits = np.array([[far], [near], [equal], [far]])

    assert shares_of_routing(logits, logits, top_k=2)["near"] == 0.25


def test_the_entropy_of_routers_is_that_of_their_probabilities() -> None:
    """All alike is the most there can be; one alone has none."""
    even, sure = np.zeros((3, 2, 16)), np.zeros((3, 2, 16))
    sure[..., 0] = 100.0

    assert shares_of_routing(even, even, top_k=4)["entropy"] == pytest.approx(np.log(16), abs=1e-5)
    assert shares_of_routing(sure, sure, top_k=4)["entropy"] == pytest.approx(0.0, abs=1e-9)


def test_the_tables_show_tails_and_routers() -> None:
    """A dense model has no router."""
    results = {
        "models": [
            {"name": "dense", "routing": None,
             "computations": [{"computed": "a", "positions": 7, "tail": [0.01, 0.002, 0.0, 0.0]}]},
            {"name": "experts", "computations": [], "routing": {
                "rerouted": 0.031, "positions": 0.4, "near": 0.02, "entropy": 2.5, "evenness": 0.9,
            }},
        ],
        "fidelity": {"agreement": 0.7, "divergence": 0.4},
    }  # fmt: skip
    told = tabulate_flips(results)

    assert "| dense | a | 7 | 1 % | 0.2 % | 0 % | 0 % |" in told
    assert "same token\nat 70 % of the places, and diverges from it by 0.4 nats" in told
    assert "| experts | 3.1 % | 40 % | 2 % | 2.50 | 0.90 |" in told
