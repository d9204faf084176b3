"""How often arithmetic alone changes a model's choice of a token, and by how much: the tail.

A mixture's router takes other experts for a rounding, which a dense model has no part like.
Measured by `reference/recipes/measure_flips.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from verifier.lab.bench.results import tabulate_rows

PART: Final = "flips"

#: Margins in nats that a flip is counted above.
MARGINS: Final = (0.0, 0.5, 1.0, 2.0)

#: Relative error of a number that bfloat16 rounds: half a unit in its last place.
BFLOAT16: Final = 2.0**-8

Floats = NDArray[np.floating[Any]]


def flip_margins(exact: Floats, other: Floats) -> Floats:
    """Of each position how far below the exact choice lies what the other computation chooses.

    Both are log-probabilities [positions, vocabulary]; 0 where both choose alike.
    """
    chosen = other.argmax(1)
    margins: Floats = exact.max(1) - exact[np.arange(len(exact)), chosen]
    return margins


def tail_of(margins: Floats) -> list[float]:
    """The share of positions with a flip of more than each of MARGINS."""
    return [round(float((margins > least).mean()), 5) for least in MARGINS]


def shares_of_routing(exact: Floats, other: Floats, *, top_k: int) -> dict[str, float]:
    """What routers do, of their logits [positions, layers, experts] in two computations.

    `rerouted`: positions and layers whose experts differ; `positions`: positions with any such
    layer; `near`: positions and layers where the last expert taken and the first left out lie
    within bfloat16's rounding; `entropy`: of the probabilities, in nats; `evenness`: of how often
    each expert is taken, as a share of the most that is possible.
    """
    ranked = np.sort(exact, axis=2)[..., ::-1]
    gap = ranked[..., top_k - 1] - ranked[..., top_k]
    near = gap <= BFLOAT16 * np.abs(ranked[..., top_k - 1 : top_k + 1]).max(2)
    taken, again = (_taken(logits, top_k) for logits in (exact, other))
    differs = (taken != again).any(2)
    p = np.exp(exact - exact.max(2, keepdims=True))
    p = p / p.sum(2, keepdims=True)
    load = taken.mean(0) / top_k  # [layers, experts], 1 together
    spread = -(load * np.log(np.maximum(load, 1e-12))).sum(1) / np.log(load.shape[1])
    found = {
        "rerouted": differs.mean(),
        "positions": differs.any(1).mean(),
        "near": near.mean(),
        "entropy": -(p * np.log(np.maximum(p, 1e-12))).sum(2).mean(),
        "evenness": spread.mean(),
    }
    return {name: round(float(value), 5) for name, value in found.items()}


def _taken(logits: Floats, top_k: int) -> NDArray[np.bool_]:
    taken = np.zeros(logits.shape, dtype=bool)
    np.put_along_axis(taken, np.argsort(-logits, axis=2, kind="stable")[..., :top_k], True, axis=2)
    return taken


def tabulate_flips(results: Mapping[str, Any]) -> str:
    """The tails of each model and pair of computations, what its routers do, and how near it is."""
    tails = tabulate_rows(
        ("model", "computed", "positions", *(f"flips > {least:g}" for least in MARGINS)),
        (
            (model["name"], one["computed"], one["positions"], *map(_share, one["tail"]))
            for model in results["models"]
            for one in model["computations"]
        ),
    )
    routed = tabulate_rows(
        ("model", "rerouted", "positions with any", "near ties", "entropy", "evenness of load"),
        (
            (
                model["name"], *(_share(model["routing"][k]) for k in _SHARES),
                f"{model['routing']['entropy']:.2f}", f"{model['routing']['evenness']:.2f}",
            )
            for model in results["models"] if model["routing"] is not None
        ),
    )  # fmt: skip
    like = results["fidelity"]
    near = (
        "On replies of the dense model that it did not learn from, the mixture chooses the same "
        f"token\nat {_share(like['agreement'])} of the places, and diverges from it by "
        f"{like['divergence']:.2g} nats a token."
    )
    return f"{tails}\n\n{routed}\n\n{near}"


_SHARES = ("rerouted", "positions", "near")


def _share(value: float) -> str:
    return f"{100 * value:.2g} %"
