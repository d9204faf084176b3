"""How soon greedy replies of two stacks leave each other: the pairs that were measured.

Every stack answers the same prompts, by generating; of each pair is kept where the one's replies
leave the other's, within the window. Measured by `reference/recipes/measure_hazards.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist, median
from typing import Any, Final

import numpy as np

from verifier.evidence.hazards import (
    KINDS,
    Kind,
    Leaving,
    compare,
    hazard_of,
    leave_paths,
    leaving_of,
)
from verifier.lab.bench.results import tabulate_rows

PART: Final = "hazards"

#: What audits of replies drawn again are: of each pair and trusted host so many, of so many replies
#: at most, at this error rate.
AUDITS: Final = 10
REPLIES: Final = 60
ALPHA: Final = 0.001

#: Coverage of each bound of a pair's hazard.
LEVEL: Final = 0.975


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """A stack, and its greedy replies, each with its end of turn where it came to it."""

    name: str
    role: str  # honest, or the class of its build
    replies: tuple[tuple[int, ...], ...]


def pair_stacks(stacks: Sequence[Spoken]) -> list[dict[str, Any]]:
    """Each two honest stacks, and each other stack beside each honest one, as they are kept.

    Of each reply how many tokens it was at risk; below 0 where it left at the last of them.
    """
    honest = [one for one in stacks if one.role == "honest"]
    pairs = [*combinations(honest, 2)]
    pairs += [(one, other) for other in stacks if other.role != "honest" for one in honest]
    return [
        {
            "stacks": [one.name, other.name], "role": other.role,
            "leaving": [leave_paths([path], reply).told
                        for path, reply in zip(one.replies, other.replies, strict=True)],
        }
        for one, other in pairs
    ]  # fmt: skip


def measure_pairs(model: Mapping[str, Any], *, role: str) -> dict[str, list[Leaving]]:
    """The pairs of honest stacks; or those of another role, each beside each honest one."""
    return {
        " and ".join(pair["stacks"]): [
            leaving_of(n) for n in pair["leaving"]
        ]
        for pair in model["pairs"] if pair["role"] == role
    }  # fmt: skip


def bound_hazard(rows: Sequence[Leaving]) -> tuple[float, float]:
    """Lower and upper bound of a pair's hazard, from how its replies differ among each other.

    A ratio of two means over independent replies: normal, with the variance of left - hazard *
    exposure, whatever the hazards of single replies are. Where none left, as of a Poisson count.
    """
    exposed = sum(row.exposure for row in rows)
    hazard = hazard_of(rows)
    if hazard == 0:
        return 0.0, -math.log1p(-LEVEL) / exposed
    squares = sum((row.left - hazard * row.exposure) ** 2 for row in rows)
    error = math.sqrt(squares * len(rows) / (len(rows) - 1)) / exposed
    width = NormalDist().inv_cdf(LEVEL) * error
    return max(0.0, hazard - width), hazard + width


def honest_hazard(model: Mapping[str, Any]) -> float:
    """The largest hazard that two honest stacks may have, of all pairs."""
    pairs = measure_pairs(model, role="honest").values()
    return max(bound_hazard(rows)[1] for rows in pairs)


def least_hazard(model: Mapping[str, Any], *, role: str) -> float:
    """The least that a stack of a role may have against an honest one, of all pairs."""
    pairs = measure_pairs(model, role=role).values()
    return min(bound_hazard(rows)[0] for rows in pairs)


def replay(model: Mapping[str, Any], *, seed: int) -> list[dict[str, Any]]:
    """Targets of each pair judged from its replies, drawn again, beside a trusted host that repeats
    itself exactly and one that is the noisiest of honest stacks: for each build and for honest
    stacks how many were told apart or called alike within REPLIES, and after how many."""
    rng = np.random.default_rng(seed)
    honest = measure_pairs(model, role="honest")
    ranked = sorted(honest, key=lambda name: hazard_of(honest[name]))
    found: dict[str, list[tuple[int | None, int | None]]] = {}
    for role in dict.fromkeys(pair["role"] for pair in model["pairs"]):
        for pair, rows in measure_pairs(model, role=role).items():
            name = role if role == "honest" else pair.split(" and ")[1].partition("-bfloat16")[0]
            for beside in (honest[ranked[0]], honest[ranked[-1]]):
                for _ in range(AUDITS):
                    some = rng.integers(len(rows), size=REPLIES)
                    drawn = [rows[n] for n in some], [beside[n] for n in some]
                    found.setdefault(name, []).append(_audit(*drawn, kind=KINDS[model["name"]]))
    return [
        {
            "target": name, "audits": len(each),
            "differs": [one for one, _ in each if one is not None],
            "alike": [other for _, other in each if other is not None],
        }
        for name, each in found.items()
    ]  # fmt: skip


def _audit(
    target: Sequence[Leaving], itself: Sequence[Leaving], *, kind: Kind
) -> tuple[int | None, int | None]:
    """After how many replies it differs, and is alike; looked at after every fourth."""
    found: list[int | None] = [None, None]
    for n in range(4, len(target) + 1, 4):
        seen = compare(target[:n], itself[:n], kind=kind, same_model=True)
        for which, log_e in enumerate((seen.log_e, seen.log_e_alike)):
            if found[which] is None and log_e is not None and log_e >= math.log(1 / ALPHA):
                found[which] = n
    return found[0], found[1]


def tabulate_hazards(results: Mapping[str, Any]) -> str:
    """Of each model the hazards of its pairs, the largest first; and audits of them drawn again."""
    rows = []
    for model in results["models"]:
        for role in dict.fromkeys(pair["role"] for pair in model["pairs"]):
            pairs = measure_pairs(model, role=role)
            ranked = sorted(pairs.items(), key=lambda item: -hazard_of(item[1]))
            shown = [ranked[0], ranked[len(ranked) // 2], ranked[-1]] if len(ranked) > 2 else ranked
            for which, (name, leaving) in zip(("most", "middle", "least"), shown, strict=False):
                low, high = bound_hazard(leaving)
                rows.append(
                    (
                        model["name"], role, len(pairs), which, name,
                        sum(one.left for one in leaving), int(sum(x.exposure for x in leaving)),
                        f"{hazard_of(leaving):.2%} ({low:.2%} to {high:.2%})",
                    )
                )  # fmt: skip
    pairs_told = tabulate_rows(
        ("model", "kind", "pairs", "of them", "stacks", "left", "tokens", "hazard a token"), rows
    )
    audits = tabulate_rows(
        ("model", "target", "audits", "differ", "median replies (most)", "alike",
         "median replies (most)"),
        (
            (model["name"], one["target"], one["audits"], len(one["differs"]),
             _middle(one["differs"]), len(one["alike"]), _middle(one["alike"]))
            for model in results["models"] for one in model["replayed"]
        ),
    )  # fmt: skip
    return f"{pairs_told}\n\n{audits}"


def _middle(replies: Sequence[int]) -> str:
    return f"{median(replies):g} ({max(replies)})" if replies else "-"
