"""How soon greedy replies of two stacks leave each other: the pairs that were measured.

Each stack is read along one path, the exact one: of each reply the place where it would choose
another token, and which. Two stacks leave each other at the first place where one of them leaves
the path, or both with different tokens; where both leave it with the same token, nothing is seen
any more. Measured by `reference/recipes/measure_hazards.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import NormalDist, median
from typing import Any, Final

import numpy as np

from verifier.evidence.hazards import KINDS, WINDOW, Kind, Leaving, compare, hazard_of
from verifier.lab.bench.results import tabulate_rows

PART: Final = "hazards"

#: What audits of replies drawn again are: of each pair and trusted host so many, of so many replies
#: at most, at this error rate.
AUDITS: Final = 10
REPLIES: Final = 60
ALPHA: Final = 0.001

#: Coverage of each bound of a pair's hazard.
LEVEL: Final = 0.975

#: Where one reply of a stack leaves the exact path, and with which token; None: nowhere.
Leaves = Sequence[tuple[int, int] | None]


def leaves_of(path: Sequence[int], chosen: Sequence[int]) -> tuple[int, int] | None:
    """The first place where the choices along a path differ from it, and the choice there."""
    pairs = enumerate(zip(path, chosen, strict=True))
    return next(((at, other) for at, (one, other) in pairs if one != other), None)


def pair_leaving(lengths: Sequence[int], one: Leaves, other: Leaves) -> list[Leaving]:
    """How the replies of two stacks leave each other, within the window."""
    return [
        _leave(length, a, b).within(WINDOW)
        for length, a, b in zip(lengths, one, other, strict=True)
    ]


def _leave(length: int, one: tuple[int, int] | None, other: tuple[int, int] | None) -> Leaving:
    if one == other:
        return Leaving(exposure=length if one is None else one[0], left=False)
    places = [leaves[0] for leaves in (one, other) if leaves is not None]
    return Leaving(exposure=min(places) + 1, left=True)


def measure_pairs(model: Mapping[str, Any], *, role: str) -> dict[str, list[Leaving]]:
    """Pairs of honest stacks; or for another role each stack of it against each honest one."""
    stacks = {stack["name"]: [None if x is None else tuple(x) for x in stack["leaves"]]
              for stack in model["stacks"]}  # fmt: skip
    honest = [stack["name"] for stack in model["stacks"] if stack["role"] == "honest"]
    others = [stack["name"] for stack in model["stacks"] if stack["role"] == role]
    named = (
        combinations(honest, 2) if role == "honest" else ((a, b) for b in others for a in honest)
    )
    return {f"{a} and {b}": pair_leaving(model["lengths"], stacks[a], stacks[b]) for a, b in named}


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
    for role in dict.fromkeys(stack["role"] for stack in model["stacks"]):
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
        roles = list(dict.fromkeys(stack["role"] for stack in model["stacks"]))
        for role in roles:
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
