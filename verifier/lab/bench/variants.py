"""How far each known variant moves the weights and what a model says: arithmetic and table.

Measured by `reference/recipes/measure_variants.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from verifier.lab.bench.results import tabulate_rows
from verifier.records import ReplyScore
from verifier.reference.variants import VARIANTS

PART: Final = "variants"


def shift_of(before: Sequence[ReplyScore], after: Sequence[ReplyScore]) -> float:
    """Root mean square change of the log-probabilities of the same replies' tokens (nats)."""
    pairs = zip(before, after, strict=True)
    changes = np.concatenate([np.subtract(b.logprobs, a.logprobs) for a, b in pairs])
    return float(np.sqrt(np.mean(np.square(changes))))


def tabulate_variants(results: Mapping[str, Any]) -> str:
    """Each variant with its errors, in the order of the bank; "-" where it cannot be made."""
    head = ("build", "class", "error of the weights", "of down_proj alone", "shift (nats)")
    measured = {one["name"]: one for one in results["variants"]}
    return tabulate_rows(
        head,
        (
            (name, VARIANTS[name].family, *(_figure(measured[name][key]) for key in _FIGURES))
            for name in VARIANTS
            if name in measured
        ),
    )


_FIGURES = ("error", "error_down", "shift")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
