"""What a provisional floor would say of models that are calibrated: each left out in turn.

Arithmetic on calibrations alone. A floor is lent by the others to the card that is left out, and
held against what was measured on that card's own model: whether noise as of an honest stack or of a
finer build would be accused, and whether that of a 4-bit build would be certified. With one card
nothing can be left out, and the results say that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from verifier.evidence.calibration import Calibration, Stack
from verifier.files.run_folder import make_folder
from verifier.lab.bench.results import begin_results, tabulate_rows, write_results
from verifier.reference.calibrations import is_calibrated, load_calibration
from verifier.reference.cards import list_cards, load_card
from verifier.reference.provisional import COARSE, Known, make_provisional

PART: Final = "provisional"

#: Said where there are too few cards.
TOO_FEW: Final = (
    "Of the cards {count} is calibrated, so none can be left out: nothing was measured."
)


def run_provisional_bench(out: Path, *, seed: int, tell: Callable[[str], None]) -> Path:
    """Leave each calibrated card at hand out in turn; the path of the results."""
    known = [
        (card, load_calibration(name, card))
        for name in list_cards() if is_calibrated(name) for card in (load_card(name),)
    ]  # fmt: skip
    found = leave_out(known)
    tell(f"{len(found)} of {len(known)} calibrated cards left out")
    make_folder(out)
    results = {**begin_results(seed=seed), "calibrated": len(known), "each": found}
    return write_results(out, PART, results)


def leave_out(known: Sequence[Known]) -> list[dict[str, Any]]:
    """What the others lend to each card, and what that makes of its own stacks and builds.

    Those that nobody can lend to are passed over.
    """
    found = []
    for card, own in known:
        made = make_provisional(card, [one for one in known if one[0].name != card.name])
        if made is not None:
            found.append(_held_against(made, own))
    return found


def _held_against(made: Calibration, own: Calibration) -> dict[str, Any]:
    assert made.provisional is not None
    excluded = next(one.to_exclude for one in made.classes if one.name == COARSE)
    honest = [one for one in own.stacks if one.role != "variant"]
    finer = [one for one in own.stacks if one.family in ("int8", "fp8")]
    coarse = [one for one in own.stacks if one.family == "4-bit"]
    end = made.text.tolerated
    return {
        "card": made.card,
        "lenders": [one.card for one in made.provisional.lenders],
        "differs": list(made.provisional.lenders[0].differs),
        "floor": round(made.text.honest_scale, 4),
        "tolerated": round(end, 4),
        "excluded_below": round(excluded, 4),
        "honest": len(honest),
        "honest_above_floor": _above(honest, made.text.honest_scale),
        "honest_accused": _above(honest, end),
        "finer": len(finer),
        "finer_accused": _above(finer, end),
        "coarse": len(coarse),
        "coarse_accused": _above(coarse, end),
        "coarse_certified": [n for n in _names(coarse) if n not in _above(coarse, excluded)],
    }


def _names(stacks: Sequence[Stack]) -> list[str]:
    return [one.name for one in stacks if one.text is not None]


def _above(stacks: Sequence[Stack], scale: float) -> list[str]:
    """Those whose own scale is estimated above one."""
    return [one.name for one in stacks if one.text is not None and one.text.estimate > scale]


def tabulate_provisional(results: Mapping[str, Any]) -> str:
    """A Markdown table: a row for each card that was left out."""
    if not results["each"]:
        return TOO_FEW.format(count=results["calibrated"])
    headings = [
        "left out", "lent by", "floor", "tolerated", "honest stacks accused",
        "8-bit builds accused", "4-bit builds accused", "4-bit builds certified",
    ]  # fmt: skip
    return tabulate_rows(headings, [
        (
            one["card"], ", ".join(one["lenders"]), f"{one['floor']:.2g}",
            f"{one['tolerated']:.2g}", f"{len(one['honest_accused'])} of {one['honest']}",
            f"{len(one['finer_accused'])} of {one['finer']}",
            f"{len(one['coarse_accused'])} of {one['coarse']}",
            f"{len(one['coarse_certified'])} of {one['coarse']}",
        )
        for one in results["each"]
    ])  # fmt: skip
